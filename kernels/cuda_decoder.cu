#include "kernels/cuda_decoder.h"

#include <chrono>

#include "decode/generate.h"
#include "kernels/cuda_error.h"
#include "kernels/cuda_model.h"
#include "kernels/cuda_rounds.h"

std::string cuda_unusable(int device) {
    int driver = 0, count = 0, value = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
        return "no NVIDIA driver was found; install driver 580.65.06 or later, or run with --device cpu";
    if (driver < CUDART_VERSION / 1000 * 1000)
        return "the NVIDIA driver supports CUDA " + std::to_string(driver / 1000) + "." +
               std::to_string(driver % 1000 / 10) + " and this program needs CUDA " +
               std::to_string(CUDART_VERSION / 1000) + ".0; install driver 580.65.06 or later";
    if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess)
        return std::string("no GPU can be used: ") + cudaGetErrorString(status);
    if (device < 0 || device >= count)
        return "there is no GPU " + std::to_string(device) + "; this machine has " + std::to_string(count) +
               ", counted from 0";
    cudaDeviceProp properties;
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, device); status != cudaSuccess)
        return "GPU " + std::to_string(device) + " can't be used: " + cudaGetErrorString(status);
    const std::string name = "GPU " + std::to_string(device) + " (" + properties.name + ")";
    if (properties.major < 8)
        return name + " has compute capability " + std::to_string(properties.major) + "." +
               std::to_string(properties.minor) + " and this program needs 8.0 or later (Ampere)";
    if (cudaDeviceGetAttribute(&value, cudaDevAttrCooperativeLaunch, device) != cudaSuccess || !value)
        return name + " can't start all blocks of a kernel together (cooperative launch), which this program needs";
    if (cudaDeviceGetAttribute(&value, cudaDevAttrComputeMode, device) != cudaSuccess ||
        value == cudaComputeModeProhibited)
        return name + " is closed to computation by its compute mode";
    return "";
}

std::string cuda_unusable(int device, const Blob& blob) {
    std::string why = cuda_unusable(device);
    if (why.empty()) why = cuda_unsupported(blob.target().config);
    if (why.empty() && blob.has_draft()) why = cuda_unsupported(blob.draft().config);
    return why;
}

namespace {

class CudaDecoder : public Decoder {
public:
    CudaDecoder(const Blob& blob, int device) : target_(blob.target(), device) {
        if (blob.has_draft()) {
            draft_ = std::make_unique<CudaModel>(blob.draft(), device);
            rounds_ = std::make_unique<CudaRounds>(target_, *draft_, blob.has_ngram() ? blob.ngram() : NgramView{});
        }
        cudaDeviceProp properties;
        cuda_check(cudaGetDeviceProperties(&properties, device), "reading its properties");
        name_ = properties.name;
    }

    Statistics generate(const Request& request, const std::function<bool(std::span<const Emitted>)>& emit) override {
        if (request.mode != Mode::baseline && !draft_)
            throw Error(kExitUsage, "this mode needs a draft and the model file holds none; use --mode baseline");
        Statistics stats = request.mode == Mode::baseline ? baseline(request, emit) : rounds_->generate(request, emit);
        stats.device = name_;
        stats.device_bytes = target_.bytes() + (draft_ ? draft_->bytes() + rounds_->bytes() : 0);
        return stats;
    }

    // The fastest of twelve settings for GPT2-L and a draft of 4 x 512 on an H100 (docs/results).
    TreeSettings default_tree() const override {
        return {.nodes = 16, .draft_width = 16, .ngram_nodes = 8, .draft_cost = 0.07f};
    }

    EngineFacts facts() const override {
        return {.kv_value_bytes = 2, .pass_width = target_.max_width(), .prefill_width = target_.prefill_width()};
    }

    std::string device_name() const override { return name_; }

    std::vector<float> score(std::span<const int32_t> tokens) override { return ::score(target_, tokens); }

private:
    Statistics baseline(const Request& request, const std::function<bool(std::span<const Emitted>)>& emit) {
        using Clock = std::chrono::steady_clock;
        const auto ms = [](Clock::time_point from) {
            return std::chrono::duration<double, std::milli>(Clock::now() - from).count();
        };
        const Config& config = target_.config();
        check_prompt(request.prompt, config);
        const Clock::time_point start = Clock::now();
        Statistics stats;
        const int n_prompt = int(request.prompt.size());
        const TextLimit limit = text_limit(request, config);
        const int max_tokens = limit.tokens - n_prompt;
        stats.prompt_tokens = n_prompt;
        stats.stop = limit.stop;
        if (max_tokens <= 0) return stats;

        target_.prefill(0, std::span(request.prompt).first(n_prompt - 1));
        target_.synchronise();
        stats.prefill_ms = ms(start);
        const int32_t end_token = request.ignore_eos ? -1 : config.eos_token;
        const Clock::time_point decoding = Clock::now();
        target_.decode(request.prompt.back(), n_prompt - 1, max_tokens, end_token, request.sampling,
                       [&](int32_t token) {
                           ++stats.rounds;
                           ++stats.target_nodes;
                           if (token == end_token) {
                               stats.stop = StopReason::eos;
                               return false;
                           }
                           ++stats.emitted;
                           ++stats.by_origin[int(Origin::target)];
                           const Emitted emitted = {token, Origin::target};
                           if (emit({&emitted, 1})) return true;
                           stats.stop = StopReason::caller;
                           return false;
                       });
        stats.target_ms = ms(decoding);
        stats.total_ms = ms(start);
        return stats;
    }

    CudaModel target_;
    std::unique_ptr<CudaModel> draft_;
    std::unique_ptr<CudaRounds> rounds_;
    std::string name_;
};

}  // namespace

std::unique_ptr<Decoder> make_cuda_decoder(const Blob& blob, int device) {
    if (const std::string why = cuda_unusable(device, blob); !why.empty()) throw Error(kExitNoGpu, why);
    return std::make_unique<CudaDecoder>(blob, device);
}

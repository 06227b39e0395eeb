#include "decode/reference_decoder.h"

#include "decode/generate.h"
#include "decode/reference.h"
#include "model/error.h"

namespace {

class ReferenceDecoder : public Decoder {
public:
    explicit ReferenceDecoder(const Blob& blob) : target_(blob.target()) {
        if (blob.has_draft()) draft_ = std::make_unique<Reference>(blob.draft());
        if (blob.has_ngram()) table_ = blob.ngram();
    }

    Statistics generate(const Request& request, const std::function<bool(std::span<const Emitted>)>& emit) override {
        if (request.mode != Mode::baseline && !draft_)
            throw Error(kExitUsage, "this mode needs a draft and the model file holds none; use --mode baseline");
        Statistics stats = ::generate(target_, draft_.get(), table_, request, emit);
        stats.device = device_name();
        stats.device_bytes = target_.bytes() + (draft_ ? draft_->bytes() : 0);
        return stats;
    }

    // On a CPU a pass costs nearly as much as its nodes, so only a short chain pays (docs/measurements.md).
    TreeSettings default_tree() const override {
        return {.nodes = 6, .children = 1, .draft_width = 4, .draft_passes = 4, .ngram_nodes = 3, .draft_cost = 0.2f};
    }

    EngineFacts facts() const override { return {.kv_value_bytes = sizeof(float), .pass_width = kMaxNodes}; }

    std::string device_name() const override { return "CPU, " + std::to_string(target_.n_threads()) + " threads"; }

    std::vector<float> score(std::span<const int32_t> tokens) override { return ::score(target_, tokens); }

private:
    Reference target_;
    std::unique_ptr<Reference> draft_;
    NgramView table_ = {};
};

}  // namespace

std::unique_ptr<Decoder> make_reference_decoder(const Blob& blob) {
    return std::make_unique<ReferenceDecoder>(blob);
}

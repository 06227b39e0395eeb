// A model on the GPU (decode/model.h), kernels/forward.cuh its passes, kernels/prefill.cu its prefill. All device
// memory is allocated at construction.
#pragma once

#include <array>
#include <climits>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "decode/model.h"
#include "kernels/device_memory.h"
#include "kernels/device_model.h"
#include "kernels/prefill.h"
#include "model/blob.h"

struct CUstream_st;
struct CUevent_st;
struct ChooseArguments;

// "" if the kernels can run a model of this shape, else a sentence that says why not.
std::string cuda_unsupported(const Config& config);

class CudaModel : public Model {
public:
    // Copies the model to the device. Throws Error(kExitNoGpu) for a shape that cuda_unsupported() objects to and
    // Error(kExitOutOfMemory) with the bytes needed and free.
    // max_shared: bytes of shared memory that a block may take though the GPU has more, so that a test can stand for a
    // smaller GPU.
    CudaModel(const ModelView& model, int device, int max_shared = INT_MAX);
    ~CudaModel() override;

    const Config& config() const override { return config_; }
    void forward(const Pass& pass) override;
    void choose(const Sampling& sampling, std::span<int32_t> chosen) override;
    void propose(const Sampling& sampling, float tau, int n_children, std::span<Child> children) override;
    void log_probability(std::span<const int32_t> next, std::span<float> result) override;
    void commit(int base, std::span<const int32_t> slots) override;

    // Runs committed tokens straight into the cache from position `base` on. No logits. Returns before it is done.
    void prefill(int base, std::span<const int32_t> tokens);

    // Baseline decoding on the device: from the last committed token, whose position is `base`, up to max_tokens
    // tokens; ends early after end_token (-1: none). on_token is called in order while the device goes on; once it
    // returns false no more calls follow and the device stops.
    void decode(int32_t last_token, int base, int max_tokens, int32_t end_token, const Sampling& sampling,
                const std::function<bool(int32_t)>& on_token);

    std::vector<float> logits(int i);  // (n_vocab) of the last pass's node i of those that have them
    void synchronise();                // waits for the device; Error if it failed
    uint64_t bytes() const { return memory_.bytes(); }
    int max_width() const { return max_width_; }  // nodes of one pass of the device; more are run in several
    int prefill_width() const { return prefill_scratch_.rows; }  // tokens of prefill in one reading of the weights
    const uint8_t* weights() const { return model_.weights; }    // on the device

    // For those who order passes from the device (kernels/cuda_rounds.h): enqueues the pass that device_pass points to
    // when its turn comes, of at most n nodes, which then stand in device_nodes(); n = 0 there: nothing is done. One
    // launch for each width of kernel; those that don't fit the pass leave at once, but take 3 us. So a pass that is
    // narrower than `usual`, which few are, has none of its own.
    void enqueue(int usual, int n, const DevicePass* device_pass, CUstream_st* stream);
    // Exchanges of a pass are numbered (kernels/exchange.cuh), and no number serves twice: the first of those set apart
    // for n_passes passes, each of which takes numbers_of_pass() of them.
    uint32_t reserve_numbers(int n_passes);
    uint32_t numbers_of_pass() const;
    // The phase counters that passes take in turn, each clearing the other's: to be zero before a pass that the device
    // ordered.
    std::array<uint32_t*, 2> device_counters() const { return {scratch_.counter, scratch_.next_counter}; }
    CUstream_st* stream() const { return stream_; }
    int device() const { return device_; }
    const DeviceModel& device_model() const { return model_; }
    const Scratch& scratch() const { return scratch_; }  // what the last pass left between its phases
    PassNodes* device_nodes() const { return nodes_; }
    float* device_scores() const { return scores_; }                    // (kMaxNodes, pad16(n_vocab)) scratch
    const float* device_logits() const { return scratch_.logits; }      // (n_logits, pad16(n_vocab)) of the last pass
    const float* device_greatest() const { return scratch_.greatest; }  // (n_logits, pad16(n_vocab) / 16) of them

    // How many pieces of the weights a block has under way, 0: as many as serve passes of a width best. Never alters a
    // result.
    int pace = 0;

private:
    PassArguments arguments(const DevicePass& pass, int n);
    uint32_t numbers_of_launch() const;
    uint64_t vector_units() const;
    void fold();
    void stage(const Pass& pass);
    void run(const DevicePass& pass);
    void launch(const DevicePass& pass, const DevicePass* device_pass, int least, int most, CUstream_st* stream);
    ChooseArguments choose_arguments(const Sampling& sampling) const;
    SharedLayout shared_layout(int n) const;  // of a launch for up to n nodes

    Config config_;
    int device_, n_blocks_ = 0, max_shared_ = 0, max_width_ = 0;
    uint64_t exchange_bytes_ = 0;  // of the words of scratch_, which lie together
    uint32_t next_number_ = 1;     // of an exchange; words start as 0
    DeviceModel model_ = {};
    Scratch scratch_ = {};
    PrefillScratch prefill_scratch_ = {};
    PrefillSetup prefill_setup_ = {};
    DeviceMemory memory_;         // everything on the device
    PassNodes* nodes_ = nullptr;  // on the device
    float* vectors_ = nullptr;    // (vector_units(), 2, 16) on the device (kernels/fold.cuh)
    float* scores_ = nullptr;     // (kMaxNodes, pad16(n_vocab)) on the device
    struct HostMemory;            // page-locked, seen by both
    HostMemory* host_ = nullptr;
    CUstream_st* stream_ = nullptr;
    std::vector<CUevent_st*> staged_;  // a staging buffer of nodes has been copied
    int next_staging_ = 0;
    DevicePass last_ = {};  // the last pass with its logits
};

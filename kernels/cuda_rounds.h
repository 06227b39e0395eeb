// Staged speculation on the GPU: prefill led by the host, then rounds that the device leads itself
// (kernels/round_kernels.cuh). The host enqueues kernels some rounds ahead, passes on what the device reports and
// hands it the stop flag; nothing on the device waits for it.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "decode/decoder.h"
#include "decode/ngram.h"
#include "kernels/cuda_model.h"

struct DeviceRounds;
struct RoundArguments;
struct CUgraphExec_st;

class CudaRounds {
public:
    // The models must lie on the same device and outlive this. Copies the table there, unless table.header is null.
    // Throws Error(kExitOutOfMemory) with the bytes needed and free.
    CudaRounds(CudaModel& target, CudaModel& draft, const NgramView& table);
    ~CudaRounds();
    CudaRounds(const CudaRounds&) = delete;

    // Runs the request in speculative or staged mode as decode/generate.h does, with the same statistics; times of the
    // stages are the device's own.
    Statistics generate(const Request& request, const std::function<bool(std::span<const Emitted>)>& emit);

    uint64_t bytes() const { return memory_.bytes(); }  // allocated on the device

private:
    CUgraphExec_st* sequence(const Request& request, int draft_passes);
    void forget_graphs();

    CudaModel &target_, &draft_;
    NgramView table_ = {};  // on the device
    DeviceMemory memory_;   // everything on the device
    DeviceRounds* rounds_ = nullptr;
    int32_t* text_ = nullptr;  // (n_positions)
    std::unique_ptr<RoundArguments> arguments_;
    struct GraphKey {
        int nodes, draft_width;
        bool guesses;
        bool operator==(const GraphKey&) const = default;
    };
    CUgraphExec_st* graphs_[16 + 1] = {};  // sequences by their number of draft passes, for one key
    GraphKey graph_key_ = {};
    CUstream_st* stop_stream_ = nullptr;  // the stop flag travels beside the rounds
    struct HostMemory;                    // page-locked, seen by both
    HostMemory* host_ = nullptr;
};

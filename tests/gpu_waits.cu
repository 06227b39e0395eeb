#include "tests/gpu_waits.h"

#include "kernels/phase_counter.cuh"

static __global__ void wait_kernel(const uint32_t* word, uint32_t* failure) {
    wait_for(failure, Wait::exchange, [&] { return ptx::load_relaxed(word) != 0; });
}

Hang wait_for_word() {
    uint32_t *failure = nullptr, *word = nullptr;
    if (cudaHostAlloc(reinterpret_cast<void**>(&failure), sizeof *failure, cudaHostAllocMapped) != cudaSuccess ||
        cudaMalloc(&word, sizeof *word) != cudaSuccess || cudaMemset(word, 0, sizeof *word) != cudaSuccess)
        return {};
    *failure = 0;
    wait_kernel<<<1, 1>>>(word, failure);
    const bool ended = cudaDeviceSynchronize() == cudaErrorLaunchFailure;
    return {ended, *failure};
}

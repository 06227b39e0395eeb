// What a thread block keeps for the time of a kernel: its shared memory, the ring's reading end, the exchange it is in.
// Shared memory is addressed through constants and kernel parameters, so that none of this occupies registers.
#pragma once

#include <cuda_fp16.h>

#include "kernels/weight_ring.cuh"

struct Block {
    const PassArguments& a;
    Ring ring;
    Ring::Position read;  // the same in all multiplying warps
    PhaseCounter phase;
    uint32_t thread;  // threadIdx.x

    // Called by all threads of the block. readers: warps that read each piece of the weights.
    __device__ Block(const PassArguments& arguments, int readers)
        : a(arguments), ring(arguments), read(), phase(arguments.scratch), thread(threadIdx.x) {
        if (threadIdx.x == 0) {
            ring.initialise(readers);
            set_doing(Doing::waiting);
            shared_state.stop = 0;
            shared_state.max_depth = 0;
            shared_state.mail = 0;
            shared_state.n_sent = 0;
            shared_state.host_stops = 0;
        }
        __syncthreads();
    }
    __device__ float* partial() const { return reinterpret_cast<float*>(shared_memory + a.shared.partial); }
    __device__ float* x(int row) const {  // (n_embd) residual stream
        return reinterpret_cast<float*>(shared_memory + a.shared.x) + row * a.model.n_embd;
    }
    __device__ uint16_t* input(int row) const {  // (n_embd) matrix input
        return reinterpret_cast<uint16_t*>(shared_memory + a.shared.input) + row * a.shared.input_stride;
    }
    __device__ uint32_t input_at(int row, int column) const {  // its shared address
        return ring.slots - a.shared.ring + a.shared.input + (row * a.shared.input_stride + column) * 2;
    }
};

// The sum of `value` over the multiplying threads, in a fixed order: lanes pairwise, then warps pairwise. space:
// (kMultiplyWarps) in shared memory that nobody reads any more, 16-byte aligned.
__device__ inline float block_sum(float* space, float value) {
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) value = __fadd_rn(value, __shfl_xor_sync(~0u, value, offset));
    if (threadIdx.x % 32 == 0) space[threadIdx.x / 32] = value;
    block_barrier();
    float quarter[kMultiplyWarps / 4];
#pragma unroll
    for (int q = 0; q < kMultiplyWarps / 4; ++q) {
        const float4 v = reinterpret_cast<const float4*>(space)[q];
        quarter[q] = __fadd_rn(__fadd_rn(v.x, v.y), __fadd_rn(v.z, v.w));
    }
    static_assert(kMultiplyWarps == 16);
    return __fadd_rn(__fadd_rn(quarter[0], quarter[1]), __fadd_rn(quarter[2], quarter[3]));
}

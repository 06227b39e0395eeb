// What a thread block keeps for the time of a kernel: its shared memory, the ring's reading end, the exchange it is in.
// Shared memory is addressed through constants and kernel parameters, so that none of this occupies registers.
#pragma once

#include <cuda_fp16.h>

#include "kernels/weight_ring.cuh"

struct Block {
    const PassArguments& a;
    Ring ring;
    int read;  // position in the ring, the same in all multiplying warps; wide passes keep it in shared_state
    PhaseCounter phase;
    uint32_t thread;  // threadIdx.x

    // Called by all threads of the block. readers: warps that read each piece of the weights.
    __device__ Block(const PassArguments& arguments, int readers, bool keep_ring)
        : a(arguments), ring(arguments, keep_ring), read(), phase(arguments.scratch), thread(threadIdx.x) {
        if (threadIdx.x == 0) {
            ring.initialise(readers);
            set_pause(false);
            shared_state.stop = 0;
            shared_state.read = 0;
            shared_state.max_depth = 0;
            shared_state.mail = 0;
            shared_state.n_sent = 0;
            shared_state.host_stops = 0;
        }
        __syncthreads();
    }
    __device__ float* partial() const { return reinterpret_cast<float*>(shared_memory); }
    __device__ uint32_t input_at(int row, int column) const {  // shared address of the matrix input
        return ring.slots - a.shared.ring + a.shared.input + (row * a.shared.input_stride + column) * 2;
    }
};

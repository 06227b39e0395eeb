// x = wte[token] + wpe[position], fp32. wte lies in tiles (it is the head too): a row's columns come in runs of two.
#pragma once

#include "kernels/block.cuh"

// x: (n_embd), shared memory.
__device__ inline void embed(const DeviceModel& m, int token, int position, float* x) {
    const uint16_t* wte = m.halves(0, m.wte);
    const uint16_t* wpe = m.halves(0, m.wpe) + uint64_t(position) * m.n_embd;
    for (int e = threadIdx.x * 2; e < m.n_embd; e += kMultiplyThreads * 2) {
        const float2 a = __half22float2(*reinterpret_cast<const __half2*>(wte + tiled_index(token, e, m.n_embd)));
        const float2 b = __half22float2(*reinterpret_cast<const __half2*>(wpe + e));
        x[e] = __fadd_rn(a.x, b.x);
        x[e + 1] = __fadd_rn(a.y, b.y);
    }
    block_barrier();
}

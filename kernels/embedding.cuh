// x = wte[token] + wpe[position], fp32, where each pass begins. wte lies in tiles (it is the head too).
#pragma once

#include "kernels/residual.cuh"

__device__ inline float embedded(const DeviceModel& m, int token, int position, int column) {
    const uint16_t wte = m.halves(0, m.wte)[tiled_index(token, column, m.n_embd)];
    const uint16_t wpe = m.halves(0, m.wpe)[uint64_t(position) * m.n_embd + column];
    return __fadd_rn(__half2float(__ushort_as_half(wte)), __half2float(__ushort_as_half(wpe)));
}

// Of all nodes: a block takes units of 16 columns, a half-warp those of a node.
template <bool words>
__device__ inline void embed(const Block& b, const DevicePass& pass) {
    const PassArguments& a = b.a;
    const DeviceModel& m = a.model;
    const int row = b.thread % 16, n_units = m.n_embd / 16;
    const Exchange exchange = {pass.number, a.layer_rows[0]};
    if (!words && m.n_layer > 1 && int(blockIdx.x) < n_units)  // what an earlier pass left
        for (int buffer = kTurns; buffer < kBuffers; ++buffer)
            clear_rows(b, buffer * kMaxNodes * a.scratch.layer_values, pass.n, blockIdx.x,
                       min(n_units, int(gridDim.x)));
#pragma unroll 1
    for (int unit = blockIdx.x; unit < n_units; unit += gridDim.x) {
        const int column = unit * 16 + row;
#pragma unroll 1
        for (int node = b.thread / 16; node < pad16(pass.n); node += kMultiplyThreads / 16) {
            const bool there = node < pass.n;
            const int token = there ? shared_state.token[node] : 0,
                      position = there ? pass.base + shared_state.depth[node] : 0;
            publish_x<words>(a, 0, exchange, there, node, unit, row, embedded(m, token, position, column),
                             m.vector(0, m.layer.ln_1_weight)[column]);
        }
    }
    block_barrier();
}

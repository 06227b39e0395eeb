// What the results of a matrix's units of 16 rows are combined with, two vectors of 16 each, made once for a model:
//
//     behind LayerNorm (c_attn, c_fc, lm_head):  along(row) = sum over k of weight(row, k) ln_weight(k)
//                                                constant(row) = sum over k of weight(row, k) ln_bias(k) + bias(row)
//     behind a branch (c_proj, mlp_proj):        its bias, and the weight of the LayerNorm that comes next
//
// See residual.cuh. Sums in double precision; the weights are read once.
#pragma once

#include <cuda_fp16.h>

#include "kernels/device_model.h"

constexpr int kFoldWarps = 4;

// Grid: units; a warp takes every fourth fragment block. tiles: (units, n_embd / 16) fragment blocks; bias: (16 units)
// or null; vectors: (units, 2, 16).
static __global__ void __launch_bounds__(32 * kFoldWarps)
    fold_norm(const uint16_t* tiles, int n_embd, const float* ln_weight, const float* ln_bias, const float* bias,
              float* vectors) {
    __shared__ double sums[kFoldWarps][2][16];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint4* blocks = reinterpret_cast<const uint4*>(tiles) + uint64_t(blockIdx.x) * (n_embd / 16) * 32;
    double sum[2][2] = {};  // row g, row g + 8; by ln_weight, by ln_bias
    for (int block = warp; block < n_embd / 16; block += kFoldWarps) {
        const uint4 lanes = blocks[block * 32 + lane];
        const uint32_t pairs[4] = {lanes.x, lanes.y, lanes.z, lanes.w};  // columns 2 t.., then 2 t + 8..; rows g, g + 8
        for (int i = 0; i < 4; ++i) {
            const float2 w = __half22float2(*reinterpret_cast<const __half2*>(&pairs[i]));
            const int column = block * 16 + i / 2 * 8 + 2 * t;
            sum[i % 2][0] += double(w.x) * ln_weight[column] + double(w.y) * ln_weight[column + 1];
            sum[i % 2][1] += double(w.x) * ln_bias[column] + double(w.y) * ln_bias[column + 1];
        }
    }
    for (int row = 0; row < 2; ++row)
        for (int which = 0; which < 2; ++which) {
            double& s = sum[row][which];
            s += __shfl_xor_sync(~0u, s, 1);
            s += __shfl_xor_sync(~0u, s, 2);
            if (t == 0) sums[warp][which][g + 8 * row] = s;
        }
    __syncthreads();
    if (threadIdx.x >= 32) return;
    const int which = threadIdx.x / 16, row = threadIdx.x % 16;
    double total = which && bias ? double(bias[blockIdx.x * 16 + row]) : 0.0;
    for (int w = 0; w < kFoldWarps; ++w) total += sums[w][which][row];
    vectors[blockIdx.x * 32 + threadIdx.x] = float(total);
}

// Grid: units of 16 columns, 32 threads. bias, ln_weight: (16 units); vectors: (units, 2, 16).
static __global__ void fold_branch(const float* bias, const float* ln_weight, float* vectors) {
    const int unit = blockIdx.x, i = threadIdx.x;
    vectors[unit * 32 + i] = (i < 16 ? bias : ln_weight)[unit * 16 + i % 16];
}

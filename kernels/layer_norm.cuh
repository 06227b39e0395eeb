// The residual step and the LayerNorm after it, one node by one thread block:
//
//     x += (part 0 + part 1 + ...) + bias;     out = (x - mean) / sqrt(variance + epsilon) * weight + shift, as fp16
//
// A thread takes 4 neighbouring columns at a time; sums run over its columns ascending, then over lanes and warps in
// block_sum's order. Reads 4 n_embd bytes a part from L2; bias, weight and shift (12 n_embd bytes) are fetched while
// the block waits for the parts.
#pragma once

#include "kernels/block.cuh"

struct NormParameters {
    const float* bias;            // (n_embd) of the branch that is added; null: nothing is added
    const float *weight, *shift;  // (n_embd)
};

// Of the LayerNorm before matrix `at` of the pass, and the bias of the branch that it takes in.
__device__ inline NormParameters norm_parameters(const DeviceModel& m, int at) {
    const int layer = at / kLayerMatrices;
    const LayerLayout& l = m.layer;
    switch (matrix_kind(m, at)) {
        case Matrix::c_attn:
            return {layer ? m.vector(layer - 1, l.mlp_proj_bias) : nullptr, m.vector(layer, l.ln_1_weight),
                    m.vector(layer, l.ln_1_bias)};
        case Matrix::c_fc:
            return {m.vector(layer, l.c_proj_bias), m.vector(layer, l.ln_2_weight), m.vector(layer, l.ln_2_bias)};
        default:
            return {m.vector(layer - 1, l.mlp_proj_bias), m.vector(0, m.ln_f_weight), m.vector(0, m.ln_f_bias)};
    }
}

// Starts fetching the parameters into the partial sums' place, (3, n_embd): each thread what it will use itself.
__device__ inline void norm_prefetch(const Block& b, const NormParameters& p, int n_embd) {
    const uint32_t to = ptx::shared_address(b.partial());
    for (int e = threadIdx.x * 4; e < n_embd; e += kMultiplyThreads * 4) {
        if (p.bias) ptx::copy_16(to + e * 4, p.bias + e);
        ptx::copy_16(to + (n_embd + e) * 4, p.weight + e);
        ptx::copy_16(to + (2 * n_embd + e) * 4, p.shift + e);
    }
}

__device__ inline uint32_t pack_halves(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}

// x: (n_embd) shared. part: (n_parts, part_stride) floats, global, written by other blocks; n_parts 0: none.
// out: (n_embd) halves in fragment order, shared. All multiplying threads, each having waited for its parameters.
__device__ inline void add_and_normalise(const Block& b, int n_embd, float epsilon, float* x, const float* part,
                                         int n_parts, int part_stride, uint16_t* out) {
    const float* bias = b.partial();
    const float* weight = bias + n_embd;
    const float* shift = weight + n_embd;
    const int n_quads = n_embd / 4;
    float sum = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < n_quads; i += kMultiplyThreads) {
        float4 v = reinterpret_cast<float4*>(x)[i];
        if (n_parts) {
            float4 branch[kSplit];  // all on their way at once
#pragma unroll
            for (int s = 0; s < kSplit; ++s)
                if (s < n_parts) branch[s] = __ldcg(reinterpret_cast<const float4*>(part + s * part_stride) + i);
#pragma unroll
            for (int s = 1; s < kSplit; ++s)
                if (s < n_parts) {
                    branch[0].x = __fadd_rn(branch[0].x, branch[s].x);
                    branch[0].y = __fadd_rn(branch[0].y, branch[s].y);
                    branch[0].z = __fadd_rn(branch[0].z, branch[s].z);
                    branch[0].w = __fadd_rn(branch[0].w, branch[s].w);
                }
            const float4 c = reinterpret_cast<const float4*>(bias)[i];
            v.x = __fadd_rn(v.x, __fadd_rn(branch[0].x, c.x));
            v.y = __fadd_rn(v.y, __fadd_rn(branch[0].y, c.y));
            v.z = __fadd_rn(v.z, __fadd_rn(branch[0].z, c.z));
            v.w = __fadd_rn(v.w, __fadd_rn(branch[0].w, c.w));
            reinterpret_cast<float4*>(x)[i] = v;
        }
        sum = __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, v.x), v.y), v.z), v.w);
    }
    const float per_column = __frcp_rn(float(n_embd));
    const float mean = __fmul_rn(block_sum(shared_state.sums, sum), per_column);
    float squares = 0;
    for (int i = threadIdx.x; i < n_quads; i += kMultiplyThreads) {
        const float4 v = reinterpret_cast<const float4*>(x)[i];
        const float d0 = __fsub_rn(v.x, mean), d1 = __fsub_rn(v.y, mean), d2 = __fsub_rn(v.z, mean),
                    d3 = __fsub_rn(v.w, mean);
        squares = __fmaf_rn(d3, d3, __fmaf_rn(d2, d2, __fmaf_rn(d1, d1, __fmaf_rn(d0, d0, squares))));
    }
    const float variance = __fmul_rn(block_sum(shared_state.squares, squares), per_column);
    const float scale = __frsqrt_rn(__fadd_rn(variance, epsilon));
    for (int i = threadIdx.x; i < n_quads; i += kMultiplyThreads) {
        const float4 v = reinterpret_cast<const float4*>(x)[i];
        const float4 w = reinterpret_cast<const float4*>(weight)[i], s = reinterpret_cast<const float4*>(shift)[i];
        const auto norm = [&](float value, float w_, float s_) {
            return __fmaf_rn(__fmul_rn(__fsub_rn(value, mean), scale), w_, s_);
        };
        uint32_t* to = reinterpret_cast<uint32_t*>(out + fragment_column(4 * i));
        to[0] = pack_halves(norm(v.x, w.x, s.x), norm(v.y, w.y, s.y));
        to[2] = pack_halves(norm(v.z, w.z, s.z), norm(v.w, w.w, s.w));  // the next lane's share
    }
}

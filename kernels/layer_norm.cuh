// The residual step and the LayerNorm after it, one node by one thread block:
//
//     x += (part 0 + part 1 + ...) + bias;     out = (x - mean) / sqrt(variance + epsilon) * weight + shift, as fp16
//
// A thread takes a quad of neighbouring columns, hence n_embd <= 4 kMultiplyThreads, and keeps it in registers; sums
// run over its columns, then over lanes and warps in block_sum's order. Reads 8 n_embd bytes a part from L2 (words) or
// 4; bias, weight and shift (12 n_embd bytes) are fetched while the block waits for the parts.
#pragma once

#include "kernels/exchange.cuh"

struct NormParameters {
    const float* bias;            // (n_embd) of the branch that is added; null: nothing is added
    const float *weight, *shift;  // (n_embd)
};

// Of the LayerNorm before a matrix of layer `layer`, and the bias of the branch that it takes in.
__device__ inline NormParameters norm_parameters(const DeviceModel& m, Matrix which, int layer) {
    const LayerLayout& l = m.layer;
    const float* mlp_bias = layer ? m.vector(layer - 1, l.mlp_proj_bias) : nullptr;
    if (which == Matrix::c_attn) return {mlp_bias, m.vector(layer, l.ln_1_weight), m.vector(layer, l.ln_1_bias)};
    if (which == Matrix::head) return {mlp_bias, m.vector(0, m.ln_f_weight), m.vector(0, m.ln_f_bias)};
    return {m.vector(layer, l.c_proj_bias), m.vector(layer, l.ln_2_weight), m.vector(layer, l.ln_2_bias)};
}

// Starts fetching the parameters into the partial sums' place, (3, n_embd): each thread what it will use itself.
__device__ inline void norm_prefetch(const Block& b, const NormParameters& p, int n_embd) {
    const uint32_t to = ptx::shared_address(b.partial());
    const int e = b.thread * 4;
    if (e >= n_embd) return;
    if (p.bias) ptx::copy_16(to + e * 4, p.bias + e);
    ptx::copy_16(to + (n_embd + e) * 4, p.weight + e);
    ptx::copy_16(to + (2 * n_embd + e) * 4, p.shift + e);
}

__device__ inline uint32_t pack_halves(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}

// The branch that a LayerNorm takes in first: n_parts results (0: none, 1 or kSplit) of one node, added in order.
struct Branch {
    Rows part;  // n_parts sets of rows
    int n_parts, node;
    uint32_t number;
};

__device__ inline float4 plus(const float4& a, const float4& b) {
    return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
}

// v += branch + bias for this thread's quad of columns.
template <bool words, int kParts>
__device__ inline void add_branch(const Block& b, float4& v, const float* bias, const Branch& branch) {
    const int E = b.a.model.n_embd, column = 4 * b.thread;
    float4 sum;
    if (words) {
#if __CUDA_ARCH__ < 1000
        constexpr int kTogether = kParts < 2 ? 1 : 2;  // parts
#else
        constexpr int kTogether = 1;  // ptxas needs more registers there
#endif
#pragma unroll
        for (int first = 0; first < kParts; first += kTogether) {
            uint32_t offset[2 * kTogether];
            uint4 pair[2 * kTogether];
#pragma unroll
            for (int k = 0; k < 2 * kTogether; ++k)
                offset[k] = ((first + k / 2) * kWordNodes + branch.node) * E + column + k % 2 * 2;
            collect(b, branch.part.word, offset, 2 * kTogether, branch.number, pair);
#pragma unroll
            for (int k = 0; k < kTogether; ++k) {
                const uint4 &low = pair[2 * k], &high = pair[2 * k + 1];
                const float4 part = {__uint_as_float(low.x), __uint_as_float(low.z), __uint_as_float(high.x),
                                     __uint_as_float(high.z)};
                sum = first + k > 0 ? plus(sum, part) : part;
            }
        }
    } else {
        float4 part[kParts];
#pragma unroll
        for (int p = 0; p < kParts; ++p)
            part[p] =
                __ldcg(reinterpret_cast<const float4*>(branch.part.value + (p * kMaxNodes + branch.node) * E + column));
        sum = part[0];
#pragma unroll
        for (int p = 1; p < kParts; ++p) sum = plus(sum, part[p]);
    }
    v = plus(v, plus(sum, *reinterpret_cast<const float4*>(bias + column)));
}

// x: (n_embd) shared. put(value, halves) receives the result: two neighbouring halves in fragment order. All
// multiplying threads; each has called norm_prefetch().
template <bool words, class Put>
__device__ inline void add_and_normalise(const Block& b, float* x, const Branch& branch, const Put& put) {
    const DeviceModel& m = b.a.model;
    const float* bias = b.partial();
    const float* weight = bias + m.n_embd;
    const float* shift = weight + m.n_embd;
    const uint32_t column = 4 * b.thread;
    const bool own = column < uint32_t(m.n_embd);
    float4 v = own ? *reinterpret_cast<const float4*>(x + column) : float4{0, 0, 0, 0};
    ptx::copies_wait();
    if (own && branch.n_parts > 0) {
        if (branch.n_parts == 1)
            add_branch<words, 1>(b, v, bias, branch);
        else
            add_branch<words, kSplit>(b, v, bias, branch);
        *reinterpret_cast<float4*>(x + column) = v;
    }
    const float sum = __fadd_rn(__fadd_rn(v.x, v.y), __fadd_rn(v.z, v.w));
    const float mean = __fmul_rn(block_sum(shared_state.sums, sum), m.per_column);
    v = {__fsub_rn(v.x, mean), __fsub_rn(v.y, mean), __fsub_rn(v.z, mean), __fsub_rn(v.w, mean)};
    const float squares = __fadd_rn(__fmaf_rn(v.y, v.y, __fmul_rn(v.x, v.x)), __fmaf_rn(v.w, v.w, __fmul_rn(v.z, v.z)));
    const float variance = __fmul_rn(block_sum(shared_state.squares, own ? squares : 0.0f), m.per_column);
    const float scale = __frsqrt_rn(__fadd_rn(variance, m.epsilon));
    if (!own) return;
    const float4 w = *reinterpret_cast<const float4*>(weight + column);
    const float4 s = *reinterpret_cast<const float4*>(shift + column);
    const auto norm = [&](float d, float w_, float s_) { return __fmaf_rn(__fmul_rn(d, scale), w_, s_); };
    put(fragment_column(column) / 2, pack_halves(norm(v.x, w.x, s.x), norm(v.y, w.y, s.y)));
    put(fragment_column(column + 2) / 2, pack_halves(norm(v.z, w.z, s.z), norm(v.w, w.w, s.w)));
}

// The residual step and the LayerNorm after it, one node by one thread block:
//
//     x += (part 0 + part 1 + ...) + bias;     out = (x - mean) / sqrt(variance + epsilon) * weight + shift, as fp16
//
// A thread takes one or two quads of neighbouring columns and keeps them in registers; sums run over its columns, then
// over lanes and warps in block_sum's order. Reads 8 n_embd bytes a part from L2; bias, weight and shift (12 n_embd
// bytes) are fetched while the block waits for the parts.
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
    for (int e = b.thread * 4; e < n_embd; e += kMultiplyThreads * 4) {
        if (p.bias) ptx::copy_16(to + e * 4, p.bias + e);
        ptx::copy_16(to + (n_embd + e) * 4, p.weight + e);
        ptx::copy_16(to + (2 * n_embd + e) * 4, p.shift + e);
    }
}

__device__ inline uint32_t pack_halves(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}

// The branch that a LayerNorm takes in first: n_parts results (0: none, 1 or kSplit), added in order.
struct Branch {
    const uint64_t* part;  // words (n_parts, stride), of which n_embd are taken
    int n_parts;
    uint32_t stride, number;
};

constexpr int kMaxQuads = 2;  // of a thread, hence n_embd <= 8 kMultiplyThreads

// v += branch + bias for this thread's quads, the first and n_own - 1 more.
template <int kParts>
__device__ inline void add_branch(const Block& b, float4 (&v)[kMaxQuads], int n_own, const float* bias,
                                  const Branch& branch) {
    constexpr int kTogether = kParts == 1 ? kMaxQuads : 1;  // quads
#pragma unroll
    for (int first = 0; first < kMaxQuads; first += kTogether) {
        if (first >= n_own) break;
        uint32_t offset[kTogether * kParts * 2];
        uint4 pair[kTogether * kParts * 2];
#pragma unroll
        for (int k = 0; k < kTogether * kParts * 2; ++k)
            offset[k] = k / 2 % kParts * branch.stride +
                        4 * (b.thread + (first + k / (2 * kParts)) * kMultiplyThreads) + k % 2 * 2;
        collect(b, branch.part, offset, min(kTogether, n_own - first) * kParts * 2, branch.number, pair);
#pragma unroll
        for (int q = 0; q < kTogether; ++q) {
            if (first + q >= n_own) break;
            const auto part = [&](int p) {
                const uint4 &low = pair[(q * kParts + p) * 2], &high = pair[(q * kParts + p) * 2 + 1];
                return float4{__uint_as_float(low.x), __uint_as_float(low.z), __uint_as_float(high.x),
                              __uint_as_float(high.z)};
            };
            float4 all = part(0);
#pragma unroll
            for (int p = 1; p < kParts; ++p) {
                const float4 more = part(p);
                all = {__fadd_rn(all.x, more.x), __fadd_rn(all.y, more.y), __fadd_rn(all.z, more.z),
                       __fadd_rn(all.w, more.w)};
            }
            const float4 c = reinterpret_cast<const float4*>(bias)[b.thread + (first + q) * kMultiplyThreads];
            float4& x = v[first + q];
            x = {__fadd_rn(x.x, __fadd_rn(all.x, c.x)), __fadd_rn(x.y, __fadd_rn(all.y, c.y)),
                 __fadd_rn(x.z, __fadd_rn(all.z, c.z)), __fadd_rn(x.w, __fadd_rn(all.w, c.w))};
        }
    }
}

// x: (n_embd) shared. put(word, halves) receives the result: two neighbouring halves in fragment order. All multiplying
// threads; each has called norm_prefetch().
template <class Put>
__device__ inline void add_and_normalise(const Block& b, float* x, const Branch& branch, const Put& put) {
    const DeviceModel& m = b.a.model;
    const float* bias = b.partial();
    const float* weight = bias + m.n_embd;
    const float* shift = weight + m.n_embd;
    const int n_quads = m.n_embd / 4;
    const int n_own = (n_quads - int(b.thread) + kMultiplyThreads - 1) / kMultiplyThreads;  // may be 0
    const auto quad = [&](const float* row, int q) {
        return reinterpret_cast<const float4*>(row)[b.thread + q * kMultiplyThreads];
    };
    float4 v[kMaxQuads];
#pragma unroll
    for (int q = 0; q < kMaxQuads; ++q) v[q] = q < n_own ? quad(x, q) : float4{0, 0, 0, 0};
    ptx::copies_wait();
    if (branch.n_parts == 1)
        add_branch<1>(b, v, n_own, bias, branch);
    else if (branch.n_parts == kSplit)
        add_branch<kSplit>(b, v, n_own, bias, branch);

    float sum = 0, squares = 0;
#pragma unroll
    for (int q = 0; q < kMaxQuads; ++q)
        if (q < n_own) {
            if (branch.n_parts) reinterpret_cast<float4*>(x)[b.thread + q * kMultiplyThreads] = v[q];
            sum = __fadd_rn(sum, __fadd_rn(__fadd_rn(v[q].x, v[q].y), __fadd_rn(v[q].z, v[q].w)));
        }
    const float mean = __fmul_rn(block_sum(shared_state.sums, sum), m.per_column);
#pragma unroll
    for (int q = 0; q < kMaxQuads; ++q)
        if (q < n_own) {
            v[q] = {__fsub_rn(v[q].x, mean), __fsub_rn(v[q].y, mean), __fsub_rn(v[q].z, mean), __fsub_rn(v[q].w, mean)};
            const float low = __fmaf_rn(v[q].y, v[q].y, __fmul_rn(v[q].x, v[q].x));
            squares = __fadd_rn(squares, __fadd_rn(low, __fmaf_rn(v[q].w, v[q].w, __fmul_rn(v[q].z, v[q].z))));
        }
    const float variance = __fmul_rn(block_sum(shared_state.squares, squares), m.per_column);
    const float scale = __frsqrt_rn(__fadd_rn(variance, m.epsilon));
#pragma unroll
    for (int q = 0; q < kMaxQuads; ++q)
        if (q < n_own) {
            const float4 w = quad(weight, q), s = quad(shift, q);
            const auto norm = [&](float d, float w_, float s_) { return __fmaf_rn(__fmul_rn(d, scale), w_, s_); };
            const uint32_t word = fragment_column(4 * (b.thread + q * kMultiplyThreads)) / 2;
            put(word, pack_halves(norm(v[q].x, w.x, s.x), norm(v[q].y, w.y, s.y)));
            put(word + 2, pack_halves(norm(v[q].z, w.z, s.z), norm(v[q].w, w.w, s.w)));  // the next lane's share
        }
}

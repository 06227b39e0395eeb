// Attention of up to 8 nodes to a chunk of 16 keys of one head, by one warp, and the merging of chunks:
//
//     scores = q . k / 8;  max, sum, output = softmax over the chunk;  chunks of equal index mod 16 merge in ascending
//     order, then the 16 results pairwise
//
// Scores on mma.m16n8k16 with the nodes as rows and 8 keys as columns, softmax in registers, then the weights times the
// values on the same instruction. q and the weights enter as two halves each (high and low), so nothing but K and V is
// rounded to fp16. Tree passes and prefill share this, so their bits are the same.
#pragma once

#include <cuda_fp16.h>

#include "kernels/device_model.h"
#include "kernels/ptx.cuh"

constexpr int kChunk = 16;
constexpr int kClasses = 16;                 // residues that merge separately
constexpr int kGroup = 8;                    // nodes that are multiplied by a chunk together
constexpr int kQueryStride = kHeadSize + 4;  // 32-bit words

// A node's results in shared memory, of its classes and of up to kOwn chunks of its own: (results, kHeadSize) outputs,
// then (results, 2) maxima and sums. Floats.
template <int kOwn>
struct NodeResults {
    static constexpr int kResults = kClasses + kOwn;
    static constexpr int kStats = kResults * kHeadSize;
    static constexpr int kFloats = (kStats + 2 * kResults + 3) / 4 * 4;
};

// A head's keys in the cache; its values lie `to_values` halves further.
struct HeadRows {
    const uint16_t* keys;
    uint32_t to_values;
};

__device__ inline void split_halves(float a, float b, uint32_t& high, uint32_t& low) {
    const __half2 h = __floats2half2_rn(a, b);
    const float2 back = __half22float2(h);
    const __half2 l = __floats2half2_rn(__fsub_rn(a, back.x), __fsub_rn(b, back.y));
    high = *reinterpret_cast<const uint32_t*>(&h);
    low = *reinterpret_cast<const uint32_t*>(&l);
}

// Puts columns 4 at .. of a node's q to its row of (n, kQueryStride) shared memory: of each two columns the high
// halves, then the low ones.
__device__ inline void stage_query(uint32_t* row, int at, const float4& v) {
    uint4 halves;
    split_halves(v.x, v.y, halves.x, halves.y);
    split_halves(v.z, v.w, halves.z, halves.w);
    *reinterpret_cast<uint4*>(row + 4 * at) = halves;
}

// q of up to 8 nodes as A fragments of 16 columns, in the order in which Chunk hands out the keys' columns: row g holds
// node g's high halves, row g + 8 its low halves. q: (n, kQueryStride) shared memory, as stage_query() leaves it.
__device__ inline uint4 query_fragment(const uint32_t* q, int n, int step, int lane) {
    const int g = lane / 4, t = lane % 4;
    if (g >= n) return {0, 0, 0, 0};
    return reinterpret_cast<const uint4*>(q + g * kQueryStride + 8 * t)[step / 2 * 8 + step % 2];
}

constexpr float kNothing = -INFINITY;
__device__ inline float exp_difference(float a, float b) {
    return ptx::exp2(__fmul_rn(__fsub_rn(a, b), 1.44269504f));
}

// (max, sum, ...) of two sets of keys as one; factors by which their outputs enter.
__device__ inline void merge_factors(float& max, float& sum, float other_max, float other_sum, float& factor,
                                     float& other_factor) {
    const float both = fmaxf(max, other_max);
    factor = exp_difference(max, both);
    other_factor = exp_difference(other_max, both);
    sum = __fadd_rn(__fmul_rn(sum, factor), __fmul_rn(other_sum, other_factor));
    max = both;
}
__device__ inline float merge_output(float out, float factor, float other, float other_factor) {
    return __fadd_rn(__fmul_rn(out, factor), __fmul_rn(other, other_factor));
}

// Where a chunk's results for the query's nodes g go: to `out` (64 floats) and `stats` (max, sum), nodes apart in
// shared memory as Results says, or, unless it is the first there, merged into what stands there.
// put_last: the first is stored when all products have begun, which takes registers and less time.
template <class Results, bool put_last = registers_to_spare()>
struct MergedResults {
    static constexpr bool kPutLast = put_last;
    float *out, *stats;
    bool is_first;
    float factor = 1, chunk_factor = 1;

    // By whole warps; lane 4 g + t.
    __device__ void put_stats(int g, int t, bool there, float max, float sum) {
        float2* at = reinterpret_cast<float2*>(stats + g * Results::kFloats);
        if (!is_first && there) {
            float2 both = *at;
            merge_factors(both.x, both.y, max, sum, factor, chunk_factor);
            max = both.x, sum = both.y;
        }
        __syncwarp();  // all lanes of the row have read its maximum and sum
        if (t == 0 && there) *at = {max, sum};
    }
    __device__ void put_columns(int g, int column, float2 result) const {
        float2* to = reinterpret_cast<float2*>(out + g * Results::kFloats + column);
        if (!is_first) {
            const float2 old = *to;
            result = {merge_output(old.x, factor, result.x, chunk_factor),
                      merge_output(old.y, factor, result.y, chunk_factor)};
        }
        *to = result;
    }
};
// The chunk's result for the query's nodes 0..n-1. rows: what reads like tree_attention.cuh's Chunk. n_keys: positions
// of the chunk that are keys of node lane / 4, 1 to 16.
template <class Results, class Rows>
__device__ inline void attend_chunk(Results results, int n, const uint32_t* q, const Rows& rows, int n_keys) {
    const int g = rows.lane / 4, t = rows.lane % 4;
    float weight[2][2];  // first the scores; of node g, keys 8 j + 2 t, + 1
    float max = kNothing, sum = 0;
    float d[2][4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        const uint4 two = query_fragment(q, n, step, rows.lane);
        const uint32_t a[4] = {two.x, two.y, two.z, two.w};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint4 key = rows.read(j, step / 2, false);
            ptx::mma(d[j], a, step % 2 ? key.z : key.x, step % 2 ? key.w : key.y);
        }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            weight[j][e] = 8 * j + 2 * t + e < n_keys ? __fmul_rn(__fadd_rn(d[j][e], d[j][2 + e]), 0.125f) : kNothing;
            max = fmaxf(max, weight[j][e]);
        }
    }
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
    uint32_t a[4];  // the weights as A fragments: high halves in row g, low ones in row g + 8
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            weight[j][e] = exp_difference(weight[j][e], max);
            sum = __fadd_rn(sum, weight[j][e]);
        }
        split_halves(weight[j][0], weight[j][1], a[2 * j], a[2 * j + 1]);
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));

    results.put_stats(g, t, g < n, max, sum);
    float2 out[2][4] = {};  // columns 32 half + 8 t + 2 r, + 1
    const auto put = [&](int half, int r) {
        if (g < n) results.put_columns(g, 32 * half + 8 * t + 2 * r, out[half][r]);
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint4 value[2] = {rows.read(0, half, true), rows.read(1, half, true)};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const auto transposed = [&](const uint4& row) {
                return ptx::transpose(r == 0 ? row.x : r == 1 ? row.y : r == 2 ? row.z : row.w);
            };
            float d[4] = {0, 0, 0, 0};
            ptx::mma(d, a, transposed(value[0]), transposed(value[1]));
            out[half][r] = {__fadd_rn(d[0], d[2]), __fadd_rn(d[1], d[3])};
            if (!Results::kPutLast) put(half, r);
        }
    }
    if (Results::kPutLast)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int r = 0; r < 4; ++r) put(half, r);
    __syncwarp();  // the next chunk of the class is merged with what stands there now
}

// Adds to a node's results of the classes those of its own chunks from the 16th chunk on, which wait in results of
// their own, kClasses.. for the chunks n_shared.. By one warp.
template <class Results>
__device__ inline void merge_own(float* results, int n_shared, int n_chunks, int lane) {
    float2* out = reinterpret_cast<float2*>(results) + lane;  // results 32 apart
    float2* stats = reinterpret_cast<float2*>(results + Results::kStats);
#pragma unroll 1
    for (int c = max(n_shared, kClasses); c < n_chunks; ++c) {  // one more chunk of class c mod 16
        const int k = c % kClasses, own = kClasses + c - n_shared;
        float2 both = stats[k];
        const float2 more = stats[own], old = out[32 * k], added = out[32 * own];
        float factor, own_factor;
        merge_factors(both.x, both.y, more.x, more.y, factor, own_factor);
        out[32 * k] = {merge_output(old.x, factor, added.x, own_factor),
                       merge_output(old.y, factor, added.y, own_factor)};
        __syncwarp();
        if (lane == 0) stats[k] = both;
        __syncwarp();
    }
}

constexpr int kQuarter = 16;  // columns of a head that a warp merges

// A quarter of a node's output from its results of the classes, by one warp: columns 4 (lane % 4) .. + 3 of the
// quarter, in all lanes. Lane 4 k + i has those of the classes 2 k and 2 k + 1 and adds them, then lanes add up
// pairwise.
__device__ inline float4 add_classes(const float2 (&stat)[2], const float4 (&part)[2]) {
    float max = fmaxf(stat[0].x, stat[1].x);
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
    const float first = exp_difference(stat[0].x, max), second = exp_difference(stat[1].x, max);
    float sum[5] = {
        merge_output(stat[0].y, first, stat[1].y, second), merge_output(part[0].x, first, part[1].x, second),
        merge_output(part[0].y, first, part[1].y, second), merge_output(part[0].z, first, part[1].z, second),
        merge_output(part[0].w, first, part[1].w, second)};
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2)
#pragma unroll
        for (float& x : sum) x = __fadd_rn(x, __shfl_xor_sync(~0u, x, offset));
    return {ptx::quotient(sum[1], sum[0]), ptx::quotient(sum[2], sum[0]), ptx::quotient(sum[3], sum[0]),
            ptx::quotient(sum[4], sum[0])};
}

// The same of n_classes results in shared memory.
template <class Results>
__device__ inline float4 merge_classes(const float* results, int n_classes, int quarter, int lane) {
    const int k = lane / 4 * 2;
    const float2* stats = reinterpret_cast<const float2*>(results + Results::kStats);
    const float4* out = reinterpret_cast<const float4*>(results + quarter * kQuarter) + lane % 4;  // 16 apart
    float2 stat[2];
    float4 part[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const bool there = k + i < n_classes;
        stat[i] = there ? stats[k + i] : float2{kNothing, 0};
        part[i] = there ? out[16 * (k + i)] : float4{0, 0, 0, 0};
    }
    return add_classes(stat, part);
}

// The same of a whole node, columns 2 lane, + 1: the same terms in the same pairs, but a lane adds up whole columns.
// Fewer instructions than four calls of merge_classes(), but these are done sooner by four warps with nothing else to
// do.
template <class Results>
__device__ inline float2 merge_columns(const float* results, int n_classes, int lane) {
    const float2* stats = reinterpret_cast<const float2*>(results + Results::kStats);
    const float2* out = reinterpret_cast<const float2*>(results) + lane;  // 32 apart
    const float2 stat = lane < n_classes ? stats[lane] : float2{kNothing, 0};
    float max = stat.x;
#pragma unroll
    for (int offset = 1; offset < kClasses; offset *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
    const float factor = exp_difference(stat.x, max);  // lanes from kClasses on: not used
    float sum = __fmul_rn(stat.y, factor);
#pragma unroll
    for (int offset = 1; offset < kClasses; offset *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, offset));
    sum = __shfl_sync(~0u, sum, 0);
    float2 term[kClasses];
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
        const float f = __shfl_sync(~0u, factor, k);
        const float2 part = k < n_classes ? out[32 * k] : float2{0, 0};
        term[k] = {__fmul_rn(part.x, f), __fmul_rn(part.y, f)};
    }
#pragma unroll
    for (int half = 1; half < kClasses; half *= 2)  // pairwise
#pragma unroll
        for (int k = 0; k < kClasses; k += 2 * half)
            term[k] = {__fadd_rn(term[k].x, term[k + half].x), __fadd_rn(term[k].y, term[k + half].y)};
    return {ptx::quotient(term[0].x, sum), ptx::quotient(term[0].y, sum)};
}

// out(node, head) = sum over keys p of softmax_p(q . k_p / 8) v_p, by logical position: the keys of a node
// are the cache below the pass's base, its ancestors by depth, itself.
//
// Keys come in chunks of 32 positions. One warp turns a chunk into (max, sum, output): scores on mma.m16n8k16 with up
// to 16 nodes as rows and 8 keys as columns, softmax in registers, then the weights times the values on the same
// instruction. q and the weights enter as two halves each (high and low), so nothing but K and V is rounded to fp16.
// A node's chunks merge in a fixed order: those of equal index mod 8 ascending, then the 8 results ascending.
//
//   chunks below base     the same for all nodes: a block takes (head, up to 8 nodes), warp w the chunks w, w + 8,
//   ...,
//                         keys and values read once for all its nodes
//   chunks that reach     differ by node: a warp takes (head, node, chunk) and gathers the rows of its ancestors
//   base or beyond
//
// Both run the same function on the same positions, so where base lies does not show in the bits; nor do the other
// rows.
//
// Bytes: 256 a key and head from L2 or memory, times the groups of nodes; 256 a node and head of q; 128 of output.
#pragma once

#include "kernels/layer_norm.cuh"

constexpr int kChunk = 32;
constexpr int kClasses = kMultiplyWarps;            // residues that merge separately
constexpr int kOwnChunks = kMaxSlots / kChunk + 1;  // that can reach base or beyond
constexpr int kGroup = 8;                           // nodes at most that a block takes at a time
constexpr int kResultFloats = kHeadSize + 2;        // output, max, sum
constexpr int kAttentionBytes = (kClasses + kOwnChunks) * kResultFloats * 4;  // shared memory a node

// Keys and values of a chunk, as a warp's lane 4 g + t holds them: of the rows 8 j + g, the halves 8 t.. and 32 + 8 t..
struct ChunkRows {
    uint4 key[4][2], value[4][2];
};

// row(p): the cache row of the chunk's position p = 0..31, or -1: not a key of this node.
template <class Row>
__device__ inline void load_chunk(ChunkRows& c, const uint16_t* keys, const uint16_t* values, const Row& row) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int rows[4];  // before the loads: some come from memory themselves
#pragma unroll
    for (int j = 0; j < 4; ++j) rows[j] = row(8 * j + g);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int r = rows[j];
        const uint4* k = reinterpret_cast<const uint4*>(keys) + uint32_t(r * (kHeadSize / 8) + t);
        const uint4* v = reinterpret_cast<const uint4*>(values) + uint32_t(r * (kHeadSize / 8) + t);
        const uint4 zero = {0, 0, 0, 0};
        c.key[j][0] = r < 0 ? zero : __ldcg(k);
        c.key[j][1] = r < 0 ? zero : __ldcg(k + 4);
        c.value[j][0] = r < 0 ? zero : __ldcg(v);
        c.value[j][1] = r < 0 ? zero : __ldcg(v + 4);
    }
}

// q of up to 8 nodes as A fragments, 4 steps of 16 columns, in the order in which ChunkRows holds the keys' columns:
// row g holds node g's high halves, row g + 8 its low halves.
struct Query {
    uint32_t a[4][4];
};

__device__ inline void split_halves(float a, float b, uint32_t& high, uint32_t& low) {
    const __half2 h = __floats2half2_rn(a, b);
    const float2 back = __half22float2(h);
    const __half2 l = __floats2half2_rn(__fsub_rn(a, back.x), __fsub_rn(b, back.y));
    high = *reinterpret_cast<const uint32_t*>(&h);
    low = *reinterpret_cast<const uint32_t*>(&l);
}

// q: (n, stride) floats of one head, n <= 8 rows.
__device__ inline void load_query(Query& query, const float* q, int stride, int n) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float4 x[2][2] = {};
    if (g < n)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const float4* from = reinterpret_cast<const float4*>(q + g * stride + 32 * part + 8 * t);
            x[part][0] = __ldcg(from);
            x[part][1] = __ldcg(from + 1);
        }
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        const float4 v = x[s / 2][s % 2];
        split_halves(v.x, v.y, query.a[s][0], query.a[s][1]);
        split_halves(v.z, v.w, query.a[s][2], query.a[s][3]);
    }
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

// Puts the chunk's result for the query's nodes 0..n-1 to result + node * stride (64 outputs, max, sum; shared memory)
// or, unless it is the first there, merges it into what stands there. n_keys: positions of the chunk that are keys, 1
// to 32.
__device__ inline void attend_chunk(float* result, int stride, int n, bool is_first, const Query& query,
                                    const ChunkRows& c, int n_keys) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float weight[4][2];  // first the scores; of node g, keys 8 j + 2 t, + 1
    float max = kNothing, sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const uint32_t k[8] = {c.key[j][0].x, c.key[j][0].y, c.key[j][0].z, c.key[j][0].w,
                               c.key[j][1].x, c.key[j][1].y, c.key[j][1].z, c.key[j][1].w};
        float d[4] = {0, 0, 0, 0};
#pragma unroll
        for (int s = 0; s < 4; ++s) ptx::mma(d, query.a[s], k[2 * s], k[2 * s + 1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            weight[j][e] = 8 * j + 2 * t + e < n_keys ? __fmul_rn(__fadd_rn(d[e], d[2 + e]), 0.125f) : kNothing;
            max = fmaxf(max, weight[j][e]);
        }
    }
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
    uint32_t a[2][4];  // the weights as A fragments, 2 steps of 16 keys: high halves in row g, low ones in row g + 8
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            weight[j][e] = exp_difference(weight[j][e], max);
            sum = __fadd_rn(sum, weight[j][e]);
        }
        split_halves(weight[j][0], weight[j][1], a[j / 2][j % 2 * 2], a[j / 2][j % 2 * 2 + 1]);
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));

    float2 out[8];  // columns 8 t + 2 r, + 1 (r < 4) or 32 + 8 t + 2 (r - 4), + 1
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        float d[4] = {0, 0, 0, 0};
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            const auto transposed = [&](int j) {
                const uint4& row = c.value[j][r / 4];
                return ptx::transpose(r % 4 == 0 ? row.x : r % 4 == 1 ? row.y : r % 4 == 2 ? row.z : row.w);
            };
            ptx::mma(d, a[s], transposed(2 * s), transposed(2 * s + 1));
        }
        out[r] = {__fadd_rn(d[0], d[2]), __fadd_rn(d[1], d[3])};
    }
    if (g >= n) return;

    result += g * stride;
    float2* to = reinterpret_cast<float2*>(result + 8 * t);  // then 16 float2 further
    if (!is_first) {
        float old_max = result[kHeadSize], old_sum = result[kHeadSize + 1], factor, chunk_factor;
        merge_factors(old_max, old_sum, max, sum, factor, chunk_factor);
        max = old_max, sum = old_sum;
#pragma unroll
        for (int r = 0; r < 8; ++r) {
            const float2 old = to[r / 4 * 16 + r % 4];
            out[r].x = merge_output(old.x, factor, out[r].x, chunk_factor);
            out[r].y = merge_output(old.y, factor, out[r].y, chunk_factor);
        }
    }
    __syncwarp(__activemask());  // all lanes of the row have read its maximum and sum
#pragma unroll
    for (int r = 0; r < 8; ++r) to[r / 4 * 16 + r % 4] = out[r];
    if (t == 0) result[kHeadSize] = max, result[kHeadSize + 1] = sum;
}

// The outputs of a node from its parts, by one warp; lane k < kClasses looks after class k. parts: (kClasses +
// kOwnChunks, kResultFloats): the cache's chunks by class, then the node's own chunks n_shared .. n_chunks - 1. Returns
// columns 2 lane, + 1.
__device__ inline float2 merge_classes(const float* parts, int n_shared, int n_chunks) {
    const int lane = threadIdx.x % 32, n_classes = min(n_chunks, kClasses);
    float max = kNothing, sum = 0;
    if (lane < min(n_shared, kClasses)) {
        max = parts[lane * kResultFloats + kHeadSize];
        sum = parts[lane * kResultFloats + kHeadSize + 1];
    }
    float2 out[kClasses];
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
        out[k] = {0, 0};
        if (k < n_shared) out[k] = reinterpret_cast<const float2*>(parts + k * kResultFloats)[lane];
    }
    for (int c = n_shared; c < n_chunks; ++c) {  // one more chunk of class c mod 8
        const float* own = parts + (kClasses + c - n_shared) * kResultFloats;
        const float own_max = own[kHeadSize], own_sum = own[kHeadSize + 1];
        const float2 own_out = reinterpret_cast<const float2*>(own)[lane];
        const bool is_first = c < kClasses;
        float factor = 0, own_factor = 1;
        if (lane == c % kClasses) {
            if (is_first)
                max = own_max, sum = own_sum;
            else
                merge_factors(max, sum, own_max, own_sum, factor, own_factor);
        }
        factor = __shfl_sync(~0u, factor, c % kClasses);
        own_factor = __shfl_sync(~0u, own_factor, c % kClasses);
#pragma unroll
        for (int k = 0; k < kClasses; ++k)
            if (k == c % kClasses) {
                out[k].x = is_first ? own_out.x : merge_output(out[k].x, factor, own_out.x, own_factor);
                out[k].y = is_first ? own_out.y : merge_output(out[k].y, factor, own_out.y, own_factor);
            }
    }
    float all_max = max;
#pragma unroll
    for (int offset = 1; offset < kClasses; offset *= 2)
        all_max = fmaxf(all_max, __shfl_xor_sync(~0u, all_max, offset));
    const float factor = lane < n_classes ? exp_difference(max, all_max) : 0;
    float total = 0;
    float2 merged = {0, 0};
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
        const float f = __shfl_sync(~0u, factor, k), s = __shfl_sync(~0u, sum, k);
        if (k < n_classes) {
            total = __fmaf_rn(f, s, total);
            merged.x = __fmaf_rn(f, out[k].x, merged.x);
            merged.y = __fmaf_rn(f, out[k].y, merged.y);
        }
    }
    return {__fdiv_rn(merged.x, total), __fdiv_rn(merged.y, total)};
}

// Attention of layer `layer` for all nodes of the pass; waits for q, keys and values, and arrives when its output is
// written. out: (kMaxNodes, n_embd) halves in fragment order.
__device__ inline void tree_attention(Block& b, const DevicePass& pass, int layer, const float* q, uint16_t* out) {
    const DeviceModel& m = b.a.model;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = b.a.shared.attention_nodes, n_groups = (pass.n + group - 1) / group,
              n_tasks = m.n_head * n_groups;
    const int n_shared = pass.base / kChunk;
    const bool worked = int(blockIdx.x) < n_tasks;
    float* results = reinterpret_cast<float*>(b.input(0));  // (group, kClasses + kOwnChunks, kResultFloats)
    const int node_floats = (kClasses + kOwnChunks) * kResultFloats;
    for (int task = blockIdx.x; task < n_tasks; task += gridDim.x) {
        const int head = task % m.n_head, i0 = task / m.n_head * group, n = min(group, pass.n - i0);
        const uint16_t *keys = m.kv_row(layer, 0, head, 0), *values = m.kv_row(layer, 1, head, 0);
        const float* task_q = q + uint64_t(i0) * m.n_embd + head * kHeadSize;
        // The cache's chunks, for all nodes at once, are on their way to L2 before q is there.
        for (int c = warp; c < n_shared; c += kClasses) {
            ptx::prefetch_l2(keys + c * kChunk * kHeadSize, kChunk * kHeadSize * 2);
            ptx::prefetch_l2(values + c * kChunk * kHeadSize, kChunk * kHeadSize * 2);
        }
        if (task == int(blockIdx.x))
            b.phase.wait();
        else
            block_barrier();  // the results of the last task have been read

        // Then each node's own chunks; warps with fewer of the cache's chunks begin.
        int c = warp, own_at = (warp - n_shared) & (kMultiplyWarps - 1);
#pragma unroll 1
        for (;;) {
            int node = 0, n_rows = n, slot = 0, depth = 0, first = c * kChunk, n_keys = kChunk;
            float* to = results + warp * kResultFloats;
            const bool is_first = c == warp || c >= n_shared;
            if (c < n_shared) {
                c += kClasses;
            } else {
                if (own_at >= n * kOwnChunks) break;
                const int own = own_at / n;
                node = own_at % n, n_rows = 1;
                own_at += kMultiplyWarps;
                depth = shared_state.depth[i0 + node];
                slot = pass.first + i0 + node;
                first = (n_shared + own) * kChunk;
                n_keys = min(kChunk, pass.base + depth - first + 1);
                if (n_keys <= 0) continue;
                to = results + node * node_floats + (kClasses + own) * kResultFloats;
            }
            ChunkRows rows;
            Query query;
            load_chunk(rows, keys, values, [&](int p) {
                const int d = first + p - pass.base;
                if (d < 0) return first + p;
                if (d > depth) return -1;
                return pass.slot_rows + (d == depth ? slot : int(b.a.nodes->path[d][pass.nodes_at + i0 + node]));
            });
            load_query(query, task_q + node * m.n_embd, m.n_embd, n_rows);
            attend_chunk(to, node_floats, n_rows, is_first, query, rows, n_keys);
        }
        block_barrier();

        // Merge: a warp takes a node, a lane two columns.
        for (int i = warp; i < n; i += kMultiplyWarps) {
            const int n_chunks = (pass.base + shared_state.depth[i0 + i]) / kChunk + 1;
            const float2 y = merge_classes(results + i * node_floats, n_shared, n_chunks);
            uint16_t* to = out + uint64_t(i0 + i) * m.n_embd + fragment_column(head * kHeadSize + 2 * lane);
            *reinterpret_cast<uint32_t*>(to) = pack_halves(y.x, y.y);
        }
    }
    b.phase.arrive(min(n_tasks, int(gridDim.x)), worked);
}

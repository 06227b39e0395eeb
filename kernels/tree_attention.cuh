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
// rows. q and this pass's keys and values come as words (exchange.cuh), are waited for and put in shared memory; the
// other keys and values lie in the cache since earlier passes.
//
// Bytes: 256 a key and head from L2 or memory, times the groups of nodes; 512 a node and head of q, 512 of new keys and
// values times the groups; 256 of output.
#pragma once

#include "kernels/layer_norm.cuh"

constexpr int kChunk = 32;
constexpr int kClasses = kMultiplyWarps;            // residues that merge separately
constexpr int kOwnChunks = kMaxSlots / kChunk + 1;  // that can reach base or beyond
constexpr int kGroup = 8;                           // nodes at most that a block takes at a time
constexpr int kResults = kClasses + kOwnChunks;
constexpr int kStats = kResults * kHeadSize;                      // floats: where a node's maxima and sums begin
constexpr int kNodeFloats = (kStats + 2 * kResults + 3) / 4 * 4;  // shared memory of a node of the group
constexpr int kQueryStride = kHeadSize + 4;                       // 32-bit words
constexpr int kRowStride = kHeadSize + 8;                         // halves

// A block's shared memory during attention, in the place of the partial sums and the matrix input.
constexpr int kStagedBytes = kMultiplyWarps * 2 * kChunk * kHeadSize * 2;  // (kMultiplyWarps, keys and values, rows)
constexpr int kQueryBytes = kGroup * kQueryStride * 4;
constexpr int attention_bytes(int width, int group) {
    return kStagedBytes + kQueryBytes + width * 2 * kRowStride * 2 + group * kNodeFloats * 4;
}

// The keys and values of a warp's chunk in shared memory: (2, kChunk, 8) pieces of 16 bytes, row after row. In odd rows
// the halves of the row are swapped, so that a warp reads rows g and g + 1 from different banks. A lane copies piece
// lane % 8 of the rows 4 i + lane / 8 and reads pieces t and t + 4 of the rows 8 j + g.
struct Staged {
    uint8_t* memory;
    int lane;
    static constexpr int kValues = kChunk * kHeadSize * 2;  // bytes to the values

    __device__ uint8_t* copied(int i) const { return memory + (lane ^ lane / 8 % 2 * 4) * 16 + i * 512; }
    __device__ uint4 read(int j, int half, bool values) const {
        const int g = lane / 4, t = lane % 4;
        return *reinterpret_cast<const uint4*>(memory + values * kValues + g * 128 + (t ^ g % 2 * 4 ^ half * 4) * 16 +
                                               j * 1024);
    }
};

// Starts copying the 32 rows from `row` on.
__device__ inline void stage_rows(const Staged& staged, const uint16_t* keys, const uint16_t* values, int row) {
    const uint32_t to = ptx::shared_address(staged.copied(0)), from = row * kHeadSize + staged.lane * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        ptx::copy_16(to + i * 512, keys + from + i * 256);
        ptx::copy_16(to + Staged::kValues + i * 512, values + from + i * 256);
    }
}
// One row: the lane's piece of row 4 i + lane / 8. at: the cache's row, or -1: none, zeros; or -2 - k: node k of this
// pass, whose row comes later.
__device__ inline void stage_cached(const Staged& staged, const uint16_t* keys, const uint16_t* values, int i, int at) {
    uint8_t* to = staged.copied(i);
    const uint32_t from = at * kHeadSize + staged.lane % 8 * 8;
    if (at >= 0) {
        ptx::copy_16(ptx::shared_address(to), keys + from);
        ptx::copy_16(ptx::shared_address(to) + Staged::kValues, values + from);
    } else if (at == -1) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4*>(to + Staged::kValues) = {0, 0, 0, 0};
    }
}
// fresh: (nodes of the pass, 2: key and value, kRowStride) shared memory.
__device__ inline void stage_fresh(const Staged& staged, const uint16_t* fresh, int i, int at) {
    if (at >= -1) return;
    const uint4* from = reinterpret_cast<const uint4*>(fresh + (-2 - at) * 2 * kRowStride) + staged.lane % 8;
    uint8_t* to = staged.copied(i);
    *reinterpret_cast<uint4*>(to) = from[0];
    *reinterpret_cast<uint4*>(to + Staged::kValues) = from[kRowStride / 8];
}

// q of up to 8 nodes as A fragments, 4 steps of 16 columns, in the order in which Staged hands out the keys' columns:
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

// q: (n, kQueryStride) shared memory, n <= 8 rows: of each two columns the high halves, then the low ones.
__device__ inline void load_query(Query& query, const uint32_t* q, int n, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint4* from = reinterpret_cast<const uint4*>(q + g * kQueryStride + 8 * t);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        const uint4 v = g < n ? from[s / 2 * 8 + s % 2] : uint4{0, 0, 0, 0};
        query.a[s][0] = v.x, query.a[s][1] = v.y, query.a[s][2] = v.z, query.a[s][3] = v.w;
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

// Puts the chunk's result for the query's nodes 0..n-1 to `out` (64 floats) and `stats` (max, sum), nodes kNodeFloats
// apart in shared memory, or, unless it is the first there, merges it into what stands there. n_keys: positions of the
// chunk that are keys, 1 to 32.
__device__ inline void attend_chunk(float* out, float* stats, int n, bool is_first, const Query& query,
                                    const Staged& staged, int n_keys) {
    const int g = staged.lane / 4, t = staged.lane % 4;
    float weight[4][2];  // first the scores; of node g, keys 8 j + 2 t, + 1
    float max = kNothing, sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const uint4 low = staged.read(j, 0, false), high = staged.read(j, 1, false);
        const uint32_t k[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
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

    out += g * kNodeFloats + 8 * t;
    stats += g * kNodeFloats;
    float factor = 1, chunk_factor = 1;
    if (!is_first && g < n) {
        float both = stats[0], both_sum = stats[1];
        merge_factors(both, both_sum, max, sum, factor, chunk_factor);
        max = both, sum = both_sum;
    }
    __syncwarp();  // all lanes of the row have read its maximum and sum
    if (t == 0 && g < n) *reinterpret_cast<float2*>(stats) = {max, sum};
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // columns 32 half + 8 t ..
        const uint4 value[4] = {staged.read(0, half, true), staged.read(1, half, true), staged.read(2, half, true),
                                staged.read(3, half, true)};
#pragma unroll
        for (int r = 0; r < 4; ++r) {  // then 2 r, + 1
            float d[4] = {0, 0, 0, 0};
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const auto transposed = [&](const uint4& row) {
                    return ptx::transpose(r == 0 ? row.x : r == 1 ? row.y : r == 2 ? row.z : row.w);
                };
                ptx::mma(d, a[s], transposed(value[2 * s]), transposed(value[2 * s + 1]));
            }
            if (g >= n) continue;
            float2* to = reinterpret_cast<float2*>(out + 32 * half + 2 * r);
            float2 result = {__fadd_rn(d[0], d[2]), __fadd_rn(d[1], d[3])};
            if (!is_first) {
                const float2 old = *to;
                result = {merge_output(old.x, factor, result.x, chunk_factor),
                          merge_output(old.y, factor, result.y, chunk_factor)};
            }
            *to = result;
        }
    }
}

// The outputs of a node from its results, by one warp: columns 2 lane, + 1. The node's own chunks from the 8th chunk on
// wait in results of their own, kClasses.. for the chunks n_shared..
__device__ inline float2 merge_classes(float* results, int n_shared, int n_chunks, int lane) {
    const int n_classes = min(n_chunks, kClasses);
    float2* out = reinterpret_cast<float2*>(results) + lane;  // results 32 apart
    float2* stats = reinterpret_cast<float2*>(results + kStats);
#pragma unroll 1
    for (int c = max(n_shared, kClasses); c < n_chunks; ++c) {  // one more chunk of class c mod 8
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
    float2 stat[kClasses], part[kClasses];
    float all_max = kNothing, total = 0;
    float2 merged = {0, 0};
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
        const bool there = k < n_classes;
        stat[k] = there ? stats[k] : float2{kNothing, 0};
        part[k] = there ? out[32 * k] : float2{0, 0};
        all_max = fmaxf(all_max, stat[k].x);
    }
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
        const float factor = exp_difference(stat[k].x, all_max);
        total = __fmaf_rn(factor, stat[k].y, total);
        merged = {__fmaf_rn(factor, part[k].x, merged.x), __fmaf_rn(factor, part[k].y, merged.y)};
    }
    return {ptx::quotient(merged.x, total), ptx::quotient(merged.y, total)};
}

// q of the group's nodes i0.. (n of them) and the keys and values of all nodes of the pass, of one head, from words
// (kMaxNodes, 2 n_embd) to shared memory: q (n, kQueryStride) as high and low halves, fresh (pass nodes, 2,
// kRowStride).
__device__ inline void collect_head(const Block& b, const uint64_t* qkv, int head, int i0, int n, int n_pass,
                                    uint32_t number, uint32_t* q, uint16_t* fresh) {
    const int E = b.a.model.n_embd, n_query = n * (kHeadSize / 2), n_pairs = n_query + n_pass * (kHeadSize / 2);
    for (int i = b.thread; i < n_pairs; i += kMultiplyThreads) {
        const bool is_query = i < n_query;
        const int of = is_query ? i : i - n_query, node = of / (kHeadSize / 2), at = of % (kHeadSize / 2);
        uint32_t offset[1];
        uint32_t* to;
        if (is_query) {
            offset[0] = (i0 + node) * 2 * E + head * kHeadSize + 2 * at;
            to = q + node * kQueryStride + 2 * at;
        } else {  // 16 pairs of the key, then 16 of the value
            offset[0] = node * 2 * E + E + at / 16 * (E / 2) + head * (kHeadSize / 2) + at % 16 * 2;
            to = reinterpret_cast<uint32_t*>(fresh + (2 * node + at / 16) * kRowStride) + at % 16 * 2;
        }
        uint4 pair[1];
        collect(b, qkv, offset, 1, number, pair);
        if (is_query) split_halves(__uint_as_float(pair[0].x), __uint_as_float(pair[0].z), pair[0].x, pair[0].z);
        to[0] = pair[0].x;
        to[1] = pair[0].z;
    }
    block_barrier();
}

// Attention of layer `layer` for all nodes of the pass. Its input bears the number `from`, its result `number`.
template <bool words>
__device__ inline void tree_attention(Block& b, const DevicePass& pass, int layer, uint32_t from, uint32_t number) {
    const DeviceModel& m = b.a.model;
    const Scratch& s = b.a.scratch;
    const int warp = b.thread / 32, lane = b.thread % 32;
    const int group = b.a.shared.attention_nodes, n_groups = (pass.n + group - 1) / group,
              n_tasks = m.n_head * n_groups;
    const int n_shared = pass.base / kChunk;
    uint8_t* memory = reinterpret_cast<uint8_t*>(b.partial());  // and the matrix input behind it
    const Staged staged = {memory + warp * 2 * Staged::kValues, lane};
    uint32_t* q = reinterpret_cast<uint32_t*>(memory + kStagedBytes);                // (kGroup, kQueryStride)
    uint16_t* fresh = reinterpret_cast<uint16_t*>(q + kGroup * kQueryStride);        // (pass.n, 2, kRowStride)
    float* results = reinterpret_cast<float*>(fresh + pass.n * 2 * kRowStride);      // (group, kNodeFloats)
    const int n_own = (pass.base + shared_state.max_depth) / kChunk - n_shared + 1;  // of a node, at most
    for (int task = blockIdx.x; task < n_tasks; task += gridDim.x) {
        const int head = task % m.n_head, i0 = task / m.n_head * group, n = min(group, pass.n - i0);
        const uint16_t *keys = m.kv_row(layer, 0, head, 0), *values = m.kv_row(layer, 1, head, 0);
        // The cache's chunks, for all nodes at once, then each node's own; warps with fewer of the cache's begin there.
        int c = warp, own_at = (warp - n_shared) & (kMultiplyWarps - 1);
        struct {
            int node, n_nodes, result, n_keys;
            bool is_first, has_fresh;
            uint32_t at[4];  // if it has fresh rows: what stage_cached() was told, two in a word
        } chunk;
        const auto next = [&] {  // starts copying what the cache holds of the next chunk; false: there is none
            if (c < n_shared) {
                chunk.node = 0, chunk.n_nodes = n, chunk.result = warp, chunk.n_keys = kChunk;
                chunk.is_first = c == warp, chunk.has_fresh = false;
                stage_rows(staged, keys, values, c * kChunk);
                c += kClasses;
                return true;
            }
            for (; own_at < n * n_own; own_at += kMultiplyWarps) {
                const int own = own_at / n, node = own_at - own * n, own_chunk = n_shared + own;
                const int depth = shared_state.depth[i0 + node], first = own_chunk * kChunk;
                chunk.n_keys = min(kChunk, pass.base + depth - first + 1);
                if (chunk.n_keys <= 0) continue;
                chunk.node = node, chunk.n_nodes = 1, chunk.result = own_chunk < kClasses ? own_chunk : kClasses + own;
                chunk.is_first = chunk.has_fresh = true;
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const int position = first + 4 * i + lane / 8, d = position - pass.base;
                    int at = d > depth ? -1 : position;
                    if (d >= 0 && d <= depth) {
                        const int slot =
                            d == depth ? pass.first + i0 + node : b.a.nodes->path[d][pass.nodes_at + i0 + node];
                        at = slot >= pass.first ? -2 - (slot - pass.first) : pass.slot_rows + slot;
                    }
                    stage_cached(staged, keys, values, i, at);
                    chunk.at[i / 2] = i % 2 ? chunk.at[i / 2] | at << 16 : at & 0xffff;
                }
                own_at += kMultiplyWarps;
                return true;
            }
            return false;
        };
        // What the cache holds is on its way before q is there: the first chunk to this warp, the others to L2.
        for (int ahead = c + kClasses; ahead < n_shared; ahead += kClasses) {
            ptx::prefetch_l2(keys + ahead * kChunk * kHeadSize, kChunk * kHeadSize * 2);
            ptx::prefetch_l2(values + ahead * kChunk * kHeadSize, kChunk * kHeadSize * 2);
        }
        bool more = next();
        if (task == int(blockIdx.x)) b.phase.wait(false);
        collect_head(b, s.qkv, head, i0, n, pass.n, from, q, fresh);
#pragma unroll 1
        while (more) {
            if (chunk.has_fresh)
#pragma unroll
                for (int i = 0; i < 8; ++i) stage_fresh(staged, fresh, i, int16_t(chunk.at[i / 2] >> i % 2 * 16));
            Query query;
            load_query(query, q + chunk.node * kQueryStride, chunk.n_nodes, lane);
            ptx::copies_wait();
            __syncwarp();
            float* node = results + chunk.node * kNodeFloats;
            attend_chunk(node + chunk.result * kHeadSize, node + kStats + 2 * chunk.result, chunk.n_nodes,
                         chunk.is_first, query, staged, chunk.n_keys);
            __syncwarp();  // the chunk has been read
            more = next();
        }
        block_barrier();
        if (!words && b.thread == 0) set_doing(Doing::arriving);

        // Merge: a warp takes a node, a lane two columns.
        for (int i = warp; i < n; i += kMultiplyWarps) {
            const int n_chunks = (pass.base + shared_state.depth[i0 + i]) / kChunk + 1;
            const float2 y = merge_classes(results + i * kNodeFloats, n_shared, n_chunks, lane);
            put<words>(s.attention, ((i0 + i) * m.n_embd + head * kHeadSize + fragment_column(2 * lane)) / 2,
                       pack_halves(y.x, y.y), number);
        }
        block_barrier();  // the results have been read
    }
    b.phase.arrive(min(n_tasks, int(gridDim.x)), int(blockIdx.x) < n_tasks, !words);
}

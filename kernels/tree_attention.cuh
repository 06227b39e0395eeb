// out(node, head) = sum over keys p of softmax_p(q . k_p / 8) v_p, by logical position: the keys of a node
// are the cache below the pass's base, its ancestors by depth, itself.
//
// Keys come in chunks of 16 positions. One warp turns a chunk into (max, sum, output), and a node's chunks merge in a
// fixed order (attention_chunk.cuh).
//
//   chunks below base     the same for all nodes: a block takes (head, up to 16 nodes), a warp every 16th chunk, keys
//                         and values read once for all its nodes
//   chunks that reach     differ by node: a warp takes (head, node, chunk) and gathers the rows of its ancestors
//   base or beyond
//
// In passes of up to 8 nodes several blocks share a head, and a warp has one chunk: a chunk's latency counts there.
// They send each other what a chunk gave, and a warp merges a quarter of a node's columns. In wider ones blocks have
// enough to do: each takes some nodes of a head and merges in shared memory.
//
// All run the same function on the same positions, so where base lies does not show in the bits; nor do the other
// rows. q and this pass's keys and values are waited for, in passes of up to 8 nodes as words that are put in shared
// memory, else as rows (exchange.cuh); the other keys and values lie in the cache since earlier passes.
//
// Bytes: 256 a key and head from L2 or memory, times the groups of nodes; 256 a node and head of q, as words 512 and as
// much of new keys and values times the groups; 128 of output, as words 256. What blocks send each other: 528 a chunk,
// node and head.
#pragma once

#include "kernels/attention_chunk.cuh"
#include "kernels/residual.cuh"

constexpr int kOwnChunks = kMaxSlots / kChunk + 1;  // that can reach base or beyond
constexpr int kRowStride = kHeadSize + 8;           // halves
constexpr int kChunkWords = kHeadSize + 2;          // of a chunk's result on the way: outputs, maximum, sum
HD constexpr int max_chunks(int n_positions) {
    return (n_positions + kChunk - 1) / kChunk;
}

using TreeResults = NodeResults<kOwnChunks>;

// A block's shared memory during attention, in the place of the partial sums and the matrix input: the values of each
// warp's chunk; q of up to kTreeGroup nodes of a head; in passes of up to 8 nodes their new keys and values; results of
// up to `group` nodes of a head.
constexpr int kTreeGroup = 2 * kGroup;  // nodes at most that a block takes at a time
constexpr int kValueBytes = kChunk * kHeadSize * 2;
constexpr int kQueryAt = kMultiplyWarps * kValueBytes, kFreshAt = kQueryAt + kTreeGroup * kQueryStride * 4;
HD constexpr int results_at(bool words) {
    return kFreshAt + (words ? kNarrow * 2 * kRowStride * 2 : 0);
}
HD constexpr int attention_bytes(int group, bool words) {
    return results_at(words) + group * TreeResults::kFloats * 4;
}

// The keys and values of a warp's chunk: lane 4 g + t has columns 8 t .. + 7 and 32 + 8 t .. + 7 of rows g and 8 + g,
// the keys in registers, the values, which are needed later, in shared memory. There, nobody else touches them.
struct Chunk {
    uint4 key[2][2];  // half; row
    uint32_t values;  // shared address: (half, row) 512 bytes apart
    int lane;

    __device__ uint32_t value(int j, int half) const { return values + (half * 2 + j) * 512; }
    __device__ uint4 read(int j, int half, bool of_values) const {
        return of_values ? ptx::load_shared_16(value(j, half)) : key[half][j];
    }

    // Starts to load the cache's row `at` as row j.
    __device__ void load_row(const HeadRows& rows, int j, int at) {
        const uint16_t* from = rows.keys + at * kHeadSize + lane % 4 * 8;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            key[half][j] = __ldcg(reinterpret_cast<const uint4*>(from + half * 32));
            ptx::copy_16(value(j, half), from + half * 32 + rows.to_values);
        }
    }
    // A new key and its value from a row of qkv, once they are there: as pairs of halves, the values n_embd / 2 pairs
    // behind the keys.
    __device__ void collect_fresh(const Block& b, const uint32_t* keys, int j) {
        uint4 piece[4];
        collect_values(
            b, 4, [&](int k) { return keys + k / 2 * (b.a.model.n_embd / 2) + k % 2 * 16 + lane % 4 * 4; }, piece);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            key[half][j] = piece[half];
            ptx::store_shared_16(value(j, half), piece[2 + half]);
        }
    }
    // The same from shared memory, (2, kRowStride).
    __device__ void take_fresh(const uint16_t* fresh, int j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4* from = reinterpret_cast<const uint4*>(fresh + half * 32) + lane % 4;
            key[half][j] = *from;
            ptx::store_shared_16(value(j, half), from[kRowStride / 8]);
        }
    }
    __device__ void clear_row(int j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            key[half][j] = {0, 0, 0, 0};
            ptx::store_shared_16(value(j, half), {0, 0, 0, 0});
        }
    }
};

// Where a chunk's results go as words, to other blocks: those of node 0 begin at `to`.
struct SentResults {
    static constexpr bool kPutLast = registers_to_spare();
    uint64_t* to;
    uint32_t number;

    __device__ void put_stats(int g, int t, bool there, float max, float sum) const {
        if (t == 0 && there) put_columns(g, kHeadSize, {max, sum});
    }
    __device__ void put_columns(int g, int column, float2 result) const {
        ptx::store_words(to + g * kChunkWords + column, __float_as_uint(result.x), __float_as_uint(result.y), number);
    }
};

// merge_classes() of n_chunks results that blocks have sent, once they are there: those of a class merge in ascending
// order first. from: the node's words of the first chunk; those of the next are `apart` further.
__device__ inline float4 merge_sent(const Block& b, const uint64_t* from, uint32_t apart, int n_chunks, int quarter,
                                    int lane, uint32_t number) {
    float2 stat[2] = {{kNothing, 0}, {kNothing, 0}};
    float4 part[2] = {};
    constexpr int kTogether = registers_to_spare() ? 2 : 1;  // chunks waited for together
    from += quarter * kQuarter + lane % 4 * 4;
    const uint32_t to_stats = kHeadSize - quarter * kQuarter - lane % 4 * 4;
#pragma unroll 1
    for (int first = lane / 4 * 2; first < n_chunks; first += kClasses) {
#pragma unroll
        for (int i0 = 0; i0 < 2; i0 += kTogether) {
            const uint64_t* chunk = from + (first + i0) * apart;
            const int n = n_chunks - first - i0;                                    // that are there
            uint4 low[kTogether] = {}, high[kTogether] = {}, more[kTogether] = {};  // words: columns, maximum and sum
            const auto absent = [&](int i, const uint4& two) { return i < n && (two.y != number || two.w != number); };
            wait_for(b.a.scratch.failure, Wait::exchange, [&] {
                bool all = true;
#pragma unroll
                for (int i = 0; i < kTogether; ++i) {
                    if (i >= n) continue;
                    low[i] = ptx::load_words(chunk + i * apart);
                    high[i] = ptx::load_words(chunk + i * apart + 2);
                    more[i] = ptx::load_words(chunk + i * apart + to_stats);
                }
#pragma unroll
                for (int i = 0; i < kTogether; ++i)
                    all &= !absent(i, low[i]) && !absent(i, high[i]) && !absent(i, more[i]);
                return all;
            });
#pragma unroll
            for (int i = 0; i < kTogether; ++i) {
                if (i >= n) break;
                const auto value = [](uint32_t x) { return __uint_as_float(x); };
                const float2 stats = {value(more[i].x), value(more[i].z)};
                const float4 out = {value(low[i].x), value(low[i].z), value(high[i].x), value(high[i].z)};
                float2& class_stat = stat[i0 + i];
                float4& sum = part[i0 + i];
                if (first < kClasses) {
                    class_stat = stats, sum = out;
                    continue;
                }
                float factor, own_factor;
                merge_factors(class_stat.x, class_stat.y, stats.x, stats.y, factor, own_factor);
                sum = {merge_output(sum.x, factor, out.x, own_factor), merge_output(sum.y, factor, out.y, own_factor),
                       merge_output(sum.z, factor, out.z, own_factor), merge_output(sum.w, factor, out.w, own_factor)};
            }
        }
    }
    __syncwarp();
    return add_classes(stat, part);
}

// q of the group's nodes i0.. (n of them), of one head, from words or floats to shared memory: (n, kQueryStride), as
// high and low halves. With words also the keys and values of all nodes of the pass: fresh (kNarrow, 2, kRowStride).
template <bool words>
__device__ inline void collect_head(const Block& b, int head, int i0, int n, int n_pass, const Exchange& exchange,
                                    uint32_t* q, uint16_t* fresh) {
    const int E = b.a.model.n_embd, n_query = n * (kHeadSize / 2),
              n_pairs = words ? n_query + n_pass * (kHeadSize / 2) : n_query / 2;
    for (int i = b.thread; i < n_pairs; i += kMultiplyThreads) {
        if (!words) {  // four columns
            const int node = i / (kHeadSize / 4), at = i % (kHeadSize / 4);
            uint4 four[1];
            collect_values(
                b, 1,
                [&](int) { return row_of(b.a, b.a.scratch.qkv, exchange, i0 + node) + head * kHeadSize + 4 * at; },
                four);
            stage_query(q + node * kQueryStride, at,
                        {__uint_as_float(four[0].x), __uint_as_float(four[0].y), __uint_as_float(four[0].z),
                         __uint_as_float(four[0].w)});
            continue;
        }
        const bool is_query = i < n_query;
        const int of = is_query ? i : i - n_query, node = of / (kHeadSize / 2), at = of % (kHeadSize / 2);
        const uint64_t* from = b.a.scratch.qkv.word;
        uint32_t* to;
        if (is_query) {
            from += (i0 + node) * 2 * E + head * kHeadSize + 2 * at;
            to = q + node * kQueryStride + 2 * at;
        } else {  // 16 pairs of the key, then 16 of the value
            from += node * 2 * E + E + at / 16 * (E / 2) + head * (kHeadSize / 2) + at % 16 * 2;
            to = reinterpret_cast<uint32_t*>(fresh + (2 * node + at / 16) * kRowStride) + at % 16 * 2;
        }
        uint4 pair[1];
        collect<0>(b, from, 1, exchange.number, pair);
        if (is_query) split_halves(__uint_as_float(pair[0].x), __uint_as_float(pair[0].z), pair[0].x, pair[0].z);
        to[0] = pair[0].x;
        to[1] = pair[0].z;
    }
    block_barrier();
}

// Publishes a quarter of a node's output of a head, of which lane i has columns 4 (i % 4) .. + 3.
template <bool words>
__device__ inline void put_quarter(const PassArguments& a, const Exchange& exchange, int node, int head, int quarter,
                                   const float4& y, int lane) {
    const int column = head * kHeadSize + quarter * kQuarter + lane % 4 * 4 + lane / 4 * 2;
    if (lane < 8)
        put<words>(a, a.scratch.attention, exchange, node, fragment_column(column) / 2,
                   lane < 4 ? pack_halves(y.x, y.y) : pack_halves(y.z, y.w));
}

// A chunk that a warp is at.
struct Job {
    int index, node;  // of the chunk; the first node
    uint32_t fresh;   // of a node's own chunk: 1 + node of the pass whose row comes later, or 0, by row
};

// Starts to load what the cache holds of chunk `index`, below base.
__device__ inline Job load_shared(Chunk& chunk, const HeadRows& rows, int index) {
#pragma unroll
    for (int j = 0; j < 2; ++j) chunk.load_row(rows, j, index * kChunk + 8 * j + chunk.lane / 4);
    return {index, 0, 0};
}

// The same of chunk `index`, which reaches base or beyond, of node `node` of the group that begins with i0.
__device__ inline Job load_own(Chunk& chunk, const HeadRows& rows, const Block& b, const DevicePass& pass, int index,
                               int i0, int node) {
    Job job = {index, node, 0};
    const int first = index * kChunk + chunk.lane / 4 - pass.base, depth = shared_state.depth[i0 + node];
    int slot[2];  // of the ancestor at the row's position, both looked up before the first load
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int d = first + 8 * j;
        slot[j] = pass.first + i0 + node;
        if (d >= 0 && d < depth) slot[j] = b.a.nodes->path[d][pass.nodes_at + i0 + node];
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const int d = first + 8 * j;
        if (d > depth)
            chunk.clear_row(j);
        else if (d < 0 || slot[j] < pass.first)
            chunk.load_row(rows, j, d < 0 ? pass.base + d : pass.slot_rows + slot[j]);
        else
            job.fresh |= uint32_t(slot[j] - pass.first + 1) << 8 * j;
    }
    return job;
}

// Has blocks of passes of up to kNarrow nodes share each head: blocks head, head + n_head, ... have every `split`th of
// its chunks, then merge every `split`th quarter of the nodes.
template <int W>
__device__ inline void spread_attention(Block& b, const DevicePass& pass, int layer, uint32_t from, uint32_t number) {
    const DeviceModel& m = b.a.model;
    const int warp = b.thread / 32, lane = b.thread % 32;
    const int block = ptx::kept(blockIdx.x), n = W == 1 ? 1 : pass.n, split = b.a.shared.attention_split,
              stride = kMultiplyWarps * split;
    const int n_shared = pass.base / kChunk, n_own = (pass.base + shared_state.max_depth) / kChunk - n_shared + 1;
    uint8_t* memory = reinterpret_cast<uint8_t*>(b.partial());         // and the matrix input behind it
    uint32_t* q = reinterpret_cast<uint32_t*>(memory + kQueryAt);      // (n, kQueryStride)
    uint16_t* fresh = reinterpret_cast<uint16_t*>(memory + kFreshAt);  // (n, 2, kRowStride)
#pragma unroll 1
    for (int task = block; task < m.n_head * split; task += gridDim.x) {
        const int head = task % m.n_head, share = task / m.n_head + warp * split;
        const auto sent = [&](int chunk, int node) {
            return b.a.scratch.chunks + ((head * max_chunks(m.n_positions) + chunk) * kNarrow + node) * kChunkWords;
        };
        // First each node's own chunks, which take longer to find, then the cache's, for all nodes at once. What the
        // cache holds of the first one is on its way before q is there.
#pragma unroll 1
        for (int at = share;; at += stride) {
            const HeadRows rows = {m.kv_row(layer, 0, head, 0), uint32_t(m.n_head * m.kv_rows * kHeadSize)};
            Chunk chunk = {
                .key = {}, .values = ptx::shared_address(memory) + warp * kValueBytes + lane * 16, .lane = lane};
            Job job = {};
            const bool there = at < n * n_own + n_shared, own = at < n * n_own;
            if (there)
                job = own ? load_own(chunk, rows, b, pass, n_shared + at / n, 0, at % n)
                          : load_shared(chunk, rows, at - n * n_own);
            if (at == share) collect_head<true>(b, head, 0, n, n, {from, 0}, q, fresh);
            if (!there) break;
            const int n_keys = own ? pass.base + shared_state.depth[job.node] - job.index * kChunk + 1 : kChunk;
            if (n_keys <= 0) continue;  // beyond the node
            if (own)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    if (const int node = int(job.fresh >> 8 * j & 255) - 1; node >= 0)
                        chunk.take_fresh(fresh + node * 2 * kRowStride, j);
            ptx::copies_wait();
            attend_chunk(SentResults{sent(job.index, job.node), number}, own ? 1 : n, q + job.node * kQueryStride,
                         chunk, n_keys);
        }
        block_barrier();
#pragma unroll 1
        for (int item = share; item < n * (kHeadSize / kQuarter); item += stride) {
            const int i = item / (kHeadSize / kQuarter), quarter = item % (kHeadSize / kQuarter);
            const float4 y = merge_sent(b, sent(0, i), kNarrow * kChunkWords,
                                        (pass.base + shared_state.depth[i]) / kChunk + 1, quarter, lane, number);
            put_quarter<W == 1>(b.a, {number, b.a.layer_rows[layer]}, i, head, quarter, y, lane);
        }
        block_barrier();  // q has been read
    }
}

// Attention of layer `layer` for all nodes of the pass.
__device__ inline void tree_attention(Block& b, const DevicePass& pass, int layer, uint32_t number) {
    const DeviceModel& m = b.a.model;
    const int warp = b.thread / 32, lane = b.thread % 32;
    const int block = ptx::kept(blockIdx.x);
    const int group = b.a.shared.attention_nodes, n_groups = (pass.n + group - 1) / group,
              n_tasks = m.n_head * n_groups;
    const int n_shared = pass.base / kChunk;
    uint8_t* memory = reinterpret_cast<uint8_t*>(b.partial());                       // and the matrix input behind it
    uint32_t* q = reinterpret_cast<uint32_t*>(memory + kQueryAt);                    // (group, kQueryStride)
    float* results = reinterpret_cast<float*>(memory + results_at(false));           // (group, TreeResults)
    const int n_own = (pass.base + shared_state.max_depth) / kChunk - n_shared + 1;  // of a node, at most
    for (int task = block; task < n_tasks; task += gridDim.x) {
        const int head = task % m.n_head, i0 = task / m.n_head * group, n = min(group, pass.n - i0);
        const HeadRows rows = {m.kv_row(layer, 0, head, 0), uint32_t(m.n_head * m.kv_rows * kHeadSize)};
        // First each node's own chunks, which take longer to find, then the cache's, for all nodes at once.
        int at = warp;
        Job job;
        Chunk chunk = {.key = {}, .values = ptx::shared_address(memory) + warp * kValueBytes + lane * 16, .lane = lane};
        const auto next = [&] {  // loads what the cache holds of the next chunk; false: there is none
            for (; at < n * n_own; at += kMultiplyWarps) {
                const int index = n_shared + at / n, node = at % n;
                if (index * kChunk > pass.base + shared_state.depth[i0 + node]) continue;
                job = load_own(chunk, rows, b, pass, index, i0, node);
                at += kMultiplyWarps;
                return true;
            }
            if (at >= n * n_own + n_shared) return false;
            job = load_shared(chunk, rows, at - n * n_own);
            at += kMultiplyWarps;
            return true;
        };
        // What the cache holds is on its way before q is there: the first chunk to this warp, the others to L2.
        for (int ahead = warp + kMultiplyWarps - n * n_own; ahead < n_shared; ahead += kMultiplyWarps) {
            if (ahead < 0) continue;
            ptx::prefetch_l2(rows.keys + ahead * kChunk * kHeadSize, kChunk * kHeadSize * 2);
            ptx::prefetch_l2(rows.keys + rows.to_values + ahead * kChunk * kHeadSize, kChunk * kHeadSize * 2);
        }
        bool more = next();
        const Exchange exchange = {number, b.a.layer_rows[layer]};
        collect_head<false>(b, head, i0, n, pass.n, exchange, q, nullptr);
#pragma unroll 1
        while (more) {
            const bool own = job.index >= n_shared;
            if (own)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    if (const int node = int(job.fresh >> 8 * j & 255) - 1; node >= 0)
                        chunk.collect_fresh(
                            b, row_of(b.a, b.a.scratch.qkv, exchange, node) + m.n_embd + head * (kHeadSize / 2), j);
            const int last = pass.base + shared_state.depth[i0 + job.node];  // its last key
            ptx::copies_wait();
            // Of one class, one warp takes the chunks, in ascending order.
            const int result = job.index < kClasses || !own ? job.index % kClasses : kClasses + job.index - n_shared;
#pragma unroll 1
            for (int first = job.node; first < (own ? job.node + 1 : n); first += kGroup) {
                float* node = results + first * TreeResults::kFloats;
                attend_chunk(
                    MergedResults<TreeResults>{node + result * kHeadSize, node + TreeResults::kStats + 2 * result,
                                               own || job.index < kClasses},
                    own ? 1 : min(kGroup, n - first), q + first * kQueryStride, chunk,
                    own ? last - job.index * kChunk + 1 : kChunk);
            }
            more = next();
        }
        block_barrier();

        if (n_shared + n_own > kClasses) {
#pragma unroll 1
            for (int i = warp; i < n; i += kMultiplyWarps)
                merge_own<TreeResults>(results + i * TreeResults::kFloats, n_shared,
                                       (pass.base + shared_state.depth[i0 + i]) / kChunk + 1, lane);
            block_barrier();
        }
#pragma unroll 1
        for (int item = warp; item < n * (kHeadSize / kQuarter); item += kMultiplyWarps) {
            const int i = item / (kHeadSize / kQuarter), quarter = item % (kHeadSize / kQuarter);
            const int n_chunks = (pass.base + shared_state.depth[i0 + i]) / kChunk + 1;
            const float4 y =
                merge_classes<TreeResults>(results + i * TreeResults::kFloats, min(n_chunks, kClasses), quarter, lane);
            put_quarter<false>(b.a, exchange, i0 + i, head, quarter, y, lane);
        }
        block_barrier();  // the results have been read
    }
}

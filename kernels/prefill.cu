// Prefill: the keys and values of a text's tokens into the cache, up to kPrefillTokens at a time, bit for bit those
// that passes (forward.cuh) leave there. For T tokens and n_embd = E, one kernel a line, in order:
//
//     x = wte[token] + wpe[position]                                           prefill_embed
//     each layer:  input = x ln_1's weight, its moments                        prefill_norm
//                  q, cache = c_attn(input)        (T, E) to (T, 3 E)          prefill_multiply<c_attn>
//                  input = attention(q, cache)                                 prefill_attention
//                  part = c_proj(input)            (T, E) to (T, E)            prefill_multiply<c_proj>
//                  x += part;  input = x ln_2's weight, its moments            prefill_norm
//                  mlp = gelu(c_fc(input))         (T, E) to (T, 4 E)          prefill_multiply<c_fc>
//                  parts = mlp_proj(mlp)           (4, T, E) to (4, T, E)      prefill_multiply<mlp_proj>
//                  x += parts                                                  prefill_norm of the next layer
//
// Mean and scale, the moments, enter after the product (residual.cuh).
//
// The last layer ends after c_attn. On sm_90 and later a kernel may start while the one before it ends: it fetches
// weights, which nobody writes, and waits before it reads or writes anything else.
//
// Bytes: the weights from memory once. From L2, since a block takes 128 rows and 64 tokens at a time, T / 64 times the
// weights and rows / 128 times the inputs: 470 MB a layer for 512 tokens of GPT2-L.
#include "kernels/prefill.h"

#include <algorithm>

#include "kernels/attention_chunk.cuh"
#include "kernels/cuda_error.h"
#include "kernels/embedding.cuh"
#include "kernels/gelu.cuh"

namespace {

struct PrefillArguments {
    DeviceModel model;
    const float* vectors;  // as PassArguments'
    PrefillScratch scratch;
    int n, base;  // tokens; position of the first
    int n_slots;
};

struct PrefillText {
    int32_t token[kPrefillTokens];
};

// ---- Embedding: a block a token ----

__global__ void __launch_bounds__(kMultiplyThreads)
    prefill_embed(const __grid_constant__ PrefillArguments a, const __grid_constant__ PrefillText text) {
    ptx::launch_dependents();
    float* x = a.scratch.x + blockIdx.x * a.model.n_embd;
    for (int column = threadIdx.x; column < a.model.n_embd; column += kMultiplyThreads)
        x[column] = embedded(a.model, text.token[blockIdx.x], a.base + blockIdx.x, column);
}

// Vectors of the units of 16 rows of a matrix of layer `layer`.
__device__ inline const float* vectors_of(const PrefillArguments& a, Matrix which, int layer) {
    const int units = a.model.n_embd / 16;
    return a.vectors + (layer * kLayerRows + rows_before(which)) * units * 32;
}

// ---- The residual step and what c_attn or c_fc takes of LayerNorm: a block a token, a thread 4 columns ----
//
// Reads x and the parts, 4 n_embd bytes each; writes x and 2 n_embd bytes of matrix input. The order of sums is
// residual.cuh's: 16 columns are those of 4 lanes.

__device__ inline float4 plus(const float4& a, const float4& b) {
    return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
}
// The sum over 16 columns, in each of their lanes.
__device__ inline float sum_16(const float4& v) {
    float sum = __fadd_rn(__fadd_rn(v.x, v.y), __fadd_rn(v.z, v.w));
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
    return __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
}

__global__ void __launch_bounds__(kMultiplyThreads)
    prefill_norm(const __grid_constant__ PrefillArguments a, Matrix which, int layer) {
    __shared__ float2 sums[4 * kMultiplyThreads / 16];  // of the units of 16 columns
    const DeviceModel& m = a.model;
    const PrefillScratch& s = a.scratch;
    const int token = blockIdx.x, E = m.n_embd, column = 4 * threadIdx.x, lane = threadIdx.x % 32;
    const bool own = column < E, has_branch = which == Matrix::c_fc || layer > 0;
    float4 bias = {}, weight = {}, v = {};
    if (own && has_branch) {  // of c_proj, or mlp_proj of the layer before
        const float* vectors =
            which == Matrix::c_fc ? vectors_of(a, Matrix::c_proj, layer) : vectors_of(a, Matrix::mlp_proj, layer - 1);
        const float4* of_unit = reinterpret_cast<const float4*>(vectors + column / 16 * 32) + column % 16 / 4;
        bias = of_unit[0], weight = of_unit[4];
    } else if (own) {
        weight = reinterpret_cast<const float4*>(m.vector(0, m.layer.ln_1_weight))[threadIdx.x];
    }
    ptx::launch_dependents();
    ptx::wait_for_earlier();
    if (own) {
        float4* x = reinterpret_cast<float4*>(s.x + token * E + column);
        v = __ldcg(x);
        if (has_branch) {
            float4 part[kSplit];
            const int n_parts = which == Matrix::c_fc ? 1 : kSplit;
#pragma unroll
            for (int p = 0; p < kSplit; ++p)
                if (p < n_parts)
                    part[p] = __ldcg(reinterpret_cast<const float4*>(s.part + (p * s.rows + token) * E + column));
            float4 sum = part[0];
#pragma unroll
            for (int p = 1; p < kSplit; ++p)
                if (p < n_parts) sum = plus(sum, part[p]);
            v = plus(v, plus(sum, bias));
            *x = v;
        }
    }
    const float sum = sum_16(v), mean = __fmul_rn(sum, 0.0625f);
    const auto square = [&](float x) {
        const float d = __fsub_rn(x, mean);
        return __fmul_rn(d, d);
    };
    const float squares = sum_16({square(v.x), square(v.y), square(v.z), square(v.w)});
    if (own && threadIdx.x % 4 == 0) sums[threadIdx.x / 4] = {sum, squares};
    if (own) {
        uint32_t* to = reinterpret_cast<uint32_t*>(s.input + prefill_index(token, column, E));
        to[0] = pack_halves(__fmul_rn(v.x, weight.x), __fmul_rn(v.y, weight.y));
        uint32_t* next = reinterpret_cast<uint32_t*>(s.input + prefill_index(token, column + 2, E));
        next[0] = pack_halves(__fmul_rn(v.z, weight.z), __fmul_rn(v.w, weight.w));
    }
    __syncthreads();
    if (threadIdx.x >= 32) return;
    Moments moments;  // a warp a row
#pragma unroll
    for (int k = 0; k < Moments::kEach; ++k)
        if (lane + 32 * k < E / 16) moments.part[k] = sums[lane + 32 * k];
    const float2 combined = moments.combine(m, lane);
    if (lane == 0) reinterpret_cast<float2*>(s.moments)[token] = combined;
}

// ---- Matrices ----
//
// out(row, token) = sum over k of weight(row, k) input(token, k), in skinny_gemm.cuh's order: a piece's blocks i mod 4
// = 0, 1, 2, 3 into a sum each, ascending, then (sum 0 + sum 1) + (sum 2 + sum 3), then the pieces ascending.
//
// A block takes tiles of kTileUnits units of 16 rows by kTokenTile tokens and all of n_embd columns, one after the
// other, and multiplies each with kTileUnits warps of 32 rows by 32 tokens. Weights and input come through a ring in
// shared memory, kStageQuads times 64 columns at a time; each warp fetches one unit and its share of the input, because
// a warp that did all of it would leave the others 168 registers a lane, and five times 32 hold sums.

constexpr int kTileUnits = 8;
constexpr int kGemmThreads = 32 * kTileUnits;
constexpr int kStageQuads = 2;
constexpr int kQuadBytes = 4 * kBlockBytes;             // of weights, a unit
constexpr int kQuadInput = 4 * 16 * kTokenTile * 2;     // bytes of input that they meet
constexpr int kStageUnit = kStageQuads * kQuadBytes;    // a stage: (kTileUnits, kStageQuads) quads of weights,
constexpr int kStageWeights = kTileUnits * kStageUnit;  // then (kStageQuads) of input
constexpr int kStageBytes = kStageWeights + kStageQuads * kQuadInput;
constexpr int kMaxStages = 4;

// Units of 16 rows of a matrix of a layer, tiles of n tokens, tiles of both.
HD constexpr int units_of(Matrix which, int n_embd) {
    return rows_of(which) * n_embd / 16;
}
HD constexpr int token_tiles_of(int n) {
    return (n + kTokenTile - 1) / kTokenTile;
}
HD constexpr int tiles_of(int units, int parts, int token_tiles) {
    return (units + kTileUnits - 1) / kTileUnits * parts * token_tiles;
}

// What the multiplication of a matrix of layer `layer` looks like from a block.
template <Matrix which>
struct Tiles {
    static constexpr int kParts = parts_of(which);
    const PrefillArguments& a;
    int layer;
    int E = a.model.n_embd;
    int units = units_of(which, E);
    int token_tiles = token_tiles_of(a.n);
    int quads = E / 64;  // of a unit
    int count = tiles_of(units, kParts, token_tiles);

    // Neighbours in time share their weights.
    struct Tile {
        int first_unit, part, token_tile;
    };
    __device__ Tile tile(int index) const {
        const int of_rows = index / token_tiles;
        return {of_rows / kParts * kTileUnits, of_rows % kParts, index % token_tiles};
    }
};

// The ring of stages, behind its mbarriers: `full` completes when a stage has landed, `empty` when all warps have read
// it.
constexpr int kBarrierBytes = 128;
struct StageRing {
    const PrefillArguments& a;
    int slot = 0;
    uint32_t parity = 0;

    __device__ static uint32_t memory() { return ptx::shared_address(shared_memory); }
    __device__ uint32_t at() const { return memory() + kBarrierBytes + slot * kStageBytes; }
    __device__ uint32_t full() const { return memory() + slot * 8; }
    __device__ uint32_t empty() const { return memory() + (kMaxStages + slot) * 8; }
    __device__ void next() {
        if (++slot < a.n_slots) return;
        slot = 0;
        parity ^= 1;
    }
    // By one thread.
    __device__ void initialise() const {
        for (StageRing each = *this; each.parity == parity; each.next()) {
#if __CUDA_ARCH__ >= 900
            ptx::mbarrier_init(each.full(), kTileUnits);
#else
            ptx::mbarrier_init(each.full(), kGemmThreads);
#endif
            ptx::mbarrier_init(each.empty(), kTileUnits);
        }
#if __CUDA_ARCH__ >= 900
        ptx::fence_copy_engine();
#endif
    }
    // Until the stage has landed; until the one before it in the slot has been read.
    __device__ void wait_full() const {
        wait_mbarrier(full(), parity, a.scratch.failure);
    }
    __device__ void wait_empty() const {
        wait_mbarrier(empty(), parity ^ 1, a.scratch.failure);
    }
};

// A warp's share in fetching the stages of the block's tiles, one stage after the other: of the weights one unit, of
// the input as much as every warp. Where one thread can start a whole copy, lane 0 does it alone.
template <Matrix which>
struct Fetch {
    const Tiles<which>& tiles;
    StageRing ring;
    const uint8_t *unit, *inputs;      // of the tile: this warp's unit, null if there is none; the input of all warps
    int index = blockIdx.x, quad = 0;  // of the tile; the first of the stage

    __device__ explicit Fetch(const Tiles<which>& t) : tiles(t), ring{t.a} { find(); }
    __device__ void find() {
        const PrefillArguments& a = tiles.a;
        const uint16_t* weights = a.model.halves(tiles.layer, weight_of(a.model.layer, which));
        const uint16_t* input = which == Matrix::mlp_proj ? a.scratch.mlp : a.scratch.input;
        const auto tile = tiles.tile(index);
        const int at = tile.first_unit + warp();
        unit = nullptr;
        if (at < tiles.units)
            unit = reinterpret_cast<const uint8_t*>(weights) +
                   uint64_t(at * Tiles<which>::kParts + tile.part) * tiles.quads * kQuadBytes;
        inputs = reinterpret_cast<const uint8_t*>(input) +
                 (tile.token_tile * Tiles<which>::kParts + tile.part) * tiles.quads * kQuadInput;
    }
    __device__ static int warp() { return threadIdx.x / 32; }
    __device__ static int lane() { return threadIdx.x % 32; }
    __device__ bool works() const {
#if __CUDA_ARCH__ >= 900
        return index < tiles.count && lane() == 0;
#else
        return index < tiles.count;
#endif
    }
    __device__ int quads() const {
        return min(kStageQuads, tiles.quads - quad);
    }
    __device__ int share() const {
        return quads() * (kQuadInput / kTileUnits);
    }

    // Once the slot is free.
    __device__ void fetch_weights() const {
        if (!works()) return;
        ring.wait_empty();
        const int bytes = unit ? quads() * kQuadBytes : 0;
#if __CUDA_ARCH__ >= 900
        ptx::mbarrier_expect(ring.full(), bytes + share());
#endif
        if (unit) copy(ring.at() + warp() * kStageUnit, unit + quad * kQuadBytes, bytes);
    }
    // After the weights.
    __device__ void fetch_input() const {
        if (!works()) return;
        const int at = warp() * share();
        copy(ring.at() + kStageWeights + at, inputs + quad * kQuadInput + at, share());
#if __CUDA_ARCH__ < 900
        ptx::mbarrier_arrive_after_copies(ring.full());
#endif
    }
    __device__ void copy(uint32_t to, const uint8_t* from, int bytes) const {
#if __CUDA_ARCH__ >= 900
        ptx::bulk_copy(to, from, bytes, ring.full(), ptx::policy_evict_normal());
#else
        for (int at = lane() * 16; at < bytes; at += 32 * 16) ptx::copy_16(to + at, from + at);
#endif
    }
    __device__ void next() {
        ring.next();
        quad += kStageQuads;
        if (quad < tiles.quads) return;
        quad = 0;
        index += gridDim.x;
        find();
    }
};

// Of a warp: 2 units by 4 column tiles of 8 tokens, as fragments of d.
using Sums = float[2][4][4];

// Of a warp, what a block of 16 columns takes: fragments of its 2 units and of two pairs of column tiles.
struct Operands {
    uint4 w[2], x[2];

    // weights, input: shared addresses of this lane's first fragments.
    __device__ void load(uint32_t weights, uint32_t input) {
#pragma unroll
        for (int u = 0; u < 2; ++u) w[u] = ptx::load_shared_16(weights + u * kStageUnit);
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) x[pair] = ptx::load_shared_16(input + pair * 512);
    }
    __device__ void multiply(Sums& sum) const {
#pragma unroll
        for (int u = 0; u < 2; ++u)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const uint32_t a[4] = {w[u].x, w[u].y, w[u].z, w[u].w};
                const uint4& two = x[c / 2];
                ptx::mma(sum[u][c], a, c % 2 ? two.z : two.x, c % 2 ? two.w : two.y);
            }
    }
};

// Adds a piece's sums to the total and clears them.
__device__ inline void add_piece(Sums& total, Sums (&sum)[4]) {
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int c = 0; c < 4; ++c)
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float piece =
                    __fadd_rn(__fadd_rn(sum[0][u][c][k], sum[1][u][c][k]), __fadd_rn(sum[2][u][c][k], sum[3][u][c][k]));
                total[u][c][k] = __fadd_rn(total[u][c][k], piece);
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[i][u][c][k] = 0;
            }
}

// Takes one unit's results away: d of 4 column tiles from token `first_token` on.
template <Matrix which>
__device__ inline void put_unit(const Tiles<which>& tiles, int unit, int part, int first_token,
                                const float (&sum)[4][4]) {
    const PrefillArguments& a = tiles.a;
    const DeviceModel& m = a.model;
    const PrefillScratch& s = a.scratch;
    const int E = tiles.E, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = unit * 16 + g;
    float d[4][4];
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
        for (int k = 0; k < 4; ++k) d[c][k] = sum[c][k];
    if constexpr (which == Matrix::c_attn || which == Matrix::c_fc) {
        const float* vectors = vectors_of(a, which, tiles.layer) + unit * 32 + g;
        const float along[2] = {vectors[0], vectors[8]}, constant[2] = {vectors[16], vectors[24]};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const float4 two = __ldcg(reinterpret_cast<const float4*>(s.moments + 2 * (first_token + 8 * c + 2 * t)));
#pragma unroll
            for (int k = 0; k < 4; ++k)
                d[c][k] =
                    normalised(d[c][k], along[k / 2], constant[k / 2], k % 2 ? two.z : two.x, k % 2 ? two.w : two.y);
        }
    }
    // The results of two neighbouring tokens as halves, turned into two neighbouring rows of one token: fragments of B.
    const auto turned = [&](int c, int k) { return ptx::transpose(pack_halves(d[c][k], d[c][k + 1])); };
    if (which == Matrix::c_fc) {
#pragma unroll
        for (int c = 0; c < 4; ++c)
#pragma unroll
            for (int k = 0; k < 4; ++k) d[c][k] = gelu(d[c][k]);
#pragma unroll
        for (int c = 0; c < 4; c += 2)
            *reinterpret_cast<uint4*>(s.mlp + prefill_index(first_token + 8 * c, unit * 16, 4 * E) + lane * 8) = {
                turned(c, 0), turned(c, 2), turned(c + 1, 0), turned(c + 1, 2)};
        return;
    }
    if (which == Matrix::c_attn && unit * 16 >= E) {
        const int values = unit * 16 >= 2 * E, column = unit * 16 - E - values * E;
        uint16_t* to =
            m.kv_row(tiles.layer, values, column / kHeadSize, a.base + first_token + g) + column % kHeadSize + 2 * t;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const uint32_t low = turned(c, 0), high = turned(c, 2);
            if (first_token + 8 * c + g >= a.n) continue;
            *reinterpret_cast<uint32_t*>(to + 8 * c * kHeadSize) = low;
            *reinterpret_cast<uint32_t*>(to + 8 * c * kHeadSize + 8) = high;
        }
        return;
    }
    float* to = (which == Matrix::c_attn ? s.q : s.part + part * s.rows * E) + (first_token + 2 * t) * E + row;
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
        for (int k = 0; k < 4; ++k) to[(8 * c + k % 2) * E + k / 2 * 8] = d[c][k];
}

template <Matrix which>
__global__ void __launch_bounds__(kGemmThreads, 1)
    prefill_multiply(const __grid_constant__ PrefillArguments a, int layer) {
    const Tiles<which> tiles{a, layer};
    StageRing ring{a};
    if (threadIdx.x == 0) ring.initialise();
    __syncthreads();
    ptx::launch_dependents();
    Fetch<which> fetch(tiles);
    Fetch<which> ahead = fetch;
    for (int i = 1; i < a.n_slots; ++i, ahead.next()) ahead.fetch_weights();
    ptx::wait_for_earlier();
    for (int i = 1; i < a.n_slots; ++i, fetch.next()) fetch.fetch_input();

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int my_unit = warp / 2 * 2, my_token = warp % 2 * 32;  // of the tile
    const uint32_t my_weights = my_unit * kStageUnit + lane * 16,
                   my_input = kStageWeights + my_token / 16 * 512 + lane * 16;
    const int of_piece = piece_quads(tiles.E);
#pragma unroll 1
    for (int index = blockIdx.x; index < tiles.count; index += gridDim.x) {
        Sums total, sum[4] = {};
#pragma unroll
        for (int i = 0; i < 32; ++i) total[i / 16][i / 4 % 4][i % 4] = -0.0f;  // to which adding changes nothing
        int piece_end = of_piece;
#pragma unroll 1
        for (int first = 0; first < tiles.quads; first += kStageQuads) {
            const uint32_t weights = ring.at() + my_weights, input = ring.at() + my_input;
            ring.wait_full();
            Operands next;
            next.load(weights, input);
#pragma unroll
            for (int quad = 0; quad < kStageQuads; ++quad) {
                if (first + quad >= tiles.quads) break;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const Operands now = next;
                    const int block = quad * 4 + i + 1;  // the next, if not in the other stage
                    if (block < 4 * kStageQuads)
                        next.load(weights + block * kBlockBytes, input + block * (kQuadInput / 4));
                    now.multiply(sum[i]);
                }
                if (quad == 0) {  // by now the others have read the stage before this one
                    fetch.fetch_weights();
                    fetch.fetch_input();
                    fetch.next();
                }
                if (first + quad + 1 == tiles.quads || first + quad + 1 == piece_end) {
                    add_piece(total, sum);
                    piece_end += of_piece;
                }
            }
            __syncwarp();
            if (lane == 0) ptx::mbarrier_arrive(ring.empty());
            ring.next();
        }
        const auto tile = tiles.tile(index);
#pragma unroll
        for (int u = 0; u < 2; ++u)
            if (const int unit = tile.first_unit + my_unit + u; unit < tiles.units)
                put_unit(tiles, unit, tile.part, tile.token_tile * kTokenTile + my_token, total[u]);
    }
}

// ---- Attention: a block a head and up to kTextGroup tokens, in the order of tree_attention.cuh ----
//
// The tokens are a pass whose base is the first of them, and a warp takes the chunks of its class for all of them,
// those that reach base too: there each token has keys of its own number, and the weights beyond are 0. Bytes: 256 a
// key and head for each group, straight from L2 to registers.

constexpr int kTextGroup = 2 * kGroup;
constexpr int kAttentionThreads = 32 * kClasses;
constexpr int kAttentionBlocks = registers_to_spare() ? 2 : 1;  // of a multiprocessor
using TextResults = NodeResults<2>;
constexpr int kAttentionBytes = kTextGroup * (kQueryStride + TextResults::kFloats) * 4;

// A chunk's keys and values in registers, in the order of tree_attention.cuh's Chunk.
struct HeldChunk {
    uint4 piece[2][2][2];  // keys, values; half; row 8 j + lane / 4
    int lane;

    __device__ uint4 read(int j, int half, bool values) const { return piece[values][half][j]; }

    // Of the cache's rows first ..; those beyond row `last` as zeros.
    __device__ void load(const HeadRows& rows, int first, int last) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int row = first + 8 * j + lane / 4;
            const uint16_t* from = rows.keys + row * kHeadSize + lane % 4 * 8;
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int v = 0; v < 2; ++v)
                    piece[v][half][j] =
                        row > last ? uint4{0, 0, 0, 0}
                                   : __ldcg(reinterpret_cast<const uint4*>(from + half * 32 + v * rows.to_values));
        }
    }
    // Whether the values are all finite; the warp's lanes agree.
    __device__ bool finite() const {
        bool all = true;
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint4& v = piece[1][half][j];
                for (const uint32_t two : {v.x, v.y, v.z, v.w}) all &= !__vcmpeq2(two & 0x7c007c00u, 0x7c007c00u);
            }
        return __all_sync(~0u, all);
    }
};

__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks)
    prefill_attention(const __grid_constant__ PrefillArguments a, int layer) {
    const DeviceModel& m = a.model;
    const PrefillScratch& s = a.scratch;
    const int E = m.n_embd, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // The last tokens, which have the most keys, first.
    const int head = blockIdx.x % m.n_head, group = (gridDim.x - 1 - blockIdx.x) / m.n_head;
    const int first_token = group * kTextGroup, n = min(kTextGroup, a.n - first_token), base = a.base + first_token;
    const int n_shared = base / kChunk, n_chunks = (base + n - 1) / kChunk + 1;
    uint32_t* q = reinterpret_cast<uint32_t*>(shared_memory);                  // (n, kQueryStride)
    float* results = reinterpret_cast<float*>(q + kTextGroup * kQueryStride);  // (n, TextResults)
    const HeadRows rows = {m.kv_row(layer, 0, head, 0), uint32_t(m.n_head * m.kv_rows * kHeadSize)};
    ptx::launch_dependents();
    ptx::wait_for_earlier();
    for (int i = threadIdx.x; i < n * (kHeadSize / 4); i += kAttentionThreads) {
        const int token = i / (kHeadSize / 4), at = i % (kHeadSize / 4);
        const float* from = s.q + (first_token + token) * E + head * kHeadSize;
        stage_query(q + token * kQueryStride, at, __ldcg(reinterpret_cast<const float4*>(from) + at));
    }
    __syncthreads();
#pragma unroll 1
    for (int chunk = warp; chunk < n_chunks; chunk += kClasses) {
        const int first = chunk * kChunk;
        const bool shared = chunk < n_shared;
        const int result = chunk < kClasses || shared ? warp : kClasses + chunk - n_shared;
        HeldChunk held;
        held.lane = lane;
        held.load(rows, first, base + n - 1);
        // The chunk's share in the results of tokens token .. token + count - 1.
        const auto attend = [&](int token, int count) {
            float* node = results + token * TextResults::kFloats;
            attend_chunk(
                MergedResults<TextResults, false>{node + result * kHeadSize, node + TextResults::kStats + 2 * result,
                                                  !shared || chunk < kClasses},
                count, q + token * kQueryStride, held, min(kChunk, base + token + lane / 4 - first + 1));
        };
        if (shared || held.finite()) {
#pragma unroll 1
            for (int token = 0; token < n; token += kGroup) attend(token, min(kGroup, n - token));
            continue;
        }
        // A weight of 0 does not keep out infinities of later tokens: each token by itself, with zeros in their place.
#pragma unroll 1
        for (int token = max(0, first - base); token < n; ++token) {
            held.load(rows, first, base + token);
            attend(token, 1);
        }
    }
    __syncthreads();
    if (n_chunks > kClasses) {
        if (warp < n)
            merge_own<TextResults>(results + warp * TextResults::kFloats, n_shared, (base + warp) / kChunk + 1, lane);
        __syncthreads();
    }
    if (warp >= n) return;
    const float2 y = merge_columns<TextResults>(results + warp * TextResults::kFloats,
                                                min((base + warp) / kChunk + 1, kClasses), lane);
    *reinterpret_cast<uint32_t*>(s.input + prefill_index(first_token + warp, head * kHeadSize + 2 * lane, E)) =
        pack_halves(y.x, y.y);
}

}  // namespace

PrefillSetup prefill_setup(int max_shared, int device_shared) {
    const auto allow = [&](const void* kernel, int bytes) {
        cuda_check(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, std::min(bytes, device_shared)),
            "setting up a kernel");
    };
    const void* multiply[] = {reinterpret_cast<const void*>(prefill_multiply<Matrix::c_attn>),
                              reinterpret_cast<const void*>(prefill_multiply<Matrix::c_proj>),
                              reinterpret_cast<const void*>(prefill_multiply<Matrix::c_fc>),
                              reinterpret_cast<const void*>(prefill_multiply<Matrix::mlp_proj>)};
    for (const void* kernel : multiply) allow(kernel, kBarrierBytes + kMaxStages * kStageBytes);
    allow(reinterpret_cast<const void*>(prefill_attention), kAttentionBytes);
    cudaFuncAttributes attributes;
    cuda_check(cudaFuncGetAttributes(&attributes, multiply[0]), "setting up a kernel");
    // Kernels that were compiled for less than sm_90 don't wait for each other.
    return {std::min(kMaxStages, (max_shared - kBarrierBytes) / kStageBytes), attributes.ptxVersion >= 90};
}

void enqueue_prefill(const DeviceModel& model, const float* vectors, const PrefillScratch& scratch,
                     const PrefillSetup& setup, int n_blocks, int base, std::span<const int32_t> tokens,
                     CUstream_st* stream) {
    const int n = int(tokens.size());
    const PrefillArguments a = {model, vectors, scratch, n, base, setup.n_slots};
    // early: may start before the kernel before it has ended.
    const auto launch = [&](auto* kernel, int blocks, int threads, int shared, bool early, auto... arguments) {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(blocks);
        config.blockDim = dim3(threads);
        config.dynamicSmemBytes = shared;
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = early && setup.overlaps;
        cuda_check(cudaLaunchKernelEx(&config, kernel, a, arguments...), "starting prefill");
    };
    const auto norm = [&](Matrix which, int layer) {
        launch(prefill_norm, n, kMultiplyThreads, 0, true, which, layer);
    };
    const auto multiply = [&]<Matrix which>(int layer) {
        const int tiles = tiles_of(units_of(which, model.n_embd), parts_of(which), token_tiles_of(n));
        launch(prefill_multiply<which>, std::min(tiles, n_blocks), kGemmThreads,
               kBarrierBytes + setup.n_slots * kStageBytes, true, layer);
    };
    PrefillText text;
    std::copy(tokens.begin(), tokens.end(), text.token);
    launch(prefill_embed, n, kMultiplyThreads, 0, false, text);
    for (int layer = 0; layer < model.n_layer; ++layer) {
        norm(Matrix::c_attn, layer);
        multiply.operator()<Matrix::c_attn>(layer);
        if (layer + 1 == model.n_layer) break;
        launch(prefill_attention, (n + kTextGroup - 1) / kTextGroup * model.n_head, kAttentionThreads, kAttentionBytes,
               true, layer);
        multiply.operator()<Matrix::c_proj>(layer);
        norm(Matrix::c_fc, layer);
        multiply.operator()<Matrix::c_fc>(layer);
        multiply.operator()<Matrix::mlp_proj>(layer);
    }
}

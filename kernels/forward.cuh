// One pass of a model over 1 to 8 NT nodes of a tree: the file to read first.
//
//     x = wte[token] + wpe[position]
//     each layer:  x += c_proj(attention(c_attn(ln_1(x))));   x += mlp_proj(gelu(c_fc(ln_2(x))))
//     logits = lm_head(ln_f(x))
//
// One block a multiprocessor, all of the pass in one kernel. Matrix inputs, keys and values are rounded to fp16: x
// times LayerNorm's weight, attention's result, GELU's result, K, V. q, the softmax weights, the residual stream and
// the logits stay fp32, and so does every sum. decode/reference.cpp with Rounding::half is the twin on the CPU.
//
// Between two lines that exchange data across blocks stands a phase: arrive() when this block has written its share,
// wait() before the first read of what others wrote (phase_counter.cuh, exchange.cuh): five a layer, because LayerNorm
// needs none of its own (residual.cuh). Meanwhile the weights keep flowing into the ring (weight_ring.cuh), in exactly
// the order of the skinny_gemm calls below.
#pragma once

#include "kernels/embedding.cuh"
#include "kernels/gelu.cuh"
#include "kernels/skinny_gemm.cuh"
#include "kernels/tree_attention.cuh"

// Where a part's sum goes on its way to the block that gathers those of its rows.
__device__ inline uint64_t* part_word(const Scratch& s, int task, const Element& e) {
    return s.parts + (task * (kMaxNodes / 8) + e.tile) * kFragment + e.of_tile;
}

// The sum of all parts, of which this block's is `own`, in ascending order.
__device__ inline float gather_parts(const Scratch& s, const Element& e, float own, uint32_t number) {
    const int first = e.task / kSplit * kSplit;
    uint2 part[kSplit];
#pragma unroll
    for (int p = 0; p < kSplit; ++p)
        part[p] =
            first + p == e.task ? uint2{__float_as_uint(own), number} : ptx::load_word(part_word(s, first + p, e));
    Patience patience{s.failure};
    for (;;) {
        bool all = true;
#pragma unroll
        for (int p = 0; p < kSplit; ++p) all &= part[p].y == number;
        if (all) break;
        patience.turn(Wait::exchange);
#pragma unroll
        for (int p = 0; p < kSplit; ++p)
            if (part[p].y != number) part[p] = ptx::load_word(part_word(s, first + p, e));
    }
    float sum = __uint_as_float(part[0].x);
#pragma unroll
    for (int p = 1; p < kSplit; ++p) sum = __fadd_rn(sum, __uint_as_float(part[p].x));
    return sum;
}

// The input of a matrix behind LayerNorm, nodes first .. first + n - 1, with their means and scales, which nobody needs
// before the products are there.
template <int NT>
__device__ inline void collect_normal(const Block& b, const TaskMatrix& matrix, int first, int n, uint32_t number) {
    constexpr bool kWords = 8 * NT <= kWordNodes;
    using Of = Moments<kWords>;
    const int E = b.a.model.n_embd, warp = b.thread / 32;
    const auto collect = [&](const auto& meanwhile) {
        collect_input<kWords>(b, b.a.scratch.input, first * (E / 2), E / 2, n, E, number, meanwhile);
    };
    Of moments;
    const auto keep = [&](int node) {
        const int lane = b.thread % Of::kLanes;
        const float2 combined = moments.combine(b.a.model, lane);
        if (lane != 0) return;
        shared_state.mean[node] = combined.x;
        shared_state.scale[node] = combined.y;
    };
    if constexpr (kWords) {  // by the last warps, after the barrier if they have nothing to multiply
        const int node = kMultiplyWarps - 1 - warp;
        const auto take = [&] {
            if (node >= n) return;
            moments.load(b, first + node, number);
            keep(node);
        };
        const bool idle = Of::kIdleTake && warp >= matrix.units * b.a.pieces;
        collect([&] {
            if (!idle) take();
        });
        if (idle) take();
    } else {
        const int before = b.thread % 32 / Of::kLanes, own = warp * Of::kWarpNodes + before;  // in the warp, in all
        if (Of::kLoadEarly && own < n) moments.load(b, first + own, number);
        collect([&] {
#pragma unroll 1
            for (int node = own; node - before < n; node += kMultiplyWarps * Of::kWarpNodes) {
                if ((!Of::kLoadEarly || node > own) && node < n) moments.load(b, first + node, number);
                keep(node);
            }
        });
    }
}

// The pass; logits of its last n_logits nodes go to logit(row, node, value, value of row + 1), row even, node counted
// from the first of them. shared_state holds the nodes' tokens and depths.
template <int NT, class Logit>
__device__ inline void forward(Block& b, const DevicePass& pass, const Logit& logit) {
    constexpr bool kWords = 8 * NT <= kWordNodes;  // how results travel
    const PassArguments& a = b.a;
    const DeviceModel& m = a.model;
    const Scratch& s = a.scratch;
    const int E = m.n_embd, grid = gridDim.x;

    embed<kWords>(b, pass);
    b.phase.arrive(min(E / 16, grid), int(blockIdx.x) < E / 16, !kWords);

#pragma unroll 1
    for (int at = 0; at < kLayerMatrices * m.n_layer + (pass.n_logits > 0); ++at) {
        const auto number = [&] { return pass.number + 1 + at; };  // of this matrix's result
        // What follows from `kept` values is worked out anew, else it would fill the registers.
        b.thread = ptx::kept(threadIdx.x);
        if (matrix_kind(a, at) == Matrix::c_proj) {
            tree_attention<kWords>(b, pass, at / kLayerMatrices, number() - 1, number());
            b.thread = ptx::kept(threadIdx.x);
        }
        const int kept_at = ptx::kept(at), layer = kept_at / kLayerMatrices;
        const Matrix which = matrix_kind(a, kept_at);
        const TaskMatrix matrix = task_matrix(a, kept_at);
        const bool has_work = matrix.units > 0;
        const int first = which == Matrix::head ? pass.n - pass.n_logits : 0, n = pass.n - first;  // nodes

        const auto x_of = [&](const Element& e) {  // of the 16 columns that c_proj or mlp_proj adds to
            return e.node < n ? load_x<kWords>(a, e.node, e.task / matrix.parts, e.row) : uint2{};
        };
        uint2 x_ahead = {};  // of the thread's first element, for c_proj
        if (has_work) {
            const bool early = loads_x_early() && which == Matrix::c_proj;
            const auto look_ahead = [&] { x_ahead = x_of(first_element<NT>(b, matrix)); };
            if (kWords && early) look_ahead();
            b.phase.wait(!kWords);
            if (which == Matrix::c_proj)
                collect_input<kWords>(b, s.attention, 0, E / 2, n, E, number(), [&] {
                    if (!kWords && early) look_ahead();
                });
            else if (which == Matrix::mlp_proj)  // a block's tasks share a part of the columns
                collect_input<kWords>(b, s.mlp, matrix.first_task % kSplit * (E / 2), 2 * E, n, E, number() - 1, [] {});
            else
                collect_normal<NT>(b, matrix, first, n, number() - 1);
        }

        const bool publish = which == Matrix::head || !kWords;
        const auto result = [&](const Element& e, float sum, bool is_first) {
            const bool there = e.node < n;
            const auto& vectors = shared_state.vectors[e.unit];
            if (which == Matrix::c_proj || which == Matrix::mlp_proj) {
                if (which == Matrix::mlp_proj && !gathers(e.task)) {
                    ptx::store_word(part_word(s, e.task, e), __float_as_uint(sum), number());
                    return;
                }
                const uint2 loaded = loads_x_early() && which == Matrix::c_proj && is_first ? x_ahead : x_of(e);
                if (which == Matrix::mlp_proj) sum = gather_parts(s, e, sum, number());
                const int unit = e.task / matrix.parts;
                float x = 0;
                if (there) x = x_value<kWords>(a, loaded, e.node, unit, e.row, number() - 2);
                __syncwarp();
                x = __fadd_rn(x, __fadd_rn(sum, vectors[0][e.row]));
                publish_x<kWords>(a, there, e.node, unit, e.row, x, vectors[1][e.row], number());
                return;
            }
            const float low = normalised(sum, vectors[0][e.row], vectors[1][e.row], shared_state.mean[e.node],
                                         shared_state.scale[e.node]),
                        high = __shfl_down_sync(~0u, low, 1);
            if (!there || e.row % 2) return;
            const int r = e.task * 16 + e.row;
            if (which == Matrix::head) {
                logit(r, e.node, low, high);
            } else if (which == Matrix::c_fc) {
                put<kWords>(s.mlp, (e.node * 4 * E + fragment_column(r)) / 2, pack_halves(gelu(low), gelu(high)),
                            number());
            } else if (r < E) {
                put_two<kWords>(s.qkv, e.node * (kWords ? 2 * E : E) + r, low, high, number());
            } else {  // to the nodes' rows of the cache, as words also to this pass's nodes
                const int values = r >= 2 * E, column = r - E - values * E;
                const uint32_t halves = pack_halves(low, high);
                if (kWords) ptx::store_word(s.qkv.word + e.node * 2 * E + (r + E) / 2, halves, number());
                uint16_t* row = m.kv_row(layer, values, column / kHeadSize, pass.slot_rows + pass.first + e.node);
                *reinterpret_cast<uint32_t*>(row + column % kHeadSize) = halves;
            }
        };
        // The stream pauses before an arrival that publishes, but not while parts are on their way.
        const bool pause = publish && which != Matrix::mlp_proj;
        skinny_gemm<NT>(b, matrix, n, pause ? Doing::arriving : Doing::waiting, result);
        if (which != Matrix::head) b.phase.arrive(min(a.matrix[int(which)].n_tasks, grid), has_work, publish);
    }
}

// One pass of a model over 1 to W nodes of a tree: the file to read first.
//
//     x = wte[token] + wpe[position]
//     each layer:  x += c_proj(attention(c_attn(ln_1(x))));   x += mlp_proj(gelu(c_fc(ln_2(x))))
//     logits = lm_head(ln_f(x))
//
// One block a multiprocessor, all of the pass in one kernel. Matrix inputs, keys and values are rounded to fp16: x
// times LayerNorm's weight, attention's result, GELU's result, K, V. q, the softmax weights, the residual stream and
// the logits stay fp32, and so does every sum. decode/reference.cpp with Rounding::half is the twin on the CPU.
//
// Between two lines that exchange data across blocks each waits for what the others write (exchange.cuh): five times a
// layer, because LayerNorm needs no exchange of its own (residual.cuh). Meanwhile the weights keep flowing into the
// ring (weight_ring.cuh), in exactly the order of the skinny_gemm calls below.
//
// From one exchange to the next it is a chain of short steps that all warps of a block take together, so what counts in
// them are dependent instructions and taken branches, some 30 cycles each, not bytes or products.
#pragma once

#include "kernels/embedding.cuh"
#include "kernels/gelu.cuh"
#include "kernels/skinny_gemm.cuh"
#include "kernels/tree_attention.cuh"

constexpr int kPartWords = 16 * 8;  // of a column tile

// Where a part's sum goes on its way to the block that gathers those of its rows.
__device__ inline uint64_t* part_word(const Scratch& s, int task, const Element& e) {
    return s.parts + (task * (kMaxNodes / 8) + e.tile) * kPartWords + e.of_tile;
}

// The sum of all parts, of which this block's is `own`, in ascending order.
__device__ inline float gather_parts(const Scratch& s, const Element& e, float own, uint32_t number) {
    const int first = e.task / kSplit * kSplit;
    uint2 part[kSplit];
#pragma unroll
    for (int p = 0; p < kSplit; ++p)
        part[p] =
            first + p == e.task ? uint2{__float_as_uint(own), number} : ptx::load_word(part_word(s, first + p, e));
    wait_for_all(
        s.failure, part, [&](const uint2& word) { return word.y == number; },
        [&](int p) { return ptx::load_word(part_word(s, first + p, e)); });
    float sum = __uint_as_float(part[0].x);
#pragma unroll
    for (int p = 1; p < kSplit; ++p) sum = __fadd_rn(sum, __uint_as_float(part[p].x));
    return sum;
}

// The input of a matrix behind LayerNorm in a pass of one node, with its mean and scale, which nobody needs before the
// products are there: by the last warp, after the barrier if it has nothing to multiply.
__device__ inline void collect_normal(const Block& b, const TaskMatrix& matrix, uint32_t number) {
    const int warp = b.thread / 32;
    const bool idle = warp >= matrix.units * b.a.pieces;
    const auto take = [&] {
        if (warp != kMultiplyWarps - 1) return;
        Moments moments = {};
        moments.collect_words(b, number);
        const float2 normal = moments.combine(b.a.model, b.thread % 32);
        if (b.thread % 32 == 0) keep_normal(0, normal);
    };
    collect_words(b, b.a.scratch.input[0], 0, b.a.model.n_embd, number, [&] {
        if (!idle) take();
    });
    if (idle) take();
}

// The greatest of a node's 16 logits of a task, NaN left out, in the lanes of even rows, which have their own row's and
// the next one's. By whole warps: a half-warp has the 16 rows of a node. Rows beyond the vocabulary don't count.
__device__ inline float greatest_of_16(const Block& b, const Element& e, float low, float high) {
    const int rows = b.a.model.n_vocab - (e.task * 16 + e.row);  // from this one on
    float greatest = fmaxf(rows > 0 ? low : -INFINITY, rows > 1 ? high : -INFINITY);
    greatest = fmaxf(greatest, -INFINITY);
#pragma unroll
    for (int apart = 2; apart < 16; apart *= 2) greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, apart));
    return greatest;
}

// Whether blocks look for a matrix's input at once rather than when the phase counter tells them: what they ask in vain
// delays the others, so it pays where the answer is near or short. Measured by width on an H200.
HD constexpr bool looks_at_once(Matrix which, int width) {
    return which == Matrix::c_proj || (which == Matrix::mlp_proj && width != 32) ||
           (which == Matrix::c_fc && width != 16 && width != 32);
}
// Whether anybody asks how many blocks are done with a matrix.
HD constexpr bool is_counted(Matrix which, int width) {
    return which != Matrix::head && !looks_at_once(Matrix((int(which) + 1) % kLayerMatrices), width);
}

// The pass; logits of its last n_logits nodes go to logit(row, node, value, value of row + 1, greatest), row even, node
// counted from the first of them; greatest: of the 16 rows that row stands among. shared_state holds the nodes' tokens
// and depths.
template <int W, class Logit>
__device__ inline void forward(Block& b, const DevicePass& pass, const Logit& logit) {
    constexpr bool kWords = W == 1;  // how results travel
    const PassArguments& a = b.a;
    const DeviceModel& m = a.model;
    const Scratch& s = a.scratch;
    const int E = m.n_embd, grid = gridDim.x;

    embed<kWords>(b, pass);
    b.phase.arrive(min(E / 16, grid), int(blockIdx.x) < E / 16, false);

    // Kept in registers where there are some left: from shared memory they take a while, four times a layer.
    constexpr bool kKept = W <= kNarrow;
    const auto n_matrices = [&] { return kLayerMatrices * m.n_layer + (pass.n_logits > 0); };
    const int kept_matrices = n_matrices();
    const uint32_t kept_number = pass.number + 1;
#pragma unroll 1
    for (int at = 0; at < (kKept ? kept_matrices : n_matrices()); ++at) {
        const auto number = [&] { return (kKept ? kept_number : pass.number + 1) + at; };  // of this matrix's result
        // What follows from `kept` values is worked out anew, else it would fill the registers.
        b.thread = ptx::kept(threadIdx.x);
        if (Matrix(uint32_t(at) % kLayerMatrices) == Matrix::c_proj) {  // the head stands at a multiple of 4
            if constexpr (W <= kNarrow)
                spread_attention<W>(b, pass, layer_of(at), number() - 1, number());
            else
                tree_attention(b, pass, layer_of(at), number());
            b.thread = ptx::kept(threadIdx.x);
        }
        at = ptx::kept(at);
        const int layer = layer_of(at);
        const Matrix which = matrix_kind(a, at);
        const TaskMatrix matrix = task_matrix(a, at);
        const bool has_work = matrix.units > 0;
        const int first = W > 1 && which == Matrix::head ? pass.n - pass.n_logits : 0,
                  n = W == 1 ? 1 : pass.n - first;  // nodes

        const int half = which == Matrix::c_fc || which == Matrix::mlp_proj;  // of the layer
        const auto exchange = [&](uint32_t of, int ahead = 0) {               // of this layer or the next
            return Exchange{of, kWords ? 0 : a.layer_rows[ptx::kept(layer + ahead)]};
        };
        const auto x_of = [&](const Element& e) {  // of the 16 columns that c_proj or mlp_proj adds to
            if (e.node >= n) return uint2{};
            return load_x<kWords>(a, half, exchange(0), e.node, unit_of(e.task, matrix) * 16 + e.row);
        };
        uint2 x_ahead = {};  // of the thread's first element, loaded before c_proj multiplies
        const bool early = registers_to_spare() && which == Matrix::c_proj;
        if (has_work) {
            if (early) x_ahead = x_of(first_element<W>(b, matrix));
            // A block's tasks of mlp_proj share a part of the columns.
            const int part = matrix.first_task % kSplit * (E / 2);
            if constexpr (kWords) {
                if (!looks_at_once(which, W)) b.phase.wait(false);
                if (which == Matrix::c_proj)
                    collect_words(b, s.attention, 0, E, number(), [] {});
                else if (which == Matrix::mlp_proj)
                    collect_words(b, s.mlp, part, E, number() - 1, [] {});
                else
                    collect_normal(b, matrix, number() - 1);
            } else {
                const auto wait = [&] {
                    if (!looks_at_once(which, W)) b.phase.wait(false, 3);
                };
                if (which == Matrix::c_proj || which == Matrix::mlp_proj)
                    collect_rows<W>(b, half ? s.mlp : s.attention, nullptr, exchange(0), 0, n, half ? part : 0, wait);
                else
                    collect_rows<W>(b, s.input[half], &s.moments[half], exchange(0), first, n, 0, wait);
            }
        }

        const auto result = [&](const Element& e, float sum, bool is_first) {
            const bool there = e.node < n;
            const auto& vectors = shared_state.vectors[e.held];
            if (which == Matrix::c_proj || which == Matrix::mlp_proj) {
                if (which == Matrix::mlp_proj && !gathers(e.task)) {
                    ptx::store_word(part_word(s, e.task, e), __float_as_uint(sum), number());
                    return;
                }
                const uint2 loaded = early && is_first ? x_ahead : x_of(e);
                if (which == Matrix::mlp_proj) sum = gather_parts(s, e, sum, number());
                const int unit = unit_of(e.task, matrix);
                float x = 0;
                if (there) x = x_value<kWords>(a, loaded, half, exchange(number() - 2), e.node, unit * 16 + e.row);
                __syncwarp();
                x = __fadd_rn(x, __fadd_rn(sum, vectors[0][e.row]));
                publish_x<kWords>(a, 1 - half, exchange(number(), half), there, e.node, unit, e.row, x,
                                  vectors[1][e.row]);
                return;
            }
            const float low = normalised(sum, vectors[0][e.row], vectors[1][e.row], shared_state.mean[e.node],
                                         shared_state.scale[e.node]),
                        high = __shfl_down_sync(~0u, low, 1);
            const float greatest = which == Matrix::head ? greatest_of_16(b, e, low, high) : low;
            if (!there || e.row % 2) return;
            const int r = e.task * 16 + e.row;
            if (which == Matrix::head) {
                logit(r, e.node, low, high, greatest);
            } else if (which == Matrix::c_fc) {
                put<kWords>(a, s.mlp, exchange(number()), e.node, fragment_column(r) / 2,
                            pack_halves(gelu(low), gelu(high)));
            } else if (r < E) {
                if (W <= kNarrow)
                    ptx::store_words(s.qkv.word + e.node * 2 * E + r, __float_as_uint(low), __float_as_uint(high),
                                     number());
                else
                    put_two<false>(a, s.qkv, exchange(0), e.node, r, low, high);
            } else {  // to the nodes' rows of the cache, and to this pass's nodes
                const int values = r >= 2 * E, column = r - E - values * E;
                const uint32_t halves = pack_halves(low, high);
                if (W <= kNarrow)
                    ptx::store_word(s.qkv.word + e.node * 2 * E + (r + E) / 2, halves, number());
                else
                    put<false>(a, s.qkv, exchange(0), e.node, (r + E) / 2, halves);
                uint16_t* row = m.kv_row(layer, values, column / kHeadSize, pass.slot_rows + pass.first + e.node);
                *reinterpret_cast<uint32_t*>(row + column % kHeadSize) = halves;
            }
        };
        skinny_gemm<W>(b, matrix, n, which == Matrix::head, result);  // where an arrival follows that publishes
        const int workers = min(a.matrix[int(which)].n_tasks, grid);
        const bool worked = registers_to_spare() ? has_work : task_matrix(a, ptx::kept(at)).units > 0;
        if (is_counted(which, W)) b.phase.arrive(workers, worked, false);
        if (!kWords && which == Matrix::c_fc && has_work && layer > 0)
            clear_rows(b, a.layer_rows[layer - 1], n, matrix.first_task, workers);
    }
}

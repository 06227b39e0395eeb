// One pass of a model over 1 to 8 NT nodes of a tree: the file to read first.
//
//     x = wte[token] + wpe[position]
//     each layer:  x += c_proj(attention(c_attn(ln_1(x))));   x += mlp_proj(gelu(c_fc(ln_2(x))))
//     logits = lm_head(ln_f(x))
//
// One block a multiprocessor, all of the pass in one kernel. Matrix inputs, keys and values are rounded to fp16:
// LayerNorm's result, attention's result, GELU's result, K, V. q, the softmax weights, the residual stream and the
// logits stay fp32, and so does every sum. decode/reference.cpp with Rounding::half is the twin on the CPU.
//
// Between two lines that exchange data across blocks stands a phase: arrive() when this block has written its share,
// wait() before the first read of what others wrote (phase_counter.cuh, exchange.cuh). Meanwhile the weights keep
// flowing into the ring (weight_ring.cuh), in exactly the order of the skinny_gemm calls below.
//
// The residual stream never leaves shared memory: in a pass of one node every block keeps it and repeats LayerNorm; in
// wider ones block i mod grid keeps node i's and normalises it for all.
#pragma once

#include "kernels/embedding.cuh"
#include "kernels/gelu.cuh"
#include "kernels/layer_norm.cuh"
#include "kernels/skinny_gemm.cuh"
#include "kernels/tree_attention.cuh"

// Where c_proj's and mlp_proj's results of a layer stand.
__device__ inline uint64_t* proj_words(const PassArguments& a, int layer) {
    return a.scratch.proj + layer % 2 * kMaxNodes * a.model.n_embd;
}
__device__ inline uint64_t* mlp_proj_words(const PassArguments& a, int layer) {
    return a.scratch.mlp_proj + layer % 2 * kSplit * kMaxNodes * a.model.n_embd;
}

// Whether the launch is for passes of one node, which every block then keeps.
__device__ inline bool single(const PassArguments& a) {
    return a.matrix[int(Matrix::mlp_proj)].units > 1;
}

// LayerNorm of the nodes first..n-1 before a matrix into rows 0.. of the block's input, after adding the branch before
// it to x. number: of the matrix's result. needed: this block multiplies the result.
template <bool words>
__device__ inline void normalise(Block& b, const DevicePass& pass, Matrix which, int layer, int first, uint32_t number,
                                 bool needed) {
    const PassArguments& a = b.a;
    const int n = pass.n, E = a.model.n_embd;
    const bool after_mlp = which != Matrix::c_fc;
    Branch branch = {after_mlp ? mlp_proj_words(a, layer - 1) : proj_words(a, layer),
                     after_mlp ? (layer == 0                                   ? 0
                                  : a.matrix[int(Matrix::mlp_proj)].units == 1 ? kSplit
                                                                               : 1)
                               : 1,
                     uint32_t(kMaxNodes * E), number - 1};
    norm_prefetch(b, norm_parameters(a.model, which, layer), E);
    const bool worker = single(a) || int(blockIdx.x) < n;
    if (worker) b.phase.wait(false);
    if (single(a)) {
        uint32_t* to = reinterpret_cast<uint32_t*>(b.input(0));
        add_and_normalise(b, b.x(0), branch, [&](int word, uint32_t halves) { to[word] = halves; });
        block_barrier();
        return;
    }
    const uint64_t* parts = branch.part;
    if (!words && worker && threadIdx.x == 0) set_doing(Doing::arriving);
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        branch.part = parts + i * E;
        add_and_normalise(b, b.x(i / gridDim.x), branch, [&](int word, uint32_t halves) {
            put<words>(a.scratch.input, i * (E / 2) + word, halves, number);
        });
    }
    if (worker) block_barrier();
    b.phase.arrive(min(n, int(gridDim.x)), worker, !words);
    if (!needed) return;
    b.phase.wait(!words);
    collect_input<words>(b, a.scratch.input, first * (E / 2), E / 2, n - first, E, number);
}

// The pass; logits of its last n_logits nodes go to logit(row, node, value, value of row + 1), row even, node counted
// from the first of them. shared_state holds the nodes' tokens and depths.
template <int NT, class Logit>
__device__ inline void forward(Block& b, const DevicePass& pass, const Logit& logit) {
    constexpr bool kWords = NT == 1;  // how matrix inputs travel
    const PassArguments& a = b.a;
    const DeviceModel& m = a.model;
    const Scratch& s = a.scratch;
    const int n = pass.n, E = m.n_embd, n_blocks = E / 16, grid = gridDim.x;

    for (int i = single(a) ? 0 : blockIdx.x; i < n; i += grid)
        embed(m, shared_state.token[i], pass.base + shared_state.depth[i], b.x(single(a) ? 0 : i / grid));

    const int n_matrices = kLayerMatrices * m.n_layer + (pass.n_logits > 0);
#pragma unroll 1
    for (int at = 0; at < n_matrices; ++at) {
        b.thread = ptx::kept(threadIdx.x);  // what follows from it is worked out anew, else it would fill the registers
        const int layer = at / kLayerMatrices;
        const Matrix which = matrix_kind(a, at);
        const TaskMatrix matrix = task_matrix(a, at);
        const uint32_t number = pass.number + at;  // of this matrix's result
        const bool has_work = matrix.has_work();
        int first = 0, loaded = -1;  // first node; the part of K that the input holds

        switch (which) {
            case Matrix::head:
                first = n - pass.n_logits;
                [[fallthrough]];
            case Matrix::c_attn:
            case Matrix::c_fc:  // c_attn(ln_1(x)), c_fc(ln_2(x)), lm_head(ln_f(x)), where x takes in the branch before
                normalise<kWords>(b, pass, which, layer, first, number, has_work);
                break;
            case Matrix::c_proj:
                tree_attention<kWords>(b, pass, layer, number - 1, number);
                if (!has_work) break;
                b.phase.wait(!kWords);
                collect_input<kWords>(b, s.attention, 0, E / 2, n, E, number);
                break;
            case Matrix::mlp_proj:
                if (!has_work) break;
                b.phase.wait(!kWords);
                if (single(a)) collect_input<true>(b, s.mlp, 0, E / 2, kSplit, E, number - 1);
        }

        const bool publish = which == Matrix::head || (!kWords && which == Matrix::c_fc);
        skinny_gemm<NT>(
            b, matrix, n_blocks, n - first, publish ? Doing::arriving : Doing::waiting,
            [&](int task) {
                if (which != Matrix::mlp_proj || single(a)) return;
                const int part = task % kSplit;  // a block's tasks mostly share it
                if (part == loaded) return;
                if (loaded >= 0) block_barrier();  // the input has been read
                collect_input<kWords>(b, s.mlp, part * (E / 2), 2 * E, n, E, number - 1);
                loaded = part;
            },
            [&](int task, uint32_t row, int node, float low, float high) {
                const int r = task * 16 + row;
                if (which == Matrix::head) {
                    logit(r, node, low, high);
                } else if (which == Matrix::c_attn) {
                    uint64_t* to = s.qkv + node * 2 * E;
                    if (r < E) {
                        ptx::store_words(to + r, __float_as_uint(low), __float_as_uint(high), number);
                    } else {  // to this pass's nodes and to the nodes' rows of the cache
                        const int values = r >= 2 * E, column = r - E - values * E;
                        const uint32_t halves = pack_halves(low, high);
                        ptx::store_word(to + E + (values * E + column) / 2, halves, number);
                        uint16_t* row = m.kv_row(layer, values, column / kHeadSize, pass.slot_rows + pass.first + node);
                        *reinterpret_cast<uint32_t*>(row + column % kHeadSize) = halves;
                    }
                } else if (which == Matrix::c_fc) {
                    put<kWords>(s.mlp, (node * 4 * E + task * 16 + fragment_column(row)) / 2,
                                pack_halves(gelu(low), gelu(high)), number);
                } else {
                    uint64_t* to = which == Matrix::c_proj ? proj_words(a, layer) + node * E + r
                                   : single(a)             ? mlp_proj_words(a, layer) + r
                                               : mlp_proj_words(a, layer) + (task % kSplit * kMaxNodes + node) * E +
                                                     task / kSplit * 16 + row;
                    ptx::store_words(to, __float_as_uint(low), __float_as_uint(high), number);
                }
            });
        if (which != Matrix::head) b.phase.arrive(min(matrix.n_tasks, grid), has_work, publish);
    }
}

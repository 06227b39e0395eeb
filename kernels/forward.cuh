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
__device__ inline Rows proj_rows(const PassArguments& a, int layer) {
    return a.scratch.proj.set(layer % 2, a.model.n_embd);
}
__device__ inline Rows mlp_proj_rows(const PassArguments& a, int layer, int part) {
    return a.scratch.mlp_proj.set(layer % 2 * kSplit + part, a.model.n_embd);
}

// Whether the launch is for passes of one node, which every block then keeps.
__device__ inline bool single(const PassArguments& a) {
    return a.most == 1;
}

// LayerNorm of the nodes first..n-1 before a matrix into rows 0.. of the block's input, after adding the branch before
// it to x. number: of the matrix's result. needed: this block multiplies the result.
template <bool words>
__device__ inline void normalise(Block& b, const DevicePass& pass, Matrix which, int layer, int first, uint32_t number,
                                 bool needed) {
    const PassArguments& a = b.a;
    const int n = pass.n, E = a.model.n_embd;
    Branch branch = {proj_rows(a, layer), 1, 0, number - 1};
    if (which != Matrix::c_fc) {
        branch.part = mlp_proj_rows(a, layer - 1, 0);
        branch.n_parts = layer == 0 ? 0 : kSplit;
    }
    norm_prefetch(b, norm_parameters(a.model, which, layer), E);
    const bool here = single(a);  // the result stays in the block
    const bool worker = here || int(blockIdx.x) < n;
    if (worker) b.phase.wait(!words);
    if (!words && worker && threadIdx.x == 0) set_doing(Doing::arriving);
#pragma unroll 1
    for (int i = here ? 0 : blockIdx.x; i < n; i += gridDim.x) {
        branch.node = i;
        add_and_normalise<words>(b, b.x(here ? 0 : i / gridDim.x), branch, [&](int at, uint32_t halves) {
            if (here)
                reinterpret_cast<uint32_t*>(b.input(0))[at] = halves;
            else
                put<words>(a.scratch.input, i * (E / 2) + at, halves, number);
        });
    }
    if (worker) block_barrier();
    if (here) return;
    b.phase.arrive(min(n, int(gridDim.x)), worker, !words);
    if (!needed) return;
    b.phase.wait(!words);
    collect_input<words>(b, a.scratch.input, first * (E / 2), E / 2, n - first, E, number);
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

#pragma unroll 1
    for (int i = single(a) ? 0 : blockIdx.x; i < pass.n; i += grid)
        embed(m, shared_state.token[i], pass.base + shared_state.depth[i], b.x(single(a) ? 0 : i / grid));

#pragma unroll 1
    for (int at = 0; at < kLayerMatrices * m.n_layer + (pass.n_logits > 0); ++at) {
        b.thread = ptx::kept(threadIdx.x);  // what follows from it is worked out anew, else it would fill the registers
        const int layer = at / kLayerMatrices;
        const Matrix which = matrix_kind(a, at);
        const TaskMatrix matrix = task_matrix(a, at);
        const auto number = [&] { return pass.number + at; };  // of this matrix's result
        const bool has_work = matrix.units > 0;
        const auto part = [&] {
            return matrix.first_task % kSplit;
        };  // of mlp_proj's columns: a block's tasks share it
        const int first = which == Matrix::head ? pass.n - pass.n_logits : 0;  // node

        switch (which) {
            case Matrix::head:
            case Matrix::c_attn:
            case Matrix::c_fc:  // c_attn(ln_1(x)), c_fc(ln_2(x)), lm_head(ln_f(x)), where x takes in the branch before
                normalise<kWords>(b, pass, which, layer, first, number(), has_work);
                break;
            case Matrix::c_proj:
                tree_attention<kWords>(b, pass, layer, number() - 1, number());
                if (!has_work) break;
                b.phase.wait(!kWords);
                collect_input<kWords>(b, s.attention, 0, E / 2, pass.n, E, number());
                break;
            case Matrix::mlp_proj:
                if (!has_work) break;
                b.phase.wait(!kWords);
                collect_input<kWords>(b, s.mlp, part() * (E / 2), 2 * E, pass.n, E, number() - 1);
        }

        const bool publish = which == Matrix::head || !kWords;
        skinny_gemm<NT>(b, matrix, pass.n - first, publish ? Doing::arriving : Doing::waiting,
                        [&](int task, uint32_t row, int node, float low, float high) {
                            const int r = task * 16 + row;
                            if (which == Matrix::head) {
                                logit(r, node, low, high);
                            } else if (which == Matrix::c_attn) {
                                if (r < E) {
                                    put_two<kWords>(s.qkv, node * (kWords ? 2 * E : E) + r, low, high, number());
                                } else {  // to the nodes' rows of the cache, as words also to this pass's nodes
                                    const int values = r >= 2 * E, column = r - E - values * E;
                                    const uint32_t halves = pack_halves(low, high);
                                    if (kWords)
                                        ptx::store_word(s.qkv.word + node * 2 * E + (r + E) / 2, halves, number());
                                    uint16_t* row =
                                        m.kv_row(layer, values, column / kHeadSize, pass.slot_rows + pass.first + node);
                                    *reinterpret_cast<uint32_t*>(row + column % kHeadSize) = halves;
                                }
                            } else if (which == Matrix::c_fc) {
                                put<kWords>(s.mlp, (node * 4 * E + fragment_column(r)) / 2,
                                            pack_halves(gelu(low), gelu(high)), number());
                            } else if (which == Matrix::c_proj) {
                                put_two<kWords>(proj_rows(a, layer), node * E + r, low, high, number());
                            } else {
                                put_two<kWords>(mlp_proj_rows(a, layer, part()), node * E + task / kSplit * 16 + row,
                                                low, high, number());
                            }
                        });
        if (which != Matrix::head) b.phase.arrive(min(a.matrix[int(which)].n_tasks, grid), has_work, publish);
    }
}

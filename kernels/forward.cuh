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
// wait() before the first read of what others wrote (phase_counter.cuh). Meanwhile the weights keep flowing into the
// ring (weight_ring.cuh), in exactly the order of the skinny_gemm calls below.
//
// The residual stream never leaves shared memory: narrow passes keep all nodes' in every block and repeat LayerNorm
// there; wide ones keep node i's in block i mod grid, which normalises it for all.
#pragma once

#include "kernels/embedding.cuh"
#include "kernels/gelu.cuh"
#include "kernels/layer_norm.cuh"
#include "kernels/skinny_gemm.cuh"
#include "kernels/tree_attention.cuh"

// LayerNorm of the nodes first..n-1 into rows 0.. of the block's input, after adding a branch's parts (n_parts 0: none)
// to x. Waits for the parts. needed: this block multiplies the result.
__device__ inline void normalise(Block& b, const DevicePass& pass, int first, const NormParameters& parameters,
                                 const float* parts, int n_parts, bool needed) {
    const PassArguments& a = b.a;
    const int n = pass.n, E = a.model.n_embd, grid = gridDim.x;
    const bool everywhere = n <= a.pace.normalise_everywhere;
    const bool worker = everywhere || int(blockIdx.x) < n;
    norm_prefetch(b, parameters, E);
    if (worker) b.phase.wait();
    ptx::copies_wait();
    const int step = everywhere ? 1 : grid;
#pragma unroll 1
    for (int i = everywhere ? first : blockIdx.x, row = 0; i < n; i += step) {
        uint16_t* out = b.input(everywhere ? row : 0);
        add_and_normalise(b, E, a.model.epsilon, b.x(everywhere ? i : row), parts + i * E, n_parts, kMaxNodes * E, out);
        ++row;
        block_barrier();
        if (everywhere) continue;
        for (int at = threadIdx.x; at < E / 8; at += kMultiplyThreads)
            reinterpret_cast<uint4*>(a.scratch.input + i * E)[at] = reinterpret_cast<const uint4*>(out)[at];
        block_barrier();
    }
    if (everywhere) return;
    b.phase.arrive(min(n, grid), worker);
    if (!needed) return;
    b.phase.wait();
    load_input(b, a.scratch.input + first * E, E, n - first, E);
}

// The pass; logits of its last n_logits nodes go to logit(row, node, value), node counted from the first of them.
// Leaves with the head's phase not yet arrived at. shared_state holds the nodes' tokens and depths.
//
template <int NT, class Logit>
__device__ inline void forward(Block& b, const DevicePass& pass, const Logit& logit) {
    const PassArguments& a = b.a;
    const DeviceModel& m = a.model;
    const Scratch& s = a.scratch;
    const int n = pass.n, E = m.n_embd, n_blocks = E / 16, grid = gridDim.x;
    const bool everywhere = n <= a.pace.normalise_everywhere;

    for (int i = everywhere ? 0 : blockIdx.x; i < n; i += everywhere ? 1 : grid)
        embed(m, shared_state.token[i], pass.base + shared_state.depth[i], b.x(everywhere ? i : i / grid));

    const int n_matrices = kLayerMatrices * m.n_layer + (pass.n_logits > 0);
#pragma unroll 1
    for (int at = 0; at < n_matrices; ++at) {
        const int layer = at / kLayerMatrices;
        const Matrix which = matrix_kind(m, at);
        const TaskMatrix matrix = task_matrix(m, at);
        const bool has_work = matrix.has_work(), normalised = which != Matrix::c_proj && which != Matrix::mlp_proj;
        int first = 0, loaded = 0;

        if (normalised) {
            // c_attn(ln_1(x)), c_fc(ln_2(x)), lm_head(ln_f(x)), where x takes in the branch before.
            if (which == Matrix::head) first = n - pass.n_logits;
            const bool after_mlp = which != Matrix::c_fc;
            normalise(b, pass, first, norm_parameters(m, at), after_mlp ? s.mlp_proj : s.proj,
                      at == 0     ? 0
                      : after_mlp ? kSplit
                                  : 1,
                      has_work);
        } else {
            if (which == Matrix::c_proj) tree_attention(b, pass, layer, s.q, s.input);
            loaded = -1;
            if (has_work) b.phase.wait();
        }

        skinny_gemm<NT>(
            b, matrix, n_blocks, n - first,
            [&](int task) {
                // mlp_proj's task i is part i mod 4 of K, so that a block's tasks mostly share their input.
                const int part = which == Matrix::mlp_proj ? task % kSplit : 0;
                if (normalised || part == loaded) return;
                if (loaded >= 0) block_barrier();  // the input has been read
                if (which == Matrix::mlp_proj)
                    load_input(b, s.mlp + part * E, 4 * E, n, E);
                else
                    load_input(b, s.input, E, n, E);
                loaded = part;
            },
            [&](int task, int row, int node, float value) {
                const int r = task * 16 + row;
                if (which == Matrix::head) {
                    logit(r, node, value);
                } else if (which == Matrix::c_attn && r >= E) {  // keys and values go to the nodes' rows of the cache
                    const int values = r >= 2 * E, column = r - E - values * E;
                    uint16_t* to = m.kv_row(layer, values, column / kHeadSize, pass.slot_rows + pass.first + node);
                    to[column % kHeadSize] = __half_as_ushort(__float2half_rn(value));
                } else if (which == Matrix::c_fc) {
                    s.mlp[node * 4 * E + fragment_column(r)] = __half_as_ushort(__float2half_rn(gelu(value)));
                } else {
                    float* to = which == Matrix::c_attn ? s.q + node * E + r
                                : which == Matrix::c_proj
                                    ? s.proj + node * E + r
                                    : s.mlp_proj + (task % kSplit * kMaxNodes + node) * E + task / kSplit * 16 + row;
                    *to = value;
                }
            });
        if (which == Matrix::head) break;
        const bool all = everywhere && normalised;  // blocks without tasks read the parts too
        b.phase.arrive(all ? grid : matrix.workers(), all || has_work);
    }
}

// out(row, node) = sum over k of weight(row, k) input(node, k): weights are the A operand of mma.m16n8k16, the nodes of
// a pass the columns of B, 8 NT of them, fp32 sums.
//
// A unit is 16 rows by n_embd columns, which come in pieces of up to 20 fragment blocks (weight_ring.cuh). A warp
// multiplies a piece by 8 or 16 nodes on its own: the blocks i mod 4 = 0, 1, 2, 3 into a sum each, in ascending order,
// then (sum 0 + sum 1) + (sum 2 + sum 3). When the warps meet, one thread adds the pieces of an element in ascending
// order. This order is the same for every NT, grid and occupancy, and an element never meets another column, so a
// node's result does not depend on the pass. Nobody reads the results of columns beyond the pass: they repeat its last
// node or multiply whatever lies in shared memory.
//
// Why so: a warp that shares each sum with others waits for them in every unit; here the warps meet once a matrix (once
// a unit where shared memory is short), and the pieces of all a block's units are multiplied side by side.
//
// Bytes: 32 n_embd from the ring a unit, twice that for 32 nodes and four times for 64; 16 n_embd NT of input from
// shared memory; 512 NT of partial sums a piece.
#pragma once

#include "kernels/block.cuh"

constexpr int kFragment = 16 * 8;  // floats: 16 rows of a column tile, which is how the lanes hold them

// Column tiles of a warp in passes of NT of them, and warps that read a piece.
HD constexpr int warp_tiles(int NT) {
#if __CUDA_ARCH__ >= 900
    constexpr int kMost = 2;
#else
    constexpr int kMost = 1;  // ptxas needs more registers there
#endif
    return NT < kMost ? NT : kMost;
}
HD constexpr int weight_readers(int NT) {
    return NT / warp_tiles(NT);
}

// A warp's sums of the piece at `at`, `quads` times 4 blocks, by kTiles column tiles. input: shared address of this
// lane's first fragment of B. sum: fragments of d.
template <int kTiles>
__device__ inline void multiply_piece(const Block& b, Ring::Position at, int quads, uint32_t input,
                                      float (&sum)[kTiles][4]) {
    const uint32_t column_tile = 8 * b.a.shared.input_stride * 2;  // bytes
    const uint32_t from = b.ring.slot(at) + b.thread % 32 * 16;
    float part[4][kTiles][4] = {};
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
        if (quad >= quads) break;
        uint4 w[4], x[2][kTiles];
#pragma unroll
        for (int i = 0; i < 4; ++i) w[i] = ptx::load_shared_16(from + (4 * quad + i) * kBlockBytes);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int c = 0; c < kTiles; ++c)
                x[i][c] = ptx::load_shared_16(input + (2 * quad + i) * 64 + c * column_tile);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int c = 0; c < kTiles; ++c) {
                const uint32_t a[4] = {w[i].x, w[i].y, w[i].z, w[i].w};
                const uint4& two = x[i / 2][c];
                ptx::mma(part[i][c], a, i % 2 ? two.z : two.x, i % 2 ? two.w : two.y);
            }
    }
#pragma unroll
    for (int c = 0; c < kTiles; ++c)
#pragma unroll
        for (int k = 0; k < 4; ++k)
            sum[c][k] = __fadd_rn(__fadd_rn(part[0][c][k], part[1][c][k]), __fadd_rn(part[2][c][k], part[3][c][k]));
}

// This block's tasks of a matrix, for n nodes: result(task, row, node, value, value of row + 1) once for every even row
// of the task (0..14) and node, the bias added. afterwards: what the block is at when all is multiplied.
template <int NT, class Result>
__device__ inline void skinny_gemm(Block& b, const TaskMatrix& matrix, int n, Doing afterwards, const Result& result) {
    constexpr int kTiles = warp_tiles(NT), kGroups = weight_readers(NT);  // of column tiles: a warp takes one group
    const PassArguments& a = b.a;
    const int pieces = a.pieces;
    const bool with_bias = matrix.bias;
    const int warp = b.thread / 32, lane = b.thread % 32;
    // Thread (slot, e) adds up the elements e of the column tiles slot, slot + 4, ...
    const int slot = b.thread / kFragment, e = b.thread % kFragment;
    const uint32_t row = e / 8, column = e % 8;
    if (b.thread == 0 && matrix.units > 0) set_doing(Doing::multiplying);
#pragma unroll 1
    for (int first = 0, held; first < matrix.units; first += held) {
        held = min(matrix.units - first, a.shared.held_units);
        const int n_items = held * pieces * kGroups, lap = a.shared.n_slots * kGroups;
#pragma unroll 1
        for (int item = warp, met = 0;; item += kMultiplyWarps) {
            // The warps meet every second lap around the ring: the barriers can't tell more than two laps apart.
            for (; min(item, n_items - 1) >= met + 2 * lap; met += 2 * lap) block_barrier();
            if (item >= n_items) break;
            const int group = item % kGroups, of_held = item / kGroups, unit = of_held * a.per_piece >> 16;
            const int piece = of_held - unit * pieces;
            const Ring::Position at = b.ring.ahead(b.read, of_held);
            if (item >= met + lap) b.ring.wait_empty(at);
            b.ring.wait_full(at);
            if (with_bias && piece == 0 && group == 0 && lane < 16)
                shared_state.bias[unit][lane] =
                    __uint_as_float(ptx::load_shared_4(b.ring.slot(at) + kBiasOffset + lane * 4));
            const int row = group * kTiles * 8 + (NT == 1 ? min(lane / 4, n - 1) : lane / 4);
            const int quads = piece + 1 < pieces ? a.piece_quads : a.model.n_embd / 64 - piece * a.piece_quads;
            float sum[kTiles][4];
            multiply_piece(b, at, quads, b.input_at(row, piece * a.piece_quads * 64 + lane % 4 * 8), sum);
            __syncwarp();
            if (lane == 0) {
                ptx::mbarrier_arrive(b.ring.empty(at.slot));
                if (first + held == matrix.units && item + 1 == n_items) set_doing(afterwards);
            }
            float2* to = reinterpret_cast<float2*>(b.partial() + (of_held * NT + group * kTiles) * kFragment) + lane;
#pragma unroll
            for (int c = 0; c < kTiles; ++c) {
                to[c * (kFragment / 2)] = {sum[c][0], sum[c][1]};
                to[c * (kFragment / 2) + 32] = {sum[c][2], sum[c][3]};
            }
        }
        b.read = b.ring.ahead(b.read, held * pieces);
        block_barrier();
#pragma unroll 1
        for (int tile = slot; tile < held * NT; tile += kMultiplyThreads / kFragment) {
            const int unit = tile / NT;
            const float* fragment = b.partial() + (unit * pieces * NT + tile % NT) * kFragment + e;
            float total = *fragment;
#pragma unroll 4
            for (int p = 1; p < pieces; ++p) total = __fadd_rn(total, fragment[p * NT * kFragment]);
            if (with_bias) total = __fadd_rn(total, shared_state.bias[unit][row]);
            const float next = __shfl_down_sync(~0u, total, 8);  // threads of neighbouring rows meet
            const int node = tile % NT * 8 + column;
            if (row % 2 == 0 && node < n)
                result(matrix.first_task + (first + unit) * int(gridDim.x), row, node, total, next);
        }
        block_barrier();
    }
}

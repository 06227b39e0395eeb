// out(row, node) = sum over k of weight(row, k) input(node, k): weights are the A operand of mma.m16n8k16, the nodes of
// a pass the columns of B, NT tiles of 8, fp32 sums.
//
// A unit is 16 rows by n_embd columns, which come in pieces of up to 20 fragment blocks (weight_ring.cuh). A warp
// multiplies a piece by 8 or 16 nodes on its own: the blocks i mod 4 = 0, 1, 2, 3 into a sum each, in ascending order,
// then (sum 0 + sum 1) + (sum 2 + sum 3). When the warps meet, one thread adds the pieces of an element in ascending
// order. This order is the same for every width, grid and occupancy, and an element never meets another column, so a
// node's result does not depend on the pass. Nobody reads the results of columns beyond the pass: they are zeros,
// repeat its last node or multiply whatever lies in shared memory.
//
// Why so: a warp that shares each sum with others waits for them in every unit; here the warps meet once a matrix (once
// a unit where shared memory is short), and the pieces of all a block's units are multiplied side by side.
//
// Bytes: 32 n_embd from the ring a unit, twice that for 32 nodes and four times for 64; 16 n_embd NT of input from
// shared memory, an eighth of it for one node; 512 NT of partial sums a piece, 64 for one node.
#pragma once

#include "kernels/block.cuh"

constexpr int kSummed = 4;  // pieces of an element that are loaded together

// Floats of a piece's sums in a column tile: 16 rows of 8 nodes, or of the only one.
HD constexpr int fragment_floats(int width) {
    return width == 1 ? 16 : 16 * 8;
}
// Where an element stands among them: column by column, swizzled so that neither the lanes of d nor the rows of two
// columns meet in a bank.
HD constexpr uint32_t fragment_index(uint32_t row, uint32_t column) {
    return (column * 16 + row) ^ column / 2 % 2 * 8 ^ column / 4 * 16;
}

// Column tiles of a warp in passes of up to `width` nodes, and warps that read a piece.
HD constexpr int warp_tiles(int width) {
#if __CUDA_ARCH__ == 900
    const int most = 2;
#elif __CUDA_ARCH__ > 900
    const int most = width < 64 ? 2 : 1;  // ptxas needs more registers there
#else
    const int most = 1;
#endif
    return column_tiles(width) < most ? column_tiles(width) : most;
}
HD constexpr int weight_readers(int width) {
    return column_tiles(width) / warp_tiles(width);
}

// A warp's sums of the piece, `quads` times 4 blocks, by its column tiles. input: shared address of this lane's first
// fragment of B. sum: fragments of d.
template <int W>
__device__ inline void multiply_piece(const Block& b, Ring::Position piece, int quads, uint32_t input,
                                      float (&sum)[warp_tiles(W)][4]) {
    constexpr int kTiles = warp_tiles(W);
    const uint32_t column_tile = 8 * b.a.shared.input_stride * 2;  // bytes
    const uint32_t lane = b.thread % 32, from = b.ring.slot(piece) + lane * 16;
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
            for (int c = 0; c < kTiles; ++c) {
                const uint32_t at = input + (2 * quad + i) * 64 + c * column_tile;
                // The columns beside the only node are zeros, which is a little faster than its row in all of them.
                x[i][c] = W == 1 ? ptx::load_shared_16_if(lane < 4, at) : ptx::load_shared_16(at);
            }
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

// The columns of mlp_proj's input come in kSplit parts, whose products different blocks have. Of 16 rows, one of these
// blocks gathers the others' sums, in turn over the rows.
__device__ inline bool gathers(int task) {
    return uint32_t(task) / kSplit % kSplit == uint32_t(task) % kSplit;
}

// An element of a task's result that a thread adds up, row `row` of a node in the column tile `tile`. A half-warp has
// the 16 rows of a node.
struct Element {
    int task, held;  // held: which of the tasks held
    int tile, row, node;
    uint32_t of_tile;  // the threads' order
};

// Threads that share a column tile: whole warps, so half of one has no node in passes of one.
HD constexpr int tile_threads(int width) {
    return width == 1 ? 32 : 16 * 8;
}

// The first of a thread's column tiles. In passes of one node the last warps begin, which have the least to multiply.
template <int W>
__device__ inline int first_slot(const Block& b) {
    return W == 1 ? kMultiplyWarps - 1 - b.thread / 32 : b.thread / tile_threads(W);
}

// Thread (slot, of_tile) adds up an element of the column tiles slot, slot + n_slots, ... of the tasks from `first` on.
template <int W>
__device__ inline Element element(const Block& b, const TaskMatrix& matrix, int first, int at) {
    const int of_tile = b.thread % tile_threads(W), held = at / column_tiles(W), tile = at % column_tiles(W);
    return {matrix.first_task + (first + held) * int(gridDim.x),
            held,
            tile,
            of_tile % 16,
            tile * 8 + of_tile / 16,
            uint32_t(of_tile)};
}
template <int W>
__device__ inline Element first_element(const Block& b, const TaskMatrix& matrix) {
    return element<W>(b, matrix, 0, first_slot<W>(b));
}

// This block's tasks of a matrix, for n nodes: result(element, sum, is_first) by whole warps, for all rows
// and the nodes of every column tile that has one; is_first: it is the thread's first_element(). Of matrices in parts,
// a thread that has several results comes last to those that wait for other blocks: these send theirs first, and units
// of the same rows stand in the same place of every block's tasks, so nobody waits in a circle. pauses: whether the
// stream does when all is multiplied.
template <int W, class Result>
__device__ inline void skinny_gemm(Block& b, const TaskMatrix& matrix, int n, bool pauses, const Result& result) {
    constexpr int NT = column_tiles(W), kTiles = warp_tiles(W), kGroups = weight_readers(W);
    constexpr int kSlots = kMultiplyThreads / tile_threads(W), kFragment = fragment_floats(W);
    const PassArguments& a = b.a;
    constexpr bool own = NT == 1 && registers_to_spare();  // each warp keeps its position in the ring
    int& read = own ? b.read : shared_state.read;
    const int pieces = a.pieces, warp = b.thread / 32, lane = b.thread % 32;
#pragma unroll 1
    for (int first = 0, held; first < matrix.units; first += held) {
        held = min(matrix.units - first, a.shared.held_units);
        const int n_items = held * pieces * kGroups, lap = a.shared.n_slots * kGroups;
#pragma unroll 1
        for (int item = warp; item < n_items; item += kMultiplyWarps) {
            const int group = item % kGroups, of_held = item / kGroups, unit = of_held * a.per_piece >> 16;
            const int piece = of_held - unit * pieces;
            const Ring::Position from = b.ring.position(b.ring.ahead(read, of_held));
            if (item >= lap) b.ring.wait_empty(from);  // in its second lap; held_units are too few for a third
            b.ring.wait_full(from);
            if (piece == 0 && group == 0) {
                // Kept, lest ptxas work out a part of the sum before the loop over matrices and spill it.
                const uint32_t slot = registers_are_short() ? ptx::kept(b.ring.slot(from)) : b.ring.slot(from);
                shared_state.vectors[unit][lane / 16][lane % 16] =
                    __uint_as_float(ptx::load_shared_4(slot + kVectorOffset + lane * 4));
            }
            const int row = W == 1 ? 0 : group * kTiles * 8 + (NT == 1 ? min(lane / 4, n - 1) : lane / 4);
            const int quads = piece + 1 < pieces ? a.piece_quads : a.model.n_embd / 64 - piece * a.piece_quads;
            float sum[kTiles][4];
            multiply_piece<W>(b, from, quads, b.input_at(row, piece * a.piece_quads * 64 + lane % 4 * 8), sum);
            ptx::mbarrier_arrive(b.ring.empty(from.slot));
            if (pauses && lane == 0 && first + held == matrix.units && item + 1 == n_items) set_pause(true);
            float* to = b.partial() + (of_held * NT + group * kTiles) * kFragment;
            if constexpr (W == 1) {
                if (lane % 4 == 0) to[lane / 4] = sum[0][0], to[lane / 4 + 8] = sum[0][2];
            } else {
                // Of rows 8 apart and neighbouring columns, one bit each differs.
                const uint32_t at = fragment_index(lane / 4, lane % 4 * 2);
#pragma unroll
                for (int c = 0; c < kTiles; ++c)
#pragma unroll
                    for (int k = 0; k < 4; ++k) to[c * kFragment + (at ^ k / 2 * 8 ^ k % 2 * 16)] = sum[c][k];
            }
        }
        // What follows from it is not to be worked out before the multiplication.
        if (W <= kNarrow || !registers_to_spare()) b.thread = ptx::kept(threadIdx.x);
        block_barrier();
        if (own || b.thread == 0) read = b.ring.ahead(read, held * pieces);
        const int rounds = kMaxHeldUnits * NT > kSlots && matrix.parts > 1 && held * NT > kSlots ? 2 : 1;
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll 1
            for (int at = first_slot<W>(b); at < held * NT; at += kSlots) {
                const Element e = element<W>(b, matrix, first, at);
                if (e.tile * 8 >= n || (rounds > 1 && gathers(e.task) != (round > 0))) continue;
                const float* fragment = b.partial() + (e.held * pieces * NT + e.tile) * kFragment +
                                        (W == 1 ? e.row : fragment_index(e.row, e.node % 8));
                float part[kSummed];  // loaded before the first addition
#pragma unroll
                for (int p = 0; p < kSummed; ++p) part[p] = p < pieces ? fragment[p * NT * kFragment] : 0.0f;
                float total = part[0];
#pragma unroll
                for (int p = 1; p < kSummed; ++p)
                    if (p < pieces) total = __fadd_rn(total, part[p]);
#pragma unroll 1
                for (int p = kSummed; p < pieces; ++p) total = __fadd_rn(total, fragment[p * NT * kFragment]);
                result(e, total, first == 0 && at < kSlots);
            }
        block_barrier();
    }
}

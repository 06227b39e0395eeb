// out(row, node) = sum over k of weight(row, k) input(node, k): weights are the A operand of mma.m16n8k16, the nodes of
// a pass the columns of B, 8 NT of them, fp32 sums.
//
// A unit is 16 rows by n_embd columns (weight_ring.cuh). Warp w multiplies the fragment blocks w, w + 8, w + 16, ... of
// every piece in ascending order, the even ones of a piece into one sum and the odd ones into another; one thread adds
// the two sums, then those of the 8 warps in ascending order, then a task's units in theirs. This order is the same for
// every NT, grid and occupancy, and an element never meets another column, so a node's result does not depend on the
// pass. Nobody reads the results of columns beyond the pass: they repeat its last node or multiply whatever lies in
// shared memory.
//
// Bytes: 32 n_embd from the ring a unit; 16 n_embd NT of input from shared memory.
#pragma once

#include "kernels/block.cuh"

constexpr int kOwnBlocks = kPieceBlocks / kMultiplyWarps;  // of a piece, a warp's share at most

// Multiplies kPieces pieces that stand in the ring one after the other, the last of them `count` blocks long. weights:
// offset of this lane's share in a slot; input: shared address of its first fragment of B in the first piece.
template <int NT, int kPieces>
__device__ inline void multiply_pieces(Block& b, int count, uint32_t weights, uint32_t input, float (&even)[NT][4],
                                       float (&odd)[NT][4]) {
    constexpr bool kAhead = NT <= 2;  // registers allow to load everything first
    const int warp = b.thread / 32;
    const uint32_t column_tile = 8 * b.a.shared.input_stride * 2;  // bytes
    Ring::Position at = b.read;
    uint32_t barrier[kPieces];
    const auto load_input = [&](int piece, int i, int c) {
        return ptx::load_shared_8(input + (piece * kPieceBlocks + i * kMultiplyWarps) * 32 + c * column_tile);
    };
    const auto multiply = [](float(&sum)[4], const uint4& weights, const uint2& x) {
        const uint32_t a[4] = {weights.x, weights.y, weights.z, weights.w};
        ptx::mma(sum, a, x.x, x.y);
    };
    uint32_t from[kPieces];
    const auto await = [&](int piece) {
        b.ring.wait_full(at);
        from[piece] = b.ring.slot(at) + weights;
        barrier[piece] = b.ring.empty(at.slot);
        b.ring.advance(at);
    };
    const auto load_weights = [&](int piece, int i) {
        return ptx::load_shared_16(from[piece] + i * kMultiplyWarps * kBlockBytes);
    };
    const auto there = [&](int piece, int i) { return piece + 1 < kPieces || warp + kMultiplyWarps * i < count; };
    if constexpr (kAhead) {
        uint4 w[kPieces][kOwnBlocks];
        uint2 x[kPieces][kOwnBlocks][NT];
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
            await(piece);
#pragma unroll
            for (int i = 0; i < kOwnBlocks; ++i) {
                w[piece][i] = there(piece, i) ? load_weights(piece, i) : uint4{0, 0, 0, 0};
#pragma unroll
                for (int c = 0; c < NT; ++c) x[piece][i][c] = there(piece, i) ? load_input(piece, i, c) : uint2{0, 0};
            }
        }
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece)
#pragma unroll
            for (int i = 0; i < kOwnBlocks; ++i)
#pragma unroll
                for (int c = 0; c < NT; ++c) multiply(i % 2 ? odd[c] : even[c], w[piece][i], x[piece][i][c]);
    } else {
        static_assert(kPieces == 1);
        await(0);
#pragma unroll(NT < 8 ? kOwnBlocks : 1)
        for (int i = 0; i < kOwnBlocks; i += 2) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                if (i + k >= kOwnBlocks || !there(0, i + k)) continue;
                const uint4 w = load_weights(0, i + k);
#pragma unroll
                for (int c = 0; c < NT; ++c) multiply(k ? odd[c] : even[c], w, load_input(0, i + k, c));
            }
        }
    }
    __syncwarp();
    if (b.thread % 32 == 0)
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) ptx::mbarrier_arrive(barrier[piece]);
    b.read = at;
}

// One unit's sums of this warp, from the ring and the input's rows from first_row on. If with_bias, the rows' biases go
// to shared_state.bias[held]. sum: fragments of d.
template <int NT>
__device__ inline void multiply_unit(Block& b, int n_blocks, int first_row, int n, bool with_bias, int held,
                                     float (&sum)[NT][4]) {
    const int warp = b.thread / 32, lane = b.thread % 32;
    float odd[NT][4];
#pragma unroll
    for (int c = 0; c < NT; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[c][i] = odd[c][i] = 0;
    uint32_t input = b.input_at(first_row + (NT == 1 ? min(lane / 4, n - 1) : lane / 4), lane % 4 * 4 + warp * 16);
    const uint32_t weights = warp * kBlockBytes + lane * 16;
    if (with_bias && b.thread < 16) {
        b.ring.wait_full(b.read);
        shared_state.bias[held][b.thread] =
            __uint_as_float(ptx::load_shared_4(b.ring.slot(b.read) + kBiasOffset + b.thread * 4));
    }
#if __CUDA_ARCH__ < 1000
    constexpr int kTogether = NT <= 2 ? 2 : 1;  // pieces
#else
    constexpr int kTogether = 1;  // ptxas needs more registers there
#endif
#pragma unroll 1
    for (; n_blocks > kPieceBlocks && kTogether == 2; n_blocks -= 2 * kPieceBlocks, input += 2 * kPieceBlocks * 32)
        multiply_pieces<NT, kTogether>(b, n_blocks - kPieceBlocks, weights, input, sum, odd);
#pragma unroll 1
    for (; n_blocks > 0; n_blocks -= kPieceBlocks, input += kPieceBlocks * 32)
        multiply_pieces<NT, 1>(b, n_blocks, weights, input, sum, odd);
#pragma unroll
    for (int c = 0; c < NT; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[c][i] = __fadd_rn(sum[c][i], odd[c][i]);
}

// This block's tasks of a matrix, for n nodes. prepare(task) runs before a task is multiplied; then result(task, row,
// node, value, value of row + 1) once for every even row of the task (0..14) and node, the bias added. The units of a
// task meet the rows 0, 1, ... of the input in turn: only in a pass of one node have tasks several. afterwards: what
// the block is at when all is multiplied.
template <int NT, class Prepare, class Result>
__device__ inline void skinny_gemm(Block& b, const TaskMatrix& matrix, int n_blocks, int n, Doing afterwards,
                                   const Prepare& prepare, const Result& result) {
    constexpr int kColumnTiles = NT < 4 ? NT : 4;  // added up at a time
    constexpr int kUnits = 4 / kColumnTiles;       // and units
    static_assert(NT > 1 || kUnits == kSplit);
    const int warp = b.thread / 32, lane = b.thread % 32, step = gridDim.x;
    const bool several = matrix.units > 1;  // units a task: then kUnits, all that is held belongs to one task
    float2* partial = reinterpret_cast<float2*>(b.partial());  // (4 unit and tile, kMultiplyWarps, 2, 32)
    int held = 0;
    for (int task = matrix.first_task; task < matrix.n_tasks; task += step) {
        prepare(task);
        if (b.thread == 0 && task == matrix.first_task) set_doing(Doing::multiplying);
        const bool last = task + step >= matrix.n_tasks;
#pragma unroll 1
        for (int unit = 0; unit < matrix.units; ++unit) {
            float sum[NT][4];
            multiply_unit<NT>(b, n_blocks, unit, n, matrix.bias, held, sum);
            const bool finished = last && unit + 1 == matrix.units;
            if (b.thread == 0 && finished) set_doing(afterwards);
#pragma unroll
            for (int c0 = 0; c0 < NT; c0 += kColumnTiles) {
#pragma unroll
                for (int c = 0; c < kColumnTiles; ++c) {
                    float2* to = partial + ((held * kColumnTiles + c) * kMultiplyWarps + warp) * 64 + lane;
                    to[0] = {sum[c0 + c][0], sum[c0 + c][1]};
                    to[32] = {sum[c0 + c][2], sum[c0 + c][3]};
                }
                if (++held < kUnits && !finished) continue;
                block_barrier();
                // Thread (task and tile, element) adds one pair of neighbouring columns, (row, node) and (row, node +
                // 1).
                const int group = b.thread / 64, element = b.thread % 64, its_task = group / kColumnTiles;
                if (several ? group == 0 : its_task < held) {
                    const uint32_t row = element / 32 * 8 + lane / 4;
                    float2 total;
#pragma unroll 1
                    for (int unit = group;; ++unit) {
                        const float2* from = partial + unit * kMultiplyWarps * 64 + element;
                        float2 of_unit = from[0];
#pragma unroll
                        for (int w = 1; w < kMultiplyWarps; ++w) {
                            const float2 more = from[w * 64];
                            of_unit.x = __fadd_rn(of_unit.x, more.x);
                            of_unit.y = __fadd_rn(of_unit.y, more.y);
                        }
                        total.x = unit > group ? __fadd_rn(total.x, of_unit.x) : of_unit.x;
                        total.y = unit > group ? __fadd_rn(total.y, of_unit.y) : of_unit.y;
                        if (!several || unit + 1 == kUnits) break;
                    }
                    if (matrix.bias) {
                        const float bias = shared_state.bias[its_task][row];
                        total.x = __fadd_rn(total.x, bias);
                        total.y = __fadd_rn(total.y, bias);
                    }
                    // Lanes of neighbouring rows swap: the even row's takes both rows of its first node, the odd one's
                    // of the second.
                    const uint32_t odd = row % 2;
                    const int node = (c0 + group % kColumnTiles) * 8 + lane % 4 * 2 + odd;
                    const float other = __shfl_xor_sync(~0u, odd ? total.x : total.y, 4);
                    if (node < n)
                        result(several ? task : task - (held - 1 - its_task) * step, row - odd, node,
                               odd ? other : total.x, odd ? total.y : other);
                }
                held = 0;
                block_barrier();
            }
        }
    }
}

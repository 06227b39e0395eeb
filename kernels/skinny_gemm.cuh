// out(row, node) = sum over k of weight(row, k) input(node, k): weights are the A operand of mma.m16n8k16, the nodes of
// a pass the columns of B, 8 NT of them, fp32 sums.
//
// A task is 16 rows by n_embd columns (weight_ring.cuh). Warp w multiplies the fragment blocks w, w + 8, w + 16, ... of
// every piece in ascending order, the even ones of a piece into one sum and the odd ones into another; one thread adds
// the two sums of the 8 warps in ascending order of warps. This order is the same for every NT, grid and occupancy, and
// an element never meets another column, so a node's result does not depend on the pass. Nobody reads the results of
// columns beyond the pass: they repeat its last node or multiply whatever lies in shared memory.
//
// Bytes: 32 n_embd from the ring a task; 16 n_embd NT of input from shared memory.
#pragma once

#include "kernels/block.cuh"

// Fetches the rows of n nodes into the block's input. rows: (n, stride) halves in fragment order, of which n_embd are
// taken.
__device__ inline void load_input(const Block& b, const uint16_t* rows, int stride, int n, int n_embd) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int node = warp; node < n; node += kMultiplyWarps)
        for (int at = lane * 8; at < n_embd; at += 32 * 8)
            ptx::copy_16(ptx::shared_address(b.input(node) + at), rows + node * stride + at);
    ptx::copies_wait();
    block_barrier();
}

// One task's sums of this warp, from the ring. sum: fragments of d.
template <int NT>
__device__ inline void multiply_task(Block& b, int n_blocks, int n, float* bias, float (&sum)[NT][4]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float odd[NT][4];
#pragma unroll
    for (int c = 0; c < NT; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[c][i] = odd[c][i] = 0;
    const uint32_t input = ptx::shared_address(b.input(NT == 1 ? min(lane / 4, n - 1) : lane / 4)) + lane % 4 * 8;
    const uint32_t column_tile = 8 * b.a.shared.input_stride * 2;  // bytes
    for (int first = 0; first < n_blocks; first += kPieceBlocks) {
        const int count = min(kPieceBlocks, n_blocks - first);
        const uint32_t slot = b.ring.slot(b.read);
        b.ring.wait_full(b.read);
        if (first == 0 && bias && warp == 0 && lane < 16)
            bias[lane] = __uint_as_float(ptx::load_shared_4(slot + kBiasOffset + lane * 4));
        const uint32_t weights = slot + warp * kBlockBytes + lane * 16, rows = input + (first + warp) * 32;
        const auto multiply_block = [&](int i) {
            const uint4 v = ptx::load_shared_16(weights + i * kMultiplyWarps * kBlockBytes);
            const uint32_t a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int c = 0; c < NT; ++c) {
                const uint2 x = ptx::load_shared_8(rows + c * column_tile + i * kMultiplyWarps * 32);
                ptx::mma(i % 2 ? odd[c] : sum[c], a, x.x, x.y);
            }
        };
        if (count == kPieceBlocks) {  // without conditions, so that the loads run ahead
#pragma unroll
            for (int i = 0; i < kPieceBlocks / kMultiplyWarps; ++i) multiply_block(i);
        } else {
#pragma unroll
            for (int i = 0; i < kPieceBlocks / kMultiplyWarps; ++i)
                if (warp + kMultiplyWarps * i < count) multiply_block(i);
        }
        b.ring.release(b.read);
        b.ring.advance(b.read);
    }
#pragma unroll
    for (int c = 0; c < NT; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[c][i] = __fadd_rn(sum[c][i], odd[c][i]);
}

// This block's tasks of a matrix, for n nodes. prepare(task) runs before a task is multiplied; then
// result(task, row, node, value) once for every row of the task (0..15) and node, the bias added.
template <int NT, class Prepare, class Result>
__device__ inline void skinny_gemm(Block& b, const TaskMatrix& matrix, int n_blocks, int n, const Prepare& prepare,
                                   const Result& result) {
    constexpr int kColumnTiles = NT < 4 ? NT : 4;  // added up at a time
    constexpr int kTasks = 4 / kColumnTiles;       // and tasks
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, step = gridDim.x;
    float2* partial = reinterpret_cast<float2*>(b.partial());  // (4 units, kMultiplyWarps, 2, 32)
    int held = 0;
    for (int task = matrix.first_task(); task < matrix.n_tasks; task += step) {
        prepare(task);
        if (threadIdx.x == 0 && task == matrix.first_task()) set_doing(Doing::multiplying);
        float sum[NT][4];
        multiply_task<NT>(b, n_blocks, n, matrix.bias ? shared_state.bias[held] : nullptr, sum);
        const bool last = task + step >= matrix.n_tasks;
        if (threadIdx.x == 0 && last) set_doing(Doing::arriving);
#pragma unroll
        for (int c0 = 0; c0 < NT; c0 += kColumnTiles) {
#pragma unroll
            for (int c = 0; c < kColumnTiles; ++c) {
                float2* to = partial + ((held * kColumnTiles + c) * kMultiplyWarps + warp) * 64 + lane;
                to[0] = {sum[c0 + c][0], sum[c0 + c][1]};
                to[32] = {sum[c0 + c][2], sum[c0 + c][3]};
            }
            if (++held < kTasks && !last) continue;
            block_barrier();
            // Thread (unit, element) adds one pair of neighbouring columns.
            const int unit = threadIdx.x / 64, element = threadIdx.x % 64, task_of_unit = unit / kColumnTiles;
            const int row = element / 32 * 8 + lane / 4, node = (c0 + unit % kColumnTiles) * 8 + lane % 4 * 2;
            if (task_of_unit < held && node < n) {
                const float2* from = partial + unit * kMultiplyWarps * 64 + element;
                float2 total = from[0];
#pragma unroll
                for (int w = 1; w < kMultiplyWarps; ++w) {
                    const float2 more = from[w * 64];
                    total.x = __fadd_rn(total.x, more.x);
                    total.y = __fadd_rn(total.y, more.y);
                }
                const int its_task = task - (held - 1 - task_of_unit) * step;
#pragma unroll 1
                for (int e = 0; e < 2 && node + e < n; ++e) {
                    const float value = e ? total.y : total.x;
                    result(its_task, row, node + e,
                           matrix.bias ? __fadd_rn(value, shared_state.bias[task_of_unit][row]) : value);
                }
            }
            held = 0;
            if (!(last && c0 + kColumnTiles >= NT)) block_barrier();
        }
    }
}

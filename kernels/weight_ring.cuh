// The stream of weights through shared memory. One warp of each block walks the block's tasks of the whole pass, phase
// after phase, and copies their tiles into a ring; it never waits for a phase, so memory keeps delivering while the
// multiplying warps wait for each other's results.
//
// A unit is 16 rows by n_embd columns, contiguous in the blob: n_embd / 16 fragment blocks of 512 bytes, copied in
// pieces of up to 40 blocks; the first piece brings the rows' 16 biases along. A task is one unit; of mlp_proj, whose
// rows are 4 n_embd long, one of the 4 units of 16 rows, or in a pass of one node all 4, so that one block adds them
// up. Task i of a matrix belongs to block (i + rotation) mod n_blocks; the rotation goes on from matrix to matrix, so
// every block gets its share of the bytes.
//
// A slot has two mbarriers: `full` completes when a piece has landed, `empty` when all multiplying warps have read it.
#pragma once

#include "kernels/phase_counter.cuh"

constexpr int kPieceBlocks = 40;
constexpr int kBlockBytes = 512;
constexpr int kSlotBytes = kPieceBlocks * kBlockBytes + 128;  // the biases stand behind the blocks
constexpr int kBiasOffset = kPieceBlocks * kBlockBytes;

// A matrix of the pass as a block sees it.
struct TaskMatrix {
    const uint16_t* tiles;
    const float* bias;  // or null
    int n_tasks, units;
    int first_task;  // this block's; the next is n_blocks further

    __device__ bool has_work() const { return first_task < n_tasks; }
};

__device__ inline Matrix matrix_kind(const PassArguments& a, int at) {
    return at == kLayerMatrices * a.model.n_layer ? Matrix::head : Matrix(at % kLayerMatrices);
}

// Matrix `at` of the pass, counted through the layers.
__device__ inline TaskMatrix task_matrix(const PassArguments& a, int at) {
    const Matrix which = matrix_kind(a, at);
    const MatrixPlan& plan = a.matrix[int(which)];
    const uint8_t* base = a.model.weights + (which == Matrix::head ? 0 : at / kLayerMatrices * a.model.layer_stride);
    const int first = int(blockIdx.x) - a.turn[at];
    return {reinterpret_cast<const uint16_t*>(base + plan.weight),
            plan.bias == kNoBias ? nullptr : reinterpret_cast<const float*>(base + plan.bias), plan.n_tasks, plan.units,
            first < 0 ? first + int(gridDim.x) : first};
}

extern __shared__ __align__(128) uint8_t shared_memory[];  // SharedLayout's regions

struct Ring {
    const PassArguments& a;
    uint32_t slots, barriers;  // shared addresses

    __device__ explicit Ring(const PassArguments& arguments)
        : a(arguments),
          slots(ptx::kept(ptx::shared_address(shared_memory) + arguments.shared.ring)),
          barriers(ptx::kept(ptx::shared_address(shared_state.full))) {}

    struct Position {
        int slot = 0;
        uint32_t parity = 0;  // of the turn around the ring
    };
    __device__ void advance(Position& at) const {
        if (++at.slot == a.shared.n_slots) at.slot = 0, at.parity ^= 1;
    }
    // Shared addresses of a slot and its mbarriers.
    __device__ uint32_t slot(Position at) const { return slots + at.slot * kSlotBytes; }
    __device__ uint32_t full(int slot) const { return barriers + slot * 8; }
    __device__ uint32_t empty(int slot) const { return barriers + (kMaxRingSlots + slot) * 8; }

    __device__ void wait_full(Position at) const {
        if (ptx::mbarrier_complete(full(at.slot), at.parity)) return;
        Patience patience{a.scratch.failure};
        while (!ptx::mbarrier_complete(full(at.slot), at.parity)) patience.turn(Wait::weights);
    }

    __device__ void initialise() const {  // one thread
        for (int i = 0; i < a.shared.n_slots; ++i) {
#if __CUDA_ARCH__ >= 900
            ptx::mbarrier_init(full(i), 1);
#else
            ptx::mbarrier_init(full(i), 32);
#endif
            ptx::mbarrier_init(empty(i), kMultiplyWarps);
        }
#if __CUDA_ARCH__ >= 900
        ptx::fence_copy_engine();
#endif
    }
};

// The streaming warp. Lane 0 decides when, all lanes copy.
struct Stream {
    const PassArguments& a;
    Ring ring;
    Ring::Position head = {}, tail = {};  // next to issue, oldest under way
    int under_way = 0;

    // Waits until the head's slot is free and the pace allows another piece; false: stopped.
    __device__ bool ready() {
        Patience patience{a.scratch.failure};
        for (;;) {
            while (under_way > 0 && ptx::mbarrier_complete_now(ring.full(tail.slot), tail.parity)) {
                ring.advance(tail);
                --under_way;
            }
            const Doing doing = Doing(ptx::load_shared_4(ptx::shared_address(&shared_state.doing)));
            const int limit = doing == Doing::multiplying ? min(a.pace.multiplying, a.shared.n_slots)
                              : doing == Doing::waiting   ? a.pace.waiting
                                                          : 0;
            if (under_way < limit && ptx::mbarrier_complete_now(ring.empty(head.slot), head.parity ^ 1)) break;
            if (ptx::load_shared_4(ptx::shared_address(&shared_state.stop))) return false;
            patience.turn(Wait::slot);
        }
        return true;
    }

    __device__ bool copy_unit(const uint16_t* tile, const float* bias, int n_blocks) {
        const int lane = threadIdx.x % 32;
        for (int first = 0; first < n_blocks; first += kPieceBlocks) {
            if (!__shfl_sync(~0u, lane == 0 && ready(), 0)) return false;
            const int bytes = min(kPieceBlocks, n_blocks - first) * kBlockBytes;
            const uint8_t* from = reinterpret_cast<const uint8_t*>(tile) + first * kBlockBytes;
            const bool with_bias = bias && first == 0;
            const uint32_t to = ring.slot(head), barrier = ring.full(head.slot);
#if __CUDA_ARCH__ >= 900
            if (lane == 0) {
                const uint64_t once = a.model.stays_in_l2 ? ptx::policy_evict_normal() : ptx::policy_evict_first();
                ptx::mbarrier_expect(barrier, bytes + (with_bias ? 64 : 0));
                ptx::bulk_copy(to, from, bytes, barrier, once);
                if (with_bias) ptx::bulk_copy(to + kBiasOffset, bias, 64, barrier, ptx::policy_evict_normal());
            }
            __syncwarp();
#else
            for (int at = lane * 16; at < bytes; at += 32 * 16) ptx::copy_16(to + at, from + at);
            if (with_bias && lane < 4) ptx::copy_16(to + kBiasOffset + lane * 16, bias + lane * 4);
            ptx::mbarrier_arrive_after_copies(barrier);
#endif
            ring.advance(head);
            ++under_way;
        }
        return true;
    }

    __device__ bool copy_matrix(const TaskMatrix& matrix, int n_blocks) {
        for (int task = matrix.first_task; task < matrix.n_tasks; task += gridDim.x)
            for (int unit = task * matrix.units; unit < (task + 1) * matrix.units; ++unit)
                if (!copy_unit(matrix.tiles + uint64_t(unit) * n_blocks * 256,
                               matrix.bias ? matrix.bias + unit * 16 : nullptr, n_blocks))
                    return false;
        return true;
    }

    // All of a pass, in the order in which forward() reads it.
    __device__ bool copy_pass(bool with_head) {
        const int n_matrices = kLayerMatrices * a.model.n_layer + with_head;
#pragma unroll 1
        for (int at = 0; at < n_matrices; ++at)
            if (!copy_matrix(task_matrix(a, at), a.model.n_embd / 16)) return false;
        return true;
    }

    // Copies under way must land before the block's shared memory is given back.
    __device__ void drain() {
        for (; threadIdx.x % 32 == 0 && under_way > 0; --under_way) {
            ring.wait_full(tail);
            ring.advance(tail);
        }
        __syncwarp();
    }
};

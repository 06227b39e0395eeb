// The stream of weights through shared memory. One warp of each block walks the block's tasks of the whole pass, phase
// after phase, and copies their tiles into a ring; it never waits for a phase, so memory keeps delivering while the
// multiplying warps wait for each other's results.
//
// A task is 16 rows by n_embd columns, contiguous in the blob: n_embd / 16 fragment blocks of 512 bytes, copied in
// pieces of up to 40 blocks; the first piece brings the rows' 16 biases along. Task i of a matrix belongs to block (i +
// rotation) mod n_blocks; the rotation goes on from matrix to matrix, so every block gets its share of the bytes.
//
// A slot has two mbarriers: `full` completes when a piece has landed, `empty` when all multiplying warps have read it.
#pragma once

#include "kernels/phase_counter.cuh"

constexpr int kPieceBlocks = 40;
constexpr int kBlockBytes = 512;
constexpr int kSlotBytes = kPieceBlocks * kBlockBytes + 128;  // the biases stand behind the blocks
constexpr int kBiasOffset = kPieceBlocks * kBlockBytes;

// One matrix as the stream sees it.
struct TaskMatrix {
    const uint16_t* tiles;
    const float* bias;  // null: none, or not added here
    int n_tasks;
    int rotation;  // tasks of the pass before it

    __device__ int first_task() const {
        const int first = (int(blockIdx.x) - rotation) % int(gridDim.x);
        return first < 0 ? first + gridDim.x : first;
    }
    __device__ bool has_work() const { return first_task() < n_tasks; }
    __device__ int workers() const { return min(n_tasks, int(gridDim.x)); }
};

// The matrices of a pass in their order: four a layer, then the head.
enum class Matrix { c_attn, c_proj, c_fc, mlp_proj, head };
constexpr int kLayerMatrices = 4;

__device__ inline Matrix matrix_kind(const DeviceModel& m, int at) {
    return at == kLayerMatrices * m.n_layer ? Matrix::head : Matrix(at % kLayerMatrices);
}

__device__ inline TaskMatrix task_matrix(const DeviceModel& m, int at) {
    const int layer = at / kLayerMatrices, rows = m.n_embd / 16, before = layer * 12 * rows;
    switch (matrix_kind(m, at)) {
        case Matrix::c_attn:
            return {m.halves(layer, m.layer.c_attn_weight), m.vector(layer, m.layer.c_attn_bias), 3 * rows, before};
        case Matrix::c_proj:
            return {m.halves(layer, m.layer.c_proj_weight), nullptr, rows, before + 3 * rows};
        case Matrix::c_fc:
            return {m.halves(layer, m.layer.c_fc_weight), m.vector(layer, m.layer.c_fc_bias), 4 * rows,
                    before + 4 * rows};
        case Matrix::mlp_proj:
            return {m.halves(layer, m.layer.mlp_proj_weight), nullptr, kSplit * rows, before + 8 * rows};
        default:
            return {m.halves(0, m.lm_head), nullptr, pad16(m.n_vocab) / 16, before};
    }
}

extern __shared__ __align__(128) uint8_t shared_memory[];  // SharedLayout's regions

struct Ring {
    const PassArguments& a;
    __device__ explicit Ring(const PassArguments& arguments) : a(arguments) {}

    struct Position {
        int slot = 0;
        uint32_t parity = 0;  // of the turn around the ring
    };
    __device__ void advance(Position& at) const {
        if (++at.slot == a.shared.n_slots) at.slot = 0, at.parity ^= 1;
    }
    // Shared addresses of a slot and its mbarriers.
    __device__ uint32_t slot(Position at) const {
        return ptx::shared_address(shared_memory) + a.shared.ring + at.slot * kSlotBytes;
    }
    __device__ uint32_t full(int slot) const { return ptx::shared_address(shared_state.full + slot); }
    __device__ uint32_t empty(int slot) const { return ptx::shared_address(shared_state.empty + slot); }

    __device__ void wait_full(Position at) const {
        Patience patience{a.scratch.failure};
        while (!ptx::mbarrier_complete(full(at.slot), at.parity)) patience.turn(Wait::weights);
    }
    __device__ void release(Position at) const {  // a warp has read the slot
        __syncwarp();
        if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(empty(at.slot));
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

// The streaming warp. Lane 0 decides when, all lanes copy. errand() is what else lane 0 does while it waits.
template <class Errand>
struct Stream {
    const PassArguments& a;
    Ring ring;
    Errand errand;
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
            const Doing doing = Doing(atomicAdd(&shared_state.doing, 0));
            const int limit = doing == Doing::multiplying ? min(a.pace.multiplying, a.shared.n_slots)
                              : doing == Doing::waiting   ? a.pace.waiting
                              : doing == Doing::loading   ? a.pace.loading
                                                          : 0;
            if (under_way < limit && ptx::mbarrier_complete_now(ring.empty(head.slot), head.parity ^ 1)) break;
            errand();
            if (atomicAdd(&shared_state.stop, 0)) return false;
            patience.turn(Wait::slot);
        }
        return true;
    }

    __device__ bool copy_task(const uint16_t* tile, const float* bias, int n_blocks) {
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
        for (int task = matrix.first_task(); task < matrix.n_tasks; task += gridDim.x)
            if (!copy_task(matrix.tiles + uint64_t(task) * n_blocks * 256,
                           matrix.bias ? matrix.bias + task * 16 : nullptr, n_blocks))
                return false;
        return true;
    }

    // All of a pass, in the order in which forward() reads it.
    __device__ bool copy_pass(bool with_head) {
        const int n_matrices = kLayerMatrices * a.model.n_layer + with_head;
#pragma unroll 1
        for (int at = 0; at < n_matrices; ++at)
            if (!copy_matrix(task_matrix(a.model, at), a.model.n_embd / 16)) return false;
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

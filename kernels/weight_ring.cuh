// The stream of weights through shared memory. One warp of each block walks the block's tasks of the whole pass, phase
// after phase, and copies their tiles into a ring; it never waits for a phase, so memory keeps delivering while the
// multiplying warps wait for each other's results.
//
// A unit is 16 rows by n_embd columns, contiguous in the blob: n_embd / 16 fragment blocks of 512 bytes, copied in
// pieces of up to 20 blocks; the first piece brings the rows' two vectors of 16 along. mlp_proj, whose rows are 4
// n_embd long, is 4 units for each 16 rows. Unit i of a matrix belongs to block (i + rotation) mod n_blocks; the
// rotation goes on from matrix to matrix, so every block gets its share of the bytes.
//
// A slot has two mbarriers: `full` completes when a piece has landed, `empty` when the warps that need it have read it.
#pragma once

#include "kernels/phase_counter.cuh"

constexpr int kPieceBlocks = 20;
constexpr int kQuads = kPieceBlocks / 4;  // of blocks in a piece, at most
constexpr int kBlockBytes = 512;
constexpr int kVectorBytes = 2 * 16 * 4;
constexpr int kSlotBytes = kPieceBlocks * kBlockBytes + kVectorBytes;  // the vectors stand behind the blocks
constexpr int kVectorOffset = kPieceBlocks * kBlockBytes;

// Pieces of a unit, and quads of blocks in each but the last, which may have fewer. n_embd: a multiple of 64.
HD constexpr int unit_pieces(int n_embd) {
    return (n_embd / 64 + kQuads - 1) / kQuads;
}
HD constexpr int piece_quads(int n_embd) {
    return (n_embd / 64 + unit_pieces(n_embd) - 1) / unit_pieces(n_embd);
}

// A matrix of the pass as a block sees it.
struct TaskMatrix {
    const uint16_t* tiles;
    const float* vectors;  // (n_tasks / parts, 2, 16)
    int first_task;        // this block's; the next is gridDim.x further
    int units;             // this block's tasks
    int parts;             // tasks that share their rows
};

// Which 16 rows a task has columns of.
__device__ inline int unit_of(int task, const TaskMatrix& matrix) {
    return matrix.parts == 1 ? task : uint32_t(task) / kSplit;
}

// Matrix `at` of the pass, counted through the layers. Unsigned, because signed quotients take four instructions more.
__device__ inline int layer_of(int at) {
    return uint32_t(at) / kLayerMatrices;
}
__device__ inline Matrix matrix_kind(const PassArguments& a, int at) {
    return at == kLayerMatrices * a.model.n_layer ? Matrix::head : Matrix(uint32_t(at) % kLayerMatrices);
}

__device__ inline TaskMatrix task_matrix(const PassArguments& a, int at) {
    const Matrix which = matrix_kind(a, at);
    const MatrixPlan& plan = a.matrix[int(which)];
    const int layer = which == Matrix::head ? 0 : layer_of(at), layer_units = kLayerRows * a.model.n_embd / 16;
    const int turn = int(blockIdx.x) - a.turn[at], first = turn < 0 ? turn + int(gridDim.x) : turn;
    return {reinterpret_cast<const uint16_t*>(a.model.weights + layer * a.model.layer_stride + plan.weight),
            a.vectors + (layer * layer_units + plan.vectors) * 32, first, plan.turns + (first < plan.rest),
            parts_of(which)};
}

extern __shared__ __align__(128) uint8_t shared_memory[];  // SharedLayout's regions

struct Ring {
    const PassArguments& a;
    uint32_t slots, barriers;  // shared addresses

    // keep: in registers.
    __device__ Ring(const PassArguments& arguments, bool keep)
        : a(arguments),
          slots(ptx::shared_address(shared_memory) + arguments.shared.ring),
          barriers(ptx::shared_address(shared_state.full)) {
        if (!keep || !registers_to_spare()) return;
        slots = ptx::kept(slots);
        barriers = ptx::kept(barriers);
    }

    struct Position {
        int slot = 0;
        uint32_t parity = 0;  // of the turn around the ring
    };
    __device__ Position next(Position at) const {
        if (++at.slot < a.shared.n_slots) return at;
        return {0, at.parity ^ 1};
    }
    // The same in one number: slot + n_slots parity. pieces: up to 2 n_slots.
    __device__ int ahead(int at, int pieces) const {
        at += pieces;
        return at >= 2 * a.shared.n_slots ? at - 2 * a.shared.n_slots : at;
    }
    __device__ Position position(int at) const {
        return at >= a.shared.n_slots ? Position{at - a.shared.n_slots, 1} : Position{at, 0};
    }
    // Shared addresses of a slot and its mbarriers.
    __device__ uint32_t slot(Position at) const { return slots + at.slot * kSlotBytes; }
    __device__ uint32_t full(int slot) const { return barriers + slot * 8; }
    __device__ uint32_t empty(int slot) const { return barriers + (kMaxRingSlots + slot) * 8; }

    // Until the piece has landed. The one before it in the slot must have been read.
    __device__ void wait_full(Position at) const { wait_mbarrier(full(at.slot), at.parity, a.scratch.failure); }
    // Until the piece before it in the slot has been read. The one before that must have been.
    __device__ void wait_empty(Position at) const { wait_mbarrier(empty(at.slot), at.parity ^ 1, a.scratch.failure); }

    // By one thread. readers: warps that read each piece.
    __device__ void initialise(int readers) const {
        for (int i = 0; i < a.shared.n_slots; ++i) {
#if __CUDA_ARCH__ >= 900
            ptx::mbarrier_init(full(i), 1);
#else
            ptx::mbarrier_init(full(i), 32);
#endif
            ptx::mbarrier_init(empty(i), 32 * readers);
        }
#if __CUDA_ARCH__ >= 900
        ptx::fence_copy_engine();
#endif
    }
};

// The streaming warp. Where one thread can start a whole piece's copy, it is lane 0's alone, else lane 0 decides when
// and all lanes copy.
struct Stream {
    const PassArguments& a;
    Ring ring;
    Ring::Position head = {}, tail = {};  // next to issue, oldest under way
    int under_way = 0;
#if __CUDA_ARCH__ >= 900
    uint64_t policy = a.model.stays_in_l2 ? ptx::policy_evict_normal() : ptx::policy_evict_first();
#endif

    static __device__ bool takes(int thread) {
#if __CUDA_ARCH__ >= 900
        return thread % 32 == 0;
#else
        return true;
#endif
    }

    // Waits until the head's slot is free and the pace allows another piece; false: stopped.
    __device__ bool ready() {
        bool stopped = false;
        wait_for(a.scratch.failure, Wait::slot, [&] {
            const int limit = ptx::load_shared_4(ptx::shared_address(&shared_state.pauses)) ? 0 : a.pace;
            while (under_way > 0 && under_way >= limit &&
                   ptx::mbarrier_complete_now(ring.full(tail.slot), tail.parity)) {
                tail = ring.next(tail);
                --under_way;
            }
            if (under_way < limit && ptx::mbarrier_complete_now(ring.empty(head.slot), head.parity ^ 1)) return true;
            return stopped = ptx::load_shared_4(ptx::shared_address(&shared_state.stop)) != 0;
        });
        return !stopped;
    }

    __device__ bool copy_unit(const uint16_t* tile, const float* vectors, int n_blocks) {
        [[maybe_unused]] const int lane = threadIdx.x % 32;
        const int piece_blocks = 4 * a.piece_quads;
        for (int first = 0; first < n_blocks; first += piece_blocks) {
#if __CUDA_ARCH__ >= 900
            if (!ready()) return false;
#else
            if (!__shfl_sync(~0u, lane == 0 && ready(), 0)) return false;
#endif
            const int bytes = min(piece_blocks, n_blocks - first) * kBlockBytes;
            const uint8_t* from = reinterpret_cast<const uint8_t*>(tile) + first * kBlockBytes;
            const bool with_vectors = first == 0;
            const uint32_t to = ring.slot(head), barrier = ring.full(head.slot);
#if __CUDA_ARCH__ >= 900
            ptx::mbarrier_expect(barrier, bytes + (with_vectors ? kVectorBytes : 0));
            ptx::bulk_copy(to, from, bytes, barrier, policy);
            if (with_vectors) ptx::bulk_copy(to + kVectorOffset, vectors, kVectorBytes, barrier, policy);
#else
            for (int at = lane * 16; at < bytes; at += 32 * 16) ptx::copy_16(to + at, from + at);
            if (with_vectors && lane < kVectorBytes / 16)
                ptx::copy_16(to + kVectorOffset + lane * 16, vectors + lane * 4);
            ptx::mbarrier_arrive_after_copies(barrier);
#endif
            head = ring.next(head);
            ++under_way;
        }
        return true;
    }

    __device__ bool copy_matrix(const TaskMatrix& matrix, int n_blocks) {
        for (int unit = 0; unit < matrix.units; ++unit) {
            const int task = matrix.first_task + unit * int(gridDim.x);
            if (!copy_unit(matrix.tiles + uint64_t(task) * n_blocks * 256, matrix.vectors + task / matrix.parts * 32,
                           n_blocks))
                return false;
        }
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
            tail = ring.next(tail);
        }
    }
};

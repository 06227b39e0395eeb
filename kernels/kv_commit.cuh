// Moves the keys and values of accepted nodes from their slots to their positions in the cache, bit for bit. One block
// a (layer, keys or values, head); 16 bytes a thread. Slots and positions are different rows, so order does not matter.
#pragma once

#include "kernels/device_model.h"

// The share of the block with this index of n_layer * 2 * n_head.
__device__ inline void commit_rows(const DeviceModel& model, int block, int base, int n, const uint16_t* slot) {
    uint16_t* rows = model.kv + uint64_t(block) * model.kv_rows * kHeadSize;
    constexpr int kCopies = kHeadSize / 8;
    for (int i = threadIdx.x; i < n * kCopies; i += blockDim.x) {
        const int row = i / kCopies, at = i % kCopies * 8;
        const uint64_t from = uint64_t(model.n_positions + slot[row]) * kHeadSize + at;
        const uint64_t to = uint64_t(base + row) * kHeadSize + at;
        *reinterpret_cast<uint4*>(rows + to) = *reinterpret_cast<const uint4*>(rows + from);
    }
}

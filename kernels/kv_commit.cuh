// Moves the keys and values of accepted nodes from their slots to their positions in the cache, bit for bit. One block
// a (layer, keys or values, head); 16 bytes a thread. Slots and positions are different rows, so order does not matter.
#pragma once

#include "kernels/device_model.h"

struct CommitArguments {
    DeviceModel model;
    int base, n;
    uint16_t slot[kMaxSlots];  // (n)
};

__global__ void commit_kernel(const __grid_constant__ CommitArguments a) {
    uint16_t* rows = a.model.kv + uint64_t(blockIdx.x) * a.model.kv_rows * kHeadSize;
    constexpr int kCopies = kHeadSize / 8;
    for (int i = threadIdx.x; i < a.n * kCopies; i += blockDim.x) {
        const int row = i / kCopies, at = i % kCopies * 8;
        const uint64_t from = uint64_t(a.model.n_positions + a.slot[row]) * kHeadSize + at;
        const uint64_t to = uint64_t(a.base + row) * kHeadSize + at;
        *reinterpret_cast<uint4*>(rows + to) = *reinterpret_cast<const uint4*>(rows + from);
    }
}

// Prefill of a text by kernels of tiles of tokens (kernels/prefill.cu): they read the weights once for kPrefillTokens
// tokens, a pass for up to 64.
#pragma once

#include <span>

#include "kernels/device_model.h"

struct CUstream_st;

constexpr int kPrefillTokens = 512;  // that a text is cut into
constexpr int kTokenTile = 64;       // tokens that a block multiplies at a time

// Matrix inputs of prefill are fp16 in the order in which a lane reads them: by tile of kTokenTile tokens and block of
// 16 columns the B fragments of mma.m16n8k16, 16 bytes a lane for two column tiles of 8 tokens each. Offset in halves
// of element (token, column) of rows of `columns` columns.
HD constexpr uint32_t prefill_index(uint32_t token, uint32_t column, uint32_t columns) {
    const uint32_t tile = token / kTokenTile, lane = token % 8 * 4 + column % 8 / 2;
    return tile * columns * kTokenTile + column / 16 * (16 * kTokenTile) + token % kTokenTile / 16 * 256 + lane * 8 +
           token / 8 % 2 * 4 + column % 16 / 8 * 2 + column % 2;
}

// Global memory between the kernels, for `rows` tokens: kPrefillTokens, or n_positions up to whole tiles if that is
// less.
struct PrefillScratch {
    int rows;
    float* x;           // (rows, n_embd) residual stream
    float* q;           // (rows, n_embd)
    float* part;        // (kSplit, rows, n_embd) parts of mlp_proj's result; the first also holds c_proj's, without bias
    uint16_t* input;    // (rows, n_embd) by prefill_index: x times LayerNorm's weight, or attention's result
    float* moments;     // (rows, 2) mean and scale of x
    uint16_t* mlp;      // (rows, 4 n_embd) by prefill_index: GELU's result
    uint32_t* failure;  // as Scratch's
};

// How the kernels are launched on this device.
struct PrefillSetup {
    int n_slots;    // of the ring of prefill_multiply()
    bool overlaps;  // a kernel may start before the one before it has ended
};
// Bytes of dynamic shared memory that a block may take, and that the device allows.
PrefillSetup prefill_setup(int max_shared, int device_shared);

// vectors: (units, 2, 16) what the matrices' results are combined with (kernels/fold.cuh).
// Enqueues what puts the keys and values of 1 to scratch.rows tokens into the cache, from position `base` on.
void enqueue_prefill(const DeviceModel& model, const float* vectors, const PrefillScratch& scratch,
                     const PrefillSetup& setup, int n_blocks, int base, std::span<const int32_t> tokens,
                     CUstream_st* stream);

// What the kernels are given: the model in device memory, the scratch of a pass, and the pass.
#pragma once

#include <cstdint>

#include "decode/tree.h"
#include "model/blob.h"
#include "model/host_device.h"

constexpr int kHeadSize = 64;  // the only one the kernels know
constexpr int kMultiplyWarps = 16;
constexpr int kMultiplyThreads = 32 * kMultiplyWarps;
constexpr int kBlockThreads = kMultiplyThreads + 32;  // and one warp that streams the weights
constexpr int kSharedState = 2560;  // bytes at most of a block's shared memory that SharedLayout leaves out
constexpr int kSplit = 4;           // mlp_proj is multiplied as 4 matrices of n_embd columns, summed in order

// Whether more loads may be under way and more be kept than must be: on sm_90. Elsewhere ptxas needs more registers for
// the same kernels and would spill.
HD constexpr bool registers_to_spare() {
#if __CUDA_ARCH__ == 900
    return true;
#else
    return false;
#endif
}

// On sm_100 and later it needs even more.
HD constexpr bool registers_are_short() {
#if __CUDA_ARCH__ > 900
    return true;
#else
    return false;
#endif
}

struct DeviceModel {
    int n_layer, n_head, n_embd, n_positions, n_vocab;
    float epsilon, per_column;  // 1 / n_embd
    bool stays_in_l2;           // the weights fit there
    const uint8_t* weights;     // the section as in the blob
    LayerLayout layer;          // offsets of layer 0; those of the next are layer_stride further
    uint64_t layer_stride;
    uint64_t wte, wpe, ln_f_weight, ln_f_bias, lm_head;
    int kv_rows;   // n_positions + kMaxSlots: the cache by position, then the slots
    uint16_t* kv;  // (n_layer, 2: keys, values, n_head, kv_rows, 64) fp16

    HD const float* vector(int layer_index, uint64_t offset) const {
        return reinterpret_cast<const float*>(weights + layer_index * layer_stride + offset);
    }
    HD const uint16_t* halves(int layer_index, uint64_t offset) const {
        return reinterpret_cast<const uint16_t*>(weights + layer_index * layer_stride + offset);
    }
    HD uint16_t* kv_row(int layer_index, int keys_or_values, int head, int row) const {
        return kv + (((uint64_t(layer_index) * 2 + keys_or_values) * n_head + head) * kv_rows + row) * kHeadSize;
    }
};

// Matrix inputs are fp16 rows in which each run of 32 columns is kept in the order in which a lane of mma.m16n8k16
// reads its B fragments: columns 2t, 2t+1, 2t+8, 2t+9 of the first 16, then of the second, for t = 0..3. Even columns
// keep their right neighbour.
HD constexpr uint32_t fragment_column(uint32_t column) {
    const uint32_t c = column % 32;
    return column - c + (c % 8) / 2 * 8 + c / 16 * 4 + c % 16 / 8 * 2 + c % 2;
}

// Kernels run passes of up to so many nodes, those of 8 and more with as many column tiles of 8 as that makes.
constexpr int kWidths[] = {1, 8, 16, 32, 64};
HD constexpr int column_tiles(int width) {
    return (width + 7) / 8;
}
constexpr int kNarrow = 8;  // nodes of the widest pass in which blocks share heads (tree_attention.cuh)

// What blocks exchange of a kind, rows by node of values, which are floats or pairs of halves (exchange.cuh): as words
// of (value, number) in passes of one node, qkv in those of up to kNarrow, else in rows of all that a layer exchanges,
// `first` values from their beginning on. Of matrix inputs, the halves stand in fragment order.
struct Rows {
    uint64_t* word;  // (columns); of qkv (kNarrow, columns)
    uint32_t columns, first;
};

// Buffers of what a layer exchanges: three in turn, one of the last layer, one of what follows it.
constexpr int kTurns = 3, kBuffers = kTurns + 2;

// Global memory between the phases of a pass. Of x and what goes with it a layer has two: ahead of ln_1 and of ln_2.
struct Scratch {
    Rows x[2];        // n_embd floats: the residual stream
    Rows moments[2];  // n_embd / 8 floats: of every 16 columns of x the sum and that of their squares (residual.cuh)
    Rows input[2];    // n_embd halves: x times the next LayerNorm's weight
    Rows qkv;         // q, n_embd floats; new keys, then values, n_embd halves each, in order
    Rows attention;   // n_embd halves
    Rows mlp;         // 4 n_embd halves: matrix input of mlp_proj
    uint32_t* value;  // (kBuffers, kMaxNodes, layer_values) of wide passes
    uint32_t layer_values;  // of a node
    uint64_t* parts;   // (n_embd / 16, kSplit, kMaxNodes / 8, 128) words: of mlp_proj's result, on the way to one block
    uint64_t* chunks;  // (n_head, max_chunks, kNarrow, kChunkWords) words: of attention's result (tree_attention.cuh)
    float* logits;     // (kMaxNodes, pad16(n_vocab)) of the nodes that have them, in order
    float* greatest;   // (kMaxNodes, pad16(n_vocab) / 16) of every 16 of them, NaN left out; -infinity: none
    uint64_t* best;    // (2) greedy decoding: the best (logit, token) of even and odd steps
    int32_t* chosen;   // (1) the token that sampled decoding goes on with
    uint32_t *counter, *next_counter;  // phase counter of this kernel, of the next
    uint32_t* stop;                    // not 0 ends the current decode
    uint32_t* failure;                 // host memory: which wait ran out of patience
};

// The nodes of a pass in device memory.
struct PassNodes {
    int32_t token[kMaxNodes];
    int32_t depth[kMaxNodes];            // the position is base + depth
    uint8_t path[kMaxSlots][kMaxNodes];  // [d][i]: the slot of node i's ancestor at depth d < depth[i]
};

struct DevicePass {
    int n, n_logits;
    int base;         // committed positions
    int first;        // slot of the first node
    int slot_rows;    // the row of the cache that slot 0 stands for: n_positions, or base for text that is certain
    int nodes_at;     // where the first node stands in PassNodes
    int logits_at;    // row of the logits where the first node that has them stands
    uint32_t number;  // of its first exchange: a launch takes 4 n_layer + 2 of them
};

// The nodes at .. at + width - 1 of a pass as a pass of their own; n = 0: there are none.
HD inline DevicePass pass_part(const DevicePass& pass, int at, int width) {
    DevicePass part = pass;
    const int first_logit = pass.n - pass.n_logits - at;
    part.n = pass.n - at < width ? pass.n - at : width;
    if (part.n <= 0) part.n = 0;
    part.n_logits = first_logit <= 0 ? part.n : first_logit < part.n ? part.n - first_logit : 0;
    part.first += at;
    part.nodes_at += at;
    part.logits_at = first_logit < 0 ? -first_logit : 0;
    return part;
}

// Offsets in a block's shared memory, bytes.
struct SharedLayout {
    // From 0 on: sums of the warps.
    uint32_t input;  // (8 NT, input_stride) fp16 matrix input; with the sums what attention works on
    uint32_t ring;   // (n_slots, kSlotBytes)
    uint32_t bytes;
    int input_stride, n_slots;
    int held_units;       // whose sums there is room for at a time; their pieces fit in the ring twice
    int attention_nodes;  // of one head that a block takes at a time in passes of more than kNarrow nodes
    int attention_split;  // blocks that share a head in narrower ones
};

// A matrix of each layer, or the head, as the pass reads it (weight_ring.cuh).
struct MatrixPlan {
    uint64_t weight;  // offset in layer 0
    int vectors;      // where those of layer 0 begin, in units of 16 rows
    int n_tasks;      // of one unit each: 16 rows by n_embd columns
    int turns, rest;  // n_tasks in turns of all blocks, and what is left
};

// The matrices of a pass in their order: four a layer, then the head.
enum class Matrix { c_attn, c_proj, c_fc, mlp_proj, head };
constexpr int kLayerMatrices = 4;

// Rows of a layer's matrices, in multiples of n_embd: of those before one, of all, of one. What results are combined
// with (fold.cuh) is 2 x 16 floats for each 16 of these rows, layer by layer, then of the head's.
HD constexpr int rows_before(Matrix which) {
    return which == Matrix::c_attn     ? 0
           : which == Matrix::c_proj   ? 3
           : which == Matrix::c_fc     ? 4
           : which == Matrix::mlp_proj ? 8
                                       : 9;
}
constexpr int kLayerRows = rows_before(Matrix::head);
HD constexpr int rows_of(Matrix which) {
    return rows_before(Matrix(int(which) + 1)) - rows_before(which);
}
// Parts that its columns are multiplied in, of n_embd each.
HD constexpr int parts_of(Matrix which) {
    return which == Matrix::mlp_proj ? kSplit : 1;
}
// Where the weights of a layer's matrix begin.
HD constexpr uint64_t weight_of(const LayerLayout& layer, Matrix which) {
    return which == Matrix::c_attn   ? layer.c_attn_weight
           : which == Matrix::c_proj ? layer.c_proj_weight
           : which == Matrix::c_fc   ? layer.c_fc_weight
                                     : layer.mlp_proj_weight;
}
constexpr int kMaxDeviceLayers = 64;

struct PassArguments {
    DeviceModel model;
    const float* vectors;                   // (units, 2, 16) what results are combined with
    MatrixPlan matrix[kLayerMatrices + 1];  // by Matrix
    uint16_t
        turn[kLayerMatrices * kMaxDeviceLayers + 1];  // tasks of the pass before each matrix, mod the number of blocks
    int pieces, piece_quads;  // of a unit; of 4 fragment blocks, of a piece: the last one may have fewer
    uint32_t per_piece;       // 2^16 / pieces, rounded up: a quotient without a division
    Scratch scratch;
    uint32_t layer_rows[kMaxDeviceLayers + 1];  // where those of a layer begin in scratch.value, and what follows
    SharedLayout shared;
    int pace;  // pieces of the weights that a block has under way, at most
    DevicePass pass;
    const DevicePass* device_pass;  // in device memory, takes the place of `pass` unless null
    int least, most;                // nodes: a pass on the device that has fewer or more is left to other launches
    int at;                         // of its nodes, the first that this launch runs
    const PassNodes* nodes;
    uint32_t number;  // added to the pass's; a launch takes 4 n_layer + 2 of them
};

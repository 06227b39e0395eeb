// What a generation costs the machine by the engine's own account: bytes from and to memory, and floating-point
// operations, as a function of shapes and counts alone. `scripts/check_bytes.py` compares the bytes with what a GPU's
// counters saw.
//
// Bytes. A pass reads the weights of all layers and, where it has logits, of the head once for all its nodes (once
// for each `pass_width` of them; prefill once for each `prefill_width`); the keys and values of the committed text
// once. A node reads its row of wte and wpe and writes its keys and values and, where it has logits, those. What is
// read again at once (a pass's own activations, its logits, the keys and values that are moved on acceptance) is taken
// to come from cache. Weights are counted in every pass, though a small model may stay in cache from one pass to the
// next.
//
// FLOPs, a multiplication and an addition being two: 2 for each element of each matrix and node, and 4 n_embd a layer
// for each key that a node attends to. Only real nodes count, not the idle columns of the tiles that they ride in.
// LayerNorm, GELU, softmax and sampling are left out (below 0.2 % for GPT2-L).
#pragma once

#include "decode/decoder.h"
#include "model/config.h"

// Passes of one model.
struct Work {
    double passes = 0;
    double nodes = 0;         // evaluated in them
    double logits = 0;        // of these, the ones whose logits were computed; 0: the head was not read
    double context = 0;       // committed positions before a pass, on average
    double node_context = 0;  // keys that a node attends to, on average
};

struct Traffic {  // bytes
    double weights = 0, embeddings = 0, kv_read = 0, kv_written = 0, logits = 0;

    double total() const { return weights + embeddings + kv_read + kv_written + logits; }
    Traffic& operator+=(const Traffic& other);
};

struct Cost {
    Traffic bytes;
    double flops = 0;

    Cost& operator+=(const Cost& other);
};

Cost cost_of(const Config& config, const Work& work, const EngineFacts& engine);

// The cost of one generation. draft: null if the model file holds none (it costs nothing in baseline mode either).
struct Account {
    Cost prefill;        // of all models
    Cost target, draft;  // after prefill
    Cost useful;         // of one target pass of one node for each emitted token: baseline's cost of the same text

    Cost decode() const;  // target and draft
};

// Where in the text a speculative round began is not recorded, so passes are taken to lie evenly over what was
// emitted: exact for baseline, and else wrong only in the keys and values, 3 % of the bytes for GPT2-L at 300 tokens.
// Every draft node is taken to have logits (of the committed tokens that its first pass takes along, few do not).
Account account_of(const Config& target, const Config* draft, Mode mode, const Statistics& stats,
                   const EngineFacts& engine);

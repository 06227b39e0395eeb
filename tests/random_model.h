// A GPT-2 of any shape with random weights, in memory, for tests that need no particular text.
#pragma once

#include <cstdint>
#include <vector>

#include "model/blob.h"

struct RandomModel {
    std::vector<uint64_t> storage;  // the section's bytes, aligned
    ModelView view;
};

// A model of this shape whose weights are all zero, for others to fill in place.
RandomModel make_zero_model(const Config& config);

// Weights are normal with deviation `scale` (LayerNorm weights around 1), rounded to fp16; the same for the same seed.
RandomModel make_random_model(int n_layer, int n_head, int n_embd, int n_positions, int n_vocab, uint64_t seed,
                              float scale = 0.08f, bool tied = true);

// A table over n_vocab tokens whose successors are random: contexts of random token pairs, `fill` of the slots in use.
struct RandomTable {
    NgramHeader header;
    std::vector<NgramEntry> trigram, bigram, unigram;
    NgramView view() const { return {&header, trigram.data(), bigram.data(), unigram.data()}; }
};
RandomTable make_random_table(int n_vocab, uint64_t seed);

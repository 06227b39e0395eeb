#include "model/config.h"

#include <cmath>

static bool within(int value, int low, int high) {
    return value >= low && value <= high;
}

std::string config_fault(const Config& c) {
    const auto range = [](const char* name, int found, int high) {
        return std::string(name) + " is " + std::to_string(found) + " (must be 1 to " + std::to_string(high) + ")";
    };
    if (!within(c.n_layer, 1, kMaxLayers)) return range("n_layer", c.n_layer, kMaxLayers);
    if (!within(c.n_embd, 1, kMaxEmbd)) return range("n_embd", c.n_embd, kMaxEmbd);
    if (!within(c.n_head, 1, c.n_embd)) return range("n_head", c.n_head, c.n_embd);
    if (c.n_embd % c.n_head)
        return "n_embd " + std::to_string(c.n_embd) + " is not a multiple of n_head " + std::to_string(c.n_head);
    if (!within(c.n_positions, 1, kMaxPositions)) return range("n_positions", c.n_positions, kMaxPositions);
    if (!within(c.n_vocab, 1, kMaxVocab)) return range("vocab_size", c.n_vocab, kMaxVocab);
    if (!(c.layer_norm_epsilon > 0 && c.layer_norm_epsilon < 1))
        return "layer_norm_epsilon is " + std::to_string(c.layer_norm_epsilon) + " (must lie between 0 and 1)";
    if (!within(c.eos_token, -1, c.n_vocab - 1))
        return "eos_token_id is " + std::to_string(c.eos_token) + " but the vocabulary ends at " +
               std::to_string(c.n_vocab - 1);
    if (!within(c.tied, 0, 1)) return "the tied flag is " + std::to_string(c.tied) + " (must be 0 or 1)";
    return "";
}

// The shape of a GPT-2 and the limits that every part of the program relies on.
#pragma once

#include <cstdint>
#include <string>

#include "model/host_device.h"

struct Config {
    int32_t n_layer;
    int32_t n_head;
    int32_t n_embd;
    int32_t n_positions;
    int32_t n_vocab;
    float layer_norm_epsilon;
    int32_t eos_token;  // -1: none
    int32_t tied;       // 1: the head is wte; 0: the blob holds an lm_head of its own

    HD int head_size() const { return n_embd / n_head; }
    bool operator==(const Config&) const = default;
};

// Nothing a loader computes from a shape within these bounds overflows 64 bits.
constexpr int kMaxLayers = 1024;
constexpr int kMaxEmbd = 65536;
constexpr int kMaxPositions = 1 << 20;
constexpr int kMaxVocab = 1 << 24;

// One sentence that says which field is out of range, or "" for a usable shape.
std::string config_fault(const Config& config);

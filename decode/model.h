// One model as the decode loop sees it: passes over nodes of a tree, what is read off their logits, and the cache.
//
// Slots: a node that is evaluated owns a slot, which holds its keys and values until the round ends. The cache below
// `base` holds the committed text by position. A slot's ancestors are found through `parent`; a slot whose parent is -1
// continues the committed text, at position `base`. So the position of a slot is base + its depth, and it attends to
// the cache below base, then to its ancestors by depth, then to itself.
#pragma once

#include <cstdint>
#include <span>

#include "decode/choose.h"
#include "decode/tree.h"
#include "model/config.h"

struct Pass {
    int base;   // committed positions in the cache
    int first;  // the pass evaluates slots first .. first + n - 1, 1 <= n <= kMaxNodes
    int n;
    const int32_t* token;   // (first + n) by slot
    const int32_t* parent;  // (first + n) by slot: a smaller slot, or -1
    int n_logits;           // logits are computed for the last n_logits nodes of the pass, 0 to n
};

class Model {
public:
    virtual ~Model() = default;
    virtual const Config& config() const = 0;

    // Runs the pass; every position must lie below n_positions and every slot below kMaxSlots.
    virtual void forward(const Pass& pass) = 0;

    // For each node with logits of the last pass, in order: the token of the position after it, as decode/choose.h
    // defines it.
    virtual void choose(const Sampling& sampling, std::span<int32_t> chosen) = 0;

    // For each node with logits of the last pass, in order: its `n_children` best continuations with their
    // log-probabilities as the draft sees them (decode/choose.h, propose). children: (n_logits, n_children).
    virtual void propose(const Sampling& sampling, float tau, int n_children, std::span<Child> children) = 0;

    // For each node with logits of the last pass: natural-log probability of next[i] under softmax(logits).
    virtual void log_probability(std::span<const int32_t> next, std::span<float> result) = 0;

    // Moves the keys and values of the given slots, bit for bit, to positions base, base + 1, ... of the cache.
    virtual void commit(int base, std::span<const int32_t> slots) = 0;
};

// Growing a round's tree with the draft: which nodes the next draft pass evaluates, what its proposals add
// to the tree, and when another pass no longer pays.
//
// A pass takes nodes best first from one pool: the tree's unevaluated nodes by their score and, in staged mode, tokens
// that the n-gram guesses the draft will choose below the nodes already taken, by the score they would have. When the
// draft then proposes a guessed token, its evaluation is there already and the tree grows several levels in one pass
// (the paper's speculation of the draft's own speculation). A guess that the draft does not propose is dropped.
#pragma once

#include <cstdint>

#include "decode/choose.h"
#include "decode/ngram.h"
#include "decode/tree.h"

// What the draft has evaluated in this round, by slot. The first `n_chain` slots are a chain: the committed tokens that
// the draft's cache does not hold yet, the root last.
struct DraftRound {
    int base;     // committed positions in the draft's cache
    int n_chain;  // 1 to kMaxNodes
    int n_slots;  // evaluated, or planned for the next pass
    int passes;
    int max_depth;            // of nodes: deeper ones could not be emitted
    int max_evaluated_depth;  // of nodes that the draft's context has room to evaluate
    int guesses, confirmed;   // n-gram nodes evaluated, and proposed by the draft afterwards
    int32_t token[kMaxSlots];
    int32_t parent[kMaxSlots];  // slot, -1 for the first of the chain
    int16_t node[kMaxSlots];    // of the tree, -1: a guess, or chain below the root
    uint8_t depth[kMaxSlots];
    float score[kMaxSlots];
    Child child[kMaxSlots][kMaxChildren];  // valid for evaluated slots from the root on
};

// Starts a round whose tree is the root alone. pending: (n_chain) the committed tokens from position `base` on, the
// root last.
HD inline void draft_start(DraftRound& round, Tree& tree, const TreeSettings& settings, int base,
                           const int32_t* pending, int n_chain, int max_depth, int max_evaluated_depth) {
    round.base = base;
    round.n_chain = round.n_slots = n_chain;
    round.passes = round.guesses = round.confirmed = 0;
    round.max_depth = max_depth;
    round.max_evaluated_depth = max_evaluated_depth;
    for (int i = 0; i < n_chain; ++i) {
        round.token[i] = pending[i];
        round.parent[i] = i - 1;
        round.node[i] = i == n_chain - 1 ? 0 : -1;
        round.depth[i] = 0;
        round.score[i] = 0;
    }
    tree_start(tree, settings.nodes, pending[n_chain - 1], -1);
}

// Whether another draft pass is expected to raise the rate of tokens: the tree's expected yield, 1 + the sum of its
// nodes' probabilities, over the round's time. A frontier node's children are expected to hold 0.7 of its probability
// and to push the worst nodes out of a full tree.
HD inline bool draft_pays(const DraftRound& round, const Tree& tree, const TreeSettings& settings) {
    if (round.passes == 0) return tree.capacity > 1 && round.max_depth > 0;
    if (round.passes >= settings.draft_passes || round.n_slots >= kMaxSlots) return false;
    float yield = 1, gain = 0;
    for (int i = 1; i < tree.n; ++i) yield += exp_negative(tree.node[tree.order[i]].score);
    int taken = 0, room = tree.capacity - tree.n, worst = tree.n - 1;
    for (int i = 0; i < tree.n && taken < settings.draft_width; ++i) {
        const Node& node = tree.node[tree.order[i]];
        if (node.slot >= 0 || node.depth > round.max_evaluated_depth || node.depth >= round.max_depth) continue;
        float added = 0.7f * exp_negative(node.score);
        if (taken++ >= room) added -= exp_negative(tree.node[tree.order[worst--]].score);
        if (added <= 0) break;
        gain += added;
    }
    return gain * (1 + round.passes * settings.draft_cost) > yield * settings.draft_cost;
}

// The last tokens of the text as seen from a slot: committed text, then the slot's path. Returns their number.
HD inline int draft_suffix(const DraftRound& round, int slot, const int32_t* text, int n_text,
                           int32_t* suffix /* (kMaxSuffix) */) {
    int32_t reversed[kMaxSuffix];
    int n = 0;
    for (; n < kMaxSuffix && slot >= round.n_chain; slot = round.parent[slot]) reversed[n++] = round.token[slot];
    for (int i = n_text - 1; n < kMaxSuffix && i >= 0; --i) reversed[n++] = text[i];
    for (int i = 0; i < n; ++i) suffix[i] = reversed[n - 1 - i];
    return n;
}

// Fills the slots of the next pass from round.n_slots on and returns the slot it starts at (the pass covers that slot
// up to the new n_slots); nothing to evaluate leaves n_slots as it was. text: (n_text) committed tokens, the root last.
// ngram_nodes: guesses that the pass may hold, 0 in speculative mode.
HD inline int draft_plan(DraftRound& round, const Tree& tree, const TreeSettings& settings, const NgramView& table,
                         const int32_t* text, int n_text, int ngram_nodes) {
    struct Open {  // a node that may enter the pass
        int32_t token;
        int16_t parent, node;
        uint8_t depth;
        float score;
    };
    constexpr int kMaxOpen = kMaxNodes + kMaxNodes * kMaxGuesses;
    Open open[kMaxOpen];
    int n_open = 0;

    const bool first_pass = round.passes == 0;
    const int first = first_pass ? 0 : round.n_slots;
    const int chain = first_pass ? round.n_chain : 0;
    int end = first + (first_pass ? chain - 1 + settings.draft_width : settings.draft_width);
    end = end < first + kMaxNodes ? end : first + kMaxNodes;
    end = end < kMaxSlots ? end : kMaxSlots;

    // Guesses for what follows a slot join the pool.
    const auto guess_below = [&](int slot) {
        if (ngram_nodes == 0 || round.depth[slot] >= round.max_evaluated_depth ||
            round.depth[slot] + 1 >= round.max_depth)
            return;
        int32_t suffix[kMaxSuffix];
        Guess guess[kMaxGuesses];
        const int n_suffix = draft_suffix(round, slot, text, n_text, suffix);
        const int n = ngram_guess(table, text, n_text, suffix, n_suffix, guess);
        for (int i = 0; i < n && n_open < kMaxOpen; ++i)
            if (guess[i].probability > 0)
                open[n_open++] = {guess[i].token, int16_t(slot), -1, uint8_t(round.depth[slot] + 1),
                                  round.score[slot] + log_positive(guess[i].probability)};
    };

    if (first_pass) {
        guess_below(round.n_chain - 1);
    } else {
        for (int i = 1; i < tree.n; ++i) {
            const Node& node = tree.node[tree.order[i]];
            if (node.slot < 0 && node.depth <= round.max_evaluated_depth && node.depth < round.max_depth)
                open[n_open++] = {node.token, tree.node[node.parent].slot, tree.order[i], node.depth, node.score};
        }
    }
    while (round.n_slots < end) {
        int best = -1;
        for (int i = 0; i < n_open; ++i)
            if ((open[i].node >= 0 || ngram_nodes > 0) && (best < 0 || open[i].score > open[best].score)) best = i;
        if (best < 0) break;
        const Open chosen = open[best];
        open[best] = open[--n_open];
        const int slot = round.n_slots++;
        round.token[slot] = chosen.token;
        round.parent[slot] = chosen.parent;
        round.node[slot] = chosen.node;
        round.depth[slot] = chosen.depth;
        round.score[slot] = chosen.score;
        if (chosen.node < 0) --ngram_nodes, ++round.guesses;
        guess_below(slot);
    }
    ++round.passes;
    return first;
}

// Takes in the proposals of the pass that covered slots first .. n_slots - 1 (round.child is filled from the root on)
// and lets the tree grow through guesses that they confirm.
HD inline void draft_absorb(DraftRound& round, Tree& tree, const TreeSettings& settings, int first) {
    for (int slot = first; slot < round.n_slots; ++slot)
        if (round.node[slot] >= 0) tree.node[round.node[slot]].slot = int16_t(slot);
    for (int i = 0; i < tree.n; ++i) {
        const int index = tree.order[i];
        const Node node = tree.node[index];
        if (node.slot < 0 || node.expanded) continue;
        tree.node[index].expanded = true;
        if (node.depth >= round.max_depth) continue;
        for (int c = 0; c < settings.children; ++c) {
            const Child& child = round.child[node.slot][c];
            if (child.token < 0) break;
            int guessed = -1;
            for (int slot = first; slot < round.n_slots && guessed < 0; ++slot)
                if (round.node[slot] < 0 && round.parent[slot] == node.slot && round.token[slot] == child.token &&
                    slot >= round.n_chain)
                    guessed = slot;
            const Node added = {child.token,
                                int16_t(index),
                                int16_t(guessed),
                                node.score + child.log_probability,
                                uint8_t(node.depth + 1),
                                false,
                                guessed >= 0};
            if (tree_insert(tree, added) >= 0 && guessed >= 0) ++round.confirmed;
        }
        // Children stand behind their parent, so the sweep over the order goes on to them.
    }
}

// After acceptance: the slots whose keys and values the draft's cache takes over, in order of position. path: ranks in
// the tree, from tree_accept. Returns their number.
HD inline int draft_commit(const DraftRound& round, const Tree& tree, const int* path, int length,
                           int32_t* slots /* (kMaxNodes + kMaxDepth) */) {
    int n = 0;
    for (; n < round.n_chain; ++n) slots[n] = n;
    for (int i = 1; i < length && tree.node[tree.order[path[i]]].slot >= 0; ++i)
        slots[n++] = tree.node[tree.order[path[i]]].slot;
    return n;
}

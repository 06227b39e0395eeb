// Growing a round's tree with the draft: which nodes the next draft pass evaluates, what its proposals add
// to the tree, and when another pass no longer pays.
//
// A pass takes nodes best first from one pool: the tree's unevaluated nodes by their score and, in staged mode, tokens
// that the n-gram guesses the draft will choose below the nodes already taken, by the score they would have. When the
// draft then proposes a guessed token, its evaluation is there already and the tree grows several levels in one pass
// (the paper's speculation of the draft's own speculation). A guess that the draft does not propose is dropped.
//
// The functions are a team's (decode/team.h); what they are given lies in memory that the team shares.
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
    int16_t node[kMaxSlots];    // of the tree as the slot's pass was planned, -1: a guess, or chain below the root
    uint8_t depth[kMaxSlots];
    float score[kMaxSlots];
};

// Starts a round whose tree is the root alone. pending: (n_chain) the committed tokens from position `base` on, the
// root last.
HD inline void draft_start(DraftRound& round, Tree& tree, const TreeSettings& settings, int base,
                           const int32_t* pending, int n_chain, int max_depth, int max_evaluated_depth) {
    if (team_thread() == 0) {
        round.base = base;
        round.n_chain = round.n_slots = n_chain;
        round.passes = round.guesses = round.confirmed = 0;
        round.max_depth = max_depth;
        round.max_evaluated_depth = max_evaluated_depth;
    }
    team_for(n_chain, [&](int i) {
        round.token[i] = pending[i];
        round.parent[i] = i - 1;
        round.node[i] = i == n_chain - 1 ? 0 : -1;
        round.depth[i] = 0;
        round.score[i] = 0;
    });
    tree_start(tree, settings.nodes, pending[n_chain - 1]);
}

// The nodes below the root that a pass could evaluate, as a mask.
HD inline uint64_t draft_open(const DraftRound& round, const Tree& tree) {
    return team_mask(tree.n, [&](int i) {
        const Node& node = tree.node[i];
        return i > 0 && node.slot < 0 && node.depth <= round.max_evaluated_depth && node.depth < round.max_depth;
    });
}

// Whether another draft pass is expected to raise the rate of tokens: the tree's expected yield, 1 + the sum of its
// nodes' probabilities, over the round's time. A frontier node's children are expected to hold 0.7 of its probability
// and to push the worst nodes out of a full tree. Sums are in units of 2^-24.
HD inline bool draft_pays(const DraftRound& round, const Tree& tree, const TreeSettings& settings) {
    TEAM_SHARED uint32_t yield, gain;
    if (round.passes == 0) return tree.capacity > 1 && round.max_depth > 0;
    if (round.passes >= settings.draft_passes || round.n_slots >= kMaxSlots) return false;
    const uint64_t open = draft_open(round, tree);
    if (team_thread() == 0) yield = 1 << 24, gain = 0;
    team_sync();
    team_for(tree.n, [&](int i) {
        if (i == 0) return;
        const float probability = exp_negative(tree.node[i].score);
        team_add(yield, uint32_t(probability * 0x1p24f));
        const int taken = count_bits(open & bits_below(i));  // before this one
        if (!(open >> i & 1) || taken >= settings.draft_width) return;
        const int pushed_out = taken - (tree.capacity - tree.n);  // of the worst nodes, by those before this one
        float added = 0.7f * probability;
        if (pushed_out >= 0) added -= exp_negative(tree.node[tree.n - 1 - pushed_out].score);
        if (added > 0) team_add(gain, uint32_t(added * 0x1p24f));
    });
    team_sync();
    const bool pays =
        float(gain) * (1 + float(round.passes) * settings.draft_cost) > float(yield) * settings.draft_cost;
    team_sync();
    return pays;
}

// The suffix that ends with `token` below a slot, or below the text for a slot of the chain.
HD inline Suffix draft_suffix(const DraftRound& round, int32_t token, int slot, const int32_t* text, int n_text) {
    Suffix suffix;
    suffix.token[0] = token;
    int at = n_text - 1;  // the root, and everything before it
    UNROLL
    for (int i = 1; i < kMaxSuffix; ++i) {
        if (slot >= round.n_chain) {
            suffix.token[i] = round.token[slot];
            slot = round.parent[slot];
        } else {
            suffix.token[i] = at >= 0 ? text[at] : -1;
            --at;
        }
    }
    return suffix;
}

// Fills the slots of the next pass from round.n_slots on and returns the slot it starts at (the pass covers that slot
// up to the new n_slots); nothing to evaluate leaves n_slots as it was. text: (n_text) committed tokens, the root last.
// ngram_nodes: guesses that the pass may hold, 0 in speculative mode. Equal scores: tree nodes first, then guesses in
// the order in which they came.
HD inline int draft_plan(DraftRound& round, const Tree& tree, const TreeSettings& settings, const NgramView& table,
                         const int32_t* text, int n_text, int ngram_nodes) {
    struct Asked {  // a node and the guesses for what follows it; a score of -infinity: none
        Suffix suffix;
        int32_t token[kMaxGuesses];
        float score[kMaxGuesses];
    };
    TEAM_SHARED struct {
        uint8_t open[kMaxNodes];  // the tree's nodes that may enter, best first
        Asked at_open[kMaxNodes], at_slot[kMaxNodes];
        Guess guess[8][kMaxGuesses];  // of each warp
        int taken, n_slots;
    } space;
    const bool first_pass = round.passes == 0;
    const int root_slot = round.n_chain - 1, first = first_pass ? 0 : round.n_slots, begin = round.n_slots;
    int end = first + settings.draft_width;  // of the pass; the first one holds the chain too
    end = end < kMaxSlots ? end : kMaxSlots;

    const uint64_t open = draft_open(round, tree);
    const int n_open = count_bits(open);
    team_for(tree.n, [&](int i) {
        if (open >> i & 1) space.open[count_bits(open & bits_below(i))] = uint8_t(i);
    });
    team_sync();

    const auto put = [&](int slot, int32_t token, int parent, int node, int depth, float score) {
        round.token[slot] = token;
        round.parent[slot] = parent;
        round.node[slot] = int16_t(node);
        round.depth[slot] = uint8_t(depth);
        round.score[slot] = score;
    };
    const auto put_open = [&](int slot, int k) {
        const Node& node = tree.node[space.open[k]];
        put(slot, node.token, tree.node[node.parent].slot, space.open[k], node.depth, node.score);
    };
    // By a warp: the guesses below a node whose suffix stands in asked.suffix.
    const auto ask = [&](Asked& asked, int depth, float score) {
        Guess* guess = space.guess[team_warp()];
        int n = 0;
        if (depth < round.max_evaluated_depth && depth + 1 < round.max_depth)
            n = ngram_guess(table, text, n_text, asked.suffix, guess);
        warp_sync();
        warp_for(kMaxGuesses, [&](int i) {
            const bool hope = i < n && guess[i].probability > 0;
            asked.token[i] = hope ? guess[i].token : -1;
            asked.score[i] = hope ? score + log_positive(guess[i].probability) : -INFINITY;
        });
        warp_sync();
    };

    int taken = 0, n_slots = begin;  // of the open nodes; planned
    if (ngram_nodes > 0) {
        // What follows the open nodes, or the root in the first pass: all at once.
        const int n_asked = first_pass ? 1 : n_open < end - begin ? n_open : end - begin;
        const auto asked_node = [&](int k) -> const Node& { return tree.node[first_pass ? 0 : space.open[k]]; };
        const auto asked = [&](int k) -> Asked& { return first_pass ? space.at_slot[root_slot] : space.at_open[k]; };
        team_for(n_asked, [&](int k) {
            const Node& node = asked_node(k);
            asked(k).suffix = first_pass ? draft_suffix(round, node.token, 0, text, n_text - 1)
                                         : draft_suffix(round, node.token, tree.node[node.parent].slot, text, n_text);
        });
        team_for(kMaxNodes * kMaxGuesses,
                 [&](int i) { space.at_slot[i / kMaxGuesses].score[i % kMaxGuesses] = -INFINITY; });
        team_sync();
        NO_UNROLL
        for (int k = team_warp(); k < n_asked; k += team_warps())
            ask(asked(k), asked_node(k).depth, asked_node(k).score);
        team_sync();
        // Then best first: each choice of a guess brings the guesses below it.
        if (team_warp() == 0) {
            int left = ngram_nodes;
            while (n_slots < end && left > 0) {
                int best = -1;
                float best_score = -INFINITY;
                warp_for((n_slots - first) * kMaxGuesses, [&](int i) {
                    const float score = space.at_slot[i / kMaxGuesses].score[i % kMaxGuesses];
                    if (score > best_score) best = i, best_score = score;
                });
                best = warp_best(best_score, best);
                if (best < 0 && taken == n_open) break;
                const int slot = n_slots++;
                Asked& below = space.at_slot[slot - first];
                Asked& above = space.at_slot[best < 0 ? 0 : best / kMaxGuesses];
                const int which = best % kMaxGuesses;
                if (best < 0 || (taken < n_open && tree.node[space.open[taken]].score >= above.score[which])) {
                    if (warp_lane() == 0) put_open(slot, taken);
                    const Asked& asked = space.at_open[taken++];
                    warp_for(kMaxSuffix, [&](int i) { below.suffix.token[i] = asked.suffix.token[i]; });
                    warp_for(kMaxGuesses, [&](int i) {
                        below.token[i] = asked.token[i];
                        below.score[i] = asked.score[i];
                    });
                    warp_sync();
                    continue;
                }
                const int parent = first + best / kMaxGuesses, depth = round.depth[parent] + 1;
                const int32_t token = above.token[which];
                const float score = above.score[which];
                warp_sync();
                if (warp_lane() == 0) {
                    put(slot, token, parent, -1, depth, score);
                    above.score[which] = -INFINITY;
                }
                warp_for(kMaxSuffix,
                         [&](int i) { below.suffix.token[i] = i == 0 ? token : above.suffix.token[i - 1]; });
                warp_sync();
                if (--left > 0 && n_slots < end) ask(below, depth, score);
            }
            if (warp_lane() == 0) {
                space.taken = taken;
                space.n_slots = n_slots;
                round.guesses += ngram_nodes - left;
            }
        }
        team_sync();
        taken = space.taken;
        n_slots = space.n_slots;
    }
    // The rest of the pass: open nodes alone.
    const int more = n_open - taken < end - n_slots ? n_open - taken : end - n_slots;
    team_for(more, [&](int k) { put_open(n_slots + k, taken + k); });
    if (team_thread() == 0) {
        round.n_slots = n_slots + (more > 0 ? more : 0);
        ++round.passes;
    }
    team_sync();
    return first;
}

// Takes in the proposals of the pass that covered slots first .. n_slots - 1 and lets the tree grow, through guesses
// that they confirm too. child: (n, kMaxChildren), the proposals for its slots from the root on.
HD inline void draft_absorb(DraftRound& round, Tree& tree, const TreeSettings& settings, int first,
                            const Child* child) {
    TEAM_SHARED struct {
        bool in_tree[kMaxNodes];   // of the pass's nodes: they belong there
        int8_t which[kMaxNodes];   // child of its parent that a guess is, -1: none
        int16_t place[kMaxNodes];  // in the tree, or tree.n + index in `added`
        float score[kMaxNodes];    // as the draft sees it
        Node added[kMaxAdded];     // (n, children), most of them void
        uint32_t confirmed;
    } space;
    const int root_slot = round.n_chain - 1, begin = first > root_slot ? first : root_slot;
    const int n = round.n_slots - begin, width = settings.children;
    const auto child_of = [&](int slot, int c) -> const Child& { return child[(slot - begin) * kMaxChildren + c]; };
    if (team_thread() == 0) space.confirmed = 0;
    int deepest = 0;  // of this thread's guesses that the draft proposed
    team_for(n, [&](int i) {
        const int slot = begin + i, node = round.node[slot];
        int which = -1;
        if (node >= 0) {
            tree.node[node].slot = int16_t(slot);
            space.place[i] = int16_t(node);
            space.score[i] = tree.node[node].score;
        } else {
            for (int c = 0; c < width && child_of(round.parent[slot], c).token >= 0 && which < 0; ++c)
                if (child_of(round.parent[slot], c).token == round.token[slot]) which = c;
            if (which >= 0 && round.depth[slot] > deepest) deepest = round.depth[slot];
        }
        space.in_tree[i] = node >= 0;
        space.which[i] = int8_t(which);
    });
    // A guess belongs to the tree if the draft proposed it and its parent belongs there: level by level.
    for (int depth = 1; team_any(depth <= deepest); ++depth)
        team_for(n, [&](int i) {
            if (space.which[i] < 0 || round.depth[begin + i] != depth) return;
            const int parent = round.parent[begin + i] - begin, which = space.which[i];
            if (!space.in_tree[parent]) return;
            space.score[i] = space.score[parent] + child_of(begin + parent, which).log_probability;
            space.place[i] = int16_t(tree.n + parent * width + which);
            space.in_tree[i] = true;
            team_add(space.confirmed, 1u);
        });
    team_for(n * width, [&](int i) {
        const int parent = i / width, slot = begin + parent;
        Node& node = space.added[i];
        node.score = -INFINITY;
        if (!space.in_tree[parent] || round.depth[slot] >= round.max_depth) return;
        bool proposed = true;
        for (int c = 0; c <= i % width; ++c) proposed &= child_of(slot, c).token >= 0;
        if (!proposed) return;
        const Child& proposal = child_of(slot, i % width);
        node = {proposal.token,
                space.place[parent],
                -1,
                space.score[parent] + proposal.log_probability,
                uint8_t(round.depth[slot] + 1),
                false};
    });
    team_sync();
    team_for(n, [&](int i) {
        if (space.which[i] >= 0 && space.in_tree[i]) {
            Node& node = space.added[space.place[i] - tree.n];
            node.slot = int16_t(begin + i);
            node.from_ngram = true;
        }
    });
    team_sync();
    tree_insert(tree, space.added, n * width);
    if (team_thread() == 0) round.confirmed += int(space.confirmed);
    team_sync();
}

// After acceptance: the slots whose keys and values the draft's cache takes over, in order of position. path: nodes of
// the tree, from tree_accept. Returns their number. By one thread.
HD inline int draft_commit(const DraftRound& round, const Tree& tree, const int* path, int length,
                           uint16_t* slots /* (kMaxNodes + kMaxDepth) */) {
    int n = 0;
    for (; n < round.n_chain; ++n) slots[n] = uint16_t(n);
    for (int i = 1; i < length && tree.node[path[i]].slot >= 0; ++i) slots[n++] = uint16_t(tree.node[path[i]].slot);
    return n;
}

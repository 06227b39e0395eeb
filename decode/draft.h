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

// The nodes below the root that a pass could evaluate, as a mask. By a warp.
HD inline uint64_t draft_open(const DraftRound& round, const Tree& tree) {
    return warp_mask(tree.n, [&](int i) {
        const Node& node = tree.node[i];
        return i > 0 && node.slot < 0 && node.depth <= round.max_evaluated_depth && node.depth < round.max_depth;
    });
}

// Whether another draft pass is expected to raise the rate of tokens: the tree's expected yield, 1 + the sum of its
// nodes' probabilities, over the round's time. A frontier node's children are expected to hold 0.7 of its probability
// and to push the worst nodes out of a full tree. Sums are in units of 2^-24. By a warp.
HD inline bool draft_pays(const DraftRound& round, const Tree& tree, const TreeSettings& settings) {
    if (round.passes == 0) return tree.capacity > 1 && round.max_depth > 0;
    if (round.passes >= settings.draft_passes || round.n_slots >= kMaxSlots) return false;
    const uint64_t open = draft_open(round, tree);
    uint32_t yield = 0, gain = 0;
    warp_for(tree.n, [&](int i) {
        if (i == 0) return;
        const float probability = exp_negative(tree.node[i].score);
        yield += uint32_t(probability * 0x1p24f);
        const int taken = count_bits(open & bits_below(i));  // before this one
        if (!(open >> i & 1) || taken >= settings.draft_width) return;
        const int pushed_out = taken - (tree.capacity - tree.n);  // of the worst nodes, by those before this one
        float added = 0.7f * probability;
        if (pushed_out >= 0) added -= exp_negative(tree.node[tree.n - 1 - pushed_out].score);
        if (added > 0) gain += uint32_t(added * 0x1p24f);
    });
    yield = (1 << 24) + warp_sum(yield);
    gain = warp_sum(gain);
    return float(gain) * (1 + float(round.passes) * settings.draft_cost) > float(yield) * settings.draft_cost;
}

// The token that stands `back` places before the end of the path to a slot, -1 before the text begins. A slot of the
// chain stands for the root.
HD inline int32_t draft_token(const DraftRound& round, int slot, int back, const int32_t* text, int n_text) {
    NO_UNROLL
    for (; back > 0 && slot >= round.n_chain; --back) slot = round.parent[slot];
    if (slot >= round.n_chain) return round.token[slot];
    return back < n_text ? text[n_text - 1 - back] : -1;
}

// Fills the slots of the next pass from round.n_slots on and returns the slot it starts at (the pass covers that slot
// up to the new n_slots); nothing to evaluate leaves n_slots as it was. text: (n_text) committed tokens, the root last.
// ngram_nodes: guesses that the pass may hold, 0 in speculative mode. Equal scores: tree nodes first, then guesses in
// the order in which they came.
HD inline int draft_plan(DraftRound& round, const Tree& tree, const TreeSettings& settings, const NgramView& table,
                         const int32_t* text, int n_text, int ngram_nodes) {
    // The guesses below a node are asked for by a warp. When some are needed, the other warps ask below what may be
    // taken next: on the way that the text went on when it last stood like this, or else the best guesses below the
    // latest slots. What is needed later has then mostly been asked.
    constexpr int kTogether = 8, kMaxAsked = 2 * kMaxNodes;
    struct Asked {
        int16_t above;  // what was asked of the parent, or ~index of a node of the tree
        int16_t depth;
        int at;         // position of the first guess in the text, 0: it is not from there
        Suffix suffix;  // the tokens that end with the node
        int32_t token[kMaxGuesses];
        float log_probability[kMaxGuesses];  // of the guesses, -infinity: none
    };
    constexpr int16_t kNobody = INT16_MIN;
    TEAM_SHARED struct {
        uint8_t open[kMaxNodes];  // the tree's nodes that may enter, best first
        Asked asked[kMaxAsked];
        // By slot, from the root or the pass's first on.
        int16_t asked_of[kMaxNodes];
        float score[kMaxNodes * kMaxGuesses];  // of the guesses that may be taken, else -infinity
        // What is needed next: the guesses below the last slot, a node or guess `token` below `above`.
        int n_together, above;
        int32_t token;
        int follows;  // where the text went on with that token, 0: it is not from there
        int taken, n_slots;
    } space;
    const bool first_pass = round.passes == 0;
    const int root_slot = round.n_chain - 1, first = first_pass ? 0 : round.n_slots, begin = round.n_slots;
    const int origin = first_pass ? root_slot : begin;  // the slot that `space` begins with
    int end = first + settings.draft_width;             // of the pass; the first one holds the chain too
    end = end < kMaxSlots ? end : kMaxSlots;
    const NgramSearch search = ngram_search(table);

    const uint64_t open = draft_open(round, tree);
    const int n_open = count_bits(open);
    team_for(tree.n, [&](int i) {
        if (!(open >> i & 1)) return;
        const Node& node = tree.node[i];
        space.open[count_bits(open & bits_below(i))] = uint8_t(i);
        if (ngram_nodes > 0 && table.header) ngram_expect(table, search, tree.node[node.parent].token, node.token);
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
    // By a warp: what was asked for `token` below `above`, -1: nothing.
    const auto find = [&](int above, int32_t token, int n_asked) {
        int found = -1;
        warp_for(n_asked, [&](int i) {
            const Asked& asked = space.asked[i];
            if ((asked.above == above) & (asked.suffix.token[0] == token)) found = i;
        });
        return int(warp_max(uint32_t(found + 1))) - 1;
    };
    // By a warp: asks below the node `above`, the guess `token` below it, or `ahead` tokens further on in the text.
    const auto ask = [&](Asked& asked, int above, int32_t token, int ahead) {
        const Node& node = tree.node[above < 0 ? ~above : 0];
        const int slot = node.parent < 0 ? root_slot : tree.node[node.parent].slot, own = node.parent < 0 ? 0 : 1;
        const int depth = above < 0 ? node.depth : space.asked[above].depth + 1 + ahead;
        warp_for(kMaxSuffix, [&](int i) {
            const int back = i - ahead;
            asked.suffix.token[i] = back < 0    ? text[space.follows - back]
                                    : back == 0 ? token
                                    : above < 0 ? draft_token(round, slot, back - own, text, n_text)
                                                : space.asked[above].suffix.token[back - 1];
        });
        warp_sync();
        NgramGuesses guesses = {};
        if (depth < round.max_evaluated_depth && depth + 1 < round.max_depth)
            guesses = ngram_guesses(table, search, text, n_text, asked.suffix);
        // What may be asked for next is expected: the guesses, and the way that the text goes on.
        warp_for(kMaxGuesses + kMaxSuffix, [&](int i) {
            int32_t older = asked.suffix.token[0], newer = -1;
            if (i < kMaxGuesses) {
                const Guess guess = ngram_guess(guesses, text, i);
                const bool hope = guess.probability > 0;
                if (hope) newer = guess.token;
                asked.token[i] = guess.token;
                asked.log_probability[i] = hope ? log_positive(guess.probability) : -INFINITY;
            } else if (guesses.at > 0 && guesses.at + i - kMaxGuesses + 1 < n_text) {
                older = text[guesses.at + i - kMaxGuesses];
                newer = text[guesses.at + i - kMaxGuesses + 1];
            }
            if (newer >= 0 && table.header) ngram_expect(table, search, older, newer);
        });
        if (warp_lane() == 0) asked.depth = int16_t(depth), asked.at = guesses.at;
    };

    int taken = 0, n_slots = begin;  // of the open nodes; planned
    int n_asked = 0, left = ngram_nodes;
    // By a warp: the k-th of those that are asked for together.
    const auto ask_together = [&](int k, bool at_first) {
        int above = space.above, ahead = 0;
        int32_t token = space.token;
        if (at_first) {  // the root, or the best open nodes
            above = ~(first_pass ? 0 : int(space.open[k]));
            token = tree.node[~above].token;
        } else if (k > 0 && space.follows > 0) {  // on with the text
            ahead = k;
            if (space.follows + ahead >= n_text) above = kNobody;
        } else if (k > 0) {  // the best guess below an earlier slot
            const int i = space.n_slots - 1 - k - origin;
            int best = -1;
            float best_score = -INFINITY;
            if (i >= 0)
                warp_for(kMaxGuesses, [&](int c) {
                    const float score = space.score[i * kMaxGuesses + c];
                    if (score > best_score) best = c, best_score = score;
                });
            best = warp_best(best_score, best);
            if (best >= 0) {
                above = space.asked_of[i];
                token = space.asked[above].token[best];
            }
            if (best < 0 || find(above, token, n_asked) >= 0) above = kNobody;
        }
        Asked& asked = space.asked[n_asked + k];
        if (above != kNobody) ask(asked, above, token, ahead);
        if (warp_lane() == 0) asked.above = int16_t(ahead > 0 && above != kNobody ? n_asked + k - 1 : above);
    };
    // The last slot, -1: none yet; what it was asked as; its score; that of the next open node. Of one warp.
    int slot = first_pass ? root_slot : -1, above = ~0;
    int32_t token = tree.node[0].token;
    float score = 0, next_open = n_open > 0 ? tree.node[space.open[0]].score : -INFINITY;
    // By that warp: fills slots best first, each of which brings the guesses below it, until some are needed that were
    // not asked for; says how many to ask for together, 0 at the end.
    const auto take = [&] {
        NO_UNROLL
        while (n_slots < end && left > 0) {
            if (slot >= 0) {
                const int found = find(above, token, n_asked);
                if (found < 0) {
                    const int at = above < 0 ? 0 : space.asked[above].at;
                    if (warp_lane() == 0) {
                        space.above = above;
                        space.token = token;
                        space.follows = at > 0 && text[at] == token ? at : 0;
                    }
                    const int room = kMaxAsked - n_asked - (end - n_slots);  // leaving some for every slot to come
                    return room < kTogether ? room : kTogether;
                }
                if (warp_lane() == 0) space.asked_of[slot - origin] = int16_t(found);
                warp_for(kMaxGuesses, [&](int i) {
                    space.score[(slot - origin) * kMaxGuesses + i] = score + space.asked[found].log_probability[i];
                });
                warp_sync();
            }
            int best = -1;
            float best_score = -INFINITY;
            warp_for((n_slots - origin) * kMaxGuesses, [&](int i) {
                if (space.score[i] > best_score) best = i, best_score = space.score[i];
            });
            best = warp_best(best_score, best);
            if (best < 0 && taken == n_open) break;
            score = best < 0 ? -INFINITY : space.score[best];
            warp_sync();
            slot = n_slots++;
            if (taken < n_open && next_open >= score) {
                if (warp_lane() == 0) put_open(slot, taken);
                above = ~int(space.open[taken]);
                token = tree.node[~above].token;
                score = next_open;
                if (++taken < n_open) next_open = tree.node[space.open[taken]].score;
            } else {
                const int parent = best / kMaxGuesses;
                above = space.asked_of[parent];
                token = space.asked[above].token[best % kMaxGuesses];
                if (warp_lane() == 0) {
                    put(slot, token, origin + parent, -1, space.asked[above].depth + 1, score);
                    space.score[best] = -INFINITY;
                }
                --left;
            }
            warp_sync();
        }
        return 0;
    };

    if (ngram_nodes > 0) {
        const int room = n_open < end - begin ? n_open : end - begin;
        int n_together = first_pass ? 1 : room < kTogether ? room : kTogether;
        NO_UNROLL
        for (bool at_first = true; at_first || n_together > 0; at_first = false) {
            NO_UNROLL
            for (int k = team_warp(); k < n_together; k += team_warps()) ask_together(k, at_first);
            n_asked += n_together;
            team_sync();
            if (team_warp() == 0) {
                n_together = take();
                if (warp_lane() == 0) space.n_together = n_together, space.taken = taken, space.n_slots = n_slots;
            }
            team_sync();
            n_together = space.n_together;
        }
        if (team_thread() == 0) round.guesses += ngram_nodes - left;
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
        // Of the pass's nodes.
        int16_t place[kMaxNodes];  // in the tree, or tree.n + index in `added`; -1: it does not belong there
        int8_t which[kMaxNodes];   // child of its parent that a guess is, -1: none
        float score[kMaxNodes];    // as the draft sees it; first of a guess alone, then of its path
        // (n, kMaxChildren), most of them void.
        Node added[kMaxAdded];
        int16_t slot[kMaxAdded];  // of the guess that is this child, -1: none
    } space;
    const int root_slot = round.n_chain - 1, begin = first > root_slot ? first : root_slot;
    const int n = round.n_slots - begin, width = settings.children, n_tree = tree.n;
    team_for(n * kMaxChildren, [&](int i) { space.slot[i] = -1; });
    team_for(n, [&](int i) {
        const int slot = begin + i, node = round.node[slot];
        int which = -1;
        if (node >= 0) {
            tree.node[node].slot = int16_t(slot);
            space.score[i] = tree.node[node].score;
        } else {
            const Child* proposal = child + (round.parent[slot] - begin) * kMaxChildren;
            UNROLL
            for (int c = kMaxChildren - 1; c >= 0; --c)
                if (c < width && proposal[c].token == round.token[slot]) which = c;
            if (which >= 0) space.score[i] = proposal[which].log_probability;
        }
        space.place[i] = int16_t(node);
        space.which[i] = int8_t(which);
    });
    team_sync();
    // A guess belongs to the tree if the draft proposed it and its parent belongs there: level by level.
    if (team_warp() == 0) {
        uint32_t confirmed = 0;
        bool deeper = true;
        NO_UNROLL
        for (int depth = 1; warp_ballot(deeper); ++depth) {
            deeper = false;
            warp_for(n, [&](int i) {
                const int which = space.which[i], slot = begin + i, above = round.parent[slot] - begin;
                deeper |= which >= 0 && round.depth[slot] > depth;
                if (which < 0 || round.depth[slot] != depth || space.place[above] < 0) return;
                space.score[i] = space.score[above] + space.score[i];
                space.place[i] = int16_t(n_tree + above * kMaxChildren + which);
                space.slot[above * kMaxChildren + which] = int16_t(slot);
                ++confirmed;
            });
            warp_sync();
        }
        confirmed = warp_sum(confirmed);
        if (warp_lane() == 0) round.confirmed += int(confirmed);
    }
    team_sync();
    team_for(n * kMaxChildren, [&](int i) {
        const int parent = i / kMaxChildren, depth = round.depth[begin + parent] + 1, slot = space.slot[i];
        const bool in =
            i % kMaxChildren < width && child[i].token >= 0 && space.place[parent] >= 0 && depth <= round.max_depth;
        space.added[i] = {child[i].token, space.place[parent],
                          int16_t(slot),  in ? space.score[parent] + child[i].log_probability : -INFINITY,
                          uint8_t(depth), slot >= 0};
    });
    tree_insert(tree, space.added, n * kMaxChildren);
}

// After acceptance: the slots whose keys and values the draft's cache takes over, in order of position. path: nodes of
// the tree, from tree_accept. Returns their number.
HD inline int draft_commit(const DraftRound& round, const Tree& tree, const int* path, int length,
                           uint16_t* slots /* (kMaxNodes + kMaxDepth) */) {
    const uint64_t evaluated = warp_mask(length, [&](int i) { return i == 0 || tree.node[path[i]].slot >= 0; });
    const int n = round.n_chain - 1 + lowest_bit(~evaluated);  // the root is the chain's last
    team_for(n, [&](int i) {
        const int at = i - (round.n_chain - 1);
        slots[i] = uint16_t(at <= 0 ? i : tree.node[path[at]].slot);
    });
    return n;
}

// A round of staged speculation between the passes of its models: what the loop on the CPU (decode/generate.cpp) and
// the one on the GPU (kernels/round_kernels.cuh) have in common.
//
//     round_start
//     while round_plan:  the draft's pass over the slots from round.first on;  propose;  draft_absorb
//     the target's pass over the tree;  choose;  round_accept;  both models commit
//
// The functions are a team's (decode/team.h); the state lies in memory that the team shares.
#pragma once

#include "decode/decoder.h"
#include "decode/draft.h"

// What holds for a whole generation.
struct Generation {
    TreeSettings tree;
    NgramView table;
    int ngram_nodes;      // guesses that a draft pass may hold, 0 in speculative mode
    int limit;            // tokens that the text may grow to
    int draft_positions;  // of the draft's context, 0: there is no draft
    int32_t end_token;    // -1: none
};

// draft_positions: 0 without a draft. end_token: the model's.
inline Generation generation_of(const Request& request, const NgramView& table, int limit, int draft_positions,
                                int32_t end_token) {
    return {.tree = request.tree,
            .table = table,
            .ngram_nodes = request.mode == Mode::staged ? request.tree.ngram_nodes : 0,
            .limit = limit,
            .draft_positions = draft_positions,
            .end_token = request.ignore_eos ? -1 : end_token};
}

// Slots whose keys and values a model's cache takes over, for positions base, base + 1, ...
struct CommitList {
    int base, n;
    uint16_t slot[kMaxNodes + kMaxDepth];
};

// What the caller learns of the round that ended last.
struct RoundReport {
    bool going;  // the text goes on
    StopReason stop;
    int n_emitted;
    Emitted emitted[kMaxDepth + 1];
    Counters counters;
};

struct RoundState {
    int n_text;      // committed tokens, the root last
    int draft_base;  // positions that the draft's cache holds
    int first;       // slot that the planned draft pass begins with
    DraftRound draft;
    Tree tree;
    CommitList target_commit, draft_commit;  // of the round that ended last
    RoundReport report;
};

// Starts a generation whose caches hold n_text - 1 and draft_base positions.
inline void generation_start(RoundState& state, int n_text, int draft_base, int limit, StopReason at_limit) {
    state = {};
    state.n_text = n_text;
    state.draft_base = draft_base;
    state.report.going = n_text < limit;
    state.report.stop = at_limit;
}

// Starts a round, whose tree is the root alone. text: (n_text) tokens.
HD inline void round_start(RoundState& state, const Generation& generation, const int32_t* text) {
    const int root = state.n_text - 1;             // its position
    const int room = generation.limit - 2 - root;  // a node deeper than this could not be emitted
    const int max_depth = room < generation.tree.depth ? room : generation.tree.depth;
    if (max_depth > 0 && generation.tree.nodes > 1 && generation.draft_positions > root)
        draft_start(state.draft, state.tree, generation.tree, state.draft_base, text + state.draft_base,
                    state.n_text - state.draft_base, max_depth, generation.draft_positions - 1 - root);
    else
        tree_start(state.tree, 1, text[root]);
}

// Plans the round's next draft pass, slots state.first .. draft.n_slots - 1, if one pays.
HD inline bool round_plan(RoundState& state, const Generation& generation, const int32_t* text) {
    if (state.tree.capacity == 1 || !draft_pays(state.draft, state.tree, generation.tree)) return false;
    const int first = draft_plan(state.draft, state.tree, generation.tree, generation.table, text, state.n_text,
                                 generation.ngram_nodes);
    const int n = state.draft.n_slots - first;
    if (team_thread() == 0 && n > 0) {
        state.first = first;
        state.report.counters.draft_passes += 1;
        state.report.counters.draft_nodes += n;
    }
    team_sync();
    return n > 0;
}

// The slots of the planned pass that need logits: the root's and those after it.
HD inline int round_first_with_logits(const RoundState& state) {
    return state.first > state.draft.n_chain - 1 ? state.first : state.draft.n_chain - 1;
}

// Ends the round with what the target chose after each of the tree's nodes: lists what to commit, appends what was
// accepted and the token after it to the text, and says in report.going whether the text goes on.
HD inline void round_accept(RoundState& state, const Generation& generation, int32_t* text,
                            const int32_t* chosen /* (tree.n) */) {
    TEAM_SHARED int path[kMaxDepth + 1];
    const Tree& tree = state.tree;
    RoundReport& report = state.report;
    Counters& counters = report.counters;
    const int n_text = state.n_text;  // read before the team meets in tree_accept(); one thread alters it below
    const int length = tree_accept(tree, chosen, path);
    const bool drafted = tree.capacity > 1;
    const uint64_t ends = warp_mask(
        length, [&](int i) { return chosen[path[i]] == generation.end_token || n_text + i >= generation.limit; });
    const int n_emitted = ends ? lowest_bit(ends) : length;
    const int n_commit = drafted ? draft_commit(state.draft, tree, path, length, state.draft_commit.slot) : 0;
    team_for(length, [&](int i) {
        state.target_commit.slot[i] = uint16_t(path[i]);
        if (i >= n_emitted) return;
        const Origin origin = i + 1 == length                     ? Origin::target
                              : tree.node[path[i + 1]].from_ngram ? Origin::ngram
                                                                  : Origin::draft;
        text[n_text + i] = chosen[path[i]];
        report.emitted[i] = {chosen[path[i]], origin};
        team_add(counters.by_origin[int(origin)], 1);
    });
    team_for(kMaxDepth + 1, [&](int depth) {
        bool reached = false;
        for (int i = 1; i < tree.n; ++i) reached |= tree.node[i].depth >= depth;
        if (depth > 0) counters.proposed_by_depth[depth] += reached;
        if (depth > 0) counters.accepted_by_depth[depth] += depth < length;
    });
    if (team_thread() == 0) {
        state.target_commit.base = n_text - 1;
        state.target_commit.n = length;
        state.draft_commit.base = state.draft_base;
        state.draft_commit.n = n_commit;
        state.draft_base += n_commit;
        counters.rounds += 1;
        counters.target_nodes += tree.n;
        counters.proposed += tree.n - 1;
        counters.accepted += length - 1;
        counters.ngram_guesses += drafted ? state.draft.guesses : 0;
        counters.ngram_confirmed += drafted ? state.draft.confirmed : 0;
        counters.emitted += n_emitted;
        report.n_emitted = n_emitted;
        state.n_text = n_text + n_emitted;
        if (n_emitted < length && n_text + n_emitted < generation.limit) report.stop = StopReason::eos;
        report.going = n_emitted == length && state.n_text < generation.limit;
    }
    team_sync();
}

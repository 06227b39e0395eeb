// The tree of guesses that a round grows with the draft and verifies with the target.
//
// A node is a token that may follow its parent; the root is the last committed token. A node's score is the sum of its
// path's log-probabilities as the draft sees them. The tree is always the best-scored `capacity` nodes of all that were
// inserted: scores never rise along a path, so it is closed under parents without further care.
//
// The functions are a team's (decode/team.h).
#pragma once

#include <cstdint>

#include "decode/team.h"

constexpr int kMaxNodes = 64;    // nodes of one pass and of a tree, the root included
constexpr int kMaxDepth = 16;    // levels below the root
constexpr int kMaxChildren = 8;  // continuations that the draft proposes for a node
constexpr int kMaxSlots = 256;   // nodes that one round may evaluate with one model

// What a round may spend. Nothing here ever changes the text.
struct TreeSettings {
    int nodes = 32;           // of the tree, root included: 1 (no guesses) to kMaxNodes
    int depth = 16;           // levels below the root: 1 to kMaxDepth
    int children = 4;         // per evaluated node: 1 to kMaxChildren
    int draft_width = 16;     // nodes of a draft pass: 1 to kMaxNodes (a round's first may need 2)
    int draft_passes = 8;     // in a round at most: 1 to 16
    int ngram_nodes = 12;     // of a draft pass, spent on n-gram guesses in staged mode: 0 to draft_width - 1
    float tau = 0.9f;         // calibration of perturbed scores: log-softmax(score / tau)
    float draft_cost = 0.1f;  // time of a draft pass in target passes: drafting stops when it no longer pays
};

struct Node {
    int32_t token;
    int16_t parent;   // index in Tree::node, -1 at the root
    int16_t slot;     // of the draft that holds its keys and values, -1: not evaluated
    float score;      // log-probability of the path, 0 at the root
    uint8_t depth;    // 0 at the root
    bool from_ngram;  // the n-gram guessed it before the draft proposed it
};

struct Tree {
    int n;                 // nodes in the tree
    int capacity;          // 1 to kMaxNodes
    Node node[kMaxNodes];  // (n) best score first; a parent stands before its children
};

HD inline void tree_start(Tree& tree, int capacity, int32_t root_token) {
    if (team_thread() == 0) {
        tree.n = 1;
        tree.capacity = capacity;
        tree.node[0] = {root_token, -1, -1, 0, 0, false};
    }
    team_sync();
}

constexpr int kMaxAdded = kMaxNodes * kMaxChildren;
constexpr float kHopeless = -1e30f;  // scores that are not above it count as no node

// Inserts added[0..n_added) and keeps the best `capacity` nodes; equal scores keep the order in which they came. Their
// parents are indices in the tree, or tree.n + the index of an added node that stands before them; no score is above
// its parent's. The team need not have synchronised since it wrote them.
HD inline void tree_insert(Tree& tree, const Node* added /* (n_added <= kMaxAdded) */, int n_added) {
    TEAM_SHARED struct {
        uint64_t key[kMaxNodes + kMaxAdded];  // of the old nodes and the added ones that may enter: score, then index
        int rank[kMaxNodes + kMaxAdded];      // by index: old nodes, then added ones
        Node old[kMaxNodes];
        uint32_t n;
    } space;
    constexpr int kShares = 4;  // threads that rank a node
    const int n_old = tree.n, capacity = tree.capacity;
    const float worst = n_old == capacity ? tree.node[n_old - 1].score : kHopeless;
    const auto key = [](float score, int index) { return uint64_t(ascending_bits(score)) << 32 | uint32_t(~index); };
    if (team_thread() == 0) space.n = uint32_t(n_old);
    team_for(n_old + n_added, [&](int i) { space.rank[i] = 0; });
    team_for(n_old, [&](int i) {
        space.old[i] = tree.node[i];
        space.key[i] = key(tree.node[i].score, i);
    });
    team_sync();
    team_for(n_added, [&](int i) {
        if (added[i].score > worst) space.key[team_add(space.n, 1u)] = key(added[i].score, n_old + i);  // in any order
    });
    team_sync();
    const int n = int(space.n);
    team_for(n * kShares, [&](int i) {
        const uint64_t mine = space.key[i / kShares];
        int better = 0;
        UNROLL_4
        for (int j = i % kShares; j < n; j += kShares) better += space.key[j] > mine;
        team_add(space.rank[~uint32_t(mine)], better);
    });
    team_sync();
    team_for(n, [&](int i) {
        const int index = int(~uint32_t(space.key[i])), rank = space.rank[index];
        if (rank >= capacity) return;
        Node node = index < n_old ? space.old[index] : added[index - n_old];
        if (node.parent >= 0) node.parent = int16_t(space.rank[node.parent]);
        tree.node[rank] = node;
    });
    if (team_thread() == 0) tree.n = n < capacity ? n : capacity;
    team_sync();
}

// Walks from the root along the tokens that the target chose; path receives the accepted nodes, the root included, and
// the length is returned: 1 to kMaxDepth + 1. chosen[path[length - 1]] is the token that no node guessed: it is
// emitted too and becomes the next root.
HD inline int tree_accept(const Tree& tree, const int32_t* chosen /* (n) */, int* path /* (kMaxDepth + 1) */) {
    TEAM_SHARED int length;
    uint64_t right =
        warp_mask(tree.n, [&](int i) { return i > 0 && tree.node[i].token == chosen[tree.node[i].parent]; });
    if (team_thread() == 0) {
        int n = 1, at = 0;
        path[0] = 0;
        for (; right; right &= right - 1) {  // a child stands behind its parent, so one sweep finds the path
            const int i = lowest_bit(right);
            if (tree.node[i].parent == at) path[n++] = at = i;
        }
        length = n;
    }
    team_sync();
    return length;
}

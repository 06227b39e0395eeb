// The tree of guesses that a round grows with the draft and verifies with the target.
//
// A node is a token that may follow its parent; the root is the last committed token. A node's score is the sum of its
// path's log-probabilities as the draft sees them. The tree is always the best-scored `capacity` nodes of all that were
// inserted: scores fall along a path, so it is closed under parents without further care.
#pragma once

#include <cstdint>

#include "model/host_device.h"

constexpr int kMaxNodes = 64;    // nodes of one pass and of a tree, the root included
constexpr int kMaxDepth = 16;    // levels below the root
constexpr int kMaxChildren = 8;  // continuations that the draft proposes for a node
constexpr int kMaxSlots = 256;   // nodes that one round may evaluate with one model

// What a round may spend. Nothing here ever changes the text.
struct TreeSettings {
    int nodes = 32;           // of the tree, root included: 1 (no guesses) to kMaxNodes
    int depth = 16;           // levels below the root: 1 to kMaxDepth
    int children = 4;         // per evaluated node: 1 to kMaxChildren
    int draft_width = 16;     // nodes of a draft pass: 1 to kMaxNodes
    int draft_passes = 8;     // in a round at most: 1 to 16
    int ngram_nodes = 12;     // of a draft pass, spent on n-gram guesses in staged mode: 0 to draft_width - 1
    float tau = 1.5f;         // calibration of perturbed scores: log-softmax(score / tau)
    float draft_cost = 0.1f;  // time of a draft pass in target passes: drafting stops when it no longer pays
};

struct Node {
    int32_t token;
    int16_t parent;   // index in Tree::node, -1 at the root
    int16_t slot;     // of the draft that holds its keys and values, -1: not evaluated
    float score;      // log-probability of the path, 0 at the root
    uint8_t depth;    // 0 at the root
    bool expanded;    // its children have been inserted
    bool from_ngram;  // the n-gram guessed it before the draft proposed it
};

struct Tree {
    int n;         // nodes in the tree
    int capacity;  // 1 to kMaxNodes
    Node node[kMaxNodes];
    uint8_t order[kMaxNodes];  // (n) node indices, best score first; a parent stands before its children
};

HD inline void tree_start(Tree& tree, int capacity, int32_t root_token, int root_slot) {
    tree.n = 1;
    tree.capacity = capacity;
    tree.node[0] = {root_token, -1, int16_t(root_slot), 0, 0, false, false};
    tree.order[0] = 0;
}

// Inserts a node, dropping the worst one of a full tree; returns its index, or -1 if it is itself the worst. The worst
// is a leaf: its descendants would stand behind it. Equal scores keep the order in which they came.
HD inline int tree_insert(Tree& tree, const Node& node) {
    if (!(node.score > -1e30f)) return -1;  // nothing to hope for; NaN too
    int index = tree.n;
    if (tree.n == tree.capacity) {
        index = tree.order[tree.n - 1];
        if (tree.node[index].score >= node.score || index == node.parent) return -1;
        --tree.n;
    }
    int at = tree.n++;
    for (; tree.node[tree.order[at - 1]].score < node.score; --at) tree.order[at] = tree.order[at - 1];
    tree.order[at] = uint8_t(index);
    tree.node[index] = node;
    return index;
}

// The tree as a pass sees it: token and parent by rank, the root first.
HD inline void tree_to_pass(const Tree& tree, int32_t* token /* (n) */, int32_t* parent /* (n) */) {
    int rank[kMaxNodes];
    for (int i = 0; i < tree.n; ++i) {
        const Node& node = tree.node[tree.order[i]];
        rank[tree.order[i]] = i;
        token[i] = node.token;
        parent[i] = node.parent < 0 ? -1 : rank[node.parent];
    }
}

// Walks from the root along the tokens that the target chose (by rank); path receives the ranks of the accepted nodes,
// the root's included, and the length is returned: 1 to kMaxDepth + 1. chosen[path[length - 1]] is the token that no
// node guessed: it is emitted too and becomes the next root.
HD inline int tree_accept(const Tree& tree, const int32_t* chosen /* (n) */, int* path /* (kMaxDepth + 1) */) {
    int length = 1, at = 0;
    path[0] = 0;
    for (int i = 1; i < tree.n; ++i) {  // a child stands behind its parent, so one sweep finds the path
        const Node& node = tree.node[tree.order[i]];
        if (node.parent == tree.order[at] && node.token == chosen[at]) path[length++] = at = i;
    }
    return length;
}

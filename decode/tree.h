// The tree of guesses that a round grows with the draft and verifies with the target.
#pragma once
constexpr int kMaxNodes = 64;       // nodes of one target pass, the root included
constexpr int kMaxDepth = 16;       // levels below the root
struct TreeSettings {
    int nodes = 32;          // B: nodes of a target pass, root included, 1 to kMaxNodes
};

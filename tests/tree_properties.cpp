// The tree holds the best-scored nodes of all that were inserted, closed under parents; acceptance follows the target's
// choices; growing with the draft keeps every index in range for any proposals.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "decode/draft.h"
#include "tests/random_model.h"

TEST_CASE("the tree is the best nodes of all that were inserted") {
    std::mt19937 generator(1);
    for (int round = 0; round < 300; ++round) {
        Tree tree;
        const int capacity = 1 + int(generator() % kMaxNodes);
        tree_start(tree, capacity, 1000, -1);
        std::vector<float> scores = {0};  // of everything that was offered
        for (int i = 0; i < 200; ++i) {
            const int parent = tree.order[generator() % tree.n];
            const float score = tree.node[parent].score - float(generator() % 1000 + 1) / 500;
            tree_insert(tree, {i, int16_t(parent), -1, score, uint8_t(tree.node[parent].depth + 1), false, false});
            scores.push_back(score);
        }
        std::sort(scores.rbegin(), scores.rend());
        REQUIRE(tree.n == std::min<int>(capacity, 201));
        std::vector<int> rank(kMaxNodes, -1);
        for (int i = 0; i < tree.n; ++i) {
            const Node& node = tree.node[tree.order[i]];
            CHECK(node.score == scores[i]);
            if (i > 0) CHECK(rank[node.parent] >= 0);  // stands before its child
            rank[tree.order[i]] = i;
        }
    }
}

TEST_CASE("acceptance walks along the choices and stops at the first that no child holds") {
    Tree tree;
    tree_start(tree, 8, 5, -1);
    const int a = tree_insert(tree, {6, 0, -1, -1.0f, 1, false, false});
    const int b = tree_insert(tree, {7, 0, -1, -0.5f, 1, false, false});
    const int c = tree_insert(tree, {8, int16_t(a), -1, -1.5f, 2, false, false});
    REQUIRE(tree.n == 4);
    CHECK(tree.order[1] == b);
    CHECK(tree.order[2] == a);
    CHECK(tree.order[3] == c);
    int path[kMaxDepth + 1];
    const int32_t to_c[] = {6, 1, 8, 9}, to_b[] = {7, 8, 8, 9}, nowhere[] = {9, 1, 8, 9};
    CHECK(tree_accept(tree, to_c, path) == 3);
    CHECK(path[1] == 2);
    CHECK(path[2] == 3);
    CHECK(tree_accept(tree, to_b, path) == 2);
    CHECK(path[1] == 1);
    CHECK(tree_accept(tree, nowhere, path) == 1);
}

TEST_CASE("growing with any proposals keeps slots, depths and parents in range") {
    std::mt19937 generator(2);
    const RandomTable table = make_random_table(30, 4);
    for (int round_index = 0; round_index < 500; ++round_index) {
        TreeSettings settings;
        settings.nodes = 1 + int(generator() % kMaxNodes);
        settings.children = 1 + int(generator() % kMaxChildren);
        settings.draft_width = 1 + int(generator() % kMaxNodes);
        settings.draft_passes = 1 + int(generator() % 16);
        settings.ngram_nodes = int(generator() % settings.draft_width);
        settings.draft_cost = generator() % 2 ? 0 : 0.05f;
        const int max_depth = int(generator() % (kMaxDepth + 1)), max_evaluated = int(generator() % 20);
        std::vector<int32_t> text(40);
        for (int32_t& t : text) t = int(generator() % 30);
        const int chain = 1 + int(generator() % 8);
        DraftRound round;
        Tree tree;
        draft_start(round, tree, settings, 40 - chain, &text[40 - chain], chain, max_depth, max_evaluated);
        while (draft_pays(round, tree, settings)) {
            const int first = draft_plan(round, tree, settings, table.view(), text.data(), 40, settings.ngram_nodes);
            REQUIRE(round.n_slots <= kMaxSlots);
            REQUIRE(round.n_slots - first <= kMaxNodes);
            if (round.n_slots == first) break;
            for (int s = first; s < round.n_slots; ++s) {
                CHECK(round.parent[s] < s);
                CHECK(int(round.depth[s]) <= max_evaluated);
                float left = 0;
                for (int c = 0; c < kMaxChildren; ++c) {  // random children, sometimes few, of any score
                    left -= float(generator() % 100) / 30;
                    round.child[s][c] = {generator() % 9 ? int32_t((s * 7 + c * 3 + generator() % 3) % 30) : -1, left};
                }
            }
            draft_absorb(round, tree, settings, first);
            for (int i = 0; i < tree.n; ++i) {
                const Node& node = tree.node[tree.order[i]];
                CHECK(int(node.depth) <= max_depth);
                if (i == 0) continue;
                const Node& parent = tree.node[node.parent];
                CHECK(node.depth == parent.depth + 1);
                REQUIRE(parent.slot >= 0);
                if (node.slot >= 0) {  // evaluated where its path says
                    CHECK(round.token[node.slot] == node.token);
                    CHECK(round.parent[node.slot] == parent.slot);
                }
            }
        }
        CHECK(round.confirmed <= round.guesses);
    }
}

TEST_CASE("the n-gram guesses the longest earlier suffix first, then the table") {
    NgramView none = {};
    Guess guess[kMaxGuesses];
    //                     0  1  2  3  4  5  6  7  8  9
    const int32_t text[] = {1, 2, 3, 9, 2, 3, 7, 1, 2, 3};
    REQUIRE(ngram_guess(none, text, 10, text + 2, 8, guess) == 1);
    CHECK(guess[0].token == 9);  // 1 2 3 stood before 9; 2 3 alone, later, before 7
    const float longer = guess[0].probability;
    REQUIRE(ngram_guess(none, text, 7, text + 4, 2, guess) == 1);  // ends in 3 7? no: suffix 2 3
    CHECK(guess[0].token == 7);
    CHECK(guess[0].probability < longer);
    CHECK(ngram_guess(none, text, 4, text + 3, 1, guess) == 0);  // a single token is no suffix

    RandomTable table = make_random_table(10, 3);
    table.bigram[3] = {{0, 0}, {9, 4, kNoToken, kNoToken}, {40000, 20000, 0, 0}};
    for (NgramEntry& entry : table.trigram) entry.token[0] = kNoToken;
    REQUIRE(ngram_guess(table.view(), text, 10, text + 2, 8, guess) == 2);
    CHECK(guess[0].token == 9);
    CHECK(guess[1].token == 4);  // the table's 9 is not repeated
    CHECK(guess[1].probability == doctest::Approx((1 - guess[0].probability) * 20000 / 65535));
}

TEST_CASE("every context of a table is found, and others fall back") {
    const RandomTable table = make_random_table(64, 5);
    int found = 0;
    for (const NgramEntry& entry : table.trigram)
        if (entry.token[0] != kNoToken) {
            const NgramEntry* hit = ngram_entry(table.view(), int(entry.context[0]), int(entry.context[1]));
            REQUIRE(hit);
            CHECK(hit->context[0] == entry.context[0]);
            CHECK(hit->context[1] == entry.context[1]);
            ++found;
        }
    CHECK(found > 1000);
    for (int token = 0; token < 64; ++token) {
        const bool has_bigram = table.bigram[token].token[0] != kNoToken;
        CHECK(ngram_entry(table.view(), -1, token) == (has_bigram ? &table.bigram[token] : table.unigram.data()));
    }
}

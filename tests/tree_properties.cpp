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
        tree_start(tree, capacity, 1000);
        std::vector<Node> offered = {tree.node[0]};  // by token, its parent a token
        while (offered.size() < 201) {
            // Some at once, below nodes of the tree and below each other; many scores are equal.
            std::vector<Node> added;
            for (const size_t n = std::min<size_t>(1 + generator() % 40, 201 - offered.size()); added.size() < n;) {
                const int parent = int(generator() % (tree.n + added.size()));
                const Node above = parent < tree.n ? tree.node[parent] : added[parent - tree.n];
                added.push_back({int32_t(offered.size()), int16_t(parent), -1,
                                 above.score - float(generator() % 20) / 10, uint8_t(above.depth + 1), false});
                offered.push_back(added.back());
                offered.back().parent = int16_t(above.token);
            }
            tree_insert(tree, added.data(), int(added.size()));
        }
        // The order in which nodes came is that of their tokens.
        std::stable_sort(offered.begin(), offered.end(),
                         [](const Node& a, const Node& b) { return a.score > b.score; });
        REQUIRE(tree.n == std::min<int>(capacity, 201));
        for (int i = 0; i < tree.n; ++i) {
            CHECK(tree.node[i].score == offered[i].score);
            CHECK(tree.node[i].token == offered[i].token);
            if (i == 0) continue;
            REQUIRE(tree.node[i].parent < i);
            CHECK(tree.node[tree.node[i].parent].token == offered[i].parent);
        }
    }
}

TEST_CASE("acceptance walks along the choices and stops at the first that no child holds") {
    Tree tree;
    tree_start(tree, 8, 5);
    const Node added[] = {{6, 0, -1, -1.0f, 1, false}, {7, 0, -1, -0.5f, 1, false}, {8, 1, -1, -1.5f, 2, false}};
    tree_insert(tree, added, 3);
    REQUIRE(tree.n == 4);
    CHECK(tree.node[1].token == 7);
    CHECK(tree.node[2].token == 6);
    CHECK(tree.node[3].token == 8);
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
        std::vector<Child> child(kMaxNodes * kMaxChildren);
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
                    if (s >= chain - 1)
                        child[(s - std::max(first, chain - 1)) * kMaxChildren + c] = {
                            generator() % 9 ? int32_t((s * 7 + c * 3 + generator() % 3) % 30) : -1, left};
                }
            }
            draft_absorb(round, tree, settings, first, child.data());
            for (int i = 0; i < tree.n; ++i) {
                const Node& node = tree.node[i];
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

// The slots of the next pass as if one node were asked for after the other.
static DraftRound plan_one_by_one(DraftRound round, const Tree& tree, const TreeSettings& settings,
                                  const NgramView& table, const std::vector<int32_t>& text) {
    struct Candidate {
        int32_t token;
        int parent;
        float score;
    };
    std::vector<Candidate> pool;  // as they came
    const int n_text = int(text.size()), root_slot = round.n_chain - 1;
    const auto ask = [&](int slot) {
        if (round.depth[slot] >= round.max_evaluated_depth || round.depth[slot] + 1 >= round.max_depth) return;
        Suffix suffix;
        for (int i = 0; i < kMaxSuffix; ++i) suffix.token[i] = draft_token(round, slot, i, text.data(), n_text);
        const NgramGuesses guesses = ngram_guesses(table, ngram_search(table), text.data(), n_text, suffix);
        for (int i = 0; i < kMaxGuesses; ++i)
            if (const Guess guess = ngram_guess(guesses, text.data(), i); guess.probability > 0)
                pool.push_back({guess.token, slot, round.score[slot] + log_positive(guess.probability)});
    };
    const auto put = [&](int32_t token, int parent, int node, int depth, float score) {
        const int slot = round.n_slots++;
        round.token[slot] = token, round.parent[slot] = parent, round.node[slot] = int16_t(node);
        round.depth[slot] = uint8_t(depth), round.score[slot] = score;
        ask(slot);
    };
    std::vector<int> open;
    for (int i = 1; i < tree.n; ++i)
        if (tree.node[i].slot < 0 && tree.node[i].depth <= round.max_evaluated_depth &&
            tree.node[i].depth < round.max_depth)
            open.push_back(i);
    const int end = std::min(kMaxSlots, (round.passes == 0 ? 0 : round.n_slots) + settings.draft_width);
    if (round.passes == 0) ask(root_slot);
    int left = settings.ngram_nodes;
    while (round.n_slots < end) {
        const auto best = std::max_element(pool.begin(), pool.end(),
                                           [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
        const bool guess = left > 0 && best != pool.end();
        if (!open.empty() && (!guess || tree.node[open[0]].score >= best->score)) {
            const Node& node = tree.node[open[0]];
            put(node.token, tree.node[node.parent].slot, open[0], node.depth, node.score);
            open.erase(open.begin());
        } else if (guess) {
            const Candidate taken = *best;
            pool.erase(best);
            put(taken.token, taken.parent, -1, round.depth[taken.parent] + 1, taken.score);
            --left;
        } else {
            break;
        }
    }
    return round;
}

TEST_CASE("a pass holds what asking for one node after the other would choose") {
    std::mt19937 generator(3);
    int guesses = 0;
    for (int round_index = 0; round_index < 500; ++round_index) {
        const int n_vocab = 4 + int(generator() % 40), n_text = 2 + int(generator() % 200);
        const RandomTable table = make_random_table(n_vocab, generator());
        const NgramView view = generator() % 5 ? table.view() : NgramView{};
        TreeSettings settings;
        settings.nodes = 2 + int(generator() % (kMaxNodes - 1));
        settings.draft_width = 1 + int(generator() % kMaxNodes);
        settings.ngram_nodes = int(generator() % settings.draft_width);
        settings.draft_cost = 0;
        std::vector<int32_t> text(n_text);  // repeats itself, with errors
        for (int i = 0, period = 1 + int(generator() % 20); i < n_text; ++i)
            text[i] = i >= period && generator() % 10 ? text[i - period] : int(generator() % n_vocab);
        const int chain = 1 + int(generator() % std::min(n_text, 8));
        DraftRound round;
        Tree tree;
        std::vector<Child> child(kMaxNodes * kMaxChildren);
        draft_start(round, tree, settings, n_text - chain, &text[n_text - chain], chain, int(generator() % 17),
                    int(generator() % 20));
        while (draft_pays(round, tree, settings)) {
            const DraftRound expected = plan_one_by_one(round, tree, settings, view, text);
            const int first = draft_plan(round, tree, settings, view, text.data(), n_text, settings.ngram_nodes);
            REQUIRE(round.n_slots == expected.n_slots);
            if (round.n_slots == first) break;
            const int root_slot = chain - 1, begin = std::max(first, root_slot);
            for (int s = begin; s < round.n_slots; ++s) {
                CHECK(round.token[s] == expected.token[s]);
                CHECK(round.parent[s] == expected.parent[s]);
                CHECK(round.node[s] == expected.node[s]);
                CHECK(round.depth[s] == expected.depth[s]);
                CHECK(round.score[s] == expected.score[s]);
                // The draft proposes what was guessed now and then; scores are often equal.
                float score = 0;
                for (int c = 0; c < kMaxChildren; ++c)
                    child[(s - begin) * kMaxChildren + c] = {(s + c * 5) % n_vocab, score -= float(generator() % 4)};
                for (int below = s + 1; below < round.n_slots; ++below)
                    if (round.parent[below] == s && round.node[below] < 0 && generator() % 2)
                        child[(s - begin) * kMaxChildren].token = round.token[below];
            }
            draft_absorb(round, tree, settings, first, child.data());
        }
        guesses += round.guesses;
    }
    CHECK(guesses > 5000);
}

TEST_CASE("the n-gram guesses the longest earlier suffix first, then the table") {
    const auto guesses = [](const NgramView& table, const int32_t* text, int n_text, const Suffix& suffix) {
        const NgramGuesses all = ngram_guesses(table, ngram_search(table), text, n_text, suffix);
        std::vector<Guess> list;
        for (int i = 0; i < kMaxGuesses; ++i)
            if (const Guess guess = ngram_guess(all, text, i); guess.probability > 0) list.push_back(guess);
        return list;
    };
    NgramView none = {};
    //                     0  1  2  3  4  5  6  7  8  9
    const int32_t text[] = {1, 2, 3, 9, 2, 3, 7, 1, 2, 3};
    const Suffix all = {{3, 2, 1, 7, 3, 2, 9, 3}};
    const std::vector<Guess> longest = guesses(none, text, 10, all);
    REQUIRE(longest.size() == 1);
    CHECK(longest[0].token == 9);  // 1 2 3 stood before 9; 2 3 alone, later, before 7
    const std::vector<Guess> shorter = guesses(none, text, 7, {{3, 2, -1, -1, -1, -1, -1, -1}});
    REQUIRE(shorter.size() == 1);
    CHECK(shorter[0].token == 7);
    CHECK(shorter[0].probability < longest[0].probability);
    CHECK(guesses(none, text, 4, {{3, -1, -1, -1, -1, -1, -1, -1}}).empty());  // a single token is no suffix

    RandomTable table = make_random_table(10, 3);
    table.bigram[3] = {{0, 0}, {9, 4, kNoToken, kNoToken}, {40000, 20000, 0, 0}};
    for (NgramEntry& entry : table.trigram) entry.token[0] = kNoToken;
    const std::vector<Guess> both = guesses(table.view(), text, 10, all);
    REQUIRE(both.size() == 2);
    CHECK(both[0].token == 9);
    CHECK(both[1].token == 4);  // the table's 9 is not repeated
    CHECK(both[1].probability == doctest::Approx((1 - both[0].probability) * 20000 / 65535));
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

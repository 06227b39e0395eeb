#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "decode/ngram.h"
#include "tests/small_checkpoint.h"
#include "weights_tool/ngram_builder.h"

using Context = std::vector<int32_t>;  // older tokens first

// Katz's model by its formulas, over the whole vocabulary and without a thought for speed.
struct BruteForceKatz {
    int n_vocab;
    std::map<Context, std::map<int32_t, int>> count;  // [context][next]
    std::map<int, double> discount[3];                // [tokens of context][count]
    bool good_turing[3] = {};

    explicit BruteForceKatz(const NgramText& text) : n_vocab(text.n_vocab) {
        const std::vector<int32_t>& t = text.tokens;
        for (size_t i = 1; i < t.size(); ++i) {
            if (t[i] < 0) continue;
            ++count[{}][t[i]];
            if (t[i - 1] >= 0) ++count[{t[i - 1]}][t[i]];
            if (i >= 2 && t[i - 2] >= 0 && t[i - 1] >= 0 && t[i - 1] != text.separator)
                ++count[{t[i - 2], t[i - 1]}][t[i]];
        }
        for (const size_t order : {size_t(1), size_t(2)}) {
            std::map<int, double> n;
            for (const auto& [context, next] : count)
                if (context.size() == order)
                    for (const auto& [token, r] : next) ++n[r];
            std::map<int, double>& d = discount[order];
            good_turing[order] = true;
            for (int r = 1; r <= 5; ++r) {
                const double adjusted = (r + 1) * n[r + 1] / n[r], q = 6 * n[6] / n[1];
                d[r] = (adjusted / r - q) / (1 - q);
                if (!(d[r] > 0 && d[r] <= 1)) good_turing[order] = false;
            }
            const double singles = n[1] + 2 * n[2],
                         absolute = singles ? std::min(0.9, std::max(0.1, n[1] / singles)) : 0.5;
            for (const auto& [r, how_many] : n)
                if (how_many > 0) d[r] = good_turing[order] ? (r <= 5 ? d[r] : 1) : (r - absolute) / r;
        }
    }

    // P(token | context) of every token.
    std::vector<double> distribution(const Context& context) const {
        std::vector<double> p(size_t(n_vocab), 0.0);
        const auto met = count.find(context);
        const std::vector<double> shorter = context.empty() ? p : distribution({context.begin() + 1, context.end()});
        if (met == count.end()) return shorter;
        double total = 0, seen = 0, seen_shorter = 0;
        for (const auto& [token, r] : met->second) total += r;
        for (const auto& [token, r] : met->second) {
            p[token] = (context.empty() ? 1 : discount[context.size()].at(r)) * r / total;
            seen += p[token];
            seen_shorter += shorter[token];
        }
        if (context.empty()) return p;
        for (int32_t token = 0; token < n_vocab; ++token) {
            const bool was_met = met->second.contains(token);
            if (seen_shorter > 1 - 1e-9)
                p[token] = was_met ? p[token] / seen : 0;
            else if (!was_met)
                p[token] = (1 - seen) / (1 - seen_shorter) * shorter[token];
        }
        return p;
    }
};

// A table and what reads it.
struct BuiltTable {
    NgramTable table;
    std::vector<NgramEntry> aligned;  // the section again, as aligned as a mapped one
    NgramView view;

    BuiltTable(const NgramText& text, const NgramLimits& limits = {}) : table(build_ngram_table(text, limits)) {
        aligned.resize(table.section.size() / sizeof(NgramEntry));
        std::memcpy(aligned.data(), table.section.data(), table.section.size());
        view =
            ngram_view({reinterpret_cast<const uint8_t*>(aligned.data()), table.section.size()}, text.n_vocab, "table");
    }
    uint64_t n_slots() const { return uint64_t(1) << view.header->log2_slots; }
};

static void check_entry(const NgramEntry& entry, const std::vector<double>& p) {
    std::vector<double> ranked = p;
    std::sort(ranked.begin(), ranked.end(), std::greater<>());
    for (int i = 0; i < kNgramSuccessors; ++i) {
        if (ranked[i] < 1e-12) {
            CHECK(entry.token[i] == kNoToken);
            CHECK(entry.probability[i] == 0);
            continue;
        }
        REQUIRE(entry.token[i] < p.size());
        CHECK(p[entry.token[i]] == doctest::Approx(ranked[i]).epsilon(1e-9));
        CHECK(std::abs(entry.probability[i] - 65535 * ranked[i]) < 0.5001);
        for (int j = 0; j < i; ++j) CHECK(entry.token[i] != entry.token[j]);
    }
}

// Every `step`th trigram context, all bigram contexts, and none.
static void check_against_brute_force(const NgramText& text, const BruteForceKatz& katz, int step) {
    const BuiltTable built(text);
    uint64_t n_contexts = 0;
    for (const auto& [context, next] : katz.count) {
        if (context.size() == 2) {
            if (n_contexts++ % step) continue;
            const NgramEntry* entry = ngram_entry(built.view, context[0], context[1]);
            REQUIRE((entry >= built.view.trigram && entry < built.view.bigram));
            CHECK(entry->context[0] == uint32_t(context[0]));
            CHECK(entry->context[1] == uint32_t(context[1]));
        }
        const std::vector<double> p = katz.distribution(context);
        double sum = 0;
        for (const double x : p) sum += x;
        CHECK(sum == doctest::Approx(1));
        check_entry(context.size() == 2   ? *ngram_entry(built.view, context[0], context[1])
                    : context.size() == 1 ? built.view.bigram[context[0]]
                                          : *built.view.unigram,
                    p);
    }
    CHECK(built.view.header->n_contexts == n_contexts);
    CHECK(built.table.n_contexts_met == n_contexts);
    for (int32_t token = 0; token < text.n_vocab; ++token)
        if (!katz.count.contains({token})) CHECK(built.view.bigram[token].token[0] == kNoToken);
}

// Documents of a random Markov chain whose tokens and successors are distributed like words, about 1 / rank.
static NgramText random_text(int n_vocab, int separator, int n_documents, int length, uint32_t seed) {
    std::mt19937 random(seed);
    const auto zipf = [&](int n) { return int(std::exp(std::log(n + 1) * (random() / 4294967296.0))) - 1; };
    NgramText text = {n_vocab, separator};
    for (int i = 0; i < n_documents; ++i) {
        std::vector<int32_t> document;
        int32_t token = zipf(n_vocab);
        for (int j = 1 + int(random() % length); j > 0; --j) {
            if (token == separator) token = 0;
            document.push_back(token);
            token = random() % 4 ? int32_t((token * 7919 + zipf(40) * 31) % n_vocab) : zipf(n_vocab);
        }
        text.add(document);
    }
    return text;
}

TEST_CASE("n-gram table: small texts hold Katz's probabilities, computed by brute force") {
    for (uint32_t seed = 0; seed < 20; ++seed)
        for (const int separator : {-1, 9}) {
            const NgramText text = random_text(10, separator, 1 + int(seed), 30, seed);
            check_against_brute_force(text, BruteForceKatz(text), 1);
        }
}

TEST_CASE("n-gram table: a text large enough for Good-Turing discounts holds Katz's probabilities") {
    const NgramText text = random_text(300, 299, 200, 1000, 1);
    const BruteForceKatz katz(text);
    CHECK(katz.good_turing[1]);
    CHECK(katz.good_turing[2]);
    check_against_brute_force(text, katz, 37);
}

TEST_CASE("n-gram table: texts with nothing to back off to hold distributions all the same") {
    for (const std::vector<int32_t>& document :
         std::vector<std::vector<int32_t>>{{0, 1, 0, 1, 0, 1, 0, 1},
                                           {0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
                                           {0, 1, 2},
                                           {2, 1, 0, 2, 1, 0, 2, 1, 0, 2, 1, 0}}) {
        NgramText text = {4, -1};
        text.add(document);
        check_against_brute_force(text, BruteForceKatz(text), 1);
    }
}

TEST_CASE("n-gram table: successors rank by probability, then by lower id") {
    NgramText text = {20, -1};
    for (const int32_t next : {7, 7, 7, 7, 7, 7, 9, 9, 9, 9, 3, 3, 5, 5, 4, 4})
        text.add(std::vector<int32_t>{1, 2, next});
    const BuiltTable built(text);
    const NgramEntry& entry = *ngram_entry(built.view, 1, 2);
    CHECK(std::vector<uint32_t>(entry.token, entry.token + 4) == std::vector<uint32_t>{7, 9, 3, 4});
    CHECK(entry.probability[2] == entry.probability[3]);
    CHECK(entry.probability[0] > entry.probability[1]);
    CHECK(entry.probability[1] > entry.probability[2]);
    CHECK(std::vector<uint32_t>(built.view.unigram->token, built.view.unigram->token + 4) ==
          std::vector<uint32_t>{1, 2, 7, 9});
}

TEST_CASE("n-gram table: nothing is counted across documents, but <|endoftext|> begins and ends them") {
    NgramText text = {10, 9};
    text.add(std::vector<int32_t>{1, 2, 3});
    text.add(std::vector<int32_t>{4, 9, 9, 5, 6});
    CHECK(text.tokens == std::vector<int32_t>{9, 1, 2, 3, 9, 4, 9, 5, 6, 9});
    const BruteForceKatz katz(text);
    CHECK(katz.count.at({9, 1}).at(2) == 1);
    CHECK(katz.count.at({2, 3}).at(9) == 1);
    CHECK(!katz.count.contains({3, 9}));
    check_against_brute_force(text, katz, 1);

    NgramText broken = {10, -1};
    broken.add(std::vector<int32_t>{1, 2, 3});
    broken.add(std::vector<int32_t>{4, 5, 6});
    const BuiltTable built(broken);
    CHECK(built.view.header->n_contexts == 2);
    CHECK(built.view.header->n_source_tokens == 6);
    CHECK(built.view.bigram[3].token[0] == kNoToken);
}

TEST_CASE("n-gram table: every stored context is found from its hash, and the header tells how far to look") {
    const NgramText text = random_text(2000, 1999, 400, 1000, 2);
    const BuiltTable built(text);
    const NgramHeader& header = *built.view.header;
    uint64_t n_found = 0;
    uint32_t furthest = 0;
    for (uint64_t slot = 0; slot < built.n_slots(); ++slot) {
        const NgramEntry& entry = built.view.trigram[slot];
        if (entry.token[0] == kNoToken) continue;
        ++n_found;
        CHECK(ngram_entry(built.view, int32_t(entry.context[0]), int32_t(entry.context[1])) == &entry);
        const uint64_t home = ngram_hash(entry.context[0], entry.context[1]) & (built.n_slots() - 1);
        furthest = std::max(furthest, uint32_t((slot - home) & (built.n_slots() - 1)) + 1);
    }
    CHECK(n_found > 50000);
    CHECK(header.n_contexts == n_found);
    CHECK(header.max_probes == furthest);
    CHECK(header.max_probes <= 64);
    CHECK(header.n_contexts * 3 <= built.n_slots() * 2);
}

TEST_CASE("n-gram table: limits keep the contexts met most often, with the probabilities they had") {
    const NgramText text = random_text(100, 99, 100, 400, 3);
    const BruteForceKatz katz(text);
    std::map<Context, int> met;
    for (const auto& [context, next] : katz.count)
        if (context.size() == 2)
            for (const auto& [token, r] : next) met[context] += r;
    const BuiltTable whole(text);
    const auto check_kept = [&](const NgramLimits& limits, uint64_t expected) {
        const BuiltTable built(text, limits);
        CHECK(built.view.header->n_contexts == expected);
        CHECK(built.table.n_contexts_met == met.size());
        int least_kept = INT32_MAX, most_dropped = 0;
        for (const auto& [context, r] : met) {
            const NgramEntry* entry = ngram_entry(built.view, context[0], context[1]);
            const bool kept = entry >= built.view.trigram && entry < built.view.bigram;
            if (kept) CHECK(std::memcmp(entry, ngram_entry(whole.view, context[0], context[1]), sizeof *entry) == 0);
            if (kept) least_kept = std::min(least_kept, r);
            if (!kept) most_dropped = std::max(most_dropped, r);
        }
        CHECK(least_kept >= most_dropped);
        CHECK(std::memcmp(built.view.bigram, whole.view.bigram, 101 * sizeof(NgramEntry)) == 0);
    };
    const auto n_met = [&](int least) {
        return uint64_t(std::count_if(met.begin(), met.end(), [&](const auto& m) { return m.second >= least; }));
    };
    REQUIRE(n_met(1) > n_met(3));
    REQUIRE(n_met(3) > 200);
    check_kept({}, met.size());
    check_kept({.min_count = 3}, n_met(3));
    check_kept({.max_contexts = 200}, 200);
    check_kept({.min_count = 3, .max_contexts = 200}, 200);
    check_kept({.min_count = 1000000}, 0);
}

TEST_CASE(
    "n-gram table: a table of contexts_within(bytes) contexts takes no more bytes, and one more would double it") {
    const NgramText text = random_text(100, 99, 100, 400, 3);
    CHECK(contexts_within(100 * sizeof(NgramEntry), 100) == 0);
    for (const uint64_t bytes : {uint64_t(4000), uint64_t(10000), uint64_t(20000), uint64_t(50000)}) {
        const uint64_t most = contexts_within(bytes, text.n_vocab);
        REQUIRE(most > 0);
        REQUIRE(BuiltTable(text).view.header->n_contexts > most);
        CHECK(BuiltTable(text, {.max_contexts = most}).table.section.size() <= bytes);
        CHECK(BuiltTable(text, {.max_contexts = most + 1}).table.section.size() > bytes);
    }
}

TEST_CASE("n-gram table: the same documents in any order give the same bytes") {
    NgramText text = random_text(100, 99, 100, 400, 4), reversed = {100, 99};
    std::vector<int32_t> document;
    for (size_t i = text.tokens.size(); i-- > 0;) {
        document.insert(document.begin(), text.tokens[i]);
        if (text.tokens[i] == 99) {
            reversed.add(document);
            document.clear();
        }
    }
    REQUIRE(reversed.tokens != text.tokens);
    REQUIRE(reversed.tokens.size() == text.tokens.size());
    const NgramTable table = build_ngram_table(text, {});
    CHECK(build_ngram_table(text, {}).section == table.section);
    CHECK(build_ngram_table(reversed, {}).section == table.section);
}

TEST_CASE("n-gram table: every hundredth document is held out, or the end of the text") {
    NgramText text = {1000, 999};
    for (int32_t i = 0; i < 250; ++i) text.add(std::vector<int32_t>{i, i, i});
    NgramText rest = text;
    const NgramText held_out = hold_out(rest);
    CHECK(held_out.tokens == std::vector<int32_t>{999, 99, 99, 99, 999, 199, 199, 199, 999});
    CHECK(rest.tokens.size() + held_out.tokens.size() == text.tokens.size() + 1);
    CHECK(std::count(rest.tokens.begin(), rest.tokens.end(), 99) == 0);

    NgramText one = {1000, -1};
    std::vector<int32_t> document(1000);
    for (int32_t i = 0; i < 1000; ++i) document[i] = i;
    one.add(document);
    const NgramText end = hold_out(one);
    CHECK(end.tokens.front() == -1);
    CHECK(end.tokens.back() == -1);
    CHECK(one.tokens.size() == 1 + 1000 - 9 + 1);
    CHECK(end.tokens[1] == 991);
}

TEST_CASE("n-gram table: coverage counts known contexts, first and later successors") {
    NgramText text = {10, -1}, other = {10, -1};
    text.add(std::vector<int32_t>{1, 2, 3, 1, 2, 3, 1, 2, 4});
    const BuiltTable built(text);
    other.add(std::vector<int32_t>{1, 2, 3});  // known, first
    other.add(std::vector<int32_t>{1, 2, 4});  // known, second
    other.add(std::vector<int32_t>{1, 2, 9});  // known, not among
    other.add(std::vector<int32_t>{5, 2, 3});  // by the bigram, first
    other.add(std::vector<int32_t>{5, 6, 1});  // by the unigram: 1 and 2 and 3 are equals or better than 4
    const NgramCoverage coverage = measure_coverage(built.view, other);
    CHECK(coverage.tokens == 5);
    CHECK(coverage.known == 3);
    CHECK(coverage.first == 3);
    CHECK(coverage.among == 4);
}

TEST_CASE("n-gram table: a text without three tokens in a row is refused") {
    NgramText text = {10, -1};
    CHECK(error_of([&] { build_ngram_table(text, {}); }).find("[2] the text holds 0 tokens") == 0);
    text.add(std::vector<int32_t>{1, 2});
    text.add(std::vector<int32_t>{3});
    CHECK(error_of([&] { build_ngram_table(text, {}); }).find("[2] the text holds 3 tokens") == 0);
}

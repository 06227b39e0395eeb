// The promise: for one seed the text is the same in baseline, speculative and staged mode, for any draft,
// any n-gram table and any tree settings, greedy or sampled.
#include <doctest/doctest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "decode/generate.h"
#include "decode/reference.h"
#include "model/tokenizer.h"
#include "tests/random_model.h"

namespace {

const Sampling kSamplings[] = {{}, {.temperature = 1, .top_k = 50}, {.temperature = 0.8f, .top_p = 0.95f}};

TreeSettings random_settings(std::mt19937& generator) {
    TreeSettings settings;
    settings.nodes = 1 + int(generator() % kMaxNodes);
    settings.depth = 1 + int(generator() % kMaxDepth);
    settings.children = 1 + int(generator() % kMaxChildren);
    settings.draft_width = 1 + int(generator() % 24);
    settings.draft_passes = 1 + int(generator() % 8);
    settings.ngram_nodes = int(generator() % settings.draft_width);
    settings.tau = 0.5f + float(generator() % 20) / 10;
    settings.draft_cost = float(generator() % 3) * 0.05f;
    return settings;
}

struct Written {
    std::vector<int32_t> tokens;
    Statistics statistics;
};
Written write(Model& target, Model* draft, const NgramView& table, const Request& request) {
    Written result;
    result.statistics = generate(target, draft, table, request, [&](std::span<const Emitted> part) {
        for (const Emitted& e : part) result.tokens.push_back(e.token);
        return true;
    });
    return result;
}

// Totals over many generations, so that a test can also say that speculation took place at all.
struct Totals {
    int64_t tokens = 0, rounds = 0, accepted = 0, confirmed = 0, texts = 0;
};

// Compares the modes on one request; the request's mode is ignored.
void compare(Model& target, Model& draft, const NgramView& table, Request request, Totals& totals) {
    request.mode = Mode::baseline;
    const Written baseline = write(target, nullptr, {}, request);
    for (const Mode mode : {Mode::speculative, Mode::staged}) {
        request.mode = mode;
        const Written other = write(target, &draft, table, request);
        REQUIRE(other.tokens == baseline.tokens);
        REQUIRE(other.statistics.stop == baseline.statistics.stop);
        const Statistics& s = other.statistics;
        CHECK(s.emitted == int(other.tokens.size()));
        CHECK(s.by_origin[0] + s.by_origin[1] + s.by_origin[2] == s.emitted);
        CHECK(s.rounds <= std::max(1, baseline.statistics.rounds));
        totals.tokens += s.emitted, totals.rounds += s.rounds, totals.accepted += s.accepted;
        totals.confirmed += s.ngram_confirmed, totals.texts += 1;
    }
}

void compare_demo(int n_seeds, int n_tokens) {
    const Blob blob = Blob::open("model/demo/demo.blob");
    const Tokenizer tokenizer = Tokenizer::from_section(blob.tokenizer());
    Reference target(blob.target()), draft(blob.draft()), itself(blob.target());
    const RandomModel random = make_random_model(1, 2, 32, 512, 4096, 1, 0.5f);
    Reference useless(random.view);
    const RandomTable noise = make_random_table(4096, 2);
    const NgramView table_of_demo = blob.ngram();
    std::ifstream file("tests/golden/prompts.json");
    const nlohmann::json prompts = nlohmann::json::parse(file);
    REQUIRE(prompts.size() == 40);
    std::mt19937 generator(99);
    Totals totals;
    int round = 0;
    for (const auto& prompt : prompts)
        for (const Sampling& sampling : kSamplings)
            for (int seed = 0; seed < n_seeds; ++seed, ++round) {
                Request request;
                request.prompt = tokenizer.encode(prompt.get<std::string>());
                request.max_tokens = n_tokens;
                request.sampling = sampling;
                request.sampling.seed = uint64_t(seed) << 40 | uint32_t(round);
                request.tree = round % 3 ? random_settings(generator) : TreeSettings();
                Model& guesser = round % 7 == 5 ? useless : round % 7 == 6 ? itself : draft;
                const NgramView table = round % 5 == 4 ? noise.view() : round % 5 == 3 ? NgramView{} : table_of_demo;
                CAPTURE(round);
                compare(target, guesser, table, request, totals);
            }
    MESSAGE(totals.texts << " texts, " << totals.tokens << " tokens equal to baseline; " << totals.rounds << " rounds, "
                         << totals.accepted << " guesses accepted, " << totals.confirmed
                         << " n-gram guesses confirmed");
    CHECK(totals.accepted > totals.tokens / 5);
    CHECK(totals.confirmed > 0);
}

}  // namespace

TEST_CASE("the three modes write the same text on the demo model: 40 prompts, greedy and sampled, random trees") {
    compare_demo(1, 40);
}

TEST_CASE("long: the three modes write the same text on the demo model: five seeds, 100 tokens") {
    compare_demo(5, 100);
}

TEST_CASE("the three modes write the same text for random targets, drafts, tables and trees, up to every limit") {
    std::mt19937 generator(5);
    Totals totals;
    for (int round = 0; round < 400; ++round) {
        // A draft that resembles the target (same seed, fewer layers), or one that does not; contexts of other lengths.
        const int n_vocab = 12 + int(generator() % 40), n_positions = 8 + int(generator() % 60);
        const uint64_t seed = generator();
        const RandomModel big = make_random_model(2, 2, 32, n_positions, n_vocab, seed, 0.3f);
        const RandomModel small = round % 3 == 0
                                      ? make_random_model(1, 2, 32, n_positions, n_vocab, seed, 0.3f)
                                      : make_random_model(1, 1, 16, 4 + int(generator() % 60), n_vocab, seed + 1, 0.5f);
        Reference target(big.view), twin(big.view), other(small.view);
        Model& draft = round % 3 == 1 ? static_cast<Model&>(twin) : other;
        const RandomTable table = make_random_table(n_vocab, seed);
        Request request;
        request.prompt.resize(1 + generator() % (n_positions - 1));
        for (int32_t& t : request.prompt) t = int(generator() % n_vocab);
        request.max_tokens = 1 + int(generator() % 80);
        request.sampling = kSamplings[generator() % 3];
        request.sampling.seed = generator();
        request.tree = random_settings(generator);
        request.ignore_eos = generator() % 2;
        CAPTURE(round);
        compare(target, draft, table.view(), request, totals);
    }
    CHECK(totals.accepted > 1000);
    CHECK(totals.confirmed > 100);
}

TEST_CASE("a caller that stops early has received a prefix of the same text") {
    const RandomModel random = make_random_model(2, 2, 32, 64, 30, 4, 0.3f);
    Reference target(random.view), draft(random.view);
    Request request;
    request.prompt = {1, 2, 3};
    request.ignore_eos = true;
    const Written all = write(target, nullptr, {}, request);
    CHECK(all.statistics.stop == StopReason::context_full);
    CHECK(int(all.tokens.size()) == 64 - 3);
    request.mode = Mode::staged;
    std::vector<int32_t> part;
    const Statistics statistics = generate(target, &draft, {}, request, [&](std::span<const Emitted> emitted) {
        for (const Emitted& e : emitted) part.push_back(e.token);
        return part.size() < 10;
    });
    CHECK(statistics.stop == StopReason::caller);
    REQUIRE(part.size() >= 10);
    CHECK(std::equal(part.begin(), part.end(), all.tokens.begin()));
}

TEST_CASE("a draft that is the target itself is accepted wholly") {
    const RandomModel random = make_random_model(2, 2, 32, 128, 30, 4, 0.3f);
    Reference target(random.view), draft(random.view);
    for (const Sampling& sampling : kSamplings) {
        Request request;
        request.prompt = {1, 2, 3};
        request.max_tokens = 100;
        request.ignore_eos = true;
        request.mode = Mode::speculative;
        request.sampling = sampling;
        request.tree.draft_cost = 0;
        request.tree.children = 1;  // a chain of eight guesses, and the token after it
        const Written written = write(target, &draft, {}, request);
        CHECK(written.statistics.rounds == 12);
        CHECK(written.statistics.accepted == 100 - 12);
    }
}

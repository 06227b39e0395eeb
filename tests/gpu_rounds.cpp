// The rounds that the GPU leads itself write the same text with the same trees as the loop that the host leads over the
// same models, and both write what baseline decoding writes.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "decode/generate.h"
#include "kernels/cuda_rounds.h"
#include "model/tokenizer.h"
#include "tests/gpu_model.h"
#include "tests/random_settings.h"

namespace {

const Sampling kSamplings[] = {{}, {.temperature = 1, .top_k = 50}, {.temperature = 0.8f, .top_p = 0.95f}};

struct Written {
    std::vector<int32_t> tokens;
    std::vector<Origin> origins;
    Statistics statistics;
};

struct Pair {
    CudaModel target, draft;
    NgramView table;
    CudaRounds rounds;
    Pair(const ModelView& target_view, const ModelView& draft_view, const NgramView& ngrams)
        : target(target_view, 0), draft(draft_view, 0), table(ngrams), rounds(target, draft, ngrams) {}

    Written write(const Request& request, bool on_device, size_t stop_after = SIZE_MAX) {
        Written w;
        const auto emit = [&](std::span<const Emitted> part) {
            for (const Emitted& e : part) w.tokens.push_back(e.token), w.origins.push_back(e.origin);
            return w.tokens.size() < stop_after;
        };
        w.statistics = on_device ? rounds.generate(request, emit) : generate(target, &draft, table, request, emit);
        return w;
    }

    std::vector<int32_t> baseline(const Request& request) {
        const int n = int(request.prompt.size()), end = request.ignore_eos ? -1 : target.config().eos_token;
        target.prefill(0, std::span(request.prompt).first(n - 1));
        std::vector<int32_t> tokens;
        target.decode(request.prompt.back(), n - 1, std::min(request.max_tokens, target.config().n_positions - n), end,
                      request.sampling, [&](int32_t token) {
                          if (token == end) return false;
                          tokens.push_back(token);
                          return true;
                      });
        return tokens;
    }
};

struct Totals {
    int texts = 0, tokens = 0, accepted = 0, confirmed = 0, draft_passes = 0;
};

void compare(Pair& pair, Request request, Totals& totals) {
    const std::vector<int32_t> baseline = pair.baseline(request);
    for (const Mode mode : {Mode::speculative, Mode::staged}) {
        request.mode = mode;
        CAPTURE(int(mode));
        const Written host = pair.write(request, false), device = pair.write(request, true);
        REQUIRE(device.tokens == baseline);
        REQUIRE(host.tokens == baseline);
        CHECK(device.origins == host.origins);
        const Counters &a = device.statistics, &b = host.statistics;
        CHECK(a.rounds == b.rounds);
        CHECK(a.draft_nodes == b.draft_nodes);
        CHECK(a.ngram_confirmed == b.ngram_confirmed);
        CHECK(std::memcmp(&a, &b, sizeof a) == 0);
        CHECK(device.statistics.stop == host.statistics.stop);
        totals.texts += 1, totals.tokens += int(device.tokens.size()), totals.accepted += a.accepted;
        totals.confirmed += a.ngram_confirmed, totals.draft_passes += a.draft_passes;
    }
}

void report(const Totals& totals) {
    MESSAGE(totals.texts << " texts, " << totals.tokens << " tokens; " << totals.draft_passes << " draft passes, "
                         << totals.accepted << " guesses accepted, " << totals.confirmed
                         << " n-gram guesses confirmed");
}

std::vector<std::vector<int32_t>> demo_prompts(const Blob& blob) {
    const Tokenizer tokenizer = Tokenizer::from_section(blob.tokenizer());
    std::ifstream file("tests/golden/prompts.json");
    std::vector<std::vector<int32_t>> prompts;
    for (const auto& prompt : nlohmann::json::parse(file))
        prompts.push_back(tokenizer.encode(prompt.get<std::string>()));
    REQUIRE(prompts.size() == 40);
    return prompts;
}

}  // namespace

TEST_CASE("gpu: rounds led by the device equal those led by the host and baseline: the demo model") {
    if (!gpu_or_skip()) return;
    const Blob blob = Blob::open("model/demo/demo.blob");
    Pair pair(blob.target(), blob.draft(), blob.ngram());
    std::mt19937 generator(11);
    Totals totals;
    int text = 0;
    for (const auto& prompt : demo_prompts(blob)) {
        Request request;
        request.prompt = prompt;
        request.max_tokens = 60;
        request.sampling = kSamplings[text % 3];
        request.sampling.seed = generator();
        if (text % 4) request.tree = random_settings(generator);
        CAPTURE(text);
        compare(pair, request, totals);
        ++text;
    }
    report(totals);
    CHECK(totals.accepted > totals.tokens / 5);
    CHECK(totals.confirmed > 100);
}

TEST_CASE("gpu: rounds led by the device equal those led by the host and baseline: random models up to every limit") {
    if (!gpu_or_skip()) return;
    std::mt19937 generator(12);
    Totals totals;
    for (int round = 0; round < 40; ++round) {
        // A draft that resembles the target, the target itself, or one that has nothing to do with it; contexts of
        // other lengths; tables of noise or none. A target of 1,600 columns needs several launches for a wide pass.
        const int n_vocab = 12 + int(generator() % 40), n_positions = 8 + int(generator() % 90);
        const uint64_t seed = generator();
        const RandomModel big = round % 10 == 7 ? make_large_model(1, 25, n_positions, n_vocab, seed, 0.1f)
                                                : make_random_model(2, 2, 128, n_positions, n_vocab, seed, 0.2f);
        const RandomModel small = round % 3 == 0
                                      ? make_random_model(1, 2, 128, n_positions, n_vocab, seed, 0.2f)
                                      : make_random_model(1, 1, 64, 4 + int(generator() % 90), n_vocab, seed + 1, 0.4f);
        const RandomTable table = make_random_table(n_vocab, seed);
        Pair pair(big.view, round % 3 == 1 ? big.view : small.view, round % 5 == 4 ? NgramView{} : table.view());
        for (int i = 0; i < 3; ++i) {
            Request request;
            request.prompt.resize(1 + generator() % (n_positions - 1));
            for (int32_t& t : request.prompt) t = int(generator() % n_vocab);
            request.max_tokens = 1 + int(generator() % 60);
            request.sampling = kSamplings[i];
            request.sampling.seed = generator();
            request.tree = random_settings(generator);
            request.ignore_eos = generator() % 2;
            CAPTURE(round);
            CAPTURE(i);
            compare(pair, request, totals);
        }
    }
    report(totals);
    CHECK(totals.accepted > 300);
    CHECK(totals.confirmed > 100);
}

TEST_CASE("gpu: a caller that stops early gets the same prefix and statistics, within 100 ms") {
    if (!gpu_or_skip()) return;
    const Blob blob = Blob::open("model/demo/demo.blob");
    Pair pair(blob.target(), blob.draft(), blob.ngram());
    Request request;
    request.prompt = demo_prompts(blob)[0];
    request.mode = Mode::staged;
    request.max_tokens = 200;
    request.ignore_eos = true;
    const Written all = pair.write(request, true);
    CHECK(all.tokens.size() == 200);
    const Written host = pair.write(request, false, 20), device = pair.write(request, true, 20);
    CHECK(device.tokens == host.tokens);
    CHECK(device.tokens.size() < 20 + kMaxDepth + 1);
    CHECK(std::equal(device.tokens.begin(), device.tokens.end(), all.tokens.begin()));
    CHECK(device.statistics.stop == StopReason::caller);
    const Counters &a = device.statistics, &b = host.statistics;
    CHECK(std::memcmp(&a, &b, sizeof a) == 0);
    std::chrono::steady_clock::time_point stopped;
    pair.rounds.generate(request, [&](std::span<const Emitted>) {
        stopped = std::chrono::steady_clock::now();
        return false;
    });
    CHECK(std::chrono::steady_clock::now() - stopped < std::chrono::milliseconds(100));
}

TEST_CASE("bench: rounds led by the host and by the device on the demo model") {
    if (!gpu_or_skip()) return;
    const Blob blob = Blob::open("model/demo/demo.blob");
    Pair pair(blob.target(), blob.draft(), blob.ngram());
    for (const Mode mode : {Mode::speculative, Mode::staged})
        for (const Sampling& sampling : {kSamplings[0], kSamplings[1]})
            for (const bool on_device : {false, true}) {
                Request request;
                request.mode = mode;
                request.sampling = sampling;
                request.max_tokens = 200;
                Statistics sum;
                for (const auto& prompt : demo_prompts(blob)) {
                    request.prompt = prompt;
                    const Statistics s = pair.write(request, on_device).statistics;
                    sum.rounds += s.rounds, sum.emitted += s.emitted, sum.draft_passes += s.draft_passes;
                    sum.prefill_ms += s.prefill_ms, sum.draft_ms += s.draft_ms, sum.ngram_ms += s.ngram_ms;
                    sum.target_ms += s.target_ms, sum.total_ms += s.total_ms;
                }
                const double us = 1e3 / sum.rounds;
                std::printf(
                    "%s %s, led by the %s: %d tokens, %d rounds, %d draft passes; us a round: %.1f = draft %.1f + "
                    "n-gram and tree %.1f + target %.1f + rest %.1f\n",
                    mode == Mode::staged ? "staged" : "speculative", sampling.temperature == 0 ? "greedy" : "sampled",
                    on_device ? "device" : "host", sum.emitted, sum.rounds, sum.draft_passes,
                    (sum.total_ms - sum.prefill_ms) * us, sum.draft_ms * us, sum.ngram_ms * us, sum.target_ms * us,
                    (sum.total_ms - sum.prefill_ms - sum.draft_ms - sum.ngram_ms - sum.target_ms) * us);
            }
}

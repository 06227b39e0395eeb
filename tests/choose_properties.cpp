// choose() keeps the tokens that Hugging Face's warpers keep, breaks ties by the lowest id, and is a function of its
// arguments alone. The brute force here follows the definition in long double.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "decode/choose.h"
#include "decode/tree.h"

namespace {

std::vector<float> random_logits(int n, std::mt19937& generator, bool with_ties) {
    std::normal_distribution<float> normal(0, 3);
    std::vector<float> logits(n);
    for (float& l : logits) l = with_ties ? std::round(normal(generator)) : normal(generator);
    return logits;
}

// Tokens in the order logit descending, id ascending.
std::vector<int> ranked(const std::vector<float>& logits) {
    std::vector<int> id(logits.size());
    std::iota(id.begin(), id.end(), 0);
    std::stable_sort(id.begin(), id.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    return id;
}

}  // namespace

TEST_CASE("philox gives the published words of Random123's known-answer test") {
    CHECK(philox(0, 0, 0) == 0x6627e8d5u);
    // Counter (243f6a88 85a308d3 13198a2e 03707344) needs all four words; with the last two 0 only the zero vector is
    // published, so further words are pinned against an independent 128-bit formulation.
    const auto independent = [](uint64_t seed, uint32_t position, uint32_t token) {
        uint32_t c[4] = {position, token, 0, 0}, k[2] = {uint32_t(seed), uint32_t(seed >> 32)};
        for (int i = 0; i < 10; ++i) {
            const unsigned __int128 a = (unsigned __int128)0xD2511F53u * c[0],
                                    b = (unsigned __int128)0xCD9E8D57u * c[2];
            const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k[0], uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k[1],
                                      uint32_t(a)};
            std::copy(next, next + 4, c);
            k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
        }
        return c[0];
    };
    std::mt19937_64 generator(1);
    for (int i = 0; i < 1000; ++i) {
        const uint64_t seed = generator();
        const uint32_t position = uint32_t(generator()), token = uint32_t(generator());
        CHECK(philox(seed, position, token) == independent(seed, position, token));
    }
}

TEST_CASE("log and exp are within four units in the last place") {
    double worst_log = 0, worst_exp = 0;
    for (float x = 1e-10f; x < 1e4f; x *= 1.00037f)
        worst_log =
            std::max(worst_log, std::abs(log_positive(x) - std::log(double(x))) / std::abs(std::log(double(x))));
    for (float x = -87; x < 0; x += 0.00091f)
        worst_exp = std::max(worst_exp, std::abs(exp_negative(x) - std::exp(double(x))) / std::exp(double(x)));
    CHECK(worst_log < 4 * 0x1p-24);
    CHECK(worst_exp < 4 * 0x1p-24);
    CHECK(exp_negative(0) == 1);
    CHECK(exp_negative(-1000) == 0);
    CHECK(log_positive(1) == 0);
}

TEST_CASE("Gumbel noise has the Gumbel law's moments and both tails") {
    double sum = 0, squares = 0;
    float lowest = 0, highest = 0;
    const int n = 2'000'000;
    for (int i = 0; i < n; ++i) {
        const float g = gumbel(0x123456789abcdefull, i % 1000, i / 1000);
        sum += g, squares += double(g) * g;
        lowest = std::min(lowest, g), highest = std::max(highest, g);
    }
    const double mean = sum / n, variance = squares / n - mean * mean;
    CHECK(std::abs(mean - 0.5772157) < 5 * std::sqrt(1.6449 / n));
    CHECK(std::abs(variance - 1.6449341) < 0.012);  // five standard errors of a variance with kurtosis 5.4
    CHECK(lowest < -2.5f);
    CHECK(highest > 12);
}

TEST_CASE("greedy takes the best logit, the lowest id on ties, and never NaN") {
    const float nan = std::nanf("");
    CHECK(choose(std::vector<float>{1, 3, 2, 3}, {}, 0) == 1);
    CHECK(choose(std::vector<float>{nan, -INFINITY, -5, nan}, {}, 0) == 2);
    CHECK(choose(std::vector<float>{nan, nan}, {}, 0) == 0);
    CHECK(choose(std::vector<float>{-0.0f, 0.0f}, {}, 0) == 0);
}

TEST_CASE("kept tokens are the top k with ties, then the shortest run that reaches p") {
    std::mt19937 generator(7);
    for (int round = 0; round < 400; ++round) {
        const int n = 2 + int(generator() % 300);
        const std::vector<float> logits = random_logits(n, generator, round % 2);
        Sampling sampling;
        sampling.temperature = 0.3f + float(generator() % 100) / 40;
        if (generator() % 3) sampling.top_k = 1 + int(generator() % (n + 5));
        if (generator() % 3) sampling.top_p = float(1 + generator() % 1000) / 1000;

        std::vector<int> id = ranked(logits);
        if (sampling.top_k > 0 && sampling.top_k < n) {
            const float kth = logits[id[sampling.top_k - 1]];
            std::erase_if(id, [&](int i) { return logits[i] < kth; });
        }
        std::vector<long double> weight;
        for (int i : id) weight.push_back(expl(((long double)logits[i] - logits[id[0]]) / sampling.temperature));
        const long double total = std::accumulate(weight.begin(), weight.end(), 0.0L);
        long double before = 0;
        bool near_the_edge = false;  // where rounding may decide
        std::vector<bool> expected(n, false);
        for (size_t r = 0; r < id.size(); ++r) {
            if (sampling.top_p < 1) near_the_edge |= fabsl(before / total - sampling.top_p) < 1e-6L;
            if (sampling.top_p < 1 && before >= sampling.top_p * total) break;
            expected[id[r]] = true;
            before += weight[r];
        }
        if (near_the_edge) continue;
        const KeptLimit limit = kept_limit(logits, sampling);
        for (int i = 0; i < n; ++i) CHECK(keeps(limit, logits[i], i) == expected[i]);
        const int32_t chosen = choose(logits, sampling, round);
        CHECK(expected[chosen]);
        for (int i = 0; i < n; ++i)
            if (expected[i]) {
                const float score = perturbed(sampling, logits[i], logits[id[0]], round, i);
                const float best = perturbed(sampling, logits[chosen], logits[id[0]], round, chosen);
                CHECK((score < best || (score == best && chosen <= i)));
            }
    }
}

TEST_CASE("top-k of one and a tiny top-p or temperature are greedy") {
    std::mt19937 generator(3);
    for (int round = 0; round < 50; ++round) {
        const std::vector<float> logits = random_logits(200, generator, false);
        const int32_t best = choose(logits, {}, 0);
        CHECK(choose(logits, {.temperature = 1, .top_k = 1, .seed = 5}, round) == best);
        CHECK(choose(logits, {.temperature = 1, .top_p = 1e-6f, .seed = 5}, round) == best);
        CHECK(choose(logits, {.temperature = 1e-30f, .seed = 5}, round) == best);
    }
}

TEST_CASE("the draft's first child is its own choice, and the children carry log-softmax scores") {
    std::mt19937 generator(11);
    for (int round = 0; round < 200; ++round) {
        const int n = 5 + int(generator() % 200);
        const std::vector<float> logits = random_logits(n, generator, round % 2);
        Sampling sampling;
        sampling.temperature = round % 3 ? 0.5f + float(generator() % 10) / 5 : 0;
        if (generator() % 2) sampling.top_k = 1 + int(generator() % 20);
        if (generator() % 2) sampling.top_p = 0.9f;
        const float tau = sampling.temperature == 0 ? 1 : 1.5f;
        Child child[kMaxChildren];
        propose(logits, sampling, 40, tau, child);
        CHECK(child[0].token == choose(logits, sampling, 40));

        const KeptLimit limit = kept_limit(logits, sampling);
        const float max_logit = *std::max_element(logits.begin(), logits.end());
        std::vector<std::pair<float, int>> score;
        for (int i = 0; i < n; ++i)
            if (keeps(limit, logits[i], i)) score.push_back({-perturbed(sampling, logits[i], max_logit, 40, i), i});
        std::sort(score.begin(), score.end());
        long double sum = 0;
        for (auto [s, i] : score) sum += expl(-s / tau);
        for (int c = 0; c < kMaxChildren; ++c) {
            if (c >= int(score.size())) {
                CHECK(child[c].token == -1);
                continue;
            }
            CHECK(child[c].token == score[c].second);
            CHECK(child[c].log_probability == doctest::Approx(double(-score[c].first / tau - logl(sum))).epsilon(1e-4));
            CHECK(child[c].log_probability <= 0);
        }
    }
}

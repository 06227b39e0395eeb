// The first and second sampled tokens follow the exact probabilities of the filtered softmax: chi-square over 200,000
// seeds for each setting. The model is small so that exact pair probabilities can be written down.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "decode/generate.h"
#include "decode/reference.h"
#include "tests/random_model.h"

namespace {

constexpr int kDraws = 200'000;

// Probabilities of the tokens after `text` under the settings, in double precision from the definition.
std::vector<double> exact(Reference& model, const std::vector<int32_t>& text, const Sampling& sampling) {
    std::vector<int32_t> parent(text.size());
    for (size_t i = 0; i < text.size(); ++i) parent[i] = int(i) - 1;
    model.forward({0, 0, int(text.size()), text.data(), parent.data(), 1});
    const std::span<const float> logits = model.logits(0);
    std::vector<std::pair<double, int>> order;
    for (size_t i = 0; i < logits.size(); ++i) order.push_back({-double(logits[i]), int(i)});
    std::sort(order.begin(), order.end());
    if (sampling.top_k > 0 && sampling.top_k < int(order.size())) order.resize(sampling.top_k);
    const auto softmax = [&] {
        double sum = 0;
        std::vector<double> p;
        for (auto [l, i] : order) sum += std::exp((order[0].first - l) / sampling.temperature);
        for (auto [l, i] : order) p.push_back(std::exp((order[0].first - l) / sampling.temperature) / sum);
        return p;
    };
    if (sampling.top_p < 1) {
        const std::vector<double> p = softmax();
        double before = 0;
        size_t kept = 0;
        for (; kept < p.size() && before < sampling.top_p; ++kept) before += p[kept];
        order.resize(kept);
    }
    const std::vector<double> p = softmax();
    std::vector<double> result(logits.size(), 0.0);
    for (size_t r = 0; r < order.size(); ++r) result[order[r].second] = p[r];
    return result;
}

// The probability that a chi-square variate with n degrees of freedom exceeds x (Wilson-Hilferty).
double chi_square_tail(double x, double n) {
    const double z = (std::cbrt(x / n) - (1 - 2 / (9 * n))) / std::sqrt(2 / (9 * n));
    return 0.5 * std::erfc(z / std::sqrt(2));
}

}  // namespace

TEST_CASE("the first and second tokens follow the exact law for temperatures, top-k and top-p") {
    const RandomModel random = make_random_model(1, 2, 32, 16, 24, 5, 0.35f);
    Reference model(random.view);
    const std::vector<int32_t> prompt = {3, 1, 4};
    const Sampling settings[] = {{.temperature = 1},
                                 {.temperature = 0.7f},
                                 {.temperature = 1.6f, .top_k = 6},
                                 {.temperature = 1, .top_p = 0.8f},
                                 {.temperature = 0.8f, .top_k = 10, .top_p = 0.9f}};
    for (const Sampling& setting : settings) {
        const std::vector<double> first = exact(model, prompt, setting);
        std::vector<std::vector<double>> second(first.size());
        std::vector<std::vector<float>> logits(first.size() + 1);
        logits.back().assign(model.logits(0).begin(), model.logits(0).end());
        for (size_t t = 0; t < first.size(); ++t) {
            std::vector<int32_t> text = prompt;
            text.push_back(int(t));
            second[t] = exact(model, text, setting);
            logits[t].assign(model.logits(0).begin(), model.logits(0).end());
        }
        // The logits are those of the engine; drawing from them 200,000 times takes choose() alone.
        std::map<std::pair<int, int>, int> pairs;
        std::vector<int> count(first.size(), 0);
        Sampling sampling = setting;
        for (int draw = 0; draw < kDraws; ++draw) {
            sampling.seed = 0x9e3779b97f4a7c15ull * uint64_t(draw + 1);
            if (draw % 2) sampling.seed = uint64_t(draw);  // neighbouring seeds must be independent too
            const int a = choose(logits.back(), sampling, 3), b = choose(logits[a], sampling, 4);
            ++count[a];
            ++pairs[{a, b}];
        }
        CAPTURE(setting.temperature);
        CAPTURE(setting.top_k);
        CAPTURE(setting.top_p);
        const auto check = [&](auto probability, auto observed, size_t n_cells) {
            double statistic = 0, rest_expected = 0;
            long rest_observed = 0;
            int cells = 0;
            for (size_t c = 0; c < n_cells; ++c) {
                const double expected = kDraws * probability(c);
                const long found = observed(c);
                if (expected == 0) CHECK(found == 0);
                if (expected < 8) {  // rare cells are counted together
                    rest_expected += expected, rest_observed += found;
                    continue;
                }
                statistic += (found - expected) * (found - expected) / expected, ++cells;
            }
            if (rest_expected >= 8)
                statistic += (rest_observed - rest_expected) * (rest_observed - rest_expected) / rest_expected, ++cells;
            REQUIRE(cells > 2);
            CHECK(chi_square_tail(statistic, cells - 1) > 1e-5);
            CHECK(chi_square_tail(statistic, cells - 1) < 1 - 1e-5);  // too good a fit is no sample either
        };
        const size_t n = first.size();
        check([&](size_t c) { return first[c]; }, [&](size_t c) { return count[c]; }, n);
        check([&](size_t c) { return first[c / n] * second[c / n][c % n]; },
              [&](size_t c) {
                  const auto found = pairs.find({int(c / n), int(c % n)});
                  return found == pairs.end() ? 0 : found->second;
              },
              n * n);
    }
}

TEST_CASE(
    "generate draws what choose draws: two thousand seeds in staged mode against the law of the first two tokens") {
    const RandomModel random = make_random_model(1, 2, 32, 16, 24, 5, 0.35f);
    const RandomModel other = make_random_model(1, 1, 16, 16, 24, 6, 0.35f);
    Reference target(random.view), draft(other.view), probe(random.view);
    const RandomTable table = make_random_table(24, 9);
    const Sampling setting = {.temperature = 1, .top_k = 8};
    const std::vector<double> first = exact(probe, {3, 1, 4}, setting);
    std::vector<int> count(first.size(), 0);
    const int draws = 2000;
    for (int draw = 0; draw < draws; ++draw) {
        Request request;
        request.prompt = {3, 1, 4};
        request.max_tokens = 4;
        request.mode = Mode::staged;
        request.sampling = setting;
        request.sampling.seed = uint64_t(draw);
        request.ignore_eos = true;
        bool seen = false;
        generate(target, &draft, table.view(), request, [&](std::span<const Emitted> part) {
            if (!seen) ++count[part[0].token];
            seen = true;
            return true;
        });
    }
    double statistic = 0;
    int cells = 0;
    for (size_t t = 0; t < first.size(); ++t)
        if (first[t] * draws >= 5) {
            statistic += std::pow(count[t] - first[t] * draws, 2) / (first[t] * draws);
            ++cells;
        }
    REQUIRE(cells > 3);
    CHECK(chi_square_tail(statistic, cells - 1) > 1e-5);
}

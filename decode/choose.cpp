#include "decode/choose.h"

#include <algorithm>
#include <limits>
#include <vector>

static constexpr float kInfinity = std::numeric_limits<float>::infinity();

static float max_of(std::span<const float> logits) {
    float best = -kInfinity;
    for (float logit : logits) best = logit > best ? logit : best;
    return best;
}

KeptLimit kept_limit(std::span<const float> logits, const Sampling& sampling) {
    const int n_vocab = int(logits.size());
    KeptLimit limit = {-kInfinity, INT_MAX};
    if (sampling.temperature == 0) return limit;

    struct Token {
        float logit;
        int32_t id;
    };
    const auto after = [](const Token& a, const Token& b) {  // a stands behind b
        return a.logit < b.logit || (a.logit == b.logit && a.id > b.id);
    };
    std::vector<Token> token;
    token.reserve(n_vocab);
    for (int32_t id = 0; id < n_vocab; ++id)
        if (logits[id] == logits[id]) token.push_back({logits[id], id});
    if (token.empty()) return limit;

    if (sampling.top_k > 0 && sampling.top_k < int(token.size())) {
        const auto kth = token.begin() + (sampling.top_k - 1);
        std::nth_element(token.begin(), kth, token.end(), [&](const Token& a, const Token& b) { return after(b, a); });
        limit.logit = kth->logit;
        std::erase_if(token, [&](const Token& t) { return t.logit < limit.logit; });
    }
    if (sampling.top_p < 1) {
        const float max_logit = max_of(logits);
        uint64_t total = 0, before = 0;
        for (const Token& t : token) total += fixed_weight(t.logit, max_logit, sampling.temperature);
        std::make_heap(token.begin(), token.end(), after);
        for (auto end = token.end(); end != token.begin() && below_top_p(before, total, sampling.top_p); --end) {
            std::pop_heap(token.begin(), end, after);
            const Token& best = *(end - 1);
            limit = {best.logit, best.id};
            before += fixed_weight(best.logit, max_logit, sampling.temperature);
        }
    }
    return limit;
}

int32_t choose(std::span<const float> logits, const Sampling& sampling, int position) {
    const KeptLimit limit = kept_limit(logits, sampling);
    const float max_logit = max_of(logits);
    float best_score = -kInfinity;
    int32_t best = 0;
    for (int32_t id = 0; id < int(logits.size()); ++id) {
        if (!keeps(limit, logits[id], id)) continue;
        const float score = perturbed(sampling, logits[id], max_logit, position, id);
        if (score > best_score) best_score = score, best = id;
    }
    return best;
}

void propose(std::span<const float> logits, const Sampling& sampling, int position, float tau,
             std::span<Child> children) {
    const KeptLimit limit = kept_limit(logits, sampling);
    const float max_logit = max_of(logits);
    if (sampling.temperature == 0) tau = 1;
    std::vector<float> score(logits.size(), -kInfinity);
    int n = 0;  // children found so far, best first; log_probability holds the score until the end
    for (int32_t id = 0; id < int(logits.size()); ++id) {
        if (!keeps(limit, logits[id], id)) continue;
        score[id] = perturbed(sampling, logits[id], max_logit, position, id);
        if (score[id] != score[id]) continue;  // of an infinite logit
        int at = n;
        while (at > 0 && score[id] > children[at - 1].log_probability) --at;
        if (at == int(children.size())) continue;
        if (n < int(children.size())) ++n;
        for (int i = n - 1; i > at; --i) children[i] = children[i - 1];
        children[at] = {id, score[id]};
    }
    for (int i = n; i < int(children.size()); ++i) children[i] = {-1, -kInfinity};
    if (n == 0) return;

    const float best = children[0].log_probability;
    uint64_t sum = 0;  // units of 2^-40; at least 2^40, from the best itself
    for (float s : score) sum += fixed_weight(s, best, tau);
    const float log_sum = log_positive(float(sum) * 0x1p-40f);
    for (int i = 0; i < n; ++i) children[i].log_probability = (children[i].log_probability - best) / tau - log_sum;
}

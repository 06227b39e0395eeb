// choose(): the token at a position as a pure function of (logits, sampling settings, seed, position).
//
//     T = 0:  argmax of logit(x)
//     T > 0:  argmax over kept x of (logit(x) - max) / T + G(seed, position, x)      [Gumbel-max: an exact softmax
//     sample]
//
// kept: the k best logits (ties with the k-th stay), then of softmax over these the shortest best-first run that
// reaches top_p, the token that crosses it included; the order is logit descending, id ascending, as in Hugging Face's
// warpers. Ties of the argmax go to the lowest id. Probabilities are summed as 40-bit fixed point, so any order of
// summation, on any device, gives the same sum and hence the same kept set.
//
// propose() ranks the draft's tokens by the same perturbed score: its first child is the token that the draft itself
// would choose, and draft and target share the noise (Daliri, Musco, Suresh 2024, Gumbel coupling).
#pragma once

#include <climits>
#include <cstdint>
#include <span>

#include "decode/philox.h"

struct Sampling {
    float temperature = 0;  // 0: greedy
    int32_t top_k = 0;      // 0: no limit
    float top_p = 1;        // 1: no limit
    uint64_t seed = 0;
};

// The last token that is kept, in the order logit descending, id ascending.
struct KeptLimit {
    float logit;
    int32_t id;
};
HD inline bool keeps(KeptLimit limit, float logit, int32_t id) {
    return logit > limit.logit || (logit == limit.logit && id <= limit.id);
}

// softmax weight relative to the best token, in units of 2^-40. temperature > 0.
HD inline uint64_t fixed_weight(float logit, float max_logit, float temperature) {
    return exp_fixed((logit - max_logit) / temperature);
}

// Whether a run whose tokens before this one weigh `before` of `total` goes on with it.
HD inline bool below_top_p(uint64_t before, uint64_t total, float top_p) {
    return double(before) < double(top_p) * double(total);
}

// What the argmax runs over. The temperature is the request's; greedy requests rank by the logit itself.
HD inline float perturbed(const Sampling& sampling, float logit, float max_logit, int position, int32_t id) {
    if (sampling.temperature == 0) return logit;
    return (logit - max_logit) / sampling.temperature + gumbel(sampling.seed, uint32_t(position), uint32_t(id));
}

// A continuation that the draft proposes. log_probability is log-softmax over the kept tokens of (perturbed score /
// tau); without noise, tau is 1. token -1: fewer tokens are kept than children were asked for.
struct Child {
    int32_t token;
    float log_probability;
};

// The CPU's versions; logits: (n_vocab). NaN logits are never chosen.
KeptLimit kept_limit(std::span<const float> logits, const Sampling& sampling);
int32_t choose(std::span<const float> logits, const Sampling& sampling, int position);
void propose(std::span<const float> logits, const Sampling& sampling, int position, float tau,
             std::span<Child> children);

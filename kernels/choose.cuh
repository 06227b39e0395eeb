// What is read off the logits of one node, by one team of kMultiplyThreads threads, bit for bit as decode/choose.cpp
// does it: choose(), propose() and the log-probability of a token. Floats are compared through integer keys of the same
// order; weights are added as integers, so the order of threads does not matter.
//
// The k best, the usual case (k <= 256): the k-th best of the maxima of pairs of threads bounds the k-th best logit
// from below; the few logits that reach it are listed in shared memory and compared all with all. Any other limit is
// found digit by digit, 8 bits of the key at a time, from histograms of counts or weights.
//
// Bytes: a sweep over the logits of a node reads 4 n_vocab from L2; the usual cases take two.
#pragma once

#include "decode/choose.h"
#include "decode/team.h"
#include "kernels/block.cuh"

constexpr int kMaxCandidates = 512;
constexpr int kBins = 256;  // of a digit; pairs of threads, whose maxima bound the k best
static_assert(kMultiplyThreads == 2 * kBins);
constexpr uint32_t kWorstKey = 0x007fffffu;  // of -infinity; smaller ones are no number's

struct ChooseSpace {  // shared memory
    uint64_t reduce[kMultiplyWarps];
    uint64_t weight[kBins];
    alignas(16) uint32_t count[kBins];
    uint64_t best[kMaxChildren];
    uint32_t found_key, n_candidates;
    int found_bin;
    uint64_t found_before;
    float candidate_logit[kMaxCandidates];
    int32_t candidate_id[kMaxCandidates];
    uint64_t candidate_weight[kMaxCandidates];  // 0: outside the k best
};

__device__ inline float key_value(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}
// Greater for the greater score, then for the smaller id; 0 is below all.
__device__ inline uint64_t score_key(float score, int32_t id) {
    return uint64_t(ascending_bits(score)) << 32 | uint32_t(~id);
}
__device__ inline int32_t score_id(uint64_t key) {
    return int32_t(~uint32_t(key));
}

template <class Combine>
__device__ inline uint64_t team_reduce(ChooseSpace& space, uint64_t value, const Combine& combine) {
    for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
    block_barrier();
    if (threadIdx.x % 32 == 0) space.reduce[threadIdx.x / 32] = value;
    block_barrier();
    value = space.reduce[0];
    for (int w = 1; w < kMultiplyWarps; ++w) value = combine(value, space.reduce[w]);
    return value;
}
__device__ inline uint64_t team_max(ChooseSpace& space, uint64_t value) {
    return team_reduce(space, value, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
}
__device__ inline uint64_t team_sum(ChooseSpace& space, uint64_t value) {
    return team_reduce(space, value, [](uint64_t a, uint64_t b) { return a + b; });
}

struct Kept {
    KeptLimit limit;
    float max_logit;
    bool listed;  // all kept tokens are among the candidates
};

// f(logit, id) for every token, by the thread that owns it. logits: 16-byte aligned.
template <class F>
__device__ inline void for_each_token(const float* logits, int n_vocab, const F& f) {
#if __CUDA_ARCH__ == 900
    constexpr int kUnderWay = 4;  // quads of neighbouring tokens
#else
    constexpr int kUnderWay = 1;  // ptxas needs more registers there
#endif
    const int n_quads = n_vocab / 4;
#pragma unroll 1
    for (int first = threadIdx.x; first < n_quads; first += kUnderWay * kMultiplyThreads) {
        float4 quad[kUnderWay];
#pragma unroll
        for (int k = 0; k < kUnderWay; ++k) {
            const int at = first + k * kMultiplyThreads;
            if (at < n_quads) quad[k] = __ldcg(reinterpret_cast<const float4*>(logits) + at);
        }
#pragma unroll
        for (int k = 0; k < kUnderWay; ++k) {
            const int at = first + k * kMultiplyThreads;
            if (at >= n_quads) continue;
#pragma unroll 1  // f is long
            for (int e = 0; e < 4; ++e) {
                f(quad[k].x, 4 * at + e);
                quad[k] = {quad[k].y, quad[k].z, quad[k].w, 0};
            }
        }
    }
    const int id = 4 * n_quads + int(threadIdx.x);
    if (id < n_vocab) f(__ldcg(logits + id), id);
}
template <class F>
__device__ inline void for_each_kept(const ChooseSpace& space, const Kept& kept, const float* logits, int n_vocab,
                                     const F& f) {
    if (kept.listed) {
        for (int i = threadIdx.x; i < int(space.n_candidates); i += kMultiplyThreads)
            if (keeps(kept.limit, space.candidate_logit[i], space.candidate_id[i]))
                f(space.candidate_logit[i], space.candidate_id[i]);
    } else {
        for_each_token(logits, n_vocab, [&](float logit, int id) {
            if (keeps(kept.limit, logit, id)) f(logit, id);
        });
    }
}

// Lists the tokens with keys >= threshold; false: they are too many.
__device__ inline bool list_candidates(ChooseSpace& space, const float* logits, int n_vocab, uint32_t threshold) {
    if (threadIdx.x == 0) space.n_candidates = 0;
    block_barrier();
    for_each_token(logits, n_vocab, [&](float logit, int id) {
        if (logit == logit && ascending_bits(logit) >= threshold) {
            const uint32_t at = atomicAdd(&space.n_candidates, 1);
            if (at < kMaxCandidates) {
                space.candidate_logit[at] = logit;
                space.candidate_id[at] = id;
            }
        }
    });
    block_barrier();
    return space.n_candidates <= kMaxCandidates;
}

// The limit from the list, which holds the k best and perhaps more.
__device__ inline KeptLimit limit_from_list(ChooseSpace& space, const Sampling& sampling, float max_logit) {
    const int n = int(space.n_candidates);
    uint64_t weights = 0, worst = 0;
    for (int i = threadIdx.x; i < n; i += kMultiplyThreads) {
        const float logit = space.candidate_logit[i];
        int better = 0;
#pragma unroll 4
        for (int j = 0; j < n; ++j) better += space.candidate_logit[j] > logit;
        const bool kept = better < sampling.top_k;
        const uint64_t weight = kept ? fixed_weight(logit, max_logit, sampling.temperature) : 0;
        space.candidate_weight[i] = kept ? weight : ~uint64_t(0);
        weights += weight;
        if (kept) worst = max(worst, uint64_t(~ascending_bits(logit)) << 32);
    }
    worst = team_max(space, worst);
    KeptLimit limit = {key_value(~uint32_t(worst >> 32)), INT_MAX};
    if (sampling.top_p >= 1) return limit;

    const uint64_t total = team_sum(space, weights);  // its barriers publish the weights
    worst = 0;
    for (int i = threadIdx.x; i < n; i += kMultiplyThreads) {
        if (space.candidate_weight[i] == ~uint64_t(0)) continue;
        const float logit = space.candidate_logit[i];
        const int32_t id = space.candidate_id[i];
        uint64_t before = 0;
#pragma unroll 4
        for (int j = 0; j < n; ++j)
            if (space.candidate_logit[j] > logit || (space.candidate_logit[j] == logit && space.candidate_id[j] < id))
                before += space.candidate_weight[j];
        if (below_top_p(before, total, sampling.top_p))
            worst = max(worst, uint64_t(~ascending_bits(logit)) << 32 | uint32_t(id) + 1);
    }
    worst = team_max(space, worst);
    if (worst) limit = {key_value(~uint32_t(worst >> 32)), int32_t(uint32_t(worst) - 1)};
    return limit;
}

// The key of the k-th best logit, digit by digit.
__device__ inline uint32_t kth_key(ChooseSpace& space, const float* logits, int n_vocab, uint32_t k) {
    uint32_t prefix = 0;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < kBins) space.count[threadIdx.x] = 0;
        block_barrier();
        for_each_token(logits, n_vocab, [&](float logit, int) {
            const uint32_t key = ascending_bits(logit);
            if (logit == logit && uint64_t(key) >> (shift + 8) == prefix)
                atomicAdd(&space.count[key >> shift & 255], 1);
        });
        block_barrier();
        if (threadIdx.x < kBins) {
            uint32_t above = 0;
#pragma unroll 4
            for (int bin = kBins - 1; bin > int(threadIdx.x); --bin) above += space.count[bin];
            if (above < k && above + space.count[threadIdx.x] >= k) {
                space.found_bin = threadIdx.x;
                space.found_before = above;
            }
        }
        block_barrier();
        prefix = prefix << 8 | space.found_bin;
        k -= uint32_t(space.found_before);
    }
    block_barrier();  // all have read what was found
    return prefix;
}

// The last token of the shortest best-first run of the tokens with keys >= floor that reaches top_p.
__device__ inline KeptLimit top_p_limit(ChooseSpace& space, const float* logits, int n_vocab, const Sampling& sampling,
                                        float max_logit, uint32_t floor, KeptLimit limit) {
    uint32_t prefix = 0, ties = 0;
    uint64_t before = 0, total = 0;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < kBins) space.count[threadIdx.x] = 0, space.weight[threadIdx.x] = 0;
        if (threadIdx.x == 0) space.found_bin = kBins;
        block_barrier();
        for_each_token(logits, n_vocab, [&](float logit, int) {
            const uint32_t key = ascending_bits(logit);
            if (logit == logit && key >= floor && uint64_t(key) >> (shift + 8) == prefix) {
                const int bin = key >> shift & 255;
                atomicAdd(&space.count[bin], 1);
                const uint64_t weight = fixed_weight(logit, max_logit, sampling.temperature);
                if (weight) atomicAdd(reinterpret_cast<unsigned long long*>(&space.weight[bin]), weight);
            }
        });
        block_barrier();
        if (shift == 24)
#pragma unroll 4
            for (int bin = 0; bin < kBins; ++bin) total += space.weight[bin];
        uint64_t above = before;
#pragma unroll 4
        for (int bin = kBins - 1; bin > int(threadIdx.x); --bin) above += space.weight[bin];
        const bool reached =
            threadIdx.x < kBins && space.count[threadIdx.x] > 0 && below_top_p(above, total, sampling.top_p);
        if (reached) atomicMin(&space.found_bin, int(threadIdx.x));
        block_barrier();
        if (space.found_bin == kBins) return limit;  // top_p is 0
        if (int(threadIdx.x) == space.found_bin) space.found_before = above;
        block_barrier();
        prefix = prefix << 8 | space.found_bin;
        before = space.found_before;
        ties = space.count[space.found_bin];
        block_barrier();
    }
    // Of the tokens with this logit, those with the smallest ids.
    const float logit = key_value(prefix);
    const uint64_t weight = fixed_weight(logit, max_logit, sampling.temperature);
    uint32_t kept = 1, end = ties + 1;  // kept < end: kept are in, end are not
#pragma unroll 1
    while (end - kept > 1) {
        const uint32_t middle = kept + (end - kept) / 2;
        if (below_top_p(before + (middle - 1) * weight, total, sampling.top_p))
            kept = middle;
        else
            end = middle;
    }
    limit = {logit, INT_MAX};
    if (kept == ties) return limit;
    int low = -1, high = n_vocab - 1;  // up to low there are fewer than kept, up to high at least kept
#pragma unroll 1
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        uint64_t n = 0;
        for_each_token(logits, middle + 1, [&](float l, int) { n += l == logit; });
        if (team_sum(space, n) >= kept)
            high = middle;
        else
            low = middle;
    }
    limit.id = high;
    return limit;
}

// A key that at least k logits reach. best: that of the calling thread's best logit. 1 <= k <= kBins.
__device__ inline uint32_t bound_of_best(ChooseSpace& space, uint32_t best, int k) {
    best = max(best, __shfl_xor_sync(~0u, best, 1));
    const int pair = threadIdx.x / 2;
    block_barrier();
    if (threadIdx.x % 2 == 0) space.count[pair] = best;
    block_barrier();
    int better = 0;  // of half of the pairs, each thread of this one's a half
    const int first = threadIdx.x % 2 * (kBins / 2);
#pragma unroll 4
    for (int i = first; i < first + kBins / 2; i += 4) {
        const uint4 other = *reinterpret_cast<const uint4*>(&space.count[i]);
        better += other.x > best || (other.x == best && i < pair);
        better += other.y > best || (other.y == best && i + 1 < pair);
        better += other.z > best || (other.z == best && i + 2 < pair);
        better += other.w > best || (other.w == best && i + 3 < pair);
    }
    better += __shfl_xor_sync(~0u, better, 1);
    if (better == k - 1) space.found_key = best;  // both threads say the same
    block_barrier();
    return space.found_key;
}

__device__ inline Kept find_kept(ChooseSpace& space, const float* logits, int n_vocab, const Sampling& sampling) {
    Kept kept = {{-INFINITY, INT_MAX}, -INFINITY, false};
    if (sampling.temperature == 0) return kept;  // nobody asks for the greatest logit
    uint32_t best = 0;
    uint64_t n = 0;
    for_each_token(logits, n_vocab, [&](float logit, int) {
        if (logit == logit) {
            best = max(best, ascending_bits(logit));
            ++n;
        }
    });
    const uint32_t max_key = uint32_t(team_max(space, best));
    if (max_key > kWorstKey) kept.max_logit = key_value(max_key);
    if (max_key == 0) return kept;
    n = team_sum(space, n);
    const bool top_k = sampling.top_k > 0 && uint64_t(sampling.top_k) < n;
    if (top_k && sampling.top_k <= kBins) {
        const uint32_t bound = bound_of_best(space, best, sampling.top_k);
        if (list_candidates(space, logits, n_vocab, bound)) {
            kept.listed = true;
            kept.limit = limit_from_list(space, sampling, kept.max_logit);
            return kept;
        }
    }
    uint32_t floor = 0;
    if (top_k) {
        floor = kth_key(space, logits, n_vocab, sampling.top_k);
        kept.limit.logit = key_value(floor);
    }
    if (sampling.top_p < 1)
        kept.limit = top_p_limit(space, logits, n_vocab, sampling, kept.max_logit, floor, kept.limit);
    return kept;
}

// The token at `position`. logits: (n_vocab).
__device__ inline int32_t team_choose(ChooseSpace& space, const float* logits, int n_vocab, const Sampling& sampling,
                                      int position) {
    const Kept kept = find_kept(space, logits, n_vocab, sampling);
    uint64_t best = 0;
    for_each_kept(space, kept, logits, n_vocab, [&](float logit, int id) {
        const float score = perturbed(sampling, logit, kept.max_logit, position, id);
        if (score > -INFINITY) best = max(best, score_key(score, id));
    });
    best = team_max(space, best);
    return best ? score_id(best) : 0;
}

// The n_children best of the scores that threads list, by rank: space.best. list: this thread's, descending; 0: none.
__device__ inline void best_of_lists(ChooseSpace& space, uint64_t (&list)[kMaxChildren], int n_children) {
    for (int c = 0; c < n_children; ++c) {
        const uint64_t best = team_max(space, list[0]);
        if (threadIdx.x == 0) space.best[c] = best;
        if (list[0] == best) {
#pragma unroll
            for (int i = 0; i + 1 < kMaxChildren; ++i) list[i] = list[i + 1];
            list[kMaxChildren - 1] = 0;
        }
    }
    block_barrier();
}

// The best continuations. scores: (n_vocab) global scratch of this node. children: (n_children <= kMaxChildren).
__device__ inline void team_propose(ChooseSpace& space, const float* logits, int n_vocab, const Sampling& sampling,
                                    int position, float tau, float* scores, int n_children, Child* children) {
    const bool greedy = sampling.temperature == 0;
    const Kept kept = find_kept(space, logits, n_vocab, sampling);
    if (threadIdx.x < kMaxChildren) space.best[threadIdx.x] = 0;
    bool few = false;  // the best are found from a list
    if (greedy) {
        uint32_t best = 0;
        for_each_token(logits, n_vocab, [&](float logit, int) {
            if (logit == logit) best = max(best, ascending_bits(logit));
        });
        few = list_candidates(space, logits, n_vocab, max(bound_of_best(space, best, n_children), 1u));
        const int n = int(space.n_candidates);
        for (int i = threadIdx.x; few && i < n; i += kMultiplyThreads) {
            const uint64_t key = score_key(space.candidate_logit[i], space.candidate_id[i]);
            int better = 0;
#pragma unroll 4
            for (int j = 0; j < n; ++j) better += score_key(space.candidate_logit[j], space.candidate_id[j]) > key;
            if (better < n_children) space.best[better] = key;
        }
        block_barrier();
    }
    if (!few) {
        uint64_t list[kMaxChildren] = {};  // this thread's best, descending
        for_each_kept(space, kept, logits, n_vocab, [&](float logit, int id) {
            const float score = perturbed(sampling, logit, kept.max_logit, position, id);
            if (!greedy) scores[id] = score;  // its own thread reads it again
            uint64_t key = score == score ? score_key(score, id) : 0;
            if (key <= list[kMaxChildren - 1]) return;
#pragma unroll
            for (int i = 0; i < kMaxChildren; ++i) {
                const uint64_t greater = max(key, list[i]);
                key = min(key, list[i]);
                list[i] = greater;
            }
        });
        best_of_lists(space, list, n_children);
    }
    const float best = key_value(uint32_t(space.best[0] >> 32));
    tau = greedy ? 1 : tau;
    uint64_t sum = 0;
    if (space.best[0])
        for_each_kept(space, kept, logits, n_vocab,
                      [&](float logit, int id) { sum += fixed_weight(greedy ? logit : scores[id], best, tau); });
    sum = team_sum(space, sum);
    const float log_sum = log_positive(float(sum) * 0x1p-40f);
    if (int(threadIdx.x) < n_children) {
        const uint64_t chosen = space.best[threadIdx.x];
        children[threadIdx.x] =
            chosen ? Child{score_id(chosen), (key_value(uint32_t(chosen >> 32)) - best) / tau - log_sum}
                   : Child{-1, -INFINITY};
    }
}

// log softmax(logits)[next], in double precision; the sum in a fixed order.
__device__ inline float team_log_probability(ChooseSpace& space, const float* logits, int n_vocab, int32_t next) {
    uint32_t key = kWorstKey;
    for_each_token(logits, n_vocab, [&](float logit, int) {
        if (logit == logit) key = max(key, ascending_bits(logit));
    });
    const double best = key_value(uint32_t(team_max(space, key)));
    double sum = 0;
    for_each_token(logits, n_vocab, [&](float logit, int) { sum += exp(logit - best); });
    const auto add = [](uint64_t a, uint64_t b) {
        return uint64_t(__double_as_longlong(__longlong_as_double(a) + __longlong_as_double(b)));
    };
    sum = __longlong_as_double(team_reduce(space, uint64_t(__double_as_longlong(sum)), add));
    return float(__ldcg(logits + next) - best - log(sum));
}

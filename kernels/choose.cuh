// What is read off the logits of one node, by one team of threads, bit for bit as decode/choose.cpp does it: choose(),
// propose() and the log-probability of a token. Floats are compared through integer keys of the same order; weights are
// added as integers, so neither the order nor the number of threads matters.
//
// The few best, the usual case: the k-th best of the threads' own best values bounds the k-th best value from below;
// the few values that reach the bound are listed in shared memory and ranked, each compared with all. So the k best
// logits are found, for top-p alone the best kNucleus, which most often hold the run that reaches it, and the best
// children. Any other limit is found digit by digit, 8 bits of the key at a time, from histograms of counts or weights.
//
// The pass leaves the greatest of every 16 logits beside them: they tell the best and the bound, and which sixteens
// hold what reaches it. Only weights of all tokens, for top-p alone and for a greedy draft's probabilities, need a
// sweep over all logits.
//
// Bytes of a node: n_vocab / 4 from L2 for the greatest, 64 for each sixteen that is looked into; a sweep reads 4
// n_vocab, 16 bytes a load and several loads of a thread under way.
#pragma once

#include "decode/choose.h"
#include "decode/team.h"
#include "decode/tree.h"
#include "kernels/ptx.cuh"
#include "model/blob.h"

constexpr int kChooseThreads = 1024;  // of a team that has the block to itself
constexpr int kMaxCandidates = 512;
constexpr int kNucleus = 128;  // best logits among which top-p alone looks first
constexpr int kBins = 256;     // of a digit

struct ChooseSpace {  // shared memory
    uint64_t reduce[2][32];
    uint64_t bin_weight[kBins];
    uint32_t bin_count[kBins];
    uint64_t candidate[kMaxCandidates];  // score keys in any order; once they are ranked, weights by rank
    uint64_t ranked[kMaxCandidates];     // descending; before that, the sixteens that hold candidates
    uint64_t found_before;
    int found_bin;
    uint32_t n_candidates, n_groups;
    int n_kept;
    Child child[kMaxChildren];
};

// What is chosen from.
struct NodeLogits {
    const float* value;     // (n_vocab)
    const float* greatest;  // (n_vocab / 16, rounded up) of every 16, NaN left out; -infinity: none
    int n_vocab;

    // Of a node of a pass, whose rows lie one after the other.
    __device__ NodeLogits node(int i) const {
        const uint64_t stride = pad16(n_vocab);
        return {value + i * stride, greatest + i * (stride / 16), n_vocab};
    }
};

// The first n_threads threads of a block, a multiple of 32, kBins at least and 1024 at most.
struct ChooseTeam {
    ChooseSpace& space;
    const int n_threads;
    int turn = 0;  // reductions take the two rows of space.reduce in turn

    __device__ void barrier() const { ptx::barrier(1, n_threads); }
    __device__ int count(bool mine) const { return ptx::barrier_count(1, n_threads, mine); }
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
__device__ inline float score_value(uint64_t key) {
    return key_value(uint32_t(key >> 32));
}

// of_warp(value): the warp's result, the same in all lanes; 0 changes nothing.
template <class OfWarp>
__device__ inline uint64_t team_reduce(ChooseTeam& team, uint64_t value, const OfWarp& of_warp) {
    uint64_t* const result = team.space.reduce[team.turn];
    team.turn ^= 1;  // the next reduction's barrier parts this one's readers from the writers of the one after
    value = of_warp(value);
    const int lane = threadIdx.x % 32;
    if (lane == 0) result[threadIdx.x / 32] = value;
    team.barrier();
    return of_warp(lane < team.n_threads / 32 ? result[lane] : 0);
}
__device__ inline uint64_t team_max(ChooseTeam& team, uint64_t value) {
    return team_reduce(team, value, [](uint64_t v) {
        const uint32_t high = __reduce_max_sync(~0u, uint32_t(v >> 32));
        return uint64_t(high) << 32 | __reduce_max_sync(~0u, uint32_t(v >> 32) == high ? uint32_t(v) : 0);
    });
}
__device__ inline uint64_t team_sum(ChooseTeam& team, uint64_t value) {
    return team_reduce(team, value, [](uint64_t v) {
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
        return v;
    });
}

// f(quad, first id) for every four neighbouring values, kUnderWay loads of a thread at once; beyond n_vocab they are
// NaN. A thread is given the same quads in every sweep. values: 16-byte aligned, as is their end in memory, and what
// other blocks wrote of them has been acquired: the loads may hit L1, where most GPUs keep them from sweep to sweep.
template <int kUnderWay, class F>
__device__ inline void for_each_quad(const ChooseTeam& team, const float* values, int n_vocab, const F& f) {
    const int n_quads = (n_vocab + 3) / 4;
#pragma unroll 1
    for (int first = threadIdx.x; first < n_quads; first += kUnderWay * team.n_threads) {
        float4 quad[kUnderWay];
#pragma unroll
        for (int k = 0; k < kUnderWay; ++k) {
            const int at = min(first + k * team.n_threads, n_quads - 1);
            quad[k] = reinterpret_cast<const float4*>(values)[at];
        }
#pragma unroll
        for (int k = 0; k < kUnderWay; ++k) {
            const int id = 4 * (first + k * team.n_threads);
            if (id + 4 > n_vocab) {
                if (id >= n_vocab) break;
                if (id + 1 >= n_vocab) quad[k].y = NAN;
                if (id + 2 >= n_vocab) quad[k].z = NAN;
                quad[k].w = NAN;
            }
            f(quad[k], id);
        }
    }
}
// f(value, id) for every token, where f is long: one copy of it.
template <class F>
__device__ inline void for_each_token(const ChooseTeam& team, const float* values, int n_vocab, const F& f) {
    for_each_quad<1>(team, values, n_vocab, [&](float4 quad, int id) {
#pragma unroll 1
        for (const int end = min(id + 4, n_vocab); id < end; ++id) {
            f(quad.x, id);
            quad = {quad.y, quad.z, quad.w, 0};
        }
    });
}

// f(greatest, group) for every 16 neighbouring logits. A thread is given the same groups each time.
template <class F>
__device__ inline void for_each_group(const ChooseTeam& team, const NodeLogits& logits, const F& f) {
    constexpr int kUnderWay = 4;
    const int n_groups = (logits.n_vocab + 15) / 16;
#pragma unroll 1
    for (int first = threadIdx.x; first < n_groups; first += kUnderWay * team.n_threads) {
        float greatest[kUnderWay];
#pragma unroll
        for (int k = 0; k < kUnderWay; ++k)
            greatest[k] = logits.greatest[min(first + k * team.n_threads, n_groups - 1)];
#pragma unroll
        for (int k = 0; k < kUnderWay; ++k)
            if (const int group = first + k * team.n_threads; group < n_groups) f(greatest[k], group);
    }
}

// Of the threads' own best values, -infinity where a thread has none.
struct Peaks {
    float mine, highest, lowest;  // lowest: of those above -infinity
};
__device__ inline Peaks find_peaks(ChooseTeam& team, float mine) {
    const uint32_t key = ascending_bits(mine);
    const uint64_t both = team_reduce(team, uint64_t(key) << 32 | (mine > -INFINITY ? ~key : 0), [](uint64_t v) {
        return uint64_t(__reduce_max_sync(~0u, uint32_t(v >> 32))) << 32 | __reduce_max_sync(~0u, uint32_t(v));
    });
    return {mine, score_value(both), uint32_t(both) ? key_value(~uint32_t(both)) : INFINITY};
}
__device__ inline Peaks find_peaks(ChooseTeam& team, const NodeLogits& logits) {
    float mine = -INFINITY;
    if (logits.n_vocab < 16 * team.n_threads)  // a group would be more than a thread's share
        for_each_quad<4>(team, logits.value, logits.n_vocab, [&](float4 quad, int) {
            mine = fmaxf(fmaxf(mine, fmaxf(quad.x, quad.y)), fmaxf(quad.z, quad.w));
        });
    else
        for_each_group(team, logits, [&](float greatest, int) { mine = fmaxf(mine, greatest); });
    return find_peaks(team, mine);
}

// A bound that the best values of k threads reach, so that k values do, and not many more; NaN: too few threads have
// any. Empties the list of candidates.
__device__ inline float find_bound(ChooseTeam& team, const Peaks& peaks, int k) {
    if (threadIdx.x == 0) team.space.n_candidates = team.space.n_groups = 0;
    if (team.count(peaks.mine >= peaks.lowest) < k) return NAN;
    float bound = peaks.lowest, above = peaks.highest;
#pragma unroll 1
    for (int halving = 0; halving < 8; ++halving) {
        const float middle = bound + (above - bound) / 2;
        (team.count(peaks.mine >= middle) < k ? above : bound) = middle;
    }
    return bound;
}
// Appends to a list of n, of which the first kMaxCandidates are kept.
__device__ inline void append(uint64_t (&list)[kMaxCandidates], uint32_t& n, uint64_t entry) {
    const uint32_t at = atomicAdd(&n, 1);
    if (at < kMaxCandidates) list[at] = entry;
}
// Lists a value if it reaches the bound.
__device__ inline void list_value(ChooseSpace& space, float value, int id, float bound) {
    if (value >= bound) append(space.candidate, space.n_candidates, score_key(value, id));
}
// Lists the values that reach the bound. false: there are too many, or there is no bound. also(quad) is called for
// every four values.
template <int kUnderWay, class Also>
__device__ inline bool list_candidates(ChooseTeam& team, const float* values, int n_vocab, float bound,
                                       const Also& also) {
    if (bound != bound) return false;
    for_each_quad<kUnderWay>(team, values, n_vocab, [&](float4 quad, int id) {
        also(quad);
        if (!(quad.x >= bound) & !(quad.y >= bound) & !(quad.z >= bound) & !(quad.w >= bound)) return;
#pragma unroll 1
        for (int end = id + 4; id < end; ++id) {
            list_value(team.space, quad.x, id, bound);
            quad = {quad.y, quad.z, quad.w, 0};
        }
    });
    team.barrier();
    return team.space.n_candidates <= kMaxCandidates;
}
// The same of logits: lists the sixteens that hold such a value, then the values, a half-warp a sixteen.
__device__ inline bool list_candidates(ChooseTeam& team, const NodeLogits& logits, float bound) {
    ChooseSpace& space = team.space;
    if (bound != bound) return false;
    for_each_group(team, logits, [&](float greatest, int group) {
        if (greatest >= bound) append(space.ranked, space.n_groups, uint64_t(group));
    });
    team.barrier();
    const int n_groups = int(space.n_groups), lane = threadIdx.x % 16;
    if (n_groups > kMaxCandidates) return false;
#pragma unroll 1
    for (int i = threadIdx.x / 16; i < n_groups; i += team.n_threads / 16) {
        const int id = 16 * int(space.ranked[i]) + lane;
        if (id < logits.n_vocab) list_value(space, logits.value[id], id, bound);
    }
    team.barrier();
    return space.n_candidates <= kMaxCandidates;
}

// f(key, rank), in one thread, for each of the n candidates but those that are 0.
template <class F>
__device__ inline void rank_candidates(const ChooseTeam& team, int n, const F& f) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int i = threadIdx.x / 32; i < n; i += team.n_threads / 32) {
        const uint64_t key = team.space.candidate[i];
        uint32_t greater = 0;
#pragma unroll 2
        for (int j = lane; j < n; j += 32) greater += team.space.candidate[j] > key;
        greater = __reduce_add_sync(~0u, greater);
        if (lane == 0 && key != 0) f(key, int(greater));
    }
    team.barrier();
}

// The tokens that sampling keeps.
struct Kept {
    bool listed;  // they are the first n of space.ranked; else the limit tells them
    int n;
    KeptLimit limit;
    float max_logit;
};

// The n_kept of the shortest best-first run of the ranked that reaches top_p of `total`; n: of those that may be in it.
// Their weights by rank are in space.candidate.
__device__ inline int run_of_ranked(ChooseTeam& team, int n, uint64_t total, float top_p) {
    const int lane = threadIdx.x;
    if (lane < 32) {
        int n_kept = 0;
        uint64_t before = 0;  // the weight of the lanes' first ones' predecessors
#pragma unroll 1
        for (int first = 0, going = 1; first < n && going; first += 32) {
            const bool there = first + lane < n;
            const uint64_t weight = there ? team.space.candidate[first + lane] : 0;
            uint64_t sum = weight;
#pragma unroll
            for (int offset = 1; offset < 32; offset *= 2) {
                const uint64_t other = __shfl_up_sync(~0u, sum, offset);
                if (lane >= offset) sum += other;
            }
            const uint32_t in = __ballot_sync(~0u, there && below_top_p(before + sum - weight, total, top_p));
            n_kept += __popc(in);
            going = in == ~0u;
            before += __shfl_sync(~0u, sum, 31);
        }
        if (lane == 0) team.space.n_kept = n_kept;
    }
    team.barrier();
    return team.space.n_kept;
}

// What is kept of the candidates, which hold the top_k best, or without top_k any number of the best. total: the weight
// of all tokens; not needed with top_k. listed is false if the kept ones may not all be candidates.
__device__ inline Kept keep_ranked(ChooseTeam& team, const Sampling& sampling, float max_logit, uint64_t total) {
    ChooseSpace& space = team.space;
    Kept kept = {true, int(space.n_candidates), {}, max_logit};
    rank_candidates(team, kept.n, [&](uint64_t key, int rank) { space.ranked[rank] = key; });
    if (sampling.top_k > 0) {  // ties with the k-th stay
        const uint32_t kth = uint32_t(space.ranked[sampling.top_k - 1] >> 32);
        for (int i = threadIdx.x; i < kept.n; i += team.n_threads)
            if (uint32_t(space.ranked[i] >> 32) >= kth &&
                (i + 1 == kept.n || uint32_t(space.ranked[i + 1] >> 32) < kth))
                space.n_kept = i + 1;
        team.barrier();
        kept.n = space.n_kept;
    }
    if (sampling.top_p >= 1) return kept;

    uint64_t weights = 0;
    for (int i = threadIdx.x; i < kept.n; i += team.n_threads)
        weights += space.candidate[i] = fixed_weight(score_value(space.ranked[i]), max_logit, sampling.temperature);
    weights = team_sum(team, weights);  // its barrier publishes the weights
    if (sampling.top_k > 0) total = weights;
    const int n_run = run_of_ranked(team, kept.n, total, sampling.top_p);
    if (sampling.top_k <= 0) kept.listed = n_run > 0 && n_run < kept.n;
    if (n_run > 0) kept.n = n_run;  // none: top_p is 0
    return kept;
}

// The key of the k-th best logit, digit by digit.
__device__ inline uint32_t kth_key(ChooseTeam& team, const float* logits, int n_vocab, uint32_t k) {
    ChooseSpace& space = team.space;
    uint32_t prefix = 0;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < kBins) space.bin_count[threadIdx.x] = 0;
        team.barrier();
        for_each_token(team, logits, n_vocab, [&](float logit, int) {
            const uint32_t key = ascending_bits(logit);
            if (logit == logit && uint64_t(key) >> (shift + 8) == prefix)
                atomicAdd(&space.bin_count[key >> shift & 255], 1);
        });
        team.barrier();
        if (threadIdx.x < kBins) {
            uint32_t above = 0;
#pragma unroll 4
            for (int bin = kBins - 1; bin > int(threadIdx.x); --bin) above += space.bin_count[bin];
            if (above < k && above + space.bin_count[threadIdx.x] >= k) {
                space.found_bin = threadIdx.x;
                space.found_before = above;
            }
        }
        team.barrier();
        prefix = prefix << 8 | space.found_bin;
        k -= uint32_t(space.found_before);
    }
    team.barrier();  // all have read what was found
    return prefix;
}

// The last token of the shortest best-first run of the tokens with keys >= floor that reaches top_p.
__device__ inline KeptLimit top_p_limit(ChooseTeam& team, const float* logits, int n_vocab, const Sampling& sampling,
                                        float max_logit, uint32_t floor, KeptLimit limit) {
    ChooseSpace& space = team.space;
    uint32_t prefix = 0, ties = 0;
    uint64_t before = 0, total = 0;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < kBins) space.bin_count[threadIdx.x] = 0, space.bin_weight[threadIdx.x] = 0;
        if (threadIdx.x == 0) space.found_bin = kBins;
        team.barrier();
        int bin = 0;  // of the thread's last tokens: most share the first digit, and adding to one bin takes turns
        uint32_t count = 0;
        uint64_t weight = 0;
        const auto add = [&] {
            if (count) atomicAdd(&space.bin_count[bin], count);
            if (weight) atomicAdd(reinterpret_cast<unsigned long long*>(&space.bin_weight[bin]), weight);
            count = weight = 0;
        };
        for_each_token(team, logits, n_vocab, [&](float logit, int) {
            const uint32_t key = ascending_bits(logit);
            if (logit == logit && key >= floor && uint64_t(key) >> (shift + 8) == prefix) {
                if (int(key >> shift & 255) != bin) add();
                bin = key >> shift & 255;
                ++count;
                weight += fixed_weight(logit, max_logit, sampling.temperature);
            }
        });
        add();
        team.barrier();
        if (shift == 24)
#pragma unroll 4
            for (int bin = 0; bin < kBins; ++bin) total += space.bin_weight[bin];
        uint64_t above = before;
#pragma unroll 4
        for (int bin = kBins - 1; bin > int(threadIdx.x); --bin) above += space.bin_weight[bin];
        const bool reached =
            threadIdx.x < kBins && space.bin_count[threadIdx.x] > 0 && below_top_p(above, total, sampling.top_p);
        if (reached) atomicMin(&space.found_bin, int(threadIdx.x));
        team.barrier();
        if (space.found_bin == kBins) return limit;  // top_p is 0
        if (int(threadIdx.x) == space.found_bin) space.found_before = above;
        team.barrier();
        prefix = prefix << 8 | space.found_bin;
        before = space.found_before;
        ties = space.bin_count[space.found_bin];
        team.barrier();
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
        for_each_token(team, logits, middle + 1, [&](float l, int) { n += l == logit; });
        if (team_sum(team, n) >= kept)
            high = middle;
        else
            low = middle;
    }
    limit.id = high;
    return limit;
}

// For temperatures above 0.
__device__ inline Kept find_kept(ChooseTeam& team, const NodeLogits& of, const Sampling& sampling) {
    const float* const logits = of.value;
    const int n_vocab = of.n_vocab;
    const Peaks peaks = find_peaks(team, of);
    const float max_logit = peaks.highest;
    const int most = min(team.n_threads, kMaxCandidates);
    if (sampling.top_k > 0) {
        if (sampling.top_k <= most && list_candidates(team, of, find_bound(team, peaks, sampling.top_k)))
            return keep_ranked(team, sampling, max_logit, 0);
    } else if (sampling.top_p < 1) {
        uint64_t total = 0;
        const auto add = [&](float logit) { total += fixed_weight(logit, max_logit, sampling.temperature); };
        const bool few = list_candidates<1>(team, logits, n_vocab, find_bound(team, peaks, kNucleus),
                                            [&](float4 quad) { add(quad.x), add(quad.y), add(quad.z), add(quad.w); });
        if (few) {
            const Kept kept = keep_ranked(team, sampling, max_logit, team_sum(team, total));
            if (kept.listed) return kept;
        }
    }

    Kept kept = {false, 0, {-INFINITY, INT_MAX}, max_logit};
    uint32_t floor = 0;
    uint64_t n = 0;
    for_each_token(team, logits, n_vocab, [&](float logit, int) { n += logit == logit; });
    n = team_sum(team, n);
    if (sampling.top_k > 0 && uint64_t(sampling.top_k) < n) {
        floor = kth_key(team, logits, n_vocab, sampling.top_k);
        kept.limit.logit = key_value(floor);
    }
    if (sampling.top_p < 1 && n > 0)
        kept.limit = top_p_limit(team, logits, n_vocab, sampling, max_logit, floor, kept.limit);
    return kept;
}

// The token of the greatest logit, the first of equal ones; 0 if there is none.
__device__ inline int32_t team_choose_greatest(ChooseTeam& team, const NodeLogits& logits) {
    float mine = -INFINITY;
    int group_of_mine = 0;
    for_each_group(team, logits, [&](float greatest, int group) {
        if (greatest > mine) mine = greatest, group_of_mine = group;
    });
    const uint64_t best = team_max(team, mine > -INFINITY ? score_key(mine, group_of_mine) : 0);
    if (best == 0) return 0;
    const int lane = threadIdx.x % 32, first = 16 * score_id(best);  // each warp finds the token for itself
    const bool is = lane < 16 && first + lane < logits.n_vocab && logits.value[first + lane] == score_value(best);
    return first + __ffs(__ballot_sync(~0u, is)) - 1;
}

// The token at `position`.
__device__ inline int32_t team_choose(ChooseTeam team, const NodeLogits& logits, const Sampling& sampling,
                                      int position) {
    if (sampling.temperature == 0) return team_choose_greatest(team, logits);
    const Kept kept = find_kept(team, logits, sampling);
    uint64_t best = 0;
    const auto offer = [&](float logit, int32_t id) {
        const float score = perturbed(sampling, logit, kept.max_logit, position, id);
        if (score > -INFINITY) best = max(best, score_key(score, id));
    };
    if (kept.listed)
        for (int i = threadIdx.x; i < kept.n; i += team.n_threads)
            offer(score_value(team.space.ranked[i]), score_id(team.space.ranked[i]));
    else
        for_each_token(team, logits.value, logits.n_vocab, [&](float logit, int32_t id) {
            if (keeps(kept.limit, logit, id)) offer(logit, id);
        });
    best = team_max(team, best);
    return best ? score_id(best) : 0;
}

// The best continuations. scores: (n_vocab) global scratch of this node. children: (n_children <= kMaxChildren).
__device__ inline void team_propose(ChooseTeam team, const NodeLogits& of, const Sampling& sampling, int position,
                                    float tau, float* scores, int n_children, Child* children) {
    ChooseSpace& space = team.space;
    const float* const logits = of.value;
    const int n_vocab = of.n_vocab;
    if (threadIdx.x < kMaxChildren) space.child[threadIdx.x] = {-1, -INFINITY};
    const bool greedy = sampling.temperature == 0;
    if (greedy) tau = 1;
    Kept kept = {};
    if (!greedy) kept = find_kept(team, of, sampling);
    int n;             // candidates for children
    float best;        // of all scores
    uint64_t sum = 0;  // of weights relative to it
    if (kept.listed) {
        n = kept.n;
        uint64_t mine = 0;
        for (int i = threadIdx.x; i < n; i += team.n_threads) {
            const int32_t id = score_id(space.ranked[i]);
            const float score = perturbed(sampling, score_value(space.ranked[i]), kept.max_logit, position, id);
            space.candidate[i] = score == score ? score_key(score, id) : 0;
            mine = max(mine, space.candidate[i]);
        }
        best = score_value(team_max(team, mine));  // its barrier publishes the candidates
        for (int i = threadIdx.x; i < n; i += team.n_threads)
            if (space.candidate[i]) sum += fixed_weight(score_value(space.candidate[i]), best, tau);
    } else {
        const float* values = logits;
        Peaks peaks;
        bool few;
        if (greedy) {
            peaks = find_peaks(team, of);
            best = peaks.highest;
            const auto add = [&](float logit) { sum += fixed_weight(logit, best, 1); };
            few = list_candidates<2>(team, logits, n_vocab, find_bound(team, peaks, n_children),
                                     [&](float4 quad) { add(quad.x), add(quad.y), add(quad.z), add(quad.w); });
        } else {
            values = scores;
            float mine = -INFINITY;
            for_each_token(team, logits, n_vocab, [&](float logit, int id) {
                const float score =
                    keeps(kept.limit, logit, id) ? perturbed(sampling, logit, kept.max_logit, position, id) : NAN;
                scores[id] = score;  // its own thread reads it again
                mine = fmaxf(mine, score);
            });
            peaks = find_peaks(team, mine);
            best = peaks.highest;
            const auto add = [&](float score) { sum += fixed_weight(score, best, tau); };
            few = list_candidates<1>(team, scores, n_vocab, find_bound(team, peaks, n_children),
                                     [&](float4 quad) { add(quad.x), add(quad.y), add(quad.z), add(quad.w); });
        }
        n = int(space.n_candidates);
        if (!few) {  // so many equal ones, or so few at all: one after the other
            sum = 0;
            for_each_token(team, values, n_vocab, [&](float value, int) { sum += fixed_weight(value, best, tau); });
            uint64_t last = ~uint64_t(0);
            for (n = 0; n < n_children; ++n) {
                uint64_t next = 0;
                for_each_token(team, values, n_vocab, [&](float value, int id) {
                    const uint64_t key = value == value ? score_key(value, id) : 0;
                    if (key < last) next = max(next, key);
                });
                last = team_max(team, next);
                if (threadIdx.x == 0) space.candidate[n] = last;
            }
        }
    }
    sum = team_sum(team, sum);  // its barrier publishes the candidates
    const float log_sum = log_positive(float(sum) * 0x1p-40f);
    rank_candidates(team, n, [&](uint64_t key, int rank) {
        if (rank < n_children) space.child[rank] = {score_id(key), (score_value(key) - best) / tau - log_sum};
    });
    if (int(threadIdx.x) < n_children) children[threadIdx.x] = space.child[threadIdx.x];
}

// log softmax(logits)[next], in double precision; the sum in a fixed order.
__device__ inline float team_log_probability(ChooseTeam team, const NodeLogits& logits, int32_t next) {
    const double best = find_peaks(team, logits).highest;
    double sum = 0;
    for_each_token(team, logits.value, logits.n_vocab, [&](float logit, int) { sum += exp(logit - best); });
    const uint64_t bits = team_reduce(team, uint64_t(__double_as_longlong(sum)), [](uint64_t v) {
        double s = __longlong_as_double(v);
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) s += __shfl_xor_sync(~0u, s, offset);
        return uint64_t(__double_as_longlong(s));
    });
    return float(__ldcg(logits.value + next) - best - log(__longlong_as_double(bits)));
}

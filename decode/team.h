// The threads that run one function together. On the CPU that is the caller alone; on the GPU it is a block, whose
// warps of 32 lanes may also work apart. All of them call a team's function with the same arguments, share what is
// marked TEAM_SHARED, and get the same result. Work is dealt by index and whatever is summed is an integer, so results
// are the same for every size of team.
//
//     team_for(n, [&](int i) { ... });    team_sync();
//
// On the GPU such a function runs once a pass and partly waits for its own instructions to be fetched: short code is
// fast code, hence no unrolling without need.
#pragma once

#include <cstdint>

#include "decode/philox.h"
#include "model/host_device.h"

#ifdef __CUDA_ARCH__
#define TEAM_SHARED __shared__
#define UNROLL _Pragma("unroll")      // so that an array stays in registers
#define UNROLL_4 _Pragma("unroll 4")  // so that four loads are under way
#define NO_UNROLL _Pragma("unroll 1")
#define ON_GPU(gpu, cpu) gpu
#else
#ifndef TEAM_THREAD  // a test has threads of the CPU stand for a block's warps, of one lane each
#define TEAM_THREAD 0
#define TEAM_THREADS 1
#define TEAM_MEETS (void)0
#define TEAM_ADDS(number, value) ((number += value) - value)
#define TEAM_SHARED
#endif
#define UNROLL
#define UNROLL_4
#define NO_UNROLL
#define ON_GPU(gpu, cpu) cpu
#endif

HD inline int team_thread() {
    return ON_GPU(threadIdx.x, TEAM_THREAD);
}
// f(i) for i = 0..n-1, each by one thread.
template <class F>
HD inline void team_for(int n, const F& f) {
    NO_UNROLL
    for (int i = team_thread(); i < n; i += ON_GPU(blockDim.x, TEAM_THREADS)) f(i);
}
HD inline void team_sync() {
    ON_GPU(__syncthreads(), TEAM_MEETS);
}
// Adds to a shared number, returns what it was before.
template <class Number>
HD inline Number team_add(Number& number, Number value) {
    return ON_GPU(atomicAdd(&number, value), TEAM_ADDS(number, value));
}

HD inline int count_bits(uint64_t bits) {
    return ON_GPU(__popcll(bits), __builtin_popcountll(bits));
}
HD inline int lowest_bit(uint64_t bits) {  // not of 0
    return ON_GPU(__ffsll(bits) - 1, __builtin_ctzll(bits));
}
// Bits below bit i, 0 <= i < 64.
HD inline uint64_t bits_below(int i) {
    return (uint64_t(1) << i) - 1;
}
// A warp of the team.
HD inline int team_warp() {
    return ON_GPU(threadIdx.x / 32, TEAM_THREAD);
}
HD inline int team_warps() {
    return ON_GPU(blockDim.x / 32, TEAM_THREADS);
}
HD inline int warp_lane() {
    return ON_GPU(threadIdx.x % 32, 0);
}
HD inline int warp_lanes() {
    return ON_GPU(32, 1);
}
// f(i) for i = 0..n-1, each by one lane.
template <class F>
HD inline void warp_for(int n, const F& f) {
    NO_UNROLL
    for (int i = warp_lane(); i < n; i += warp_lanes()) f(i);
}
HD inline void warp_sync() {
    ON_GPU(__syncwarp(), (void)0);
}
// Bit l says whether lane l does.
HD inline uint32_t warp_ballot(bool mine) {
    return ON_GPU(__ballot_sync(~0u, mine), mine);
}
// Bit i says whether predicate(i), 0 <= i < n <= 64. Each warp finds out for itself: cheaper than to wait for others.
template <class Predicate>
HD inline uint64_t warp_mask(int n, const Predicate& predicate) {
    uint64_t mask = 0;
    NO_UNROLL
    for (int first = 0; first < n; first += warp_lanes()) {
        const int i = first + warp_lane();
        mask |= uint64_t(warp_ballot(i < n && predicate(i))) << first;
    }
    return mask;
}
HD inline uint32_t warp_sum(uint32_t value) {
    return ON_GPU(__reduce_add_sync(~0u, value), value);
}
HD inline uint32_t warp_max(uint32_t value) {
    return ON_GPU(__reduce_max_sync(~0u, value), value);
}
HD inline uint32_t warp_min(uint32_t value) {
    return ON_GPU(__reduce_min_sync(~0u, value), value);
}
// Ascends with the number; -0 is 0. Not for NaN.
HD inline uint32_t ascending_bits(float x) {
    const uint32_t bits = x == 0 ? 0 : float_to_bits(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Of the lanes' (score, index) the index with the best score, the lowest of equal ones. index -1: none.
HD inline int warp_best(float score, int index) {
#ifdef __CUDA_ARCH__
    const uint32_t key = index < 0 ? 0 : ascending_bits(score);
    const uint32_t best = __reduce_max_sync(~0u, key);
    return int(__reduce_min_sync(~0u, key == best ? uint32_t(index) : ~0u));
#else
    (void)score;
    return index;
#endif
}

// How blocks hand each other results within a pass: values that say themselves whether they are there, so that nobody
// needs a fence: a release waits for everything that the multiprocessor has under way, the weights' copies too, 1.6 us
// with one piece of 20 KB and 3 us with three. Readers ask for them again and again, from the moment when they have
// nothing else to do, or, where that would be long before, when the phase counter says so (phase_counter.cuh).
//
// In passes of one node they are 64-bit words of a 32-bit value and the number of the exchange that it belongs to, and
// so is in all passes what few blocks read: parts of sums, in passes of up to 8 nodes what attention works on. Memory
// reads and writes a word whole. Numbers only grow (4 n_layer + 2 a pass), so words are never cleared. A word is
// written again only when all have read it: whoever reads an exchange works in the next one, and nobody can write to
// the same place again before that work has gone into everything.
//
// Words are twice as many bytes, which all blocks read. In wider passes a place that waits for its next value holds
// kAbsent instead, a NaN that arithmetic never makes. Layer l writes to buffer l mod 3. Whoever has multiplied by its
// c_fc knows that all are done with the layer before, and clears a share of that one's buffer; so a place is clear a
// layer, 10 us and more, before it is written again: nothing else orders these two stores. The last layer and what
// follows it have buffers of their own, which the next wide pass clears where it begins; of a model of one layer, the
// host before the pass.
//
// Bytes of wide passes: those of the values, and as many once more to clear them, which nobody reads.
//
// New keys and values go to the cache too, for the passes to come.
#pragma once

#include "kernels/block.cuh"

// Loads those pieces again, with load(k), that are not there, until all are.
template <int N, class Piece, class There, class Load>
__device__ inline void wait_for_all(uint32_t* failure, Piece (&piece)[N], const There& there, const Load& load) {
    const auto complete = [&] {
        bool all = true;
#pragma unroll
        for (int k = 0; k < N; ++k) all &= there(piece[k]);
        return all;
    };
    wait_for(failure, Wait::exchange, complete, [&] {
#pragma unroll
        for (int k = 0; k < N; ++k)
            if (!there(piece[k])) piece[k] = load(k);
    });
}

// Loads the pairs of words at from + k apart, k < n, until all bear the number.
template <int apart, int N>
__device__ inline void collect(const Block& b, const uint64_t* from, int n, uint32_t number, uint4 (&pair)[N]) {
    const auto load = [&](int k) { return ptx::load_words(from + k * apart); };
    // All are set, lest ptxas keep registers for them beyond this.
#pragma unroll
    for (int k = 0; k < N; ++k) pair[k] = {0, number, 0, number};
#pragma unroll
    for (int k = 0; k < N; ++k)
        if (k < n) pair[k] = load(k);
    wait_for_all(
        b.a.scratch.failure, pair, [&](const uint4& two) { return two.y == number && two.w == number; }, load);
}

constexpr uint32_t kAbsent = 0xffffffff;  // as a float and as two halves

__device__ inline bool is_there(const uint4& v) {
    return max(max(v.x, v.y), max(v.z, v.w)) != kAbsent;
}

// Loads the four values at from(k), k < n, until all are there.
template <int N, class From>
__device__ inline void collect_values(const Block& b, int n, const From& from, uint4 (&four)[N]) {
    const auto load = [&](int k) { return ptx::load_relaxed_4(from(k)); };
#pragma unroll
    for (int k = 0; k < N; ++k) four[k] = k < n ? load(k) : uint4{};
    wait_for_all(b.a.scratch.failure, four, is_there, load);
}

// Which exchange of some rows: its number, or where the layer's rows begin.
struct Exchange {
    uint32_t number, rows;
};
// A node's row of a kind in a wide pass.
__device__ inline uint32_t* row_of(const PassArguments& a, const Rows& rows, const Exchange& exchange, int node) {
    return a.scratch.value + (exchange.rows + node * a.scratch.layer_values + rows.first);
}

// Writes value `at` of a node's row, or two of them from an even `at` on.
template <bool words>
__device__ inline void put(const PassArguments& a, const Rows& rows, const Exchange& exchange, int node, uint32_t at,
                           uint32_t value) {
    if (words)
        ptx::store_word(rows.word + at, value, exchange.number);
    else
        ptx::store_relaxed(row_of(a, rows, exchange, node) + at, value);
}
template <bool words>
__device__ inline void put_two(const PassArguments& a, const Rows& rows, const Exchange& exchange, int node,
                               uint32_t at, float first, float second) {
    const uint32_t x = __float_as_uint(first), y = __float_as_uint(second);
    if (words)
        ptx::store_words(rows.word + at, x, y, exchange.number);
    else
        ptx::store_relaxed_2(row_of(a, rows, exchange, node) + at, x, y);
}

// Clears a wide pass's n rows from `first` on, one of n_shares equal shares.
__device__ inline void clear_rows(const Block& b, uint32_t first, int n, int share, int n_shares) {
    const int fours = n * b.a.scratch.layer_values / 4, warp = kMultiplyWarps - 1 - b.thread / 32;
#pragma unroll 1
    for (int i = (warp * n_shares + share) * 32 + b.thread % 32; i < fours; i += n_shares * kMultiplyThreads)
        ptx::store_relaxed_4(b.a.scratch.value + first + 4 * i, {kAbsent, kAbsent, kAbsent, kAbsent});
}

// Fetches n halves of a row of words, from value `first` on, into the block's input. Has waited for them; meanwhile()
// runs while they are on the way.
template <class Meanwhile>
__device__ inline void collect_words(const Block& b, const Rows& rows, int first, int n, uint32_t number,
                                     const Meanwhile& meanwhile) {
    constexpr int kBatch = registers_to_spare() ? 2 : 1;
    const int steps = n / 4;  // of 16 bytes of words
#pragma unroll 1
    for (int at = b.thread; at < steps; at += kBatch * kMultiplyThreads) {
        uint4 pair[kBatch];
        const int there = (steps - at + kMultiplyThreads - 1) / kMultiplyThreads;
        collect<2 * kMultiplyThreads>(b, rows.word + first + 2 * at, there, number, pair);
        const uint32_t to = b.input_at(0, 4 * at);
#pragma unroll
        for (int k = 0; k < kBatch; ++k)
            if (k < there) ptx::store_shared_8(to + k * kMultiplyThreads * 8, pair[k].x, pair[k].z);
    }
    meanwhile();
    block_barrier();
}

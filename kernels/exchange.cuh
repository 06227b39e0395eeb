// How blocks hand each other results within a pass: 64-bit words of a 32-bit value and the number of the exchange that
// it belongs to. Memory reads and writes a word whole, so the reader sees of each value whether it is there, and nobody
// needs a fence: a release waits for everything that the multiprocessor has under way, the weights' copies too, 1.6 us
// with one piece of 20 KB and 3 us with three. The phase counter tells when to look (phase_counter.cuh).
//
// Numbers only grow (4 n_layer + 2 a pass), so words are never cleared. A word is written again only when all have read
// it: whoever reads an exchange works in the next one, and nobody can write to the same place again before that work
// has gone into everything.
//
// Bytes: twice those of the values. Results of passes of more than 8 nodes therefore travel without numbers and with a
// release instead.
#pragma once

#include "kernels/block.cuh"

// Loads the pairs of words at from + offset[k], k < n, until all bear the number.
template <int N>
__device__ inline void collect(const Block& b, const uint64_t* from, const uint32_t (&offset)[N], int n,
                               uint32_t number, uint4 (&pair)[N]) {
#pragma unroll
    for (int k = 0; k < N; ++k)
        if (k < n) pair[k] = ptx::load_words(from + offset[k]);
    const auto complete = [&] {
        bool all = true;
#pragma unroll
        for (int k = 0; k < N; ++k) all &= k >= n || (pair[k].y == number && pair[k].w == number);
        return all;
    };
    if (complete()) return;
    Patience patience{b.a.scratch.failure};
    do {
        patience.turn(Wait::exchange);
#pragma unroll
        for (int k = 0; k < N; ++k)
            if (k < n && (pair[k].y != number || pair[k].w != number)) pair[k] = ptx::load_words(from + offset[k]);
    } while (!complete());
}

// Writes value `at` of the rows, or two of them from an even `at` on.
template <bool words>
__device__ inline void put(const Rows& rows, uint32_t at, uint32_t value, uint32_t number) {
    if (words)
        ptx::store_word(rows.word + at, value, number);
    else
        rows.value[at] = value;
}
template <bool words>
__device__ inline void put_two(const Rows& rows, uint32_t at, float first, float second, uint32_t number) {
    if (words)
        ptx::store_words(rows.word + at, __float_as_uint(first), __float_as_uint(second), number);
    else
        *reinterpret_cast<float2*>(rows.value + at) = {first, second};
}

// Fetches n_embd halves of each of n rows into the block's input: from value `first` on, rows `stride` values apart.
// Has waited for them; meanwhile() runs while they are on the way. A warp takes one row at a time; of words, where rows
// are few, 2 to 16 warps share one.
template <bool words, class Meanwhile>
__device__ inline void collect_input(const Block& b, const Rows& rows, int first, int stride, int n, int n_embd,
                                     uint32_t number, const Meanwhile& meanwhile) {
    const int steps = n_embd / (words ? 4 : 8);                                                     // of 16 bytes a row
    const int spread = words ? __clz(n - 1) - __clz(kMultiplyWarps - 1) : 0, lanes = 32 << spread;  // that share a row
    for (int row = b.thread >> (5 + spread); row < n; row += kMultiplyWarps >> spread) {
        int at = b.thread & (lanes - 1);
        if (words) {
#if __CUDA_ARCH__ == 900
            constexpr int kBatch = 2;
#else
            constexpr int kBatch = 1;  // ptxas needs more registers there
#endif
#pragma unroll 1
            for (; at < steps; at += kBatch * lanes) {
                uint32_t offset[kBatch];
                uint4 pair[kBatch];
#pragma unroll
                for (int k = 0; k < kBatch; ++k) offset[k] = first + row * stride + (at + k * lanes) * 2;
                const int there = at + lanes < steps ? kBatch : 1;
                collect(b, rows.word, offset, there, number, pair);
#pragma unroll
                for (int k = 0; k < kBatch; ++k)
                    if (k < there) ptx::store_shared_8(b.input_at(row, (at + k * lanes) * 4), pair[k].x, pair[k].z);
            }
        } else {
            const uint32_t to = b.input_at(row, 0);
            const uint32_t* from = rows.value + first + row * stride;
            for (; at < steps; at += lanes) ptx::copy_16(to + at * 16, from + at * 4);
        }
    }
    meanwhile();
    if (!words) ptx::copies_wait();
    block_barrier();
}

// What the GPU tests share: whether there is a GPU, GPT-2s of real size filled quickly, texts.
#pragma once

#include "kernels/cuda_model.h"
#include "tests/random_model.h"

// False, and the case counts as skipped, on a machine without a usable GPU.
bool gpu_or_skip();

// Like make_random_model, but fast: weights uniform with deviation `scale`. For models of hundreds of megabytes.
RandomModel make_large_model(int n_layer, int n_head, int n_positions, int n_vocab, uint64_t seed, float scale = 0.02f);

std::vector<int32_t> random_text(int n, int n_vocab, uint64_t seed);

// The parents of a text's nodes: each follows the one before.
inline constexpr int32_t kChain[kMaxNodes] = {-1, 0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14,
                                              15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30,
                                              31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46,
                                              47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62};

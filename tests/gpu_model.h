// What the GPU tests share: whether there is a GPU, and GPT-2s of real size filled quickly.
#pragma once

#include "kernels/cuda_model.h"
#include "tests/random_model.h"

// False, and the case counts as skipped, on a machine without a usable GPU.
bool gpu_or_skip();

// Like make_random_model, but fast: weights uniform with deviation `scale`. For models of hundreds of megabytes.
RandomModel make_large_model(int n_layer, int n_head, int n_positions, int n_vocab, uint64_t seed, float scale = 0.02f);

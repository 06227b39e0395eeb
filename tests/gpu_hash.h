// Hashes of logit vectors, on the device: equal bits give equal hashes.
#pragma once

#include <cstdint>

// hash[i] of the n_vocab floats at logits + i * stride, for i below n <= 64. Device memory; waits for the device.
void hash_rows(const float* logits, int n_vocab, int stride, int n, uint64_t* hash);

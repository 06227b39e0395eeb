// mma.m16n8k16 by itself, on the device.
#pragma once

#include <cstdint>
#include <vector>

// d = a b for each of n pairs of fragments: a (n, 32, 4), b (n, 32, 2) words of two halves, d (n, 32, 4). Empty if the
// device failed.
std::vector<float> multiply_fragments(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b);

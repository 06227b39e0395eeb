#pragma once
#include <cstdint>
struct Sampling {
    float temperature = 0;  // 0: greedy
    int32_t top_k = 0;      // 0: all
    float top_p = 1;        // 1: all
    uint64_t seed = 0;
};

// The bandwidth that reading device memory reaches: the yardstick of the benchmarks.
#pragma once

#include <cstdint>

// Microseconds to read `bytes` from p once, with 16-byte loads by every multiprocessor: the best of 20.
double read_microseconds(const void* p, uint64_t bytes);

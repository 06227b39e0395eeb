// What a machine can do at best: the roof that decoding is measured against. Both figures come from loops that do
// nothing else, on this machine, in this run: warmed up, the median of several.
#pragma once

#include <cstdint>
#include <string>

struct Ceilings {
    double read_bytes_per_s;                // from memory, by the whole device
    double flops_per_s;                     // of the arithmetic that the engine's matrices use, or the best of its kind
    std::string read_method, flops_method;  // in words
};

struct DeviceFacts {
    std::string kind;  // "cpu" or "cuda"
    std::string name;
    std::string driver;        // "" on a CPU
    std::string clocks;        // as found when asked, in words; "unknown" where nobody tells
    uint64_t cache_bytes = 0;  // last level; 0: unknown
};

DeviceFacts cpu_facts();
Ceilings cpu_ceilings();

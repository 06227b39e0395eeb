// The CPU's ceilings. Reading: all threads add up (xor) a buffer many times the caches. Arithmetic: every thread keeps
// independent sums in registers, x = x * a + b, with the widest fused multiply-add that the processor has. The CPU
// engine itself multiplies and adds in two steps (its bits must not depend on the processor), so half of this is its
// own limit.
#pragma GCC optimize("fp-contract=fast")  // fused operations are wanted here, and here alone

#include "decode/ceilings.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <vector>

#include "decode/quantile.h"

namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

constexpr int kChains = 12;  // sums at a time: more than latency times units, fewer than registers

template <class Vector>
[[gnu::always_inline]] inline float chains(long steps, float factor) {
    Vector sum[kChains] = {};
    for (int i = 0; i < kChains; ++i) sum[i] += float(i);
    const Vector a = Vector{} + factor, b = Vector{} + 1 - factor;
    for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * a + b;
    }
    float total = 0;
    for (int i = 0; i < kChains; ++i) total += sum[i][0];
    return total;
}

[[gnu::target("avx512f")]] float chains_512(long steps, float factor) {
    return chains<Float16>(steps, factor);
}
[[gnu::target("avx2,fma")]] float chains_256(long steps, float factor) {
    return chains<Float8>(steps, factor);
}
float chains_128(long steps, float factor) {
    return chains<Float4>(steps, factor);
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Median of nine runs after one that warms up.
template <class Run>
double median_seconds(const Run& run) {
    std::vector<double> times;
    for (int i = 0; i < 10; ++i) {
        const double start = seconds();
        run();
        if (i > 0) times.push_back(seconds() - start);
    }
    return quantile(times, 0.5);
}

}  // namespace

DeviceFacts cpu_facts() {
    DeviceFacts facts = {.kind = "cpu", .name = "CPU", .driver = "", .clocks = "unknown"};
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const size_t at = line.find(": ");
        if (at == std::string::npos) continue;
        if (line.starts_with("model name")) facts.name = line.substr(at + 2);
        if (line.starts_with("cpu MHz")) facts.clocks = line.substr(at + 2) + " MHz";
    }
    facts.name += ", " + std::to_string(omp_get_max_threads()) + " threads";
    facts.cache_bytes = uint64_t(std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE)));
    return facts;
}

Ceilings cpu_ceilings() {
    const uint64_t memory = uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE));
    const uint64_t bytes = std::clamp<uint64_t>(memory / 16, 64 << 20, 1 << 30) / 4096 * 4096;
    const int64_t words = int64_t(bytes / sizeof(uint64_t));
    const std::unique_ptr<uint64_t[]> buffer(new uint64_t[words]);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < words; ++i) buffer[i] = uint64_t(i);  // pages lie near the threads that will read them
    uint64_t seen = 0;
    const double reading = median_seconds([&] {
        uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(^ : sum)
        for (int64_t i = 0; i < words; ++i) sum ^= buffer[i];
        seen += sum;
    });

    const bool has_512 = __builtin_cpu_supports("avx512f");
    const bool has_256 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const auto run = has_512 ? chains_512 : has_256 ? chains_256 : chains_128;
    const int lanes = has_512 ? 16 : has_256 ? 8 : 4, threads = omp_get_max_threads();
    constexpr long kSteps = 2'000'000;
    const float factor = 1 - 1 / float(2 + seen % 2);  // not known to the compiler
    float result = 0;
    const double computing = median_seconds([&] {
        float sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += run(kSteps, factor);
        result += sum;
    });
    const bool kept = result > -1;  // the sums were needed
    return {.read_bytes_per_s = double(bytes) / reading,
            .flops_per_s = kept ? 2.0 * lanes * kChains * kSteps * threads / computing : 0,
            .read_method = std::to_string(bytes >> 20) + " MiB read by " + std::to_string(threads) + " threads",
            .flops_method = std::string("fp32 ") + (has_512 || has_256 ? "fused multiply-add" : "multiply and add") +
                            ", vectors of " + std::to_string(lanes) + ", " + std::to_string(threads) + " threads"};
}

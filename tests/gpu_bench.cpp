// Speed of the GPU engine on random weights: microseconds a pass by width, tokens a second, share of the bandwidth that
// a plain read of the same weights reaches in the same run. Run with tests --test-case='bench:*'.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "decode/quantile.h"
#include "kernels/ceilings.h"
#include "tests/gpu_model.h"

namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of work(), which waits for the device: the median of `runs` after one that does not count.
template <class Work>
double median_seconds(int runs, const Work& work) {
    std::vector<double> times;
    for (int run = 0; run <= runs; ++run) {
        const double start = seconds();
        work();
        if (run) times.push_back(seconds() - start);
    }
    return quantile(times, 0.5);
}

// Microseconds of a pass of n nodes, n logits, at `base`, of `repeats` one after the other.
double pass_us(CudaModel& model, int base, int n, int n_logits, int repeats) {
    int32_t token[kMaxNodes], parent[kMaxNodes];
    for (int i = 0; i < n; ++i) token[i] = 17 * i + 3, parent[i] = (i + 1) / 2 - 1;
    const Pass pass = {base, 0, n, token, parent, n_logits};
    const double all = median_seconds(5, [&] {
        for (int i = 0; i < repeats; ++i) model.forward(pass);
        model.synchronise();
    });
    return all / repeats * 1e6;
}

// Milliseconds of prefilling n tokens.
double prefill_ms(CudaModel& model, int n) {
    const std::vector<int32_t> text(n, 7);
    return 1e3 * median_seconds(5, [&] {
               model.prefill(0, text);
               model.synchronise();
           });
}

// The same of n nodes in passes as wide as can be.
double passes_ms(CudaModel& model, int n) {
    const int32_t token[kMaxNodes] = {};
    return 1e3 * median_seconds(5, [&] {
               for (int at = 0; at < n; at += kMaxNodes)
                   model.forward({at, 0, std::min(kMaxNodes, n - at), token, kChain, 0});
               model.synchronise();
           });
}

double decode_us(CudaModel& model, int base, int n, const Sampling& sampling) {
    const double all = median_seconds(3, [&] { model.decode(5, base, n, -1, sampling, [](int32_t) { return true; }); });
    return all / n * 1e6;
}

}  // namespace

TEST_CASE("bench: GPT2-L and the rig's draft") {
    if (!gpu_or_skip()) return;
    struct Shape {
        const char* name;
        int n_layer, n_head;
    };
    for (const Shape shape : {Shape{"gpt2-large", 36, 20}, Shape{"draft 4 x 512", 4, 8}}) {
        const RandomModel random = make_large_model(shape.n_layer, shape.n_head, 1024, 50257, 1);
        CudaModel model(random.view, 0);
        const double read = cuda_read_seconds(model.weights(), random.view.size) * 1e6;
        std::printf("%s: %.0f MB, plain read %.1f us (%.0f GB/s)\n", shape.name, random.view.size / 1e6, read,
                    random.view.size / read / 1e3);
        for (const Sampling& sampling : {Sampling{}, Sampling{.temperature = 1, .top_k = 50}}) {
            const double us = decode_us(model, 128, 250, sampling);
            std::printf("  baseline, %s, contexts 128 to 378: %.1f us a token, %.0f tokens/s, %.0f %% of the read\n",
                        sampling.temperature == 0 ? "greedy" : "top-k 50", us, 1e6 / us, 100 * read / us);
        }
        std::printf("  a pass at context 250 by its nodes:");
        for (const int n : {1, 2, 4, 8, 16, 32, 64}) std::printf("  %d: %.0f us", n, pass_us(model, 250, n, n, 20));
        std::printf("\n");
        std::printf("  prefill by its tokens (as passes of up to 64):");
        for (const int n : {16, 32, 64, 128, 200, 512, 1000})
            std::printf("  %d: %.2f (%.2f) ms", n, prefill_ms(model, n), passes_ms(model, n));
        std::printf("\n");
    }
}

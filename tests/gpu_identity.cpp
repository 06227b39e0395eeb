// The promise on the GPU: baseline decoding, which runs wholly on the device, and the speculative modes,
// which the host leads over passes of many widths, write the same text.
#include <doctest/doctest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "kernels/cuda_decoder.h"
#include "model/tokenizer.h"
#include "tests/gpu_model.h"

static void compare_modes(int n_seeds, int n_tokens) {
    const Blob blob = Blob::open("model/demo/demo.blob");
    const Tokenizer tokenizer = Tokenizer::from_section(blob.tokenizer());
    const std::unique_ptr<Decoder> decoder = make_cuda_decoder(blob, 0);
    std::ifstream file("tests/golden/prompts.json");
    const nlohmann::json prompts = nlohmann::json::parse(file);
    REQUIRE(prompts.size() == 40);
    const Sampling samplings[] = {{}, {.temperature = 1, .top_k = 50}, {.temperature = 0.8f, .top_p = 0.95f}};
    std::mt19937 generator(3);
    int tokens = 0, differing = 0, accepted = 0;
    for (const auto& prompt : prompts)
        for (Sampling sampling : samplings)
            for (int seed = 0; seed < n_seeds; ++seed) {
                sampling.seed = generator();
                Request request;
                request.prompt = tokenizer.encode(prompt.get<std::string>());
                request.max_tokens = n_tokens;
                request.sampling = sampling;
                request.tree = decoder->default_tree();
                if (generator() % 2) {
                    request.tree.nodes = 2 + int(generator() % (kMaxNodes - 1));
                    request.tree.children = 1 + int(generator() % kMaxChildren);
                    request.tree.draft_width = 1 + int(generator() % 32);
                    request.tree.ngram_nodes = int(generator() % request.tree.draft_width);
                }
                std::vector<int32_t> baseline;
                for (const Mode mode : {Mode::baseline, Mode::speculative, Mode::staged}) {
                    request.mode = mode;
                    std::vector<int32_t> written;
                    const Statistics statistics = decoder->generate(request, [&](std::span<const Emitted> part) {
                        for (const Emitted& e : part) written.push_back(e.token);
                        return true;
                    });
                    if (mode == Mode::baseline) {
                        baseline = written;
                        continue;
                    }
                    tokens += int(written.size());
                    accepted += statistics.accepted;
                    differing += written != baseline;
                }
            }
    MESSAGE(tokens << " tokens compared with baseline, " << accepted << " of them accepted guesses");
    CHECK(differing == 0);
    CHECK(accepted > tokens / 5);
}

TEST_CASE("gpu: the three modes write the same text on the demo model: 40 prompts, greedy and sampled, random trees") {
    if (gpu_or_skip()) compare_modes(1, 100);
}

TEST_CASE("long: gpu: the three modes write the same text on the demo model: five seeds, 250 tokens") {
    if (gpu_or_skip()) compare_modes(5, 250);
}

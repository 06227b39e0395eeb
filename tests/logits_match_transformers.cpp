// The CPU engine against Hugging Face transformers in float32 on the same fp16 weights (tests/golden, made by
// scripts/golden_logits.py): logits within 2e-3, greedy continuations identical over 200 tokens or to the context's
// end.
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "decode/generate.h"
#include "decode/reference.h"
#include "tests/temporary_folder.h"
#include "weights_tool/convert.h"

namespace {

void compare(const ModelView& view, const std::string& name) {
    Reference model(view);
    std::ifstream json_file("tests/golden/" + name + ".json"), vectors("tests/golden/" + name + ".f32");
    const nlohmann::json golden = nlohmann::json::parse(json_file);
    const int n_vocab = view.config.n_vocab;
    std::vector<float> expected(n_vocab);
    double worst = 0;
    int checked = 0;
    for (const auto& row : golden["logits"]) {
        const std::vector<int32_t> ids = row["ids"];
        vectors.seekg(row["offset"].get<int64_t>() * 4);
        REQUIRE(vectors.read(reinterpret_cast<char*>(expected.data()), n_vocab * 4));
        std::vector<int32_t> parent(kMaxNodes), slots(kMaxNodes);
        for (int i = 0; i < kMaxNodes; ++i) parent[i] = i - 1, slots[i] = i;
        for (int base = 0; base < int(ids.size()); base += kMaxNodes) {
            const int n = std::min<int>(kMaxNodes, int(ids.size()) - base);
            model.forward({base, 0, n, &ids[base], parent.data(), 1});
            model.commit(base, std::span(slots).first(n));
        }
        for (int i = 0; i < n_vocab; ++i) worst = std::max(worst, std::abs(double(model.logits(0)[i]) - expected[i]));
        ++checked;
    }
    MESSAGE(name << ": " << checked << " logit vectors, largest difference " << worst);
    CHECK(checked > 20);
    CHECK(worst < 2e-3);

    for (const auto& row : golden["greedy"]) {
        const std::vector<int32_t> continuation = row["continuation"];
        Request request;
        request.prompt = row["ids"].get<std::vector<int32_t>>();
        request.max_tokens = int(continuation.size());
        request.ignore_eos = true;
        std::vector<int32_t> written;
        generate(model, nullptr, {}, request, [&](std::span<const Emitted> part) {
            for (const Emitted& e : part) written.push_back(e.token);
            return true;
        });
        CHECK(written == continuation);
    }
}

}  // namespace

TEST_CASE("a random checkpoint gives the logits and greedy text of transformers") {
    const TemporaryFolder folder;
    convert({.target = "tests/golden/random", .draft = "", .ngram = "", .output = folder / "random.blob"});
    const Blob blob = Blob::open(folder / "random.blob");
    compare(blob.target(), "random");
}

TEST_CASE("the demo model gives the logits and greedy text of transformers") {
    const Blob blob = Blob::open("model/demo/demo.blob");
    compare(blob.target(), "demo");
}

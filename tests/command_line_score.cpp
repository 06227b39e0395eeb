// score: the log-probabilities that transformers' logits give (tests/golden), and their perplexity.
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tests/run_program.h"
#include "tests/tokenizer_data.h"

using nlohmann::json;

TEST_CASE("score: log-probabilities are those of transformers' logits") {
    std::ifstream json_file("tests/golden/demo.json"), vectors("tests/golden/demo.f32");
    const json rows = json::parse(json_file)["logits"];
    std::vector<float> logits(4096);
    int checked = 0;
    for (size_t r = 0; r < rows.size(); r += 3) {
        vectors.seekg(rows[r]["offset"].get<int64_t>() * 4);
        REQUIRE(vectors.read(reinterpret_cast<char*>(logits.data()), std::streamsize(logits.size() * 4)));
        double sum = 0;
        for (float logit : logits) sum += std::exp(double(logit) - logits[0]);
        std::vector<int32_t> ids = rows[r]["ids"];
        const int32_t next = int32_t(r * 37 % 4096);
        ids.push_back(next);
        if (ids.size() > 512) continue;
        const ProgramRun run =
            staged_gpt2({"score", "--ids", "--json"}, json(ids).dump().substr(1, json(ids).dump().size() - 2));
        REQUIRE(run.exit_code == 0);
        const json about = json::parse(run.out);
        REQUIRE(about["log_probability"].size() == ids.size() - 1);
        CHECK(std::abs(about["log_probability"].back().get<double>() - (logits[next] - logits[0] - std::log(sum))) <
              4e-3);
        ++checked;
    }
    CHECK(checked > 5);
}

TEST_CASE("score: the perplexity is that of the tokens' log-probabilities, and does not depend on how the text comes") {
    const std::string text = "def f(x):\n    return x\n";
    const json about = json::parse(staged_gpt2({"score", "--json", text}).out);
    CHECK(about["ids"] == demo_tokenizer().encode(text));
    const std::vector<double> log_probability = about["log_probability"];
    const double sum = std::accumulate(log_probability.begin(), log_probability.end(), 0.0);
    CHECK(about["sum"].get<double>() == doctest::Approx(sum));
    CHECK(about["perplexity"].get<double>() == doctest::Approx(std::exp(-sum / double(log_probability.size()))));
    CHECK(json::parse(staged_gpt2({"score", "--json"}, text).out) == about);
    const std::string table = staged_gpt2({"score"}, text).out;
    CHECK(table.find("perplexity") != std::string::npos);
    CHECK(size_t(std::count(table.begin(), table.end(), '\n')) == log_probability.size() + 1);
}

// --jsonl: a result for each line, in order, the same as the plain command gives with the same options.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/run_program.h"
#include "tests/tokenizer_data.h"

using nlohmann::json;

namespace {

std::vector<json> results(const ProgramRun& run) {
    std::vector<json> lines;
    std::istringstream stream(run.out);
    for (std::string line; std::getline(stream, line);) lines.push_back(json::parse(line));
    return lines;
}

}  // namespace

TEST_CASE("jsonl: results come in order and equal the plain command's") {
    const std::vector<std::pair<json, std::vector<std::string>>> cases = {
        {{{"prompt", "def f(x):\n"}, {"id", "first"}}, {"def f(x):\n"}},
        {{{"prompt", "import os\n"}, {"max_tokens", 17}, {"temperature", 0.8}, {"top-p", 0.9}, {"seed", 3}},
         {"import os\n", "--max-tokens", "17", "--temperature", "0.8", "--top-p", "0.9", "--seed", "3"}},
        {{{"prompt", "import os\n"},
          {"temperature", 1},
          {"top_k", 40},
          {"seed", 18446744073709551615u},
          {"mode", "speculative"}},
         {"import os\n", "--temperature", "1", "--top-k", "40", "--seed", "18446744073709551615"}},
        {{{"prompt", "class A:\n"}, {"stop", " "}, {"echo", true}}, {"class A:\n", "--stop", " ", "--echo"}},
        {{{"prompt", "class A:\n"}, {"stop", {"self", "\n\n"}}, {"nodes", 2}, {"id", 7}},
         {"class A:\n", "--stop", "self", "--stop", "\n\n"}},
    };
    std::string lines;
    for (const auto& one : cases) lines += one.first.dump() + "\n\n";
    const ProgramRun run = staged_gpt2({"--jsonl"}, lines);
    CHECK(run.exit_code == 0);
    CHECK(run.err == "");
    const std::vector<json> answers = results(run);
    REQUIRE(answers.size() == cases.size());
    for (size_t i = 0; i < cases.size(); ++i) {
        CAPTURE(cases[i].first.dump());
        CHECK(answers[i]["text"] == staged_gpt2(cases[i].second).out);
        CHECK(answers[i].value("id", json()) == cases[i].first.value("id", json()));
        CHECK(answers[i]["ids"].size() == answers[i]["tokens"]);
    }
    CHECK(answers[0]["mode"] == "staged");
    CHECK(answers[0]["ended_by"] == "max_tokens");
    CHECK(answers[2]["mode"] == "speculative");
    CHECK(answers[3]["ended_by"] == "stop");
    CHECK(answers[0]["accepted"] <= answers[0]["proposed"]);
}

TEST_CASE("jsonl: the command's options hold for lines that say nothing else") {
    const ProgramRun run = staged_gpt2({"--jsonl", "--max-tokens", "9", "--stop", "zzz"},
                                       "{\"prompt\":\"import\"}\n{\"prompt\":\"import\",\"max_tokens\":4}");
    const std::vector<json> answers = results(run);
    REQUIRE(answers.size() == 2);
    CHECK(answers[0]["tokens"] == 9);
    CHECK(answers[1]["tokens"] == 4);
}

TEST_CASE("jsonl: ids as a prompt give what their text gives") {
    const std::vector<int32_t> ids = demo_tokenizer().encode("import os\n");
    const ProgramRun run = staged_gpt2({"--jsonl"}, json{{"ids", ids}, {"max_tokens", 30}}.dump());
    const std::vector<json> answers = results(run);
    REQUIRE(answers.size() == 1);
    CHECK(answers[0]["text"] == staged_gpt2({"import os\n", "--max-tokens", "30"}).out);
    CHECK(demo_tokenizer().decode(answers[0]["ids"].get<std::vector<int32_t>>()) == answers[0]["text"]);
}

TEST_CASE("jsonl: a bad line gives its error in its place, the others their results, and exit code 1") {
    const char* const bad[] = {
        "not json",
        "[]",
        "\"prompt\"",
        "{}",
        "{\"prompt\": 3}",
        "{\"prompt\": \"a\", \"ids\": [1]}",
        "{\"prompt\": \"\"}",
        "{\"prompt\": \"a\", \"temprature\": 1}",
        "{\"prompt\": \"a\", \"temperature\": -1}",
        "{\"prompt\": \"a\", \"temperature\": \"hot\"}",
        "{\"prompt\": \"a\", \"temperature\": null}",
        "{\"prompt\": \"a\", \"top_k\": 0}",
        "{\"prompt\": \"a\", \"top_p\": 0}",
        "{\"prompt\": \"a\", \"seed\": 18446744073709551616}",
        "{\"prompt\": \"a\", \"max_tokens\": 1.5}",
        "{\"prompt\": \"a\", \"echo\": 1}",
        "{\"prompt\": \"a\", \"stop\": \"\"}",
        "{\"prompt\": \"a\", \"stop\": [[]]}",
        "{\"prompt\": \"a\", \"mode\": \"fast\"}",
        "{\"ids\": []}",
        "{\"ids\": 7}",
        "{\"ids\": [1.5]}",
        "{\"ids\": [4096]}",
        "{\"ids\": [-1]}",
        "{\"ids\": [99999999999999999999]}",
        "{\"prompt\": \"\xff\"}",
    };
    const std::string good = "{\"prompt\": \"import\", \"max_tokens\": 2}\n";
    std::string lines = good;
    for (const char* line : bad) lines += std::string(line) + "\n" + good;
    const ProgramRun run = staged_gpt2({"--jsonl"}, lines);
    CHECK(run.exit_code == 1);
    const std::vector<json> answers = results(run);
    REQUIRE(answers.size() == 2 * std::size(bad) + 1);
    for (size_t i = 0; i < answers.size(); ++i) {
        CAPTURE(std::string(i % 2 ? bad[i / 2] : "good"));
        CHECK(answers[i].contains("error") == (i % 2 == 1));
        CHECK(answers[i].contains("text") == (i % 2 == 0));
    }
}

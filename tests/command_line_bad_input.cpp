// Bad input ends staged-gpt2 with one sentence on standard error, nothing on standard output and the documented code.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>

#include "tests/run_program.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"

namespace {

void check_refused(const ProgramRun& run, int code, const std::string& says) {
    INFO(run.err);
    CHECK(run.exit_code == code);
    CHECK(run.out == "");
    CHECK(run.err.starts_with("staged-gpt2: "));
    CHECK(std::ranges::count(run.err, '\n') == 1);
    CHECK(run.err.find(says) != std::string::npos);
}

struct BadInput {
    std::vector<std::string> arguments;
    const char* says;
};

}  // namespace

TEST_CASE("command line: wrong usage is one sentence that names the option, and exit code 2") {
    const BadInput cases[] = {
        {{""}, "the prompt is empty"},
        {{"--frobnicate", "a"}, "--frobnicate"},
        {{"a", "b"}, "b"},
        {{"a", "--file", "README.md"}, "--file"},
        {{"--file", "/nowhere/file"}, "/nowhere/file"},
        {{"--file", "/"}, "--file /"},
        {{"--file", ""}, "--file"},
        {{"a", "--max-tokens"}, "--max-tokens"},
        {{"a", "--max-tokens", "0"}, "--max-tokens must be"},
        {{"a", "--max-tokens", "-3"}, "--max-tokens must be"},
        {{"a", "--max-tokens", "2.5"}, "--max-tokens must be"},
        {{"a", "--max-tokens", "99999999999999999999"}, "--max-tokens must be"},
        {{"a", "--temperature", "-0.1"}, "--temperature must be"},
        {{"a", "--temperature", "nan"}, "--temperature must be"},
        {{"a", "--temperature", "inf"}, "--temperature must be"},
        {{"a", "--temperature", "warm"}, "--temperature must be"},
        {{"a", "--temperature", ""}, "--temperature"},
        {{"a", "--top-k", "0"}, "--top-k must be"},
        {{"a", "--top-k", "-1"}, "--top-k must be"},
        {{"a", "--top-k", "99999999999"}, "--top-k must be"},
        {{"a", "--top-p", "0"}, "--top-p must be"},
        {{"a", "--top-p", "1.0001"}, "--top-p must be"},
        {{"a", "--top-p", "-0.5"}, "--top-p must be"},
        {{"a", "--top-p", "nan"}, "--top-p must be"},
        {{"a", "--seed", "18446744073709551616"}, "--seed must be"},
        {{"a", "--seed", "-1"}, "--seed must be"},
        {{"a", "--seed", "1\n2"}, "--seed must be"},
        {{"a", "--stop", ""}, "--stop"},
        {{"a", "--mode", "fast"}, "--mode must be"},
        {{"a", "--device", "tpu"}, "--device must be"},
        {{"a", "--device", "cuda:x"}, "--device must be"},
        {{"a", "--nodes", "65"}, "--nodes must be"},
        {{"a", "--depth", "17"}, "--depth must be"},
        {{"a", "--children", "0"}, "--children must be"},
        {{"a", "--draft-width", "0"}, "--draft-width must be"},
        {{"a", "--draft-passes", "0"}, "--draft-passes must be"},
        {{"a", "--ngram-nodes", "-1"}, "--ngram-nodes must be"},
        {{"--ids", "1 2 x"}, "\"x\""},
        {{"--ids", "1 2.5"}, "\"2.5\""},
        {{"--ids", "1 99999999999"}, "\"99999999999\""},
        {{"--ids", " , "}, "empty"},
        {{"--ids", "1 4096"}, "4096"},
        {{"--ids", "1 -1"}, "-1"},
        {{"--ids", "1", "--stop", "a"}, "--stop"},
        {{"--jsonl", "a"}, "--jsonl"},
        {{"--jsonl", "--ids"}, "--ids"},
        {{"--jsonl", "--trace"}, "--trace"},
        {{"--jsonl", "--stats"}, "--stats"},
        {{"--jsonl", "--samples", "2"}, "--samples"},
        {{"--samples", "0"}, "--samples must be"},
        {{"--samples", "2", "a", "--temperature", "1"}, "the prompt"},
        {{"--samples", "2", "--echo", "--temperature", "1"}, "--echo"},
        {{"--samples", "2"}, "--temperature"},
        {{"--jsonl", "--file", "/nowhere/lines"}, "/nowhere/lines"},
        {{"score", "a"}, "one token"},
        {{"score", ""}, "empty"},
        {{"score", "a", "--temperature", "1"}, "--temperature"},
        {{"info", "a"}, "a"},
    };
    for (const BadInput& bad : cases) {
        std::string line;
        for (const std::string& argument : bad.arguments) line += " '" + argument + "'";
        CAPTURE(line);
        check_refused(run_program("staged-gpt2", bad.arguments), 2, bad.says);
    }
}

TEST_CASE("command line: an empty standard input is an empty prompt") {
    check_refused(staged_gpt2({}), 2, "the prompt is empty");
}

TEST_CASE("command line: a terminal as standard input and no prompt is wrong usage, not a wait") {
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    REQUIRE(terminal >= 0);
    REQUIRE(grantpt(terminal) == 0);
    REQUIRE(unlockpt(terminal) == 0);
    check_refused(run_program("staged-gpt2", {}, "", ptsname(terminal)), 2, "standard input");
    close(terminal);
}

TEST_CASE("command line: a text longer than the context is refused with both numbers") {
    std::string ids;
    for (int i = 0; i < 512; ++i) ids += "7 ";
    for (const char* number : {"512", "511"}) {
        check_refused(staged_gpt2({"--ids"}, ids), 2, number);
        check_refused(staged_gpt2({}, std::string(200000, 'a')), 2, number);
    }
    check_refused(staged_gpt2({"score", "--ids"}, ids + "7"), 2, "513");
    CHECK(staged_gpt2({"score", "--ids"}, ids).exit_code == 0);
    CHECK(staged_gpt2({"--ids"}, ids.substr(2)).exit_code == 0);
}

TEST_CASE("command line: a bad model file is one sentence and exit code 3") {
    const TemporaryFolder folder;
    const std::string demo = read_file("model/demo/demo.blob");
    write_file(folder / "empty", "");
    write_file(folder / "text", "this is no model file\n");
    write_file(folder / "truncated", demo.substr(0, demo.size() / 2));
    std::string newer = demo;
    newer[8] = 2;
    write_file(folder / "newer", newer);
    for (const std::string& name :
         {folder / "missing", folder.path, folder / "empty", folder / "text", folder / "truncated", folder / "newer"}) {
        CAPTURE(name);
        check_refused(staged_gpt2({"a", "--model", name}), 3, name);
        check_refused(run_program("staged-gpt2", {"info", "--model", name}), 3, name);
        check_refused(staged_gpt2({"--jsonl", "--model", name}, "{\"prompt\": \"a\"}\n"), 3, name);
    }
}

TEST_CASE("command line: what a model file lacks is named when it is asked for") {
    const TemporaryFolder folder;
    make_small_checkpoint(1, 1, 16, 32, 40, 1).write(folder / "model");
    REQUIRE(run_program("weights_tool", {"convert", "--target", folder / "model", "-o", folder / "blob"}).exit_code ==
            0);
    check_refused(staged_gpt2({"a", "--model", folder / "blob"}), 2, "--ids");
    check_refused(staged_gpt2({"--ids", "1", "--mode", "speculative", "--model", folder / "blob"}), 2,
                  "--mode speculative");
    check_refused(staged_gpt2({"--ids", "1", "--mode", "staged", "--model", folder / "blob"}), 2, "--mode staged");
    const ProgramRun run = staged_gpt2({"--ids", "1", "--model", folder / "blob", "--max-tokens", "3", "--ignore-eos"});
    CHECK(run.exit_code == 0);
    CHECK(std::ranges::count(run.out, ' ') == 2);
}

TEST_CASE("command line: where no GPU is usable, demanding one is exit code 4 and info says why") {
    const ProgramRun info = run_program("staged-gpt2", {"info", "--json"});
    CHECK(info.exit_code == 0);
    const nlohmann::json about = nlohmann::json::parse(info.out);
    const int n_gpus = int(about["gpus"].size());
    check_refused(run_program("staged-gpt2", {"a", "--device", "cuda:" + std::to_string(n_gpus)}), 4, "--device cuda:");
    if (n_gpus == 0) {
        CHECK(about["gpu_fault"] != "");
        check_refused(run_program("staged-gpt2", {"a", "--device", "cuda"}), 4, about["gpu_fault"]);
        const ProgramRun run = run_program("staged-gpt2", {"a", "--max-tokens", "1"});
        CHECK(run.exit_code == 0);
        CHECK(run.err.find("running on the CPU") != std::string::npos);
    }
}

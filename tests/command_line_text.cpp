// What staged-gpt2 writes: the same text in every mode, stop texts wherever tokens begin or end, whole characters,
// token ids, colours that change nothing.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <regex>
#include <sstream>

#include "model/blob.h"
#include "tests/run_program.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "tests/tokenizer_data.h"

namespace {

using Arguments = std::vector<std::string>;

Arguments operator+(Arguments left, const Arguments& right) {
    left.insert(left.end(), right.begin(), right.end());
    return left;
}

std::string text_of(const Arguments& arguments, std::string_view input = "") {
    const ProgramRun run = staged_gpt2(arguments, input);
    INFO(run.err);
    CHECK(run.exit_code == 0);
    return run.out;
}

const char* const kModes[] = {"baseline", "speculative", "staged"};
const Arguments kSampled = {"--temperature", "1", "--top-k", "50", "--top-p", "0.95", "--seed", "18446744073709551615"};

// Bytes of the UTF-8 character that begins at text[at], 0 if none does.
size_t character_at(const std::string& text, size_t at) {
    const auto byte = [&](size_t i) { return i < text.size() ? uint8_t(text[i]) : 0; };
    const auto follows = [&](size_t i, uint8_t low = 0x80, uint8_t high = 0xbf) {
        return byte(i) >= low && byte(i) <= high;
    };
    const uint8_t lead = byte(at);
    if (lead < 0x80) return 1;
    if (lead >= 0xc2 && lead <= 0xdf) return follows(at + 1) ? 2 : 0;
    if (lead >= 0xe0 && lead <= 0xef)
        return follows(at + 1, lead == 0xe0 ? 0xa0 : 0x80, lead == 0xed ? 0x9f : 0xbf) && follows(at + 2) ? 3 : 0;
    if (lead >= 0xf0 && lead <= 0xf4)
        return follows(at + 1, lead == 0xf0 ? 0x90 : 0x80, lead == 0xf4 ? 0x8f : 0xbf) && follows(at + 2) &&
                       follows(at + 3)
                   ? 4
                   : 0;
    return 0;
}

// A model whose tokens are single bytes, most of them parts of UTF-8 characters, and that writes them at random.
std::string byte_model(const TemporaryFolder& folder) {
    make_small_checkpoint(1, 1, 16, 1024, 9, 3).write(folder / "bytes");
    // In GPT-2's alphabet of bytes, these stand for a \n c3 a9 e2 82 ac f0 9f.
    write_file(folder / "bytes/vocab.json",
               "{\"a\":0,\"\\u010a\":1,\"\\u00c3\":2,\"\\u00a9\":3,\"\\u00e2\":4,\"\\u0124\":5,\"\\u00ac\":6,"
               "\"\\u00f0\":7,\"\\u0141\":8}");
    write_file(folder / "bytes/merges.txt", "#version: 0.2\n");
    const ProgramRun run =
        run_program("weights_tool", {"convert", "--target", folder / "bytes", "-o", folder / "bytes.blob"});
    INFO(run.err);
    REQUIRE(run.exit_code == 0);
    return folder / "bytes.blob";
}

}  // namespace

TEST_CASE("command line: the three modes write the same bytes through a pipe") {
    for (const Arguments& settings : {Arguments{}, kSampled})
        for (const char* prompt : {"def fibonacci(n):\n", "été — 日本語 "}) {
            const Arguments sampling = settings + Arguments{"--max-tokens", "120"};
            const std::string text = text_of(sampling + Arguments{prompt, "--mode", "baseline"});
            CHECK(text.size() > 100);
            for (const char* mode : kModes) CHECK(text_of(sampling + Arguments{prompt, "--mode", mode}) == text);
            CHECK(text_of(sampling + Arguments{prompt}) == text);
            CHECK(text_of(sampling + Arguments{prompt, "--nodes", "3", "--depth", "2", "--children", "2",
                                               "--draft-width", "2", "--draft-passes", "1", "--ngram-nodes", "1"}) ==
                  text);
        }
}

TEST_CASE("command line: argument, file and standard input give the same text, byte for byte") {
    const TemporaryFolder folder;
    const std::string prompt = "def add(a, b):\n";
    write_file(folder / "prompt", prompt);
    const std::string text = text_of({prompt});
    CHECK(text_of({"generate", prompt}) == text);
    CHECK(text_of({"--file", folder / "prompt"}) == text);
    CHECK(text_of({}, prompt) == text);
    CHECK(text_of({"--echo"}, prompt) == prompt + text);
    // A newline at the end is part of the prompt, not trimmed.
    CHECK(text_of({}, prompt.substr(0, prompt.size() - 1)) != text);
}

TEST_CASE("command line: any bytes are a prompt") {
    std::string binary;
    for (int i = 0; i < 256; ++i) binary += char(i);
    const std::string text = text_of({"--max-tokens", "20"}, binary);
    CHECK(text_of({"--max-tokens", "20", "--echo"}, binary) == binary + text);
}

TEST_CASE("command line: a stop text ends the text before its first occurrence, whatever tokens it spans") {
    const std::string prompt = "class Stack:\n    def __init__(self):\n        self.items = []\n";
    const std::string whole = text_of({prompt});
    REQUIRE(whole.size() > 200);
    std::mt19937 random(1);
    for (int i = 0; i < 12; ++i) {
        const size_t at = random() % (whole.size() - 12);
        const std::string stop = whole.substr(at, 1 + random() % 12);
        CAPTURE(stop);
        const std::string expected = whole.substr(0, whole.find(stop));
        for (const char* mode : kModes) CHECK(text_of({prompt, "--stop", stop, "--mode", mode}) == expected);
    }
    CHECK(text_of({prompt, "--stop", "no such text"}) == whole);
    // What could have become a stop text and did not is written in the end.
    const std::string end = whole.substr(whole.size() - 5);
    CHECK(text_of({prompt, "--stop", end + "!"}) == whole);
    // Of several, the one that is complete first; of two complete at once, the longer.
    const std::string at_20 = whole.substr(20, 4), at_21 = whole.substr(21, 1);
    const size_t first = std::min(whole.find(at_20) + 4, whole.find(at_21) + 1);
    const std::string expected =
        whole.find(at_21) + 1 < whole.find(at_20) + 4 ? whole.substr(0, first - 1) : whole.substr(0, first - 4);
    for (const char* mode : kModes)
        CHECK(text_of({prompt, "--stop", at_20, "--stop", at_21, "--mode", mode}) == expected);
    // The prompt's own text is no occurrence, also when it is echoed.
    const std::string stopped = text_of({prompt, "--stop", "self"});
    CHECK(stopped == whole.substr(0, whole.find("self")));
    CHECK(text_of({prompt, "--stop", "self", "--echo"}) == prompt + stopped);
}

TEST_CASE("command line: ids in and out are the ids of the text") {
    const std::string prompt = "for i in range(10):\n";
    std::string ids;
    for (int32_t id : demo_tokenizer().encode(prompt)) ids += (ids.empty() ? "" : " ") + std::to_string(id);
    const std::string text = text_of(kSampled + Arguments{prompt});
    const std::string out = text_of(kSampled + Arguments{"--ids", ids});
    CHECK(out.ends_with("\n"));
    std::istringstream stream(out);
    std::vector<int32_t> written;
    for (int32_t id; stream >> id;) written.push_back(id);
    CHECK(written.size() == 256);
    CHECK(demo_tokenizer().decode(written) == text);
    std::string commas = ids;
    std::ranges::replace(commas, ' ', ',');
    CHECK(text_of(kSampled + Arguments{"--ids"}, "\n" + commas + ",\n") == out);
    CHECK(text_of(kSampled + Arguments{"--ids", commas + "\n", "--echo"}) == ids + " " + out);
}

TEST_CASE("command line: each accepted token is written at once") {
    RunningProgram program("staged-gpt2",
                           {"def f(x):\n", "--mode", "baseline", "--max-tokens", "40", "--device", "cpu"});
    std::string text;
    int writes = 0;
    for (std::string part; !(part = program.read_write()).empty(); ++writes) text += part;
    CHECK(program.wait().exit_code == 0);
    CHECK(writes == 40);  // the text is ASCII, so no token waits for another
    CHECK(text == text_of({"def f(x):\n", "--max-tokens", "40"}));
}

TEST_CASE("command line: no write ends inside a UTF-8 character, and no byte is lost") {
    const TemporaryFolder folder;
    const Arguments arguments = {"--model", byte_model(folder), "--ignore-eos", "--max-tokens",
                                 "1000",    "--temperature",    "1000"};
    const std::string whole = text_of(arguments, "a");
    REQUIRE(whole.size() == 1000);
    for (const char* echo : {"", "--echo"}) {
        const std::string prompt = *echo ? "a\xc3" : "a";
        RunningProgram program(
            "staged-gpt2", arguments + Arguments{"--device", "cpu"} + (*echo ? Arguments{echo} : Arguments{}), prompt);
        std::string text;
        std::vector<size_t> borders;
        for (std::string part; !(part = program.read_write()).empty();) borders.push_back((text += part).size());
        CHECK(program.wait().exit_code == 0);
        int characters = 0;
        for (size_t at = 0; at < text.size(); ++at) {
            const size_t length = character_at(text, at);
            characters += length > 1;
            for (size_t i = at + 1; i < at + length; ++i) CHECK(std::ranges::count(borders, i) == 0);
        }
        CHECK(characters > 30);
        CHECK(borders.size() > 500);
        if (*echo)
            CHECK(text == prompt + text_of(arguments, prompt));
        else
            CHECK(text == whole);
    }
}

TEST_CASE("command line: colours tell who guessed each token and change no byte of the text") {
    const std::string text = text_of({"import os\n"});
    const std::regex colours("\x1b\\[[0-9]+m");
    for (const char* mode : kModes) {
        const ProgramRun run = staged_gpt2({"import os\n", "--trace", "--mode", mode});
        CHECK(std::regex_replace(run.out, colours, "") == text);
        CHECK(run.out.ends_with("\x1b[0m"));
        CHECK(run.err.find("target") != std::string::npos);
        CHECK((run.out.find("\x1b[36m") == std::string::npos) == (mode == kModes[0]));
        CHECK((run.out.find("\x1b[35m") == std::string::npos) == (mode != kModes[2]));
    }
}

TEST_CASE("command line: --stats speaks on standard error only and its numbers add up") {
    const std::string text = text_of({"import os\n"});
    const ProgramRun run = staged_gpt2({"import os\n", "--stats", "--mode", "staged"});
    CHECK(run.out == text);
    std::smatch found;
    REQUIRE(std::regex_search(run.err, found, std::regex("by target (\\d+) .*draft (\\d+) .*n-gram (\\d+) ")));
    const int target = stoi(found[1]), draft = stoi(found[2]), ngram = stoi(found[3]);
    CHECK(target + draft + ngram == 256);
    REQUIRE(std::regex_search(run.err, found, std::regex("\ntarget +(\\d+) ")));
    CHECK(stoi(found[1]) >= target);  // a round emits one token of the target's own at most
    REQUIRE(std::regex_search(run.err, found, std::regex("\ndraft +\\d+ +\\d+ +(\\d+) +(\\d+) ")));
    CHECK(stoi(found[2]) <= stoi(found[1]));
    CHECK(stoi(found[2]) >= draft + ngram);
}

TEST_CASE("command line: sampling options at temperature 0 are noted, and change nothing") {
    const std::string text = text_of({"import os\n"});
    const ProgramRun run = staged_gpt2({"import os\n", "--top-k", "5", "--seed", "2"});
    CHECK(run.out == text);
    CHECK(run.err == "staged-gpt2: note: --top-k, --top-p and --seed change nothing at --temperature 0\n");
}

TEST_CASE("command line: a command's name is a prompt only after generate") {
    CHECK(text_of({"generate", "--max-tokens", "3", "info"}) != "");
    CHECK(staged_gpt2({"--max-tokens", "3", "info"}).exit_code == 2);
}

TEST_CASE("command line: --version and --help succeed on standard output") {
    const ProgramRun version = run_program("staged-gpt2", {"--version"});
    CHECK(version.exit_code == 0);
    CHECK(std::regex_match(version.out, std::regex("staged-gpt2 [0-9.]+ \\(.+\\)\n")));
    for (const Arguments& arguments : {Arguments{"--help"}, Arguments{"score", "--help"}, Arguments{"info", "--help"},
                                       Arguments{"bench", "--help"}, Arguments{"roofline", "--help"}}) {
        const ProgramRun help = run_program("staged-gpt2", arguments);
        CHECK(help.exit_code == 0);
        CHECK(help.out.find("Usage: staged-gpt2") != std::string::npos);
        CHECK(help.err == "");
    }
}

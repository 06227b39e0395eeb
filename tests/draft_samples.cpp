// The n-gram table by the executables alone, as the README tells it: texts that the draft writes (--draft-alone
// --samples) -> weights_tool ngram --ids -> the model file. Such a table never changes the text, and it lets more
// n-gram guesses come true than the context alone.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "model/blob.h"
#include "model/mapped_file.h"
#include "tests/run_program.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "tests/tokenizer_data.h"
#include "weights_tool/blob_writer.h"

using nlohmann::json;

namespace {

constexpr char kDemoBlob[] = "model/demo/demo.blob";

// The demo's blob with the table in that file, or with none.
void write_demo_with_table(const std::string& path, const std::string& table_path) {
    const MappedFile demo = map_file(kDemoBlob, "");
    const BlobHeader header = Blob::open(kDemoBlob).header();
    BlobWriter writer(path, demo.bytes.size());
    for (uint32_t i = 0; i < header.n_sections; ++i) {
        const SectionEntry& entry = header.section[i];
        if (SectionKind(entry.kind) != SectionKind::ngram)
            writer.section(SectionKind(entry.kind), demo.bytes.subspan(entry.offset, entry.size));
        else if (!table_path.empty())
            writer.section(SectionKind::ngram, map_file(table_path, "").bytes);
    }
    writer.commit();
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

}  // namespace

TEST_CASE("samples of the draft make a table that keeps the text and lets more n-gram guesses come true") {
    const TemporaryFolder folder;
    const ProgramRun samples = staged_gpt2(
        {"--draft-alone", "--samples", "40", "--temperature", "1.5", "--max-tokens", "250", "--ignore-eos"});
    REQUIRE(samples.exit_code == 0);
    REQUIRE(lines_of(samples.out).size() == 40);
    write_file(folder / "ids", samples.out);
    const ProgramRun table = run_program("weights_tool", {"ngram", "--vocab", "tests/golden/demo_vocab", "--ids", "-o",
                                                          folder / "table", folder / "ids"});
    REQUIRE(table.exit_code == 0);
    CHECK(table.out.find("from 9") != std::string::npos);  // 40 x 250 tokens less those held out
    write_demo_with_table(folder / "with", folder / "table");
    write_demo_with_table(folder / "without", "");
    CHECK(run_program("weights_tool", {"verify", folder / "with"}).exit_code == 0);

    std::string prompts;
    for (const char* prompt : {"import os\n", "class Stack:\n", "def main():\n", "for i in", "# ", "try:\n"})
        for (double temperature : {0.0, 1.0})
            prompts += json{{"prompt", prompt}, {"temperature", temperature}, {"max_tokens", 60}}.dump() + "\n";
    const auto run = [&](const std::string& blob, const std::string& mode) {
        const ProgramRun result = staged_gpt2({"--jsonl", "--model", folder / blob, "--mode", mode}, prompts);
        REQUIRE(result.exit_code == 0);
        std::vector<json> answers;
        for (const std::string& line : lines_of(result.out)) answers.push_back(json::parse(line));
        REQUIRE(answers.size() == 12);
        return answers;
    };
    const auto baseline = run("with", "baseline"), with = run("with", "staged"), without = run("without", "staged");
    int confirmed_with = 0, confirmed_without = 0;
    for (size_t i = 0; i < baseline.size(); ++i) {
        CHECK(with[i]["ids"] == baseline[i]["ids"]);
        CHECK(without[i]["ids"] == baseline[i]["ids"]);
        confirmed_with += with[i]["by_origin"]["ngram"].get<int>();
        confirmed_without += without[i]["by_origin"]["ngram"].get<int>();
    }
    MESSAGE("n-gram tokens accepted: " << confirmed_with << " with the table, " << confirmed_without << " without");
    CHECK(confirmed_with > confirmed_without);
}

TEST_CASE(
    "samples: each is the text that its own seed gives after the end token, and the draft writes what a blob of it "
    "alone does") {
    const std::vector<std::string> options = {"--temperature", "1.5", "--max-tokens", "12", "--draft-alone"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.end(), options.begin(), options.end());
        return staged_gpt2(more);
    };
    const std::vector<std::string> lines = lines_of(with({"--samples", "3", "--seed", "7"}).out);
    REQUIRE(lines.size() == 3);
    for (int i = 0; i < 3; ++i) CHECK(with({"--ids", "4095", "--seed", std::to_string(7 + i)}).out == lines[i] + "\n");

    const TemporaryFolder folder;
    SmallCheckpoint draft = make_small_checkpoint(1, 1, 16, 32, 40, 5);
    make_small_checkpoint(2, 1, 16, 32, 40, 9).write(folder / "target");
    draft.write(folder / "draft");
    const auto convert = [&](std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), "convert");
        REQUIRE(run_program("weights_tool", arguments).exit_code == 0);
    };
    convert({"--target", folder / "target", "--draft", folder / "draft", "-o", folder / "pair"});
    convert({"--target", folder / "draft", "-o", folder / "single"});
    const auto write = [&](const std::string& blob, std::vector<std::string> arguments) {
        arguments.insert(arguments.end(), {"--model", folder / blob, "--ids", "1 2 3", "--temperature", "1"});
        const ProgramRun run = staged_gpt2(arguments);
        CHECK(run.exit_code == 0);
        return run.out;
    };
    CHECK(write("pair", {"--draft-alone"}) == write("single", {}));
    CHECK(write("pair", {}) != write("single", {}));
    const ProgramRun refused = staged_gpt2({"--model", folder / "single", "--ids", "1", "--draft-alone"});
    CHECK(refused.exit_code == 2);
    CHECK(refused.err.find("holds no draft") != std::string::npos);
}

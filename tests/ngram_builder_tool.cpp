#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "model/blob.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "tests/tokenizer_data.h"

// Runs `weights_tool ngram` in a folder; returns its exit status and what it said.
static int run_ngram(const TemporaryFolder& folder, const std::string& arguments, std::string& said) {
    const char* build = std::getenv("BUILD");
    const std::string command = std::string(build ? build : "build") + "/weights_tool ngram " + arguments + " >" +
                                (folder / "said") + " 2>&1 </dev/null";
    const int status = std::system(command.c_str());
    said = read_file(folder / "said");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static const std::string kDemo = " --vocab tests/golden/demo_vocab ";

TEST_CASE("weights_tool ngram: files of text and lines of their ids give the same table, which a blob takes") {
    const TemporaryFolder folder;
    std::string files, lines, said;
    for (int i = 0; i < 120; ++i) {
        const std::string text =
            "def f" + std::to_string(i * i % 7) + "(x):\n    return x + " + std::to_string(i % 5) + "\n";
        const std::string name = folder / (std::to_string(i) + ".py");
        write_file(name, text);
        files += " " + name;
        for (const int32_t id : demo_tokenizer().encode(text)) lines += std::to_string(id) + " ";
        lines += "\n";
    }
    write_file(folder / "ids", lines + "\n\n");
    write_file(folder / "empty", "");
    REQUIRE(run_ngram(folder, kDemo + "-o " + (folder / "a") + files + " " + (folder / "empty"), said) == kExitDone);
    CHECK(said.find("contexts in 2^") != std::string::npos);
    CHECK(said.find("held out") != std::string::npos);
    REQUIRE(run_ngram(folder, kDemo + "--ids -o " + (folder / "b") + " " + (folder / "ids"), said) == kExitDone);
    const std::string table = read_file(folder / "a");
    CHECK(read_file(folder / "b") == table);
    std::vector<NgramEntry> aligned(table.size() / sizeof(NgramEntry));
    std::memcpy(aligned.data(), table.data(), table.size());
    const NgramView view = ngram_view({reinterpret_cast<const uint8_t*>(aligned.data()), table.size()}, 4096, "table");
    CHECK(view.header->n_contexts > 10);

    REQUIRE(run_ngram(folder, kDemo + "--ids --n-vocab 5000 -o " + (folder / "b") + " " + (folder / "ids"), said) ==
            kExitDone);
    CHECK(read_file(folder / "b").size() == table.size() + (5000 - 4096) * sizeof(NgramEntry));
    REQUIRE(run_ngram(folder, "--ids --n-vocab 4096 -o " + (folder / "b") + " " + (folder / "ids"), said) == kExitDone);
}

TEST_CASE("weights_tool ngram and tokenize: a blob's tokenizer serves as well as its folder") {
    const TemporaryFolder folder;
    make_small_checkpoint(1, 1, 16, 8, 4096, 1).write(folder / "model");
    for (const std::string name : {"vocab.json", "merges.txt"})
        std::filesystem::copy("tests/golden/demo_vocab/" + name, (folder / "model") + "/" + name);
    const char* build = std::getenv("BUILD");
    const std::string tool = std::string(build ? build : "build") + "/weights_tool ", blob = folder / "blob";
    REQUIRE(std::system((tool + "convert --target " + (folder / "model") + " -o " + blob).c_str()) == 0);
    write_file(folder / "text", "def f(x):\n    return [x, x, x]\n");
    std::string said;
    CHECK(run_ngram(folder, kDemo + "-o " + (folder / "a") + " " + (folder / "text"), said) == kExitDone);
    CHECK(run_ngram(folder, "--model " + blob + " -o " + (folder / "b") + " " + (folder / "text"), said) == kExitDone);
    CHECK(read_file(folder / "a") == read_file(folder / "b"));
    for (const std::string& source : {kDemo, "--model " + blob})
        REQUIRE(std::system(
                    (tool + "tokenize " + source + " <" + (folder / "text") + " >>" + (folder / "ids")).c_str()) == 0);
    const std::string ids = read_file(folder / "ids");
    CHECK(ids.size() > 20);
    CHECK(ids.substr(0, ids.size() / 2) == ids.substr(ids.size() / 2));
}

TEST_CASE("weights_tool ngram: bad input is refused in a sentence and leaves no file") {
    const TemporaryFolder folder;
    write_file(folder / "ids", "1 2 3\n4 5 4096\n");
    write_file(folder / "words", "1 2 3\nx 5\n");
    write_file(folder / "short", "1 2\n3 4\n");
    const std::string output = folder / "out";
    const auto check_refused = [&](const std::string& arguments, int status, const std::string& says) {
        std::string said;
        CHECK(run_ngram(folder, arguments + " -o " + output, said) == status);
        CHECK_MESSAGE(said.find(says) != std::string::npos, "\"", said, "\" should say \"", says, "\"");
        CHECK(!std::filesystem::exists(output));
    };
    check_refused(kDemo, kExitUsage, "the text holds 0 tokens");
    check_refused(kDemo + "--ids", kExitUsage, "the text holds 0 tokens");
    check_refused("--ids --n-vocab 10 " + (folder / "short"), kExitUsage, "no three in a row");
    check_refused(kDemo + "--ids " + (folder / "ids"), kExitUsage,
                  "line 2: id 3 (byte 4) is 4096, but the vocabulary ends at 4095");
    check_refused(kDemo + "--ids " + (folder / "words"), kExitUsage, "line 2: id 1 (byte 0) is \"x\", not a number");
    check_refused(kDemo + (folder / "nowhere"), kExitUsage, "nowhere can't be read");
    check_refused(kDemo + folder.path, kExitUsage, "can't be read");
    check_refused("--ids " + (folder / "ids"), kExitUsage, "the vocabulary is not known");
    check_refused("--n-vocab 4096 " + (folder / "ids"), kExitUsage, "there is no tokenizer");
    check_refused(kDemo + "--n-vocab 4095 " + (folder / "ids"), kExitUsage,
                  "is less than the vocabulary's 4096 tokens");
    check_refused(kDemo + "--max-mb 0.1 " + (folder / "ids"), kExitUsage, "4096 tokens alone take 131 kB");
    check_refused(kDemo + "--min-count 0 " + (folder / "ids"), kExitUsage, "--min-count");
    check_refused("--vocab " + folder.path + " " + (folder / "ids"), kExitBadModel, "has no tokenizer");
    check_refused("--model " + (folder / "ids") + " " + (folder / "ids"), kExitBadModel, "ids");
}

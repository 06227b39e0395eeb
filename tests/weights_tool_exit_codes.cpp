// weights_tool as a shell script meets it: one line on standard error and the documented exit code for each kind of
// failure, and what a script reads on standard output.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/blob_bytes.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"

struct Run {
    int code;
    std::string out, err;
};

static Run weights_tool(const TemporaryFolder& folder, const std::string& arguments) {
    const char* build = std::getenv("BUILD");
    const std::string command = std::string(build ? build : "build") + "/weights_tool " + arguments + " >" +
                                folder / "stdout" + " 2>" + folder / "stderr";
    const int status = std::system(command.c_str());
    return {WEXITSTATUS(status), read_file(folder / "stdout"), read_file(folder / "stderr")};
}

TEST_CASE("weights_tool: failures are one line on standard error and an exit code") {
    TemporaryFolder folder;
    const std::string out = " -o " + folder / "out.blob";
    make_small_checkpoint(1, 1, 16, 8, 40, 1).write(folder / "model");
    std::string damaged = small_blob();
    damaged[5000] ^= 1;
    write_file(folder / "damaged", damaged);
    const std::pair<std::string, int> failures[] = {
        {"", 2},
        {"frobnicate", 2},
        {"convert", 2},
        {"convert --target " + folder / "model", 2},
        {"convert --target " + folder / "model" + " --typo 1" + out, 2},
        {"convert --target " + folder / "model" + " -o " + folder.path, 2},
        {"convert --target " + folder / "model" + " -o " + folder / "none/out.blob", 1},
        {"convert --target " + folder / "missing" + out, 3},
        {"convert --target " + folder / "model" + " --draft " + folder / "missing" + out, 3},
        {"convert --target " + folder / "model" + " --ngram " + folder / "missing" + out, 3},
        {"info", 2},
        {"info " + folder / "missing", 3},
        {"info " + folder.path, 3},
        {"info " + folder / "damaged", 3},
        {"verify " + folder / "damaged", 3},
    };
    for (const auto& [arguments, code] : failures) {
        CAPTURE(arguments);
        const Run run = weights_tool(folder, arguments);
        INFO(run.err);
        CHECK(run.code == code);
        CHECK(run.out == "");
        CHECK(run.err.starts_with("weights_tool: "));
        CHECK(std::ranges::count(run.err, '\n') == 1);
    }
    CHECK(!std::filesystem::exists(folder / "out.blob"));
}

TEST_CASE("weights_tool: convert, info and verify of a sound blob succeed") {
    TemporaryFolder folder;
    make_small_checkpoint(2, 2, 16, 8, 40, 1).write(folder / "model");
    const std::string blob = folder / "out.blob";
    const Run convert = weights_tool(folder, "convert --target " + folder / "model" + " -o " + blob);
    CHECK(convert.code == 0);
    CHECK(convert.out == "");
    CHECK(convert.err.find("has no tokenizer") != std::string::npos);
    const Run info = weights_tool(folder, "info --json " + blob);
    CHECK(info.code == 0);
    const nlohmann::json about = nlohmann::json::parse(info.out);
    CHECK(about["target"]["n_layer"] == 2);
    CHECK(about["target"]["parameters"] == 40 * 16 + 8 * 16 + 2 * (12 * 16 * 16 + 13 * 16) + 2 * 16);
    CHECK(about["bytes"] == std::filesystem::file_size(blob));
    CHECK(about["sections"].size() == 2);
    CHECK(weights_tool(folder, "info " + blob).out.find("2 layers of 16") != std::string::npos);
    CHECK(weights_tool(folder, "verify " + blob).out == blob + ": sound\n");
    const Run full = weights_tool(folder, "info " + blob + " >/dev/full 2>/dev/null #");
    CHECK(full.code == 1);
}

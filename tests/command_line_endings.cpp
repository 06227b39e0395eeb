// How staged-gpt2 ends when it is not allowed to finish: quietly on a closed pipe, with a sentence on a write error, at
// once on an interrupt.
#include <doctest/doctest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "tests/run_program.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"

namespace {

double milliseconds_to_end(RunningProgram& program, ProgramRun& run) {
    const auto start = std::chrono::steady_clock::now();
    program.interrupt();
    run = program.wait();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TEST_CASE("command line: a closed pipe ends the program quietly with exit code 0") {
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"import os\n", "--device", "cpu"}, {"--jsonl", "--device", "cpu"}}) {
        std::string lines;
        for (int i = 0; i < 50; ++i) lines += "{\"prompt\": \"import os\\n\"}\n";
        RunningProgram program("staged-gpt2", arguments, lines);
        CHECK(program.read_write() != "");
        program.close_output();
        const ProgramRun run = program.wait();
        CHECK(run.exit_code == 0);
        CHECK(run.err == "");
    }
}

TEST_CASE("command line: a full disk is a sentence and exit code 1") {
    for (const char* command : {"", "score ", "info "}) {
        const TemporaryFolder folder;
        const std::string line = program_path("staged-gpt2") + " " + command +
                                 (std::string(command) == "info " ? "" : "--device cpu 'import os'") +
                                 " >/dev/full 2>" + folder / "err";
        CHECK(WEXITSTATUS(std::system(line.c_str())) == 1);
        const std::string err = read_file(folder / "err");
        CHECK(err.starts_with("staged-gpt2: cannot write to standard output: "));
        CHECK(std::ranges::count(err, '\n') == 1);
    }
}

TEST_CASE("command line: an interrupt ends the text within 100 ms, with the statistics asked for") {
    double best = 1e9;  // of several, for other programs may hold the processor
    for (int i = 0; i < 5 && best > 100; ++i) {
        RunningProgram program("staged-gpt2", {"import os\n", "--mode", "baseline", "--max-tokens", "500",
                                               "--ignore-eos", "--stats", "--device", "cpu"});
        CHECK(program.read_write() != "");
        ProgramRun run;
        best = std::min(best, milliseconds_to_end(program, run));
        CHECK(run.exit_code == -SIGINT);
        CHECK(run.err.find("ended by interrupt") != std::string::npos);
    }
    CHECK(best <= 100);
}

TEST_CASE("command line: an interrupt in the middle of a long pass ends the program within 100 ms") {
    const TemporaryFolder folder;
    make_small_checkpoint(4, 8, 512, 8192, 64, 1).write(folder / "model");
    REQUIRE(run_program("weights_tool", {"convert", "--target", folder / "model", "-o", folder / "blob"}).exit_code ==
            0);
    std::string ids;
    for (int i = 0; i < 8000; ++i) ids += "7 ";
    double best = 1e9;
    for (int i = 0; i < 5 && best > 100; ++i) {
        RunningProgram program("staged-gpt2", {"--ids", "--model", folder / "blob", "--device", "cpu"}, ids);
        std::this_thread::sleep_for(std::chrono::milliseconds(300));  // prefill takes seconds
        ProgramRun run;
        best = std::min(best, milliseconds_to_end(program, run));
        CHECK(run.exit_code == -SIGINT);
        CHECK(run.out == "");
    }
    CHECK(best <= 100);
}

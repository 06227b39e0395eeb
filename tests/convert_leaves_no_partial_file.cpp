// The output of weights_tool appears whole or not at all: whatever ends the writing, what stood under its name before
// still stands there, and nothing lies beside it.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <vector>

#include "model/output_file.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "weights_tool/convert.h"

namespace fs = std::filesystem;

static std::vector<std::string> names_in(const std::string& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
    return names;
}

static std::span<const uint8_t> bytes_of(const std::string& text) {
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST_CASE("a commit replaces the file; without one it stays as it was") {
    TemporaryFolder folder;
    write_file(folder / "out", "before");
    {
        OutputFile file(folder / "out");
        file.reserve(1 << 20);
        file.write(bytes_of("after"));
        CHECK(read_file(folder / "out") == "before");
    }
    CHECK(read_file(folder / "out") == "before");
    {
        OutputFile file(folder / "out");
        file.reserve(1 << 20);
        file.write(bytes_of("after"));
        file.write_at(0, bytes_of("A"));
        file.commit();
    }
    CHECK(read_file(folder / "out") == "After");
    CHECK(names_in(folder.path).size() == 1);
}

TEST_CASE("a symbolic link stays one, and the file that it means is replaced") {
    TemporaryFolder folder;
    fs::create_directory(folder / "far");
    write_file(folder / "far/real", "before");
    fs::create_symlink("far/real", folder / "out");
    OutputFile file(folder / "out");
    file.write(bytes_of("after"));
    file.commit();
    CHECK(fs::is_symlink(folder / "out"));
    CHECK(read_file(folder / "far/real") == "after");
}

TEST_CASE("a full disk is one sentence, exit code 1 and no file") {
    TemporaryFolder folder;
    make_small_checkpoint(2, 2, 64, 8, 400, 1).write(folder / "model");
    fs::create_directory(folder / "out");
    rlimit before;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    for (const rlim_t room : {0, 4096, 100000, 200000}) {  // the blob has 260 KB
        CAPTURE(room);
        rlimit limit = before;
        limit.rlim_cur = room;
        // The limit's signal is ignored by OutputFile; here it would end the test before that.
        signal(SIGXFSZ, SIG_IGN);
        REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        const std::string message = error_of([&] { convert({folder / "model", "", "", folder / "out/blob"}); });
        REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
        CHECK(message.starts_with("[1] " + folder.path + "/out/blob "));
        CHECK(message.find("File too large") != std::string::npos);
        CHECK(names_in(folder / "out").empty());
    }
    // Space that runs out in the middle although nothing was reserved.
    rlimit limit = before;
    limit.rlim_cur = 1000;
    OutputFile file(folder / "out/direct");
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    const std::string message = error_of([&] {
        for (int i = 0; i < 2000; i++) file.write(bytes_of("x"));
    });
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(message.find("File too large") != std::string::npos);
}

TEST_CASE("places where no file can be") {
    TemporaryFolder folder;
    const auto opening = [&](const std::string& path) { return error_of([&] { OutputFile file(path); }); };
    CHECK(opening(folder / "none/out").find("can't be created: No such file") != std::string::npos);
    CHECK(opening(folder.path).find("is not a regular file") != std::string::npos);
    CHECK(opening("/dev/null").find("is not a regular file") != std::string::npos);
    CHECK(opening("").find("empty name") != std::string::npos);
    CHECK(fs::is_character_file("/dev/null"));
    CHECK(opening(folder / std::string(300, 'x')).find("can't be created: File name too long") != std::string::npos);
}

TEST_CASE("signals that end the program remove what was written") {
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
        CAPTURE(number);
        TemporaryFolder folder;
        write_file(folder / "out", "before");
        const pid_t child = fork();
        if (child == 0) {
            const rlimit no_core = {0, 0};
            setrlimit(RLIMIT_CORE, &no_core);
            for (const int n : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) signal(n, SIG_DFL);
            OutputFile file(folder / "out");
            file.write(bytes_of("half of it"));
            if (names_in(folder.path).size() != 2) _exit(9);
            raise(number);
            _exit(8);
        }
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status));
        CHECK(WTERMSIG(status) == number);
        CHECK(names_in(folder.path) == std::vector<std::string>{"out"});
        CHECK(read_file(folder / "out") == "before");
    }
}

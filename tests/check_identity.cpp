// scripts/check_identity.py on the demo model: three modes agree, and a mode that writes something else is found out.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/run_program.h"
#include "tests/skip.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"

TEST_CASE("check_identity.py: equal modes pass, a mode that differs, no prompts and no model do not") {
    if (std::system("python3 -c pass 2>/dev/null") != 0) return skip("no python3");
    const TemporaryFolder folder;
    write_file(folder / "prompts", "{\"prompt\": \"def main():\", \"task\": 1}\n{\"ids\": [1, 2, 3]}\n");
    write_file(folder / "broken", "{\"task\": 1}\n");
    write_file(folder / "liar", "#!/bin/sh\ncase \"$*\" in *staged*) " + program_path("staged-gpt2") +
                                    " \"$@\" | sed '2s/\"text\":\"/&!/' ;; *) exec " + program_path("staged-gpt2") +
                                    " \"$@\" ;; esac\n");
    std::filesystem::permissions(folder / "liar", std::filesystem::perms::owner_all);
    const auto check = [&](const std::string& program, const std::string& options) {
        const std::string command =
            "python3 scripts/check_identity.py --device cpu --max-tokens 6 --seeds 3 --program " + program +
            " --prompts " + options + " >" + (folder / "out") + " 2>&1";
        return WEXITSTATUS(std::system(command.c_str()));
    };
    CHECK(check(program_path("staged-gpt2"), folder / "prompts") == 0);
    CHECK(read_file(folder / "out").ends_with("72 tokens compared, 0 texts differ\n"));
    CHECK(check(folder / "liar", folder / "prompts") == 1);
    CHECK(read_file(folder / "out").find("greedy, seed 3, staged: 12 tokens, prompts [2] differ") != std::string::npos);
    CHECK(read_file(folder / "out").ends_with("72 tokens compared, 3 texts differ\n"));
    CHECK(check(program_path("staged-gpt2"), folder / "broken") == 1);
    CHECK(read_file(folder / "out").find("exactly one of") != std::string::npos);
    CHECK(check(program_path("staged-gpt2"), (folder / "prompts") + " --model " + (folder / "none")) == 1);
}

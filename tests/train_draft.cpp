// scripts/train_draft.py on sizes that a CPU trains in seconds: what it writes converts, and it has learnt its text.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/run_program.h"
#include "tests/skip.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "tests/tokenizer_data.h"

namespace {

struct Run {
    int code;
    std::string out, err;
};

Run train(const TemporaryFolder& folder, const std::string& arguments) {
    const std::string command =
        "OMP_NUM_THREADS=1 python3 scripts/train_draft.py --device cpu --layers 1 --width 64 "
        "--context 32 --batch 8 --learning-rate 0.01 --warm-up 5 --weights-tool " +
        program_path("weights_tool") + " " + arguments + " >" + (folder / "out") + " 2>" + (folder / "err") +
        " </dev/null";
    const int status = std::system(command.c_str());
    return {WEXITSTATUS(status), read_file(folder / "out"), read_file(folder / "err")};
}

// What Muon steps along has all its singular values near 1, of long and of wide matrices.
bool is_nearly_orthogonal() {
    return std::system(
               "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=scripts python3 -c \""
               "import torch, train_draft as t; torch.manual_seed(1)\n"
               "for shape in (64, 192), (256, 64), (64, 64):\n"
               "    s = torch.linalg.svdvals(t.orthogonal(torch.randn(shape) @ torch.diag(torch.rand(shape[1]))))\n"
               "    assert s.max() < 1.3 and s.median() > 0.6, (shape, s)\n"
               "\"") == 0;
}

double held_out_loss(const std::string& out) {
    const std::string before = "held-out loss ";
    const size_t at = out.find(before);
    REQUIRE(at != std::string::npos);
    return std::atof(out.c_str() + at + before.size());
}

}  // namespace

TEST_CASE("train_draft.py: a draft from text and one from token ids convert, guess and have learnt") {
    const TemporaryFolder folder;
    make_small_checkpoint(1, 1, 64, 48, 4096, 3).write(folder / "target");
    for (const std::string name : {"vocab.json", "merges.txt"})
        std::filesystem::copy("tests/golden/demo_vocab/" + name, (folder / "target") + "/" + name);
    std::filesystem::create_directory(folder / "text");
    const std::string text = "def add(left, right):\n    return left + right\n\n\n";
    std::string file, ids;
    for (int i = 0; i < 10; ++i) file += text;
    for (int i = 0; i < 12; ++i) write_file((folder / "text/") + std::to_string(i) + ".py", file);
    const std::string target = "--target " + (folder / "target") + " -o " + (folder / "draft");

    const Run from_text = train(folder, target + " --steps 40 --text " + (folder / "text"));
    if (from_text.err.find("is missing; install") != std::string::npos) return skip(from_text.err);
    REQUIRE_MESSAGE(from_text.code == 0, from_text.err);
    CHECK(held_out_loss(from_text.out) < 1);  // 8.3 before training
    CHECK(is_nearly_orthogonal());
    const std::vector<std::string> convert = {"convert",        "--target", folder / "target", "--draft",
                                              folder / "draft", "-o",       folder / "blob"};
    REQUIRE(run_program("weights_tool", convert).exit_code == 0);
    const ProgramRun written = staged_gpt2(
        {"--model", folder / "blob", "--draft-alone", "--max-tokens", "12", "    return left + right\n\n\ndef add("});
    CHECK(written.out.starts_with("left, right):\n    return left + right\n"));

    // Distilled from the target, whose distribution is nearly flat: the loss stays near the target's own, ln 4096.
    for (int line = 0; line < 40; ++line) {
        for (const int32_t id : demo_tokenizer().encode(text)) ids += std::to_string(id) + " ";
        ids += "\n";
    }
    write_file(folder / "ids", ids);
    const Run distilled = train(folder, target + " --steps 20 --distill 1 --ids " + (folder / "ids"));
    REQUIRE_MESSAGE(distilled.code == 0, distilled.err);
    CHECK(held_out_loss(distilled.out) > 7);
    REQUIRE(run_program("weights_tool", convert).exit_code == 0);
    const std::vector<std::string> generate = {"--model", folder / "blob", "--max-tokens", "20", "def", "--mode"};
    const auto in_mode = [&](const std::string& mode) {
        std::vector<std::string> arguments = generate;
        arguments.push_back(mode);
        return staged_gpt2(arguments).out;
    };
    CHECK(in_mode("speculative") == in_mode("baseline"));

    write_file(folder / "ids", "1 2 3\n4 4096\n");
    const Run refused = train(folder, target + " --ids " + (folder / "ids"));
    CHECK(refused.code == 2);
    CHECK(refused.err.find("line 2 names a token outside the vocabulary of 4096") != std::string::npos);
}

#include <doctest/doctest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/small_checkpoint.h"
#include "tests/tokenizer_data.h"

using Ids = std::vector<int32_t>;

static Ids ids_of_line(const std::string& line) {
    std::istringstream words(line);
    Ids ids;
    for (int32_t id; words >> id;) ids.push_back(id);
    return ids;
}

static std::string bytes_of_hex(const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) bytes += char(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
}

// Golden data by scripts/golden_tokenizer.py.
static void check_golden(const Tokenizer& tokenizer, const std::string& ids_path) {
    std::ifstream strings("tests/golden/tokenizer_strings.txt"), golden(ids_path);
    int n = 0;
    for (std::string hex, line; std::getline(strings, hex) && std::getline(golden, line); ++n) {
        const std::string text = bytes_of_hex(hex);
        const Ids expected = ids_of_line(line), found = tokenizer.encode(text);
        CHECK_MESSAGE(found == expected, "string ", n, ": ", hex);
        CHECK_MESSAGE(tokenizer.decode(found) == text, "string ", n, ": ", hex);
    }
    CHECK(n == 5000);
}

TEST_CASE("tokenizer: 5000 nasty strings get the ids that Hugging Face gives them, demo vocabulary") {
    check_golden(demo_tokenizer(), "tests/golden/tokenizer_ids_demo.txt");
}

TEST_CASE("tokenizer: 5000 nasty strings get the ids that Hugging Face gives them, GPT-2's vocabulary") {
    const std::string folder = gpt2_folder();
    if (folder.empty()) return;
    check_golden(Tokenizer::from_folder(folder), "tests/golden/tokenizer_ids_gpt2.txt");
}

TEST_CASE("tokenizer: third-party vectors of GPT-2's tokenizer hold") {
    const std::string folder = gpt2_folder();
    if (folder.empty()) return;
    const Tokenizer tokenizer = Tokenizer::from_folder(folder);
    CHECK(tokenizer.n_vocab() == 50257);
    CHECK(tokenizer.eot() == 50256);

    const std::string vectors = folder + "/tokenizer_vectors/", mark = "\n__ggml_vocab_test__\n";
    std::string cases = read_file(vectors + "llama.cpp.ggml-vocab-gpt-2.gguf.inp");
    std::ifstream golden(vectors + "llama.cpp.ggml-vocab-gpt-2.gguf.out");
    int n = 0;
    for (std::string line; std::getline(golden, line); ++n) {
        const size_t end = cases.find(mark);
        REQUIRE(end != std::string::npos);
        CHECK_MESSAGE(tokenizer.encode(cases.substr(0, end)) == ids_of_line(line), cases.substr(0, end));
        cases.erase(0, end + mark.size());
    }
    CHECK(n == 46);

    std::ifstream lines(vectors + "GPT-3-Encoder.jsonl");
    n = 0;
    for (std::string line; std::getline(lines, line); ++n) {
        const nlohmann::json vector = nlohmann::json::parse(line);
        CHECK_MESSAGE(tokenizer.encode(vector["text"].get<std::string>()) == vector["ids"].get<Ids>(), line);
    }
    CHECK(n == 7);
}

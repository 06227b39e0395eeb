#include "tests/tokenizer_data.h"

#include <cstdlib>
#include <filesystem>

#include "tests/skip.h"

const Tokenizer& demo_tokenizer() {
    static const Tokenizer tokenizer = Tokenizer::from_folder("tests/golden/demo_vocab");
    return tokenizer;
}

std::string gpt2_folder() {
    const char* set = std::getenv("STAGED_DATA");
    const std::string folder = set ? set : "../shared/data";
    if (std::filesystem::exists(folder + "/vocab.json") && std::filesystem::exists(folder + "/merges.txt"))
        return folder;
    skip("no GPT-2 vocabulary in " + folder + " (STAGED_DATA names the folder)");
    return "";
}

// The blob takes the target's tokenizer along; vocabularies that do not fit model or draft are refused.
#include <doctest/doctest.h>

#include <filesystem>

#include "model/blob.h"
#include "model/tokenizer.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "weights_tool/convert.h"

static const std::string kVocab = R"({"a":0,"b":1,"ab":2,"aba":3,"<|endoftext|>":4})";
static const std::string kMerges = "#version: 0.2\na b\nab a\n";

struct Folders : TemporaryFolder {
    ConvertOptions options = {*this / "target", *this / "draft", "", *this / "blob"};
    explicit Folders(int n_vocab) {
        make_small_checkpoint(1, 1, 16, 8, n_vocab, 1).write(options.target);
        make_small_checkpoint(1, 1, 16, 8, n_vocab, 2).write(options.draft);
    }
    void add_tokenizer(const std::string& folder, const std::string& vocab, const std::string& merges) {
        write_file(folder + "/vocab.json", vocab);
        if (!merges.empty()) write_file(folder + "/merges.txt", merges);
    }
    void refuses(const std::string& what) {
        const std::string message = error_of([&] { convert(options); });
        INFO(message);
        CHECK(message.starts_with("[3] "));
        CHECK(message.find(what) != std::string::npos);
        CHECK(!std::filesystem::exists(options.output));
    }
};

TEST_CASE("the target's tokenizer is in the blob; a model may have more rows than it has tokens") {
    for (const int n_vocab : {5, 16}) {
        Folders folders(n_vocab);
        folders.add_tokenizer(folders.options.target, kVocab, kMerges);
        CHECK(convert(folders.options) == "");
        const Blob blob = Blob::open(folders.options.output);
        CHECK_NOTHROW(blob.verify());
        const Tokenizer tokenizer = Tokenizer::from_section(blob.tokenizer());
        CHECK(tokenizer == Tokenizer::from_folder(folders.options.target));
        CHECK(tokenizer.encode("ababa") == std::vector<int32_t>{2, 3});
    }
}

TEST_CASE("a target without a tokenizer makes a blob for token ids, and convert says so") {
    Folders folders(5);
    CHECK(convert(folders.options).find("target has no tokenizer") != std::string::npos);
    CHECK(Blob::open(folders.options.output).tokenizer().empty());
}

TEST_CASE("a vocabulary without merges, or larger than the model's, is refused") {
    Folders folders(4);
    folders.add_tokenizer(folders.options.target, kVocab, "");
    folders.refuses("merges.txt");
    folders.add_tokenizer(folders.options.target, kVocab, kMerges);
    folders.refuses("target has a tokenizer of 5 tokens, but its config.json has a vocab_size of 4");
}

TEST_CASE("a draft with another tokenizer of the same size is refused") {
    Folders folders(5);
    folders.add_tokenizer(folders.options.target, kVocab, kMerges);
    folders.add_tokenizer(folders.options.draft, R"({"a":1,"b":0,"ab":2,"aba":3,"<|endoftext|>":4})", kMerges);
    folders.refuses("draft has another tokenizer than the target");
    folders.add_tokenizer(folders.options.draft, kVocab, kMerges);
    CHECK(convert(folders.options) == "");
}

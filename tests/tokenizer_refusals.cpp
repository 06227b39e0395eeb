#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "model/error.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "tests/tokenizer_data.h"

using nlohmann::json;

// The sentence that refuses the folder, "" if it is taken.
static std::string refusal(const std::string& folder) {
    const std::string error = error_of([&] { Tokenizer::from_folder(folder); });
    CHECK((error.empty() || error.starts_with("[3] ")));
    return error;
}

// A vocabulary of a few letters; tokens spelled in the byte alphabet.
static const json kVocabulary = {{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"abc", 4}, {"<|endoftext|>", 5}};
static const std::string kMerges = "#version: 0.2\na b\nab c\n";

static std::string refusal(const json& vocabulary, const std::string& merges) {
    const TemporaryFolder folder;
    write_file(folder / "vocab.json", vocabulary.dump());
    write_file(folder / "merges.txt", merges);
    return refusal(folder.path);
}

static json changed(const std::string& key, const json& value) {
    json vocabulary = kVocabulary;
    vocabulary[key] = value;
    return vocabulary;
}

static void check_says(const std::string& sentence, const std::string& part) {
    CHECK_MESSAGE(sentence.find(part) != std::string::npos, "\"", sentence, "\" should say \"", part, "\"");
}

TEST_CASE("tokenizer: folders without a whole tokenizer are refused") {
    const TemporaryFolder folder;
    CHECK(!Tokenizer::folder_has_tokenizer(folder.path));
    check_says(refusal(folder.path), "has no tokenizer");
    check_says(refusal(folder.path + "/nowhere"), "is not a folder");
    write_file(folder / "vocab.json", kVocabulary.dump());
    CHECK(Tokenizer::folder_has_tokenizer(folder.path));
    check_says(refusal(folder.path), "has no merges.txt");
    write_file(folder / "merges.txt", kMerges);
    CHECK(refusal(folder.path) == "");
}

TEST_CASE("tokenizer: damaged vocabularies are refused") {
    CHECK(refusal(kVocabulary, kMerges) == "");
    check_says(refusal(json::array(), kMerges), "is not a JSON object");
    check_says(refusal(json::object(), kMerges), "holds no vocabulary");
    check_says(refusal(changed("c", 3), kMerges), "to more than one token");
    check_says(refusal(changed("d", 9), kMerges), "has a vocabulary with a gap");
    check_says(refusal(changed("d", -1), kMerges), "the id -1");
    check_says(refusal(changed("d", "6"), kMerges), "the id \"6\"");
    check_says(refusal(changed("d", 6.5), kMerges), "the id 6.5");
    check_says(refusal(changed("d", uint64_t(1) << 32), kMerges), "the id 4294967296");
    check_says(refusal(changed("a b", 6), kMerges), "not spelled in GPT-2's byte alphabet");
    check_says(refusal(changed("\u65e5", 6), kMerges), "not spelled in GPT-2's byte alphabet");
    check_says(refusal(changed("\u0144", 6), kMerges), "not spelled in GPT-2's byte alphabet");
    check_says(refusal(changed("", 6), kMerges), "not spelled in GPT-2's byte alphabet");

    const TemporaryFolder folder;
    write_file(folder / "vocab.json", kVocabulary.dump().substr(0, 20));
    write_file(folder / "merges.txt", kMerges);
    check_says(refusal(folder.path), "is not a JSON object");
    write_file(folder / "vocab.json", "");
    check_says(refusal(folder.path), "vocab.json");
}

TEST_CASE("tokenizer: merges that do not fit the vocabulary are refused with their line") {
    check_says(refusal(kVocabulary, "#version: 0.2\na b\na x\n"), "line 3 merges \"a\" and \"x\"");
    check_says(refusal(kVocabulary, "a b\nb c\n"), "line 2 merges \"b\" and \"c\"");
    check_says(refusal(kVocabulary, "a b\na b c\n"), "line 2 is \"a b c\"");
    check_says(refusal(kVocabulary, "ab\n"), "line 1 is \"ab\"");
    check_says(refusal(kVocabulary, " b\n"), "line 1 merges \"\"");
    check_says(refusal(kVocabulary, "a b\n\xff\xfe b\n"), "line 2 merges");
    check_says(refusal(kVocabulary, "a b\na b\n"), "line 2 repeats");
    CHECK(refusal(kVocabulary, "#version: 0.2\r\na b\r\nab c") == "");
}

TEST_CASE("tokenizer: added tokens are decoded, but are ordinary text to encode") {
    const TemporaryFolder folder;
    write_file(folder / "vocab.json", kVocabulary.dump());
    write_file(folder / "merges.txt", kMerges);
    write_file(folder / "added_tokens.json", R"({"<|endoftext|>": 5, "[c a]": 6})");
    const Tokenizer tokenizer = Tokenizer::from_folder(folder.path);
    CHECK(tokenizer.n_vocab() == 7);
    CHECK(tokenizer.eot() == 5);
    CHECK(tokenizer.token_bytes(6) == "[c a]");
    CHECK_THROWS_AS(tokenizer.encode("[c a]"), Error);  // no token for "["
    write_file(folder / "added_tokens.json", R"({"[c a]": 4})");
    check_says(refusal(folder.path), "gives the id 4 to more than one token");
}

TEST_CASE("tokenizer: a byte without a token is an error that names it") {
    const TemporaryFolder folder;
    write_file(folder / "vocab.json", kVocabulary.dump());
    write_file(folder / "merges.txt", kMerges);
    const Tokenizer tokenizer = Tokenizer::from_folder(folder.path);
    CHECK(tokenizer.encode("abcab<|endoftext|>a") == std::vector<int32_t>{4, 3, 5, 0});
    const std::string sentence = error_of([&] { tokenizer.encode("<|endoftext|>abc\xff"); });
    check_says(sentence, "[2] the vocabulary has no token for byte 255, which is at offset 16");
}

static json tokenizer_json() {
    json merges = json::array();
    const std::string text = read_file("tests/golden/demo_vocab/merges.txt");
    for (size_t at = text.find('\n') + 1; at < text.size();) {
        const size_t end = text.find('\n', at);
        merges.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return {{"version", "1.0"},
            {"normalizer", nullptr},
            {"pre_tokenizer",
             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
            {"post_processor", {{"type", "ByteLevel"}, {"add_prefix_space", true}}},
            {"added_tokens", {{{"id", 4095}, {"content", "<|endoftext|>"}, {"special", true}}}},
            {"model",
             {{"type", "BPE"},
              {"dropout", nullptr},
              {"unk_token", nullptr},
              {"continuing_subword_prefix", ""},
              {"end_of_word_suffix", nullptr},
              {"byte_fallback", false},
              {"vocab", json::parse(read_file("tests/golden/demo_vocab/vocab.json"))},
              {"merges", merges}}}};
}

TEST_CASE(
    "tokenizer: tokenizer.json gives the same tokenizer as vocab.json and merges.txt, merges spelled either way") {
    const TemporaryFolder folder;
    json root = tokenizer_json();
    write_file(folder / "tokenizer.json", root.dump());
    CHECK(Tokenizer::folder_has_tokenizer(folder.path));
    CHECK(Tokenizer::from_folder(folder.path) == demo_tokenizer());
    write_file(folder / "vocab.json", "{}");  // without its merges.txt: passed over
    CHECK(Tokenizer::from_folder(folder.path) == demo_tokenizer());
    for (json& merge : root["model"]["merges"]) {
        const std::string both = merge;
        merge = {both.substr(0, both.find(' ')), both.substr(both.find(' ') + 1)};
    }
    write_file(folder / "tokenizer.json", root.dump());
    CHECK(Tokenizer::from_folder(folder.path) == demo_tokenizer());
}

TEST_CASE("tokenizer: a tokenizer.json of another kind is refused") {
    const auto refused = [](const char* pointer, const json& value) {
        const TemporaryFolder folder;
        json root = tokenizer_json();
        root[json::json_pointer(pointer)] = value;
        write_file(folder / "tokenizer.json", root.dump());
        return refusal(folder.path);
    };
    check_says(refused("/model/type", "Unigram"), "has a model of type \"Unigram\"");
    check_says(refused("/pre_tokenizer/type", "Whitespace"), "has a pre-tokenizer of type \"Whitespace\"");
    check_says(refused("/pre_tokenizer", nullptr), "has a pre-tokenizer of type null");
    check_says(refused("/pre_tokenizer/add_prefix_space", true), "adds a space");
    check_says(refused("/pre_tokenizer/use_regex", false), "pattern");
    check_says(refused("/normalizer", {{"type", "NFC"}}), "has a normalizer");
    check_says(refused("/post_processor/type", "TemplateProcessing"), "has a post-processor of type");
    check_says(refused("/model/dropout", 0.1), "sets \"dropout\"");
    check_says(refused("/model/ignore_merges", true), "sets \"ignore_merges\"");
    check_says(refused("/model/vocab", json::array()), "holds no vocabulary");
    check_says(refused("/model/merges", "a b"), "has no list of merges");
    check_says(refused("/model/merges/3", 7), "merge 3 is not a pair");
    check_says(refused("/model/merges/3", json::array({"a", "\u0100\u0100"})), "merge 3 merges \"a\"");
    check_says(refused("/added_tokens/0/id", 17), "the id 17 to more than one token");
    check_says(refused("/added_tokens/0/content", 17), "an added token without text");
    check_says(refused("/model", 17), "has a model of type null");
}

// Loads or throws Error(kExitBadModel); true if it loaded.
static bool loads(std::span<const uint8_t> section) {
    try {
        const Tokenizer tokenizer = Tokenizer::from_section(section);
        tokenizer.decode(tokenizer.encode("def f(x):\n    return x  # <|endoftext|>\n"));
        return true;
    } catch (const Error& e) {
        REQUIRE((e.code == kExitBadModel || e.code == kExitUsage));  // usage: a byte has lost its token
        return e.code == kExitUsage;
    }
}

TEST_CASE("tokenizer: damaged sections are refused") {
    const std::vector<uint8_t> sound = demo_tokenizer().to_section();
    REQUIRE(loads(sound));
    for (const size_t size :
         {size_t(0), size_t(4), size_t(11), size_t(12), size_t(4000), sound.size() / 2, sound.size() - 1})
        CHECK(!loads(std::span(sound).first(size)));
    std::vector<uint8_t> longer = sound;
    longer.push_back(0);
    CHECK(!loads(longer));
    const auto with_word = [&](size_t word, uint32_t value) {
        std::vector<uint8_t> section = sound;
        std::memcpy(section.data() + 4 * word, &value, 4);
        return loads(section);
    };
    const uint32_t n_vocab = uint32_t(demo_tokenizer().n_vocab());
    for (const uint32_t value : {0u, 1u, n_vocab - 1, n_vocab + 1, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
        CHECK(!with_word(0, value));                                                   // n_vocab
        CHECK(!with_word(1, value));                                                   // n_merges
        CHECK(with_word(2, value) == (value == n_vocab - 1 || value == 0xffffffffu));  // <|endoftext|>
    }
    CHECK(!with_word(3, 0xffffffffu));            // a token that ends behind all others
    CHECK(!with_word(3 + n_vocab - 1, 0));        // the last ends before the one before it
    CHECK(!with_word(3 + n_vocab, 0xffffffffu));  // the first merge's left
    CHECK(!with_word(3 + n_vocab, n_vocab));
    CHECK(!with_word(3 + n_vocab + 2, 0));  // its union
}

TEST_CASE("tokenizer: 20,000 random changes to a section never crash") {
    std::vector<uint8_t> section = demo_tokenizer().to_section();
    const std::vector<uint8_t> sound = section;
    const size_t head = 12 + 4 * size_t(demo_tokenizer().n_vocab());
    std::mt19937 random(5);
    int n_loaded = 0, n_refused = 0;
    for (int i = 0; i < 20000; ++i) {
        size_t changed[3];
        const int n = 1 + int(random() % 3);
        for (int j = 0; j < n; ++j) {
            const size_t within = random() % 4 == 0 ? 12 : random() % 2 ? head : section.size();
            changed[j] = random() % within;
            section[changed[j]] = random() % 2 ? uint8_t(random()) : uint8_t(section[changed[j]] ^ 1 << random() % 8);
        }
        const size_t size = random() % 16 ? section.size() : random() % section.size();
        ++(loads(std::span(section).first(size)) ? n_loaded : n_refused);
        for (int j = 0; j < n; ++j) section[changed[j]] = sound[changed[j]];
    }
    CHECK(section == sound);
    CHECK(n_loaded > 0);  // a byte of a token that is no part of another
    CHECK(n_refused > 10000);
}

// ---- weights_tool tokenize ----

// Runs the tool; returns its exit status, what it wrote in `output`.
static int run_tokenize(const TemporaryFolder& folder, const std::string& arguments, const std::string& input,
                        std::string& output, std::string& message) {
    const char* build = std::getenv("BUILD");
    write_file(folder / "input", input);
    const std::string command = std::string(build ? build : "build") + "/weights_tool tokenize " + arguments + " <" +
                                folder.path + "/input >" + folder.path + "/output 2>" + folder.path + "/message";
    const int status = std::system(command.c_str());
    output = read_file(folder / "output");
    message = read_file(folder / "message");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_CASE("weights_tool tokenize: bytes to ids on one line, and back") {
    const TemporaryFolder folder;
    const std::string vocabulary = "--vocab tests/golden/demo_vocab";
    std::string text, ids, back, message;
    for (int i = 0; i < 3000; ++i) text += char(i * 37 >> 3);
    text += "<|endoftext|>\n\n";
    CHECK(run_tokenize(folder, vocabulary, text, ids, message) == kExitDone);
    CHECK(ids.find('\n') == ids.size() - 1);
    CHECK(run_tokenize(folder, vocabulary + " --decode", ids, back, message) == kExitDone);
    CHECK(back == text);
    CHECK(run_tokenize(folder, vocabulary, "", ids, message) == kExitDone);
    CHECK(ids == "\n");
    CHECK(run_tokenize(folder, vocabulary + " --decode", "\n", back, message) == kExitDone);
    CHECK(back == "");
}

TEST_CASE("weights_tool tokenize: what is no id of the vocabulary is named with its place") {
    const TemporaryFolder folder;
    std::string output, message;
    const auto check_refused = [&](const std::string& input, const std::string& says) {
        CHECK(run_tokenize(folder, "--vocab tests/golden/demo_vocab --decode", input, output, message) == kExitUsage);
        CHECK(output == "");
        check_says(message, says);
    };
    check_refused("1 2 x3 4", "id 3 (byte 4) is \"x3\", not a number");
    check_refused("1 2,3", "id 2 (byte 2) is \"2,3\"");
    check_refused("1.5", "is \"1.5\"");
    check_refused("1 4096", "id 2 (byte 2) is 4096, but the vocabulary ends at 4095");
    check_refused("-1", "is -1, but");
    check_refused("99999999999999999999", "is 99999999999999999999, but");
    check_refused(std::string("5\0", 2), "not a number");
    CHECK(run_tokenize(folder, "", "", output, message) == kExitUsage);
    CHECK(run_tokenize(folder, "--vocab tests", "", output, message) == kExitBadModel);
    CHECK(run_tokenize(folder, "--vocab tests/golden/demo_vocab --model x", "", output, message) == kExitUsage);
}

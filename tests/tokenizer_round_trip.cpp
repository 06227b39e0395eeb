#include <doctest/doctest.h>

#include <chrono>
#include <random>
#include <thread>

#include "tests/tokenizer_data.h"

static std::string utf8(uint32_t c) {
    if (c < 0x80) return {char(c)};
    if (c < 0x800) return {char(0xc0 | c >> 6), char(0x80 | (c & 63))};
    if (c < 0x10000) return {char(0xe0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
    return {char(0xf0 | c >> 18), char(0x80 | (c >> 12 & 63)), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
}

// A few bytes of one of the kinds that texts and broken texts are made of.
static std::string random_part(std::mt19937& random) {
    const auto below = [&](uint32_t n) { return uint32_t(random() % n); };
    static const std::vector<std::string> fixed = {"<|endoftext|>",
                                                   "<|endoftext|",
                                                   "'s",
                                                   "'ll",
                                                   " the",
                                                   "\r\n",
                                                   "    ",
                                                   std::string(1, '\0'),
                                                   "\xe1\xa0\x8e",
                                                   "\xed\xa0\x80",      // a surrogate
                                                   "\xc0\x80",          // overlong
                                                   "\xf4\x90\x80\x80",  // beyond U+10FFFF
                                                   "\xf0\x9f\x91",      // truncated
                                                   "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9"};
    static const uint32_t spaces[] = {9,    10,     11,     12,     13,     32,     0x85,
                                      0xa0, 0x1680, 0x2003, 0x2028, 0x202f, 0x205f, 0x3000};
    switch (below(8)) {
        case 0:
            return fixed[below(uint32_t(fixed.size()))];
        case 1:
            return utf8(spaces[below(14)]);
        case 2:
            return {char(below(256))};
        case 3:
            return utf8(0x300 + below(0x70));  // combining marks
        case 4:
            return utf8(0x1f300 + below(0x400));  // emoji
        case 5: {
            const uint32_t c = below(0x110000);
            return utf8(c >= 0xd800 && c < 0xe000 ? 'x' : c);
        }
        default:
            return {char(32 + below(95))};
    }
}

static std::string random_text(std::mt19937& random) {
    std::string text;
    for (int n = int(random() % 60); n > 0; --n) text += random_part(random);
    return text;
}

TEST_CASE("tokenizer: 10,000 random byte strings decode to themselves") {
    std::mt19937 random(1);
    for (int i = 0; i < 10000; ++i) {
        const std::string text = random_text(random);
        const std::vector<int32_t> ids = demo_tokenizer().encode(text);
        REQUIRE(demo_tokenizer().decode(ids) == text);
        for (const int32_t id : ids) REQUIRE((id >= 0 && id < demo_tokenizer().n_vocab()));
    }
}

TEST_CASE("tokenizer: every byte alone is one token") {
    for (int byte = 0; byte < 256; ++byte) {
        const std::string text = {char(byte)};
        const std::vector<int32_t> ids = demo_tokenizer().encode(text);
        REQUIRE(ids.size() == 1);
        CHECK(demo_tokenizer().token_bytes(ids[0]) == text);
    }
}

TEST_CASE("tokenizer: a run of invalid bytes is a pre-token of its own between texts that stand alone") {
    const Tokenizer& t = demo_tokenizer();
    std::mt19937 random(2);
    for (const std::string invalid : {"\x80", "\xff\xfe", "\xc0\x80", "\xed\xa0\x80", "\xf0\x9f\x91", "\xe1\xa0\xe1"})
        for (const std::string before : {"", "def f", "x  ", "'l", " "})
            for (const std::string after : {"", " return", "  x", "l"}) {
                std::vector<int32_t> expected = t.encode(before);
                for (const std::string& part : {invalid, after})
                    for (const int32_t id : t.encode(part)) expected.push_back(id);
                CHECK(t.encode(before + invalid + after) == expected);
            }
}

TEST_CASE("tokenizer: the special token is found inside text and nothing merges across it") {
    const Tokenizer& t = demo_tokenizer();
    CHECK(t.token_bytes(t.eot()) == "<|endoftext|>");
    const auto with_end = [&](std::vector<int32_t> ids, const std::string& more) {
        ids.push_back(t.eot());
        for (const int32_t id : t.encode(more)) ids.push_back(id);
        return ids;
    };
    CHECK(t.encode("<|endoftext|>") == std::vector<int32_t>{t.eot()});
    CHECK(t.encode("a  <|endoftext|>  b") == with_end(t.encode("a  "), "  b"));
    CHECK(t.encode("<<|endoftext|>>") == with_end(t.encode("<"), ">"));
}

TEST_CASE("tokenizer: ids outside the vocabulary stand for no bytes") {
    const Tokenizer& t = demo_tokenizer();
    CHECK(t.token_bytes(-1).empty());
    CHECK(t.token_bytes(t.n_vocab()).empty());
    CHECK(t.decode(std::vector<int32_t>{t.encode("a")[0], t.n_vocab() + 7, INT32_MIN, INT32_MAX}) == "a");
}

TEST_CASE("tokenizer: megabytes of one thing are encoded in time that grows like their length") {
    for (const std::string part :
         {"a", " ", "\n", "\xff", "\xc3\xa9", "= ", "<|endoftext|>", "\xe1\xa0\x8e", "a\x80"}) {
        std::string text;
        while (text.size() < (part == "a" ? 10'000'000 : 1'000'000)) text += part;
        const auto start = std::chrono::steady_clock::now();
        CHECK(demo_tokenizer().decode(demo_tokenizer().encode(text)) == text);
        // At most 3 s; a quadratic merge takes hours.
        CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
    }
}

TEST_CASE("tokenizer: threads that encode at once get what one gets") {
    std::mt19937 random(3);
    std::vector<std::string> texts;
    std::vector<std::vector<int32_t>> expected;
    for (int i = 0; i < 500; ++i) {
        texts.push_back(random_text(random));
        expected.push_back(demo_tokenizer().encode(texts.back()));
    }
    int differing[4] = {};
    std::vector<std::thread> threads;
    for (int& n : differing)
        threads.emplace_back([&] {
            for (size_t i = 0; i < texts.size(); ++i) n += demo_tokenizer().encode(texts[i]) != expected[i];
        });
    for (std::thread& thread : threads) thread.join();
    for (const int n : differing) CHECK(n == 0);
}

TEST_CASE("tokenizer: a section holds the whole tokenizer") {
    const std::vector<uint8_t> section = demo_tokenizer().to_section();
    const Tokenizer loaded = Tokenizer::from_section(section);
    CHECK(loaded == demo_tokenizer());
    CHECK(loaded.to_section() == section);
    std::mt19937 random(4);
    for (int i = 0; i < 500; ++i) {
        const std::string text = random_text(random);
        REQUIRE(loaded.encode(text) == demo_tokenizer().encode(text));
    }
}

#include "model/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <bit>
#include <climits>
#include <cstring>
#include <memory>
#include <queue>

#include "model/config.h"
#include "model/error.h"

constexpr std::string_view kEndOfText = "<|endoftext|>";

// ---- Pre-tokens ----

namespace {

constexpr char kPattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// PCRE2's \s still holds U+180E, which Unicode took from its white space in 2013. Matching sees U+200B, a format
// character just as long, in its place.
constexpr std::string_view kMongolianVowelSeparator = "\xe1\xa0\x8e", kZeroWidthSpace = "\xe2\x80\x8b";

// The pattern matches at every character, so the matches follow each other without gaps: it is anchored.
const pcre2_code* compiled_pattern() {
    static const std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code = [] {
        int error = 0;
        PCRE2_SIZE at = 0;
        pcre2_code* compiled = pcre2_compile(PCRE2_SPTR(kPattern), PCRE2_ZERO_TERMINATED,
                                             PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &at, nullptr);
        if (!compiled) throw Error(kExitFailed, "PCRE2 does not take GPT-2's pattern (built without Unicode?)");
        pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // where that is refused, matching interprets
        return std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)>(compiled, pcre2_code_free);
    }();
    return code.get();
}

// Length of the UTF-8 character that `text` begins with; 0: its first byte begins none (truncated, overlong, a
// surrogate, beyond U+10FFFF).
size_t character_length(std::string_view text) {
    const uint8_t lead = uint8_t(text[0]);
    if (lead < 0x80) return 1;
    const size_t length = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (!length || text.size() < length) return 0;
    for (size_t i = 1; i < length; ++i)
        if ((uint8_t(text[i]) & 0xc0) != 0x80) return 0;
    const uint8_t second = uint8_t(text[1]);
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second >= 0xa0)) return 0;
    if ((lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second >= 0x90)) return 0;
    return length;
}

// Length of the longest prefix that is UTF-8 (`valid`), or that is not.
size_t run_length(std::string_view text, bool valid) {
    size_t i = 0;
    while (i < text.size()) {
        const size_t length = character_length(text.substr(i));
        if ((length > 0) != valid) break;
        i += std::max<size_t>(length, 1);
    }
    return i;
}

struct Symbol {
    int32_t id, previous, next;  // neighbours by index, -1: none; id -1: merged into its left neighbour
};
struct Candidate {  // a pair of neighbours that the merges know
    int32_t rank, left, merged;
    // std::push_heap keeps the largest in front: the lowest rank, then the leftmost.
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
};

}  // namespace

struct Tokenizer::Scratch {
    std::string_view text;  // all that is encoded, to tell where in it a byte is
    std::vector<int32_t> ids;
    std::string matched;  // a piece with U+180E replaced
    std::vector<Symbol> symbols;
    std::vector<Candidate> candidates;
    std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match = {pcre2_match_data_create(1, nullptr),
                                                                                 pcre2_match_data_free};
    std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context = {
        pcre2_match_context_create(nullptr), pcre2_match_context_free};
};

// ---- Encode and decode ----

std::vector<int32_t> Tokenizer::encode(std::string_view bytes) const {
    if (bytes.size() > INT32_MAX)
        throw Error(kExitUsage,
                    "a text of " + std::to_string(bytes.size()) + " bytes is too long; split it below 2 GiB");
    Scratch scratch;
    if (!scratch.match || !scratch.context) throw std::bad_alloc();
    pcre2_set_match_limit(scratch.context.get(), UINT32_MAX);  // a piece may be one long match
    scratch.text = bytes;
    scratch.ids.reserve(bytes.size() / 3);
    for (;;) {
        const size_t special = eot_ < 0 ? bytes.npos : bytes.find(kEndOfText);
        encode_piece(bytes.substr(0, special), scratch);
        if (special == bytes.npos) return std::move(scratch.ids);
        scratch.ids.push_back(eot_);
        bytes.remove_prefix(special + kEndOfText.size());
    }
}

void Tokenizer::encode_piece(std::string_view piece, Scratch& scratch) const {
    const pcre2_code* pattern = compiled_pattern();
    while (!piece.empty()) {
        std::string_view valid = piece.substr(0, run_length(piece, true));
        piece.remove_prefix(valid.size());
        const char* subject = valid.data();
        if (valid.find(kMongolianVowelSeparator) != valid.npos) {
            scratch.matched = valid;
            for (size_t at = 0; (at = scratch.matched.find(kMongolianVowelSeparator, at)) != std::string::npos;)
                scratch.matched.replace(at, kZeroWidthSpace.size(), kZeroWidthSpace);
            subject = scratch.matched.data();
        }
        for (size_t start = 0; start < valid.size();) {
            const int matched = pcre2_match(pattern, PCRE2_SPTR(subject), valid.size(), start, PCRE2_NO_UTF_CHECK,
                                            scratch.match.get(), scratch.context.get());
            if (matched < 0) throw Error(kExitFailed, "PCRE2 failed to match (error " + std::to_string(matched) + ")");
            const size_t end = pcre2_get_ovector_pointer(scratch.match.get())[1];
            encode_pretoken(valid.substr(start, end - start), scratch);
            start = end;
        }
        const std::string_view invalid = piece.substr(0, run_length(piece, false));
        if (!invalid.empty()) encode_pretoken(invalid, scratch);
        piece.remove_prefix(invalid.size());
    }
}

// n log n in the length of the pre-token: a heap of candidates over a linked list of symbols. A candidate whose symbols
// have merged with others since it was found no longer gives the same token and is passed over.
void Tokenizer::encode_pretoken(std::string_view pretoken, Scratch& scratch) const {
    std::vector<Symbol>& symbols = scratch.symbols;
    std::vector<Candidate>& candidates = scratch.candidates;
    symbols.clear();
    candidates.clear();
    const auto candidate = [&](int32_t left) -> Candidate {
        const Pair& pair = pairs_[pair_slot(symbols[left].id, symbols[symbols[left].next].id)];
        return {pair.rank, left, pair.merged};
    };
    const int32_t n = int32_t(pretoken.size());
    for (int32_t i = 0; i < n; ++i) {
        const int32_t id = byte_id_[uint8_t(pretoken[i])];
        if (id < 0)
            throw Error(kExitUsage, "the vocabulary has no token for byte " + std::to_string(uint8_t(pretoken[i])) +
                                        ", which is at offset " + std::to_string(&pretoken[i] - scratch.text.data()) +
                                        " of the text");
        symbols.push_back({id, i - 1, i + 1 < n ? i + 1 : -1});
    }
    for (int32_t i = 0; i + 1 < n; ++i)
        if (const Candidate found = candidate(i); found.rank >= 0) candidates.push_back(found);
    std::make_heap(candidates.begin(), candidates.end());
    const auto consider = [&](int32_t left) {
        if (left < 0 || symbols[left].next < 0) return;
        if (const Candidate found = candidate(left); found.rank >= 0) {
            candidates.push_back(found);
            std::push_heap(candidates.begin(), candidates.end());
        }
    };
    while (!candidates.empty()) {
        std::pop_heap(candidates.begin(), candidates.end());
        const Candidate best = candidates.back();
        candidates.pop_back();
        Symbol& left = symbols[best.left];
        if (left.id < 0 || left.next < 0 || candidate(best.left).merged != best.merged) continue;
        Symbol& right = symbols[left.next];
        left.id = best.merged;
        left.next = right.next;
        right.id = -1;
        if (left.next >= 0) symbols[left.next].previous = best.left;
        consider(left.previous);
        consider(best.left);
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].next) scratch.ids.push_back(symbols[i].id);
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
    std::string text;
    for (const int32_t id : ids) text += token_bytes(id);
    return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
    if (id < 0 || id >= n_vocab()) return {};
    const uint32_t begin = id ? token_end_[id - 1] : 0;
    return std::string_view(bytes_).substr(begin, token_end_[id] - begin);
}

bool Tokenizer::operator==(const Tokenizer& other) const {
    return bytes_ == other.bytes_ && token_end_ == other.token_end_ && merges_ == other.merges_ && eot_ == other.eot_;
}

// ---- Tables ----

void Tokenizer::build_tables() {
    byte_id_.fill(-1);
    for (int32_t id = n_vocab() - 1; id >= 0; --id)  // of equal tokens the first
        if (const std::string_view token = token_bytes(id); token.size() == 1) byte_id_[uint8_t(token[0])] = id;
    pairs_.assign(std::bit_ceil(2 * merges_.size() + 1), {});
    for (size_t rank = 0; rank < merges_.size(); ++rank) {
        const auto [left, right, merged] = merges_[rank];
        Pair& pair = pairs_[pair_slot(left, right)];
        if (pair.rank < 0) pair = {left, right, int32_t(rank), merged};
    }
}

// Where the pair stands in pairs_, or the empty slot where it would.
uint64_t Tokenizer::pair_slot(int32_t left, int32_t right) const {
    const uint64_t mask = pairs_.size() - 1;
    const uint64_t hash = (uint64_t(uint32_t(left)) << 32 | uint32_t(right)) * 0x9e3779b97f4a7c15;
    uint64_t slot = (hash >> 32) & mask;
    while (pairs_[slot].rank >= 0 && (pairs_[slot].left != left || pairs_[slot].right != right))
        slot = (slot + 1) & mask;
    return slot;
}

// ---- Section ----

std::vector<uint8_t> Tokenizer::to_section() const {
    std::vector<uint32_t> words = {uint32_t(n_vocab()), uint32_t(merges_.size()), uint32_t(eot_)};
    words.insert(words.end(), token_end_.begin(), token_end_.end());
    for (const auto& [left, right, merged] : merges_)
        words.insert(words.end(), {uint32_t(left), uint32_t(right), uint32_t(merged)});
    std::vector<uint8_t> section(4 * words.size() + bytes_.size());
    std::memcpy(section.data(), words.data(), 4 * words.size());
    std::memcpy(section.data() + 4 * words.size(), bytes_.data(), bytes_.size());
    return section;
}

Tokenizer Tokenizer::from_section(std::span<const uint8_t> section) {
    const auto check = [](bool sound, const std::string& found) {
        if (!sound) throw Error(kExitBadModel, "the tokenizer section " + found + "; convert the model again");
    };
    const auto word = [&](uint64_t i) {
        uint32_t value;
        std::memcpy(&value, section.data() + 4 * i, 4);
        return value;
    };
    check(section.size() >= 12, "is too short for its header");
    const uint32_t n_vocab = word(0), n_merges = word(1);
    check(n_vocab >= 1 && n_vocab <= kMaxVocab, "claims a vocabulary of " + std::to_string(n_vocab) + " tokens");
    const uint64_t n_words = 3 + uint64_t(n_vocab) + 3 * uint64_t(n_merges);  // below 2^34
    check(section.size() / 4 >= n_words, "is too short for its tables");

    Tokenizer tokenizer;
    tokenizer.token_end_.resize(n_vocab);
    std::memcpy(tokenizer.token_end_.data(), section.data() + 12, 4 * uint64_t(n_vocab));
    check(std::is_sorted(tokenizer.token_end_.begin(), tokenizer.token_end_.end()),
          "holds a token that ends before it begins");
    check(section.size() - 4 * n_words == tokenizer.token_end_.back(), "is not as long as its tokens are");
    tokenizer.bytes_.assign(reinterpret_cast<const char*>(section.data() + 4 * n_words), tokenizer.token_end_.back());

    tokenizer.eot_ = int32_t(word(2));
    check(tokenizer.eot_ == -1 || tokenizer.token_bytes(tokenizer.eot_) == kEndOfText,
          "takes token " + std::to_string(word(2)) + " for <|endoftext|>");

    tokenizer.merges_.resize(n_merges);
    if (n_merges > 0)  // else data() may be null
        std::memcpy(tokenizer.merges_.data(), section.data() + 12 + 4 * uint64_t(n_vocab), 12 * uint64_t(n_merges));
    for (size_t rank = 0; rank < n_merges; ++rank) {
        const auto [left, right, merged] = tokenizer.merges_[rank];
        bool sound = true;
        for (const int32_t id : {left, right, merged}) sound &= id >= 0 && uint32_t(id) < n_vocab;
        if (sound) {
            const std::string_view first = tokenizer.token_bytes(left), whole = tokenizer.token_bytes(merged);
            sound = !first.empty() && whole.size() > first.size() && whole.starts_with(first) &&
                    whole.substr(first.size()) == tokenizer.token_bytes(right);
        }
        check(sound, "holds a merge of rank " + std::to_string(rank) + " that does not join its tokens");
    }
    tokenizer.build_tables();
    return tokenizer;
}

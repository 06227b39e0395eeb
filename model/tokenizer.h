// GPT-2's byte-level byte pair encoding: text to token ids and back, equal to Hugging Face's `tokenizers` on valid
// UTF-8 (of the characters that PCRE2's Unicode tables know; a letter younger than they are counts as punctuation).
//
//   encode   1. "<|endoftext|>" in the text becomes its id, if the vocabulary has one; what lies between is encoded
//               piece by piece.
//            2. A piece is cut into pre-tokens by GPT-2's pattern: contractions, letters, digits, other signs, white
//               space. Bytes that are not UTF-8 match nothing: each maximal run of them is a pre-token of its own, and
//               the text before and after it is cut as if it stood alone.
//            3. A pre-token's bytes are its first symbols. Of the adjacent pairs that the merges know, the one of the
//               lowest rank (the leftmost of equals) becomes one symbol, until there is none. The symbols are the
//               tokens.
//   decode   the bytes of the tokens, one after the other. decode(encode(x)) == x for every byte string x.
//
// Other added tokens of a checkpoint ("[PAD]" and the like) are decoded, but their names are ordinary text to encode().
//
// Section of the blob, uint32 little-endian and packed:
//   n_vocab, n_merges, id of <|endoftext|> (2^32 - 1: none)
//   end[n_vocab]                     where token i's bytes end; they begin where those of token i - 1 end
//   (left, right, merged)[n_merges]  ids, in rank order; merged's bytes are left's followed by right's
//   bytes[end[n_vocab - 1]]          of all tokens, by id
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

class Tokenizer {
public:
    // Whether the folder holds vocab.json, merges.txt or tokenizer.json, so that from_folder has something to read.
    static bool folder_has_tokenizer(const std::string& folder);
    // Reads vocab.json and merges.txt (and added_tokens.json, if there), else Hugging Face's tokenizer.json. Throws
    // Error(kExitBadModel) when they are missing, damaged, contradictory or describe another kind of tokenizer.
    static Tokenizer from_folder(const std::string& folder);
    // Throws Error(kExitBadModel) unless every size, offset and id in the section is sound.
    static Tokenizer from_section(std::span<const uint8_t> section);
    std::vector<uint8_t> to_section() const;

    int n_vocab() const { return int(token_end_.size()); }  // ids are 0 to n_vocab() - 1
    int eot() const { return eot_; }                        // id of <|endoftext|>, -1: none

    // Any bytes, NUL included, up to 2 GiB. Throws Error(kExitUsage) on a byte that the vocabulary has no token for
    // (GPT-2's has all 256). Safe to call from several threads.
    std::vector<int32_t> encode(std::string_view bytes) const;
    // An id outside the vocabulary stands for no bytes: models pad theirs beyond the tokenizer's.
    std::string decode(std::span<const int32_t> ids) const;
    std::string_view token_bytes(int32_t id) const;

    bool operator==(const Tokenizer& other) const;  // same tokens, merges and <|endoftext|>

private:
    struct Merge {
        int32_t left, right, merged;
        bool operator==(const Merge&) const = default;
    };
    struct Pair {  // slot of an open-addressed table; rank -1: empty
        int32_t left = -1, right = -1, rank = -1, merged = -1;
    };
    struct Folder;   // what from_folder reads
    struct Scratch;  // what one encode() needs

    void build_tables();  // byte_id_ and pairs_ from the rest, which is sound
    uint64_t pair_slot(int32_t left, int32_t right) const;
    void encode_piece(std::string_view piece, Scratch& scratch) const;
    void encode_pretoken(std::string_view pretoken, Scratch& scratch) const;

    std::string bytes_;                // of all tokens, by id
    std::vector<uint32_t> token_end_;  // (n_vocab) into bytes_
    std::vector<Merge> merges_;        // by rank
    int32_t eot_ = -1;

    std::array<int32_t, 256> byte_id_ = {};  // the token that is this byte, -1: none
    std::vector<Pair> pairs_;                // the merges by their pair; a power of two, at most half of it taken
};

// GPT-2's byte-level byte pair encoding: text to token ids and back, equal to Hugging Face's `tokenizers` on every valid
// UTF-8 string.
//
//   encode   1. "<|endoftext|>" in the text becomes its id, if the vocabulary has one; what lies between is encoded
//               piece by piece.
//            2. A piece is cut into pre-tokens by GPT-2's pattern (contractions, " letters", " digits", " others",
//               white space). Bytes that are not UTF-8 match nothing: each maximal run of them is a pre-token of its
//               own, and the text before and after it is cut as if it stood alone.
//            3. A pre-token's bytes are its first symbols. The adjacent pair that ranks first in the merges (leftmost
//               if it occurs twice) becomes one symbol, until no pair is in the merges. The symbols are the tokens.
//   decode   the bytes of the tokens, one after the other. decode(encode(x)) == x for every byte string x.
//
// Other added tokens of a checkpoint ("[PAD]" and the like) can be decoded, but are ordinary text to encode().
//
// Section of the blob, all integers little-endian uint32 without padding:
//   n_vocab, n_merges, id of <|endoftext|> (kNoEot: none), n_bytes
//   end[n_vocab]                     where token i's bytes end; they begin where those of token i - 1 end
//   (left, right, merged)[n_merges]  ids, in rank order; merged's bytes are left's followed by right's
//   bytes[n_bytes]
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

class Tokenizer {
public:
    // The folder holds vocab.json, merges.txt or tokenizer.json, so that from_folder has something to say about it.
    static bool folder_has_tokenizer(const std::filesystem::path& folder);
    // Reads vocab.json and merges.txt (added_tokens.json too, if there), else Hugging Face's tokenizer.json. Throws
    // Error(kExitBadModel) when they are missing, damaged, contradictory or describe another kind of tokenizer.
    static Tokenizer from_folder(const std::filesystem::path& folder);
    // Throws Error(kExitBadModel) unless every size, offset and id in the section is sound.
    static Tokenizer from_section(std::span<const uint8_t> section);
    std::vector<uint8_t> to_section() const;

    int n_vocab() const { return int(token_end_.size()); }  // ids are 0 .. n_vocab() - 1
    int eot() const { return eot_; }                        // id of <|endoftext|>, -1: none

    // Any bytes, NUL included. Throws Error(kExitUsage) on a byte that the vocabulary has no token for (GPT-2's has all
    // 256). Safe to call from several threads.
    std::vector<int32_t> encode(std::string_view bytes) const;
    // An id outside the vocabulary (a model's may be padded beyond the tokenizer's) stands for no bytes.
    std::string decode(std::span<const int32_t> ids) const;
    std::string_view token_bytes(int32_t id) const;

    bool operator==(const Tokenizer& other) const;  // same tokens, merges and <|endoftext|>

private:
    struct Merge {
        int32_t left, right, merged;
        bool operator==(const Merge&) const = default;
    };
    struct PairSlot {  // of the open-addressed table from pairs to ranks; rank -1: empty
        int32_t left, right, rank, merged;
    };
    class Symbols;

    Tokenizer() = default;
    void index(const std::string& source);  // builds what follows from the tables, and refuses tables that do not fit
    const PairSlot* find_pair(int32_t left, int32_t right) const;  // nullptr: not a merge
    void encode_piece(std::string_view piece, std::vector<int32_t>& ids) const;
    void encode_pretoken(std::string_view pretoken, std::vector<int32_t>& ids) const;

    std::string bytes_;                // of all tokens, by id
    std::vector<uint32_t> token_end_;  // (n_vocab)
    std::vector<Merge> merges_;        // by rank
    int32_t eot_ = -1;

    std::array<int32_t, 256> byte_id_ = {};  // the token that is this byte, -1: none
    std::vector<PairSlot> pairs_;            // (a power of two)
};

// What probably comes next by n-grams alone: the longest suffix of the text met earlier in this context, then the table
// (trigram context, else bigram, else unigram). Stage 2 of the speculation: it guesses what the draft will choose.
#pragma once

#include <cstdint>

#include "model/blob.h"

constexpr int kMaxSuffix = 8;                      // tokens of context that a guess looks at
constexpr int kMaxGuesses = kNgramSuccessors + 1;  // from the context, then from the table

struct Guess {
    int32_t token;
    float probability;
};

// Successors of the context (older, newer) by the table, null without a table. newer is a token of the vocabulary;
// older may be -1 where the text begins.
HD inline const NgramEntry* ngram_entry(const NgramView& table, int32_t older, int32_t newer) {
    if (!table.header) return nullptr;
    if (older >= 0)
        if (const NgramEntry* entry = ngram_find(table, uint32_t(older), uint32_t(newer))) return entry;
    if (table.bigram[newer].token[0] != kNoToken) return &table.bigram[newer];
    return table.unigram;
}

// How often the draft chooses again what followed the last `length` tokens where they stood before: measured on 42
// texts of the demo, T = 1, k = 50 (greedy text repeats itself more: 0.80 to 0.96). Only the order of guesses depends
// on it.
HD inline float suffix_confidence(int length) {
    return length >= 8 ? 0.81f : length >= 5 ? 0.70f : length >= 3 ? 0.62f : 0.47f;
}

// Guesses for the token after `suffix` (its last token last), best first; returns their number. text: the committed
// tokens, searched for the longest earlier occurrence of the suffix of at least two tokens, the latest one of equal
// length.
HD inline int ngram_guess(const NgramView& table, const int32_t* text, int n_text,
                          const int32_t* suffix /* (n_suffix) */, int n_suffix, Guess* guess /* (kMaxGuesses) */) {
    int longest = 1, next = -1;
    const int32_t last = suffix[n_suffix - 1];
    for (int end = n_text - 2; end >= 0 && longest < n_suffix; --end) {
        if (text[end] != last) continue;
        int length = 1;
        while (length < n_suffix && length <= end && text[end - length] == suffix[n_suffix - 1 - length]) ++length;
        if (length > longest) longest = length, next = text[end + 1];
    }
    int n = 0;
    float left = 1;  // probability that the context leaves to the table
    if (next >= 0) {
        guess[n++] = {next, suffix_confidence(longest)};
        left -= guess[0].probability;
    }
    if (const NgramEntry* entry = ngram_entry(table, n_suffix > 1 ? suffix[n_suffix - 2] : -1, last))
        for (int i = 0; i < kNgramSuccessors && entry->token[i] != kNoToken; ++i)
            if (int32_t(entry->token[i]) != next)
                guess[n++] = {int32_t(entry->token[i]), left * entry->probability[i] * (1 / 65535.0f)};
    return n;
}

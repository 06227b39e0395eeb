// What probably comes next by n-grams alone: the longest suffix of the text met earlier in this context, then the table
// (trigram context, else bigram, else unigram). Stage 2 of the speculation: it guesses what the draft will choose.
#pragma once

#include <cstdint>

#include "decode/team.h"
#include "model/blob.h"

constexpr int kMaxSuffix = 8;                      // tokens of context that a guess looks at
constexpr int kMaxGuesses = kNgramSuccessors + 1;  // from the context, then from the table

struct Guess {
    int32_t token;
    float probability;
};

struct Suffix {
    int32_t token[kMaxSuffix];  // the latest first; -1 before the text begins
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

// The position whose token followed the longest earlier occurrence in the text of the suffix's last two or more tokens,
// the latest one of equal length; 0 if there is none. length: of the occurrence. By a warp.
HD inline int suffix_match(const int32_t* text, int n_text, const Suffix& suffix, int& length) {
    constexpr int kAtOnce = 8;  // positions of a lane, so that their loads overlap
    uint32_t best = 0;          // length, then position
    for (int high = n_text - 2; high >= 0; high -= kAtOnce * warp_lanes()) {
        int32_t token[kAtOnce];
        UNROLL
        for (int k = 0; k < kAtOnce; ++k) {
            const int end = high - k * warp_lanes() - warp_lane();
            token[k] = end >= 0 ? text[end] : -1;
        }
        UNROLL
        for (int k = 0; k < kAtOnce; ++k) {
            if (token[k] != suffix.token[0]) continue;
            const int end = high - k * warp_lanes() - warp_lane();
            uint32_t n = 1;
            while (n < kMaxSuffix && int(n) <= end && text[end - n] == suffix.token[n]) ++n;
            const uint32_t key = n << 28 | uint32_t(end + 1);
            if (n > 1 && key > best) best = key;
        }
    }
    best = warp_max(best);
    length = int(best >> 28);
    return int(best & 0xfffffff);
}

// Guesses for the token after the suffix, best first, no token twice; returns their number. text: (n_text < 2^28) the
// committed tokens. By a warp; the lanes share `guess`.
HD inline int ngram_guess(const NgramView& table, const int32_t* text, int n_text, const Suffix& suffix,
                          Guess* guess /* (kMaxGuesses) */) {
    NgramEntry entry;  // asked for first: it may come from far away
    const NgramEntry* found = ngram_entry(table, suffix.token[1], suffix.token[0]);
    if (found) entry = *found;
    int length;
    const int at = suffix_match(text, n_text, suffix, length);
    int n = 0;
    uint32_t next = kNoToken;
    float left = 1;  // probability that the context leaves to the table
    if (at > 0) {
        next = uint32_t(text[at]);
        left -= suffix_confidence(length);
        if (warp_lane() == 0) guess[0] = {text[at], suffix_confidence(length)};
        ++n;
    }
    if (!found) return n;
    UNROLL
    for (int i = 0; i < kNgramSuccessors; ++i) {
        if (entry.token[i] == kNoToken) break;
        bool repeated = entry.token[i] == next;
        for (int j = 0; j < i; ++j) repeated |= entry.token[i] == entry.token[j];
        if (repeated) continue;
        if (warp_lane() == n % warp_lanes())
            guess[n] = {int32_t(entry.token[i]), left * entry.probability[i] * (1 / 65535.0f)};
        ++n;
    }
    return n;
}

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

// A look-up in the table that has been begun: what decides it was read at once, for it may come from far away. A lane
// holds the slot of the trigram contexts that lies as many after the search's beginning as its own number says.
struct NgramLookup {
    int32_t older, newer;
    uint32_t slot, context[2], first;  // first: of the successors
    uint32_t bigram_first;             // of the bigram context's
};

// Begins the look-up of the context (older, newer). newer is a token of the vocabulary; older may be -1 where the text
// begins. By a warp, as the function that ends it.
HD inline NgramLookup ngram_begin(const NgramView& table, int32_t older, int32_t newer) {
    const uint32_t mask = (uint32_t(1) << table.header->log2_slots) - 1;
    const uint32_t slot = (ngram_hash(uint32_t(older), uint32_t(newer)) + uint32_t(warp_lane())) & mask;
    const NgramEntry& entry = table.trigram[slot];
    return {older, newer, slot, {entry.context[0], entry.context[1]}, entry.token[0], table.bigram[newer].token[0]};
}

// Successors of the context by the table: of the trigram, else of the bigram, else of no context.
HD inline const NgramEntry* ngram_end(const NgramView& table, NgramLookup lookup) {
    const uint32_t older = uint32_t(lookup.older), newer = uint32_t(lookup.newer), lanes = uint32_t(warp_lanes());
    const uint32_t mask = (uint32_t(1) << table.header->log2_slots) - 1;
    for (uint32_t probe = 0; lookup.older >= 0 && probe < table.header->max_probes; probe += lanes) {
        // The first slot that is empty or the context's own decides.
        const uint32_t lane = uint32_t(warp_lane());
        const bool empty = lookup.first == kNoToken;
        const bool found = !empty && lookup.context[0] == older && lookup.context[1] == newer;
        const bool decides = (empty || found) && probe + lane < table.header->max_probes;
        const uint32_t decided = warp_min(decides ? 2 * lane + empty : ~0u);
        if (decided % 2 == 0) return &table.trigram[(lookup.slot - lane + decided / 2) & mask];
        if (decided != ~0u) break;
        lookup.slot = (lookup.slot + lanes) & mask;
        const NgramEntry& entry = table.trigram[lookup.slot];
        lookup.context[0] = entry.context[0], lookup.context[1] = entry.context[1], lookup.first = entry.token[0];
    }
    return lookup.bigram_first != kNoToken ? &table.bigram[lookup.newer] : table.unigram;
}

HD inline const NgramEntry* ngram_entry(const NgramView& table, int32_t older, int32_t newer) {
    return ngram_end(table, ngram_begin(table, older, newer));
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
    const int32_t last = suffix.token[0], before = suffix.token[1];
    uint32_t best = 0;  // length, then position
    for (int high = n_text - 2; high > 0 && best >> 28 < kMaxSuffix; high -= 32 * warp_lanes()) {
        // Where two tokens match, of 32 positions of this lane, the latest first.
        uint32_t matches = 0;
        NO_UNROLL
        for (int k = 0; k < 32 && high - k * warp_lanes() > 0; k += 8) {
            UNROLL
            for (int i = k; i < k + 8; ++i) {
                const int end = high - i * warp_lanes() - warp_lane();
                if (end > 0 && text[end] == last && text[end - 1] == before) matches |= 1u << i;
            }
        }
        NO_UNROLL
        for (; matches && best >> 28 < kMaxSuffix; matches &= matches - 1) {
            const int end = high - lowest_bit(matches) * warp_lanes() - warp_lane();
            uint32_t differs = 1u << kMaxSuffix;
            UNROLL
            for (int i = 2; i < kMaxSuffix; ++i) differs |= uint32_t(i > end || text[end - i] != suffix.token[i]) << i;
            const uint32_t key = uint32_t(lowest_bit(differs)) << 28 | uint32_t(end + 1);
            if (key > best) best = key;
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
    NgramLookup lookup;
    if (table.header) lookup = ngram_begin(table, suffix.token[1], suffix.token[0]);
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
    if (!table.header) return n;
    const NgramEntry entry = *ngram_end(table, lookup);
    UNROLL
    for (int i = 0; i < kNgramSuccessors; ++i) {
        if (entry.token[i] == kNoToken) break;
        bool repeated = entry.token[i] == next;
        for (int j = 0; j < i; ++j) repeated |= entry.token[i] == entry.token[j];
        if (repeated) continue;
        if (warp_lane() == 0) guess[n] = {int32_t(entry.token[i]), left * entry.probability[i] * (1 / 65535.0f)};
        ++n;
    }
    return n;
}

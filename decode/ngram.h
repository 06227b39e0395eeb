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

// How the table is searched. Read once, before anything waits for it; all zeros without a table.
struct NgramSearch {
    uint32_t mask, max_probes;  // slots - 1
};
HD inline NgramSearch ngram_search(const NgramView& table) {
    if (!table.header) return {};
    return {(uint32_t(1) << table.header->log2_slots) - 1, table.header->max_probes};
}

// Asks memory for what a look-up of the context will read first, without waiting: tables are larger than caches.
HD inline void ngram_expect(const NgramView& table, const NgramSearch& search, int32_t older, int32_t newer) {
    const NgramEntry* trigram = &table.trigram[ngram_hash(uint32_t(older), uint32_t(newer)) & search.mask];
    const NgramEntry* bigram = &table.bigram[newer];
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(trigram));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(bigram));
#else
    __builtin_prefetch(trigram);
    __builtin_prefetch(bigram);
#endif
}

// A look-up in the table that has been begun: what decides it was read at once, for it may come from far away. A lane
// holds the slot of the trigram contexts that lies as many after the search's beginning as its own number says.
struct NgramLookup {
    int32_t older, newer;
    uint32_t slot, context[2], first;  // first: of the successors
    uint32_t bigram_first;             // of the bigram context's
};

// Begins the look-up of the context (older, newer). newer is a token of the vocabulary; older may be -1 where the text
// begins. By a warp, as the function that ends it.
HD inline NgramLookup ngram_begin(const NgramView& table, const NgramSearch& search, int32_t older, int32_t newer) {
    const uint32_t lane = uint32_t(warp_lane());
    NgramLookup lookup = {older, newer, 0, {0, 0}, kNoToken, table.bigram[newer].token[0]};
    lookup.slot = (ngram_hash(uint32_t(older), uint32_t(newer)) + lane) & search.mask;
    if (lane < search.max_probes) {
        const NgramEntry& entry = table.trigram[lookup.slot];
        lookup.context[0] = entry.context[0], lookup.context[1] = entry.context[1], lookup.first = entry.token[0];
    }
    return lookup;
}

// Successors of the context by the table: of the trigram, else of the bigram, else of no context.
HD inline const NgramEntry* ngram_end(const NgramView& table, const NgramSearch& search, NgramLookup lookup) {
    const uint32_t older = uint32_t(lookup.older), newer = uint32_t(lookup.newer), lanes = uint32_t(warp_lanes());
    NO_UNROLL
    for (uint32_t probe = 0; lookup.older >= 0 && probe < search.max_probes; probe += lanes) {
        // The first slot that is empty or the context's own decides.
        const uint32_t lane = uint32_t(warp_lane());
        const bool empty = lookup.first == kNoToken;
        const bool found = !empty && lookup.context[0] == older && lookup.context[1] == newer;
        const bool decides = (empty || found) && probe + lane < search.max_probes;
        const uint32_t decided = warp_min(decides ? 2 * lane + empty : ~0u);
        if (decided % 2 == 0) return &table.trigram[(lookup.slot - lane + decided / 2) & search.mask];
        if (decided != ~0u) break;
        lookup.slot = (lookup.slot + lanes) & search.mask;
        const NgramEntry& entry = table.trigram[lookup.slot];
        lookup.context[0] = entry.context[0], lookup.context[1] = entry.context[1], lookup.first = entry.token[0];
    }
    return lookup.bigram_first != kNoToken ? &table.bigram[lookup.newer] : table.unigram;
}

HD inline const NgramEntry* ngram_entry(const NgramView& table, int32_t older, int32_t newer) {
    const NgramSearch search = ngram_search(table);
    return ngram_end(table, search, ngram_begin(table, search, older, newer));
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
        // Where two tokens match, of 32 positions of this lane, the latest first. Without branches, so that many are
        // read at once; what lies before the text is read as its beginning and left out at the end.
        uint32_t matches = 0;
        NO_UNROLL
        for (int k = 0; k < 32 && high - k * warp_lanes() > 0; k += 8) {
            const int from = high - k * warp_lanes() - warp_lane();
            uint32_t part = 0;
            UNROLL
            for (int i = 0; i < 8; ++i) {
                const int wanted = from - i * warp_lanes(), end = wanted > 1 ? wanted : 1;
                if ((text[end] == last) & (text[end - 1] == before)) part |= 1u << i;
            }
            matches |= part << k;
        }
        const int n = (high - warp_lane() + warp_lanes() - 1) / warp_lanes();  // positions that exist
        if (n < 32) matches &= (1u << n) - 1;
        NO_UNROLL
        for (; matches && best >> 28 < kMaxSuffix; matches &= matches - 1) {
            const int end = high - lowest_bit(matches) * warp_lanes() - warp_lane();
            uint32_t differs = 1u << kMaxSuffix;
            UNROLL
            for (int i = 2; i < kMaxSuffix; ++i)
                differs |= uint32_t((end >= i ? text[end - i] : -2) != suffix.token[i]) << i;
            const uint32_t key = uint32_t(lowest_bit(differs)) << 28 | uint32_t(end + 1);
            if (key > best) best = key;
        }
    }
    best = warp_max(best);
    length = int(best >> 28);
    return int(best & 0xfffffff);
}

// What the guesses for the token after a suffix are made of.
struct NgramGuesses {
    int at;                   // position in the text of the first guess, 0: none
    float confidence;         // its probability; what it leaves is the others'
    const NgramEntry* entry;  // the others, null: none
};

// text: (n_text < 2^28) the committed tokens. By a warp.
HD inline NgramGuesses ngram_guesses(const NgramView& table, const NgramSearch& search, const int32_t* text, int n_text,
                                     const Suffix& suffix) {
    NgramLookup lookup;
    if (table.header) lookup = ngram_begin(table, search, suffix.token[1], suffix.token[0]);
    int length;
    const int at = suffix_match(text, n_text, suffix, length);
    return {at, at > 0 ? suffix_confidence(length) : 0, table.header ? ngram_end(table, search, lookup) : nullptr};
}

// One of them, 0 <= i < kMaxGuesses: the context's, then the table's, best first. No token comes twice; a probability
// of 0 means none. By any thread.
HD inline Guess ngram_guess(const NgramGuesses& guesses, const int32_t* text, int i) {
    const uint32_t next = guesses.at > 0 ? uint32_t(text[guesses.at]) : kNoToken;
    if (i == 0) return {int32_t(next), guesses.confidence};
    if (!guesses.entry) return {-1, 0};
    const uint32_t token = guesses.entry->token[i - 1];
    bool repeated = token == next || token == kNoToken;
    UNROLL
    for (int j = 0; j < kNgramSuccessors - 1; ++j) repeated |= j < i - 1 && guesses.entry->token[j] == token;
    if (repeated) return {-1, 0};
    return {int32_t(token), (1 - guesses.confidence) * guesses.entry->probability[i - 1] * (1 / 65535.0f)};
}

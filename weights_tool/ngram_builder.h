// Katz back-off trigrams (Katz 1987), counted in a text and ranked for the table of model/blob.h.
//
// Of an n-gram met r times, (context, z), the share d(r) r / (times the context was met) goes to z, and what that
// leaves of 1 goes to the tokens never met after the context, in proportion to their probability after the context
// without its oldest token:
//
//   P(z | x y) = d3(c(xyz)) c(xyz) / c(xy)   if c(xyz) > 0,   else   alpha(x y) P(z | y)
//   P(z | y)   = d2(c(yz)) c(yz) / c(y)      if c(yz) > 0,    else   alpha(y) P(z)
//   P(z)       = c(z) / number of tokens
//   alpha(context) = (1 - sum of P(z | context) over the z met after it) / (1 - sum of P(z | shorter context) over
//   them)
//
// where c(context) is the sum of c(context z) over z. The discounts are Good and Turing's below k = 5: with n(r) the
// number of n-grams met r times and q = (k + 1) n(k + 1) / n(1),
//
//   d(r) = ((r + 1) n(r + 1) / (r n(r)) - q) / (1 - q)   for r <= k,   1 above.
//
// Where a text is too small or too regular for that (a d(r) outside (0, 1]), all r are discounted absolutely,
// d(r) = (r - D) / r with D = n(1) / (n(1) + 2 n(2)) kept within [0.1, 0.9], 0.5 if both are 0. Where the shorter
// context has no probability left for other tokens, those met are scaled to sum to 1.
//
// Ranks are by probability, then by lower id. Nothing depends on time, threads or addresses: same text, same bytes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/blob.h"

// Documents in one row of tokens with a separator before, between and after them: <|endoftext|>, which is counted like
// any token but for trigrams across it, or -1, which nothing is counted across.
struct NgramText {
    int n_vocab;
    int32_t separator;
    std::vector<int32_t> tokens = {separator};

    void add(std::span<const int32_t> document);  // ids below n_vocab; a separator inside begins a new document
};

// Takes every 100th document out of the text, or, if it has fewer, the last hundredth of its tokens, and returns it.
NgramText hold_out(NgramText& text);
constexpr int kHoldOut = 100;

struct NgramLimits {
    uint64_t min_count = 1;              // trigram contexts met less often are left out
    uint64_t max_contexts = UINT64_MAX;  // of the others those met most often are kept
};
// The largest number of contexts whose table takes at most `bytes`; 0: not even the bigrams fit.
uint64_t contexts_within(uint64_t bytes, int n_vocab);

struct NgramTable {
    std::vector<uint8_t> section;  // NgramHeader and its tables
    uint64_t n_contexts_met;       // before the limits
};
// Takes 16 bytes of memory a token beside the table. Throws Error(kExitUsage) on a text without a single trigram.
NgramTable build_ngram_table(const NgramText& text, const NgramLimits& limits);

// How the table does on a text: of its tokens that two tokens of the same document (or its beginning) precede, those
// with a known trigram context, those that are the first successor, those among the four; contexts that are not
// known back off to bigrams and unigrams.
struct NgramCoverage {
    uint64_t tokens = 0, known = 0, first = 0, among = 0;
};
NgramCoverage measure_coverage(const NgramView& table, const NgramText& text);

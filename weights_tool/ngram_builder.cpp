#include "weights_tool/ngram_builder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <compare>
#include <cstring>
#include <utility>

#include "model/error.h"

namespace {

constexpr int kKatz = 5;              // counts above are not discounted
constexpr uint32_t kMostProbes = 64;  // the table grows rather than search longer

struct Bigram {
    int32_t newer, next;
    auto operator<=>(const Bigram&) const = default;
};
struct Trigram {
    int32_t older, newer, next;
    auto operator<=>(const Trigram&) const = default;
};

// The end of the run of n-grams that begins at i and that agree in `same`.
template <class Ngram, class Same>
size_t run_end(const std::vector<Ngram>& sorted, size_t i, const Same& same) {
    size_t end = i + 1;
    while (end < sorted.size() && same(sorted[i], sorted[end])) ++end;
    return end;
}

struct Discount {
    double low[kKatz + 1];  // by count, where Good-Turing applies
    double absolute;        // 0: Good-Turing applies

    double operator()(uint64_t count) const {
        if (absolute > 0) return (double(count) - absolute) / double(count);
        return count <= kKatz ? low[count] : 1;
    }
};

template <class Ngram>
Discount discount_of(const std::vector<Ngram>& sorted) {
    double n[kKatz + 2] = {};  // distinct n-grams by count
    for (size_t i = 0, end; i < sorted.size(); i = end) {
        end = run_end(sorted, i, std::equal_to<Ngram>());
        if (end - i <= kKatz + 1) ++n[end - i];
    }
    Discount discount = {};
    const double q = (kKatz + 1) * n[kKatz + 1] / n[1];
    bool usable = n[1] > 0;
    for (int r = 1; r <= kKatz && usable; ++r) {
        discount.low[r] = ((r + 1) * n[r + 1] / (r * n[r]) - q) / (1 - q);
        usable = n[r] > 0 && discount.low[r] > 0 && discount.low[r] <= 1;  // false for NaN
    }
    if (!usable) discount.absolute = n[1] + n[2] > 0 ? std::clamp(n[1] / (n[1] + 2 * n[2]), 0.1, 0.9) : 0.5;
    return discount;
}

struct Successor {
    int32_t token;
    double probability;
};
bool better(const Successor& a, const Successor& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
}

// Keeps the best kNgramSuccessors of what it is shown.
struct Best {
    Successor successor[kNgramSuccessors];
    int n = 0;

    void add(const Successor& candidate) {
        if (n == kNgramSuccessors && !better(candidate, successor[n - 1])) return;
        if (n < kNgramSuccessors) ++n;
        int i = n - 1;
        for (; i > 0 && better(candidate, successor[i - 1]); --i) successor[i] = successor[i - 1];
        successor[i] = candidate;
    }
    NgramEntry entry(uint32_t older, uint32_t newer) const {
        NgramEntry entry = {{older, newer}, {}, {}};
        for (int i = 0; i < kNgramSuccessors; ++i) {
            entry.token[i] = i < n ? uint32_t(successor[i].token) : kNoToken;
            entry.probability[i] = i < n ? uint16_t(std::lround(std::min(successor[i].probability, 1.0) * 65535)) : 0;
        }
        return entry;
    }
};

// The discounted shares of the tokens met after a context become probabilities. Returns alpha.
// shorter: the sum of their probabilities after the shorter context.
double back_off(std::span<Successor> met, double shorter) {
    double sum = 0;
    for (const Successor& s : met) sum += s.probability;
    if (1 - shorter > 1e-9) return std::max(0.0, 1 - sum) / (1 - shorter);
    for (Successor& s : met) s.probability /= sum;
    return 0;
}

struct Unigrams {
    std::vector<double> probability;  // (n_vocab)
    std::vector<Successor> ranked;    // those met, best first
    uint64_t n_tokens = 0;
};

Unigrams count_unigrams(const NgramText& text) {
    Unigrams unigrams;
    unigrams.probability.resize(size_t(text.n_vocab));
    for (size_t i = 1; i < text.tokens.size(); ++i)  // the first is a separator that nothing precedes
        if (text.tokens[i] >= 0) ++unigrams.probability[size_t(text.tokens[i])], ++unigrams.n_tokens;
    for (int32_t token = 0; token < text.n_vocab; ++token)
        if (double& p = unigrams.probability[size_t(token)]; p > 0) {
            p /= double(unigrams.n_tokens);
            unigrams.ranked.push_back({token, p});
        }
    std::sort(unigrams.ranked.begin(), unigrams.ranked.end(), better);
    return unigrams;
}

// What follows a token: those met, by token and by rank, and the best of those not met.
struct Bigrams {
    struct Context {
        size_t begin = 0, end = 0;  // into by_token and ranked
        Best unmet;
    };
    std::vector<Context> context;  // (n_vocab)
    std::vector<Successor> by_token, ranked;

    std::span<const Successor> met(int32_t newer) const {
        return std::span(by_token).subspan(context[newer].begin, context[newer].end - context[newer].begin);
    }
};

bool contains(std::span<const Successor> by_token, int32_t token) {
    const auto found = std::lower_bound(by_token.begin(), by_token.end(), token,
                                        [](const Successor& s, int32_t wanted) { return s.token < wanted; });
    return found != by_token.end() && found->token == token;
}

Bigrams count_bigrams(const NgramText& text, const Unigrams& unigrams) {
    std::vector<Bigram> sorted;
    sorted.reserve(text.tokens.size());
    for (size_t i = 1; i < text.tokens.size(); ++i)
        if (text.tokens[i - 1] >= 0 && text.tokens[i] >= 0) sorted.push_back({text.tokens[i - 1], text.tokens[i]});
    std::sort(sorted.begin(), sorted.end());
    const Discount discount = discount_of(sorted);

    Bigrams bigrams;
    bigrams.context.resize(size_t(text.n_vocab));
    for (size_t i = 0, end; i < sorted.size(); i = end) {
        end = run_end(sorted, i, [](const Bigram& a, const Bigram& b) { return a.newer == b.newer; });
        Bigrams::Context& context = bigrams.context[sorted[i].newer];
        context.begin = bigrams.by_token.size();
        double shorter = 0;
        for (size_t j = i, next; j < end; j = next) {
            next = run_end(sorted, j, std::equal_to<Bigram>());
            const double count = double(next - j);
            bigrams.by_token.push_back({sorted[j].next, discount(next - j) * count / double(end - i)});
            shorter += unigrams.probability[sorted[j].next];
        }
        context.end = bigrams.by_token.size();
        const auto met = std::span(bigrams.by_token).subspan(context.begin);
        const double alpha = back_off(met, shorter);
        for (const Successor& s : unigrams.ranked) {
            if (alpha == 0 || context.unmet.n == kNgramSuccessors) break;
            if (!contains(met, s.token)) context.unmet.add({s.token, alpha * s.probability});
        }
    }
    bigrams.ranked = bigrams.by_token;
    for (const Bigrams::Context& context : bigrams.context)
        std::sort(bigrams.ranked.begin() + context.begin, bigrams.ranked.begin() + context.end, better);
    return bigrams;
}

Best best_after(const Bigrams& bigrams, int32_t newer) {
    const Bigrams::Context& context = bigrams.context[newer];
    Best best = context.unmet;
    for (size_t i = context.begin; i < context.end && i < context.begin + kNgramSuccessors; ++i)
        best.add(bigrams.ranked[i]);
    return best;
}

// sorted[begin, end): the trigrams of one context.
Best best_after(const Bigrams& bigrams, const std::vector<Trigram>& sorted, size_t begin, size_t end,
                const Discount& discount) {
    const int32_t newer = sorted[begin].newer;
    const std::span<const Successor> shorter_met = bigrams.met(newer);
    std::vector<Successor> met;
    double shorter = 0;
    for (size_t i = begin, next; i < end; i = next) {
        next = run_end(sorted, i, std::equal_to<Trigram>());
        const double count = double(next - i);
        met.push_back({sorted[i].next, discount(next - i) * count / double(end - begin)});
        // Where a trigram was met, its bigram was.
        shorter += std::lower_bound(shorter_met.begin(), shorter_met.end(), sorted[i].next,
                                    [](const Successor& s, int32_t token) { return s.token < token; })
                       ->probability;
    }
    const double alpha = back_off(met, shorter);
    Best best;
    for (const Successor& s : met) best.add(s);
    if (alpha == 0) return best;
    const Bigrams::Context& context = bigrams.context[newer];
    for (int i = 0; i < context.unmet.n; ++i)
        best.add({context.unmet.successor[i].token, alpha * context.unmet.successor[i].probability});
    for (size_t i = context.begin, n = 0; i < context.end && n < kNgramSuccessors; ++i)
        if (const Successor& s = bigrams.ranked[i]; !contains(met, s.token)) {
            best.add({s.token, alpha * s.probability});
            ++n;
        }
    return best;
}

// Puts the entry into the table, before entries that are nearer to where their hash puts them: so all stay near (Robin
// Hood hashing), whatever the order of insertion.
void insert(std::span<NgramEntry> slots, NgramEntry entry, uint32_t& max_probes) {
    const uint32_t mask = uint32_t(slots.size() - 1);
    const auto home = [&](const NgramEntry& e) { return ngram_hash(e.context[0], e.context[1]) & mask; };
    uint32_t slot = home(entry);
    for (uint32_t probes = 1;; ++probes, slot = (slot + 1) & mask) {
        max_probes = std::max(max_probes, probes);
        NgramEntry& here = slots[slot];
        if (here.token[0] == kNoToken) {
            here = entry;
            return;
        }
        if (const uint32_t taken = ((slot - home(here)) & mask) + 1; taken < probes) {
            std::swap(here, entry);
            probes = taken;
        }
    }
}

constexpr NgramEntry kEmptyEntry = {{0, 0}, {kNoToken, kNoToken, kNoToken, kNoToken}, {}};

uint64_t table_bytes(uint64_t slots, uint64_t n_vocab) {
    return sizeof(NgramHeader) + (slots + n_vocab + 1) * sizeof(NgramEntry);
}

}  // namespace

void NgramText::add(std::span<const int32_t> document) {
    for (const int32_t token : document)
        if (token != separator || tokens.back() != separator) tokens.push_back(token);
    if (tokens.back() != separator) tokens.push_back(separator);
}

NgramText hold_out(NgramText& text) {
    NgramText rest = {text.n_vocab, text.separator}, held = rest;
    const int64_t n_documents = std::count(text.tokens.begin(), text.tokens.end(), text.separator) - 1;
    if (n_documents < kHoldOut) {
        const size_t n_held = text.tokens.size() / kHoldOut;
        held.add(std::span(text.tokens).last(n_held));
        text.tokens.resize(text.tokens.size() - n_held);
        if (text.tokens.back() != text.separator) text.tokens.push_back(text.separator);
        return held;
    }
    rest.tokens.reserve(text.tokens.size());
    auto begin = text.tokens.begin() + 1;
    for (int64_t i = 1; i <= n_documents; ++i) {
        const auto end = std::find(begin, text.tokens.end(), text.separator);
        (i % kHoldOut ? rest : held).add({begin, end});
        begin = end + 1;
    }
    text = std::move(rest);
    return held;
}

uint64_t contexts_within(uint64_t bytes, int n_vocab) {
    uint64_t slots = 2;
    if (bytes < table_bytes(slots, uint64_t(n_vocab))) return 0;
    while (slots < uint64_t(1) << kMaxLog2Slots && table_bytes(2 * slots, uint64_t(n_vocab)) <= bytes) slots *= 2;
    return slots * 2 / 3;
}

NgramTable build_ngram_table(const NgramText& text, const NgramLimits& limits) {
    const Unigrams unigrams = count_unigrams(text);
    const Bigrams bigrams = count_bigrams(text, unigrams);

    std::vector<Trigram> sorted;
    sorted.reserve(text.tokens.size());
    for (size_t i = 2; i < text.tokens.size(); ++i) {
        const Trigram trigram = {text.tokens[i - 2], text.tokens[i - 1], text.tokens[i]};
        if (trigram.older >= 0 && trigram.newer != text.separator && trigram.next >= 0) sorted.push_back(trigram);
    }
    if (sorted.empty())
        throw Error(kExitUsage, "the text holds " + std::to_string(unigrams.n_tokens) +
                                    " tokens and no three in a row; give more text to count in");
    std::sort(sorted.begin(), sorted.end());
    const Discount discount = discount_of(sorted);

    // The contexts worth keeping. Those that rank alike stay in the order of their tokens.
    struct Context {
        size_t begin, end;
    };
    std::vector<Context> contexts;
    uint64_t n_met = 0;
    for (size_t i = 0, end; i < sorted.size(); i = end, ++n_met) {
        end = run_end(sorted, i,
                      [](const Trigram& a, const Trigram& b) { return a.older == b.older && a.newer == b.newer; });
        if (end - i >= limits.min_count) contexts.push_back({i, end});
    }
    std::stable_sort(contexts.begin(), contexts.end(),
                     [](const Context& a, const Context& b) { return a.end - a.begin > b.end - b.begin; });
    const uint64_t most = std::min(limits.max_contexts, (uint64_t(1) << kMaxLog2Slots) * 2 / 3);
    if (contexts.size() > most) contexts.resize(most);

    std::vector<NgramEntry> entries;
    entries.reserve(contexts.size());
    for (const auto& [begin, end] : contexts)
        entries.push_back(best_after(bigrams, sorted, begin, end, discount)
                              .entry(uint32_t(sorted[begin].older), uint32_t(sorted[begin].newer)));

    NgramHeader header = {};
    header.n_vocab = uint32_t(text.n_vocab);
    header.n_contexts = contexts.size();
    header.n_source_tokens = unigrams.n_tokens;
    std::vector<NgramEntry> table;
    uint64_t slots = std::bit_ceil(std::max<uint64_t>(2, (3 * contexts.size() + 1) / 2));
    for (;; slots *= 2) {
        table.assign(slots, kEmptyEntry);
        header.max_probes = 0;
        for (const NgramEntry& entry : entries) insert(table, entry, header.max_probes);
        if (header.max_probes <= kMostProbes || slots == uint64_t(1) << kMaxLog2Slots) break;
    }
    header.log2_slots = uint32_t(std::countr_zero(slots));

    for (int32_t newer = 0; newer < text.n_vocab; ++newer) table.push_back(best_after(bigrams, newer).entry(0, 0));
    Best best;
    for (const Successor& s : unigrams.ranked) best.add(s);
    table.push_back(best.entry(0, 0));

    NgramTable result = {std::vector<uint8_t>(table_bytes(slots, header.n_vocab)), n_met};
    std::memcpy(result.section.data(), &header, sizeof header);
    std::memcpy(result.section.data() + sizeof header, table.data(), table.size() * sizeof(NgramEntry));
    return result;
}

NgramCoverage measure_coverage(const NgramView& table, const NgramText& text) {
    NgramCoverage coverage;
    for (size_t i = 2; i < text.tokens.size(); ++i) {
        const int32_t older = text.tokens[i - 2], newer = text.tokens[i - 1], next = text.tokens[i];
        if (older < 0 || newer == text.separator || next < 0) continue;
        const NgramEntry* entry = ngram_find(table, uint32_t(older), uint32_t(newer));
        ++coverage.tokens;
        coverage.known += entry != nullptr;
        if (!entry) entry = table.bigram[newer].token[0] != kNoToken ? &table.bigram[newer] : table.unigram;
        coverage.first += entry->token[0] == uint32_t(next);
        coverage.among += std::count(entry->token, entry->token + kNgramSuccessors, uint32_t(next));
    }
    return coverage;
}

// What a decode is asked for, what it reports, and the interface that the CPU engine and the GPU engine share.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "decode/choose.h"
#include "decode/tree.h"

enum class Mode { baseline, speculative, staged };

// Who guessed an emitted token: nobody (the target chose it itself), the draft, or the n-gram (and the draft agreed).
enum class Origin : uint8_t { target, draft, ngram };

struct Request {
    std::vector<int32_t> prompt;  // token ids, 1 to n_positions - 1 of them
    int max_tokens = 256;         // at most so many are written; the context's end stops earlier
    Mode mode = Mode::baseline;
    Sampling sampling;
    TreeSettings tree;
    bool ignore_eos = false;
};

struct Emitted {
    int32_t token;
    Origin origin;
};

enum class StopReason { max_tokens, eos, context_full, caller };

// Counters of one generation's rounds.
struct Counters {
    int emitted = 0;
    int rounds = 0;                             // target passes after prefill, each emits at least one token
    int target_nodes = 0;                       // nodes verified in them, roots included
    int draft_passes = 0;                       // after prefill
    int draft_nodes = 0;                        // evaluated in them
    int ngram_guesses = 0;                      // nodes evaluated ahead on the n-gram's word
    int ngram_confirmed = 0;                    // of these, the ones the draft then chose
    int proposed = 0;                           // tree nodes below the root
    int accepted = 0;                           // of these, the ones the target chose
    int by_origin[3] = {};                      // emitted tokens by Origin
    int proposed_by_depth[kMaxDepth + 1] = {};  // [d]: rounds whose tree reached depth d
    int accepted_by_depth[kMaxDepth + 1] = {};  // [d]: rounds that accepted a node at depth d
};

// What one generation did. Times are milliseconds; draft and target: their passes and what is read off their logits;
// ngram: planning the passes, n-gram look-ups, tree and acceptance.
struct Statistics : Counters {
    int prompt_tokens = 0;
    StopReason stop = StopReason::max_tokens;
    double prefill_ms = 0, draft_ms = 0, ngram_ms = 0, target_ms = 0, total_ms = 0;
    std::string device;         // "CPU, 2 threads" or the GPU's name
    uint64_t device_bytes = 0;  // memory allocated for weights, caches and scratch
};

// What the account of memory traffic (decode/account.h) needs to know of an engine.
struct EngineFacts {
    int kv_value_bytes;  // of an element of a key or value in the caches
    int pass_width;      // target nodes that one reading of the weights serves; more are run in several
    // Prompt tokens that one reading serves in prefill, which then reads of the last layer only what makes its keys and
    // values; up to pass_width tokens are a pass. 0: prefill goes in passes.
    int prefill_width = 0;
};

class Decoder {
public:
    virtual ~Decoder() = default;

    // Writes the continuation of request.prompt; `emit` is called in order with what each round accepted and returns
    // false to stop (what it was given still counts). The tokens are a function of weights, prompt, sampling and limits
    // alone. Throws Error on a request the model cannot serve.
    virtual Statistics generate(const Request& request, const std::function<bool(std::span<const Emitted>)>& emit) = 0;

    // The tree settings that pay on this device. Any others give the same text.
    virtual TreeSettings default_tree() const = 0;

    virtual EngineFacts facts() const = 0;

    // "CPU, 2 threads" or the GPU's name.
    virtual std::string device_name() const = 0;

    // Natural-log probability of each token but the first given those before it: n - 1 values for n tokens,
    // 1 <= n <= n_positions.
    virtual std::vector<float> score(std::span<const int32_t> tokens) = 0;
};

// The decode loop over any engine: prefill, then rounds of draft, verify, accept, commit.
#pragma once

#include <functional>
#include <span>

#include "decode/decoder.h"
#include "decode/model.h"
#include "decode/ngram.h"

// Error(kExitUsage) unless these are 1 or more tokens of the vocabulary that leave `room` positions of the context.
void check_ids(std::span<const int32_t> ids, const Config& config, int room);

// The same for a prompt: it must leave room for a token.
void check_prompt(const std::vector<int32_t>& prompt, const Config& config);

// How many tokens the text of a request may grow to, and why it ends there if nothing ends it before.
struct TextLimit {
    int tokens;
    StopReason stop;
};
TextLimit text_limit(const Request& request, const Config& config);

// Runs the request; draft may be null in baseline mode, table.header null where there is no table. Fills every field of
// Statistics but `device` and `device_bytes`. Throws Error(kExitUsage) when the prompt is empty, holds ids outside the
// vocabulary or leaves no room in the context.
Statistics generate(Model& target, Model* draft, const NgramView& table, const Request& request,
                    const std::function<bool(std::span<const Emitted>)>& emit);

// Log-probability of tokens[1..n) given those before each: n - 1 values.
std::vector<float> score(Model& target, std::span<const int32_t> tokens);

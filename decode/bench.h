// Measuring the modes against each other on the same prompts: the runs, their statistics, and the reports that the
// bench and roofline commands print and write.
//
//   measure          prompts x settings x modes x repeats, outputs compared token by token
//   bench_report     the paper's tables and figures: speed, bandwidth, their distribution over prompts, origin of
//   tokens roofline_report  where each mode stands below the machine's ceilings
//
// Reports are JSON; the tables for people are printed from it, so both say the same. Speeds are those of decoding (the
// prompt's own passes left out) unless a name says "with_prefill"; a total is all tokens over all time.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "decode/ceilings.h"
#include "decode/decoder.h"
#include "model/blob.h"

const char* mode_name(Mode mode);

struct BenchPrompt {
    std::string name;
    std::vector<int32_t> ids;
};

struct BenchPlan {
    struct Setting {
        std::string name;
        Sampling sampling;
    };
    std::vector<BenchPrompt> prompts;
    std::vector<Setting> settings;
    std::vector<Mode> modes;  // baseline first
    TreeSettings tree;
    int max_tokens = 250;
    int repeats = 1;
    bool ignore_eos = false;
};

struct Measured {
    std::vector<int32_t> tokens;      // the same in every mode
    std::vector<Statistics> by_mode;  // (modes) counters of a run; each time the median over the repeats
};

// Results by setting and prompt. Every mode first generates the first prompt's continuation unmeasured. Throws
// Error(kExitFailed) when a mode or a repeat gives other tokens than baseline's first run did. progress is called
// before each prompt.
std::vector<std::vector<Measured>> measure(Decoder& decoder, const BenchPlan& plan,
                                           const std::function<void(const std::string&)>& progress);

// Whether a text goes round in circles: its last 64 tokens repeat with a period of at most 32. Shorter texts don't.
bool loops(std::span<const int32_t> tokens);

// The members that follow from the measurements; the caller adds what was measured and where.
nlohmann::ordered_json bench_report(const BenchPlan& plan, const std::vector<std::vector<Measured>>& results,
                                    const Blob& blob, const EngineFacts& engine);
nlohmann::ordered_json roofline_report(const BenchPlan& plan, const std::vector<Measured>& results, const Blob& blob,
                                       const EngineFacts& engine, const Ceilings& ceilings);
nlohmann::ordered_json facts_json(const DeviceFacts& facts);

// Tables of a report.
std::string bench_text(const nlohmann::ordered_json& report);
std::string roofline_text(const nlohmann::ordered_json& report);

// Which tree settings are fastest for a model on a device: measured once by `staged-gpt2 bench --tune`, kept in a small
// file, taken by every later run. They never change a text, only how fast it comes.
//
// The file is JSON below $XDG_CACHE_HOME or ~/.cache, by the model file's checksum and the device's name:
//
//     {"tree": {"nodes": 16, ...}, "draft_cost": 0.09, "tau": 0.9, "tokens_per_s": 4199.0}
#pragma once

#include <optional>
#include <string>

#include "decode/bench.h"

// Where the settings of this model on this device are kept; "" without a home folder.
std::string tuning_path(const Blob& blob, const std::string& device_name);

// The settings in the file; none if there is no such file. Throws Error(kExitFailed) with a sentence if it holds none.
std::optional<TreeSettings> load_tuning(const std::string& path);

struct Tuned {
    TreeSettings tree;
    double tokens_per_s;  // geometric mean over the plan's settings
    std::string table;    // what was tried, for people
};

// Tries trees of several sizes, costs of a draft pass and calibrations with the best mode of the plan, one after the
// other. plan.tree: where it starts.
Tuned tune(Decoder& decoder, BenchPlan plan, const std::function<void(const std::string&)>& progress);

// Writes the file, and its folders where they are missing. Throws Error(kExitFailed).
void save_tuning(const std::string& path, const Tuned& tuned);

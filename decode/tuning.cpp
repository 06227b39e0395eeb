#include "decode/tuning.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/describe.h"
#include "model/error.h"
#include "model/format.h"
#include "model/output_file.h"

using json = nlohmann::ordered_json;

// What the file keeps of the settings, with the range of each.
struct TreeField {
    const char* name;
    int TreeSettings::*field;
    int least, most;
};
constexpr std::array kFields = {TreeField{"nodes", &TreeSettings::nodes, 1, kMaxNodes},
                                TreeField{"depth", &TreeSettings::depth, 1, kMaxDepth},
                                TreeField{"children", &TreeSettings::children, 1, kMaxChildren},
                                TreeField{"draft_width", &TreeSettings::draft_width, 1, kMaxNodes},
                                TreeField{"draft_passes", &TreeSettings::draft_passes, 1, 16},
                                TreeField{"ngram_nodes", &TreeSettings::ngram_nodes, 0, kMaxNodes - 1}};
// And beside the tree: numbers between 0 and 100.
struct Factor {
    const char* name;
    float TreeSettings::*field;
};
constexpr std::array kFactors = {Factor{"draft_cost", &TreeSettings::draft_cost}, Factor{"tau", &TreeSettings::tau}};

std::string tuning_path(const Blob& blob, const std::string& device_name) {
    const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
    std::string folder;
    if (cache && *cache == '/')
        folder = cache;
    else if (home && *home == '/')
        folder = std::string(home) + "/.cache";
    else
        return "";
    std::string device = device_name;
    for (char& c : device)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '-';
    return folder + "/staged-gpt2/tree-" + blob_checksum(blob) + "-" + device + ".json";
}

std::optional<TreeSettings> load_tuning(const std::string& path) {
    std::ifstream file(path);
    if (!file) return std::nullopt;
    const json tuning = json::parse(file, nullptr, false);
    const auto refuse = [&](const std::string& what) {
        throw Error(kExitFailed, path + " " + what + "; delete it, or run staged-gpt2 bench --tune again");
    };
    if (!tuning.is_object() || !tuning.contains("tree") || !tuning["tree"].is_object())
        refuse("holds no tree settings");
    TreeSettings tree;
    for (const TreeField& f : kFields) {
        const json& tree_json = tuning["tree"];
        const bool there = tree_json.contains(f.name) && tree_json[f.name].is_number_integer();
        const int64_t value = there ? tree_json[f.name].get<int64_t>() : -1;
        if (value < f.least || value > f.most) refuse(std::string("holds no usable \"") + f.name + "\"");
        tree.*f.field = int(value);
    }
    for (const Factor& f : kFactors) {
        const bool there = tuning.contains(f.name) && tuning[f.name].is_number();
        const double value = there ? tuning[f.name].get<double>() : -1;
        if (!(value > 0 && value < 100)) refuse(std::string("holds no usable \"") + f.name + "\"");
        tree.*f.field = float(value);
    }
    return tree;
}

void save_tuning(const std::string& path, const Tuned& tuned) {
    std::error_code fault;
    const std::filesystem::path folder = std::filesystem::path(path).parent_path();
    std::filesystem::create_directories(folder, fault);
    if (fault) throw Error(kExitFailed, "cannot create " + folder.string() + ": " + fault.message());
    json tuning;
    for (const TreeField& f : kFields) tuning["tree"][f.name] = tuned.tree.*f.field;
    for (const Factor& f : kFactors) tuning[f.name] = tuned.tree.*f.field;
    tuning["tokens_per_s"] = tuned.tokens_per_s;
    const std::string text = tuning.dump(2) + "\n";
    OutputFile file(path);
    file.write({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    file.commit();
}

Tuned tune(Decoder& decoder, BenchPlan plan, const std::function<void(const std::string&)>& progress) {
    const Mode mode = plan.modes.back();
    plan.modes = {Mode::baseline, mode};  // the text to compare with; later attempts run the mode alone
    plan.repeats = std::max(plan.repeats, 1);
    Tuned best = {plan.tree, 0, ""};
    best.table = format("%5s %6s %7s %10s %5s %10s\n", "nodes", "width", "n-gram", "draft cost", "tau", "tokens/s");
    double best_cost = plan.tree.draft_cost;  // of a draft pass in target passes, as measured with the best tree
    const std::vector<BenchPlan::Setting> settings = plan.settings;
    std::vector<double> best_speeds(settings.size());  // of the best tree, by setting
    std::vector<std::vector<Measured>> first;
    enum class Texts { all, sampled };
    const auto attempt = [&](TreeSettings tree, Texts texts) {
        tree.nodes = std::clamp(tree.nodes, 1, kMaxNodes);
        tree.draft_width = std::clamp(tree.draft_width, 1, kMaxNodes);
        tree.ngram_nodes = std::clamp(tree.ngram_nodes, 0, tree.draft_width - 1);
        plan.tree = tree;
        std::vector<size_t> of_setting;  // what plan.settings are of all
        plan.settings.clear();
        for (size_t i = 0; i < settings.size(); ++i) {
            if (texts == Texts::sampled && settings[i].sampling.temperature == 0) continue;
            of_setting.push_back(i);
            plan.settings.push_back(settings[i]);
        }
        if (of_setting.empty()) return;
        progress("trying " + std::to_string(tree.nodes) + " nodes, draft passes of " +
                 std::to_string(tree.draft_width) + ", tau " + format("%.2f", double(tree.tau)));
        const auto results = measure(decoder, plan, [](const std::string&) {});
        if (first.empty()) first = results, plan.modes = {mode};
        for (size_t i = 0; i < results.size(); ++i)
            for (size_t k = 0; k < results[i].size(); ++k)
                if (results[i][k].tokens != first[of_setting[i]][k].tokens)
                    throw Error(kExitFailed, "the outputs differ: a tree of " + std::to_string(tree.nodes) +
                                                 " nodes changes the text of prompt " + plan.prompts[k].name +
                                                 "; nothing is kept, for speculation must not change the text");
        double log_speed = 0, draft_ms = 0, target_ms = 0;
        int draft_passes = 0, rounds = 0;
        std::vector<double> speeds = best_speeds;
        for (size_t i = 0; i < results.size(); ++i) {
            double tokens = 0, ms = 0;
            for (const Measured& prompt : results[i]) {
                const Statistics& s = prompt.by_mode.back();
                tokens += s.emitted;
                ms += s.total_ms - s.prefill_ms;
                draft_ms += s.draft_ms, target_ms += s.target_ms;
                draft_passes += s.draft_passes, rounds += s.rounds;
            }
            speeds[of_setting[i]] = std::max(tokens, 1e-9) / std::max(ms * 1e-3, 1e-9);
        }
        for (const double speed : speeds) log_speed += std::log(speed) / double(speeds.size());
        const double speed = std::exp(log_speed);
        best.table += format("%5d %6d %7d %10.2f %5.2f %10.1f\n", tree.nodes, tree.draft_width, tree.ngram_nodes,
                             double(tree.draft_cost), double(tree.tau), speed);
        if (speed <= best.tokens_per_s) return;
        best.tree = tree, best.tokens_per_s = speed, best_speeds = speeds;
        if (draft_passes > 0 && rounds > 0 && target_ms > 0)
            best_cost = std::clamp(draft_ms / draft_passes / (target_ms / rounds), 0.01, 10.0);
    };
    attempt(plan.tree, Texts::all);
    const TreeSettings start = plan.tree;
    for (const int nodes : {4, 6, 8, 12, 16, 24, 32, 48}) {
        TreeSettings tree = start;
        tree.nodes = nodes;
        tree.draft_width = std::min(nodes, 16);
        tree.ngram_nodes = tree.draft_width / 2;
        tree.children = std::max(start.children, nodes > 8 ? 4 : 1);
        attempt(tree, Texts::all);
    }
    const double cost = best_cost;
    for (const double factor : {0.5, 1.0, 2.0}) {  // when to stop drafting, around the cost as measured
        TreeSettings tree = best.tree;
        tree.draft_cost = float(cost * factor);
        attempt(tree, Texts::all);
    }
    for (const float tau : {0.75f, 1.0f, 2.0f, 3.0f}) {  // how far this draft's sampled scores can be trusted
        TreeSettings tree = best.tree;
        tree.tau = tau;
        attempt(tree, Texts::sampled);  // greedy text does not depend on it
    }
    return best;
}

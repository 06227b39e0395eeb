#include "decode/bench.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "decode/account.h"
#include "decode/quantile.h"
#include "model/error.h"
#include "model/format.h"

using json = nlohmann::ordered_json;

constexpr double Statistics::*kTimes[] = {&Statistics::prefill_ms, &Statistics::draft_ms, &Statistics::ngram_ms,
                                          &Statistics::target_ms, &Statistics::total_ms};

const char* mode_name(Mode mode) {
    return mode == Mode::baseline ? "baseline" : mode == Mode::speculative ? "speculative" : "staged";
}

// ---- Runs -----------------------------------------------------------------------------------------------------------

std::vector<std::vector<Measured>> measure(Decoder& decoder, const BenchPlan& plan,
                                           const std::function<void(const std::string&)>& progress) {
    std::vector<int32_t> tokens;
    const auto run = [&](const BenchPrompt& prompt, const Sampling& sampling, Mode mode) {
        tokens.clear();
        return decoder.generate({.prompt = prompt.ids,
                                 .max_tokens = plan.max_tokens,
                                 .mode = mode,
                                 .sampling = sampling,
                                 .tree = plan.tree,
                                 .ignore_eos = plan.ignore_eos},
                                [&](std::span<const Emitted> accepted) {
                                    for (const Emitted& token : accepted) tokens.push_back(token.token);
                                    return true;
                                });
    };
    const auto compare = [&](const Measured& first, const std::string& where) {
        if (tokens == first.tokens) return;
        const size_t common = std::min(tokens.size(), first.tokens.size());
        const size_t at = size_t(
            std::mismatch(tokens.begin(), tokens.begin() + long(common), first.tokens.begin()).first - tokens.begin());
        throw Error(kExitFailed, "the outputs differ: " + where + " leaves the first baseline's text at token " +
                                     std::to_string(at + 1) +
                                     "; no speed-up is reported, for speculation must not change the text");
    };

    progress("warming up");
    for (const Mode mode : plan.modes) run(plan.prompts[0], plan.settings[0].sampling, mode);
    std::vector<std::vector<Measured>> results;
    for (const BenchPlan::Setting& setting : plan.settings) {
        std::vector<Measured>& measured = results.emplace_back();
        for (const BenchPrompt& prompt : plan.prompts) {
            progress(setting.name + ", prompt " + std::to_string(measured.size() + 1) + " of " +
                     std::to_string(plan.prompts.size()) + " (" + prompt.name + ")");
            std::vector<std::vector<Statistics>> runs(plan.modes.size());  // (modes, repeats)
            Measured& result = measured.emplace_back();
            for (int repeat = 0; repeat < plan.repeats; ++repeat)  // modes by turns: all see the same drift
                for (size_t m = 0; m < plan.modes.size(); ++m) {
                    runs[m].push_back(run(prompt, setting.sampling, plan.modes[m]));
                    if (repeat == 0 && m == 0) result.tokens = tokens;
                    compare(result, std::string(mode_name(plan.modes[m])) + " (" + setting.name + ", prompt " +
                                        prompt.name + ")");
                }
            for (std::vector<Statistics>& repeats : runs) {
                Statistics& typical = result.by_mode.emplace_back(repeats.back());
                for (const auto time : kTimes) {
                    std::vector<double> times;
                    for (const Statistics& one : repeats) times.push_back(one.*time);
                    typical.*time = quantile(times, 0.5);
                }
            }
        }
    }
    return results;
}

bool loops(std::span<const int32_t> tokens) {
    constexpr size_t kWindow = 64, kLongestPeriod = 32;
    if (tokens.size() < kWindow) return false;
    const auto window = tokens.last(kWindow);
    for (size_t period = 1; period <= kLongestPeriod; ++period)
        if (std::equal(window.begin() + long(period), window.end(), window.begin())) return true;
    return false;
}

// ---- Reports --------------------------------------------------------------------------------------------------------

namespace {

double ratio(double part, double whole) {
    return whole > 0 ? part / whole : 0;
}

double decode_ms(const Statistics& stats) {
    return stats.total_ms - stats.prefill_ms;
}

json distribution(const std::vector<double>& samples) {
    return {{"min", quantile(samples, 0)},
            {"q1", quantile(samples, 0.25)},
            {"median", quantile(samples, 0.5)},
            {"q3", quantile(samples, 0.75)},
            {"max", quantile(samples, 1)}};
}

// A mode over all prompts of a setting.
struct Total {
    Statistics stats;
    Cost decode, useful;
    double weight_bytes = 0;

    Total(const std::vector<Measured>& results, size_t mode_index, Mode mode, const Blob& blob,
          const EngineFacts& engine) {
        const Config target = blob.target().config, draft = blob.has_draft() ? blob.draft().config : Config{};
        for (const Measured& result : results) {
            const Statistics& one = result.by_mode[mode_index];
            for (const auto time : kTimes) stats.*time += one.*time;
            for (int Statistics::*const count : std::initializer_list<int Statistics::*>{
                     &Statistics::prompt_tokens, &Statistics::emitted, &Statistics::rounds, &Statistics::target_nodes,
                     &Statistics::draft_passes, &Statistics::draft_nodes, &Statistics::ngram_guesses,
                     &Statistics::ngram_confirmed, &Statistics::proposed, &Statistics::accepted})
                stats.*count += one.*count;
            for (size_t i = 0; i < std::size(one.by_origin); ++i) stats.by_origin[i] += one.by_origin[i];
            for (int d = 0; d <= kMaxDepth; ++d) {
                stats.proposed_by_depth[d] += one.proposed_by_depth[d];
                stats.accepted_by_depth[d] += one.accepted_by_depth[d];
            }
            const Account account = account_of(target, blob.has_draft() ? &draft : nullptr, mode, one, engine);
            decode += account.decode();
            useful += account.useful;
        }
        weight_bytes = decode.bytes.weights;
    }

    double seconds() const { return decode_ms(stats) * 1e-3; }
    double tokens_per_s() const { return ratio(stats.emitted, seconds()); }
};

json counters(const Statistics& s) {
    return {{"target_passes", s.rounds},        {"target_nodes", s.target_nodes},
            {"draft_passes", s.draft_passes},   {"draft_nodes", s.draft_nodes},
            {"ngram_guesses", s.ngram_guesses}, {"ngram_confirmed", s.ngram_confirmed},
            {"proposed", s.proposed},           {"accepted", s.accepted}};
}

json origins(const Statistics& s) {
    return {{"target", s.by_origin[0]}, {"draft", s.by_origin[1]}, {"ngram", s.by_origin[2]}};
}

// What both reports say of a mode; baseline is the setting's own.
json mode_report(Mode mode, const Total& total, const Total& baseline) {
    const double tokens = total.stats.emitted;
    const Traffic& bytes = total.decode.bytes;
    json about = {{"mode", mode_name(mode)},
                  {"tokens", total.stats.emitted},
                  {"seconds", total.seconds()},
                  {"tokens_per_s", total.tokens_per_s()},
                  {"speedup", ratio(total.tokens_per_s(), baseline.tokens_per_s())},
                  {"tokens_per_target_pass", ratio(tokens, total.stats.rounds)},
                  {"bytes_per_token", ratio(bytes.total(), tokens)},
                  {"weight_bytes_per_token", ratio(total.weight_bytes, tokens)},
                  {"relative_bandwidth",
                   ratio(ratio(total.weight_bytes, tokens), ratio(baseline.weight_bytes, baseline.stats.emitted))},
                  {"bytes",
                   {{"weights", bytes.weights},
                    {"embeddings", bytes.embeddings},
                    {"kv_read", bytes.kv_read},
                    {"kv_written", bytes.kv_written},
                    {"logits", bytes.logits}}},
                  {"flops", total.decode.flops},
                  {"useful_flops", total.useful.flops}};
    about["counts"] = counters(total.stats);
    about["by_origin"] = origins(total.stats);
    return about;
}

json settings_json(const BenchPlan& plan) {
    const TreeSettings& t = plan.tree;
    return {{"max_tokens", plan.max_tokens},
            {"ignore_eos", plan.ignore_eos},
            {"repeats", plan.repeats},
            {"tree",
             {{"nodes", t.nodes},
              {"depth", t.depth},
              {"children", t.children},
              {"draft_width", t.draft_width},
              {"draft_passes", t.draft_passes},
              {"ngram_nodes", t.ngram_nodes}}}};
}

json sampling_json(const Sampling& s) {
    return {{"temperature", s.temperature}, {"top_k", s.top_k}, {"top_p", s.top_p}, {"seed", s.seed}};
}

}  // namespace

json bench_report(const BenchPlan& plan, const std::vector<std::vector<Measured>>& results, const Blob& blob,
                  const EngineFacts& engine) {
    json report = settings_json(plan);
    for (size_t s = 0; s < plan.settings.size(); ++s) {
        const std::vector<Measured>& measured = results[s];
        json setting = {{"name", plan.settings[s].name}, {"sampling", sampling_json(plan.settings[s].sampling)}};
        int looping = 0;
        for (const Measured& result : measured) looping += loops(result.tokens);
        setting["looping_share"] = ratio(looping, double(measured.size()));

        const Total baseline(measured, 0, plan.modes[0], blob, engine);
        for (size_t m = 0; m < plan.modes.size(); ++m) {
            const Total total(measured, m, plan.modes[m], blob, engine);
            const Statistics& t = total.stats;
            json mode = mode_report(plan.modes[m], total, baseline);
            mode["tokens_per_s_with_prefill"] = ratio(t.emitted, t.total_ms * 1e-3);
            std::vector<double> speed, speedup, whole;
            for (const Measured& result : measured) {
                const Statistics &one = result.by_mode[m], &base = result.by_mode[0];
                whole.push_back(one.total_ms);
                if (one.emitted == 0) continue;
                speed.push_back(1e3 * ratio(one.emitted, decode_ms(one)));
                speedup.push_back(ratio(decode_ms(base), decode_ms(one)));
            }
            mode["prompt_tokens_per_s"] = distribution(speed);
            mode["prompt_speedup"] = distribution(speedup);
            mode["median_prompt_ms_with_prefill"] = quantile(whole, 0.5);
            mode["ms"] = {{"prefill", t.prefill_ms},
                          {"draft", t.draft_ms},
                          {"ngram", t.ngram_ms},
                          {"target", t.target_ms},
                          {"rest", std::max(0.0, decode_ms(t) - t.draft_ms - t.ngram_ms - t.target_ms)}};
            mode["ngram_confirmed_share"] = ratio(t.ngram_confirmed, t.ngram_guesses);
            mode["by_depth"] = json::array();
            for (int d = 1; d <= kMaxDepth && t.proposed_by_depth[d]; ++d)
                mode["by_depth"].push_back(
                    {{"depth", d}, {"proposed", t.proposed_by_depth[d]}, {"accepted", t.accepted_by_depth[d]}});
            setting["modes"].push_back(mode);
        }
        for (size_t p = 0; p < measured.size(); ++p) {
            json prompt = {{"name", plan.prompts[p].name},
                           {"prompt_tokens", plan.prompts[p].ids.size()},
                           {"tokens", measured[p].tokens.size()},
                           {"loops", loops(measured[p].tokens)}};
            for (size_t m = 0; m < plan.modes.size(); ++m) {
                const Statistics& one = measured[p].by_mode[m];
                json mode = {{"mode", mode_name(plan.modes[m])},
                             {"prefill_ms", one.prefill_ms},
                             {"decode_ms", decode_ms(one)},
                             {"tokens_per_s", 1e3 * ratio(one.emitted, decode_ms(one))}};
                mode["counts"] = counters(one);
                mode["by_origin"] = origins(one);
                prompt["modes"].push_back(mode);
            }
            setting["prompts"].push_back(prompt);
        }
        report["settings"].push_back(setting);
    }
    return report;
}

json roofline_report(const BenchPlan& plan, const std::vector<Measured>& results, const Blob& blob,
                     const EngineFacts& engine, const Ceilings& ceilings) {
    json report = settings_json(plan);
    report["sampling"] = sampling_json(plan.settings[0].sampling);
    report["ceilings"] = {{"read_bytes_per_s", ceilings.read_bytes_per_s},
                          {"read_method", ceilings.read_method},
                          {"flops_per_s", ceilings.flops_per_s},
                          {"flops_method", ceilings.flops_method}};
    const Total baseline(results, 0, plan.modes[0], blob, engine);
    for (size_t m = 0; m < plan.modes.size(); ++m) {
        const Total total(results, m, plan.modes[m], blob, engine);
        const double bytes = total.decode.bytes.total(), flops = total.decode.flops, seconds = total.seconds();
        const double intensity = ratio(flops, bytes);
        const double roof = std::min(ceilings.flops_per_s, intensity * ceilings.read_bytes_per_s);
        json mode = mode_report(plan.modes[m], total, baseline);
        mode["flops_per_s"] = ratio(flops, seconds);
        mode["useful_flops_per_s"] = ratio(total.useful.flops, seconds);
        mode["bytes_per_s"] = ratio(bytes, seconds);
        mode["intensity"] = intensity;
        mode["useful_intensity"] = ratio(total.useful.flops, bytes);
        mode["roof_share"] = ratio(ratio(flops, seconds), roof);
        mode["bandwidth_share"] = ratio(ratio(bytes, seconds), ceilings.read_bytes_per_s);
        report["modes"].push_back(mode);
    }
    return report;
}

json facts_json(const DeviceFacts& facts) {
    json about = {{"kind", facts.kind}, {"name", facts.name}};
    if (!facts.driver.empty()) about["driver"] = facts.driver;
    about["clocks"] = facts.clocks;
    about["cache_bytes"] = facts.cache_bytes;
    return about;
}

// ---- Tables ---------------------------------------------------------------------------------------------------------

namespace {

double number(const json& object, const char* key) {
    return object[key].get<double>();
}

std::string name(const json& mode) {
    return mode["mode"].get<std::string>();
}

}  // namespace

std::string bench_text(const json& report) {
    std::string text;
    for (const json& setting : report["settings"]) {
        text +=
            format("\n%s: %zu prompts, %.0f %% of the texts loop (the last 64 tokens repeat, period 32 or less)\n\n",
                   setting["name"].get<std::string>().c_str(), setting["prompts"].size(),
                   100 * number(setting, "looping_share"));
        text += "             tokens/s  speed-up  with prefill  tokens a pass  MB a token  bandwidth\n";
        for (const json& mode : setting["modes"])
            text += format("%-11s %9.1f %9.2f %13.1f %14.2f %11.2f %10.2f\n", name(mode).c_str(),
                           number(mode, "tokens_per_s"), number(mode, "speedup"),
                           number(mode, "tokens_per_s_with_prefill"), number(mode, "tokens_per_target_pass"),
                           number(mode, "bytes_per_token") / 1e6, number(mode, "relative_bandwidth"));
        for (const auto& [what, key] :
             {std::pair{"tokens/s by prompt", "prompt_tokens_per_s"}, {"speed-up by prompt", "prompt_speedup"}}) {
            text += format("\n%-20s %9s %9s %9s %9s %9s\n", what, "min", "quarter", "median", "quarter", "max");
            for (const json& mode : setting["modes"]) {
                const json& d = mode[key];
                text += format("%-20s %9.2f %9.2f %9.2f %9.2f %9.2f\n", name(mode).c_str(), number(d, "min"),
                               number(d, "q1"), number(d, "median"), number(d, "q3"), number(d, "max"));
            }
        }
        text +=
            "\nwho guessed the tokens, and time of a prompt\n"
            "             target  draft  n-gram  confirmed    median ms  prefill   draft  n-gram  target    rest\n";
        for (const json& mode : setting["modes"]) {
            const json &origin = mode["by_origin"], &ms = mode["ms"];
            const double tokens = std::max(1.0, number(mode, "tokens")),
                         all = number(ms, "prefill") + number(ms, "draft") + number(ms, "ngram") +
                               number(ms, "target") + number(ms, "rest");
            const auto share = [&](const char* key) { return 100 * ratio(number(ms, key), all); };
            text += format(
                "%-11s %5.0f %% %4.0f %% %5.0f %% %8.0f %%   %10.1f %6.1f %% %5.1f %% %5.1f %% %5.1f %% %5.1f %%\n",
                name(mode).c_str(), 100 * number(origin, "target") / tokens, 100 * number(origin, "draft") / tokens,
                100 * number(origin, "ngram") / tokens, 100 * number(mode, "ngram_confirmed_share"),
                number(mode, "median_prompt_ms_with_prefill"), share("prefill"), share("draft"), share("ngram"),
                share("target"), share("rest"));
        }
        text += "\n";
        for (const json& mode : setting["modes"]) {
            if (mode["by_depth"].empty()) continue;
            text += format("%-11s accepted at depth", name(mode).c_str());
            for (const json& depth : mode["by_depth"])
                text += format("  %d: %.0f %%", depth["depth"].get<int>(),
                               100 * ratio(number(depth, "accepted"), number(depth, "proposed")));
            text += "\n";
        }
    }
    text +=
        "\nbandwidth: bytes of weights read for a token, the draft's included, relative to baseline.\n"
        "confirmed: n-gram guesses that the draft then chose too.\n";
    return text;
}

std::string roofline_text(const json& report) {
    const json& c = report["ceilings"];
    const double read = number(c, "read_bytes_per_s"), flops = number(c, "flops_per_s");
    std::string text =
        format("\nread bandwidth %10.1f GB/s     %s\n", read / 1e9, c["read_method"].get<std::string>().c_str());
    text += format("arithmetic     %10.2f TFLOP/s  %s\n", flops / 1e12, c["flops_method"].get<std::string>().c_str());
    text += format("they meet at   %10.1f FLOP/byte\n\n", ratio(flops, read));
    text +=
        "             tokens/s  MB a token    GB/s  of bandwidth  FLOP/byte   GFLOP/s    useful  of the roof  tokens a "
        "pass\n";
    for (const json& mode : report["modes"])
        text +=
            format("%-11s %9.1f %11.2f %7.0f %11.0f %% %10.2f %9.1f %9.1f %10.0f %% %14.2f\n", name(mode).c_str(),
                   number(mode, "tokens_per_s"), number(mode, "bytes_per_token") / 1e6,
                   number(mode, "bytes_per_s") / 1e9, 100 * number(mode, "bandwidth_share"), number(mode, "intensity"),
                   number(mode, "flops_per_s") / 1e9, number(mode, "useful_flops_per_s") / 1e9,
                   100 * number(mode, "roof_share"), number(mode, "tokens_per_target_pass"));
    for (const json& section : report["model"]["sections"])
        if (section["kind"] == "target" || section["kind"] == "draft")
            if (number(section, "bytes") < number(report["device"], "cache_bytes"))
                text +=
                    format("\nThe %s (%.0f MB) fits into the last-level cache (%.0f MB): bytes may come from there.",
                           section["kind"].get<std::string>().c_str(), number(section, "bytes") / 1e6,
                           number(report["device"], "cache_bytes") / 1e6);
    text +=
        "\nBytes and FLOPs are the engine's own account (decode/account.h). GFLOP/s: of all nodes evaluated; useful: "
        "what "
        "baseline\nspends on the same text. Of the roof: GFLOP/s relative to what the ceilings allow at that "
        "FLOP/byte.\n";
    return text;
}

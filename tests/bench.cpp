// bench and roofline: the account equals what is counted by hand, statistics are what their names say, prompt files are
// read or refused in words, and the commands' reports agree with themselves.
#include "decode/bench.h"

#include <doctest/doctest.h>
#include <zlib.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "decode/account.h"
#include "decode/prompts.h"
#include "decode/quantile.h"
#include "kernels/ceilings.h"
#include "model/error.h"
#include "tests/gpu_model.h"
#include "tests/run_program.h"
#include "tests/skip.h"
#include "tests/temporary_folder.h"

using nlohmann::json;

namespace {

constexpr Config kTiny = {.n_layer = 2,
                          .n_head = 2,
                          .n_embd = 32,
                          .n_positions = 64,
                          .n_vocab = 100,
                          .layer_norm_epsilon = 1e-5f,
                          .eos_token = -1,
                          .tied = 1};

// Of kTiny, by hand. A layer: matrices of 96, 32, 128 x 32 and 32 x 128 halves; LayerNorms and biases in floats.
constexpr double kLayerElements = 96 * 32 + 32 * 32 + 128 * 32 + 32 * 128;
constexpr double kLayerBytes = kLayerElements * 2 + (4 * 32 + 96 + 32 + 128 + 32) * 4;
constexpr double kHeadBytes = 112 * 32 * 2 + 2 * 32 * 4;  // 100 rows in tiles of 16, ln_f
constexpr double kHeadElements = 100 * 32;

std::string refused(const std::string& path) {
    try {
        read_prompts(path, 0);
    } catch (const Error& e) {
        CHECK(e.code == kExitUsage);
        return e.what();
    }
    return "";
}

void write(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

void write_gzip(const std::string& path, const std::string& bytes) {
    const gzFile file = gzopen(path.c_str(), "wb");
    REQUIRE(gzwrite(file, bytes.data(), unsigned(bytes.size())) == int(bytes.size()));
    REQUIRE(gzclose(file) == Z_OK);
}

// Emits 1, 2, 3, ...; in staged mode the tenth token is `tenth`. Each generation takes a millisecond longer.
struct CountingDecoder : Decoder {
    int32_t tenth = 10;
    int generations = 0;

    Statistics generate(const Request& request, const std::function<bool(std::span<const Emitted>)>& emit) override {
        Statistics stats;
        stats.prompt_tokens = int(request.prompt.size());
        stats.prefill_ms = 5;
        stats.total_ms = 100 + generations++;
        for (int32_t i = 1; i <= request.max_tokens; ++i) {
            const Emitted token = {request.mode == Mode::staged && i == 10 ? tenth : i, Origin::target};
            emit({&token, 1});
            ++stats.emitted, ++stats.rounds, ++stats.target_nodes, ++stats.by_origin[0];
        }
        return stats;
    }
    TreeSettings default_tree() const override { return {}; }
    EngineFacts facts() const override { return {2, kMaxNodes}; }
    std::string device_name() const override { return "none"; }
    std::vector<float> score(std::span<const int32_t>) override { return {}; }
};

BenchPlan small_plan() {
    BenchPlan plan;
    plan.prompts = {{"first", {1, 2}}, {"second", {3}}};
    plan.settings = {{"greedy", {}}};
    plan.modes = {Mode::baseline, Mode::staged};
    plan.max_tokens = 20;
    plan.repeats = 3;
    return plan;
}

}  // namespace

TEST_CASE("account: a pass of one node costs what is counted by hand") {
    const EngineFacts engine = {.kv_value_bytes = 2, .pass_width = 64};
    const Cost cost = cost_of(kTiny, {.passes = 1, .nodes = 1, .logits = 1, .context = 10, .node_context = 11}, engine);
    CHECK(cost.bytes.weights == 2 * kLayerBytes + kHeadBytes);
    CHECK(cost.bytes.embeddings == 32 * 4);
    CHECK(cost.bytes.kv_read == 10 * 2 * 2 * 32 * 2);  // positions, layers, keys and values, columns, bytes
    CHECK(cost.bytes.kv_written == 2 * 2 * 32 * 2);
    CHECK(cost.bytes.logits == 112 * 4);
    CHECK(cost.flops == 2 * (2 * kLayerElements + kHeadElements) + 2 * 11 * 4 * 32);
}

TEST_CASE("account: nodes share a pass's weights up to its width; without logits the head is not read") {
    const Work work = {.passes = 3, .nodes = 60, .logits = 0, .context = 0, .node_context = 1};
    const Cost wide = cost_of(kTiny, work, {.kv_value_bytes = 4, .pass_width = 64});
    CHECK(wide.bytes.weights == 3 * 2 * kLayerBytes);
    CHECK(wide.bytes.logits == 0);
    CHECK(wide.bytes.kv_written == 60 * 2 * 2 * 32 * 4);
    CHECK(cost_of(kTiny, work, {.kv_value_bytes = 4, .pass_width = 16}).bytes.weights == 2 * wide.bytes.weights);
}

TEST_CASE("account: an untied head is read in place of wte") {
    Config untied = kTiny;
    untied.tied = 0;
    const Work work = {.passes = 1, .nodes = 1, .logits = 1, .context = 10, .node_context = 11};
    const EngineFacts engine = {2, 64};
    CHECK(cost_of(untied, work, engine).bytes.total() == cost_of(kTiny, work, engine).bytes.total());
    CHECK(cost_of(untied, work, engine).flops == cost_of(kTiny, work, engine).flops);
}

TEST_CASE("account: a baseline generation is the sum of its passes, and all of it is useful") {
    const EngineFacts engine = {2, 64};
    Statistics stats;
    stats.prompt_tokens = 7;
    stats.emitted = stats.rounds = stats.target_nodes = 20;
    const Account account = account_of(kTiny, nullptr, Mode::baseline, stats, engine);
    Cost sum;
    for (int i = 0; i < 20; ++i) sum += cost_of(kTiny, {1, 1, 1, 6.0 + i, 7.0 + i}, engine);
    CHECK(account.decode().bytes.total() == sum.bytes.total());
    CHECK(account.decode().flops == sum.flops);
    CHECK(account.useful.flops == sum.flops);
    CHECK(account.prefill.bytes.weights == 2 * kLayerBytes);
    CHECK(account.prefill.bytes.kv_written == 6 * 2 * 2 * 32 * 2);
    CHECK(account.prefill.flops == 6 * 2 * 2 * kLayerElements + (1 + 2 + 3 + 4 + 5 + 6) * 2 * 4 * 32);
}

TEST_CASE("account: prefill reads the weights once a piece, and of the last layer only what makes keys and values") {
    const EngineFacts passes = {.kv_value_bytes = 2, .pass_width = 16}, pieces = {2, 16, 32};
    constexpr double kUnread = 32 * 32 + 128 * 32 + 32 * 128;  // elements: c_proj, c_fc, mlp_proj
    constexpr double kUnreadBytes = kUnread * 2 + (2 * 32 + 32 + 128 + 32) * 4;
    Statistics stats;
    stats.emitted = stats.rounds = stats.target_nodes = 1;
    const auto prefill = [&](int n, const EngineFacts& engine) {
        stats.prompt_tokens = n + 1;
        return account_of(kTiny, nullptr, Mode::baseline, stats, engine).prefill;
    };
    const double layers = 2 * kLayerBytes;
    CHECK(prefill(50, passes).bytes.weights == 4 * layers);
    CHECK(prefill(16, pieces).bytes.weights == layers);
    CHECK(prefill(17, pieces).bytes.weights == layers - kUnreadBytes);
    CHECK(prefill(48, pieces).bytes.weights == 2 * layers - kUnreadBytes);  // the second piece is a pass
    CHECK(prefill(60, pieces).bytes.weights == 2 * (layers - kUnreadBytes));
    CHECK(prefill(48, pieces).bytes.kv_read == 32 * 2 * 2 * 32 * 2);
    CHECK(prefill(48, pieces).bytes.kv_written == prefill(48, passes).bytes.kv_written);
    CHECK(prefill(16, pieces).flops == prefill(16, passes).flops);
    double less = 2 * 17 * kUnread;  // and the last layer's attention
    for (int keys = 1; keys <= 17; ++keys) less += keys * 4 * 32;
    CHECK(prefill(17, passes).flops - prefill(17, pieces).flops == less);
}

TEST_CASE("account: speculation pays for all nodes and for the draft, baseline for neither") {
    const EngineFacts engine = {2, 64};
    Statistics stats;
    stats.prompt_tokens = 7;
    stats.emitted = 20;
    stats.rounds = 5;
    stats.target_nodes = 40;
    stats.draft_passes = 10;
    stats.draft_nodes = 30;
    const Account account = account_of(kTiny, &kTiny, Mode::staged, stats, engine);
    CHECK(account.target.bytes.weights == 5 * (2 * kLayerBytes + kHeadBytes));
    CHECK(account.draft.bytes.weights == 2 * account.target.bytes.weights);
    CHECK(account.target.bytes.kv_written == 40 * 2 * 2 * 32 * 2);
    CHECK(account.target.bytes.kv_read == 5 * (6 + 8.0) * 2 * 2 * 32 * 2);  // rounds begin at 6, 10, .. 22
    CHECK(account.decode().flops > account.useful.flops);
    CHECK(account_of(kTiny, &kTiny, Mode::baseline, stats, engine).draft.bytes.total() == 0);
}

TEST_CASE("quantile: between two samples by linear interpolation, whatever their order") {
    CHECK(quantile({}, 0.5) == 0);
    CHECK(quantile({3}, 0.25) == 3);
    CHECK(quantile({4, 1, 3, 2}, 0) == 1);
    CHECK(quantile({4, 1, 3, 2}, 0.25) == 1.75);
    CHECK(quantile({4, 1, 3, 2}, 0.5) == 2.5);
    CHECK(quantile({4, 1, 3, 2}, 1) == 4);
}

TEST_CASE("loops: the last 64 tokens repeat with a period of at most 32") {
    std::vector<int32_t> tokens(63, 7);
    CHECK(!loops(tokens));
    tokens.push_back(7);
    CHECK(loops(tokens));
    for (const int period : {2, 31, 32, 33, 40}) {
        tokens.clear();
        for (int i = 0; i < 100; ++i) tokens.push_back(i % period + (i < 36 ? 1000 + i : 0));
        CAPTURE(period);
        CHECK(loops(tokens) == (period <= 32));
    }
    tokens.assign(64, 7);
    tokens[0] = 8;
    CHECK(!loops(tokens));
    tokens.insert(tokens.end(), 40, 7);
    CHECK(loops(tokens));
}

TEST_CASE("prompts: plain and gzip files give the same prompts, limits and names included") {
    const TemporaryFolder folder;
    const std::string lines =
        "{\"task_id\": \"A/0\", \"prompt\": \"def f():\\n\", \"test\": \"x\"}\r\n\n  \n{\"prompt\": \"b\"}\n{\"ids\": "
        "[1, 2], "
        "\"id\": 7}";
    write(folder / "plain", lines);
    write_gzip(folder / "packed", lines);
    for (const char* file : {"plain", "packed"}) {
        const std::vector<Prompt> prompts = read_prompts(folder / file, 0);
        REQUIRE(prompts.size() == 3);
        CHECK(prompts[0].name == "A/0");
        CHECK(prompts[0].text == "def f():\n");
        CHECK(prompts[1].name == "line 4");
        CHECK(prompts[2].name == "7");
        CHECK(prompts[2].ids == std::vector<int32_t>{1, 2});
        CHECK(read_prompts(folder / file, 2).size() == 2);
    }
}

TEST_CASE("prompts: a bad line or file is refused with its name, the line and what to do") {
    const TemporaryFolder folder;
    const std::string good = "{\"prompt\": \"a\"}\n";
    for (const char* line :
         {"{\"prompt\": \"a\"", "[1]", "{}", "{\"prompt\": 3}", "{\"prompt\": \"\"}",
          "{\"prompt\": \"a\", \"ids\": [1]}", "{\"ids\": []}", "{\"ids\": [-1]}", "{\"ids\": [1.5]}"}) {
        write(folder / "file", good + "\n" + line + "\n" + good);
        CAPTURE(line);
        const std::string message = refused(folder / "file");
        CHECK(message.find(folder / "file" + ", line 3 ") != std::string::npos);
        CHECK(message.find("mend the line") != std::string::npos);
        CHECK(read_prompts(folder / "file", 1).size() == 1);  // what is not needed is not judged
    }
    write(folder / "file", "\n \n");
    CHECK(refused(folder / "file").find("holds no prompts") != std::string::npos);
    CHECK(refused(folder / "none").find("No such file") != std::string::npos);
    CHECK(refused(folder.path).find("directory") != std::string::npos);

    std::string lines;
    for (int i = 0; i < 500; ++i) lines += "{\"prompt\": \"" + std::to_string(i * 7919 % 1000) + "\"}\n";
    write_gzip(folder / "packed", lines);
    std::filesystem::resize_file(folder / "packed", std::filesystem::file_size(folder / "packed") / 2);
    CHECK(refused(folder / "packed").find("damaged") != std::string::npos);
}

TEST_CASE("prompts: the built-in set holds 20 of code and 20 of prose, by turns") {
    const std::vector<Prompt> prompts = built_in_prompts(0);
    REQUIRE(prompts.size() == 40);
    for (size_t i = 0; i < prompts.size(); ++i) CHECK(prompts[i].name.starts_with(i % 2 ? "prose/" : "code/"));
    CHECK(built_in_prompts(3).size() == 3);
}

TEST_CASE("measure: medians over repeats; other tokens in one mode end it without a speed-up") {
    CountingDecoder decoder;
    const BenchPlan plan = small_plan();
    const auto results = measure(decoder, plan, [](const std::string&) {});
    CHECK(decoder.generations == 2 + 2 * 2 * 3);  // two warm up
    REQUIRE(results.size() == 1);
    REQUIRE(results[0].size() == 2);
    CHECK(results[0][0].tokens.size() == 20);
    CHECK(results[0][0].by_mode[0].total_ms == 104);  // of 102, 104, 106
    CHECK(results[0][0].by_mode[1].total_ms == 105);
    CHECK(results[0][1].by_mode[0].total_ms == 110);

    decoder.tenth = 11;
    try {
        measure(decoder, plan, [](const std::string&) {});
        FAIL("different outputs were accepted");
    } catch (const Error& e) {
        CHECK(e.code == kExitFailed);
        CHECK(std::string(e.what()).find("staged (greedy, prompt first)") != std::string::npos);
        CHECK(std::string(e.what()).find("token 10") != std::string::npos);
    }
}

TEST_CASE("bench command: the report of the demo model agrees with itself") {
    const TemporaryFolder folder;
    const ProgramRun run = staged_gpt2({"bench", "--limit", "2", "--max-tokens", "40", "--repeats", "1", "--seed", "5",
                                        "--ignore-eos", "--json", folder / "b.json"});
    REQUIRE(run.exit_code == 0);
    CHECK(run.out.find("speed-up") != std::string::npos);
    CHECK(run.err.find("prompt 2 of 2") != std::string::npos);
    const json report = json::parse(std::ifstream(folder / "b.json"));
    CHECK(report["report"] == "bench");
    CHECK(report["device"]["kind"] == "cpu");
    CHECK(report["model"]["checksum"].get<std::string>().size() == 16);
    CHECK(report["command"][0] == "bench");
    CHECK(report["n_prompts"] == 2);
    REQUIRE(report["settings"].size() == 2);
    CHECK(report["settings"][0]["sampling"]["temperature"] == 0);
    CHECK(report["settings"][1]["sampling"]["top_k"] == 50);
    CHECK(report["settings"][1]["sampling"]["seed"] == 5);
    for (const json& setting : report["settings"]) {
        REQUIRE(setting["modes"].size() == 3);
        REQUIRE(setting["prompts"].size() == 2);
        for (size_t m = 0; m < 3; ++m) {
            const json& mode = setting["modes"][m];
            CAPTURE(mode.dump());
            CHECK(mode["tokens"] == 80);
            int by_origin = 0, passes = 0;
            double ms = 0;
            for (const auto& [origin, count] : mode["by_origin"].items()) by_origin += count.get<int>();
            for (const json& prompt : setting["prompts"]) {
                CHECK(prompt["tokens"] == 40);
                passes += prompt["modes"][m]["counts"]["target_passes"].get<int>();
                ms += prompt["modes"][m]["decode_ms"].get<double>();
            }
            CHECK(by_origin == 80);
            CHECK(mode["counts"]["target_passes"] == passes);
            CHECK(mode["tokens_per_target_pass"].get<double>() == doctest::Approx(80.0 / passes));
            CHECK(mode["tokens_per_s"].get<double>() == doctest::Approx(80 / ms * 1e3));
            CHECK(mode["speedup"].get<double>() == doctest::Approx(mode["tokens_per_s"].get<double>() /
                                                                   setting["modes"][0]["tokens_per_s"].get<double>()));
            CHECK(mode["prompt_tokens_per_s"]["min"] <= mode["prompt_tokens_per_s"]["median"]);
            CHECK(mode["prompt_tokens_per_s"]["median"] <= mode["prompt_tokens_per_s"]["max"]);
            CHECK(mode["tokens_per_s_with_prefill"] < mode["tokens_per_s"]);
            CHECK(mode["counts"]["accepted"] <= mode["counts"]["proposed"]);
        }
        CHECK(setting["modes"][0]["relative_bandwidth"] == 1);
        CHECK(setting["modes"][0]["speedup"] == 1);
        CHECK(setting["modes"][1]["relative_bandwidth"] < 1);
        CHECK(setting["modes"][2]["by_origin"]["ngram"] > 0);
    }
}

TEST_CASE(
    "roofline: modes lie below the ceilings of this machine, and --json - leaves nothing else on standard output") {
    const ProgramRun run = staged_gpt2(
        {"roofline", "--limit", "1", "--max-tokens", "60", "--repeats", "1", "--json", "-", "--ignore-eos"});
    REQUIRE(run.exit_code == 0);
    CHECK(run.err.find("read bandwidth") != std::string::npos);
    const json report = json::parse(run.out);
    const double read = report["ceilings"]["read_bytes_per_s"], peak = report["ceilings"]["flops_per_s"];
    CHECK(read > 1e8);
    CHECK(peak > 1e8);
    REQUIRE(report["modes"].size() == 3);
    for (const json& mode : report["modes"]) {
        CAPTURE(mode.dump());
        CHECK(mode["tokens"] == 60);
        CHECK(mode["useful_flops"] == report["modes"][0]["useful_flops"]);
        CHECK(mode["useful_flops"] <= mode["flops"]);
        const double intensity = mode["intensity"], flops = mode["flops_per_s"], bytes = mode["bytes_per_s"];
        CHECK(intensity == doctest::Approx(flops / bytes));
        CHECK(mode["roof_share"].get<double>() == doctest::Approx(flops / std::min(peak, intensity * read)));
        CHECK(bytes == doctest::Approx(mode["bytes_per_token"].get<double>() * mode["tokens_per_s"].get<double>()));
        CHECK(flops < peak);
        CHECK(flops > 0);
    }
    CHECK(report["modes"][0]["flops"] == report["modes"][0]["useful_flops"]);
    CHECK(report["modes"][2]["intensity"] > report["modes"][0]["intensity"]);
}

TEST_CASE(
    "bench command: bad options and prompts are refused with exit code 2, before anything is measured or written") {
    const TemporaryFolder folder;
    write(folder / "bad", "{\"prompt\": \"a\"}\nnonsense\n");
    std::string ids = "{\"ids\": [1";
    for (int i = 1; i < 512; ++i) ids += ", 1";
    write(folder / "long", ids + "]}\n");
    const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
        {{"--prompts", folder / "bad"}, "bad, line 2 is not JSON"},
        {{"--prompts", folder / "none"}, "No such file"},
        {{"--prompts", folder / "long"}, "context of 512"},
        {{"--limit", "0"}, "--limit"},
        {{"--repeats", "x"}, "--repeats"},
        {{"--mode", "staged"}, "--mode"},
        {{"--json", folder.path}, "not a regular file"},
    };
    for (const char* command : {"bench", "roofline"})
        for (const auto& [arguments, word] : cases) {
            std::vector<std::string> all = {command};
            all.insert(all.end(), arguments.begin(), arguments.end());
            const ProgramRun run = staged_gpt2(all);
            CAPTURE(word);
            CHECK(run.exit_code == 2);
            CHECK(run.out == "");
            CHECK(run.err.find(word) != std::string::npos);
            CHECK(std::count(run.err.begin(), run.err.end(), '\n') == 1);
        }
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 2);
}

TEST_CASE("plots: both scripts draw PNG and SVG from the reports alone") {
    if (std::system("python3 -c 'import matplotlib' 2>/dev/null") != 0)
        return skip("python3 has no matplotlib (apt-get install python3-matplotlib)");
    const TemporaryFolder folder;
    for (const std::string name : {"bench", "roofline"}) {
        const std::string report = folder / name + ".json";
        REQUIRE(
            staged_gpt2({name, "--limit", "1", "--max-tokens", "20", "--repeats", "1", "--json", report}).exit_code ==
            0);
        for (const std::string ending : {".png", ".svg"}) {
            const std::string picture = folder / name + ending;
            REQUIRE(std::system(("python3 scripts/plot_" + name + ".py " + report + " -o " + picture).c_str()) == 0);
            std::string head(8, ' ');
            std::ifstream(picture, std::ios::binary).read(head.data(), 8);
            CHECK(head.find(ending == ".png" ? "PNG" : "<?xml") != std::string::npos);
        }
        CHECK(std::system(
                  ("python3 scripts/plot_" + name + ".py " + folder.path + "/none -o x.png 2>/dev/null").c_str()) != 0);
    }
}

// A stand-in for ncu: runs the program and writes the table of two kernels of the generation and one of loading.
TEST_CASE("check_bytes: an account within 5 % of the counters passes, others and failures do not") {
    if (std::system("python3 -c pass 2>/dev/null") != 0) return skip("no python3");
    const TemporaryFolder folder;
    const ProgramRun plain =
        staged_gpt2({"--jsonl", "--mode", "baseline", "--ignore-eos", "--max-tokens", "4"}, "{\"ids\": [1, 2, 3]}\n");
    const json bytes = json::parse(plain.out)["bytes"];
    const double account = bytes["prefill"].get<double>() + bytes["decode"].get<double>();
    const auto check = [&](const std::string& first_kernel, double all) {
        const std::string half = std::to_string(all / 2);
        write(folder / "ncu",
              "#!/bin/sh\nwhile [ \"$1\" != --log-file ]; do shift; done\n"
              "printf '==PROF== Connected\\n\"ID\",\"Kernel Name\",\"dram__bytes_read.sum\","
              "\"dram__bytes_write.sum\"\\n\"\",\"\",\"byte\",\"byte\"\\n\"0\",\"k\",\"" +
                  first_kernel + "\",\"0\"\\n\"1\",\"k\",\"0\",\"" + half + "\"\\n\"2\",\"fold_k\",\"" + half +
                  "\",\"0\"\\n' >\"$2\"\nshift 2\nexec \"$@\"\n");
        std::filesystem::permissions(folder / "ncu", std::filesystem::perms::owner_all);
        return std::system(("python3 scripts/check_bytes.py --modes baseline --device cpu --max-tokens 4 --ids 1 2 3 "
                            "--program " +
                            program_path("staged-gpt2") + " --ncu " + folder.path + "/ncu >" + folder.path +
                            "/out 2>&1")
                               .c_str());
    };
    const auto half = [&](double scale) { return std::to_string(account * scale / 2); };
    CHECK(check(half(1.04), account * 1.04) == 0);
    CHECK(check(half(0.97), account * 0.97) == 0);
    CHECK(check(half(1.07), account * 1.07) != 0);
    CHECK(check("n/a", account) != 0);
    CHECK(check("", account) != 0);
}

TEST_CASE("gpu roofline: the ceilings are those of a GPU, and the modes' outputs are equal there") {
    if (!gpu_or_skip()) return;
    const ProgramRun run = run_program("staged-gpt2", {"roofline", "--device", "cuda", "--limit", "2", "--max-tokens",
                                                       "60", "--repeats", "2", "--json", "-", "--ignore-eos"});
    CAPTURE(run.err);
    REQUIRE(run.exit_code == 0);
    const json report = json::parse(run.out);
    CHECK(report["device"]["kind"] == "cuda");
    CHECK(report["device"]["name"] != "");
    CHECK(report["device"]["driver"] != "");
    CHECK(report["device"]["cache_bytes"] > 1 << 20);
    const double read = report["ceilings"]["read_bytes_per_s"], peak = report["ceilings"]["flops_per_s"];
    CHECK(read > 1e11);
    CHECK(read < 2e13);
    CHECK(peak > 5e12);
    CHECK(peak < 1e16);
    for (const json& mode : report["modes"]) CHECK(mode["flops_per_s"] < peak);
    CHECK(cuda_ceilings(0).flops_per_s == doctest::Approx(peak).epsilon(0.3));
}

// bench --tune: finds settings, keeps them, and later runs take them without changing a text.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "decode/tuning.h"
#include "model/error.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"

namespace {

// The cache of programs that are run, for the time of a test.
struct CacheFolder {
    TemporaryFolder folder;
    std::string before = std::getenv("XDG_CACHE_HOME") ? std::getenv("XDG_CACHE_HOME") : "";
    CacheFolder() { setenv("XDG_CACHE_HOME", folder.path.c_str(), 1); }
    ~CacheFolder() {
        if (before.empty())
            unsetenv("XDG_CACHE_HOME");
        else
            setenv("XDG_CACHE_HOME", before.c_str(), 1);
    }
    std::vector<std::string> files() const {
        std::vector<std::string> found;
        for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path))
            if (entry.is_regular_file()) found.push_back(entry.path());
        return found;
    }
};

// Writes the same text at whatever setting; how long it takes depends on the tree alone. Counts what it is asked for.
class TimedDecoder : public Decoder {
public:
    std::set<float> greedy_taus, sampled_taus;

    Statistics generate(const Request& request, const std::function<bool(std::span<const Emitted>)>& emit) override {
        const bool sampled = request.sampling.temperature > 0;
        if (request.mode != Mode::baseline) (sampled ? sampled_taus : greedy_taus).insert(request.tree.tau);
        const Emitted token = {1, Origin::target};
        emit({&token, 1});
        Statistics stats;
        stats.emitted = 1;
        stats.total_ms = 10 + std::abs(request.tree.nodes - 12) + (sampled ? std::abs(request.tree.tau - 2) : 0.0);
        return stats;
    }
    TreeSettings default_tree() const override { return {}; }
    EngineFacts facts() const override { return {}; }
    std::string device_name() const override { return "timed"; }
    std::vector<float> score(std::span<const int32_t>) override { return {}; }
};

}  // namespace

TEST_CASE(
    "tuning finds the fastest tree and calibration, and the latter without greedy text, which it does not touch") {
    TimedDecoder decoder;
    BenchPlan plan;
    plan.prompts = {{"one", {1, 2}}};
    plan.settings = {{"greedy", {}}, {"sampled", {.temperature = 1}}};
    plan.modes = {Mode::baseline, Mode::staged};
    plan.tree = {.nodes = 16, .tau = 0.9f};
    const Tuned tuned = tune(decoder, plan, [](const std::string&) {});
    CHECK(tuned.tree.nodes == 12);
    CHECK(tuned.tree.tau == 2);
    CHECK(tuned.tokens_per_s == doctest::Approx(100));
    CHECK(decoder.sampled_taus == std::set<float>{0.75f, 0.9f, 1, 2, 3});

    plan.settings.pop_back();
    CHECK(tune(decoder, plan, [](const std::string&) {}).tree.tau == 0.9f);
    CHECK(decoder.greedy_taus == std::set<float>{0.9f});
}

TEST_CASE("bench --tune keeps a tree that later runs take, and the text stays the same") {
    CacheFolder cache;
    const std::vector<std::string> write = {"--max-tokens", "24", "--stats", "class Stack:"};
    const ProgramRun before = staged_gpt2(write);
    REQUIRE(before.exit_code == 0);
    const ProgramRun run = run_program(
        "staged-gpt2", {"bench", "--device", "cpu", "--tune", "--limit", "1", "--repeats", "1", "--max-tokens", "6"});
    REQUIRE_MESSAGE(run.exit_code == 0, run.err);
    const auto files = cache.files();
    REQUIRE(files.size() == 1);
    CHECK(run.out.find("kept in " + files[0]) != run.out.npos);
    CHECK(load_tuning(files[0]).has_value());

    // A file with one node a tree: later runs guess nothing, and write the same.
    Tuned tuned = {*load_tuning(files[0]), 1, ""};
    tuned.tree.nodes = 1;
    save_tuning(files[0], tuned);
    const ProgramRun after = staged_gpt2(write);
    REQUIRE(after.exit_code == 0);
    CHECK(after.out == before.out);
    CHECK(before.err.find("1.00 tokens a target pass") == before.err.npos);
    CHECK(after.err.find("1.00 tokens a target pass") != after.err.npos);

    // A damaged file is named and passed over.
    std::ofstream(files[0]) << "{\"tree\": {\"nodes\": 1000}}";
    const ProgramRun damaged = staged_gpt2(write);
    CHECK(damaged.exit_code == 0);
    CHECK(damaged.out == before.out);
    CHECK(damaged.err.find(files[0] + " holds no usable \"nodes\"") != damaged.err.npos);
}

TEST_CASE("tuning files: what is not one is refused, no file is no settings") {
    TemporaryFolder folder;
    const std::string path = folder.path + "/tree.json";
    CHECK(!load_tuning(path).has_value());
    const std::string tree_alone =
        "{\"tree\": {\"nodes\": 8, \"depth\": 4, \"children\": 2, \"draft_width\": 4, \"draft_passes\": 2, "
        "\"ngram_nodes\": 1}, ";
    std::ofstream(path) << tree_alone << "\"draft_cost\": 1, \"tau\": 1}";
    CHECK(load_tuning(path).has_value());
    for (const std::string& text :
         {std::string(), std::string("[]"), std::string("{"), std::string("{\"tree\": 3}"),
          tree_alone + "\"draft_cost\": -1, \"tau\": 1}", tree_alone + "\"draft_cost\": 1, \"tau\": 0}"}) {
        std::ofstream(path) << text;
        CHECK_THROWS_AS(load_tuning(path), Error);
    }
    const TreeSettings tree = {.nodes = 9,
                               .depth = 5,
                               .children = 3,
                               .draft_width = 7,
                               .draft_passes = 4,
                               .ngram_nodes = 2,
                               .tau = 0.75f,
                               .draft_cost = 0.25f};
    save_tuning(path, {tree, 10, ""});
    const auto back = load_tuning(path);
    REQUIRE(back.has_value());
    CHECK(back->nodes == 9);
    CHECK(back->draft_width == 7);
    CHECK(back->ngram_nodes == 2);
    CHECK(back->draft_cost == doctest::Approx(0.25));
    CHECK(back->tau == doctest::Approx(0.75));
}

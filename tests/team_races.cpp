// A round's functions are a team's: on the GPU a block's (decode/team.h). Here four threads of the CPU are the team,
// and after every meeting some of them are late, so that a thread which reads what another one writes without meeting
// it in between reads the wrong value. Whole generations have to come out as those of a team of one.
#include <doctest/doctest.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "decode/philox.h"
#include "model/blob.h"

// The functions that follow are this file's own: elsewhere a team is its caller alone.
#undef HD
#define HD static

namespace {
struct Team {
    int size;
    std::barrier<> barrier{size};
    // Meets the others; some are late after it.
    void meet(int thread, uint32_t& meetings) {
        barrier.arrive_and_wait();
        const uint32_t draw = (++meetings * 2654435761u + uint32_t(thread) * 40503u) >> 24;
        if (size > 1 && thread > 0 && draw < 64) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
};
thread_local Team* team = nullptr;
thread_local int thread_of_team = 0;
thread_local uint32_t meetings = 0;
}  // namespace

#define TEAM_THREAD thread_of_team
#define TEAM_THREADS team->size
#define TEAM_MEETS team->meet(thread_of_team, meetings)
#define TEAM_ADDS(number, value) std::atomic_ref(number).fetch_add(value)
#define TEAM_SHARED static
#include "decode/round.h"

namespace {

constexpr int kLimit = 160, kWords = 40;

// A number that is the same for every team.
uint32_t draw(uint32_t seed, uint32_t a, uint32_t b) {
    uint32_t x = seed * 0x9e3779b9u ^ a * 0x85ebca6bu ^ b * 0xc2b2ae35u;
    for (int i = 0; i < 3; ++i) x = (x ^ x >> 15) * 0x2c1b3c6du;
    return x ^ x >> 13;
}

// What a generation leaves behind.
struct Written {
    std::vector<int32_t> text;
    std::vector<int> commits;  // of both models, by round: base, number, slots
    Counters counters;
};

struct Run {
    Generation generation = {};
    uint32_t seed = 0;
    RoundState state = {};
    std::vector<int32_t> text = std::vector<int32_t>(kLimit + kMaxDepth + 2);
    int32_t chosen[kMaxNodes] = {};
    Child child[kMaxNodes * kMaxChildren] = {};
    Written written;

    // The draft's and the target's choices, often the same.
    int32_t wanted(int32_t token, int depth) const {
        return int32_t(draw(seed, uint32_t(token), uint32_t(depth)) % kWords);
    }

    // By every thread of the team.
    void work() {
        while (state.report.going) {
            round_start(state, generation, text.data());
            while (round_plan(state, generation, text.data())) {
                const DraftRound& round = state.draft;
                const int begin = std::max(round_first_with_logits(state), 0);
                team_for(round.n_slots - begin, [&](int i) {
                    const int slot = begin + i;
                    for (int c = 0; c < kMaxChildren; ++c) {
                        const uint32_t x = draw(seed + 1, uint32_t(round.token[slot]), uint32_t(c));
                        child[i * kMaxChildren + c] = {
                            c == int(x % 3) ? wanted(round.token[slot], round.depth[slot]) : int32_t(kWords + c),
                            -0.3f - 0.7f * float(c)};
                    }
                });
                team_sync();
                draft_absorb(state.draft, state.tree, generation.tree, state.first, child);
            }
            team_for(state.tree.n, [&](int i) {
                const Node& node = state.tree.node[i];
                chosen[i] = wanted(node.token, node.depth);
            });
            team_sync();
            round_accept(state, generation, text.data(), chosen);
            if (thread_of_team == 0) note();
            team_sync();
        }
    }

    void note() {
        for (const CommitList& list : {state.target_commit, state.draft_commit}) {
            written.commits.push_back(list.base);
            written.commits.push_back(list.n);
            written.commits.insert(written.commits.end(), list.slot, list.slot + list.n);
        }
    }
};

Written write(int team_size, const TreeSettings& settings, uint32_t seed) {
    Run run;
    run.seed = seed;
    run.generation = {.tree = settings,
                      .table = {},
                      .ngram_nodes = settings.ngram_nodes,
                      .limit = kLimit,
                      .draft_positions = kLimit,
                      .end_token = -1};
    for (int i = 0; i < 5; ++i) run.text[i] = int32_t(draw(seed, 7, uint32_t(i)) % kWords);
    generation_start(run.state, 5, 4, kLimit, StopReason::max_tokens);
    Team members{team_size};
    std::vector<std::thread> threads;
    for (int i = 0; i < team_size; ++i)
        threads.emplace_back([&, i] {
            team = &members;
            thread_of_team = i;
            meetings = 0;
            run.work();
        });
    for (std::thread& thread : threads) thread.join();
    run.written.text.assign(run.text.begin(), run.text.begin() + run.state.n_text);
    run.written.counters = run.state.report.counters;
    return run.written;
}

}  // namespace

TEST_CASE("a round's functions give a team of four, some of them late, what they give a team of one") {
    std::mt19937 generator(21);
    int accepted = 0, confirmed = 0;
    for (int round = 0; round < 12; ++round) {
        TreeSettings settings;
        settings.nodes = 2 + int(generator() % (kMaxNodes - 1));
        settings.depth = 1 + int(generator() % kMaxDepth);
        settings.children = 1 + int(generator() % kMaxChildren);
        settings.draft_width = 2 + int(generator() % 30);
        settings.draft_passes = 1 + int(generator() % 6);
        settings.ngram_nodes = int(generator() % settings.draft_width);
        const uint32_t seed = generator();
        CAPTURE(round);
        const Written one = write(1, settings, seed), four = write(4, settings, seed);
        REQUIRE(one.text.size() == kLimit);
        CHECK(four.text == one.text);
        CHECK(four.commits == one.commits);
        CHECK(std::memcmp(&four.counters, &one.counters, sizeof one.counters) == 0);
        accepted += one.counters.accepted, confirmed += one.counters.ngram_confirmed;
    }
    CHECK(accepted > 500);
    CHECK(confirmed > 50);
}

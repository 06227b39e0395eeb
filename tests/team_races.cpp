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
#include "tests/random_settings.h"

// The functions that follow are this file's own: elsewhere a team is its caller alone.
#undef HD
#define HD static

namespace {
struct Team {
    int size;
    std::barrier<> barrier{size};
};
thread_local Team* team = nullptr;
thread_local int thread_of_team = 0;
thread_local uint32_t meetings = 0;

// The team meets; some are late after it.
void meet() {
    team->barrier.arrive_and_wait();
    ++meetings;
    if (thread_of_team > 0 && philox(0, meetings, uint32_t(thread_of_team)) % 4 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(200));
}
}  // namespace

#define TEAM_THREAD thread_of_team
#define TEAM_THREADS team->size
#define TEAM_MEETS meet()
#define TEAM_ADDS(number, value) std::atomic_ref(number).fetch_add(value)
#define TEAM_SHARED static
#include "decode/round.h"

namespace {

constexpr int kLimit = 160, kWords = 40;

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
        return int32_t(philox(seed, uint32_t(depth), uint32_t(token)) % kWords);
    }

    // By every thread of the team.
    void work() {
        while (state.report.going) {
            round_start(state, generation, text.data());
            while (round_plan(state, generation, text.data())) {
                const DraftRound& round = state.draft;
                const int begin = round_first_with_logits(state);
                team_for(round.n_slots - begin, [&](int i) {
                    const int slot = begin + i;
                    for (int c = 0; c < kMaxChildren; ++c) {
                        const uint32_t x = philox(seed + 1, uint32_t(c), uint32_t(round.token[slot]));
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
    for (int i = 0; i < 5; ++i) run.text[i] = int32_t(philox(seed + 2, uint32_t(i), 0) % kWords);
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
        const TreeSettings settings = random_settings(generator);
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

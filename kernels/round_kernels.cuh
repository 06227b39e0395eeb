// Rounds of staged speculation on the GPU alone: the same decode/round.h as on the CPU, run by a block between the
// passes. All orders lie in device memory, so the host enqueues the same kernels again and again, some sequences ahead:
//
//     once        start_rounds    plans the first pass
//     sequence:   some times
//                   forward_pass  of the draft, over the nodes planned for it
//                   propose       a block a node: its children
//                   plan          lets the tree grow and plans the next draft pass or, when none pays, the target's
//                 forward_pass    of the target, over the tree
//                 choose          a block a node: the target's choice
//                 accept          accepts a path, appends to the text and plans the next round's first pass
//                 commit          both caches take over the accepted nodes; the host gets a report
//
// A pass that is not wanted has n = 0, and its kernels leave at once: the target's while the draft has more to do, the
// draft's when the tree is ready, all after the end of the text. So a sequence may hold any number of draft passes; the
// number that a round most often wants wastes the least.
//
// plan and accept are one block each: on one multiprocessor their instructions stay at hand, and they do little else
// than wait for these.
#pragma once

#include "decode/round.h"
#include "kernels/choose.cuh"
#include "kernels/kv_commit.cuh"

// What the host learns of a sequence. Times since the start, nanoseconds; the meanings are those of Statistics.
struct RoundRecord {
    uint32_t sequence;   // counted from 1; on the host written last
    RoundReport report;  // n_emitted is 0 where no round ended
    unsigned long long draft_ns, ngram_ns, target_ns;
};

constexpr int kRoundThreads = 256;  // of a block between passes

constexpr int kRecords = 8;  // of the last sequences, on the host

enum class Planned { nothing, draft_pass, target_pass };

// What a block works on between passes, in its shared memory meanwhile.
struct alignas(16) RoundWork {
    Generation generation;
    RoundState state;
    Planned planned;
    uint32_t draft_number, target_number;               // of the next pass's first exchange
    uint64_t stamp;                                     // when the last kernel here ended
    unsigned long long draft_ns, ngram_ns, target_ns;   // as in RoundRecord
    alignas(16) uint32_t stop;                          // not 0 ends the text; the host writes it
    alignas(16) Child child[kMaxNodes * kMaxChildren];  // the draft's proposals for the nodes of its pass with logits
};

// In device memory.
struct DeviceRounds {
    RoundWork work;
    Sampling sampling;
    RoundRecord record;
    DevicePass draft_pass, target_pass;
    int32_t chosen[kMaxNodes];
};

struct RoundModel {
    DeviceModel model;
    uint32_t* counter[2];  // of a pass's phases, zero before it
    uint32_t numbers;      // of exchanges, that a pass takes
    PassNodes* nodes;
    NodeLogits logits;  // of the last pass, its first node that has them
};

// The same for all requests: a graph of these kernels can be used again.
struct RoundArguments {
    RoundModel target, draft;
    float* scores;  // (kMaxNodes, pad16(n_vocab)) scratch of the draft
    DeviceRounds* rounds;
    int32_t* text;         // (n_positions)
    RoundRecord* records;  // (kRecords) host memory, by sequence
};

constexpr int kTextWindow = 4 * kRoundThreads;  // a text that may not outgrow it is read from shared memory

static __shared__ uint4 shared_work[sizeof(RoundWork) / sizeof(uint4)], shared_text[kTextWindow / 4];

// Loads the work, and the text for text_of.
__device__ inline RoundWork& load_work(const RoundArguments& a) {
    constexpr int kWords = sizeof shared_work / sizeof(uint4), kEach = (kWords + kRoundThreads - 1) / kRoundThreads;
    uint4 word[kEach], text = {};  // so that all are on their way at once
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        const int i = threadIdx.x + k * kRoundThreads;
        if (i < kWords) word[k] = __ldcg(reinterpret_cast<const uint4*>(&a.rounds->work) + i);
    }
    if (int(threadIdx.x) * 4 < a.target.model.n_positions)  // the text's memory is a multiple of 16 bytes
        text = __ldcg(reinterpret_cast<const uint4*>(a.text) + threadIdx.x);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        const int i = threadIdx.x + k * kRoundThreads;
        if (i < kWords) shared_work[i] = word[k];
    }
    shared_text[threadIdx.x] = text;
    __syncthreads();
    return *reinterpret_cast<RoundWork*>(shared_work);
}
// The text where it is nearest.
__device__ inline int32_t* text_of(const RoundArguments& a, const RoundWork& work) {
    return work.generation.limit <= kTextWindow ? reinterpret_cast<int32_t*>(shared_text) : a.text;
}
// Called after all threads have done their work. What only others write stays as it is.
__device__ inline void store_work(DeviceRounds& rounds) {
    __syncthreads();
    constexpr int kWords = offsetof(RoundWork, stop) / sizeof(uint4);
#pragma unroll
    for (int i = threadIdx.x; i < kWords; i += kRoundThreads)
        reinterpret_cast<uint4*>(&rounds.work)[i] = shared_work[i];
}

// Slots first .. first + n - 1 as the nodes of a pass. token, depth, parent: by slot; parent -1 for depth 0.
template <class Token, class Depth, class Parent>
__device__ inline void write_nodes(PassNodes& nodes, int first, int n, const Token& token, const Depth& depth,
                                   const Parent& parent) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const int slot = first + i;
        int d = depth(slot);
        nodes.token[i] = token(slot);
        nodes.depth[i] = d;
#pragma unroll 1
        for (int at = parent(slot); d > 0; at = parent(at)) nodes.path[--d][i] = uint8_t(at);
    }
}

// Orders the next pass: the draft's if one more pays, else the target's over the tree, nothing after the text's end.
__device__ inline void plan_next(const RoundArguments& a, RoundWork& work, const int32_t* text) {
    RoundState& state = work.state;
    const bool going = state.report.going, drafting = going && round_plan(state, work.generation, text);
    const DraftRound& round = state.draft;
    const Tree& tree = state.tree;
    DevicePass draft = {}, target = {};
    if (drafting) {
        const int n = round.n_slots - state.first;
        draft = {n, round.n_slots - round_first_with_logits(state), round.base, state.first, a.draft.model.n_positions};
        write_nodes(
            *a.draft.nodes, state.first, n, [&](int slot) { return round.token[slot]; },
            [&](int slot) { return slot < round.n_chain ? slot : round.n_chain - 1 + round.depth[slot]; },
            [&](int slot) { return round.parent[slot]; });
    } else if (going) {
        target = {tree.n, tree.n, state.n_text - 1, 0, a.target.model.n_positions};
        write_nodes(
            *a.target.nodes, 0, tree.n, [&](int i) { return tree.node[i].token; },
            [&](int i) { return tree.node[i].depth; }, [&](int i) { return tree.node[i].parent; });
    }
    if (threadIdx.x == 0) {
        DeviceRounds& rounds = *a.rounds;
        for (const RoundModel* model : {&a.draft, &a.target}) *model->counter[0] = *model->counter[1] = 0;
        draft.number = work.draft_number;
        target.number = work.target_number;
        rounds.draft_pass = draft;
        rounds.target_pass = target;
        if (draft.n > 0) work.draft_number += a.draft.numbers;
        if (target.n > 0) work.target_number += a.target.numbers;
        work.planned = drafting ? Planned::draft_pass : going ? Planned::target_pass : Planned::nothing;
    }
}

// Ends the time of a stage that the kernel which began at `begin` followed, and its own.
__device__ inline void take_times(RoundWork& work, unsigned long long& stage_ns, uint64_t begin) {
    const uint64_t end = ptx::nanoseconds();
    stage_ns += begin - work.stamp;
    work.ngram_ns += end - begin;
    work.stamp = end;
}

__global__ void __launch_bounds__(kRoundThreads) start_rounds(const __grid_constant__ RoundArguments a) {
    RoundWork& work = load_work(a);
    const int32_t* text = text_of(a, work);
    round_start(work.state, work.generation, text);
    plan_next(a, work, text);
    if (threadIdx.x == 0) {
        a.rounds->record.report.going = true;
        work.stamp = ptx::nanoseconds();
    }
    store_work(*a.rounds);
}

__global__ void __launch_bounds__(kChooseThreads, 1) propose(const __grid_constant__ RoundArguments a) {
    __shared__ ChooseSpace space;
    DeviceRounds& rounds = *a.rounds;
    const DevicePass pass = rounds.draft_pass;
    const int i = pass.n - pass.n_logits + blockIdx.x;  // the block's node
    if (i >= pass.n) return;
    team_propose({space, kChooseThreads}, a.draft.logits.node(blockIdx.x), rounds.sampling,
                 pass.base + a.draft.nodes->depth[i] + 1, rounds.work.generation.tree.tau,
                 a.scores + uint64_t(blockIdx.x) * pad16(a.draft.model.n_vocab), kMaxChildren,
                 rounds.work.child + blockIdx.x * kMaxChildren);
}

__global__ void __launch_bounds__(kRoundThreads) plan(const __grid_constant__ RoundArguments a) {
    const uint64_t begin = ptx::nanoseconds();
    RoundWork& work = load_work(a);
    if (work.planned != Planned::draft_pass) return;
    draft_absorb(work.state.draft, work.state.tree, work.generation.tree, work.state.first, work.child);
    plan_next(a, work, text_of(a, work));
    if (threadIdx.x == 0) take_times(work, work.draft_ns, begin);
    store_work(*a.rounds);
}

__global__ void __launch_bounds__(kChooseThreads, 1) choose(const __grid_constant__ RoundArguments a) {
    __shared__ ChooseSpace space;
    DeviceRounds& rounds = *a.rounds;
    const DevicePass pass = rounds.target_pass;
    const int i = blockIdx.x;
    if (i >= pass.n) return;
    const int32_t token = team_choose({space, kChooseThreads}, a.target.logits.node(i), rounds.sampling,
                                      pass.base + a.target.nodes->depth[i] + 1);
    if (threadIdx.x == 0) rounds.chosen[i] = token;
}

__global__ void __launch_bounds__(kRoundThreads) accept(const __grid_constant__ RoundArguments a) {
    DeviceRounds& rounds = *a.rounds;
    const uint64_t begin = ptx::nanoseconds();
    __shared__ int32_t chosen[kMaxNodes];
    const int32_t choice = threadIdx.x < kMaxNodes ? __ldcg(&rounds.chosen[threadIdx.x]) : 0;
    RoundWork& work = load_work(a);
    RoundState& state = work.state;
    if (threadIdx.x == 0) atomicAdd(&rounds.record.sequence, 1u);  // waits for nothing
    if (work.planned != Planned::target_pass) {
        if (threadIdx.x == 0)
            rounds.work.state.target_commit.n = rounds.work.state.draft_commit.n = rounds.record.report.n_emitted = 0;
        return;
    }
    if (threadIdx.x < kMaxNodes) chosen[threadIdx.x] = choice;
    __syncthreads();
    int32_t* text = text_of(a, work);
    const int n_text = state.n_text;
    round_accept(state, work.generation, text, chosen);
    for (int i = threadIdx.x; i < state.report.n_emitted; i += blockDim.x) a.text[n_text + i] = text[n_text + i];
    if (threadIdx.x == 0 && work.stop) state.report.going = false;
    __syncthreads();
    static_assert(sizeof(RoundReport) % 4 == 0);
    for (int w = threadIdx.x; w < int(sizeof(RoundReport) / 4); w += blockDim.x)
        reinterpret_cast<uint32_t*>(&rounds.record.report)[w] = reinterpret_cast<const uint32_t*>(&state.report)[w];
    __syncthreads();
    if (state.report.going) round_start(state, work.generation, text);
    plan_next(a, work, text);
    if (threadIdx.x == 0) {
        take_times(work, work.target_ns, begin);
        rounds.record.draft_ns = work.draft_ns;
        rounds.record.ngram_ns = work.ngram_ns;
        rounds.record.target_ns = work.target_ns;
    }
    store_work(rounds);
}

// Blocks: those of the target's commit, then those of the draft's.
__global__ void __launch_bounds__(kRoundThreads) commit(const __grid_constant__ RoundArguments a) {
    const DeviceRounds& rounds = *a.rounds;
    const DeviceModel& m = a.target.model;
    const int n_target = m.n_layer * 2 * m.n_head;
    const bool of_target = int(blockIdx.x) < n_target;
    __shared__ CommitList list;  // whole, so that the slots do not wait for their number
    static_assert(sizeof list / 4 <= kRoundThreads && sizeof list % 4 == 0);
    if (threadIdx.x < sizeof list / 4)
        reinterpret_cast<uint32_t*>(&list)[threadIdx.x] = reinterpret_cast<const uint32_t*>(
            of_target ? &rounds.work.state.target_commit : &rounds.work.state.draft_commit)[threadIdx.x];
    __syncthreads();
    if (of_target)
        commit_rows(m, blockIdx.x, list.base, list.n, list.slot);
    else
        commit_rows(a.draft.model, blockIdx.x - n_target, list.base, list.n, list.slot);
    if (blockIdx.x != 0) return;
    RoundRecord& record = a.records[rounds.record.sequence % kRecords];
    static_assert(offsetof(RoundRecord, sequence) == 0 && sizeof(RoundRecord) % 4 == 0);
    for (int w = 1 + threadIdx.x; w < int(sizeof(RoundRecord) / 4); w += blockDim.x)
        reinterpret_cast<uint32_t*>(&record)[w] = reinterpret_cast<const uint32_t*>(&rounds.record)[w];
    __syncthreads();
    if (threadIdx.x == 0) ptx::store_release_system(&record.sequence, rounds.record.sequence);
}

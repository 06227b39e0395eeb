// The kernels that run passes: one pass, and baseline decoding, which is passes of one node until the text ends.
#pragma once

#include "kernels/choose.cuh"
#include "kernels/forward.cuh"
#include "kernels/kv_commit.cuh"

struct DecodeArguments {
    PassArguments pass;  // base and token are those of the first step
    Sampling sampling;
    int32_t first_token;
    int32_t max_tokens;
    int32_t end_token;     // -1: none
    int32_t* tokens;       // (max_tokens) host memory: what was decoded
    uint32_t* n_tokens;    // host memory: how many of them are there
    const uint32_t* stop;  // host memory: not 0 ends the decode
};

// Keeps two logits of a node and, once for every 16, the greatest of them. at: where the node stands among the logits.
__device__ inline void keep_logits(const PassArguments& a, int at, int row, float low, float high, float greatest) {
    const uint32_t index = uint32_t(at) * pad16(a.model.n_vocab) + row;
    *reinterpret_cast<float2*>(a.scratch.logits + index) = {low, high};
    if (row % 16 == 0) a.scratch.greatest[index / 16] = greatest;
}

template <int W>
__global__ void __launch_bounds__(kBlockThreads, 1) forward_pass(const __grid_constant__ PassArguments a) {
    const DevicePass& whole = a.device_pass ? *a.device_pass : a.pass;
    if (whole.n < a.least || whole.n > a.most || whole.n <= a.at) return;
    if (threadIdx.x == 0) {
        shared_state.pass = pass_part(whole, a.at, W);
        shared_state.pass.number += a.number;
    }
    Block b(a, weight_readers(W), W <= kNarrow);
    const DevicePass& pass = shared_state.pass;
    if (threadIdx.x >= kMultiplyThreads) {
        if (!Stream::takes(threadIdx.x)) return;
        Stream stream{a, Ring(a, true)};
        stream.copy_pass(pass.n_logits > 0);
        stream.drain();
        return;
    }
    if (int(threadIdx.x) < pass.n) {
        shared_state.token[threadIdx.x] = a.nodes->token[pass.nodes_at + threadIdx.x];
        shared_state.depth[threadIdx.x] = a.nodes->depth[pass.nodes_at + threadIdx.x];
        atomicMax(&shared_state.max_depth, shared_state.depth[threadIdx.x]);
    }
    block_barrier();
    forward<W>(b, pass, [&](int row, int node, float low, float high, float greatest) {
        keep_logits(a, shared_state.pass.logits_at + node, row, low, high, greatest);
    });
}

// Takes decoded tokens from block 0's mailbox to the host and the host's stop flag back, in one thread that nothing
// else waits for: each trip takes microseconds.
__device__ inline void carry_mail(const DecodeArguments& d) {
    for (int sent = 0, stop = 0; !stop;) {
        stop = atomicAdd(&shared_state.stop, 0);  // before the last look
        const uint64_t mail = atomicAdd(&shared_state.mail, 0);
        if (int(mail >> 32) == sent) continue;
        d.tokens[sent] = int32_t(uint32_t(mail));
        ptx::store_release_system(d.n_tokens, ++sent);
        if (ptx::load_system(d.stop)) atomicExch(&shared_state.host_stops, 1);
        atomicExch(&shared_state.n_sent, sent);
        stop = 0;
    }
}

// A function of its own, lest it take registers from the pass.
static __device__ __noinline__ int32_t choose_one(ChooseSpace& space, NodeLogits logits, const Sampling& sampling,
                                                  int position) {
    return team_choose({space, kMultiplyThreads}, logits, sampling, position);
}

// Baseline decoding: the token of each step goes to the host and into the next step; nobody waits for the host.
template <bool greedy>
__global__ void __launch_bounds__(kBlockThreads + 32, 1) decode_pass(const __grid_constant__ DecodeArguments d) {
    Block b(d.pass, weight_readers(1), true);
    const DeviceModel& m = d.pass.model;
    const Scratch& s = d.pass.scratch;
    if (threadIdx.x >= kBlockThreads) {
        if (blockIdx.x == 0 && threadIdx.x == kBlockThreads) carry_mail(d);
        return;
    }
    if (threadIdx.x >= kMultiplyThreads) {
        if (!Stream::takes(threadIdx.x)) return;
        Stream stream{d.pass, Ring(d.pass, true)};
        for (int step = 0; step < d.max_tokens && stream.copy_pass(true); ++step) {
        }
        stream.drain();
        return;
    }
    const auto first_thread = [] { return blockIdx.x == 0 && threadIdx.x == 0; };
    DevicePass& pass = shared_state.pass;
    if (threadIdx.x == 0) {
        pass = d.pass.pass;
        shared_state.token[0] = d.first_token;
        shared_state.depth[0] = 0;
        shared_state.best = 0;
    }
    block_barrier();
    for (;;) {
        forward<1>(b, pass, [&](int row, int, float low, float high, float greatest) {
            if constexpr (greedy) {
                uint64_t best = 0;
                if (row < m.n_vocab && low > -INFINITY) best = score_key(low, row);
                if (row + 1 < m.n_vocab && high > -INFINITY) best = max(best, score_key(high, row + 1));
                if (best > *const_cast<volatile unsigned long long*>(&shared_state.best))
                    atomicMax(&shared_state.best, static_cast<unsigned long long>(best));
            } else {
                keep_logits(d.pass, 0, row, low, high, greatest);
            }
        });
        const int step = pass.base - d.pass.pass.base;
        int32_t token;
        if constexpr (greedy) {
            block_barrier();
            if (threadIdx.x == 0)
                atomicMax(reinterpret_cast<unsigned long long*>(s.best + step % 2), shared_state.best);
        }
        if (first_thread()) {
            s.best[(step + 1) % 2] = 0;
            if (atomicAdd(&shared_state.host_stops, 0)) *s.stop = 1;
        }
        b.phase.arrive(gridDim.x, true, true);
        if constexpr (greedy) {
            b.phase.wait(true);
            const uint64_t best = __ldcg(s.best + step % 2);
            token = best ? score_id(best) : 0;
        } else {
            if (blockIdx.x == 0) {
                b.phase.wait(true);
                // What attention works on is free.
                ChooseSpace& space = *reinterpret_cast<ChooseSpace*>(b.partial());
                token = choose_one(space, {s.logits, s.greatest, m.n_vocab}, d.sampling, pass.base + 1);
                if (threadIdx.x == 0) *s.chosen = token;
            }
            b.phase.arrive(1, blockIdx.x == 0, true);
            b.phase.wait(true);
            token = __ldcg(s.chosen);
        }
        if (first_thread()) {
            wait_for(s.failure, Wait::host, [&] { return atomicAdd(&shared_state.n_sent, 0) >= step; });
            atomicExch(&shared_state.mail, uint64_t(step + 1) << 32 | uint32_t(token));
        }
        if (token == d.end_token || __ldcg(s.stop) || step + 1 == d.max_tokens) break;
        block_barrier();  // all have read where this step stood
        if (threadIdx.x == 0) {
            ++pass.base;
            ++pass.slot_rows;
            pass.number += kLayerMatrices * m.n_layer + 2;
            shared_state.token[0] = token;
            shared_state.best = 0;
        }
        block_barrier();
    }
    if (threadIdx.x == 0) atomicExch(&shared_state.stop, 1);
}

struct ChooseArguments {
    NodeLogits logits;  // of the first node that has them
    int first;          // where it stands in the pass
    int base;
    const PassNodes* nodes;
    Sampling sampling;
    __device__ NodeLogits of_node() const { return logits.node(blockIdx.x); }
    __device__ int position() const { return base + nodes->depth[first + blockIdx.x] + 1; }
};

// One block a node.
__global__ void __launch_bounds__(kChooseThreads, 1) choose_kernel(const ChooseArguments a, int32_t* chosen) {
    __shared__ ChooseSpace space;
    const int32_t token = team_choose({space, kChooseThreads}, a.of_node(), a.sampling, a.position());
    if (threadIdx.x == 0) chosen[blockIdx.x] = token;
}
__global__ void __launch_bounds__(kChooseThreads, 1)
    propose_kernel(const ChooseArguments a, float tau, float* scores, int n_children, Child* children) {
    __shared__ ChooseSpace space;
    team_propose({space, kChooseThreads}, a.of_node(), a.sampling, a.position(), tau,
                 scores + uint64_t(blockIdx.x) * pad16(a.logits.n_vocab), n_children,
                 children + blockIdx.x * n_children);
}
__global__ void __launch_bounds__(kChooseThreads, 1)
    log_probability_kernel(const ChooseArguments a, const int32_t* next, float* result) {
    __shared__ ChooseSpace space;
    const float value = team_log_probability({space, kChooseThreads}, a.of_node(), next[blockIdx.x]);
    if (threadIdx.x == 0) result[blockIdx.x] = value;
}

struct CommitArguments {
    DeviceModel model;
    int base, n;
    uint16_t slot[kMaxSlots];  // (n)
};

__global__ void commit_kernel(const __grid_constant__ CommitArguments a) {
    commit_rows(a.model, blockIdx.x, a.base, a.n, a.slot);
}

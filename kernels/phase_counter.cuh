// What a block's threads share, how they wait, and the counter of the phases that anybody counts: one word that only
// grows. A block that worked in a phase adds 1 when it has written its results; a phase is complete when the word has
// reached the sum of the workers of all phases so far.
//
//     work(phase);  arrive(workers of the phase, whether this block was one);  wait();
//
// An arrival that publishes is a release: whoever has waited sees all that was written before. It waits for everything
// that the multiprocessor has under way, the copies of weights too, 1.6 us with one piece of 20 KB under way and 3 us
// with three; so the stream pauses until it is done. An arrival that does not publish costs nothing and merely tells
// when to look: the results then say themselves whether they are there (exchange.cuh). A block that works in a phase
// has seen what was written in the phase before it: hence a sum suffices.
#pragma once

#include "kernels/device_model.h"
#include "kernels/ptx.cuh"

enum class Wait : uint32_t { none, phase, exchange, weights, slot, host };

// Ends the kernel, which has waited too long.
static __device__ __noinline__ void give_up(uint32_t* failure, Wait what) {
    *static_cast<volatile uint32_t*>(failure) = uint32_t(what);
    __threadfence_system();
    __trap();
}

// Turns of a spin loop after which a kernel ends: seconds, where a pass takes a few thousandths of one.
constexpr uint32_t kPatience = 1u << 25;

// Asks there() again and again until it says yes.
template <class There>
__device__ inline void wait_for(uint32_t* failure, Wait what, const There& there) {
#pragma unroll 1
    for (uint32_t turn = 0; turn < kPatience; ++turn)
        if (there()) return;
    give_up(failure, what);
}
// The same where it mostly says yes at once, else after some calls of again().
template <class There, class Again>
__device__ inline void wait_for(uint32_t* failure, Wait what, const There& there, const Again& again) {
    if (there()) [[likely]]
        return;
    wait_for(failure, what, [&] {
        again();
        return there();
    });
}

// Until the phase of that parity of an mbarrier is complete.
__device__ inline void wait_mbarrier(uint32_t barrier, uint32_t parity, uint32_t* failure) {
    wait_for(
        failure, Wait::weights, [&] { return ptx::mbarrier_complete(barrier, parity); }, [] {});
}

// The multiplying warps alone; the streaming warp goes its own way.
__device__ inline void block_barrier() {
    ptx::barrier(1, kMultiplyThreads);
}

constexpr int kMaxRingSlots = 20;
constexpr int kMaxHeldUnits = 8;

// What a block's threads share besides SharedLayout's regions.
struct SharedState {
    uint64_t full[kMaxRingSlots], empty[kMaxRingSlots];  // mbarriers of the ring
    int pauses;                                          // not 0: no more copies for now; set with atomics
    int read;                                            // see Block
    int stop;                                            // nobody will read further weights
    float vectors[kMaxHeldUnits][2][16];                 // of the units being summed
    float mean[kMaxNodes], scale[kMaxNodes];             // of the nodes of a matrix's input, for LayerNorm
    int token[kMaxNodes], depth[kMaxNodes], max_depth;   // of the pass
    uint32_t target, workers;  // of the phase counter: arrivals that complete the last phase, those of it alone
    // Decoding: (step + 1, token) on its way to the host, whom a warp of block 0's talks to.
    unsigned long long best;  // (logit, token) of this block
    unsigned long long mail;
    int n_sent, host_stops;
    DevicePass pass;  // where it changes from pass to pass
};
static_assert(sizeof(SharedState) <= kSharedState);
static __shared__ SharedState shared_state;

// Whether the weights' stream pauses, because the block is about to publish.
__device__ inline void set_pause(bool pauses) {
    atomicExch(&shared_state.pauses, pauses);
}

struct PhaseCounter {
    const Scratch& scratch;
    __device__ explicit PhaseCounter(const Scratch& s) : scratch(s) {
        if (threadIdx.x != 0) return;
        shared_state.target = shared_state.workers = 0;
        if (blockIdx.x == 0) *scratch.next_counter = 0;
    }

    // The block's threads have met since they wrote.
    __device__ void arrive(int workers, bool worked, bool publish) {
        if (threadIdx.x != 0) return;
        shared_state.workers = workers;
        shared_state.target += workers;
        if (worked && publish) {
            set_pause(true);
            ptx::add_release(scratch.counter, 1);
            set_pause(false);
        } else if (worked) {
            ptx::add_relaxed(scratch.counter, 1);
        }
    }

    // published: the last phase published its results. Else some of its arrivals may be missing, one in `missing`, so
    // that what the others wrote is looked for while it is on its way: too early, and the looking fills L2.
    __device__ void wait(bool published, uint32_t missing = 2) {
        if (threadIdx.x == 0) {
            const uint32_t target = shared_state.target - (published ? 0 : shared_state.workers / missing);
            wait_for(scratch.failure, Wait::phase, [&] {
                const uint32_t count =
                    published ? ptx::load_acquire(scratch.counter) : ptx::load_relaxed(scratch.counter);
                return int32_t(count - target) >= 0;
            });
        }
        block_barrier();
    }
};

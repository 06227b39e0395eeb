// The barrier between the phases of a pass: one word that only grows. A block that worked in a phase adds 1 when it has
// written its results; a phase is complete when the word has reached the sum of the workers of all phases so far. One
// trip to L2 to arrive, one to see the last arrival; nobody waits to leave, blocks without work don't take part.
//
//     work(phase);  arrive(workers of the phase, whether this block was one);  prefetch what others don't write;
//     wait();
//
// The release waits for all that the multiprocessor has under way, the copies of weights too: 1.6 us with one piece of
// 20 KB under way, 3 us with three. So a block's stream pauses from its last multiplication until it has arrived.
// A block that works in a phase has waited for the phase before it: hence a sum suffices.
#pragma once

#include "kernels/device_model.h"
#include "kernels/ptx.cuh"

constexpr uint64_t kPatience = 4'000'000'000;  // nanoseconds; a pass takes a few thousandths of this

enum class Wait : uint32_t { none, phase, weights, slot, host };

// Counts the turns of a spin loop and ends the kernel when they have lasted too long.
struct Patience {
    uint32_t* failure;
    uint64_t start = 0;
    uint32_t turns = 0;

    __device__ void turn(Wait what) {
        if (++turns % 1024) return;
        const uint64_t now = ptx::nanoseconds();
        if (start == 0) start = now;
        if (now - start < kPatience) return;
        *static_cast<volatile uint32_t*>(failure) = uint32_t(what);
        __threadfence_system();
        __trap();
    }
};

// The multiplying warps alone; the streaming warp goes its own way.
__device__ inline void block_barrier() {
    ptx::barrier(1, kMultiplyThreads);
}

constexpr int kMaxRingSlots = 16;

// What the multiplying warps are at: the streaming warp sets its pace by it.
enum class Doing { waiting, loading, multiplying, arriving };

// What a block's threads share besides SharedLayout's regions.
struct SharedState {
    uint64_t full[kMaxRingSlots], empty[kMaxRingSlots];  // mbarriers of the ring
    int doing;                                           // Doing; set and read with atomics
    int stop;                                            // nobody will read further weights
    float sums[kMultiplyWarps], squares[kMultiplyWarps];
    float bias[4][16];  // of the tasks being summed
    int token[kMaxNodes], depth[kMaxNodes];
    // Decoding: (step + 1, token) on its way to the host, which the streaming warp of block 0 talks to.
    unsigned long long best;  // (logit, token) of this block
    unsigned long long mail;
    int n_sent, host_stops;
    DevicePass pass;  // where it changes from pass to pass
};
static_assert(sizeof(SharedState) <= kSharedState);
static __shared__ SharedState shared_state;

__device__ inline void set_doing(Doing doing) {
    atomicExch(&shared_state.doing, int(doing));
}

struct PhaseCounter {
    const Scratch& scratch;
    uint32_t target = 0;  // arrivals that complete the last phase
    __device__ explicit PhaseCounter(const Scratch& s) : scratch(s) {}

    __device__ void arrive(int workers, bool worked) {
        target += workers;
        if (!worked) return;
        block_barrier();
        if (threadIdx.x == 0) {
            ptx::add_release(scratch.counter, 1);
            set_doing(Doing::waiting);
        }
    }

    __device__ void wait() {
        if (threadIdx.x == 0) {
            set_doing(Doing::waiting);
            Patience patience{scratch.failure};
            while (int32_t(ptx::load_acquire(scratch.counter) - target) < 0) patience.turn(Wait::phase);
            set_doing(Doing::loading);
        }
        block_barrier();
    }

    // The last block to leave a kernel resets the counter for the next. Everyone has waited for the last phase.
    __device__ void leave() {
        block_barrier();
        if (threadIdx.x == 0 && atomicAdd(scratch.counter + 1, 1) == gridDim.x - 1) {
            scratch.counter[0] = 0;
            scratch.counter[1] = 0;
        }
    }
};

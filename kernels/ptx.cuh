// Every PTX instruction that the kernels use, one wrapper each. sm_90 and later copy weights with cp.async.bulk; sm_80,
// 86 and 89 with cp.async, everything else is the same.
#pragma once

#include <cstdint>

namespace ptx {

__device__ inline uint32_t shared_address(const void* p) {
    return uint32_t(__cvta_generic_to_shared(p));
}

// The same value, which the compiler will keep rather than work out again.
__device__ inline uint32_t kept(uint32_t x) {
    uint32_t y;
    asm volatile("mov.u32 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

template <class T>
__device__ inline T* kept(T* x) {
    T* y;
    asm volatile("mov.u64 %0, %1;" : "=l"(y) : "l"(x));
    return y;
}

// mma.sync.m16n8k16: d += a b; a 16 x 16 and b 16 x 8 fp16, d 16 x 8 fp32. Lane 4 g + t holds of
//     a: (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8, 2t+8..)      two columns each
//     b: (2t.., g) (2t+8.., g)                                two rows each
//     d: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// movmatrix.trans: transposes an 8 x 8 matrix of halves; lane 4 g + t gives (g, 2t..) and gets (2t.., g).
__device__ inline uint32_t transpose(uint32_t a) {
    uint32_t d;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
    return d;
}

// ex2.approx: 2^x, within 2 units in the last place; subnormal results are 0.
__device__ inline float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// x / y for 1 <= y <= 2^126, within 1 unit in the last place: rcp.approx and a Newton step for it and for the quotient.
__device__ inline float quotient(float x, float y) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(y));
    r = __fmaf_rn(__fmaf_rn(-y, r, 1.0f), r, r);
    const float q = __fmul_rn(x, r);
    return __fmaf_rn(__fmaf_rn(-y, q, x), r, q);
}

__device__ inline uint4 load_shared_16(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}
// The same where p holds, else zeros.
__device__ inline uint4 load_shared_16_if(bool p, uint32_t address) {
    uint4 v = {};
    asm volatile("{ .reg .pred q; setp.ne.u32 q, %5, 0; @q ld.shared.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "r"(address), "r"(uint32_t(p))
                 : "memory");
    return v;
}
__device__ inline void store_shared_8(uint32_t address, uint32_t x, uint32_t y) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(x), "r"(y) : "memory");
}
__device__ inline void store_shared_16(uint32_t address, const uint4& v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ inline uint32_t load_shared_4(uint32_t address) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}

// Brings `bytes` (a multiple of 16; at most 4096) at p to L2. By a whole warp.
__device__ inline void prefetch_l2(const void* p, uint32_t bytes) {
    const uint32_t lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
    if (lane == 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
#else
    if (lane * 128 < bytes) asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const uint8_t*>(p) + lane * 128));
#endif
}

// bar.sync: a barrier of the first `threads` threads that name it.
__device__ inline void barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.red.popc: a barrier that counts the threads whose predicate holds.
__device__ inline int barrier_count(int id, int threads, bool predicate) {
    int count;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; bar.red.popc.u32 %0, %1, %2, p; }"
                 : "=r"(count)
                 : "r"(id), "r"(threads), "r"(uint32_t(predicate))
                 : "memory");
    return count;
}

// red.release.gpu / ld.acquire.gpu: publish what the block wrote before, see what others published;
// red.relaxed orders nothing.
__device__ inline void add_release(uint32_t* p, uint32_t value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ inline void add_relaxed(uint32_t* p, uint32_t value) {
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ inline uint32_t load_acquire(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

// st/ld.relaxed.gpu: words of (value, number) past L1, each read and written whole.
__device__ inline void store_word(uint64_t* p, uint32_t value, uint32_t number) {
    asm volatile("{ .reg .b64 w; mov.b64 w, {%1, %2}; st.relaxed.gpu.global.b64 [%0], w; }" ::"l"(p), "r"(value),
                 "r"(number)
                 : "memory");
}
// One word: (value, number).
__device__ inline uint2 load_word(const uint64_t* p) {
    uint2 v;
    asm volatile("{ .reg .b64 w; ld.relaxed.gpu.global.b64 w, [%2]; mov.b64 {%0, %1}, w; }"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p)
                 : "memory");
    return v;
}
// Two of them: p a multiple of 16 bytes.
__device__ inline void store_words(uint64_t* p, uint32_t first, uint32_t second, uint32_t number) {
    asm volatile(
        "{ .reg .b64 v, w; mov.b64 v, {%1, %3}; mov.b64 w, {%2, %3}; st.relaxed.gpu.global.v2.b64 [%0], {v, w}; }" ::
            "l"(p),
        "r"(first), "r"(second), "r"(number)
        : "memory");
}
// (value, number, value, number)
__device__ inline uint4 load_words(const uint64_t* p) {
    uint4 v;
    asm volatile(
        "{ .reg .b64 v, w; ld.relaxed.gpu.global.v2.b64 {v, w}, [%4]; mov.b64 {%0, %1}, v; mov.b64 {%2, %3}, w; }"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p)
        : "memory");
    return v;
}

// The same of values without a number: one, two at a multiple of 8 bytes, four at a multiple of 16.
__device__ inline void store_relaxed(uint32_t* p, uint32_t value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ inline void store_relaxed_2(uint32_t* p, uint32_t first, uint32_t second) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(first), "r"(second) : "memory");
}
__device__ inline void store_relaxed_4(uint32_t* p, const uint4& v) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ inline uint32_t load_relaxed(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ inline uint4 load_relaxed_4(const uint32_t* p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// st.release.sys / ld.relaxed.sys: words that the host reads and writes while the kernel runs.
__device__ inline void store_release_system(uint32_t* p, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ inline uint32_t load_system(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

// Nanoseconds since some moment; it ticks about once a microsecond.
__device__ inline uint64_t nanoseconds() {
    uint64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

// cp.async: 16 bytes from global to shared memory, past L1.
__device__ inline void copy_16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void copies_wait() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// griddepcontrol: the kernel after this one in the stream, if launched so, may start once all blocks have called
// launch_dependents() or ended; wait_for_earlier() returns when all kernels before this one have ended, if these did so
// too, and what they wrote is seen. Before sm_90 kernels start one after the other.
__device__ inline void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// mbarrier: `count` arrivals (and, for bulk copies, the announced bytes) complete a phase; phases alternate in parity.
__device__ inline void mbarrier_init(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ inline void mbarrier_arrive(uint32_t barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}
// Whether the phase of that parity is complete. On sm_90 and later the hardware waits a little before it says no.
__device__ inline bool mbarrier_complete(uint32_t barrier, uint32_t parity) {
    uint32_t done;
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#endif
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done;
}
// The same, never waiting.
__device__ inline bool mbarrier_complete_now(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done;
}

#if __CUDA_ARCH__ >= 900
// fence.proxy.async: makes initialised mbarriers known to the copy engine.
__device__ inline void fence_copy_engine() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
// createpolicy: what is read once should not push the rest out of L2.
__device__ inline uint64_t policy_evict_first() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ inline uint64_t policy_evict_normal() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// cp.async.bulk: `bytes` (a multiple of 16) from global to shared memory; the mbarrier counts them as they land.
__device__ inline void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
            "r"(to),
        "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}
#else
// cp.async.mbarrier.arrive.noinc: arrives once the lane's copies so far have landed.
__device__ inline void mbarrier_arrive_after_copies(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
#endif

}  // namespace ptx

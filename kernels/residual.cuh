// The residual stream x and the LayerNorms, which need no exchange of their own:
//
//     x += branch + bias;     weight LayerNorm(x) + b = scale (weight (x ln_weight) - mean along) + constant
//     along = weight ln_weight,  constant = weight ln_bias + b            (vectors of the weights alone, fold.cuh)
//
// So whoever has added up 16 columns of a branch adds them to x, rounds x ln_weight to fp16 as the next matrix's input
// and publishes it; mean and scale = 1 / sqrt(variance + epsilon) enter when the product is there. For these, the sum
// of the 16 columns and the sum of their squared distances from their own mean go along; each block combines all of
// them in one fixed order while its input is on the way. Whichever pass a node is in, the same numbers add up in the
// same order.
//
// A half-warp takes the 16 columns of a node. Bytes to L2 a node and 16 columns: x 64, its part of the matrix input 32,
// sums 8, as words (exchange.cuh) twice that.
#pragma once

#include "kernels/exchange.cuh"

__device__ inline uint32_t pack_halves(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}

// x of node `node` in column 16 unit + row, as it comes from memory: the value, and as a word its number. Waits for
// nothing.
template <bool words>
__device__ inline uint2 load_x(const PassArguments& a, int node, int unit, int row) {
    const int at = node * a.model.n_embd + unit * 16 + row;
    if (words) return ptx::load_word(a.scratch.x.word + at);
    return {__ldcg(a.scratch.x.value + at), 0};
}
// Whether c_proj's blocks load it before they multiply.
HD constexpr bool loads_x_early() {
#if __CUDA_ARCH__ == 900
    return true;
#else
    return false;  // ptxas needs more registers there
#endif
}

// Its value, once it is there.
template <bool words>
__device__ inline float x_value(const PassArguments& a, uint2 loaded, int node, int unit, int row, uint32_t number) {
    if (words && loaded.y != number) {
        Patience patience{a.scratch.failure};
        do {
            patience.turn(Wait::exchange);
            loaded = load_x<words>(a, node, unit, row);
        } while (loaded.y != number);
    }
    return __uint_as_float(loaded.x);
}

// Publishes x of a node's 16 columns, this lane's in column 16 unit + row, row = lane mod 16, and what the matrix
// behind LayerNorm needs of them. By whole warps; `there`: the node is one of the pass. ln_weight: of this column.
template <bool words>
__device__ inline void publish_x(const PassArguments& a, bool there, int node, int unit, int row, float x,
                                 float ln_weight, uint32_t number) {
    const int E = a.model.n_embd;
    float sum = x;
#pragma unroll
    for (int offset = 1; offset < 16; offset *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, offset));
    const float d = __fsub_rn(x, __fmul_rn(sum, 0.0625f));
    float squares = __fmul_rn(d, d);
#pragma unroll
    for (int offset = 1; offset < 16; offset *= 2) squares = __fadd_rn(squares, __shfl_xor_sync(~0u, squares, offset));
    const float input = __fmul_rn(x, ln_weight), next = __shfl_down_sync(~0u, input, 1);
    if (!there) return;
    put<words>(a.scratch.x, node * E + unit * 16 + row, __float_as_uint(x), number);
    if (row % 2 == 0)
        put<words>(a.scratch.input, (node * E + fragment_column(unit * 16 + row)) / 2, pack_halves(input, next),
                   number);
    if (row == 0) put_two<words>(a.scratch.moments, node * (E / 8) + unit * 2, sum, squares, number);
}

// The sums of a node's units of 16 columns, kLanes lanes a node: lane i of these has the units whose number mod 32 is
// i + kLanes r in part[r], ascending.
template <bool words>
struct Moments {
#if __CUDA_ARCH__ == 900
    static constexpr int kLanes = words ? 32 : 16;
    static constexpr int kTogether = 4;         // words that are waited for together
    static constexpr bool kLoadEarly = !words;  // before the matrix input, whose copies would delay them
    static constexpr bool kIdleTake = words;    // by warps that have nothing to multiply while the others multiply
#else                                           // ptxas needs more registers there
    static constexpr int kLanes = 32, kTogether = 1;
    static constexpr bool kLoadEarly = false, kIdleTake = words;
#endif
    static constexpr int kResidues = 32 / kLanes, kWarpNodes = kResidues, kEach = 4;
    static_assert(kEach * 32 * 16 == 4 * kMultiplyThreads);
    float2 part[kResidues][kEach];  // sum, squares

    // Of node `row`, as the matrix before this one left them. Words are waited for.
    __device__ void load(const Block& b, int row, uint32_t number) {
        const PassArguments& a = b.a;
        const int units = a.model.n_embd / 16, lane = b.thread % kLanes;
#pragma unroll
        for (int r = 0; r < kResidues; ++r) {
            if (words) {
#pragma unroll
                for (int k0 = 0; k0 < kEach; k0 += kTogether) {
                    uint32_t offset[kTogether];
                    uint4 pair[kTogether];
#pragma unroll
                    for (int k = 0; k < kTogether; ++k) offset[k] = 2 * (row * units + lane + 32 * (k0 + k));
                    collect(b, a.scratch.moments.word, offset, (units - lane + 31) / 32 - k0, number, pair);
#pragma unroll
                    for (int k = 0; k < kTogether; ++k)
                        part[r][k0 + k] = {__uint_as_float(pair[k].x), __uint_as_float(pair[k].z)};
                }
            } else {
                const float2* from = reinterpret_cast<const float2*>(a.scratch.moments.value) + row * units;
#pragma unroll
                for (int k = 0; k < kEach; ++k) {
                    const int unit = lane + kLanes * r + 32 * k;
                    if (unit < units) part[r][k] = __ldcg(from + unit);
                }
            }
        }
    }

    // The sum of one number a residue, in all of the node's lanes: of residues 16 apart, then 8, 1, 2 and 4.
    static __device__ float total(const float (&value)[kResidues]) {
        float sum = kLanes == 32 ? __fadd_rn(value[0], __shfl_xor_sync(~0u, value[0], 16))
                                 : __fadd_rn(value[0], value[kResidues - 1]);
        sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 8));
#pragma unroll
        for (int offset = 1; offset < 8; offset *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, offset));
        return sum;
    }

    // Mean and scale of the node, in all of its lanes 0 .. kLanes - 1. By whole warps.
    __device__ float2 combine(const DeviceModel& m, int lane) const {
        const int units = m.n_embd / 16;
        float sum[kResidues] = {}, squares[kResidues] = {};
        const auto each = [&](const auto& use) {
#pragma unroll
            for (int r = 0; r < kResidues; ++r)
#pragma unroll
                for (int k = 0; k < kEach; ++k)
                    if (lane + kLanes * r + 32 * k < units) use(r, part[r][k]);
        };
        each([&](int r, const float2& p) { sum[r] = __fadd_rn(sum[r], p.x); });
        const float mean = __fmul_rn(total(sum), m.per_column);
        each([&](int r, const float2& p) {
            const float d = __fsub_rn(__fmul_rn(p.x, 0.0625f), mean);
            squares[r] = __fadd_rn(squares[r], __fmaf_rn(__fmul_rn(d, 16.0f), d, p.y));
        });
        const float variance = __fmul_rn(total(squares), m.per_column);
        return {mean, __frsqrt_rn(__fadd_rn(variance, m.epsilon))};
    }
};

// What LayerNorm makes of a product. mean, scale: of the node.
__device__ inline float normalised(float product, float along, float constant, float mean, float scale) {
    return __fmaf_rn(scale, __fmaf_rn(-mean, along, product), constant);
}

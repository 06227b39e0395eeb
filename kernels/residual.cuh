// The residual stream x and the LayerNorms, which need no exchange of their own:
//
//     x += branch + bias;     weight LayerNorm(x) + b = scale (weight (x ln_weight) - mean along) + constant
//     along = weight ln_weight,  constant = weight ln_bias + b            (vectors of the weights alone, fold.cuh)
//
// So whoever has added up 16 columns of a branch adds them to x, rounds x ln_weight to fp16 as the next matrix's input
// and publishes it; mean and scale = 1 / sqrt(variance + epsilon) enter when the product is there. For these, the sum
// of the 16 columns and the sum of their squared distances from their own mean go along; in each block warps that have
// nothing to multiply yet combine all of them in one fixed order. Whichever pass a node is in, the same numbers add up
// in the same order.
//
// A half-warp takes the 16 columns of a node. Bytes to L2 a node and 16 columns: x 64, its part of the matrix input 32,
// sums 8, as words (exchange.cuh) twice that.
#pragma once

#include "kernels/exchange.cuh"

__device__ inline uint32_t pack_halves(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}

// x of node `node` in a column, as it comes from memory: the value, and as a word its number. Waits for nothing.
template <bool words>
__device__ inline uint2 load_x(const PassArguments& a, int half, const Exchange& exchange, int node, int column) {
    const Rows& x = a.scratch.x[half];
    if (words) return ptx::load_word(x.word + column);
    return {ptx::load_relaxed(row_of(a, x, exchange, node) + column), 0};
}

// Its value, once it is there.
template <bool words>
__device__ inline float x_value(const PassArguments& a, uint2 loaded, int half, const Exchange& exchange, int node,
                                int column) {
    const auto there = [&] { return words ? loaded.y == exchange.number : loaded.x != kAbsent; };
    wait_for(a.scratch.failure, Wait::exchange, there,
             [&] { loaded = load_x<words>(a, half, exchange, node, column); });
    return __uint_as_float(loaded.x);
}

// Publishes x of a node's 16 columns, this lane's in column 16 unit + row, row = lane mod 16, and what the matrix
// behind LayerNorm needs of them. By whole warps; `there`: the node is one of the pass. ln_weight: of this column.
template <bool words>
__device__ inline void publish_x(const PassArguments& a, int half, const Exchange& exchange, bool there, int node,
                                 int unit, int row, float x, float ln_weight) {
    float sum = x;
#pragma unroll
    for (int offset = 1; offset < 16; offset *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, offset));
    const float d = __fsub_rn(x, __fmul_rn(sum, 0.0625f));
    float squares = __fmul_rn(d, d);
#pragma unroll
    for (int offset = 1; offset < 16; offset *= 2) squares = __fadd_rn(squares, __shfl_xor_sync(~0u, squares, offset));
    const float input = __fmul_rn(x, ln_weight), next = __shfl_down_sync(~0u, input, 1);
    if (!there) return;
    if (row % 2 == 0)
        put<words>(a, a.scratch.input[half], exchange, node, fragment_column(unit * 16 + row) / 2,
                   pack_halves(input, next));
    if (row == 0) put_two<words>(a, a.scratch.moments[half], exchange, node, unit * 2, sum, squares);
    put<words>(a, a.scratch.x[half], exchange, node, unit * 16 + row, __float_as_uint(x));
}

// The squared distances of a unit's 16 columns from the node's mean, summed; of the unit the sum and that of the
// squared distances from its own mean.
__device__ inline float squares_about(float mean, float sum, float squares) {
    const float d = __fsub_rn(__fmul_rn(sum, 0.0625f), mean);
    return __fmaf_rn(__fmul_rn(d, 16.0f), d, squares);
}
// The node's scale, from the sum of them all.
__device__ inline float scale_of(const DeviceModel& m, float squares) {
    return __frsqrt_rn(__fadd_rn(__fmul_rn(squares, m.per_column), m.epsilon));
}
// Leaves mean and scale where the results of node `row` find them.
__device__ inline void keep_normal(int row, float2 normal) {
    shared_state.mean[row] = normal.x;
    shared_state.scale[row] = normal.y;
}

// The sums of a node's units of 16 columns, in a warp: lane i has the units i + 32 k in part[k].
struct Moments {
    static constexpr int kTogether = registers_to_spare() ? 4 : 1;  // words that are waited for together
    static constexpr int kEach = 4;
    static_assert(kEach * 32 * 16 == 4 * kMultiplyThreads);
    float2 part[kEach];  // sum, squares

    // Of the only node, once the words are there.
    __device__ void collect_words(const Block& b, uint32_t number) {
        const Rows& rows = b.a.scratch.moments[0];
        const int n_units = b.a.model.n_embd / 16, lane = b.thread % 32;
#pragma unroll
        for (int k0 = 0; k0 < kEach; k0 += kTogether) {
            uint4 pair[kTogether];
            collect<64>(b, rows.word + 2 * lane + 64 * k0, (n_units - lane + 31) / 32 - k0, number, pair);
#pragma unroll
            for (int k = 0; k < kTogether; ++k) part[k0 + k] = {__uint_as_float(pair[k].x), __uint_as_float(pair[k].z)};
        }
    }

    // The sum of the lanes' values: of lanes 16 apart, then 8, 1, 2 and 4.
    static __device__ float total(float sum) {
        sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 16));
        sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 8));
#pragma unroll
        for (int offset = 1; offset < 8; offset *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, offset));
        return sum;
    }

    // Mean and scale of the node, in all lanes. By whole warps.
    __device__ float2 combine(const DeviceModel& m, int lane) const {
        const int n_units = m.n_embd / 16;
        float sum = 0, squares = 0;
#pragma unroll
        for (int k = 0; k < kEach; ++k)
            if (lane + 32 * k < n_units) sum = __fadd_rn(sum, part[k].x);
        const float mean = __fmul_rn(total(sum), m.per_column);
#pragma unroll
        for (int k = 0; k < kEach; ++k) {
            if (lane + 32 * k >= n_units) continue;
            squares = __fadd_rn(squares, squares_about(mean, part[k].x, part[k].y));
        }
        return {mean, scale_of(m, total(squares))};
    }
};

// The same of four nodes of a wide pass, 8 lanes each: lane c of them has the units 16 j + 2 c, + 1, so it stands for
// Moments' lanes 2 c, + 1 with j even, 16 + 2 c, + 1 with j odd, and adds up in their order.
struct RowMoments {
    static constexpr int kEach = 4 * kMultiplyThreads / 16 / 16;
    uint4 part[kEach];  // of two units: sum, squares; sum, squares

    // Of a row that has n_units, once they are there. from: the row's values, from this lane's first on.
    __device__ void collect(const Block& b, const uint32_t* from, int n_units, int c) {
        collect_values(
            b, (n_units - 2 * c + 15) / 16, [&](int k) { return from + 32 * k; }, part);
    }

    static __device__ float total(const float (&of)[2][2]) {  // [j % 2][which of the two]
        float sum[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            sum[e] = __fadd_rn(of[0][e], of[1][e]);
            sum[e] = __fadd_rn(sum[e], __shfl_xor_sync(~0u, sum[e], 4));
        }
        float all = __fadd_rn(sum[0], sum[1]);
        all = __fadd_rn(all, __shfl_xor_sync(~0u, all, 1));
        return __fadd_rn(all, __shfl_xor_sync(~0u, all, 2));
    }

    // Mean and scale of the node, in its lanes. By whole warps.
    __device__ float2 combine(const DeviceModel& m, int c) const {
        const int n_units = m.n_embd / 16;
        float sum[2][2] = {}, squares[2][2] = {};
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            if (16 * j + 2 * c >= n_units) continue;
            sum[j % 2][0] = __fadd_rn(sum[j % 2][0], __uint_as_float(part[j].x));
            sum[j % 2][1] = __fadd_rn(sum[j % 2][1], __uint_as_float(part[j].z));
        }
        const float mean = __fmul_rn(total(sum), m.per_column);
        const auto add = [&](float& to, uint32_t unit_sum, uint32_t unit_squares) {
            to = __fadd_rn(to, squares_about(mean, __uint_as_float(unit_sum), __uint_as_float(unit_squares)));
        };
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            if (16 * j + 2 * c >= n_units) continue;
            add(squares[j % 2][0], part[j].x, part[j].y);
            add(squares[j % 2][1], part[j].z, part[j].w);
        }
        return {mean, scale_of(m, total(squares))};
    }
};

// What LayerNorm makes of a product. mean, scale: of the node.
__device__ inline float normalised(float product, float along, float constant, float mean, float scale) {
    return __fmaf_rn(scale, __fmaf_rn(-mean, along, product), constant);
}

// Fetches n_embd halves of each of n rows of a wide pass into the block's input: nodes node0 .. node0 + n - 1, from
// value `first` on. A warp takes one row at a time. With `moments`, also the nodes' means and scales, which the last
// warps work out when the input is there: nobody needs them before the products, and these warps have the least to
// multiply. wait() is called when only the loads are left to do.
template <int W, class Until>
__device__ inline void collect_rows(const Block& b, const Rows& rows, const Rows* moments, const Exchange& exchange,
                                    int node0, int n, int first, const Until& wait) {
    constexpr int kBatch = registers_to_spare() ? 5 : 1;  // 16-byte loads of a lane under way together
    const PassArguments& a = b.a;
    const int lane = b.thread % 32, steps = a.model.n_embd / 8, n_units = a.model.n_embd / 16;
    const int normal_thread = int(b.thread) - (kMultiplyThreads - 8 * W);  // of those that work out means and scales
    const int normal_row = normal_thread / 8;
    const bool normal = moments && normal_thread >= 0;
    int row = b.thread / 32;
    const uint32_t* from = ptx::kept(row_of(a, rows, exchange, node0 + row) + first + 4 * lane);
    const uint32_t* sums =
        normal ? ptx::kept(row_of(a, *moments, exchange, node0 + normal_row) + 4 * (lane % 8)) : nullptr;
    uint32_t to = ptx::kept(b.input_at(row, 8 * lane));
    const int n_loads = (steps - lane + 31) / 32;
    wait();
#pragma unroll 1
    for (; row < n; row += kMultiplyWarps) {
#pragma unroll 1
        for (int done = 0; done < n_loads; done += kBatch) {
            const uint32_t* batch = from + 128 * done;
            uint4 piece[kBatch];
            collect_values(
                b, n_loads - done, [&](int k) { return batch + 128 * k; }, piece);
#pragma unroll
            for (int k = 0; k < kBatch; ++k)
                if (done + k < n_loads) ptx::store_shared_16(to + (done + k) * 512, piece[k]);
        }
        if (W <= kMultiplyWarps) break;
        from += kMultiplyWarps * a.scratch.layer_values;
        to += kMultiplyWarps * a.shared.input_stride * 2;
    }
    block_barrier();
    if (!normal) return;
    RowMoments of_row;
    of_row.collect(b, sums, normal_row < n ? n_units : 0, lane % 8);
    __syncwarp();
    const float2 normal_of_row = of_row.combine(a.model, lane % 8);
    if (normal_row < n && lane % 8 == 0) keep_normal(normal_row, normal_of_row);
}

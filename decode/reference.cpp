#include "decode/reference.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "model/half.h"

// Eight floats, added and multiplied side by side. GCC spells them with whatever registers the processor has; the
// results do not depend on that.
typedef float Float8 __attribute__((vector_size(32)));
typedef uint32_t Bits8 __attribute__((vector_size(32)));
typedef uint16_t Half8 __attribute__((vector_size(16)));

// Compiled twice, the processor's own version is taken at start: same operations, same bits.
#define FOR_EACH_PROCESSOR __attribute__((target_clones("default", "avx2")))

// Below so many 16 x 16 blocks of work (about 0.1 ms), other threads save little and cost a lot where they have to
// share their processors.
static constexpr int kWorthThreads = 4096;

// A model of few weights is soon waited for by more threads than it can feed.
static constexpr uint64_t kBytesAThread = 4 << 20;

// OpenMP's threads spin for milliseconds when they wait for each other; on a busy machine that made decoding 30 times
// slower. Some microseconds gain as much on an idle one. Runs before the library reads its settings.
__attribute__((constructor(101))) static void spin_briefly() {
    setenv("GOMP_SPINCOUNT", "1000", 0);
}

static constexpr int kChunk = 8;  // blocks of 16 columns converted at a time: 8 KB of float, stays in the first cache

// One row tile: out[c][0..16) = sum over k of weight(row, k) in[c][k], for n columns c.
//   tile: blocks x 256 halves in fragment order     in: (n, blocks x 16)     out: (n, out_stride)
// A lane's 8 weights cover rows g and g + 8 and columns 2t, 2t+1, 2t+8, 2t+9 (model/blob.h); sums[c][g] holds their 8
// partial sums, each over ascending blocks; they are added up at the end.
FOR_EACH_PROCESSOR static void multiply_tile(const uint16_t* tile, int blocks, const float* in, int n, float* out,
                                             size_t out_stride) {
    Float8 sums[kMaxNodes][8] = {};
    for (int chunk = 0; chunk < blocks; chunk += kChunk) {
        const int count = blocks - chunk < kChunk ? blocks - chunk : kChunk;
        Float8 weight[kChunk * 32];
        for (int i = 0; i < count * 32; ++i) {
            Half8 half;
            memcpy(&half, tile + (size_t(chunk) * 32 + i) * 8, sizeof half);
            const Bits8 bits = __builtin_convertvector(half, Bits8);
            // A finite half's exponent and mantissa, read as a float, are its value times 2^-112.
            const Float8 magnitude = (Float8)((bits & 0x7fff) << 13) * 0x1p112f;
            weight[i] = (Float8)((Bits8)magnitude | (bits & 0x8000) << 16);
        }
        for (int c = 0; c < n; ++c) {
            const float* x = in + (size_t(c) * blocks + chunk) * 16;
            Float8 sum[8];
            for (int g = 0; g < 8; ++g) sum[g] = sums[c][g];
            for (int block = 0; block < count; ++block)
                for (int t = 0; t < 4; ++t) {
                    const float *a = x + block * 16 + 2 * t, *b = a + 8;
                    const Float8 columns = {a[0], a[1], a[0], a[1], b[0], b[1], b[0], b[1]};
                    for (int g = 0; g < 8; ++g) sum[g] += weight[block * 32 + g * 4 + t] * columns;
                }
            for (int g = 0; g < 8; ++g) sums[c][g] = sum[g];
        }
    }
    for (int c = 0; c < n; ++c)
        for (int g = 0; g < 8; ++g) {
            const Float8 s = sums[c][g];
            out[c * out_stride + g] = (s[0] + s[1]) + (s[4] + s[5]);
            out[c * out_stride + g + 8] = (s[2] + s[3]) + (s[6] + s[7]);
        }
}

// out = weight in, for n columns. weight: tiles of (rows, columns); in: (n, pad16(columns)), padding 0; out: (n,
// pad16(rows)).
static void matmul(int threads, const uint16_t* weight, int rows, int columns, const float* in, int n, float* out) {
    const int tiles = pad16(rows) / 16, blocks = pad16(columns) / 16;
#pragma omp parallel for schedule(static) num_threads(threads) if (tiles * blocks * n > kWorthThreads)
    for (int tile = 0; tile < tiles; ++tile)
        multiply_tile(weight + size_t(tile) * blocks * 256, blocks, in, n, out + tile * 16, pad16(rows));
}

static float as_half(float x) {
    return half_to_float(float_to_half(x));
}
static void round_row(Rounding rounding, float* row, int n) {
    if (rounding == Rounding::none) return;
    for (int i = 0; i < n; ++i) row[i] = as_half(row[i]);
}

Reference::Moments Reference::moments(const float* x) const {
    const int n = config().n_embd;
    double sum = 0, squares = 0;
    for (int i = 0; i < n; ++i) sum += x[i];
    const double mean = sum / n;
    for (int i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
    return {float(mean), float(1 / std::sqrt(squares / n + config().layer_norm_epsilon))};
}

static float gelu(float x) {
    return 0.5f * x * (1 + std::tanh(0.797884561f * (x + 0.044715f * x * x * x)));  // sqrt(2 / pi)
}

Reference::Reference(const ModelView& model, Rounding rounding) : model_(model), rounding_(rounding) {
    const Config& c = config();
    const size_t row = size_t(c.n_layer) * c.n_embd;
    n_threads_ = int(std::clamp<uint64_t>(model.size / kBytesAThread, 1, omp_get_max_threads()));
    cache_key_.reset(new float[row * c.n_positions]);
    cache_value_.reset(new float[row * c.n_positions]);
    slot_key_.reset(new float[row * kMaxSlots]);
    slot_value_.reset(new float[row * kMaxSlots]);
    stride_ = pad16(c.n_embd);
    logits_stride_ = pad16(c.n_vocab);
    x_.resize(kMaxNodes * stride_);
    h_.resize(kMaxNodes * stride_);
    branch_.resize(kMaxNodes * stride_);
    qkv_.resize(size_t(kMaxNodes) * pad16(3 * c.n_embd));
    mlp_.resize(size_t(kMaxNodes) * pad16(4 * c.n_embd));
    logits_.resize(kMaxNodes * logits_stride_);
    position_.resize(kMaxNodes);
}

uint64_t Reference::bytes() const {
    const Config& c = config();
    return model_.size + uint64_t(2) * c.n_layer * c.n_embd * (c.n_positions + kMaxSlots) * sizeof(float);
}

void Reference::forward(const Pass& pass) {
    const Config& c = config();
    const int n = pass.n, E = c.n_embd, blocks = int(stride_ / 16);
    std::vector<int> depth(pass.first + n);
    for (int slot = 0; slot < pass.first + n; ++slot)
        depth[slot] = pass.parent[slot] < 0 ? 0 : depth[pass.parent[slot]] + 1;

    for (int i = 0; i < n; ++i) {
        const int token = pass.token[pass.first + i], position = pass.base + depth[pass.first + i];
        for (int e = 0; e < E; ++e)
            x_[i * stride_ + e] = half_to_float(model_.wte[tiled_index(token, e, blocks * 16)]) +
                                  half_to_float(model_.wpe[size_t(position) * E + e]);
    }
    const auto add_branch = [&](const float* bias) {  // x += branch + bias
        for (int i = 0; i < n; ++i)
            for (int e = 0; e < E; ++e) x_[i * stride_ + e] += branch_[i * stride_ + e] + bias[e];
    };
    const size_t qkv_stride = pad16(3 * E), mlp_stride = pad16(4 * E);
    for (int l = 0; l < c.n_layer; ++l) {
        const ModelView::Layer& layer = model_.layer[l];
        multiply_normal(layer.c_attn_weight, 3 * E, layer.c_attn_bias, layer.ln_1_weight, layer.ln_1_bias, 0, n,
                        qkv_.data());
        for (int i = 0; i < n; ++i) {
            float* qkv = &qkv_[i * qkv_stride];
            round_row(rounding_, qkv + E, 2 * E);
            memcpy(cached(slot_key_.get(), l, pass.first + i, kMaxSlots), qkv + E, E * sizeof(float));
            memcpy(cached(slot_value_.get(), l, pass.first + i, kMaxSlots), qkv + 2 * E, E * sizeof(float));
        }
        attention(l, pass);
        matmul(n_threads_, layer.c_proj_weight, E, E, h_.data(), n, branch_.data());
        add_branch(layer.c_proj_bias);
        multiply_normal(layer.c_fc_weight, 4 * E, layer.c_fc_bias, layer.ln_2_weight, layer.ln_2_bias, 0, n,
                        mlp_.data());
        for (int i = 0; i < n; ++i) {
            float* mlp = &mlp_[i * mlp_stride];
            for (int e = 0; e < 4 * E; ++e) mlp[e] = gelu(mlp[e]);
            round_row(rounding_, mlp, 4 * E);
        }
        matmul(n_threads_, layer.mlp_proj_weight, E, 4 * E, mlp_.data(), n, branch_.data());
        add_branch(layer.mlp_proj_bias);
    }
    const int first = n - pass.n_logits;
    multiply_normal(model_.lm_head, c.n_vocab, nullptr, model_.ln_f_weight, model_.ln_f_bias, first, n, logits_.data());
    for (int i = first; i < n; ++i) position_[i - first] = pass.base + depth[pass.first + i];
}

// out = weight ((x - mean) scale norm_weight + norm_bias) + bias for the nodes first..n-1. With fp16 roundings x
// norm_weight is what gets rounded, and mean and scale come after the product:
//     out = scale (weight rounded(x norm_weight) - mean (weight norm_weight)) + (weight norm_bias + bias)
// so that whoever has a part of x can hand it on before the whole row is known (kernels/residual.cuh).
//   weight: tiles of (rows, n_embd)     bias: (rows) or null     out: (n - first, pad16(rows))
void Reference::multiply_normal(const uint16_t* weight, int rows, const float* bias, const float* norm_weight,
                                const float* norm_bias, int first, int n, float* out) {
    const int E = config().n_embd;
    const size_t stride = pad16(rows);
    const bool halves = rounding_ == Rounding::half;
    std::vector<Moments> row(n);
    for (int i = first; i < n; ++i) {
        const float* x = &x_[i * stride_];
        float* h = &h_[(i - first) * stride_];
        row[i] = moments(x);
        for (int e = 0; e < E; ++e)
            h[e] = halves ? as_half(x[e] * norm_weight[e])
                          : (x[e] - row[i].mean) * row[i].scale * norm_weight[e] + norm_bias[e];
    }
    matmul(n_threads_, weight, rows, E, h_.data(), n - first, out);
    if (!halves && !bias) return;
    std::vector<float> folded(halves ? 2 * stride : 0);
    if (halves) {
        std::vector<float> norm(2 * stride_);
        std::copy_n(norm_weight, E, norm.data());
        std::copy_n(norm_bias, E, norm.data() + stride_);
        matmul(n_threads_, weight, rows, E, norm.data(), 2, folded.data());
    }
    for (int i = first; i < n; ++i)
        for (int r = 0; r < rows; ++r) {
            float& y = out[(i - first) * stride + r];
            if (halves) y = row[i].scale * (y - row[i].mean * folded[r]) + folded[stride + r];
            if (bias) y += bias[r];
        }
}

// h = softmax(q k / sqrt(head size)) v by node and head. The keys of a node in order of position: the cache below base,
// its ancestors, itself.
void Reference::attention(int l, const Pass& pass) {
    const Config& c = config();
    const int E = c.n_embd, size = c.head_size();
    const float scale = 1 / std::sqrt(float(size));
    const size_t qkv_stride = pad16(3 * E);
#pragma omp parallel for collapse(2) schedule(dynamic, 4) \
    num_threads(n_threads_) if (pass.n * E / 256 * (pass.base + 1) > kWorthThreads)
    for (int i = 0; i < pass.n; ++i)
        for (int head = 0; head < c.n_head; ++head) {
            int path[kMaxSlots], length = 0;  // slots from the node up
            for (int slot = pass.first + i; slot >= 0; slot = pass.parent[slot]) path[length++] = slot;
            const int n_keys = pass.base + length;
            const auto row = [&](float* cache, float* slots, int position) {
                const float* at = position < pass.base
                                      ? cached(cache, l, position, c.n_positions)
                                      : cached(slots, l, path[length - 1 - (position - pass.base)], kMaxSlots);
                return at + head * size;
            };
            const float* q = &qkv_[i * qkv_stride + head * size];
            std::vector<float> weight(n_keys);
            float best = -INFINITY, sum = 0;
            for (int p = 0; p < n_keys; ++p) {
                const float* key = row(cache_key_.get(), slot_key_.get(), p);
                float score = 0;
                for (int d = 0; d < size; ++d) score += q[d] * key[d];
                weight[p] = score * scale;
                best = weight[p] > best ? weight[p] : best;
            }
            for (int p = 0; p < n_keys; ++p) {
                weight[p] = std::exp(weight[p] - best);
                sum += weight[p];
            }
            float* out = &h_[i * stride_ + head * size];
            for (int d = 0; d < size; ++d) out[d] = 0;
            for (int p = 0; p < n_keys; ++p) {
                const float* value = row(cache_value_.get(), slot_value_.get(), p);
                for (int d = 0; d < size; ++d) out[d] += weight[p] * value[d];
            }
            for (int d = 0; d < size; ++d) out[d] /= sum;
            round_row(rounding_, out, size);
        }
}

void Reference::choose(const Sampling& sampling, std::span<int32_t> chosen) {
#pragma omp parallel for schedule(dynamic) num_threads(n_threads_) if (chosen.size() > 1)
    for (int i = 0; i < int(chosen.size()); ++i) chosen[i] = ::choose(logits(i), sampling, position_[i] + 1);
}

void Reference::propose(const Sampling& sampling, float tau, int n_children, std::span<Child> children) {
#pragma omp parallel for schedule(dynamic) num_threads(n_threads_) if (children.size() > size_t(n_children))
    for (int i = 0; i < int(children.size()) / n_children; ++i)
        ::propose(logits(i), sampling, position_[i] + 1, tau, children.subspan(size_t(i) * n_children, n_children));
}

void Reference::log_probability(std::span<const int32_t> next, std::span<float> result) {
    for (size_t i = 0; i < next.size(); ++i) {
        const std::span<const float> row = logits(int(i));
        double best = -INFINITY, sum = 0;
        for (float logit : row) best = logit > best ? logit : best;
        for (float logit : row) sum += std::exp(logit - best);
        result[i] = float(row[next[i]] - best - std::log(sum));
    }
}

void Reference::commit(int base, std::span<const int32_t> slots) {
    const Config& c = config();
    for (int l = 0; l < c.n_layer; ++l)
        for (size_t i = 0; i < slots.size(); ++i) {
            const int position = base + int(i);
            memcpy(cached(cache_key_.get(), l, position, c.n_positions),
                   cached(slot_key_.get(), l, slots[i], kMaxSlots), c.n_embd * sizeof(float));
            memcpy(cached(cache_value_.get(), l, position, c.n_positions),
                   cached(slot_value_.get(), l, slots[i], kMaxSlots), c.n_embd * sizeof(float));
        }
}

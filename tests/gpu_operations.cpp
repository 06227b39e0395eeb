// Each operation of a pass on the GPU against the same operation in double precision on the GPU's own input, so that
// errors do not add up. What blocks exchange in a pass of a model of one layer is still in global memory afterwards
// (kernels/exchange.cuh); of what the residual stream hands on to the next matrix, the head's input alone: c_proj and
// LayerNorm 2 show in c_fc's results.
//
// Tolerances: a sum in fp32 passes fewer than 32 additions in a row, each wrong by 2^-23 of the terms' magnitude at
// most: kSum of the sum of the magnitudes. Where an input was rounded to fp16 out of sight, those elements that lie so
// near a tie that fp32 may round them either way count with their whole step.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <string>

#include "decode/reference.h"
#include "model/half.h"
#include "tests/gpu_fetch.h"
#include "tests/gpu_model.h"

namespace {

constexpr double kSum = 32 * 0x1p-23;
using Row = std::vector<double>;

struct Result {
    Row value, error;  // what fp32 may miss it by
};

double rounded(double v) {
    return half_to_float(float_to_half(float(v)));
}

// The error of a value that was rounded to fp16.
double half_error(double v, double error) {
    return error + 0x1p-11 * (std::fabs(v) + error) + 0x1p-25;
}

// As a matrix takes it: rounded, with the steps that fp32 may flip.
Result as_input(const Result& r) {
    Result out = r;
    for (size_t i = 0; i < r.value.size(); ++i) {
        const double v = r.value[i], e = r.error[i];
        out.value[i] = rounded(v);
        out.error[i] = std::max(rounded(v + e) - out.value[i], out.value[i] - rounded(v - e));
    }
    return out;
}

Result exact(Row values) {
    Row zeros(values.size());
    return {std::move(values), std::move(zeros)};
}

Row embed(const ModelView& m, int token, int position) {
    const int E = m.config.n_embd;
    Row x(E);
    for (int e = 0; e < E; ++e)
        x[e] = half_to_float(m.wte[tiled_index(token, e, E)]) + half_to_float(m.wpe[size_t(position) * E + e]);
    return x;
}

// weight: tiles of (rows, columns), of which columns first.. are multiplied with as many inputs; bias may be null.
Result multiply(const uint16_t* weight, int rows, int columns, int first, const float* bias, const Result& in) {
    Result out = exact(Row(rows));
    for (int r = 0; r < rows; ++r) {
        double sum = bias ? bias[r] : 0, magnitude = std::fabs(sum), error = 0;
        for (size_t k = 0; k < in.value.size(); ++k) {
            const double w = half_to_float(weight[tiled_index(r, first + k, columns)]);
            sum += w * in.value[k];
            magnitude += std::fabs(w * in.value[k]);
            error += std::fabs(w) * in.error[k];
        }
        out.value[r] = sum;
        out.error[r] = error + kSum * magnitude;
    }
    return out;
}

// LayerNorm and the matrix behind it.
struct Norm {
    const uint16_t* weight;
    int rows;
    const float *bias, *ln_weight, *ln_bias;  // bias may be null
    double epsilon;
};

struct MeanAndScale {
    double mean = 0, scale = 0, magnitude = 0;
    MeanAndScale(const Row& x, double epsilon) {
        double variance = 0;
        for (double v : x) mean += v / x.size(), magnitude += std::fabs(v) / x.size();
        for (double v : x) variance += (v - mean) * (v - mean) / x.size();
        scale = 1 / std::sqrt(variance + epsilon);
    }
};

// As it is written.
Row normalise_and_multiply(const Norm& norm, const Row& x) {
    const MeanAndScale m(x, norm.epsilon);
    Row normal(x.size());
    for (size_t i = 0; i < x.size(); ++i) normal[i] = (x[i] - m.mean) * m.scale * norm.ln_weight[i] + norm.ln_bias[i];
    return multiply(norm.weight, norm.rows, int(x.size()), 0, norm.bias, exact(normal)).value;
}

// What the matrix is multiplied with in place of that: x times LayerNorm's weight.
Result scaled(const Result& x, const float* ln_weight) {
    Result out = x;
    for (size_t i = 0; i < x.value.size(); ++i) {
        out.value[i] *= ln_weight[i];
        out.error[i] = std::fabs(ln_weight[i]) * x.error[i] + 0x1p-23 * std::fabs(out.value[i]);
    }
    return out;
}

// The same result from scaled(x), rounded: mean and scale come after the product.
Result multiply_and_normalise(const Norm& norm, const Row& x, const Result& input) {
    const MeanAndScale m(x, norm.epsilon);
    const int E = int(x.size());
    const auto row = [&](const float* values) { return exact(Row(values, values + E)); };
    const Row along = multiply(norm.weight, norm.rows, E, 0, nullptr, row(norm.ln_weight)).value;
    const Row constant = multiply(norm.weight, norm.rows, E, 0, norm.bias, row(norm.ln_bias)).value;
    Result out = multiply(norm.weight, norm.rows, E, 0, nullptr, input);
    for (int r = 0; r < norm.rows; ++r) {
        const double product = out.value[r];
        out.value[r] = m.scale * (product - m.mean * along[r]) + constant[r];
        out.error[r] = m.scale * (out.error[r] + kSum * (std::fabs(product) + m.magnitude * std::fabs(along[r]))) +
                       kSum * std::fabs(constant[r]);
    }
    return out;
}

// One head: q (64), keys and values (n, 64).
Result attend(std::span<const double> q, const std::vector<Row>& keys, const std::vector<Row>& values) {
    Row score(keys.size());
    double worst = 0, best = -INFINITY, total = 0;
    for (size_t p = 0; p < keys.size(); ++p) {
        double magnitude = 0;
        for (int d = 0; d < kHeadSize; ++d) {
            score[p] += q[d] * keys[p][d] / 8;
            magnitude += std::fabs(q[d] * keys[p][d] / 8);
        }
        worst = std::max(worst, magnitude);
        best = std::max(best, score[p]);
    }
    for (double& s : score) total += s = std::exp(s - best);
    Result out = exact(Row(kHeadSize));
    for (int d = 0; d < kHeadSize; ++d) {
        double magnitude = 0;
        for (size_t p = 0; p < keys.size(); ++p) {
            out.value[d] += score[p] / total * values[p][d];
            magnitude += score[p] / total * std::fabs(values[p][d]);
        }
        // A score's error moves its weight and the total; exponent, sums and quotient add theirs.
        out.error[d] = (2 * kSum * worst + 4 * kSum) * magnitude;
    }
    return out;
}

Result gelu(const Result& in) {
    Result out = in;
    for (size_t i = 0; i < in.value.size(); ++i) {
        const double x = in.value[i];
        out.value[i] = 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        out.error[i] = 1.2 * in.error[i] + kSum * std::fabs(x);  // the slope stays below 1.13
    }
    return out;
}

// a + (b + bias).
Result plus(Result a, const Result& b, const float* bias) {
    for (size_t i = 0; i < a.value.size(); ++i) {
        a.value[i] += b.value[i] + bias[i];
        a.error[i] += b.error[i] + 0x1p-23 * (std::fabs(a.value[i]) + std::fabs(b.value[i]) + std::fabs(bias[i]));
    }
    return a;
}

// Checks one operation's result and says where it is furthest out.
void check(const std::string& where, const Row& got, const Result& expected, bool is_half) {
    REQUIRE_MESSAGE(got.size() == expected.value.size(), where);
    size_t worst = 0;
    double excess = -1;
    for (size_t i = 0; i < got.size(); ++i) {
        const double e = expected.error[i], allowed = is_half ? half_error(expected.value[i], e) : e + 1e-30;
        const double ratio = std::fabs(got[i] - expected.value[i]) / allowed;
        if (!(ratio <= excess)) worst = i, excess = std::isfinite(got[i]) ? ratio : INFINITY;
    }
    CHECK_MESSAGE(excess <= 1, where, ", index ", worst, ": got ", got[worst], ", expected ", expected.value[worst],
                  ", ", excess, " times the tolerance");
}

double half_of(uint32_t pair, int which) {
    return half_to_float(uint16_t(pair >> 16 * which));
}

// What blocks exchanged last of a kind in a pass of n nodes, rows of `columns` values: in its last layer, or (after =
// 1) behind it.
struct Exchanged {
    bool words;
    size_t columns, first = 0, apart = 0;
    std::vector<uint64_t> word;
    std::vector<uint32_t> plain;
    Exchanged(const Scratch& s, const Rows& rows, int after, int n) : words(n == 1), columns(rows.columns) {
        if (words) {
            word = fetch(rows.word, columns);
            return;
        }
        first = rows.first, apart = s.layer_values;
        plain = fetch(s.value + size_t(kTurns + after) * kMaxNodes * apart, size_t(kMaxNodes) * apart);
    }
    uint32_t value(int node, size_t column) const {
        return words ? uint32_t(word[node * columns + column]) : plain[node * apart + first + column];
    }
    float single(int node, size_t column) const { return std::bit_cast<float>(value(node, column)); }
    Row halves(int node) const {  // of rows in fragment order
        Row out(2 * columns);
        for (size_t c = 0; c < out.size(); ++c) {
            const size_t at = fragment_column(uint32_t(c));
            out[c] = half_of(value(node, at / 2), at % 2);
        }
        return out;
    }
};

struct RandomTree {
    std::vector<int32_t> token, parent;
    RandomTree(int n, int n_vocab, uint64_t seed) {
        std::mt19937_64 random(seed);
        for (int i = 0; i < n; ++i) {
            token.push_back(int32_t(random() % n_vocab));
            parent.push_back(i == 0 ? -1 : int32_t(random() % 3 ? i - 1 - random() % std::min(i, 3) : random() % i));
        }
    }
    std::vector<int> path(int slot) const {  // from the root to the slot
        std::vector<int> slots;
        for (int at = slot; at >= 0; at = parent[at]) slots.insert(slots.begin(), at);
        return slots;
    }
};

}  // namespace

TEST_CASE("operations one after the other in double precision are the reference engine") {
    // With fp16 roundings a value near a tie may go either way; without them only fp32's sums differ.
    for (const int kind : {0, 1, 2, 3}) {
        const int n_head = 1 + kind % 2;
        const bool halves = kind >= 2;
        const auto half = [&](double v) { return halves ? rounded(v) : v; };
        const auto normal = [&](const Norm& norm, const Row& x) {
            return halves ? multiply_and_normalise(norm, x, as_input(scaled(exact(x), norm.ln_weight))).value
                          : normalise_and_multiply(norm, x);
        };
        const int E = n_head * kHeadSize, n = 20, n_vocab = 77;
        const RandomModel random = make_random_model(1, n_head, E, 64, n_vocab, 3, 0.08f, false);
        const ModelView& m = random.view;
        const ModelView::Layer& l = m.layer[0];
        const RandomTree tree(n, n_vocab, 9);
        Reference reference(m, halves ? Rounding::half : Rounding::none);
        reference.forward({0, 0, n, tree.token.data(), tree.parent.data(), n});
        std::vector<Row> qkv(n);
        const double epsilon = m.config.layer_norm_epsilon;
        for (int i = 0; i < n; ++i) {
            const std::vector<int> path = tree.path(i);
            const Row x = embed(m, tree.token[i], int(path.size()) - 1);
            qkv[i] = normal({l.c_attn_weight, 3 * E, l.c_attn_bias, l.ln_1_weight, l.ln_1_bias, epsilon}, x);
            for (int c = E; c < 3 * E; ++c) qkv[i][c] = half(qkv[i][c]);
            Row attention;
            for (int h = 0; h < n_head; ++h) {
                std::vector<Row> keys, values;
                for (int slot : path) {
                    const auto at = qkv[slot].begin() + E + h * kHeadSize;
                    keys.emplace_back(at, at + kHeadSize);
                    values.emplace_back(at + E, at + E + kHeadSize);
                }
                const Row head = attend({&qkv[i][h * kHeadSize], kHeadSize}, keys, values).value;
                for (double v : head) attention.push_back(half(v));
            }
            const Row middle =
                plus(exact(x), multiply(l.c_proj_weight, E, E, 0, nullptr, exact(attention)), l.c_proj_bias).value;
            const Norm second = {l.c_fc_weight, 4 * E, l.c_fc_bias, l.ln_2_weight, l.ln_2_bias, epsilon};
            Row mlp = gelu(exact(normal(second, middle))).value;
            for (double& v : mlp) v = half(v);
            const Row last =
                plus(exact(middle), multiply(l.mlp_proj_weight, E, 4 * E, 0, nullptr, exact(mlp)), l.mlp_proj_bias)
                    .value;
            const Row logits = normal({m.lm_head, n_vocab, nullptr, m.ln_f_weight, m.ln_f_bias, epsilon}, last);
            for (int v = 0; v < n_vocab; ++v) {
                INFO(n_head, " heads, fp16 ", halves, ", node ", i, ", token ", v);
                CHECK(std::fabs(logits[v] - reference.logits(i)[v]) < (halves ? 2e-3 : 1e-5));
            }
        }
    }
}

TEST_CASE("gpu: each operation of a pass is its twin's on the same input") {
    if (!gpu_or_skip()) return;
    for (const int E : {64, 128, 320, 1280}) {
        const int n_head = E / kHeadSize, n_positions = 200, n_vocab = 77, base = 37, first = 3;
        const RandomModel random = make_random_model(1, n_head, E, n_positions, n_vocab, 3, 0.08f, false);
        const ModelView& m = random.view;
        const ModelView::Layer& l = m.layer[0];
        const double epsilon = m.config.layer_norm_epsilon;
        CudaModel gpu(m, 0);
        const RandomTree text(base, n_vocab, 4), tree(first + kMaxNodes, n_vocab, 9);
        gpu.prefill(0, text.token);
        gpu.forward({base, 0, first, tree.token.data(), tree.parent.data(), 0});  // ancestors of an earlier pass
        for (int n : E == 1280 ? std::vector<int>{1, 13} : std::vector<int>{1, 2, 8, 13, 33, 64}) {
            n = std::min(n, gpu.max_width());  // what is wider goes in several launches
            const Scratch& s = gpu.scratch();
            const Pass pass = {base, first, n, tree.token.data(), tree.parent.data(), n};
            gpu.forward(pass);
            const Exchanged residual(s, s.x[0], 1, n), moments(s, s.moments[0], 1, n), final(s, s.input[0], 1, n),
                attention(s, s.attention, 0, n), mlp(s, s.mlp, 0, n);
            const bool words = n <= kNarrow;
            const std::vector<uint64_t> qkv = fetch(s.qkv.word, size_t(kNarrow) * 2 * E);
            const Exchanged rows_of_qkv(s, s.qkv, 0, std::max(n, 2));
            DeviceModel cache = gpu.device_model();
            std::vector<uint16_t> kv = fetch(cache.kv, size_t(2) * n_head * cache.kv_rows * kHeadSize);
            REQUIRE(!kv.empty());
            cache.kv = kv.data();
            for (int i = 0; i < n; ++i) {
                const auto where = [&](const char* operation) {
                    return std::string(operation) + ", n_embd " + std::to_string(E) + ", pass of " + std::to_string(n) +
                           ", node " + std::to_string(i);
                };
                const std::vector<int> path = tree.path(first + i);
                const Row x = embed(m, pass.token[first + i], base + int(path.size()) - 1);

                const Result expected =
                    multiply_and_normalise({l.c_attn_weight, 3 * E, l.c_attn_bias, l.ln_1_weight, l.ln_1_bias, epsilon},
                                           x, as_input(scaled(exact(x), l.ln_1_weight)));
                const auto third = [&](const Row& r, int k) { return Row(r.begin() + k * E, r.begin() + (k + 1) * E); };
                Row q(E), fresh[2] = {Row(E), Row(E)};
                bool stored = true, numbered = true;
                for (int c = 0; c < E; ++c) {
                    q[c] = words ? std::bit_cast<float>(uint32_t(qkv[i * 2 * E + c])) : rows_of_qkv.single(i, c);
                    for (int v = 0; v < 2; ++v) {
                        const uint16_t row = cache.kv_row(0, v, c / kHeadSize, n_positions + first + i)[c % kHeadSize];
                        fresh[v][c] = half_to_float(row);
                        const size_t at = E + (v * E + c) / 2;
                        const uint32_t pair = words ? uint32_t(qkv[i * 2 * E + at]) : rows_of_qkv.value(i, at);
                        stored &= row == uint16_t(pair >> 16 * (c % 2));
                    }
                }
                CHECK_MESSAGE(stored, where("keys and values in the cache"));
                for (int c = 0; words && c < 2 * E; ++c) numbered &= qkv[i * 2 * E + c] >> 32 == qkv[0] >> 32;
                CHECK_MESSAGE(numbered, where("numbers of the words of c_attn"));
                check(where("embedding, LayerNorm 1, c_attn: q"), q,
                      {third(expected.value, 0), third(expected.error, 0)}, false);
                check(where("embedding, LayerNorm 1, c_attn: keys"), fresh[0],
                      {third(expected.value, 1), third(expected.error, 1)}, true);
                check(where("embedding, LayerNorm 1, c_attn: values"), fresh[1],
                      {third(expected.value, 2), third(expected.error, 2)}, true);

                const Row attended = attention.halves(i);
                for (int h = 0; h < n_head; ++h) {
                    std::vector<Row> rows[2];
                    for (int v = 0; v < 2; ++v)
                        for (int p = 0; p < base + int(path.size()); ++p) {
                            const uint16_t* row = cache.kv_row(0, v, h, p < base ? p : n_positions + path[p - base]);
                            Row values(kHeadSize);
                            for (int d = 0; d < kHeadSize; ++d) values[d] = half_to_float(row[d]);
                            rows[v].push_back(values);
                        }
                    const auto at = attended.begin() + h * kHeadSize;
                    check(where("attention") + ", head " + std::to_string(h), Row(at, at + kHeadSize),
                          attend({&q[h * kHeadSize], kHeadSize}, rows[0], rows[1]), true);
                }

                const Result middle =
                    plus(exact(x), multiply(l.c_proj_weight, E, E, 0, nullptr, exact(attended)), l.c_proj_bias);
                const Row activated = mlp.halves(i);
                check(where("c_proj, LayerNorm 2, c_fc, GELU"), activated,
                      gelu(multiply_and_normalise(
                          {l.c_fc_weight, 4 * E, l.c_fc_bias, l.ln_2_weight, l.ln_2_bias, epsilon}, middle.value,
                          as_input(scaled(middle, l.ln_2_weight)))),
                      true);

                const Result last =
                    plus(middle, multiply(l.mlp_proj_weight, E, 4 * E, 0, nullptr, exact(activated)), l.mlp_proj_bias);
                Row streamed(E);
                for (int c = 0; c < E; ++c) streamed[c] = residual.single(i, c);
                check(where("mlp_proj"), streamed, last, false);
                check(where("input of the head"), final.halves(i), scaled(exact(streamed), m.ln_f_weight), true);
                for (int unit = 0; unit < E / 16; ++unit) {
                    double sum = 0, squares = 0, magnitude = 0;
                    for (int c = 0; c < 16; ++c) {
                        sum += streamed[unit * 16 + c];
                        magnitude += std::fabs(streamed[unit * 16 + c]);
                    }
                    for (int c = 0; c < 16; ++c)
                        squares += (streamed[unit * 16 + c] - sum / 16) * (streamed[unit * 16 + c] - sum / 16);
                    check(where("moments"), {moments.single(i, 2 * unit), moments.single(i, 2 * unit + 1)},
                          {{sum, squares}, {kSum * magnitude, kSum * magnitude * magnitude}}, false);
                }
                const std::vector<float> logits = gpu.logits(i);
                check(where("head"), Row(logits.begin(), logits.end()),
                      multiply_and_normalise({m.lm_head, n_vocab, nullptr, m.ln_f_weight, m.ln_f_bias, epsilon},
                                             streamed, exact(final.halves(i))),
                      false);
            }
        }
        // KV commit: the slots' bytes at their positions, all else as it was.
        DeviceModel model = gpu.device_model();
        const size_t size = size_t(2) * n_head * model.kv_rows * kHeadSize;
        const uint16_t* device = model.kv;
        std::vector<uint16_t> before = fetch(device, size);
        const std::vector<int32_t> slots = {0, 2, 3, 1};
        gpu.commit(base, slots);
        const std::vector<uint16_t> after = fetch(device, size);
        model.kv = before.data();
        for (size_t i = 0; i < slots.size(); ++i)
            for (int block = 0; block < 2 * n_head; ++block)
                std::copy_n(model.kv_row(0, block / n_head, block % n_head, n_positions + slots[i]), kHeadSize,
                            model.kv_row(0, block / n_head, block % n_head, base + int(i)));
        CHECK_MESSAGE(before == after, "KV commit, n_embd ", E);
    }
}

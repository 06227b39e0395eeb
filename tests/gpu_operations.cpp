// Each operation of a pass on the GPU against the same operation in double precision on the GPU's own input, so that
// errors do not add up. What blocks exchange in a pass of a model of one layer is still in global memory afterwards
// (kernels/exchange.cuh). LayerNorm's result of the last matrix only: the head's, or, without logits, c_fc's.
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

// x, of which `error` is what fp32 may have missed it by before.
Result layer_norm(const Row& x, const float* weight, const float* shift, double epsilon) {
    const size_t n = x.size();
    double mean = 0, variance = 0, magnitude = 0;
    for (double v : x) mean += v / n, magnitude += std::fabs(v) / n;
    for (double v : x) variance += (v - mean) * (v - mean) / n;
    const double scale = 1 / std::sqrt(variance + epsilon);
    Result out = exact(Row(n));
    for (size_t i = 0; i < n; ++i) {
        out.value[i] = (x[i] - mean) * scale * weight[i] + shift[i];
        out.error[i] = kSum * ((std::fabs(x[i]) + magnitude) * scale * std::fabs(weight[i]) + std::fabs(shift[i]));
    }
    return out;
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

Row plus(Row a, const Row& b, const float* bias) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i] + bias[i];
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

// What blocks exchanged in a pass of n nodes: sets of rows of `columns` values.
struct Exchanged {
    bool words;
    size_t columns;
    std::vector<uint64_t> word;
    std::vector<uint32_t> plain;
    Exchanged(const Rows& rows, int n, int columns, int sets = 1) : words(n <= kWordNodes), columns(columns) {
        if (words)
            word = fetch(rows.word, size_t(sets) * kWordNodes * columns);
        else
            plain = fetch(rows.value, size_t(sets) * kMaxNodes * columns);
    }
    uint32_t value(int node, size_t column, int set = 0) const {
        return words ? uint32_t(word[(set * kWordNodes + node) * columns + column])
                     : plain[(set * kMaxNodes + node) * columns + column];
    }
    float single(int node, size_t column, int set = 0) const { return std::bit_cast<float>(value(node, column, set)); }
    Row halves(int node) const {  // of rows in fragment order
        Row out(2 * columns);
        for (size_t c = 0; c < out.size(); ++c) {
            const size_t at = fragment_column(uint32_t(c));
            out[c] = half_of(value(node, at / 2), at % 2);
        }
        return out;
    }
    bool numbered(int node) const {  // with the same number throughout
        for (size_t c = 0; words && c < columns; ++c)
            if (word[node * columns + c] >> 32 != word[0] >> 32) return false;
        return true;
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
        const auto input = [&](const Result& r) { return halves ? as_input(r) : r; };
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
            const Result in = input(layer_norm(x, l.ln_1_weight, l.ln_1_bias, epsilon));
            qkv[i] = multiply(l.c_attn_weight, 3 * E, E, 0, l.c_attn_bias, in).value;
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
                plus(x, multiply(l.c_proj_weight, E, E, 0, nullptr, exact(attention)).value, l.c_proj_bias);
            const Result second = input(layer_norm(middle, l.ln_2_weight, l.ln_2_bias, epsilon));
            const Row mlp = input(gelu(multiply(l.c_fc_weight, 4 * E, E, 0, l.c_fc_bias, second))).value;
            const Row last =
                plus(middle, multiply(l.mlp_proj_weight, E, 4 * E, 0, nullptr, exact(mlp)).value, l.mlp_proj_bias);
            const Result final = input(layer_norm(last, m.ln_f_weight, m.ln_f_bias, epsilon));
            const Row logits = multiply(m.lm_head, n_vocab, E, 0, nullptr, final).value;
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
            const Pass pass = {base, first, n, tree.token.data(), tree.parent.data(), 0};
            gpu.forward(pass);
            const Exchanged second(s.input, n, E / 2);  // LayerNorm 2's result
            gpu.forward({base, first, n, pass.token, pass.parent, n});
            const Exchanged final(s.input, n, E / 2), attention(s.attention, n, E / 2), mlp(s.mlp, n, 2 * E);
            const Exchanged qkv(s.qkv, n, n <= kWordNodes ? 2 * E : E), proj(s.proj, n, E),
                mlp_proj(s.mlp_proj, n, E, kSplit);
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

                const Result input = as_input(layer_norm(x, l.ln_1_weight, l.ln_1_bias, epsilon));
                const Result expected = multiply(l.c_attn_weight, 3 * E, E, 0, l.c_attn_bias, input);
                const auto third = [&](const Row& r, int k) { return Row(r.begin() + k * E, r.begin() + (k + 1) * E); };
                Row q(E), fresh[2] = {Row(E), Row(E)};
                bool stored = true;
                for (int c = 0; c < E; ++c) {
                    q[c] = qkv.single(i, c);
                    for (int v = 0; v < 2; ++v) {
                        const uint16_t row = cache.kv_row(0, v, c / kHeadSize, n_positions + first + i)[c % kHeadSize];
                        fresh[v][c] = half_to_float(row);
                        if (qkv.words) stored &= row == uint16_t(qkv.value(i, E + (v * E + c) / 2) >> 16 * (c % 2));
                    }
                }
                CHECK_MESSAGE(stored, where("keys and values in the cache"));
                CHECK_MESSAGE(qkv.numbered(i), where("numbers of the words of c_attn"));
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

                Row branch(E);
                for (int c = 0; c < E; ++c) branch[c] = proj.single(i, c);
                check(where("c_proj"), branch, multiply(l.c_proj_weight, E, E, 0, nullptr, exact(attended)), false);

                const Row middle = plus(x, branch, l.c_proj_bias);
                Result normal = layer_norm(middle, l.ln_2_weight, l.ln_2_bias, epsilon);
                if (n > 1) check(where("LayerNorm 2"), second.halves(i), normal, true);
                normal = n > 1 ? exact(second.halves(i)) : as_input(normal);
                const Row activated = mlp.halves(i);
                check(where("c_fc, GELU"), activated, gelu(multiply(l.c_fc_weight, 4 * E, E, 0, l.c_fc_bias, normal)),
                      true);

                Row sum(E);
                for (int part = 0; part < kSplit; ++part) {
                    Row got(E);
                    for (int c = 0; c < E; ++c) {
                        got[c] = mlp_proj.single(i, c, part);
                        sum[c] += got[c];
                    }
                    check(where("mlp_proj") + ", part " + std::to_string(part), got,
                          multiply(l.mlp_proj_weight, E, 4 * E, part * E, nullptr, exact(third(activated, part))),
                          false);
                }

                normal = layer_norm(plus(middle, sum, l.mlp_proj_bias), m.ln_f_weight, m.ln_f_bias, epsilon);
                if (n > 1) check(where("final LayerNorm"), final.halves(i), normal, true);
                normal = n > 1 ? exact(final.halves(i)) : as_input(normal);
                const std::vector<float> logits = gpu.logits(i);
                check(where("head"), Row(logits.begin(), logits.end()),
                      multiply(m.lm_head, n_vocab, E, 0, nullptr, normal), false);
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

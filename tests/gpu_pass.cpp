// A pass on the GPU: close to the CPU twin, and bits that don't depend on the pass.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <sstream>

#include "decode/generate.h"
#include "decode/reference.h"
#include "tests/gpu_fetch.h"
#include "tests/gpu_hash.h"
#include "tests/gpu_model.h"
#include "tests/skip.h"

namespace {

struct Difference {
    double max = 0, kl = 0;  // largest difference of logits; mean KL divergence, nats
    int rows = 0, top_differs = 0;

    void add(std::span<const float> gpu, std::span<const float> cpu) {
        double best[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, divergence = 0, second = -INFINITY;
        size_t top[2] = {0, 0};
        for (size_t i = 0; i < cpu.size(); ++i) {
            max = std::max<double>(max, std::fabs(double(gpu[i]) - cpu[i]));
            if (!std::isfinite(gpu[i])) max = INFINITY;
            if (cpu[i] > best[0])
                second = best[0], best[0] = cpu[i], top[0] = i;
            else if (cpu[i] > second)
                second = cpu[i];
            if (gpu[i] > best[1]) best[1] = gpu[i], top[1] = i;
        }
        for (size_t i = 0; i < cpu.size(); ++i)
            sum[0] += std::exp(cpu[i] - best[0]), sum[1] += std::exp(gpu[i] - best[1]);
        for (size_t i = 0; i < cpu.size(); ++i) {
            const double p = cpu[i] - best[0] - std::log(sum[0]), q = gpu[i] - best[1] - std::log(sum[1]);
            divergence += std::exp(p) * (p - q);
        }
        kl += divergence;
        ++rows;
        if (best[0] - second > 1e-2 && top[0] != top[1]) ++top_differs;
    }
    double mean_kl() const { return kl / rows; }
    std::string told() const {
        std::ostringstream text;
        text << "mean KL " << mean_kl() << ", largest difference of a logit " << max << ", " << top_differs << " of "
             << rows << " first choices differ where the margin exceeds 0.01";
        return text.str();
    }
};

bool same_bits(std::span<const float> a, std::span<const float> b) {
    return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size_bytes());
}

// The logits after each token of a text, decoded token by token.
std::vector<std::vector<float>> one_by_one(CudaModel& model, std::span<const int32_t> text, int from = 0) {
    std::vector<std::vector<float>> rows;
    const int32_t parent = -1, slot = 0;
    for (size_t p = from; p < text.size(); ++p) {
        model.forward({int(p), 0, 1, &text[p], &parent, 1});
        rows.push_back(model.logits(0));
        model.commit(int(p), {&slot, 1});
    }
    return rows;
}

// A text as the model would be used for: 8 random tokens and n that it samples.
std::vector<int32_t> own_text(CudaModel& model, int n) {
    Request request;
    request.prompt = random_text(8, model.config().n_vocab, 6);
    request.max_tokens = n;
    request.ignore_eos = true;
    request.sampling.temperature = 1;
    std::vector<int32_t> text = request.prompt;
    generate(model, nullptr, {}, request, [&](std::span<const Emitted> emitted) {
        for (const Emitted& one : emitted) text.push_back(one.token);
        return true;
    });
    return text;
}

// Passes of the given width over a text, on both engines.
Difference compare(CudaModel& gpu, Reference& cpu, std::span<const int32_t> text, int width) {
    Difference difference;
    int32_t slots[kMaxNodes];
    for (int i = 0; i < kMaxNodes; ++i) slots[i] = i;
    for (size_t base = 0; base < text.size(); base += width) {
        const int n = int(std::min<size_t>(width, text.size() - base));
        const Pass pass = {int(base), 0, n, text.data() + base, kChain, n};
        gpu.forward(pass);
        cpu.forward(pass);
        for (int i = 0; i < n; ++i) difference.add(gpu.logits(i), cpu.logits(i));
        gpu.commit(int(base), {slots, size_t(n)});
        cpu.commit(int(base), {slots, size_t(n)});
    }
    return difference;
}

// That both engines are close on a random text of n tokens, in passes of the given width.
void check_close(const ModelView& model, CudaModel& gpu, Reference& cpu, int n, int width) {
    const Difference d = compare(gpu, cpu, random_text(n, model.config.n_vocab, 3), width);
    INFO(model.config.n_layer, " layers, ", model.config.n_head, " heads, width ", width, ": ", d.told());
    CHECK(d.mean_kl() < 1e-5);
    CHECK(d.max < 2e-2);
    CHECK(d.top_differs == 0);
}

// How many of the tokens chosen and proposed after the last pass are not the CPU's. logits: of its nodes, a chain that
// ends the pass; position: of the token after the first of them.
int choices_differing(CudaModel& model, const std::vector<std::vector<float>>& logits, int position,
                      const Sampling& sampling, int n_children) {
    constexpr float kTau = 1.5f;
    std::vector<int32_t> chosen(logits.size());
    std::vector<Child> children(logits.size() * n_children), expected(n_children);
    model.choose(sampling, chosen);
    model.propose(sampling, kTau, n_children, children);
    int differing = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
        differing += chosen[i] != choose(logits[i], sampling, position + int(i));
        propose(logits[i], sampling, position + int(i), kTau, expected);
        for (int c = 0; c < n_children; ++c) {
            const Child &a = children[i * n_children + c], &b = expected[c];
            const bool both_nan = std::isnan(a.log_probability) && std::isnan(b.log_probability);
            differing += a.token != b.token || !(both_nan || a.log_probability == b.log_probability);
        }
    }
    return differing;
}

// Trees of several copies of a text's continuation between branches of other tokens, at any base and width: every
// copy's logits must hash to what the text gave token by token. Until `wanted` logit vectors have been compared; how
// many differ.
int hashes_differing(int n_layer, int n_head, int wanted) {
    constexpr int kPositions = 1024, kVocab = 50257;
    const RandomModel random = make_large_model(n_layer, n_head, kPositions, kVocab, 3, 0.04f);
    CudaModel model(random.view, 0);
    const std::vector<int32_t> text = random_text(kPositions, kVocab, 4);
    std::vector<uint64_t> expected(kPositions);
    for (int p = 0; p < kPositions; ++p) {
        const int32_t parent = -1, slot = 0;
        model.forward({p, 0, 1, &text[p], &parent, 1});
        hash_rows(model.device_logits(), kVocab, pad16(kVocab), 1, &expected[p]);
        model.commit(p, {&slot, 1});
    }
    std::mt19937_64 generator(5);
    int compared = 0, different = 0, passes = 0;
    while (compared < wanted) {
        // Now and then the cache is written anew, in pieces of other sizes.
        if (passes++ % 2000 == 0)
            for (int done = 0; done < kPositions;) {
                const int most = generator() % 2 ? 600 : kMaxNodes;
                const int n = std::min<int>(1 + generator() % most, kPositions - done);
                model.prefill(done, {&text[done], size_t(n)});
                done += n;
            }
        const int n = passes % 4 ? kMaxNodes : 1 + int(generator() % kMaxNodes), base = int(generator() % kPositions);
        int32_t token[kMaxNodes], parent[kMaxNodes];
        int depth[kMaxNodes];
        bool copy[kMaxNodes];
        for (int i = 0; i < n; ++i) {
            parent[i] = std::max(-1, generator() % 6 == 0 ? -1 : i - 1 - int(generator() % 4));
            depth[i] = parent[i] < 0 ? 0 : depth[parent[i]] + 1;
            if (base + depth[i] >= kPositions) parent[i] = -1, depth[i] = 0;
            copy[i] = (parent[i] < 0 || copy[parent[i]]) && generator() % 12;
            token[i] = copy[i] ? text[base + depth[i]] : int32_t(generator() % kVocab);
        }
        model.forward({base, 0, n, token, parent, n});
        uint64_t hash[kMaxNodes];
        hash_rows(model.device_logits(), kVocab, pad16(kVocab), n, hash);
        for (int i = 0; i < n; ++i)
            if (copy[i]) {
                ++compared;
                different += hash[i] != expected[base + depth[i]];
            }
    }
    MESSAGE(n_layer, " layers, ", n_head, " heads: ", compared, " logit vectors compared in ", passes, " passes, ",
            different, " differ");
    return different;
}

}  // namespace

TEST_CASE("gpu: logits are close to the CPU twin, in passes of every kind of width") {
    if (!gpu_or_skip()) return;
    struct Shape {
        int n_layer, n_head, n_vocab;
    };
    for (const Shape shape : {Shape{1, 1, 50}, Shape{2, 2, 1000}, Shape{2, 5, 333}, Shape{1, 13, 777}})
        for (const int width : {1, 3, 8, 11, 16, 27, 32, 64}) {
            const RandomModel random = make_random_model(shape.n_layer, shape.n_head, shape.n_head * 64, 160,
                                                         shape.n_vocab, 5, 0.05f, shape.n_head != 2);
            CudaModel gpu(random.view, 0);
            Reference cpu(random.view, Rounding::half);
            check_close(random.view, gpu, cpu, 100, width);
        }
}

TEST_CASE("gpu: layers of the shapes of gpt2, gpt2-medium, gpt2-large and gpt2-xl are close to the CPU twin") {
    if (!gpu_or_skip()) return;
    for (const int n_head : {12, 16, 20, 25}) {
        const RandomModel random = make_large_model(1, n_head, 160, 700, 5, 0.03f);
        CudaModel gpu(random.view, 0);
        Reference cpu(random.view, Rounding::half);
        for (const int width : {1, 12, 64}) check_close(random.view, gpu, cpu, 80, width);
    }
}

TEST_CASE("gpu: the demo's target and draft are close to the CPU twin") {
    if (!gpu_or_skip()) return;
    const Blob blob = Blob::open("model/demo/demo.blob");
    for (const ModelView& view : {blob.target(), blob.draft()}) {
        CudaModel gpu(view, 0);
        Reference cpu(view, Rounding::half);
        const Difference d = compare(gpu, cpu, own_text(gpu, 400), 48);
        MESSAGE(d.told());
        // Not 1e-5: a difference far below an fp16 step flips some roundings, each flip is a whole step, and six layers
        // round 24 times. Rounding itself costs this target 3.6e-4 nats (docs/measurements.md).
        CHECK(d.mean_kl() < 1e-4);
        // The target misses 99.9 % too: noise of that size turns about one in 200 choices whose margin is just above
        // 0.01.
        CHECK(d.top_differs <= d.rows / 100);
    }
}

TEST_CASE("long: gpu: the target of the model file that STAGED_MODEL names is as close as rounding lets it be") {
    if (!gpu_or_skip()) return;
    const char* path = std::getenv("STAGED_MODEL");
    if (!path) return skip("STAGED_MODEL names no model file");
    const Blob blob = Blob::open(path);
    CudaModel gpu(blob.target(), 0);
    Reference twin(blob.target(), Rounding::half), unrounded(blob.target());
    const std::vector<int32_t> text = own_text(gpu, 500);
    const Difference d = compare(gpu, twin, text, 48), of_rounding = compare(gpu, unrounded, text, 48);
    MESSAGE("the twin: ", d.told());
    MESSAGE("float32: ", of_rounding.told());
    // Two engines that round at the same places differ less than either does from one that rounds nowhere.
    CHECK(d.mean_kl() < of_rounding.mean_kl());
    CHECK(d.top_differs <= d.rows / 100);
}

TEST_CASE("gpu: logits do not depend on the pass: random trees against their paths decoded token by token") {
    if (!gpu_or_skip()) return;
    for (const int n_head : {1, 2, 5}) {
        const RandomModel random = make_random_model(2, n_head, n_head * 64, 700, 150, 17, 0.1f);
        CudaModel model(random.view, 0), plain(random.view, 0);
        std::mt19937 generator(n_head);
        int compared = 0, different = 0;
        for (int round = 0; round < 10; ++round) {
            const int base = int(generator() % 100 + (round % 5 == 4 ? 400 : round % 5 == 2 ? 200 : 0));
            const int n_slots = 1 + int(generator() % 150);
            model.pace = 1 + round % 3;
            std::vector<int32_t> prefix = random_text(base, 150, generator());
            int32_t parent[kMaxSlots], token[kMaxSlots], slots[kMaxSlots];
            for (int done = 0; done < base;) {
                const int n = 1 + int(generator() % std::min(base - done, kMaxNodes));
                for (int i = 0; i < n; ++i) slots[i] = i;
                if (round % 2) {
                    model.prefill(done, {&prefix[done], size_t(n)});
                } else {
                    model.forward({done, 0, n, &prefix[done], kChain, 0});
                    model.commit(done, {slots, size_t(n)});
                }
                done += n;
            }
            std::vector<std::vector<float>> logits(n_slots);
            for (int s = 0; s < n_slots; ++s) {
                token[s] = int(generator() % 150);
                parent[s] = generator() % 3 ? s - 1 : int(generator() % (s + 1)) - 1;
            }
            for (int first = 0; first < n_slots;) {
                const int n = std::min<int>(1 + int(generator() % kMaxNodes), n_slots - first);
                const int with_logits = int(generator() % (n + 1));
                model.forward({base, first, n, token, parent, with_logits});
                for (int i = 0; i < with_logits; ++i) logits[first + n - with_logits + i] = model.logits(i);
                first += n;
            }
            for (int s = 0; s < n_slots; ++s) {
                if (logits[s].empty() || generator() % 8) continue;
                std::vector<int32_t> text;
                for (int at = s; at >= 0; at = parent[at]) text.insert(text.begin(), token[at]);
                text.insert(text.begin(), prefix.begin(), prefix.end());
                ++compared;
                different += !same_bits(logits[s], one_by_one(plain, text).back());
            }
        }
        INFO(n_head, " heads: ", compared, " logit vectors compared");
        CHECK(compared > 10);
        CHECK(different == 0);
    }
}

TEST_CASE("gpu: a GPU with less shared memory gives the same bits") {
    if (!gpu_or_skip()) return;
    for (const int n_head : {5, 20}) {
        const RandomModel random = make_random_model(2, n_head, n_head * 64, 400, 150, 17, 0.05f);
        CudaModel model(random.view, 0);
        const std::vector<int32_t> text = random_text(400, 150, 3);
        for (const int kib : {99, 163}) {  // of compute capability 8.6, 8.9 and 12.0; of 8.0
            CudaModel small(random.view, 0, kib << 10);
            INFO(n_head, " heads, ", kib, " KiB, passes of up to ", small.max_width(), " nodes");
            CHECK(small.max_width() >= (n_head == 5 ? 32 : 8));
            for (CudaModel* m : {&model, &small}) m->prefill(0, {text.data(), 320});
            for (const int n : {1, 2, 8, 16, 32, 64}) {
                for (CudaModel* m : {&model, &small}) m->forward({320, 0, n, &text[320], kChain, n});
                for (int i = 0; i < n; ++i) CHECK(same_bits(model.logits(i), small.logits(i)));
            }
        }
    }
}

TEST_CASE("gpu: a garbage neighbour does not touch the other nodes") {
    if (!gpu_or_skip()) return;
    // Token 0's embedding is ordinary in one model and 65504 in places, so that infinities and NaN follow, in the
    // other.
    RandomModel random = make_random_model(2, 2, 128, 128, 40, 8, 0.2f, false), poisoned = random;
    poisoned.view = model_view({reinterpret_cast<uint8_t*>(poisoned.storage.data()), poisoned.view.size});
    for (int e : {5, 77}) const_cast<uint16_t*>(poisoned.view.wte)[tiled_index(0, e, 128)] = e == 5 ? 0x7bff : 0x7e00;
    CudaModel model(random.view, 0), other(poisoned.view, 0);
    for (const int n : {2, 7, 8, 16, 31, 64}) {
        int32_t token[kMaxNodes], parent[kMaxNodes];
        for (int i = 0; i < n; ++i) token[i] = i % 3 == 1 ? 0 : 1 + i % 39, parent[i] = i < 3 ? -1 : i - 3;
        model.forward({0, 0, n, token, parent, n});
        other.forward({0, 0, n, token, parent, n});
        for (int i = 0; i < n; ++i) CHECK(same_bits(model.logits(i), other.logits(i)) == (i % 3 != 1));
    }
}

TEST_CASE("gpu: the tokens chosen and proposed are the CPU's on the same logits") {
    if (!gpu_or_skip()) return;
    for (const int n_vocab : {37, 3001, 50257}) {
        const RandomModel random = make_random_model(1, 1, 64, 80, n_vocab, 9, 0.3f);
        CudaModel model(random.view, 0);
        const std::vector<int32_t> text = random_text(40, n_vocab, 1);
        model.forward({0, 0, 40, text.data(), kChain, 24});
        std::vector<std::vector<float>> logits;
        for (int i = 0; i < 24; ++i) logits.push_back(model.logits(i));
        for (const Sampling& sampling :
             {Sampling{}, Sampling{1, 0, 1, 5}, Sampling{0.7f, 50, 1, 6}, Sampling{1, 50, 0.95f, 7},
              Sampling{1, 0, 0.9f, 8}, Sampling{1.5f, 1, 1, 9}, Sampling{2, 300, 0.99f, 10},
              Sampling{0.3f, 7, 0.2f, 11}, Sampling{1, 1000, 1, 12}, Sampling{1, 0, 1e-6f, 13}})
            CHECK(choices_differing(model, logits, 17, sampling, kMaxChildren) == 0);
    }
}

// Rows that no model gives: ties beyond what a list holds, numbers that are none, few kept tokens.
TEST_CASE("gpu: the tokens chosen and proposed are the CPU's on any logits") {
    if (!gpu_or_skip()) return;
    std::mt19937 generator(4);
    std::normal_distribution<float> normal(-20, 3);
    const float inf = INFINITY, nan = std::nanf("");
    for (const int n_vocab : {1, 35, 254, 3001, 8191, 50257}) {
        const std::function<float(int)> kinds[] = {
            [&](int) { return normal(generator); },
            [&](int) { return std::round(normal(generator)); },
            [&](int) { return 0.01f * normal(generator); },
            [&](int) { return 10 * normal(generator) + 200; },
            [&](int) { return 1.25f; },
            [&](int id) { return id % 3 ? normal(generator) : nan; },
            [&](int id) { return id % 2 ? normal(generator) : -inf; },
            [&](int id) { return id % 500 == 7 ? normal(generator)
                                 : id % 2      ? -inf
                                               : nan; },
            [&](int id) { return id % 7   ? -3
                                 : id % 2 ? 0.0f
                                          : -0.0f; },
            [&](int id) { return id % 2 ? 3e38f : -3e38f; },
            [&](int id) { return id == n_vocab / 2 ? inf : normal(generator); },
            [&](int) { return -inf; },
            [&](int) { return nan; },
        };
        const int n = int(std::size(kinds)), stride = int(pad16(n_vocab));
        const RandomModel random = make_random_model(1, 1, 64, 80, n_vocab, 9, 0.3f);
        CudaModel model(random.view, 0);
        const std::vector<int32_t> text(n, 0);
        model.forward({0, 0, n, text.data(), kChain, n});
        std::vector<float> rows(size_t(n) * stride, 1e9f);  // what stands behind a row must not matter
        std::vector<float> greatest(rows.size() / 16, -INFINITY);
        std::vector<std::vector<float>> logits(n);
        for (int i = 0; i < n; ++i) {
            for (int id = 0; id < n_vocab; ++id) logits[i].push_back(kinds[i](id));
            std::copy(logits[i].begin(), logits[i].end(), &rows[size_t(i) * stride]);
            for (int id = 0; id < n_vocab; ++id) {
                float& of_16 = greatest[(size_t(i) * stride + id) / 16];
                of_16 = std::fmax(of_16, logits[i][id]);
            }
        }
        model.synchronise();
        REQUIRE(store(const_cast<float*>(model.device_logits()), rows));
        REQUIRE(store(const_cast<float*>(model.device_greatest()), greatest));
        for (const float temperature : {0.0f, 0.1f, 1.0f, 30.0f})
            for (const int top_k : {0, 1, 2, 50, 200, 500, 513, 1000, 5000, n_vocab})
                for (const float top_p : {1.0f, 0.999f, 0.9f, 0.5f, 1e-6f, 0.0f}) {
                    if (temperature == 0 && (top_k > 0 || top_p < 1)) continue;
                    if (n_vocab > 10000 && generator() % 8) continue;  // the CPU takes long
                    INFO(n_vocab, " tokens, temperature ", temperature, ", top-k ", top_k, ", top-p ", top_p);
                    const int n_children = 1 + int(generator() % kMaxChildren);
                    const Sampling sampling = {temperature, top_k, top_p, generator()};
                    CHECK(choices_differing(model, logits, 1, sampling, n_children) == 0);
                }
    }
}

TEST_CASE("gpu: baseline decoding on the device writes what the loop on the host writes, and stops where it should") {
    if (!gpu_or_skip()) return;
    const RandomModel random = make_random_model(2, 2, 128, 200, 500, 12, 0.2f);
    CudaModel model(random.view, 0), other(random.view, 0);
    for (const Sampling& sampling : {Sampling{}, Sampling{1, 40, 0.95f, 3}, Sampling{1, 0, 1, 4}}) {
        Request request;
        request.prompt = random_text(70, 500, 2);
        request.max_tokens = 100;
        request.sampling = sampling;
        request.ignore_eos = true;
        std::vector<int32_t> expected, found;
        generate(other, nullptr, {}, request, [&](std::span<const Emitted> e) {
            for (const Emitted& one : e) expected.push_back(one.token);
            return true;
        });
        model.prefill(0, std::span(request.prompt).first(69));
        model.decode(request.prompt.back(), 69, 100, -1, sampling, [&](int32_t token) {
            found.push_back(token);
            return true;
        });
        CHECK(found == expected);
        int n = 0;
        model.decode(request.prompt.back(), 69, 100, -1, sampling, [&](int32_t token) {
            CHECK(token == expected[n]);
            return ++n < 5;
        });
        CHECK(n == 5);
        n = 0;
        model.decode(request.prompt.back(), 69, 100, expected[20], sampling, [&](int32_t) { return ++n > 0; });
        CHECK(n == std::find(expected.begin(), expected.end(), expected[20]) - expected.begin() + 1);
    }
}

TEST_CASE("gpu: log-probabilities are those of the CPU twin") {
    if (!gpu_or_skip()) return;
    const RandomModel random = make_random_model(2, 2, 128, 128, 500, 12, 0.1f);
    CudaModel model(random.view, 0);
    Reference twin(random.view, Rounding::half);
    const std::vector<int32_t> text = random_text(128, 500, 2);
    const std::vector<float> a = score(model, text), b = score(twin, text);
    REQUIRE(a.size() == b.size());
    for (size_t i = 0; i < a.size(); ++i) CHECK(a[i] == doctest::Approx(b[i]).epsilon(1e-3));
}

TEST_CASE("long: gpu: a million logit vectors of GPT2-L's shape, no bit depends on the pass") {
    if (!gpu_or_skip()) return;
    CHECK(hashes_differing(36, 20, 1'000'000) == 0);
}

TEST_CASE("long: gpu: no bit depends on the pass in the shapes of distilgpt2, gpt2, gpt2-medium and gpt2-xl") {
    if (!gpu_or_skip()) return;
    for (const auto& [n_layer, n_head] : {std::pair{6, 12}, {12, 12}, {24, 16}, {48, 25}})
        CHECK(hashes_differing(n_layer, n_head, 20'000) == 0);
}

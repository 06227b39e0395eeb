// Prefill by tiles leaves the same bits in the cache as passes of one node.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <random>

#include "kernels/prefill.h"
#include "tests/gpu_fetch.h"
#include "tests/gpu_mma.h"
#include "tests/gpu_model.h"

namespace {

constexpr uint16_t kUntouched = 0x7e01;  // a NaN that no kernel writes

uint64_t cache_size(const DeviceModel& m) {
    return uint64_t(m.n_layer) * 2 * m.n_head * m.kv_rows * kHeadSize;
}

std::vector<uint16_t> cache_of(CudaModel& model) {
    model.synchronise();
    const DeviceModel& m = model.device_model();
    return fetch<uint16_t>(m.kv, cache_size(m));
}

void clear_cache(CudaModel& model) {
    model.synchronise();
    const DeviceModel& m = model.device_model();
    REQUIRE(store(m.kv, std::vector<uint16_t>(cache_size(m), kUntouched)));
}

// The cache after the text, decoded token by token.
std::vector<uint16_t> one_by_one(CudaModel& model, std::span<const int32_t> text) {
    const int32_t parent = -1, slot = 0;
    for (size_t p = 0; p < text.size(); ++p) {
        model.forward({int(p), 0, 1, &text[p], &parent, 0});
        model.commit(int(p), {&slot, 1});
    }
    return cache_of(model);
}

// Rows of one cache that are not as they should be: those of positions below n as expected, all others untouched.
int rows_differing(const DeviceModel& m, std::span<const uint16_t> cache, std::span<const uint16_t> expected, int n) {
    REQUIRE(cache.size() == expected.size());
    int differing = 0;
    for (size_t at = 0; at < cache.size(); at += kHeadSize) {
        const auto row = cache.subspan(at, kHeadSize);
        differing += int(at / kHeadSize % m.kv_rows) < n
                         ? !std::ranges::equal(row, expected.subspan(at, kHeadSize))
                         : std::ranges::any_of(row, [](uint16_t half) { return half != kUntouched; });
    }
    return differing;
}

}  // namespace

TEST_CASE("prefill's matrix inputs hold every element once, as a lane's fragments of B") {
    constexpr uint32_t kTokens = 2 * kTokenTile;
    for (const uint32_t columns : {64, 1280}) {
        INFO(columns, " columns");
        uint32_t at = 0;
        bool in_order = true;
        for (uint32_t first = 0; first < kTokens; first += kTokenTile)
            for (uint32_t block = 0; block < columns; block += 16)
                for (uint32_t pair = 0; pair < kTokenTile; pair += 16)
                    for (uint32_t lane = 0; lane < 32; ++lane)
                        for (const uint32_t tile : {0, 8})
                            for (const uint32_t k : {0, 1, 8, 9})
                                in_order &= prefill_index(first + pair + tile + lane / 4, block + lane % 4 * 2 + k,
                                                          columns) == at++;
        CHECK(in_order);
        CHECK(at == kTokens * columns);
    }
}

// What lets attention multiply a chunk by several tokens at once, each with keys of its own number.
TEST_CASE("gpu: a factor 0 leaves no trace in an mma's sums, whatever finite number it meets") {
    if (!gpu_or_skip()) return;
    constexpr int kPairs = 20000;
    std::mt19937 random(5);
    const auto half = [&](int exponents) {
        return uint32_t(random() & 0x83ff) | uint32_t(15 - exponents / 2 + int(random() % exponents)) << 10;
    };
    std::vector<uint32_t> a, b, zeroed;
    for (int i = 0; i < kPairs; ++i) {
        const int n_keys = 1 + int(random() % 15), spread = 1 + int(random() % 30);
        for (int lane = 0; lane < 32; ++lane)
            for (int word = 0; word < 4; ++word) {  // columns k, k + 1 of a
                const int k = word / 2 * 8 + lane % 4 * 2;
                a.push_back((k < n_keys ? half(12) & 0x7fff : 0) | (k + 1 < n_keys ? half(12) & 0x7fff : 0) << 16);
            }
        for (int lane = 0; lane < 32; ++lane)
            for (int word = 0; word < 2; ++word) {  // rows k, k + 1 of b
                const int k = word * 8 + lane % 4 * 2;
                const uint32_t two = half(spread) | half(spread) << 16;
                b.push_back(two);
                zeroed.push_back((k < n_keys ? two & 0xffff : 0) | (k + 1 < n_keys ? two & 0xffff0000 : 0));
            }
    }
    const std::vector<float> full = multiply_fragments(a, b), expected = multiply_fragments(a, zeroed);
    REQUIRE(full.size() == a.size());
    int differing = 0, nonzero = 0;
    for (size_t i = 0; i < full.size(); ++i) {
        differing += std::bit_cast<uint32_t>(full[i]) != std::bit_cast<uint32_t>(expected[i]);
        nonzero += expected[i] != 0;
    }
    CHECK(nonzero > kPairs * 100);
    CHECK(differing == 0);
}

TEST_CASE("gpu: prefill of any lengths at any positions leaves the bits of passes of one node in the cache") {
    if (!gpu_or_skip()) return;
    constexpr int kPositions = 640, kVocab = 150;
    for (const int n_head : {1, 2, 3, 5, 8, 12, 20, 25, 32}) {
        const RandomModel random = make_large_model(n_head > 20 ? 2 : 3, n_head, kPositions, kVocab, n_head, 0.06f);
        CudaModel model(random.view, 0);
        const DeviceModel& m = model.device_model();
        const std::vector<int32_t> text = random_text(kPositions, kVocab, 7);
        const std::vector<uint16_t> expected = one_by_one(model, text);
        std::mt19937 generator(n_head);
        std::vector<std::vector<int>> cuts = {
            {kPositions}, {kMaxNodes + 1}, {65, 128, 100}, {3, 509, 77}, {16, 40, 512}};
        for (int i = 0; i < 4; ++i) {
            cuts.emplace_back();
            for (int left = kPositions; left > 0; left -= cuts.back().back())
                cuts.back().push_back(1 + int(generator() % std::min(left, i % 2 ? 100 : 400)));
        }
        for (const std::vector<int>& cut : cuts) {
            clear_cache(model);
            int done = 0;
            for (const int n : cut) {
                model.prefill(done, std::span(text).subspan(done, n));
                done += n;
            }
            INFO(n_head, " heads, ", cut.size(), " pieces, the first of ", cut[0], ", ", done, " tokens in all");
            CHECK(rows_differing(m, cache_of(model), expected, done) == 0);
        }
    }
}

TEST_CASE("gpu: infinities and NaN of a token do not touch those before it in the same prefill") {
    if (!gpu_or_skip()) return;
    // Token 0's embedding is ordinary in one model and 65504 and NaN in places in the other.
    constexpr int kTokens = 100;
    RandomModel random = make_random_model(3, 2, 128, 128, 40, 8, 0.2f, false), poisoned = random;
    poisoned.view = model_view({reinterpret_cast<uint8_t*>(poisoned.storage.data()), poisoned.view.size});
    for (int e : {5, 77}) const_cast<uint16_t*>(poisoned.view.wte)[tiled_index(0, e, 128)] = e == 5 ? 0x7bff : 0x7e00;
    CudaModel model(random.view, 0), other(poisoned.view, 0);
    const DeviceModel& m = model.device_model();
    for (const int at : {1, 44, 63, 64, 90}) {
        std::vector<int32_t> text = random_text(kTokens, 39, at);
        for (int32_t& token : text) ++token;
        text[at] = 0;
        std::vector<uint16_t> cache[2];
        for (CudaModel* one : {&model, &other}) {
            clear_cache(*one);
            one->prefill(0, text);
            cache[one == &other] = cache_of(*one);
        }
        int before = 0, same_after = 0;
        for (size_t row = 0; row < cache[0].size() / kHeadSize; ++row) {
            const int position = int(row % m.kv_rows);
            const bool same = std::equal(&cache[0][row * kHeadSize], &cache[0][row * kHeadSize] + kHeadSize,
                                         &cache[1][row * kHeadSize]);
            before += position < at && !same;
            same_after += position == at && same;
        }
        INFO("garbage at ", at);
        CHECK(before == 0);
        CHECK(same_after == 0);
    }
}

// A node's logits have the same bits whatever else is in the pass: any width, any column, any neighbours,
// any tree, prefilled in one piece or in chunks.
#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <vector>

#include "decode/reference.h"
#include "tests/random_model.h"

namespace {

// The logits after each token of a text, decoded token by token.
std::vector<std::vector<float>> one_by_one(Reference& model, const std::vector<int32_t>& text) {
    std::vector<std::vector<float>> rows;
    const int32_t parent = -1, slot = 0;
    for (size_t p = 0; p < text.size(); ++p) {
        model.forward({int(p), 0, 1, &text[p], &parent, 1});
        rows.push_back({model.logits(0).begin(), model.logits(0).end()});
        model.commit(int(p), {&slot, 1});
    }
    return rows;
}

bool same_bits(std::span<const float> a, const std::vector<float>& b) {
    return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

}  // namespace

TEST_CASE("logits do not depend on the pass: random trees against their paths decoded token by token") {
    struct Shape {
        int n_layer, n_head, n_embd;
    };
    for (const Rounding rounding : {Rounding::none, Rounding::half})
        for (const Shape shape : {Shape{2, 3, 24}, Shape{2, 2, 64}, Shape{1, 5, 35}}) {
            const RandomModel random =
                make_random_model(shape.n_layer, shape.n_head, shape.n_embd, 96, 50, 17, 0.2f, shape.n_head != 5);
            Reference model(random.view, rounding), plain(random.view, rounding);
            std::mt19937 generator(shape.n_embd);
            for (int round = 0; round < 12; ++round) {
                // Commit a prefix in chunks of random size.
                const int base = int(generator() % 24);
                std::vector<int32_t> prefix(base);
                for (int32_t& t : prefix) t = int(generator() % 50);
                int32_t parent[kMaxSlots], token[kMaxSlots], slots[kMaxSlots];
                for (int done = 0; done < base;) {
                    const int n = 1 + int(generator() % (base - done));
                    for (int i = 0; i < n; ++i) parent[i] = i - 1, slots[i] = i;
                    model.forward({done, 0, n, &prefix[done], parent, 0});
                    model.commit(done, {slots, size_t(n)});
                    done += n;
                }
                // A random forest over several passes of random width.
                const int n_slots = 1 + int(generator() % 90);
                std::vector<std::vector<float>> logits(n_slots);
                for (int s = 0; s < n_slots; ++s) {
                    token[s] = int(generator() % 50);
                    parent[s] = int(generator() % (s + 1)) - 1;
                    if (generator() % 3 == 0) parent[s] = s - 1;
                }
                for (int first = 0; first < n_slots;) {
                    const int n = std::min<int>(1 + int(generator() % kMaxNodes), n_slots - first);
                    const int with_logits = int(generator() % (n + 1));
                    model.forward({base, first, n, token, parent, with_logits});
                    for (int i = 0; i < with_logits; ++i) {
                        const auto row = model.logits(i);
                        logits[first + n - with_logits + i].assign(row.begin(), row.end());
                    }
                    first += n;
                }
                for (int s = 0; s < n_slots; ++s) {
                    if (logits[s].empty() || generator() % 4) continue;
                    std::vector<int32_t> text;
                    for (int at = s; at >= 0; at = parent[at]) text.insert(text.begin(), token[at]);
                    text.insert(text.begin(), prefix.begin(), prefix.end());
                    CHECK(same_bits(logits[s], one_by_one(plain, text).back()));
                }
            }
        }
}

TEST_CASE("a committed path continues with the same bits as the same text decoded token by token") {
    const RandomModel random = make_random_model(2, 2, 32, 64, 40, 3, 0.2f);
    Reference model(random.view), plain(random.view);
    // Slots 0..5: root 7, children 8 and 9 of the root, 10 below 9, 11 below 10, 12 below 8.
    const int32_t token[] = {7, 8, 9, 10, 11, 12}, parent[] = {-1, 0, 0, 2, 3, 1}, path[] = {0, 2, 3, 4};
    model.forward({0, 0, 6, token, parent, 0});
    model.commit(0, path);
    const int32_t next[] = {13}, root[] = {-1};
    model.forward({4, 0, 1, next, root, 1});
    CHECK(same_bits(model.logits(0), one_by_one(plain, {7, 9, 10, 11, 13}).back()));
}

TEST_CASE("a garbage neighbour does not touch the other nodes") {
    // Token 0's embedding is infinite in one model and ordinary in the other; the other nodes must not notice.
    RandomModel random = make_random_model(2, 2, 64, 32, 40, 8, 0.2f), poisoned = random;
    poisoned.view = model_view({reinterpret_cast<uint8_t*>(poisoned.storage.data()), poisoned.view.size});
    const_cast<uint16_t*>(poisoned.view.wte)[tiled_index(0, 5, 64)] = 0x7bff;  // 65504: activations overflow downstream
    poisoned.view.lm_head = random.view.lm_head;
    Reference model(random.view, Rounding::half), other(poisoned.view, Rounding::half);
    const int32_t token[] = {5, 0, 6, 0, 9}, parent[] = {-1, 0, 0, 1, 2};
    model.forward({0, 0, 5, token, parent, 5});
    other.forward({0, 0, 5, token, parent, 5});
    for (int i : {0, 2, 4}) {
        const auto row = model.logits(i);
        CHECK(same_bits(other.logits(i), {row.begin(), row.end()}));
    }
    const auto garbage = model.logits(1);
    CHECK(!same_bits(other.logits(1), {garbage.begin(), garbage.end()}));
}

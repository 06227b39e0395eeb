#include "tests/random_model.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "model/half.h"

RandomModel make_zero_model(const Config& config) {
    RandomModel model;
    const uint64_t size = ModelLayout(config).size;
    model.storage.resize((size + 7) / 8);
    uint8_t* bytes = reinterpret_cast<uint8_t*>(model.storage.data());
    ModelHeader header = {};
    header.config = config;
    std::memcpy(bytes, &header, sizeof header);
    model.view = model_view({bytes, size});
    return model;
}

RandomModel make_random_model(int n_layer, int n_head, int n_embd, int n_positions, int n_vocab, uint64_t seed,
                              float scale, bool tied) {
    const Config config = {n_layer, n_head, n_embd, n_positions, n_vocab, 1e-5f, n_vocab - 1, tied};
    const ModelLayout layout(config);
    RandomModel model = make_zero_model(config);
    uint8_t* bytes = reinterpret_cast<uint8_t*>(model.storage.data());
    std::mt19937_64 generator(seed);
    std::normal_distribution<float> normal(0, scale);
    for (const TensorPlace& tensor : layout.tensor) {
        uint16_t* half = reinterpret_cast<uint16_t*>(bytes + tensor.offset);
        float* single = reinterpret_cast<float*>(bytes + tensor.offset);
        const float centre = tensor.name.find("ln_") != std::string::npos && tensor.name.ends_with("weight") ? 1 : 0;
        for (uint64_t r = 0; r < tensor.rows; ++r)
            for (uint64_t c = 0; c < tensor.columns; ++c) {
                const float value = centre + normal(generator);
                if (tensor.form == Form::tiles) half[tiled_index(r, c, tensor.columns)] = float_to_half(value);
                if (tensor.form == Form::rows) half[r * tensor.columns + c] = float_to_half(value);
                if (tensor.form == Form::vector) single[r] = half_to_float(float_to_half(value));
            }
    }
    return model;
}

RandomTable make_random_table(int n_vocab, uint64_t seed) {
    constexpr uint32_t kLog2Slots = 12;
    std::mt19937_64 generator(seed);
    const auto random_entry = [&] {
        NgramEntry entry = {};
        const int n = 1 + int(generator() % kNgramSuccessors);
        for (int i = 0; i < kNgramSuccessors; ++i) {
            entry.token[i] = i < n ? uint32_t((generator() % n_vocab)) : kNoToken;
            entry.probability[i] = i < n ? uint16_t(generator() % 65536 / n) : 0;
        }
        return entry;
    };
    NgramEntry empty = {};
    for (uint32_t& token : empty.token) token = kNoToken;
    RandomTable table;
    table.trigram.assign(size_t(1) << kLog2Slots, empty);
    for (int i = 0; i < n_vocab; ++i) table.bigram.push_back(generator() % 4 ? random_entry() : empty);
    table.unigram.push_back(random_entry());
    table.header = {uint32_t(n_vocab), kLog2Slots, 0, 0, 0, 0, {}};
    for (int i = 0; i < 2000; ++i) {
        NgramEntry entry = random_entry();
        for (uint32_t& token : entry.context) token = uint32_t(generator() % n_vocab);
        const uint32_t mask = (1u << kLog2Slots) - 1, hash = ngram_hash(entry.context[0], entry.context[1]);
        uint32_t probe = 0;
        const auto slot = [&]() -> NgramEntry& { return table.trigram[(hash + probe) & mask]; };
        while (slot().token[0] != kNoToken && !std::equal(entry.context, entry.context + 2, slot().context)) ++probe;
        if (slot().token[0] != kNoToken) continue;  // this context is there already
        slot() = entry;
        table.header.max_probes = std::max(table.header.max_probes, probe + 1);
        ++table.header.n_contexts;
    }
    return table;
}

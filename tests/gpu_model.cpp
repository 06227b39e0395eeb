#include "tests/gpu_model.h"

#include <random>

#include "kernels/cuda_decoder.h"
#include "model/half.h"
#include "tests/skip.h"

bool gpu_or_skip() {
    static const std::string why = cuda_unusable(0);
    if (!why.empty()) skip(why);
    return why.empty();
}

RandomModel make_large_model(int n_layer, int n_head, int n_positions, int n_vocab, uint64_t seed, float scale) {
    const Config config = {n_layer, n_head, n_head * 64, n_positions, n_vocab, 1e-5f, n_vocab - 1, 1};
    const ModelLayout layout(config);
    RandomModel model = make_zero_model(config);
    uint8_t* bytes = reinterpret_cast<uint8_t*>(model.storage.data());
    uint16_t half[4096];  // 12 random bits pick a weight
    for (int i = 0; i < 4096; ++i) half[i] = float_to_half((float(i) - 2047.5f) / 2048 * 1.732f * scale);
    uint64_t state = seed * 2 + 1;
    const auto random = [&] {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state;
    };
    for (const TensorPlace& tensor : layout.tensor) {
        uint16_t* halves = reinterpret_cast<uint16_t*>(bytes + tensor.offset);
        float* singles = reinterpret_cast<float*>(bytes + tensor.offset);
        const float centre = tensor.name.find("ln_") != std::string::npos && tensor.name.ends_with("weight") ? 1 : 0;
        if (tensor.form == Form::vector)
            for (uint64_t i = 0; i < tensor.rows; ++i) singles[i] = centre + half_to_float(half[random() >> 52]);
        else if (tensor.form == Form::rows)
            for (uint64_t i = 0; i < tensor.rows * tensor.columns; ++i) halves[i] = half[random() >> 52];
        else  // rows beyond n_vocab stay zero: they are the last of each 16 lanes' halves
            for (uint64_t r = 0; r < tensor.rows; r += 16)
                for (uint64_t i = 0; i < 16 * tensor.columns; i += 4) {
                    const uint64_t bits = random();
                    for (int k = 0; k < 4; ++k) {
                        const uint64_t row = r + (i + k) % 256 / 8 / 4 + ((i + k) % 8 / 2 % 2) * 8;
                        halves[r * tensor.columns + i + k] = row < tensor.rows ? half[bits >> (16 * k + 4) & 4095] : 0;
                    }
                }
    }
    return model;
}

std::vector<int32_t> random_text(int n, int n_vocab, uint64_t seed) {
    std::mt19937_64 generator(seed);
    std::vector<int32_t> text(n);
    for (int32_t& token : text) token = int32_t(generator() % n_vocab);
    return text;
}

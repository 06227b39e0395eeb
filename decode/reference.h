// The CPU engine: the specification of a model pass. Any GPT-2 shape, plain loops, a fixed order in every sum, so that
// a node's logits have the same bits whatever else is in the pass.
//
//   x = wte[token] + wpe[position]
//   each layer:  x += c_proj(attention(c_attn(ln_1(x))));   x += mlp_proj(gelu(c_fc(ln_2(x))))
//   logits = lm_head(ln_f(x))
//
// Activations are float32. Rounding::half rounds to fp16 where the GPU engine does (matrix inputs, keys and values),
// which makes this the twin that GPU results are compared with.
#pragma once

#include <memory>
#include <vector>

#include "decode/model.h"
#include "model/blob.h"

enum class Rounding { none, half };

class Reference : public Model {
public:
    // The view's blob must outlive the engine. Allocates the caches: 2 x n_layer x (n_positions + kMaxSlots) x n_embd
    // floats of address space, touched as they fill.
    explicit Reference(const ModelView& model, Rounding rounding = Rounding::none);

    const Config& config() const override { return model_.config; }
    void forward(const Pass& pass) override;
    void choose(const Sampling& sampling, std::span<int32_t> chosen) override;
    void propose(const Sampling& sampling, float tau, int n_children, std::span<Child> children) override;
    void log_probability(std::span<const int32_t> next, std::span<float> result) override;
    void commit(int base, std::span<const int32_t> slots) override;

    // Logits of the last pass's node i of those that have them: (n_vocab).
    std::span<const float> logits(int i) const {
        return {&logits_[size_t(i) * logits_stride_], size_t(config().n_vocab)};
    }
    int n_threads() const { return n_threads_; }
    uint64_t bytes() const;  // of weights and caches

private:
    struct Moments {
        float mean, scale;  // 1 / sqrt(variance + epsilon)
    };
    Moments moments(const float* x) const;  // x: (n_embd)
    void multiply_normal(const uint16_t* weight, int rows, const float* bias, const float* norm_weight,
                         const float* norm_bias, int first, int n, float* out);
    void attention(int layer, const Pass& pass);
    float* cached(float* kv, int layer, int row, int rows) const {
        return kv + (size_t(layer) * rows + row) * config().n_embd;
    }

    ModelView model_;
    Rounding rounding_;
    int n_threads_;
    std::unique_ptr<float[]> cache_key_, cache_value_;  // (n_layer, n_positions, n_embd)
    std::unique_ptr<float[]> slot_key_, slot_value_;    // (n_layer, kMaxSlots, n_embd)
    size_t stride_, logits_stride_;                     // row lengths, padded to whole tiles
    std::vector<float> x_, h_, branch_;                 // (kMaxNodes, stride_)
    std::vector<float> qkv_;                            // (kMaxNodes, 3 n_embd padded)
    std::vector<float> mlp_;                            // (kMaxNodes, 4 n_embd padded)
    std::vector<float> logits_;                         // (kMaxNodes, logits_stride_)
    std::vector<int> position_;                         // (kMaxNodes) of the last pass's nodes with logits
};

#include "decode/account.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "model/blob.h"

namespace {

// Bytes of a model's tensors that a pass reads whole, and elements of its matrices.
struct Weights {
    double layers = 0, head = 0;  // bytes; the last LayerNorm counts with the head
    double layer_elements = 0, head_elements = 0;
    double last = 0, last_elements = 0;  // of the last layer's, what comes after its keys and values
};

Weights weights_of(const Config& config) {
    const ModelLayout layout(config);
    const std::string last = "h." + std::to_string(config.n_layer - 1) + ".";
    Weights weights;
    for (const TensorPlace& tensor : layout.tensor) {
        const bool head = tensor.offset == layout.lm_head || tensor.name.starts_with("ln_f");
        if (!head && !tensor.name.starts_with("h.")) continue;
        const double elements = tensor.form == Form::tiles ? double(tensor.rows) * double(tensor.columns) : 0;
        (head ? weights.head : weights.layers) += double(tensor.size);
        (head ? weights.head_elements : weights.layer_elements) += elements;
        if (!tensor.name.starts_with(last) || tensor.name.starts_with(last + "ln_1") ||
            tensor.name.starts_with(last + "attn.c_attn"))
            continue;
        weights.last += double(tensor.size);
        weights.last_elements += elements;
    }
    return weights;
}

// Prefill in pieces: what fits a pass is one, else the weights are read once all the same, but those of the last layer
// that come after its keys and values not at all.
Cost prefill_cost(const Config& config, int n, const EngineFacts& engine) {
    const int width = std::max(std::min(engine.pass_width, kMaxNodes), engine.prefill_width);
    const Weights weights = weights_of(config);
    Cost sum;
    for (int at = 0; at < n; at += width) {
        const double nodes = std::min(width, n - at);
        const Work work = {.passes = 1, .nodes = nodes, .context = double(at), .node_context = at + (nodes + 1) / 2};
        if (nodes <= engine.pass_width) {
            sum += cost_of(config, work, engine);
            continue;
        }
        Cost piece = cost_of(config, work, {engine.kv_value_bytes, int(nodes)});
        piece.bytes.weights -= weights.last;
        piece.flops -= 2 * nodes * weights.last_elements + 4.0 * config.n_embd * nodes * work.node_context;
        sum += piece;
    }
    return sum;
}

}  // namespace

Traffic& Traffic::operator+=(const Traffic& other) {
    weights += other.weights;
    embeddings += other.embeddings;
    kv_read += other.kv_read;
    kv_written += other.kv_written;
    logits += other.logits;
    return *this;
}

Cost& Cost::operator+=(const Cost& other) {
    bytes += other.bytes;
    flops += other.flops;
    return *this;
}

Cost Account::decode() const {
    Cost both = target;
    return both += draft;
}

Cost cost_of(const Config& config, const Work& work, const EngineFacts& engine) {
    if (work.passes == 0) return {};
    const Weights weights = weights_of(config);
    const double readings = work.passes * std::ceil(work.nodes / work.passes / engine.pass_width);
    const double kv_position = 2.0 * config.n_layer * config.n_embd * engine.kv_value_bytes;
    Cost cost;
    cost.bytes.weights = readings * (weights.layers + (work.logits > 0 ? weights.head : 0));
    cost.bytes.embeddings = work.nodes * config.n_embd * (2 + 2);
    cost.bytes.kv_read = readings * work.context * kv_position;
    cost.bytes.kv_written = work.nodes * kv_position;
    cost.bytes.logits = work.logits * pad16(config.n_vocab) * sizeof(float);
    cost.flops = 2 * (work.nodes * weights.layer_elements + work.logits * weights.head_elements) +
                 4.0 * config.n_embd * config.n_layer * work.nodes * work.node_context;
    return cost;
}

Account account_of(const Config& target, const Config* draft, Mode mode, const Statistics& stats,
                   const EngineFacts& engine) {
    const auto decoding = [&](const Config& config, double passes, double nodes, double rounds) {
        const double step = rounds > 0 ? stats.emitted / rounds : 0;
        const double context = stats.prompt_tokens - 1 + (stats.emitted - step) / 2;
        return cost_of(config, {passes, nodes, nodes, context, context + 1}, engine);
    };
    Account account;
    account.prefill = prefill_cost(target, stats.prompt_tokens - 1, engine);
    account.target = decoding(target, stats.rounds, stats.target_nodes, stats.rounds);
    account.useful = decoding(target, stats.emitted, stats.emitted, stats.emitted);
    if (draft && mode != Mode::baseline) {
        account.prefill += prefill_cost(*draft, stats.prompt_tokens - 1, engine);
        account.draft = decoding(*draft, stats.draft_passes, stats.draft_nodes, stats.rounds);
    }
    return account;
}

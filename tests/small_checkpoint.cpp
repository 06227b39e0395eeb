#include "tests/small_checkpoint.h"

#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

#include "model/half.h"

using nlohmann::json;

static uint16_t bf16_bits(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static float rounded(float value, const std::string& dtype) {
    if (dtype == "F16") return half_to_float(float_to_half(value));
    if (dtype == "BF16") return std::bit_cast<float>(uint32_t(bf16_bits(value)) << 16);
    return value;
}

static std::string bytes_of(const SmallTensor& tensor) {
    std::string bytes;
    for (const float value : tensor.values) {
        const uint16_t half = tensor.dtype == "F16" ? float_to_half(value) : bf16_bits(value);
        if (tensor.dtype == "F16" || tensor.dtype == "BF16")
            bytes.append(reinterpret_cast<const char*>(&half), 2);
        else
            bytes.append(reinterpret_cast<const char*>(&value), 4);
    }
    return bytes;
}

SmallTensor& SmallCheckpoint::operator[](const std::string& name) {
    for (SmallTensor& t : tensor)
        if (t.name == name) return t;
    throw std::out_of_range(name);
}

void SmallCheckpoint::write(const std::string& folder, int n_shards) const {
    std::filesystem::create_directories(folder);
    write_file(folder + "/config.json", config.dump());
    json index;
    for (int shard = 0; shard < n_shards; shard++) {
        json header = {{"__metadata__", {{"format", "pt"}}}};
        std::string data;
        const std::string name =
            n_shards == 1 ? "model.safetensors" : "model-" + std::to_string(shard) + ".safetensors";
        for (size_t i = size_t(shard); i < tensor.size(); i += size_t(n_shards)) {
            const std::string bytes = bytes_of(tensor[i]);
            header[tensor[i].name] = {{"dtype", tensor[i].dtype},
                                      {"shape", tensor[i].shape},
                                      {"data_offsets", {data.size(), data.size() + bytes.size()}}};
            index["weight_map"][tensor[i].name] = name;
            data += bytes;
        }
        write_file(folder + "/" + name, safetensors_bytes(header.dump(), data));
    }
    if (n_shards > 1) write_file(folder + "/model.safetensors.index.json", index.dump());
}

SmallCheckpoint make_small_checkpoint(int n_layer, int n_head, int n_embd, int n_positions, int n_vocab, uint64_t seed,
                                      const std::vector<std::string>& dtypes, bool tied, const std::string& prefix) {
    SmallCheckpoint checkpoint;
    checkpoint.config = {{"model_type", "gpt2"},       {"n_layer", n_layer},         {"n_head", n_head},
                         {"n_embd", n_embd},           {"n_positions", n_positions}, {"vocab_size", n_vocab},
                         {"layer_norm_epsilon", 1e-5}, {"eos_token_id", n_vocab - 1}};
    if (!tied) checkpoint.config["tie_word_embeddings"] = false;
    std::mt19937_64 generator(seed);
    std::normal_distribution<float> normal(0, 0.1f);
    const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
        SmallTensor t = {name, dtypes[checkpoint.tensor.size() % dtypes.size()], shape, {}};
        uint64_t n = 1;
        for (const uint64_t k : shape) n *= k;
        for (uint64_t i = 0; i < n; i++) t.values.push_back(rounded(normal(generator), t.dtype));
        checkpoint.tensor.push_back(t);
    };
    const uint64_t n = uint64_t(n_embd);
    add(prefix + "wte.weight", {uint64_t(n_vocab), n});
    add(prefix + "wpe.weight", {uint64_t(n_positions), n});
    for (int l = 0; l < n_layer; l++) {
        const std::string h = prefix + "h." + std::to_string(l);
        const auto pair = [&](const std::string& name, std::vector<uint64_t> shape) {
            add(h + name + ".weight", shape);
            add(h + name + ".bias", {shape.back()});
        };
        pair(".ln_1", {n});
        pair(".attn.c_attn", {n, 3 * n});
        pair(".attn.c_proj", {n, n});
        pair(".ln_2", {n});
        pair(".mlp.c_fc", {n, 4 * n});
        pair(".mlp.c_proj", {4 * n, n});
    }
    add(prefix + "ln_f.weight", {n});
    add(prefix + "ln_f.bias", {n});
    if (!tied) add("lm_head.weight", {uint64_t(n_vocab), n});
    return checkpoint;
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

std::string safetensors_bytes(const std::string& header, const std::string& data, uint64_t header_size) {
    std::string size(8, '\0');
    std::memcpy(size.data(), &header_size, 8);
    return size + header + data;
}

std::string safetensors_bytes(const std::string& header, const std::string& data) {
    return safetensors_bytes(header, data, header.size());
}

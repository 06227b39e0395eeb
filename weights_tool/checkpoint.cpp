// What is accepted as a checkpoint, and the sentence for everything else.
#include "weights_tool/checkpoint.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>

#include "model/error.h"
#include "model/half.h"

using nlohmann::json;
namespace fs = std::filesystem;

[[noreturn]] static void refuse(const std::string& name, const std::string& found) {
    throw Error(kExitBadModel, name + " " + found);
}

uint64_t element_size(const Tensor& tensor) {
    return tensor.dtype == "F32" ? 4 : tensor.dtype == "F16" || tensor.dtype == "BF16" ? 2 : 0;
}

float element(const Tensor& tensor, uint64_t i) {
    if (tensor.dtype == "F32") {
        float value;
        std::memcpy(&value, tensor.bytes.data() + 4 * i, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, tensor.bytes.data() + 2 * i, 2);
    return tensor.dtype == "F16" ? half_to_float(bits) : std::bit_cast<float>(uint32_t(bits) << 16);
}

// ---- config.json ----

static bool usable(const json& config, const char* key) {
    return config.contains(key) && !config[key].is_null();
}

// A value as a message shows it.
static std::string shown(const json& value) {
    return in_quotes(value.is_string() ? value.get<std::string>() : value.dump());
}

static int read_int(const json& config, const char* key, const std::string& path) {
    if (!usable(config, key)) refuse(path, std::string("has no ") + key + ": not the config of a GPT-2");
    const json& value = config[key];
    if (!value.is_number_integer() || value < 0 || value > std::numeric_limits<int32_t>::max())
        refuse(path, std::string(key) + " is " + shown(value) + ", not a number that a GPT-2 can have");
    return value;
}

static bool read_bool(const json& config, const char* key, bool otherwise, const std::string& path) {
    if (!usable(config, key)) return otherwise;
    if (!config[key].is_boolean()) refuse(path, std::string(key) + " is neither true nor false");
    return config[key];
}

// The defaults are those of transformers' GPT2Config.
static Config read_config(const json& config, const std::string& path) {
    const json type = config.value("model_type", json());
    if (type != "gpt2")
        refuse(path, "has the model_type " + shown(type) + "; only GPT-2 checkpoints (\"gpt2\") can be converted");
    const json activation = config.value("activation_function", json("gelu_new"));
    if (activation != "gelu_new" && activation != "gelu_pytorch_tanh")
        refuse(path, "has the activation_function " + shown(activation) +
                         "; only gelu_new and gelu_pytorch_tanh are supported");
    if (!read_bool(config, "scale_attn_weights", true, path))
        refuse(path, "sets scale_attn_weights to false, which is not supported");
    if (read_bool(config, "scale_attn_by_inverse_layer_idx", false, path))
        refuse(path, "sets scale_attn_by_inverse_layer_idx to true, which is not supported");
    // reorder_and_upcast_attn only moves a scale and asks for single precision, which attention always has here.

    Config c = {};
    c.n_layer = read_int(config, "n_layer", path);
    c.n_head = read_int(config, "n_head", path);
    c.n_embd = read_int(config, "n_embd", path);
    c.n_positions = read_int(config, "n_positions", path);
    c.n_vocab = read_int(config, "vocab_size", path);
    c.layer_norm_epsilon = 1e-5f;
    if (usable(config, "layer_norm_epsilon")) {
        if (!config["layer_norm_epsilon"].is_number()) refuse(path, "has a layer_norm_epsilon that is not a number");
        c.layer_norm_epsilon = config["layer_norm_epsilon"];
    }
    if (config.contains("eos_token_id"))
        c.eos_token = config["eos_token_id"].is_null() ? -1 : read_int(config, "eos_token_id", path);
    else
        c.eos_token = c.n_vocab > 50256 ? 50256 : -1;
    c.tied = read_bool(config, "tie_word_embeddings", true, path);
    if (const std::string fault = config_fault(c); !fault.empty()) refuse(path, "has an unusable shape: " + fault);
    if (usable(config, "n_inner") && read_int(config, "n_inner", path) != 4 * c.n_embd)
        refuse(path, "has n_inner " + std::to_string(read_int(config, "n_inner", path)) +
                         "; only 4 * n_embd = " + std::to_string(4 * c.n_embd) + " is supported");
    return c;
}

// ---- Tensors ----

// Every tensor of the folder, by the name in its file.
static std::map<std::string, Tensor> read_tensors(const std::string& folder, std::vector<MappedFile>& files) {
    const fs::path root = folder;
    if (fs::exists(root / "model.safetensors")) {
        Safetensors all = open_safetensors((root / "model.safetensors").string());
        files.push_back(all.file);
        return std::move(all.tensor);
    }
    const std::string index_path = (root / "model.safetensors.index.json").string();
    if (!fs::exists(index_path)) {
        if (fs::exists(root / "pytorch_model.bin") || fs::exists(root / "pytorch_model.bin.index.json"))
            refuse(
                folder,
                "holds its weights as a Python pickle (pytorch_model.bin), which is not read because it can run code; "
                "save it as safetensors, where transformers is installed, with: python3 -c \"from transformers import "
                "GPT2LMHeadModel as M; M.from_pretrained('" +
                    folder + "').save_pretrained('" + folder + "')\"");
        refuse(folder,
               "holds neither model.safetensors nor model.safetensors.index.json; give the folder of a GPT-2 "
               "checkpoint in Hugging Face's layout");
    }
    const MappedFile index_file = map_file(index_path, "download or save the checkpoint again");
    const json index = parse_json_object(index_file.text(), index_path);
    if (!index.contains("weight_map") || !index["weight_map"].is_object())
        refuse(index_path, "has no weight_map that names a shard for each tensor");
    std::map<std::string, std::set<std::string>> listed;  // by shard
    for (const auto& [name, shard] : index["weight_map"].items()) {
        if (!shard.is_string()) refuse(index_path, "gives no file name for " + in_quotes(name));
        const std::string file = shard;
        if (file.empty() || file == "." || file == ".." || file.find_first_of(std::string("/\0", 2)) != file.npos)
            refuse(index_path, "names the shard " + in_quotes(file) + ", which is not a plain file name in its folder");
        listed[file].insert(name);
    }
    std::map<std::string, Tensor> all;
    for (const auto& [file, names] : listed) {
        const std::string path = (root / file).string();
        Safetensors shard = open_safetensors(path);
        files.push_back(shard.file);
        for (const std::string& name : names)
            if (!shard.tensor.contains(name))
                refuse(path, "lacks the tensor " + in_quotes(name) + " that " + index_path + " promises there");
        for (auto& [name, tensor] : shard.tensor) {
            if (!names.contains(name))
                refuse(path, "holds the tensor " + in_quotes(name) + ", which " + index_path + " does not place there");
            all.emplace(name, std::move(tensor));
        }
    }
    return all;
}

static bool same_values(const Tensor& a, const Tensor& b) {
    if (a.shape != b.shape || !element_size(a) || !element_size(b)) return false;
    if (a.dtype == b.dtype) return std::ranges::equal(a.bytes, b.bytes);
    const uint64_t n = a.bytes.size() / element_size(a);
    for (uint64_t i = 0; i < n; i++)
        if (element(a, i) != element(b, i)) return false;
    return true;
}

bool is_conv1d(const TensorPlace& place) {
    return place.form == Form::tiles && place.name.starts_with("h.");
}

static std::vector<uint64_t> shape_in_file(const TensorPlace& place) {
    if (place.form == Form::vector) return {place.rows};
    if (is_conv1d(place)) return {place.columns, place.rows};
    return {place.rows, place.columns};
}

// ---- Licence ----

static std::string first_line(const std::string& path) {
    if (!fs::is_regular_file(path) || fs::file_size(path) == 0) return "";
    const MappedFile file = map_file(path, "make it readable");
    std::string_view text = file.text();
    text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
    return std::string(text.substr(0, std::min<size_t>(text.find_first_of("\r\n"), 100)));
}

// `license:` of config.json, else of the header of README.md, else the first line of LICENSE.
static std::string read_licence(const std::string& folder, const json& config) {
    if (config.contains("license") && config["license"].is_string()) return config["license"];
    const std::string card_path = (fs::path(folder) / "README.md").string();
    if (fs::is_regular_file(card_path) && fs::file_size(card_path) > 0) {
        const MappedFile file = map_file(card_path, "make it readable");
        const std::string_view text = file.text();
        const std::string_view head = text.starts_with("---") ? text.substr(0, text.find("\n---", 3)) : "";
        if (const size_t at = head.find("\nlicense:"); at != head.npos) {
            std::string_view value = head.substr(at + 9);
            value = value.substr(0, value.find_first_of("\r\n"));
            value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
            return std::string(value);
        }
    }
    return first_line((fs::path(folder) / "LICENSE").string());
}

Checkpoint open_checkpoint(const std::string& folder) {
    if (!fs::exists(folder)) refuse(folder, "does not exist; give the folder of a GPT-2 checkpoint");
    if (!fs::is_directory(folder)) refuse(folder, "is not a folder; give the folder that holds config.json");
    const std::string config_path = (fs::path(folder) / "config.json").string();
    const MappedFile config_file = map_file(config_path, "give the folder of a checkpoint in Hugging Face's layout");
    const json config = parse_json_object(config_file.text(), config_path);

    Checkpoint checkpoint;
    checkpoint.folder = folder;
    checkpoint.config = read_config(config, config_path);
    checkpoint.licence = read_licence(folder, config);
    std::set<std::string> masks;  // the causal mask, a constant that old checkpoints carry
    for (int l = 0; l < checkpoint.config.n_layer; l++)
        for (const char* mask : {".attn.bias", ".attn.masked_bias"}) masks.insert("h." + std::to_string(l) + mask);
    std::map<std::string, Tensor> found;
    for (const auto& [name, tensor] : read_tensors(folder, checkpoint.files)) {
        const std::string plain = name.starts_with("transformer.") ? name.substr(12) : name;
        if (!masks.contains(plain) && !found.emplace(plain, tensor).second)
            refuse(folder, "holds the tensor " + in_quotes(plain) + " twice, with and without \"transformer.\"");
    }

    // A head that equals wte may be written out all the same.
    if (found.contains("lm_head.weight") && found.contains("wte.weight")) {
        if (same_values(found["lm_head.weight"], found["wte.weight"])) {
            checkpoint.config.tied = 1;
            found.erase("lm_head.weight");
        } else if (checkpoint.config.tied) {
            refuse(folder,
                   "has an lm_head.weight that differs from wte.weight, but its config.json ties them "
                   "(tie_word_embeddings is true or absent); set it to false there if the head is meant to differ");
        }
    }

    for (const TensorPlace& place : ModelLayout(checkpoint.config).tensor) {
        const auto at = found.find(place.name);
        if (at == found.end())
            refuse(folder, "lacks the tensor " + in_quotes(place.name) + " that its config.json calls for");
        const Tensor& tensor = at->second;
        if (!element_size(tensor))
            refuse(folder, "has the tensor " + in_quotes(place.name) + " as " + tensor.dtype +
                               "; only F32, F16 and BF16 can be converted");
        if (tensor.shape != shape_in_file(place))
            refuse(folder, "has the tensor " + in_quotes(place.name) + " of shape " + shape_text(tensor.shape) +
                               ", but its config.json calls for " + shape_text(shape_in_file(place)));
        checkpoint.dtypes.insert(tensor.dtype);
        checkpoint.tensor.insert(found.extract(at));
    }
    if (!found.empty())
        refuse(folder, "holds the tensor " + in_quotes(found.begin()->first) +
                           ", which no GPT-2 of this config.json has; give a plain GPT-2 checkpoint");
    return checkpoint;
}

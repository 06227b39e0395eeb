// Whatever is wrong with a checkpoint, convert says so in one sentence that names it, and leaves no file behind.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <random>

#include "tests/blob_bytes.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "weights_tool/convert.h"

using nlohmann::json;
namespace fs = std::filesystem;

// Converts the folder "model" and expects a sentence that holds `what`, and no output.
static void refused(const TemporaryFolder& folder, const std::string& what, const ConvertOptions& more = {}) {
    CAPTURE(what);
    const std::string message = error_of([&] {
        convert({folder / "model", more.draft, more.ngram, folder / "out.blob"});
    });
    INFO(message);
    CHECK(message.starts_with("[3] "));
    CHECK(message.find(what) != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
    for (const auto& entry : fs::directory_iterator(folder.path))
        CHECK(entry.path().filename().string().find("out.blob") == std::string::npos);
}

static SmallCheckpoint sound() {
    return make_small_checkpoint(2, 2, 16, 8, 40, 1);
}

TEST_CASE("folders without a checkpoint") {
    TemporaryFolder folder;
    refused(folder, "model does not exist");
    write_file(folder / "model", "a file");
    refused(folder, "is not a folder");
    fs::remove(folder / "model");
    fs::create_directory(folder / "model");
    refused(folder, "config.json does not exist");
    write_file(folder / "model/config.json", sound().config.dump());
    refused(folder, "neither model.safetensors nor");
    write_file(folder / "model/pytorch_model.bin", "pickle");
    refused(folder, "Python pickle (pytorch_model.bin)");
    refused(folder, "save_pretrained");
    write_file(folder / "model/model.safetensors", "");
    refused(folder, "model.safetensors is empty");
}

TEST_CASE("configs that are no GPT-2, or one that the blob can't express") {
    const auto lie = [](const std::string& key, const json& value, const std::string& what) {
        TemporaryFolder folder;
        SmallCheckpoint checkpoint = sound();
        if (value.is_discarded())
            checkpoint.config.erase(key);
        else
            checkpoint.config[key] = value;
        checkpoint.write(folder / "model");
        refused(folder, what);
    };
    const json none(json::value_t::discarded);
    lie("model_type", "llama", "llama");
    lie("model_type", none, "model_type \"null\"");
    lie("activation_function", "relu", "relu");
    lie("scale_attn_weights", false, "scale_attn_weights");
    lie("scale_attn_by_inverse_layer_idx", true, "scale_attn_by_inverse_layer_idx");
    lie("n_inner", 48, "n_inner 48; only 4 * n_embd = 64");
    lie("n_layer", none, "has no n_layer");
    lie("n_layer", 0, "n_layer is 0");
    lie("n_layer", -1, "n_layer is");
    lie("n_layer", 1e30, "n_layer is");
    lie("n_layer", "2", "n_layer is");
    lie("n_layer", 1025, "n_layer is 1025");
    lie("n_embd", 0x7fffffff, "n_embd is 2147483647");
    lie("n_embd", uint64_t(1) << 63, "n_embd is");
    lie("n_head", 3, "not a multiple of n_head");
    lie("vocab_size", 1 << 25, "vocab_size is");
    lie("layer_norm_epsilon", "small", "layer_norm_epsilon");
    lie("layer_norm_epsilon", 0, "layer_norm_epsilon");
    lie("eos_token_id", 40, "eos_token_id is 40");
    lie("eos_token_id", {39, 38}, "eos_token_id is");
    lie("tie_word_embeddings", "yes", "tie_word_embeddings");
    lie("tie_word_embeddings", false, "lacks the tensor \"lm_head.weight\"");

    TemporaryFolder folder;
    sound().write(folder / "model");
    write_file(folder / "model/config.json", "{\"n_layer\": 2");
    refused(folder, "config.json is not valid JSON");
    write_file(folder / "model/config.json", "[1]");
    refused(folder, "config.json is not a JSON object");
    write_file(folder / "model/config.json", "{\"n_layer\": 1e999}");
    refused(folder, "out of range");
}

TEST_CASE("missing, surplus, doubled and misshapen tensors, and dtypes that are no weights") {
    const auto lie = [](const std::function<void(SmallCheckpoint&)>& change, const std::string& what) {
        TemporaryFolder folder;
        SmallCheckpoint checkpoint = sound();
        change(checkpoint);
        checkpoint.write(folder / "model");
        refused(folder, what);
    };
    lie([](auto& c) { c.tensor.pop_back(); }, "lacks the tensor \"ln_f.bias\"");
    lie([](auto& c) { c["h.1.ln_2.bias"].name = "h.2.ln_2.bias"; }, "lacks the tensor \"h.1.ln_2.bias\"");
    lie([](auto& c) { c.tensor.push_back({"h.0.attn.extra", "F32", {1}, {0}}); }, "\"h.0.attn.extra\", which no GPT-2");
    lie([](auto& c) { c.tensor.push_back({"h.2.attn.bias", "F32", {1}, {0}}); }, "\"h.2.attn.bias\", which no GPT-2");
    lie([](auto& c) { c.tensor.push_back({"transformer.ln_f.bias", "F32", {1}, {0}}); }, "\"ln_f.bias\" twice");
    lie([](auto& c) { std::swap(c["h.0.mlp.c_fc.weight"].shape[0], c["h.0.mlp.c_fc.weight"].shape[1]); },
        "of shape [64, 16], but its config.json calls for [16, 64]");
    lie([](auto& c) { c["wte.weight"].shape = {640}; }, "of shape [640]");
    lie([](auto& c) { c.config["n_positions"] = 9; }, "[9, 16]");
    lie([](auto& c) { c["ln_f.bias"].dtype = "I32"; }, "\"ln_f.bias\" as I32");
    lie(
        [](auto& c) {
            SmallTensor head = c["wte.weight"];
            head.name = "lm_head.weight";
            head.values[5] += 1;
            c.tensor.push_back(head);
        },
        "differs from wte.weight");
}

TEST_CASE("values that fp16 or arithmetic can't take are named with tensor, element and value") {
    const auto lie = [](const std::string& name, size_t i, float value, const std::string& what,
                        const std::string& dtype = "F32") {
        TemporaryFolder folder;
        SmallCheckpoint checkpoint = make_small_checkpoint(2, 2, 16, 8, 40, 1, {dtype});
        checkpoint[name].values[i] = value;
        checkpoint.write(folder / "model");
        refused(folder, what);
        refused(folder, "in the tensor \"" + name + "\", element " + std::to_string(i));
    };
    lie("h.1.mlp.c_proj.weight", 77, NAN, "nan");
    lie("wte.weight", 639, INFINITY, "inf");
    lie("ln_f.weight", 0, -INFINITY, "-inf", "F16");
    lie("wpe.weight", 3, NAN, "nan", "BF16");
    lie("h.0.attn.c_attn.weight", 4, 65520, "65520.000000");
    lie("h.0.attn.c_attn.weight", 4, -1e9f, "beyond fp16", "BF16");

    TemporaryFolder folder;  // the largest that rounds down to 65504, and a bias, which stays fp32
    SmallCheckpoint checkpoint = sound();
    checkpoint["h.0.attn.c_attn.weight"].values[4] = 65519;
    checkpoint["h.0.attn.c_attn.bias"].values[4] = 1e9f;
    checkpoint.write(folder / "model");
    CHECK(error_of([&] { convert({folder / "model", "", "", folder / "blob"}); }) == "");
}

TEST_CASE("safetensors files that lie about themselves") {
    const auto lie = [](const std::string& bytes, const std::string& what) {
        TemporaryFolder folder;
        fs::create_directory(folder / "model");
        write_file(folder / "model/config.json", sound().config.dump());
        write_file(folder / "model/model.safetensors", bytes);
        refused(folder, what);
    };
    const auto header = [](const std::string& entries) { return "{" + entries + "}"; };
    const std::string data(64, 'x');
    lie("short", "too short");
    for (const uint64_t size : {uint64_t(1) << 63, ~uint64_t(0), uint64_t(100'000'001), uint64_t(75)})
        lie(safetensors_bytes("{}", data, size), "claims a header of " + std::to_string(size) + " bytes");
    lie(safetensors_bytes("{\"a\":", data), "is not valid JSON");
    lie(safetensors_bytes("7", data), "is not a JSON object");
    lie(safetensors_bytes(std::string(100000, '['), data), "deeper");
    lie(safetensors_bytes("{\"\xff\":1}", data), "is not valid JSON");
    const std::string a = R"("a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]})";
    lie(safetensors_bytes(header(a + "," + a), data), "has the JSON key \"a\" twice");
    lie(safetensors_bytes(header(R"("a":{"dtype":"F32","dtype":"F16","shape":[4],"data_offsets":[0,16]})"), data),
        "has the JSON key \"dtype\" twice");
    lie(safetensors_bytes(header(a), data), "48 bytes that belong to no tensor");
    lie(safetensors_bytes(header(a + R"(,"b":{"dtype":"F32","shape":[12],"data_offsets":[12,60]})"), data), "overlaps");
    lie(safetensors_bytes(header(a + R"(,"b":{"dtype":"F32","shape":[11],"data_offsets":[20,64]})"), data), "a gap");
    for (const char* place : {"[0,65]", "[16,0]", "[18446744073709551600,18446744073709551615]"})
        lie(safetensors_bytes(header(R"("a":{"dtype":"F32","shape":[4],"data_offsets":)" + std::string(place) + "}"),
                              data),
            "lies at bytes");
    for (const char* place : {"[-1,15]", "[0.0,16]", "[\"0\",16]", "[0,18446744073709551616]"})
        lie(safetensors_bytes(header(R"("a":{"dtype":"F32","shape":[4],"data_offsets":)" + std::string(place) + "}"),
                              data),
            "offsets that are not whole numbers");
    for (const char* shape : {"[5]", "[]", "[4,0]", "[4611686018427387908]", "[4294967296,4294967296,4]"})
        lie(safetensors_bytes(header(R"("a":{"dtype":"F32","data_offsets":[0,16],"shape":)" + std::string(shape) + "}"),
                              data),
            "does not fit");
    for (const char* shape : {"[-4]", "[4.0]", "[[4]]"})
        lie(safetensors_bytes(header(R"("a":{"dtype":"F32","data_offsets":[0,16],"shape":)" + std::string(shape) + "}"),
                              data),
            "whole numbers");
    lie(safetensors_bytes(header(R"("a":{"dtype":"Q4","shape":[4],"data_offsets":[0,16]})"), data),
        "unknown dtype \"Q4\"");
    for (const char* entry :
         {"1", "{}", "[]", R"({"dtype":1,"shape":[],"data_offsets":[0,4]})",
          R"({"dtype":"F32","shape":4,"data_offsets":[0,16]})", R"({"dtype":"F32","shape":[4],"data_offsets":[0]})"})
        lie(safetensors_bytes(header("\"a\":" + std::string(entry)), data), "lacks a dtype, shape or data_offsets");
}

TEST_CASE("shards that do not match their index") {
    const auto lie = [](const std::function<void(const std::string&, json&)>& change, const std::string& what) {
        TemporaryFolder folder;
        sound().write(folder / "model", 2);
        const std::string path = folder / "model/model.safetensors.index.json";
        json index = json::parse(read_file(path));
        change(folder / "model", index);
        write_file(path, index.dump());
        refused(folder, what);
    };
    lie([](auto& f, json&) { fs::remove(f + "/model-1.safetensors"); }, "model-1.safetensors does not exist");
    lie([](auto&, json& index) { index["weight_map"]["wte.weight"] = "model-1.safetensors"; }, "does not place there");
    lie([](auto&, json& index) { index["weight_map"].erase("wte.weight"); }, "does not place there");
    lie([](auto&, json& index) { index["weight_map"]["more"] = "model-0.safetensors"; }, "lacks the tensor \"more\"");
    for (const char* name : {"../model-0.safetensors", "/etc/passwd", "a/b", "..", ".", ""})
        lie([&](auto&, json& index) { index["weight_map"]["wte.weight"] = name; }, "not a plain file name");
    lie([](auto&, json& index) { index["weight_map"]["wte.weight"] = 5; }, "no file name for \"wte.weight\"");
    lie([](auto&, json& index) { index["weight_map"] = 5; }, "no weight_map");
    lie(
        [](auto& f, json&) {  // a tensor in both shards
            fs::copy_file(f + "/model-0.safetensors", f + "/model-1.safetensors", fs::copy_options::overwrite_existing);
        },
        "model-1.safetensors lacks the tensor");
}

TEST_CASE("a draft or table for another vocabulary") {
    TemporaryFolder folder;
    sound().write(folder / "model");
    make_small_checkpoint(1, 1, 16, 8, 41, 1).write(folder / "draft");
    refused(folder, "has a vocabulary of 41 tokens, but the target", {"", folder / "draft", "", ""});
    refused(folder, "nothing does not exist", {"", folder / "nothing", "", ""});
    const std::vector<uint8_t> table = small_table(70);
    write_file(folder / "table", std::string(table.begin(), table.end()));
    refused(folder, "vocabulary of 70 tokens, but the target has 40", {"", "", folder / "table", ""});
    std::vector<uint8_t> lost = small_table(70);  // its contexts collide: they need more than one probe
    reinterpret_cast<NgramHeader*>(lost.data())->max_probes = 1;
    write_file(folder / "table", std::string(lost.begin(), lost.end()));
    make_small_checkpoint(1, 1, 16, 8, 70, 1).write(folder / "model");
    refused(folder, "table has a context that a search can't find", {"", "", folder / "table", ""});
    write_file(folder / "table", "text");
    refused(folder, "too few for an n-gram table", {"", "", folder / "table", ""});
    refused(folder, "missing does not exist", {"", "", folder / "missing", ""});
}

TEST_CASE("2,000 random damages to a checkpoint's files end in a blob or a sentence") {
    TemporaryFolder folder;
    make_small_checkpoint(1, 1, 2, 3, 5, 1).write(folder / "model", 2);
    std::mt19937_64 generator(11);
    const auto below = [&](uint64_t n) { return generator() % n; };
    const std::string files[] = {folder / "model/config.json", folder / "model/model.safetensors.index.json",
                                 folder / "model/model-0.safetensors", folder / "model/model-1.safetensors"};
    const std::string alphabet = "\"{}[]:,0123456789-.eE\\u \xff";
    int converted = 0, refused = 0;
    for (int round = 0; round < 2000; round++) {
        const std::string& path = files[below(4)];
        const std::string whole = read_file(path);
        std::string bytes = whole;
        for (uint64_t hits = 1 + below(3); hits > 0; hits--) {
            const size_t at = below(bytes.size());
            if (below(3) == 0)
                bytes[at] = char(below(256));
            else if (below(2))
                bytes[at] = alphabet[below(alphabet.size())];
            else if (below(2))
                bytes.erase(at, 1 + below(20));
            else
                bytes.insert(at, bytes.substr(below(bytes.size()), below(40)));
            if (bytes.empty()) bytes.push_back('x');
        }
        write_file(path, bytes);
        const std::string message = error_of([&] { convert({folder / "model", "", "", folder / "out.blob"}); });
        write_file(path, whole);
        REQUIRE((message.empty() || message.starts_with("[3] ")));
        message.empty() ? converted++ : refused++;
    }
    CAPTURE(converted);
    CHECK(refused > 1000);
}

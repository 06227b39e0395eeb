// Small checkpoints in Hugging Face's layout, written from C++, sound until a test changes something.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/error.h"

struct SmallTensor {
    std::string name, dtype;
    std::vector<uint64_t> shape;
    std::vector<float> values;  // row-major; already rounded to what the dtype holds
};

struct SmallCheckpoint {
    nlohmann::json config;
    std::vector<SmallTensor> tensor;

    SmallTensor& operator[](const std::string& name);
    void write(const std::string& folder, int n_shards = 1) const;  // makes the folder
};

// Random values; dtypes take turns over the tensors; `prefix` goes before all names but lm_head's.
SmallCheckpoint make_small_checkpoint(int n_layer, int n_head, int n_embd, int n_positions, int n_vocab, uint64_t seed,
                                      const std::vector<std::string>& dtypes = {"F32"}, bool tied = true,
                                      const std::string& prefix = "");

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);

// A safetensors file of that header and data; header_size is what the first 8 bytes claim.
std::string safetensors_bytes(const std::string& header, const std::string& data, uint64_t header_size);
std::string safetensors_bytes(const std::string& header, const std::string& data);

// The message of the Error that `run` throws, with "[code] " before it; "" when it returns.
template <class Run>
std::string error_of(const Run& run) {
    try {
        run();
        return "";
    } catch (const Error& e) {
        return "[" + std::to_string(int(e.code)) + "] " + e.what();
    }
}

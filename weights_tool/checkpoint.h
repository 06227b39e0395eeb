// A GPT-2 checkpoint in Hugging Face's layout: a folder of config.json and model.safetensors, or shards with an index.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "model/blob.h"
#include "weights_tool/safetensors.h"

struct Checkpoint {
    std::string folder;
    Config config;
    std::map<std::string, Tensor> tensor;  // exactly those of ModelLayout(config), by the names that it gives them
    std::set<std::string> dtypes;          // met in them
    std::string licence;                   // as the folder states it, "" if it does not
    std::vector<MappedFile> files;         // keep the tensors mapped
};

// Throws Error(kExitBadModel) that says what was found and what to do unless the folder holds a GPT-2 that the blob can
// express: every tensor of the right shape and of dtype F32, F16 or BF16, and no other. Values are checked on packing.
Checkpoint open_checkpoint(const std::string& folder);

// Whether checkpoints hold the matrix as (in_features, out_features): all linear layers, not the embeddings and the
// head.
bool is_conv1d(const TensorPlace& place);

uint64_t element_size(const Tensor& tensor);  // bytes, 0 for a dtype other than F32, F16 and BF16
float element(const Tensor& tensor, uint64_t i);

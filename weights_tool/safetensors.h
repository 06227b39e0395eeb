// Reads safetensors files: 8 bytes of header length, a JSON header {"name": {"dtype", "shape", "data_offsets"}}, the
// data.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/mapped_file.h"

struct Tensor {
    std::string dtype;  // as the file spells it: "F32", "F16", "BF16", ...
    std::vector<uint64_t> shape;
    std::span<const uint8_t> bytes;  // little-endian, row-major, of any alignment
};
std::string shape_text(const std::vector<uint64_t>& shape);  // "[1280, 3840]"
std::string in_quotes(const std::string& text);  // for messages: a file's own words in ASCII, shortened, quoted

struct Safetensors {
    MappedFile file;
    std::map<std::string, Tensor> tensor;  // by name; they cover the data without gaps or overlaps
};
// Throws Error(kExitBadModel) naming the path unless every tensor's bytes are inside the file and match dtype and
// shape.
Safetensors open_safetensors(const std::string& path);

// A JSON object with no key twice, nested at most 16 deep. `name` begins the sentence of the Error(kExitBadModel).
nlohmann::json parse_json_object(std::string_view text, const std::string& name);

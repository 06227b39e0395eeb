#include "weights_tool/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "model/error.h"

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // bytes, the format's own limit

[[noreturn]] static void refuse(const std::string& name, const std::string& found) {
    throw Error(kExitBadModel, name + " " + found);
}

std::string in_quotes(const std::string& text) {
    return json(text.size() > 80 ? text.substr(0, 80) + "..." : text)
        .dump(-1, ' ', true, json::error_handler_t::replace);
}

json parse_json_object(std::string_view text, const std::string& name) {
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
        if (depth > 16) refuse(name, "nests JSON deeper than any checkpoint does");
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        if (event == json::parse_event_t::object_end) keys.pop_back();
        if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
            refuse(name, "has the JSON key " + in_quotes(parsed) + " twice");
        return true;
    };
    try {
        json parsed = json::parse(text, check);
        if (!parsed.is_object()) refuse(name, "is not a JSON object");
        return parsed;
    } catch (const json::parse_error& e) {
        refuse(name, "is not valid JSON (error at byte " + std::to_string(e.byte) + ")");
    } catch (const json::out_of_range&) {
        refuse(name, "holds a number that is out of range");
    }
}

std::string shape_text(const std::vector<uint64_t>& shape) {
    std::string text;
    for (const uint64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
    return "[" + text + "]";
}

// Bytes of one element, 0 for a dtype that the format does not have.
static uint64_t dtype_size(const std::string& dtype) {
    for (const char* name : {"F64", "I64", "U64"})
        if (dtype == name) return 8;
    for (const char* name : {"F32", "I32", "U32"})
        if (dtype == name) return 4;
    for (const char* name : {"F16", "BF16", "I16", "U16"})
        if (dtype == name) return 2;
    for (const char* name : {"BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2"})
        if (dtype == name) return 1;
    return 0;
}

// The tensor that `entry` describes; its bytes lie inside `data`.
static Tensor read_entry(const json& entry, std::span<const uint8_t> data, const std::string& name) {
    if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() || !entry.contains("shape") ||
        !entry["shape"].is_array() || !entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
        entry["data_offsets"].size() != 2)
        refuse(name, "lacks a dtype, shape or data_offsets in the header");
    Tensor tensor;
    tensor.dtype = entry["dtype"];
    uint64_t size = dtype_size(tensor.dtype);
    if (!size) refuse(name, "has the unknown dtype " + in_quotes(tensor.dtype));
    bool overflow = false;
    for (const json& n : entry["shape"]) {
        if (!n.is_number_unsigned()) refuse(name, "has a shape that is not made of whole numbers");
        tensor.shape.push_back(n);
        overflow |= __builtin_mul_overflow(size, tensor.shape.back(), &size);
    }
    const json &first = entry["data_offsets"][0], &last = entry["data_offsets"][1];
    if (!first.is_number_unsigned() || !last.is_number_unsigned())
        refuse(name, "has offsets that are not whole numbers");
    const uint64_t begin = first, end = last;
    if (begin > end || end > data.size())
        refuse(name, "lies at bytes " + std::to_string(begin) + " to " + std::to_string(end) + " of data that has " +
                         std::to_string(data.size()));
    if (overflow || size != end - begin)
        refuse(name, "has " + std::to_string(end - begin) + " bytes, which " + tensor.dtype + " " +
                         shape_text(tensor.shape) + " does not fit");
    tensor.bytes = data.subspan(begin, end - begin);
    return tensor;
}

Safetensors open_safetensors(const std::string& path) {
    Safetensors result;
    result.file = map_file(path, "download or save the checkpoint again");
    const std::span<const uint8_t> bytes = result.file.bytes;
    uint64_t header_size = 0;
    if (bytes.size() < 8) refuse(path, "is too short to be a safetensors file");
    std::memcpy(&header_size, bytes.data(), 8);
    if (header_size > bytes.size() - 8 || header_size > kMaxHeader)
        refuse(path, "claims a header of " + std::to_string(header_size) + " bytes in a file of " +
                         std::to_string(bytes.size()) + " (at most " + std::to_string(kMaxHeader) +
                         " are allowed): not a safetensors file, or cut off");
    const json header = parse_json_object(result.file.text().substr(8, header_size), "the header of " + path);
    const std::span<const uint8_t> data = bytes.subspan(8 + header_size);

    std::vector<const std::pair<const std::string, Tensor>*> by_place;
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__") continue;
        by_place.push_back(
            &*result.tensor.emplace(name, read_entry(entry, data, path + ": tensor " + in_quotes(name))).first);
    }
    std::ranges::sort(by_place, [](const auto* a, const auto* b) {
        return std::pair(a->second.bytes.data(), a->second.bytes.size()) <
               std::pair(b->second.bytes.data(), b->second.bytes.size());
    });
    const uint8_t* end = data.data();
    for (const auto* entry : by_place) {
        if (entry->second.bytes.data() != end)
            refuse(path + ": tensor " + in_quotes(entry->first),
                   entry->second.bytes.data() < end ? "overlaps the one before it" : "follows a gap");
        end = entry->second.bytes.data() + entry->second.bytes.size();
    }
    if (end != data.data() + data.size())
        refuse(path, "has " + std::to_string(data.data() + data.size() - end) + " bytes that belong to no tensor");
    return result;
}

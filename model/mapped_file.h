// A whole file, mapped read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct MappedFile {
    std::shared_ptr<const void> mapping;  // keeps it mapped; copies share it
    std::span<const uint8_t> bytes;       // at least one

    std::string_view text() const { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
};

// Maps the regular, non-empty file at `path`. Anything else is an Error(kExitBadModel) that names the path and what was
// found there, then gives `advice` ("make one with ...").
MappedFile map_file(const std::string& path, const std::string& advice);

// Gives the memory of `bytes`, part of a mapped file, back to the system; it is read again when touched.
void release_pages(std::span<const uint8_t> bytes);

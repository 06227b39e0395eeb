// A small sound blob in memory, and what it takes to damage it in ways that checksums alone would not show.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/blob.h"

// Target (2 layers, n_embd 24: padded tiles), draft, n-gram table and metadata.
std::string small_blob();

// A sound n-gram section: 60 contexts in 128 slots, n_vocab at least 63.
std::vector<uint8_t> small_table(uint32_t n_vocab);

// Makes all checksums, the header's too, hold again where section offsets and sizes still make sense.
void reseal(std::string& bytes);

// Memory that ends where unreadable memory begins, so that reading past it is a crash. 16-byte aligned.
class GuardedCopy {
public:
    explicit GuardedCopy(const std::string& bytes);
    ~GuardedCopy();
    GuardedCopy(const GuardedCopy&) = delete;
    std::span<const uint8_t> bytes() const { return bytes_; }

private:
    void* mapping_;
    size_t mapped_;
    std::span<const uint8_t> bytes_;
};

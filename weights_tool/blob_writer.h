// Writes a blob section by section, as a stream: nothing is kept but the checksum in progress.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "model/blob.h"
#include "model/output_file.h"

class BlobWriter {
public:
    // `size`: bytes of all sections together, for claiming disk space early; may be an estimate.
    BlobWriter(const std::string& path, uint64_t size);
    ~BlobWriter();

    void begin(SectionKind kind);
    void write(std::span<const uint8_t> bytes);  // appends to the section
    void pad_to(uint64_t offset);                // zeros up to `offset` bytes from the start of the section
    void end();
    void section(SectionKind kind, std::span<const uint8_t> bytes);  // a whole one
    void commit();                                                   // writes the header; the blob appears

private:
    OutputFile file_;
    BlobHeader header_ = {};
    struct Checksum;
    std::unique_ptr<Checksum> checksum_;
};

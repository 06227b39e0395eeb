#include "weights_tool/blob_writer.h"

#include <algorithm>
#include <cstring>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

struct BlobWriter::Checksum {
    XXH3_state_t state;
};

BlobWriter::BlobWriter(const std::string& path, uint64_t size) : file_(path), checksum_(new Checksum) {
    file_.reserve(sizeof(BlobHeader) + size);
    file_.write(std::vector<uint8_t>(sizeof header_));  // its place: it is known only at the end
    std::memcpy(header_.magic, kBlobMagic, sizeof kBlobMagic);
    header_.version = kBlobVersion;
}

BlobWriter::~BlobWriter() = default;

void BlobWriter::begin(SectionKind kind) {
    const uint64_t offset = (file_.size() + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
    file_.write(std::vector<uint8_t>(offset - file_.size()));
    header_.section[header_.n_sections] = {
        .kind = uint32_t(kind), .reserved = 0, .offset = offset, .size = 0, .xxh3 = {}};
    XXH3_128bits_reset(&checksum_->state);
}

void BlobWriter::write(std::span<const uint8_t> bytes) {
    XXH3_128bits_update(&checksum_->state, bytes.data(), bytes.size());
    file_.write(bytes);
}

void BlobWriter::pad_to(uint64_t offset) {
    write(std::vector<uint8_t>(header_.section[header_.n_sections].offset + offset - file_.size()));
}

void BlobWriter::end() {
    SectionEntry& entry = header_.section[header_.n_sections++];
    entry.size = file_.size() - entry.offset;
    const XXH128_hash_t hash = XXH3_128bits_digest(&checksum_->state);
    entry.xxh3[0] = hash.low64;
    entry.xxh3[1] = hash.high64;
}

void BlobWriter::section(SectionKind kind, std::span<const uint8_t> bytes) {
    begin(kind);
    write(bytes);
    end();
}

void BlobWriter::commit() {
    header_.file_size = file_.size();
    header_.header_xxh3 = XXH3_64bits(&header_, sizeof header_);  // with this field still 0
    file_.write_at(0, {reinterpret_cast<const uint8_t*>(&header_), sizeof header_});
    file_.commit();
}

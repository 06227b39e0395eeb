#include "tests/blob_bytes.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tests/random_model.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "weights_tool/blob_writer.h"

std::vector<uint8_t> small_table(uint32_t n_vocab) {
    constexpr uint32_t kLog2Slots = 7;
    constexpr uint64_t kSlots = 1 << kLog2Slots;
    NgramEntry empty = {};
    for (uint32_t& token : empty.token) token = kNoToken;
    std::vector<NgramEntry> entries(kSlots + n_vocab + 1, empty);
    NgramHeader header = {n_vocab, kLog2Slots, 0, 0, 0, 1234, {}};
    for (uint32_t i = 0; i < 60; i++) {  // contexts (i, 2 i), which collide now and then
        NgramEntry entry = {{i, 2 * i % n_vocab}, {i, i + 1, i + 2, kNoToken}, {30000, 20000, 10, 0}};
        uint64_t slot = ngram_hash(entry.context[0], entry.context[1]) % kSlots;
        uint32_t probes = 1;
        for (; entries[slot].token[0] != kNoToken; probes++) slot = (slot + 1) % kSlots;
        entries[slot] = entry;
        header.max_probes = std::max(header.max_probes, probes);
        header.n_contexts++;
    }
    for (uint32_t i = 0; i <= n_vocab; i++)
        entries[kSlots + i] = {{}, {i % n_vocab, kNoToken, kNoToken, kNoToken}, {9, 0, 0, 0}};
    std::vector<uint8_t> bytes(sizeof header + entries.size() * sizeof(NgramEntry));
    std::memcpy(bytes.data(), &header, sizeof header);
    std::memcpy(bytes.data() + sizeof header, entries.data(), entries.size() * sizeof(NgramEntry));
    return bytes;
}

std::string small_blob() {
    const RandomModel target = make_random_model(2, 3, 24, 10, 70, 1), draft = make_random_model(1, 1, 16, 10, 70, 2);
    const std::vector<uint8_t> ngram = small_table(70);
    const std::string metadata = "{\"tool\":\"test\"}";

    TemporaryFolder folder;
    BlobWriter writer(folder / "blob", 0);
    writer.section(SectionKind::target, {target.view.base, target.view.size});
    writer.section(SectionKind::draft, {draft.view.base, draft.view.size});
    writer.section(SectionKind::ngram, ngram);
    writer.section(SectionKind::metadata, {reinterpret_cast<const uint8_t*>(metadata.data()), metadata.size()});
    writer.commit();
    return read_file(folder / "blob");
}

void reseal(std::string& bytes) {
    BlobHeader header;
    if (bytes.size() < sizeof header) return;
    std::memcpy(&header, bytes.data(), sizeof header);
    for (SectionEntry& entry : header.section) {
        if (entry.offset > bytes.size() || entry.size > bytes.size() - entry.offset) continue;
        const XXH128_hash_t hash = XXH3_128bits(bytes.data() + entry.offset, entry.size);
        entry.xxh3[0] = hash.low64;
        entry.xxh3[1] = hash.high64;
    }
    header.header_xxh3 = 0;
    header.header_xxh3 = XXH3_64bits(&header, sizeof header);
    std::memcpy(bytes.data(), &header, sizeof header);
}

GuardedCopy::GuardedCopy(const std::string& bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), size = (bytes.size() + 15) / 16 * 16;
    const size_t readable = (size + page - 1) / page * page;
    mapped_ = readable + page;
    mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) std::abort();
    uint8_t* start = static_cast<uint8_t*>(mapping_) + readable - size;
    std::memcpy(start, bytes.data(), bytes.size());
    mprotect(static_cast<uint8_t*>(mapping_) + readable, page, PROT_NONE);
    bytes_ = {start, bytes.size()};
}

GuardedCopy::~GuardedCopy() {
    munmap(mapping_, mapped_);
}

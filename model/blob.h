// The blob: one little-endian file that holds everything a decode needs, laid out so that it is mapped and used in
// place.
//
//   BlobHeader                     4 KiB: magic, version, file size, the table of sections, its checksum
//   sections                       each at a multiple of 4 KiB, in the order of the table, checksummed with XXH3-128:
//     target, draft (optional)     ModelHeader, then the tensors at ModelLayout's offsets
//     tokenizer (optional)         model/tokenizer.h
//     n-gram (optional)            NgramHeader, then its tables
//     metadata                     JSON text: source names, dates, licence, dtype
//
// Whatever lies between sections and tensors is zero.
//
// Matrices are (rows, columns) = (out_features, in_features), fp16, both padded with zeros to multiples of 16, cut into
// tiles of 16 rows by all columns. A tile is a run of 16 x 16 blocks in ascending column order, a block is the A
// fragment of mma.m16n8k16 lane by lane: 32 lanes x 8 halves, so that a tile streams as one copy and a lane's fragment
// is one 16-byte load. Lane l = 4 g + t holds, in this order,
//     (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1) (g, 2t+8) (g, 2t+9) (g+8, 2t+8) (g+8, 2t+9)      as (row, column).
// Biases and LayerNorm parameters are fp32, wpe is fp16 row-major.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/host_device.h"

constexpr char kBlobMagic[8] = {'S', 'G', 'P', 'T', '2', 'B', 'L', 'B'};
constexpr uint32_t kBlobVersion = 1;
constexpr uint64_t kSectionAlignment = 4096;
constexpr uint64_t kTensorAlignment = 256;
constexpr int kMaxSections = 16;
// Sections up to so many bytes are checksummed whenever a blob is opened: 4 ms at most. GPT2-L's 1.5 GB would take 90
// ms of a start that takes 0.1 ms, so larger sections are left to verify().
constexpr uint64_t kChecksumOnLoad = 64 << 20;

enum class SectionKind : uint32_t { target = 1, draft = 2, tokenizer = 3, ngram = 4, metadata = 5 };
const char* section_name(SectionKind kind);

struct SectionEntry {
    uint32_t kind;  // SectionKind
    uint32_t reserved;
    uint64_t offset;   // from the start of the blob, a multiple of kSectionAlignment
    uint64_t size;     // bytes
    uint64_t xxh3[2];  // XXH3-128 of the section's bytes: low, high
};

struct BlobHeader {
    char magic[8];
    uint32_t version;
    uint32_t n_sections;
    uint64_t file_size;
    uint64_t header_xxh3;  // XXH3-64 of this header with this field 0
    SectionEntry section[kMaxSections];
    uint8_t padding[kSectionAlignment - 32 - kMaxSections * sizeof(SectionEntry)];
};
static_assert(sizeof(SectionEntry) == 40 && sizeof(BlobHeader) == kSectionAlignment);

struct ModelHeader {
    Config config;
    uint8_t padding[kTensorAlignment - sizeof(Config)];
};
static_assert(sizeof(ModelHeader) == kTensorAlignment);

HD constexpr int pad16(int n) {
    return (n + 15) / 16 * 16;
}

// Offset in halves of element (row, column) of a tiled matrix with `columns` columns.
HD constexpr uint64_t tiled_index(uint64_t row, uint64_t column, uint64_t columns) {
    const uint64_t tile = row / 16, block = column / 16, r = row % 16, c = column % 16;
    const uint64_t lane = (r % 8) * 4 + (c % 8) / 2, within = (c / 8) * 4 + (r / 8) * 2 + c % 2;
    return (tile * ((columns + 15) / 16) + block) * 256 + lane * 8 + within;
}

// Where one tensor of a checkpoint stands in a model's section.
enum class Form { tiles, rows, vector };  // fp16 in tiles; fp16 row-major; fp32
struct TensorPlace {
    std::string name;  // as in Hugging Face's checkpoints, without "transformer.": "h.0.attn.c_attn.weight"
    Form form;
    uint64_t rows, columns;  // (out_features, in_features); a vector is (rows, 1)
    uint64_t offset, size;   // bytes, padding of the tiles included
};

// Byte offsets of a model's tensors from the start of its section. Writer and readers share it.
struct LayerLayout {
    uint64_t ln_1_weight, ln_1_bias;          // (n_embd) fp32
    uint64_t c_attn_weight, c_attn_bias;      // (3 n_embd, n_embd) tiles, (3 n_embd) fp32
    uint64_t c_proj_weight, c_proj_bias;      // (n_embd, n_embd) tiles, (n_embd) fp32
    uint64_t ln_2_weight, ln_2_bias;          // (n_embd) fp32
    uint64_t c_fc_weight, c_fc_bias;          // (4 n_embd, n_embd) tiles, (4 n_embd) fp32
    uint64_t mlp_proj_weight, mlp_proj_bias;  // (n_embd, 4 n_embd) tiles, (n_embd) fp32
};
struct ModelLayout {
    uint64_t wte;  // (n_vocab, n_embd) tiles
    uint64_t wpe;  // (n_positions, n_embd) fp16 row-major
    std::vector<LayerLayout> layer;
    uint64_t ln_f_weight, ln_f_bias;  // (n_embd) fp32
    uint64_t lm_head;                 // (n_vocab, n_embd) tiles; equals wte when tied
    uint64_t size;                    // of the section, bytes
    std::vector<TensorPlace> tensor;  // all of the above, in ascending order of offset

    explicit ModelLayout(const Config& config);  // the config must be free of faults
};

// A mapped model section: typed pointers into it, valid as long as the Blob lives.
struct ModelView {
    Config config;
    const uint8_t* base;  // start of the section, for whole-section uploads
    uint64_t size;
    struct Layer {
        const float *ln_1_weight, *ln_1_bias;  // (n_embd)
        const uint16_t* c_attn_weight;         // tiles of (3 n_embd, n_embd)
        const float* c_attn_bias;              // (3 n_embd)
        const uint16_t* c_proj_weight;         // tiles of (n_embd, n_embd)
        const float* c_proj_bias;              // (n_embd)
        const float *ln_2_weight, *ln_2_bias;  // (n_embd)
        const uint16_t* c_fc_weight;           // tiles of (4 n_embd, n_embd)
        const float* c_fc_bias;                // (4 n_embd)
        const uint16_t* mlp_proj_weight;       // tiles of (n_embd, 4 n_embd)
        const float* mlp_proj_bias;            // (n_embd)
    };
    std::vector<Layer> layer;              // (n_layer)
    const uint16_t* wte;                   // tiles of (n_vocab, n_embd)
    const uint16_t* wpe;                   // (n_positions, n_embd)
    const float *ln_f_weight, *ln_f_bias;  // (n_embd)
    const uint16_t* lm_head;               // tiles of (n_vocab, n_embd)
};

// The views into a model section: a ModelHeader whose config is free of faults, then ModelLayout's tensors. 16-byte
// aligned.
ModelView model_view(std::span<const uint8_t> section);

// The n-gram table: for a context, up to four successors with their Katz back-off probabilities, best first. An entry
// is one 32-byte sector. Section: NgramHeader, then 2^log2_slots entries of trigram contexts (open addressing, linear
// probing from ngram_hash), then n_vocab entries of bigram contexts by token, then one entry for no context.
constexpr int kNgramSuccessors = 4;
constexpr uint32_t kNoToken = 0xffffffffu;
constexpr uint32_t kMaxLog2Slots = 28;
constexpr uint32_t kMaxProbes = 1024;
struct NgramEntry {
    uint32_t context[2];                     // the last two tokens, older first; only trigram entries use it
    uint32_t token[kNgramSuccessors];        // kNoToken fills the rest; token[0] == kNoToken: the slot is empty
    uint16_t probability[kNgramSuccessors];  // times 65535
};
struct NgramHeader {
    uint32_t n_vocab;
    uint32_t log2_slots;
    uint32_t max_probes;  // slots that a search looks at before it gives up
    uint32_t reserved;
    uint64_t n_contexts;       // occupied trigram slots
    uint64_t n_source_tokens;  // length of the text the table was built from
    uint8_t padding[32];
};
static_assert(sizeof(NgramEntry) == 32 && sizeof(NgramHeader) == 64);

// The slot of a context is ngram_hash & (slots - 1), or else one of the max_probes slots after it (cyclically); an
// empty slot on the way ends the search.
HD constexpr uint32_t ngram_hash(uint32_t older, uint32_t newer) {
    uint32_t h = (older * 0x9e3779b1u ^ newer) * 0x85ebca6bu;
    h = (h ^ h >> 15) * 0xc2b2ae35u;
    return h ^ h >> 16;
}

struct NgramView {
    const NgramHeader* header;
    const NgramEntry* trigram;  // (2^log2_slots)
    const NgramEntry* bigram;   // (n_vocab)
    const NgramEntry* unigram;  // (1)
};

// The entry of a trigram context, null if the table has none.
HD inline const NgramEntry* ngram_find(const NgramView& table, uint32_t older, uint32_t newer) {
    const uint32_t mask = (uint32_t(1) << table.header->log2_slots) - 1;
    uint32_t slot = ngram_hash(older, newer) & mask;
    for (uint32_t probe = 0; probe < table.header->max_probes; ++probe, slot = (slot + 1) & mask) {
        const NgramEntry& entry = table.trigram[slot];
        if (entry.token[0] == kNoToken) break;
        if (entry.context[0] == older && entry.context[1] == newer) return &entry;
    }
    return nullptr;
}

// The n-gram section `bytes`, once its sizes are known to agree with each other and its tokens to lie below n_vocab;
// else an Error(kExitBadModel) that begins with `name`.
NgramView ngram_view(std::span<const uint8_t> bytes, int n_vocab, const std::string& name);
// The same for what is not relied on: contexts stand where a search finds them, successors are ranked.
void verify_ngram(const NgramView& view, const std::string& name);

// A mapped blob. Opening checks everything that use relies on (sizes, overlaps, shapes against sizes, ids against the
// vocabulary) and the checksums of sections up to kChecksumOnLoad bytes, and throws Error(kExitBadModel) with a
// sentence; verify() reads every byte and adds the remaining checksums, that all weights are finite, that padding is
// zero, and that n-gram contexts stand where a search finds them.
class Blob {
public:
    static Blob open(const std::string& path);                                  // a file
    static Blob view(std::span<const uint8_t> bytes, const std::string& name);  // 16-byte aligned, outlives the blob

    ModelView target() const;
    bool has_draft() const;
    ModelView draft() const;                     // requires has_draft()
    std::span<const uint8_t> tokenizer() const;  // empty: none
    bool has_ngram() const;
    NgramView ngram() const;       // requires has_ngram()
    std::string metadata() const;  // JSON text
    const BlobHeader& header() const;
    const std::string& name() const { return name_; }
    void verify() const;  // Error(kExitBadModel) names the section that is damaged

    // The same blob to run the draft from: it stands in the target's place, and there is neither a draft nor a table.
    // Requires has_draft(); verify() wants the whole blob.
    Blob draft_alone() const;

private:
    Blob(std::shared_ptr<const void> mapping, std::span<const uint8_t> bytes, std::string name);
    std::span<const uint8_t> section(SectionKind kind) const;  // empty: none

    std::shared_ptr<const void> mapping_;  // keeps a mapped file alive
    std::span<const uint8_t> bytes_;
    std::string name_;
    bool draft_alone_ = false;
};

// Opening and checking blobs. What a blob says about itself is believed only after it was checked here, in this order:
// the header, the table of sections, each section's own sizes, the ids that are used as indices.
#include "model/blob.h"

#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "model/error.h"
#include "model/mapped_file.h"

static_assert(std::endian::native == std::endian::little, "blobs are used in place");

const char* section_name(SectionKind kind) {
    switch (kind) {
        case SectionKind::target:
            return "target";
        case SectionKind::draft:
            return "draft";
        case SectionKind::tokenizer:
            return "tokenizer";
        case SectionKind::ngram:
            return "n-gram";
        case SectionKind::metadata:
            return "metadata";
    }
    return "unknown";
}

// ---- Layout of a model ----

ModelLayout::ModelLayout(const Config& config) : size(sizeof(ModelHeader)) {
    const uint64_t n_embd = uint64_t(config.n_embd), n_vocab = uint64_t(config.n_vocab);
    const auto add = [&](const std::string& name, Form form, uint64_t rows, uint64_t columns) {
        const uint64_t bytes = form == Form::vector ? rows * 4
                               : form == Form::rows ? rows * columns * 2
                                                    : (rows + 15) / 16 * 16 * ((columns + 15) / 16 * 16) * 2;
        const uint64_t offset = size;
        tensor.push_back({name, form, rows, columns, offset, bytes});
        size = (offset + bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
        return offset;
    };
    wte = add("wte.weight", Form::tiles, n_vocab, n_embd);
    wpe = add("wpe.weight", Form::rows, uint64_t(config.n_positions), n_embd);
    for (int l = 0; l < config.n_layer; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        LayerLayout& at = layer.emplace_back();
        at.ln_1_weight = add(h + "ln_1.weight", Form::vector, n_embd, 1);
        at.ln_1_bias = add(h + "ln_1.bias", Form::vector, n_embd, 1);
        at.c_attn_weight = add(h + "attn.c_attn.weight", Form::tiles, 3 * n_embd, n_embd);
        at.c_attn_bias = add(h + "attn.c_attn.bias", Form::vector, 3 * n_embd, 1);
        at.c_proj_weight = add(h + "attn.c_proj.weight", Form::tiles, n_embd, n_embd);
        at.c_proj_bias = add(h + "attn.c_proj.bias", Form::vector, n_embd, 1);
        at.ln_2_weight = add(h + "ln_2.weight", Form::vector, n_embd, 1);
        at.ln_2_bias = add(h + "ln_2.bias", Form::vector, n_embd, 1);
        at.c_fc_weight = add(h + "mlp.c_fc.weight", Form::tiles, 4 * n_embd, n_embd);
        at.c_fc_bias = add(h + "mlp.c_fc.bias", Form::vector, 4 * n_embd, 1);
        at.mlp_proj_weight = add(h + "mlp.c_proj.weight", Form::tiles, n_embd, 4 * n_embd);
        at.mlp_proj_bias = add(h + "mlp.c_proj.bias", Form::vector, n_embd, 1);
    }
    ln_f_weight = add("ln_f.weight", Form::vector, n_embd, 1);
    ln_f_bias = add("ln_f.bias", Form::vector, n_embd, 1);
    lm_head = config.tied ? wte : add("lm_head.weight", Form::tiles, n_vocab, n_embd);
}

ModelView model_view(std::span<const uint8_t> section) {
    ModelView view;
    view.config = reinterpret_cast<const ModelHeader*>(section.data())->config;
    view.base = section.data();
    view.size = section.size();
    const ModelLayout layout(view.config);
    const auto half = [&](uint64_t offset) { return reinterpret_cast<const uint16_t*>(view.base + offset); };
    const auto single = [&](uint64_t offset) { return reinterpret_cast<const float*>(view.base + offset); };
    for (const LayerLayout& at : layout.layer)
        view.layer.push_back({
            .ln_1_weight = single(at.ln_1_weight),
            .ln_1_bias = single(at.ln_1_bias),
            .c_attn_weight = half(at.c_attn_weight),
            .c_attn_bias = single(at.c_attn_bias),
            .c_proj_weight = half(at.c_proj_weight),
            .c_proj_bias = single(at.c_proj_bias),
            .ln_2_weight = single(at.ln_2_weight),
            .ln_2_bias = single(at.ln_2_bias),
            .c_fc_weight = half(at.c_fc_weight),
            .c_fc_bias = single(at.c_fc_bias),
            .mlp_proj_weight = half(at.mlp_proj_weight),
            .mlp_proj_bias = single(at.mlp_proj_bias),
        });
    view.wte = half(layout.wte);
    view.wpe = half(layout.wpe);
    view.ln_f_weight = single(layout.ln_f_weight);
    view.ln_f_bias = single(layout.ln_f_bias);
    view.lm_head = half(layout.lm_head);
    return view;
}

// ---- Checks on opening ----

[[noreturn]] static void refuse(const std::string& name, const std::string& found) {
    throw Error(kExitBadModel, name + " " + found);
}

static bool checksum_holds(const SectionEntry& entry, const uint8_t* section) {
    const XXH128_hash_t hash = XXH3_128bits(section, entry.size);
    return hash.low64 == entry.xxh3[0] && hash.high64 == entry.xxh3[1];
}

static void check_header(std::span<const uint8_t> bytes, const std::string& name) {
    static const std::string again = "; copy or convert it again";
    if (reinterpret_cast<uintptr_t>(bytes.data()) % 16)
        refuse(name, "does not start at a multiple of 16 bytes in memory");
    if (bytes.size() >= sizeof kBlobMagic && std::memcmp(bytes.data(), kBlobMagic, sizeof kBlobMagic))
        refuse(name, "is not a blob of staged-gpt2; make one with weights_tool convert");
    if (bytes.size() < sizeof(BlobHeader))
        refuse(name, "ends after " + std::to_string(bytes.size()) + " bytes, inside its header" + again);
    BlobHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.version > kBlobVersion)
        refuse(name, "has version " + std::to_string(header.version) + " of the format, newer than this program's " +
                         std::to_string(kBlobVersion) + "; use a newer staged-gpt2");
    const uint64_t checksum = std::exchange(header.header_xxh3, 0);
    if (header.version != kBlobVersion || XXH3_64bits(&header, sizeof header) != checksum)
        refuse(name, "has a damaged header (its checksum does not hold)" + again);
    if (header.file_size != bytes.size())
        refuse(name, (header.file_size > bytes.size() ? "is cut off: " : "has surplus bytes at its end: ") +
                         std::to_string(bytes.size()) + " bytes are there, " + std::to_string(header.file_size) +
                         " were written" + again);

    if (header.n_sections > kMaxSections)
        refuse(name, "claims " + std::to_string(header.n_sections) + " sections, more than the format has" + again);
    uint64_t end = sizeof header;
    uint32_t seen = 0;  // bit k: section kind k
    for (uint32_t i = 0; i < header.n_sections; i++) {
        const SectionEntry& entry = header.section[i];
        const std::string which = "section " + std::to_string(i + 1);
        if (entry.kind < uint32_t(SectionKind::target) || entry.kind > uint32_t(SectionKind::metadata))
            refuse(name, which + " is of the unknown kind " + std::to_string(entry.kind) + again);
        if (seen & 1u << entry.kind)
            refuse(name,
                   std::string("holds more than one ") + section_name(SectionKind(entry.kind)) + " section" + again);
        seen |= 1u << entry.kind;
        if (entry.offset % kSectionAlignment || entry.offset < end || entry.offset > bytes.size() ||
            entry.size > bytes.size() - entry.offset)
            refuse(name, which + " (" + std::to_string(entry.size) + " bytes at " + std::to_string(entry.offset) +
                             ") is misplaced in a file of " + std::to_string(bytes.size()) + " bytes" + again);
        end = entry.offset + entry.size;
    }
}

// The config of a model section whose size agrees with its shape.
static Config checked_config(std::span<const uint8_t> section, const std::string& name) {
    if (section.size() < sizeof(ModelHeader))
        refuse(name, "holds " + std::to_string(section.size()) + " bytes, too few for a model");
    const Config config = reinterpret_cast<const ModelHeader*>(section.data())->config;
    if (const std::string fault = config_fault(config); !fault.empty()) refuse(name, "has an unusable shape: " + fault);
    const uint64_t size = ModelLayout(config).size;
    if (size != section.size())
        refuse(name, "holds " + std::to_string(section.size()) + " bytes, but its shape needs " + std::to_string(size));
    return config;
}

NgramView ngram_view(std::span<const uint8_t> bytes, int n_vocab, const std::string& name) {
    if (bytes.size() < sizeof(NgramHeader))
        refuse(name, "holds " + std::to_string(bytes.size()) + " bytes, too few for an n-gram table");
    NgramView view;
    view.header = reinterpret_cast<const NgramHeader*>(bytes.data());
    const NgramHeader& header = *view.header;
    if (header.n_vocab != uint32_t(n_vocab))
        refuse(name, "is an n-gram table for a vocabulary of " + std::to_string(header.n_vocab) +
                         " tokens, but the target has " + std::to_string(n_vocab));
    if (header.log2_slots > kMaxLog2Slots)
        refuse(name, "claims 2^" + std::to_string(header.log2_slots) + " slots (at most 2^" +
                         std::to_string(kMaxLog2Slots) + " are allowed)");
    const uint64_t slots = uint64_t(1) << header.log2_slots, entries = slots + header.n_vocab + 1;
    if (header.max_probes > kMaxProbes || header.max_probes > slots || header.n_contexts > slots)
        refuse(name, "has damaged limits: " + std::to_string(header.n_contexts) + " contexts and " +
                         std::to_string(header.max_probes) + " probes in " + std::to_string(slots) + " slots");
    if (bytes.size() != sizeof header + entries * sizeof(NgramEntry))
        refuse(name, "holds " + std::to_string(bytes.size()) + " bytes, but its tables need " +
                         std::to_string(sizeof header + entries * sizeof(NgramEntry)));
    view.trigram = reinterpret_cast<const NgramEntry*>(bytes.data() + sizeof header);
    view.bigram = view.trigram + slots;
    view.unigram = view.bigram + header.n_vocab;
    uint32_t outside = 0;  // summed without a branch: a large table is read at the speed of memory
    for (const NgramEntry& entry : std::span(view.trigram, entries))
        for (const uint32_t token : entry.token) outside |= token >= header.n_vocab && token != kNoToken;
    if (outside) refuse(name, "names a token outside the vocabulary of " + std::to_string(n_vocab));
    return view;
}

Blob::Blob(std::shared_ptr<const void> mapping, std::span<const uint8_t> bytes, std::string name)
    : mapping_(std::move(mapping)), bytes_(bytes), name_(std::move(name)) {
    check_header(bytes_, name_);
    const auto part = [&](SectionKind kind) { return name_ + ": the " + section_name(kind) + " section"; };
    for (uint32_t i = 0; i < header().n_sections; i++) {
        const SectionEntry& entry = header().section[i];
        if (entry.size <= kChecksumOnLoad && !checksum_holds(entry, bytes_.data() + entry.offset))
            refuse(part(SectionKind(entry.kind)), "is damaged (its checksum does not hold); copy or convert it again");
    }
    for (const SectionKind kind : {SectionKind::target, SectionKind::metadata})
        if (section(kind).empty()) refuse(part(kind), "is missing; convert it again");
    const Config target = checked_config(section(SectionKind::target), part(SectionKind::target));
    if (has_draft()) {
        const Config draft = checked_config(section(SectionKind::draft), part(SectionKind::draft));
        if (draft.n_vocab != target.n_vocab)
            refuse(part(SectionKind::draft), "has a vocabulary of " + std::to_string(draft.n_vocab) +
                                                 " tokens, but the target has " + std::to_string(target.n_vocab));
    }
    if (has_ngram()) ngram_view(section(SectionKind::ngram), target.n_vocab, part(SectionKind::ngram));
}

Blob Blob::open(const std::string& path) {
    const MappedFile file = map_file(path, "give a blob made by weights_tool convert");
    return Blob(file.mapping, file.bytes, path);
}

Blob Blob::view(std::span<const uint8_t> bytes, const std::string& name) {
    return Blob(nullptr, bytes, name);
}

const BlobHeader& Blob::header() const {
    return *reinterpret_cast<const BlobHeader*>(bytes_.data());
}

Blob Blob::draft_alone() const {
    Blob blob = *this;
    blob.draft_alone_ = true;
    return blob;
}

std::span<const uint8_t> Blob::section(SectionKind kind) const {
    if (draft_alone_) {
        if (kind == SectionKind::draft || kind == SectionKind::ngram) return {};
        if (kind == SectionKind::target) kind = SectionKind::draft;
    }
    for (uint32_t i = 0; i < header().n_sections; i++)
        if (const SectionEntry& entry = header().section[i]; entry.kind == uint32_t(kind))
            return bytes_.subspan(entry.offset, entry.size);
    return {};
}

ModelView Blob::target() const {
    return model_view(section(SectionKind::target));
}

bool Blob::has_draft() const {
    return !section(SectionKind::draft).empty();
}

ModelView Blob::draft() const {
    return model_view(section(SectionKind::draft));
}

std::span<const uint8_t> Blob::tokenizer() const {
    return section(SectionKind::tokenizer);
}

bool Blob::has_ngram() const {
    return !section(SectionKind::ngram).empty();
}

NgramView Blob::ngram() const {
    const uint8_t* start = section(SectionKind::ngram).data();  // the constructor checked it
    NgramView view;
    view.header = reinterpret_cast<const NgramHeader*>(start);
    view.trigram = reinterpret_cast<const NgramEntry*>(start + sizeof(NgramHeader));
    view.bigram = view.trigram + (uint64_t(1) << view.header->log2_slots);
    view.unigram = view.bigram + view.header->n_vocab;
    return view;
}

std::string Blob::metadata() const {
    const std::span<const uint8_t> text = section(SectionKind::metadata);
    return {text.begin(), text.end()};
}

// ---- verify ----

static bool all_zero(std::span<const uint8_t> bytes) {
    uint8_t any = 0;
    for (const uint8_t byte : bytes) any |= byte;
    return !any;
}

static bool all_finite(const TensorPlace& place, const uint8_t* data) {
    uint32_t broken = 0;
    if (place.form == Form::vector) {
        for (const uint32_t bits : std::span(reinterpret_cast<const uint32_t*>(data), place.rows))
            broken |= (bits & 0x7f800000) == 0x7f800000;
    } else {
        for (const uint16_t bits : std::span(reinterpret_cast<const uint16_t*>(data), place.size / 2))
            broken |= (bits & 0x7c00) == 0x7c00;
    }
    return !broken;
}

static bool tile_padding_is_zero(const TensorPlace& place, const uint8_t* data) {
    const uint16_t* tiles = reinterpret_cast<const uint16_t*>(data);
    const uint64_t padded_rows = (place.rows + 15) / 16 * 16, padded_columns = (place.columns + 15) / 16 * 16;
    uint16_t any = 0;
    for (uint64_t row = 0; row < padded_rows; row++)
        for (uint64_t column = row < place.rows ? place.columns : 0; column < padded_columns; column++)
            any |= tiles[tiled_index(row, column, place.columns)];
    return !any;
}

static void verify_model(std::span<const uint8_t> section, const std::string& name) {
    const ModelLayout layout(reinterpret_cast<const ModelHeader*>(section.data())->config);
    uint64_t end = sizeof(Config);
    for (const TensorPlace& place : layout.tensor) {
        const uint8_t* data = section.data() + place.offset;
        if (!all_zero(section.subspan(end, place.offset - end)) ||
            (place.form == Form::tiles && !tile_padding_is_zero(place, data)))
            refuse(name, "has padding that is not zero at " + place.name + "; convert it again");
        if (!all_finite(place, data))
            refuse(name, "holds NaN or infinity in " + place.name + "; convert it again from a sound checkpoint");
        end = place.offset + place.size;
    }
    if (!all_zero(section.subspan(end))) refuse(name, "has padding that is not zero at its end; convert it again");
}

// Whether the successors are ranked and packed to the front.
static bool ranked(const NgramEntry& entry) {
    for (int i = 1; i < kNgramSuccessors; i++)
        if (entry.token[i] != kNoToken &&
            (entry.token[i - 1] == kNoToken || entry.probability[i - 1] < entry.probability[i]))
            return false;
    return true;
}

void verify_ngram(const NgramView& view, const std::string& name) {
    const NgramHeader& header = *view.header;
    const uint64_t mask = (uint64_t(1) << header.log2_slots) - 1;
    const std::string lost = "has a context that a search can't find; build it again with weights_tool ngram";
    uint64_t n_contexts = 0;
    for (uint64_t slot = 0; slot <= mask; slot++) {
        const NgramEntry& entry = view.trigram[slot];
        if (entry.token[0] == kNoToken) continue;
        n_contexts++;
        const auto [older, newer] = entry.context;
        if (older >= header.n_vocab || newer >= header.n_vocab)
            refuse(name, "names a token outside the vocabulary; build it again with weights_tool ngram");
        const uint64_t home = ngram_hash(older, newer) & mask;
        for (uint64_t probe = home; probe != slot; probe = (probe + 1) & mask) {
            const NgramEntry& before = view.trigram[probe];
            const bool same = before.context[0] == older && before.context[1] == newer;
            if (before.token[0] == kNoToken || same) refuse(name, lost);
        }
        if (((slot - home) & mask) >= header.max_probes) refuse(name, lost);
    }
    if (n_contexts != header.n_contexts)
        refuse(name, "holds " + std::to_string(n_contexts) + " contexts, but its header says " +
                         std::to_string(header.n_contexts) + "; build it again with weights_tool ngram");
    for (const NgramEntry& entry : std::span(view.trigram, view.unigram + 1 - view.trigram))
        if (!ranked(entry)) refuse(name, "has unranked successors; build it again with weights_tool ngram");
}

void Blob::verify() const {
    uint64_t end = sizeof(BlobHeader);
    for (uint32_t i = 0; i < header().n_sections; i++) {
        const SectionEntry& entry = header().section[i];
        const SectionKind kind = SectionKind(entry.kind);
        const std::string part = name_ + ": the " + section_name(kind) + " section";
        const std::span<const uint8_t> section = bytes_.subspan(entry.offset, entry.size);
        if (!all_zero(bytes_.subspan(end, entry.offset - end)))
            refuse(part, "is preceded by padding that is not zero; copy or convert it again");
        if (!checksum_holds(entry, section.data()))
            refuse(part, "is damaged (its checksum does not hold); copy or convert it again");
        if (kind == SectionKind::target || kind == SectionKind::draft) verify_model(section, part);
        if (kind == SectionKind::ngram) verify_ngram(ngram(), part);
        if (kind == SectionKind::metadata && !nlohmann::json::accept(section.begin(), section.end()))
            refuse(part, "is not JSON; convert it again");
        end = entry.offset + entry.size;
    }
}

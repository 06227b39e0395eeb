// Whatever happened to a blob, opening it either throws one sentence with the right exit code or gives views that lie
// wholly inside the file.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "model/blob.h"
#include "tests/blob_bytes.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"

static BlobHeader& header_of(std::string& bytes) {
    return *reinterpret_cast<BlobHeader*>(bytes.data());
}

static SectionEntry& entry_of(std::string& bytes, SectionKind kind) {
    for (SectionEntry& entry : header_of(bytes).section)
        if (entry.kind == uint32_t(kind)) return entry;
    throw std::out_of_range("no such section");
}

template <class T>
static T& in_section(std::string& bytes, SectionKind kind) {
    return *reinterpret_cast<T*>(bytes.data() + entry_of(bytes, kind).offset);
}

static std::string opening(const std::string& bytes) {
    const GuardedCopy copy(bytes);
    return error_of([&] { Blob::view(copy.bytes(), "x.blob"); });
}

static std::string verifying(const std::string& bytes) {
    const GuardedCopy copy(bytes);
    return error_of([&] { Blob::view(copy.bytes(), "x.blob").verify(); });
}

static bool says(const std::string& message, const std::string& what) {
    INFO(message);
    const bool found = message.starts_with("[3] ") && message.find(what) != std::string::npos &&
                       message.find('\n') == std::string::npos;
    CHECK(found);
    return found;
}

TEST_CASE("a sound blob opens, verifies and gives back what was written") {
    const GuardedCopy copy(small_blob());
    const Blob blob = Blob::view(copy.bytes(), "x.blob");
    CHECK_NOTHROW(blob.verify());
    CHECK(blob.target().config == Config{2, 3, 24, 10, 70, 1e-5f, 69, 1});
    CHECK(blob.draft().config == Config{1, 1, 16, 10, 70, 1e-5f, 69, 1});
    CHECK(blob.ngram().header->n_vocab == 70);
    CHECK(blob.tokenizer().empty());
    CHECK(blob.metadata() == "{\"tool\":\"test\"}");
}

TEST_CASE("what is no regular file, or empty, is refused in words of its own") {
    TemporaryFolder folder;
    const auto opening_file = [&](const std::string& name) { return error_of([&] { Blob::open(folder / name); }); };
    says(opening_file("missing"), "missing does not exist");
    says(opening_file(""), "is a folder");
    write_file(folder / "empty", "");
    says(opening_file("empty"), "empty is empty");
    mkfifo((folder / "pipe").c_str(), 0600);
    says(opening_file("pipe"), "is a pipe or device");
    says(error_of([] { Blob::open("/dev/null"); }), "is a pipe or device");
    write_file(folder / "text", "This is no blob, but a text that is long enough to hold a magic number.");
    says(opening_file("text"), "is not a blob");
}

TEST_CASE("a blob cut off anywhere is refused") {
    const std::string whole = small_blob();
    std::vector<size_t> lengths = {1, 7, 8, 100, sizeof(BlobHeader) - 1, sizeof(BlobHeader), whole.size() - 1};
    std::string copy = whole;
    for (const SectionKind kind :
         {SectionKind::target, SectionKind::draft, SectionKind::ngram, SectionKind::metadata}) {
        const SectionEntry& entry = entry_of(copy, kind);
        for (const uint64_t at : {entry.offset, entry.offset + 1, entry.offset + entry.size / 2,
                                  entry.offset + entry.size - 1, entry.offset + entry.size})
            if (at < whole.size()) lengths.push_back(at);
    }
    for (const size_t length : lengths) {
        CAPTURE(length);
        const std::string message = opening(whole.substr(0, length));
        CHECK(message.starts_with("[3] x.blob "));
        if (length >= sizeof(BlobHeader)) says(message, "is cut off: " + std::to_string(length) + " bytes are there");
    }
    says(opening(whole + "x"), "surplus bytes");
}

TEST_CASE("each lie of the header or a section is refused by name") {
    const std::string sound = small_blob();
    const auto lie = [&](auto change, const std::string& what) {
        std::string bytes = sound;
        change(bytes);
        reseal(bytes);
        return says(opening(bytes), what);
    };
    constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
    constexpr SectionKind target = SectionKind::target, draft = SectionKind::draft, ngram = SectionKind::ngram;

    lie([](auto& b) { b[0] = 'X'; }, "is not a blob");
    lie([](auto& b) { header_of(b).version = 2; }, "version 2 of the format, newer than this program's 1");
    lie([](auto& b) { header_of(b).version = 0; }, "damaged header");
    lie([](auto& b) { header_of(b).file_size = kHuge; }, "is cut off");
    lie([](auto& b) { header_of(b).n_sections = 17; }, "17 sections");
    lie([](auto& b) { header_of(b).n_sections = 0; }, "target section is missing");
    lie([](auto& b) { header_of(b).n_sections--; }, "metadata section is missing");
    lie([](auto& b) { entry_of(b, draft).kind = 9; }, "unknown kind 9");
    lie([](auto& b) { entry_of(b, draft).kind = 0; }, "unknown kind 0");
    lie([](auto& b) { entry_of(b, draft).kind = 1; }, "more than one target");
    lie([](auto& b) { entry_of(b, draft).offset = entry_of(b, target).offset; }, "section 2 (");
    lie([](auto& b) { entry_of(b, draft).offset += 1; }, "misplaced");
    lie([](auto& b) { entry_of(b, draft).offset = kHuge - 4095; }, "misplaced");
    lie([](auto& b) { entry_of(b, target).offset = 0; }, "misplaced");
    lie([](auto& b) { entry_of(b, target).size = kHuge; }, "misplaced");
    lie([](auto& b) { entry_of(b, ngram).size = kHuge - entry_of(b, ngram).offset + 5; }, "misplaced");
    lie([](auto& b) { entry_of(b, target).size -= 1; }, "but its shape needs");
    lie([](auto& b) { entry_of(b, target).size = 10; }, "too few for a model");
    lie([](auto& b) { entry_of(b, ngram).size = 10; }, "too few for an n-gram table");

    lie([](auto& b) { in_section<Config>(b, target).n_layer = 3; }, "target section holds");
    lie([](auto& b) { in_section<Config>(b, target).n_layer = -1; }, "n_layer is -1");
    lie([](auto& b) { in_section<Config>(b, target).n_embd = 0x7fffffff; }, "n_embd is 2147483647");
    lie([](auto& b) { in_section<Config>(b, target).n_vocab = kMaxVocab; }, "but its shape needs");
    lie([](auto& b) { in_section<Config>(b, target).n_head = 5; }, "not a multiple of n_head");
    lie([](auto& b) { in_section<Config>(b, target).eos_token = 70; }, "eos_token_id is 70");
    lie([](auto& b) { in_section<Config>(b, target).layer_norm_epsilon = NAN; }, "layer_norm_epsilon");
    lie([](auto& b) { in_section<Config>(b, target).tied = 2; }, "tied");
    lie([](auto& b) { in_section<Config>(b, target).tied = 0; }, "but its shape needs");
    lie([](auto& b) { in_section<Config>(b, draft).n_vocab = 71; }, "draft section has a vocabulary of 71");

    lie([](auto& b) { in_section<NgramHeader>(b, ngram).n_vocab = 71; }, "vocabulary of 71");
    lie([](auto& b) { in_section<NgramHeader>(b, ngram).log2_slots = 64; }, "2^64 slots");
    lie([](auto& b) { in_section<NgramHeader>(b, ngram).log2_slots = 8; }, "but its tables need");
    lie([](auto& b) { in_section<NgramHeader>(b, ngram).max_probes = kMaxProbes + 1; }, "damaged limits");
    lie([](auto& b) { in_section<NgramHeader>(b, ngram).n_contexts = kHuge; }, "damaged limits");
    lie([](auto& b) { (&in_section<NgramEntry>(b, ngram))[100].token[2] = 70; }, "token outside the vocabulary");
}

TEST_CASE("a damaged byte in any section is found by its checksum") {
    const std::string sound = small_blob();
    for (const auto& [kind, name] :
         {std::pair(SectionKind::target, "target"), std::pair(SectionKind::draft, "draft"),
          std::pair(SectionKind::ngram, "n-gram"), std::pair(SectionKind::metadata, "metadata")}) {
        std::string bytes = sound;
        const SectionEntry& entry = entry_of(bytes, kind);
        bytes[entry.offset + entry.size / 2] ^= 1;
        says(opening(bytes), std::string(name) + " section is damaged");
    }
    std::string bytes = sound;
    bytes[sizeof(BlobHeader) - 1] = 1;
    says(opening(bytes), "damaged header");
}

TEST_CASE("verify finds what checksums can't: bad values, padding and lost n-gram contexts") {
    const std::string sound = small_blob();
    const auto lie = [&](auto change, const std::string& what) {
        std::string bytes = sound;
        change(bytes);
        reseal(bytes);
        CHECK(opening(bytes) == "");
        return says(verifying(bytes), what);
    };
    const auto target = [](std::string& b, uint64_t offset) {
        return reinterpret_cast<uint16_t*>(b.data() + entry_of(b, SectionKind::target).offset + offset);
    };
    const ModelLayout layout({2, 3, 24, 10, 70, 1e-5f, 69, 1});
    const LayerLayout& at = layout.layer[1];
    lie([&](auto& b) { target(b, at.c_fc_weight)[0] = 0x7c00; }, "infinity in h.1.mlp.c_fc.weight");
    lie([&](auto& b) { target(b, layout.wpe)[7] = 0xfe00; }, "infinity in wpe.weight");
    lie([&](auto& b) { target(b, at.ln_2_bias)[1] = 0x7fc0; }, "infinity in h.1.ln_2.bias");
    lie([&](auto& b) { target(b, layout.wte)[tiled_index(70, 0, 24)] = 1; }, "not zero at wte.weight");
    lie([&](auto& b) { target(b, at.c_proj_weight)[tiled_index(3, 24, 24)] = 1; },
        "not zero at h.1.attn.c_proj.weight");
    lie([&](auto& b) { target(b, sizeof(Config))[0] = 1; }, "not zero at wte.weight");
    lie([&](auto& b) { target(b, at.ln_1_weight)[24 * 2] = 1; }, "not zero at h.1.ln_1.bias");
    lie([&](auto& b) { b[entry_of(b, SectionKind::metadata).offset] = '['; }, "metadata section is not JSON");
    lie([&](auto& b) { b[entry_of(b, SectionKind::metadata).offset - 1] = 1; }, "preceded by padding");

    const auto entries = [](std::string& b) {
        return reinterpret_cast<NgramEntry*>(&in_section<NgramHeader>(b, SectionKind::ngram) + 1);
    };
    const auto occupied = [&](std::string& b) -> NgramEntry& {
        NgramEntry* entry = entries(b);
        while (entry->token[0] == kNoToken) entry++;
        return *entry;
    };
    lie([&](auto& b) { occupied(b).context[0] = 70; }, "token outside the vocabulary");
    lie([&](auto& b) { std::fill_n(occupied(b).token, 4, kNoToken); }, "contexts");
    lie([&](auto& b) { in_section<NgramHeader>(b, SectionKind::ngram).n_contexts++; }, "contexts");
    lie([&](auto& b) { in_section<NgramHeader>(b, SectionKind::ngram).max_probes = 1; }, "search can't find");
    lie(
        [&](auto& b) {  // ranks turned round
            NgramEntry& entry = occupied(b);
            entry = {{entry.context[0], entry.context[1]}, {1, 2, kNoToken, kNoToken}, {5, 6, 0, 0}};
        },
        "unranked");
}

// Reads everything that the views span.
static uint64_t touch_all(const Blob& blob) {
    uint64_t sum = 0;
    const auto touch = [&](const void* data, uint64_t bytes) {
        for (uint64_t i = 0; i < bytes; i++) sum += static_cast<const uint8_t*>(data)[i];
    };
    const auto touch_model = [&](const ModelView& m) {
        const uint64_t e = uint64_t(m.config.n_embd), pe = (e + 15) / 16 * 16, p3 = (3 * e + 15) / 16 * 16,
                       p4 = (4 * e + 15) / 16 * 16, pv = (uint64_t(m.config.n_vocab) + 15) / 16 * 16;
        touch(m.base, m.size);
        for (const ModelView::Layer& l : m.layer) {
            for (const float* p :
                 {l.ln_1_weight, l.ln_1_bias, l.ln_2_weight, l.ln_2_bias, l.c_proj_bias, l.mlp_proj_bias})
                touch(p, e * 4);
            touch(l.c_attn_bias, e * 12);
            touch(l.c_fc_bias, e * 16);
            touch(l.c_attn_weight, p3 * pe * 2);
            touch(l.c_proj_weight, pe * pe * 2);
            touch(l.c_fc_weight, p4 * pe * 2);
            touch(l.mlp_proj_weight, pe * p4 * 2);
        }
        touch(m.wte, pv * pe * 2);
        touch(m.lm_head, pv * pe * 2);
        touch(m.wpe, uint64_t(m.config.n_positions) * e * 2);
        touch(m.ln_f_weight, e * 4);
        touch(m.ln_f_bias, e * 4);
    };
    touch_model(blob.target());
    if (blob.has_draft()) touch_model(blob.draft());
    if (blob.has_ngram()) {
        const NgramView n = blob.ngram();
        touch(n.trigram, (uint64_t(1) << n.header->log2_slots) * sizeof(NgramEntry));
        touch(n.bigram, n.header->n_vocab * sizeof(NgramEntry));
        touch(n.unigram, sizeof(NgramEntry));
    }
    touch(blob.tokenizer().data(), blob.tokenizer().size());
    return sum + blob.metadata().size();
}

TEST_CASE("20,000 random damages never lead outside the file") {
    const std::string sound = small_blob();
    std::string headers = sound;  // for the offsets of what is worth hitting
    std::vector<uint64_t> starts = {0};
    for (const SectionKind kind : {SectionKind::target, SectionKind::draft, SectionKind::ngram})
        starts.push_back(entry_of(headers, kind).offset);
    std::mt19937_64 generator(7);
    const auto below = [&](uint64_t n) { return generator() % n; };
    int opened = 0, refused = 0;
    for (int round = 0; round < 20000; round++) {
        std::string bytes = sound;
        // Most hits go where sizes and offsets stand: the header and its table, and the start of each section.
        for (uint64_t hits = 1 + below(3); hits > 0; hits--) {
            const uint64_t near = starts[below(starts.size())] + below(280);
            char& byte = bytes[below(4) ? near : below(bytes.size())];
            byte = below(2) ? char(byte ^ (1 << below(8))) : char(below(256));
        }
        if (below(8) == 0) bytes.resize(below(bytes.size()));
        if (below(8)) {
            if (below(2) && bytes.size() >= sizeof(BlobHeader)) header_of(bytes).file_size = bytes.size();
            reseal(bytes);
        }
        const GuardedCopy copy(bytes);
        try {
            const Blob blob = Blob::view(copy.bytes(), "x.blob");
            opened++;
            touch_all(blob);
            blob.verify();
        } catch (const Error& e) {
            refused++;
            REQUIRE(e.code == kExitBadModel);
        }
    }
    CAPTURE(opened);
    CHECK(opened > 1000);
    CHECK(refused > 1000);
}

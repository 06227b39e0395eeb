#include "model/describe.h"

#include <cinttypes>
#include <nlohmann/json.hpp>

#include "model/format.h"
#include "model/tokenizer.h"

using json = nlohmann::ordered_json;

static uint64_t parameters(const Config& config) {
    uint64_t n = 0;
    for (const TensorPlace& place : ModelLayout(config).tensor) n += place.rows * place.columns;
    return n;
}

static json model_json(const ModelView& model) {
    const Config& c = model.config;
    json about = {{"parameters", parameters(c)},  {"n_layer", c.n_layer},
                  {"n_head", c.n_head},           {"n_embd", c.n_embd},
                  {"n_positions", c.n_positions}, {"n_vocab", c.n_vocab},
                  {"tied", c.tied != 0},          {"layer_norm_epsilon", c.layer_norm_epsilon}};
    about["eos_token"] = c.eos_token < 0 ? json() : json(c.eos_token);
    return about;
}

json blob_json(const Blob& blob) {
    json about = {{"file", blob.name()}, {"bytes", blob.header().file_size}, {"version", blob.header().version}};
    for (uint32_t i = 0; i < blob.header().n_sections; i++) {
        const SectionEntry& entry = blob.header().section[i];
        about["sections"].push_back(
            {{"kind", section_name(SectionKind(entry.kind))}, {"offset", entry.offset}, {"bytes", entry.size}});
    }
    about["target"] = model_json(blob.target());
    if (blob.has_draft()) about["draft"] = model_json(blob.draft());
    if (!blob.tokenizer().empty())
        about["tokenizer"] = {{"n_vocab", Tokenizer::from_section(blob.tokenizer()).n_vocab()}};
    if (blob.has_ngram()) {
        const NgramHeader& header = *blob.ngram().header;
        about["ngram"] = {{"contexts", header.n_contexts},
                          {"slots", uint64_t(1) << header.log2_slots},
                          {"max_probes", header.max_probes},
                          {"source_tokens", header.n_source_tokens}};
    }
    about["metadata"] = json::parse(blob.metadata(), nullptr, false);
    return about;
}

static std::string model_text(const char* name, const ModelView& model) {
    const Config& c = model.config;
    return format("%-10s %.1f M parameters: %d layers of %d, %d heads, %d positions, %d tokens, %s head, ", name,
                  double(parameters(c)) / 1e6, c.n_layer, c.n_embd, c.n_head, c.n_positions, c.n_vocab,
                  c.tied ? "tied" : "separate") +
           (c.eos_token < 0 ? "no end token\n" : format("end token %d\n", c.eos_token));
}

std::string blob_text(const Blob& blob) {
    std::string about = blob.name() + format(": blob version %u, %.1f MB\n", blob.header().version,
                                             double(blob.header().file_size) / 1e6);
    about += model_text("target", blob.target());
    if (blob.has_draft()) about += model_text("draft", blob.draft());
    if (blob.tokenizer().empty())
        about += "tokenizer  none: prompts and text are token ids (--ids)\n";
    else
        about += format("tokenizer  %d tokens\n", Tokenizer::from_section(blob.tokenizer()).n_vocab());
    if (blob.has_ngram()) {
        const NgramHeader& header = *blob.ngram().header;
        about += format("n-gram     %" PRIu64 " contexts in 2^%u slots, at most %u probes, from %" PRIu64 " tokens\n",
                        header.n_contexts, header.log2_slots, header.max_probes, header.n_source_tokens);
    }
    about += "metadata   " + blob.metadata() + "\n";
    for (uint32_t i = 0; i < blob.header().n_sections; i++) {
        const SectionEntry& entry = blob.header().section[i];
        about += format("section    %-9s %12" PRIu64 " bytes at %" PRIu64 "\n", section_name(SectionKind(entry.kind)),
                        entry.size, entry.offset);
    }
    return about;
}

std::string blob_checksum(const Blob& blob) {
    return format("%016" PRIx64, blob.header().header_xxh3);
}

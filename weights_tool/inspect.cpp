// weights_tool info and verify: what a blob holds, and whether it is sound.
#include <cinttypes>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "model/blob.h"
#include "model/tokenizer.h"
#include "weights_tool/commands.h"

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

static json blob_json(const Blob& blob) {
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

static void print_model(const char* name, const ModelView& model) {
    const Config& c = model.config;
    std::printf("%-10s %.1f M parameters: %d layers of %d, %d heads, %d positions, %d tokens, %s head, ", name,
                double(parameters(c)) / 1e6, c.n_layer, c.n_embd, c.n_head, c.n_positions, c.n_vocab,
                c.tied ? "tied" : "separate");
    std::printf(c.eos_token < 0 ? "no end token\n" : "end token %d\n", c.eos_token);
}

static void print_info(const Blob& blob) {
    std::printf("%s: blob version %u, %.1f MB\n", blob.name().c_str(), blob.header().version,
                double(blob.header().file_size) / 1e6);
    print_model("target", blob.target());
    if (blob.has_draft()) print_model("draft", blob.draft());
    if (blob.tokenizer().empty())
        std::printf("tokenizer  none: prompts and text are token ids (--ids)\n");
    else
        std::printf("tokenizer  %d tokens\n", Tokenizer::from_section(blob.tokenizer()).n_vocab());
    if (blob.has_ngram()) {
        const NgramHeader& header = *blob.ngram().header;
        std::printf("n-gram     %" PRIu64 " contexts in 2^%u slots, at most %u probes, from %" PRIu64 " tokens\n",
                    header.n_contexts, header.log2_slots, header.max_probes, header.n_source_tokens);
    }
    std::printf("metadata   %s\n", blob.metadata().c_str());
    for (uint32_t i = 0; i < blob.header().n_sections; i++) {
        const SectionEntry& entry = blob.header().section[i];
        std::printf("section    %-9s %12" PRIu64 " bytes at %" PRIu64 "\n", section_name(SectionKind(entry.kind)),
                    entry.size, entry.offset);
    }
}

void add_info(CLI::App& app) {
    CLI::App* command = app.add_subcommand("info", "Print what a blob holds");
    const auto path = std::make_shared<std::string>();
    const auto as_json = std::make_shared<bool>(false);
    command->add_option("BLOB", *path, "The file")->required();
    command->add_flag("--json", *as_json, "Print JSON");
    command->callback([path, as_json] {
        const Blob blob = Blob::open(*path);
        if (*as_json)
            std::printf("%s\n", blob_json(blob).dump(2).c_str());
        else
            print_info(blob);
    });
}

void add_verify(CLI::App& app) {
    CLI::App* command = app.add_subcommand("verify", "Check every byte of a blob");
    const auto path = std::make_shared<std::string>();
    command->add_option("BLOB", *path, "The file")->required();
    command->callback([path] {
        const Blob blob = Blob::open(*path);
        blob.verify();
        if (!blob.tokenizer().empty()) Tokenizer::from_section(blob.tokenizer());
        std::printf("%s: sound\n", path->c_str());
    });
}

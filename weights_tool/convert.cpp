#include "weights_tool/convert.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "model/blob.h"
#include "model/error.h"
#include "model/tokenizer.h"
#include "model/version.h"
#include "weights_tool/blob_writer.h"
#include "weights_tool/checkpoint.h"
#include "weights_tool/commands.h"
#include "weights_tool/pack.h"

using nlohmann::json;

// Last part of a path: blobs do not tell where on a disk they were made.
static std::string base_name(const std::string& path) {
    std::filesystem::path p = std::filesystem::absolute(path).lexically_normal();
    if (!p.has_filename()) p = p.parent_path();
    return p.filename().string();
}

// Now, or the time that SOURCE_DATE_EPOCH sets to make a blob again byte for byte.
static std::string utc_date() {
    const char* epoch = std::getenv("SOURCE_DATE_EPOCH");
    const std::time_t now = epoch ? std::time_t(std::atoll(epoch)) : std::time(nullptr);
    std::tm utc = {};
    gmtime_r(&now, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

// The tokenizer in a checkpoint's folder, none if it has none. Ids beyond it (rows that pad wte) are allowed.
static std::optional<Tokenizer> read_tokenizer(const Checkpoint& checkpoint) {
    if (!Tokenizer::folder_has_tokenizer(checkpoint.folder)) return {};
    Tokenizer tokenizer = Tokenizer::from_folder(checkpoint.folder);
    if (tokenizer.n_vocab() > checkpoint.config.n_vocab)
        throw Error(kExitBadModel, checkpoint.folder + " has a tokenizer of " + std::to_string(tokenizer.n_vocab()) +
                                       " tokens, but its config.json has a vocab_size of " +
                                       std::to_string(checkpoint.config.n_vocab) +
                                       "; give the tokenizer that the model was trained with");
    return tokenizer;
}

static json describe(const Checkpoint& checkpoint) {
    json about = {{"source", base_name(checkpoint.folder)}, {"dtypes", checkpoint.dtypes}};
    if (!checkpoint.licence.empty()) about["licence"] = checkpoint.licence;
    return about;
}

std::string convert(const ConvertOptions& options) {
    const Checkpoint target = open_checkpoint(options.target);
    const std::optional<Tokenizer> tokenizer = read_tokenizer(target);
    std::optional<Checkpoint> draft;
    if (!options.draft.empty()) {
        draft = open_checkpoint(options.draft);
        if (draft->config.n_vocab != target.config.n_vocab)
            throw Error(kExitBadModel, options.draft + " has a vocabulary of " + std::to_string(draft->config.n_vocab) +
                                           " tokens, but the target " + options.target + " has " +
                                           std::to_string(target.config.n_vocab) +
                                           "; give a draft that shares the target's vocabulary");
        const std::optional<Tokenizer> draft_tokenizer = read_tokenizer(*draft);
        if (tokenizer && draft_tokenizer && !(*tokenizer == *draft_tokenizer))
            throw Error(kExitBadModel, options.draft + " has another tokenizer than the target " + options.target +
                                           "; give a draft that shares the target's vocabulary");
    }
    const std::vector<uint8_t> tokenizer_section = tokenizer ? tokenizer->to_section() : std::vector<uint8_t>();

    json metadata = {{"tool", std::string("weights_tool ") + kVersion}, {"created", utc_date()}};
    metadata["target"] = describe(target);
    if (draft) metadata["draft"] = describe(*draft);

    MappedFile ngram;
    if (!options.ngram.empty()) {
        ngram = map_file(options.ngram, "give a table made by weights_tool ngram");
        const NgramView view = ngram_view(ngram.bytes, target.config.n_vocab, options.ngram);
        verify_ngram(view, options.ngram);
        metadata["ngram"] = {{"source", base_name(options.ngram)}, {"source_tokens", view.header->n_source_tokens}};
    }

    const uint64_t models = ModelLayout(target.config).size + (draft ? ModelLayout(draft->config).size : 0);
    BlobWriter writer(options.output, models + tokenizer_section.size() + ngram.bytes.size());
    Progress progress("packing", models);
    pack_model(target, SectionKind::target, writer, progress);
    if (draft) pack_model(*draft, SectionKind::draft, writer, progress);
    if (tokenizer) writer.section(SectionKind::tokenizer, tokenizer_section);
    if (!options.ngram.empty()) writer.section(SectionKind::ngram, ngram.bytes);
    const std::string text = metadata.dump(-1, ' ', true, json::error_handler_t::replace);
    writer.section(SectionKind::metadata, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    writer.commit();
    if (tokenizer) return "";
    return options.target +
           " has no tokenizer (vocab.json and merges.txt, or tokenizer.json): the blob takes and gives "
           "token ids only (--ids)";
}

void add_convert(CLI::App& app) {
    CLI::App* command = app.add_subcommand("convert", "Make a blob from GPT-2 checkpoints in Hugging Face's layout");
    const auto options = std::make_shared<ConvertOptions>();
    command->add_option("--target", options->target, "Folder of the model whose text is written")->required();
    command->add_option("--draft", options->draft, "Folder of a small GPT-2 with the same vocabulary");
    command->add_option("--ngram", options->ngram, "Table made by weights_tool ngram");
    command->add_option("-o,--output", options->output, "The blob to write")->required();
    command->callback([options] {
        const std::string notice = convert(*options);
        if (!notice.empty()) std::fprintf(stderr, "weights_tool: %s\n", notice.c_str());
    });
}

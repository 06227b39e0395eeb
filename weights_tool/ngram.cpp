// weights_tool ngram: text or token ids to the table of stage 2. Counting and ranking: ngram_builder.h.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/blob.h"
#include "model/error.h"
#include "model/output_file.h"
#include "weights_tool/commands.h"
#include "weights_tool/ngram_builder.h"
#include "weights_tool/tokenize.h"

namespace {

struct Options {
    std::vector<std::string> files;  // none: standard input
    std::string vocabulary, model, output;
    bool ids = false;
    int n_vocab = 0;
    NgramLimits limits;
    double max_mb = 136;  // 2.8 million contexts with the vocabulary of GPT-2
};

// A file's bytes; empty files are no error.
std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path))
        throw Error(kExitUsage, path + " can't be read; give files of text");
    return {std::istreambuf_iterator<char>(file), {}};
}

void add_lines_of_ids(NgramText& text, std::string_view lines, const std::string& source) {
    for (int number = 1; !lines.empty(); ++number) {
        const std::string_view line = lines.substr(0, lines.find('\n'));
        text.add(parse_ids(line, text.n_vocab, source + ": line " + std::to_string(number)));
        lines.remove_prefix(std::min(line.size() + 1, lines.size()));
    }
}

NgramText read(const Options& options) {
    std::optional<Tokenizer> tokenizer;
    NgramText text = {0, -1};
    if (!options.vocabulary.empty()) {
        tokenizer = Tokenizer::from_folder(options.vocabulary);
        text = {tokenizer->n_vocab(), tokenizer->eot()};
    } else if (!options.model.empty()) {
        const Blob blob = Blob::open(options.model);
        const Config config = blob.target().config;
        text = {config.n_vocab, config.eos_token};
        if (!blob.tokenizer().empty()) tokenizer = Tokenizer::from_section(blob.tokenizer());
    } else if (!options.n_vocab) {
        throw Error(kExitUsage, "the vocabulary is not known; give --vocab or --model, or --ids with --n-vocab");
    }
    if (options.n_vocab) {
        if (options.n_vocab < text.n_vocab)
            throw Error(kExitUsage, "--n-vocab " + std::to_string(options.n_vocab) + " is less than the vocabulary's " +
                                        std::to_string(text.n_vocab) + " tokens; give the model's vocab_size");
        text.n_vocab = options.n_vocab;
    }
    if (!options.ids && !tokenizer)
        throw Error(kExitUsage, "there is no tokenizer to read text with; give --vocab, or token ids with --ids");
    const auto add = [&](const std::string& bytes, const std::string& source) {
        if (options.ids)
            add_lines_of_ids(text, bytes, source);
        else
            text.add(tokenizer->encode(bytes));
    };
    for (const std::string& file : options.files) add(read_text(file), file);
    if (options.files.empty()) add(read_standard_input(), "standard input");
    return text;
}

double percent(uint64_t part, uint64_t whole) {
    return 100 * double(part) / double(whole);
}

void build(const Options& options) {
    NgramText text = read(options);
    NgramLimits limits = options.limits;
    const uint64_t within = contexts_within(uint64_t(options.max_mb * 1e6), text.n_vocab);
    if (!within)
        throw Error(kExitUsage, "--max-mb is too little: the bigrams of a vocabulary of " +
                                    std::to_string(text.n_vocab) + " tokens alone take " +
                                    std::to_string(uint64_t(text.n_vocab) * 32 / 1000) + " kB");
    limits.max_contexts = std::min(limits.max_contexts, within);
    const NgramText held_out = hold_out(text);
    const NgramTable table = build_ngram_table(text, limits);
    OutputFile output(options.output);
    output.write(table.section);
    output.commit();

    const NgramView view = ngram_view(table.section, text.n_vocab, options.output);
    const NgramHeader& header = *view.header;
    std::printf("%s: %.1f MB, %" PRIu64 " of %" PRIu64 " contexts in 2^%u slots, at most %u probes, from %" PRIu64
                " tokens\n",
                options.output.c_str(), double(table.section.size()) / 1e6, header.n_contexts, table.n_contexts_met,
                header.log2_slots, header.max_probes, header.n_source_tokens);
    const NgramCoverage coverage = measure_coverage(view, held_out);
    if (coverage.tokens)
        std::printf("on %" PRIu64
                    " tokens held out (every %dth document, or the end of fewer): context known %.1f %%, "
                    "next token first %.1f %%, among the four %.1f %%\n",
                    coverage.tokens, kHoldOut, percent(coverage.known, coverage.tokens),
                    percent(coverage.first, coverage.tokens), percent(coverage.among, coverage.tokens));
    else
        std::printf("too little text to hold some out and measure coverage\n");
}

}  // namespace

void add_ngram(CLI::App& app) {
    CLI::App* command = app.add_subcommand("ngram", "Build an n-gram table from text or token ids");
    const auto options = std::make_shared<Options>();
    command->add_option("FILE", options->files, "Text, a document a file (default: standard input)");
    command->add_option("-o,--output", options->output, "The table to write")->required();
    CLI::Option* vocabulary = command->add_option("--vocab", options->vocabulary, "Folder of the tokenizer");
    command->add_option("--model", options->model, "Blob with the vocabulary")->excludes(vocabulary);
    command->add_flag("--ids", options->ids, "The files hold token ids separated by white space, a document a line");
    command
        ->add_option("--n-vocab", options->n_vocab, "The model's vocab_size, where no tokenizer tells or it is larger")
        ->check(CLI::Range(1, kMaxVocab));
    command->add_option("--min-count", options->limits.min_count, "Leave out contexts met less often (1)")
        ->check(CLI::PositiveNumber);
    command->add_option("--max-contexts", options->limits.max_contexts, "Keep so many, those met most often")
        ->check(CLI::PositiveNumber);
    command->add_option("--max-mb", options->max_mb, "Keep as many as a table of so many MB holds (136)")
        ->check(CLI::Range(0.0, 1e6));
    command->callback([options] { build(*options); });
}

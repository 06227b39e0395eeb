// weights_tool tokenize: bytes on standard input to token ids on standard output, and back.
#include "weights_tool/tokenize.h"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>

#include "model/blob.h"
#include "model/error.h"
#include "weights_tool/commands.h"

Tokenizer open_tokenizer(const std::string& folder, const std::string& blob_path) {
    if (!folder.empty()) return Tokenizer::from_folder(folder);
    const Blob blob = Blob::open(blob_path);
    if (blob.tokenizer().empty())
        throw Error(kExitBadModel, blob_path + " has no tokenizer; name a folder with --vocab");
    return Tokenizer::from_section(blob.tokenizer());
}

std::vector<int32_t> parse_ids(std::string_view text, int n_vocab, const std::string& source) {
    std::vector<int32_t> ids;
    const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
    for (size_t i = 0; i < text.size();) {
        if (is_space(text[i])) {
            ++i;
            continue;
        }
        size_t end = i;
        while (end < text.size() && !is_space(text[end])) ++end;
        const std::string_view word = text.substr(i, end - i);
        const std::string which =
            source + ": id " + std::to_string(ids.size() + 1) + " (byte " + std::to_string(i) + ")";
        int32_t id = -1;
        const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
        const bool number =
            stop == word.data() + word.size() && (error == std::errc() || error == std::errc::result_out_of_range);
        if (!number) {
            std::string shown;
            for (const char c : word.substr(0, 20)) shown += c >= ' ' && c <= '~' ? c : '?';
            throw Error(kExitUsage,
                        which + " is \"" + shown + "\", not a number; give token ids separated by white space");
        }
        if (error != std::errc() || id < 0 || id >= n_vocab)
            throw Error(kExitUsage, which + " is " + std::string(word.substr(0, 20)) + ", but the vocabulary ends at " +
                                        std::to_string(n_vocab - 1));
        ids.push_back(id);
        i = end;
    }
    return ids;
}

std::string read_standard_input() {
    std::string text;
    char part[1 << 16];
    while (const size_t n = std::fread(part, 1, sizeof part, stdin)) text.append(part, n);
    if (std::ferror(stdin))
        throw Error(kExitFailed, "standard input can't be read: " + std::string(std::strerror(errno)));
    return text;
}

void add_tokenize(CLI::App& app) {
    CLI::App* command = app.add_subcommand("tokenize", "Turn text on standard input into token ids, or back");
    struct Options {
        std::string vocabulary, model;
        bool decode = false;
    };
    const auto options = std::make_shared<Options>();
    CLI::Option_group* source = command->add_option_group("tokenizer");
    source->add_option("--vocab", options->vocabulary, "Folder of vocab.json and merges.txt, or tokenizer.json");
    source->add_option("--model", options->model, "Blob whose tokenizer to use");
    source->require_option(1);
    command->add_flag("--decode", options->decode, "Read ids separated by white space and write their bytes");
    command->callback([options] {
        const Tokenizer tokenizer = open_tokenizer(options->vocabulary, options->model);
        const std::string input = read_standard_input();
        std::string output;
        if (options->decode) {
            output = tokenizer.decode(parse_ids(input, tokenizer.n_vocab(), "standard input"));
        } else {
            for (const int32_t id : tokenizer.encode(input)) output += (output.empty() ? "" : " ") + std::to_string(id);
            output += '\n';
        }
        if (std::fwrite(output.data(), 1, output.size(), stdout) != output.size() || std::fflush(stdout))
            throw Error(kExitFailed, "standard output can't be written: " + std::string(std::strerror(errno)));
    });
}

// staged-gpt2: continues a text with a GPT-2 by staged speculative decoding.
//
//     prompt -> token ids -> Decoder::generate -> accepted tokens -> bytes -> standard output
//
// In this order: options, prompt sources, standard output, the continuation's text, model and device, the commands
// generate, score, bench and roofline, info, main. Standard output carries the text (or the JSON asked for) and nothing
// else; errors, notes, statistics and the legend of --trace go to standard error. Exit codes: model/error.h; a closed
// pipe ends the program quietly with 0, an interrupt ends it by its signal (130 in a shell).
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <iostream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "decode/account.h"
#include "decode/bench.h"
#include "decode/ceilings.h"
#include "decode/decoder.h"
#include "decode/generate.h"
#include "decode/prompts.h"
#include "decode/reference_decoder.h"
#include "decode/tuning.h"
#include "kernels/ceilings.h"
#include "kernels/cuda_decoder.h"
#include "model/blob.h"
#include "model/describe.h"
#include "model/error.h"
#include "model/output_file.h"
#include "model/tokenizer.h"
#include "model/version.h"

using json = nlohmann::ordered_json;

extern "C" const uint8_t demo_blob_begin[], demo_blob_end[];  // model/demo/demo.S

namespace {

// ---- Options --------------------------------------------------------------------------------------------------------

// Tree settings that were not given stay below 0: the device's own take their place.
constexpr std::array kTreeFields = {&TreeSettings::nodes,        &TreeSettings::depth,
                                    &TreeSettings::children,     &TreeSettings::draft_width,
                                    &TreeSettings::draft_passes, &TreeSettings::ngram_nodes};

// What a generation may be told: by an option, or in a --jsonl line by a member of the same name.
struct Generation {
    Generation() {
        for (auto field : kTreeFields) tree.*field = -1;
    }
    // The device's settings take the place of those that were not given.
    void complete_tree(TreeSettings device) {
        for (auto field : kTreeFields)
            if (tree.*field >= 0) device.*field = tree.*field;
        tree = device;
    }

    int max_tokens = 256;
    std::optional<Mode> mode;  // none: the best that the model file allows
    Sampling sampling;
    TreeSettings tree;
    std::vector<std::string> stop;
    bool ignore_eos = false;
    bool echo = false;
};

struct Options {
    Generation generation;
    std::optional<std::string> model;  // none: the demo model
    std::string device = "auto";
    std::optional<std::string> text, file;  // where the prompt comes from; none: standard input
    bool ids = false, jsonl = false, trace = false, stats = false, as_json = false;
    bool draft_alone = false;
    std::optional<int> samples;  // so many texts from the end token, instead of one after a prompt
};

// A whole argument as a number within bounds; `range` says in words what is wanted.
template <class Number>
Number number(const std::string& name, const std::string& value, Number low, Number high, const std::string& range) {
    Number result{};
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    if (error != std::errc() || end != value.data() + value.size() || !(result >= low && result <= high))
        throw Error(kExitUsage, "--" + name + " must be " + range + ", not \"" + value + "\"");
    return result;
}

int integer(const std::string& name, const std::string& value, int low, int high) {
    return number(name, value, low, high, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
}

Mode mode_named(const std::string& value) {
    for (Mode mode : {Mode::baseline, Mode::speculative, Mode::staged})
        if (value == mode_name(mode)) return mode;
    throw Error(kExitUsage, "--mode must be baseline, speculative or staged, not \"" + value + "\"");
}

constexpr float kAboveZero = std::numeric_limits<float>::denorm_min();
constexpr int kMostTokens = 1'000'000'000;  // a context's length can be added to it

struct Setting {
    const char *name, *value, *group, *help;
    void (*set)(Generation&, const std::string& name, const std::string& value);
};
constexpr char kTree[] = "Speculation (never changes the text; the tree's defaults depend on the device)";
const Setting kSettings[] = {
    {"max-tokens", "N", "Text", "Write at most N tokens [256]; the end of the context stops earlier",
     [](auto& g, auto& name, auto& value) { g.max_tokens = integer(name, value, 1, kMostTokens); }},
    {"stop", "TEXT", "Text", "End before the first occurrence of TEXT; may be given several times",
     [](auto& g, auto& name, auto& value) {
         if (value.empty()) throw Error(kExitUsage, "--" + name + " is empty; leave it out to have no stop text");
         g.stop.push_back(value);
     }},
    {"temperature", "T", "Sampling", "0 takes the most probable token [0], 1 samples the model's own distribution",
     [](auto& g, auto& name, auto& value) {
         g.sampling.temperature = number(name, value, 0.0f, 1e30f, "a number from 0 (greedy) up");
     }},
    {"top-k", "K", "Sampling", "Sample among the K most probable tokens",
     [](auto& g, auto& name, auto& value) {
         g.sampling.top_k = number(name, value, 1, INT_MAX, "an integer from 1 up (leave it out for no limit)");
     }},
    {"top-p", "P", "Sampling", "Sample among the most probable tokens that together reach probability P",
     [](auto& g, auto& name, auto& value) {
         g.sampling.top_p = number(name, value, kAboveZero, 1.0f, "above 0 and at most 1 (1: no limit)");
     }},
    {"seed", "N", "Sampling", "The same seed gives the same text in every mode [0]",
     [](auto& g, auto& name, auto& value) {
         g.sampling.seed = number<uint64_t>(name, value, 0, UINT64_MAX, "an integer from 0 to 18446744073709551615");
     }},
    {"mode", "MODE", kTree, "baseline, speculative (draft) or staged (draft and n-grams) [the best the model allows]",
     [](auto& g, auto&, auto& value) { g.mode = mode_named(value); }},
    {"nodes", "N", kTree, "Nodes of a target pass, the root included",
     [](auto& g, auto& name, auto& value) { g.tree.nodes = integer(name, value, 1, kMaxNodes); }},
    {"depth", "N", kTree, "Levels below the root",
     [](auto& g, auto& name, auto& value) { g.tree.depth = integer(name, value, 1, kMaxDepth); }},
    {"children", "N", kTree, "Continuations of a node",
     [](auto& g, auto& name, auto& value) { g.tree.children = integer(name, value, 1, kMaxChildren); }},
    {"draft-width", "N", kTree, "Nodes of a draft pass",
     [](auto& g, auto& name, auto& value) { g.tree.draft_width = integer(name, value, 1, kMaxNodes); }},
    {"draft-passes", "N", kTree, "Draft passes in a round at most",
     [](auto& g, auto& name, auto& value) { g.tree.draft_passes = integer(name, value, 1, 16); }},
    {"ngram-nodes", "N", kTree, "N-gram guesses in a draft pass, staged mode",
     [](auto& g, auto& name, auto& value) { g.tree.ngram_nodes = integer(name, value, 0, kMaxNodes - 1); }},
};

[[noreturn]] void usage_error(const std::string& message) {
    throw Error(kExitUsage, message + "; see staged-gpt2 --help");
}

// Parses what follows the program's name or the command. --help is answered here.
void parse(CLI::App& app, int argc, char** argv) {
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& e) {  // --help or --version
        app.exit(e);
        std::exit(std::cout.flush() ? kExitDone : kExitFailed);
    } catch (const CLI::ParseError& e) {
        std::string message = e.what();
        std::replace(message.begin(), message.end(), '\n', ' ');
        usage_error(message);
    }
}

void add_model_options(CLI::App& app, Options& options) {
    app.add_option("--model", options.model, "The model file [the demo model linked in]")->type_name("FILE");
    app.add_option("--device", options.device, "auto (a GPU, else the CPU), cuda, cuda:N or cpu [auto]")
        ->type_name("NAME");
}

void add_text_options(CLI::App& app, Options& options, const std::string& name, const std::string& help) {
    app.add_option(name, options.text, help)->type_name(" ");
    app.add_option("--file", options.file, "Read it from a file")->type_name("FILE");
    app.add_flag("--ids", options.ids, "Token ids instead of text, in and out; white space or commas between them");
}

void add_setting(CLI::App& app, const Setting& setting, Generation& generation) {
    app.add_option_function<std::vector<std::string>>(
           std::string("--") + setting.name,
           [&](const std::vector<std::string>& values) {
               for (const std::string& value : values) setting.set(generation, setting.name, value);
           },
           setting.help)
        ->type_name(setting.value)
        ->group(setting.group)
        ->expected(1)
        ->allow_extra_args(false)
        ->multi_option_policy(std::string_view(setting.name) == "stop" ? CLI::MultiOptionPolicy::TakeAll
                                                                       : CLI::MultiOptionPolicy::TakeLast);
}

// ---- Prompt sources -------------------------------------------------------------------------------------------------

constexpr size_t kMostPromptBytes = size_t(64) << 20;

std::string read_all(int fd, const std::string& name) {
    std::string bytes;
    char part[65536];
    for (ssize_t n; (n = read(fd, part, sizeof part)) != 0;) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw Error(kExitUsage, "cannot read " + name + ": " + std::strerror(errno));
        bytes.append(part, size_t(n));
        if (bytes.size() > kMostPromptBytes)
            throw Error(kExitUsage, name + " holds more than 64 MiB, more than any context can take; shorten it");
    }
    return bytes;
}

// The argument, the file or standard input, byte for byte: a newline at the end belongs to it.
std::string read_text(const Options& options) {
    if (options.text && options.file)
        usage_error("the text is given both as an argument and with --file; give one of them");
    std::string text = options.text.value_or("");
    if (options.file) {
        const int fd = open(options.file->c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) throw Error(kExitUsage, "cannot open --file " + *options.file + ": " + std::strerror(errno));
        text = read_all(fd, "--file " + *options.file);
        close(fd);
    } else if (!options.text) {
        if (isatty(STDIN_FILENO)) usage_error("no text: give it as an argument, with --file or on standard input");
        text = read_all(STDIN_FILENO, "standard input");
    }
    if (text.empty()) throw Error(kExitUsage, "the prompt is empty; give at least one byte of text to continue");
    return text;
}

std::vector<int32_t> parse_ids(const std::string& text) {
    const char *const separators = " \t\r\n\v\f,", *const end = text.data() + text.size();
    std::vector<int32_t> ids;
    for (size_t at = 0; (at = text.find_first_not_of(separators, at)) != std::string::npos;) {
        const size_t word_end = std::min(text.find_first_of(separators, at), text.size());
        int32_t id;
        const auto [stop, error] = std::from_chars(text.data() + at, end, id);
        if (error != std::errc() || stop != text.data() + word_end)
            throw Error(kExitUsage, "--ids takes integers with white space or commas between them, not \"" +
                                        text.substr(at, std::min<size_t>(word_end - at, 40)) + "\"");
        ids.push_back(id);
        at = word_end;
    }
    return ids;
}

// ---- Standard output ------------------------------------------------------------------------------------------------

volatile sig_atomic_t interrupted = 0;

void end_by_interrupt(int = 0) {
    signal(SIGINT, SIG_DFL);
    raise(SIGINT);
}

// From here on an interrupt lets the round under way end, so that a GPU is left in order and statistics are printed. If
// that takes more than 60 ms the program ends on the spot; nothing is lost, for no output is buffered.
void catch_interrupts() {
    signal(SIGALRM, end_by_interrupt);
    signal(SIGINT, [](int) {
        interrupted = 1;
        const itimerval deadline = {{0, 0}, {0, 60000}};
        setitimer(ITIMER_REAL, &deadline, nullptr);
    });
}

// Unbuffered, so that what was accepted is seen at once. A closed pipe is the reader's wish to end, quietly.
class Output {
public:
    // False once the reader has gone or writing has failed.
    bool write(std::string_view bytes) {
        if (!bytes.empty()) last_ = bytes.back();
        while (!bytes.empty() && error_ == 0) {
            const ssize_t n = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
            if (n >= 0)
                bytes.remove_prefix(size_t(n));
            else if (errno == EAGAIN)  // a pipe that someone made non-blocking
                wait_for_room();
            else if (errno != EINTR)
                error_ = errno;
        }
        return error_ == 0;
    }

    // On a terminal, what follows starts on a line of its own.
    void end_line() {
        if (last_ != '\n' && isatty(STDOUT_FILENO)) write("\n");
    }

    void check() const {
        if (error_ != 0 && error_ != EPIPE)
            throw Error(kExitFailed, std::string("cannot write to standard output: ") + std::strerror(error_));
    }

private:
    static void wait_for_room() {
        pollfd output = {STDOUT_FILENO, POLLOUT, 0};
        poll(&output, 1, -1);
    }

    int error_ = 0;
    char last_ = '\n';
};

// ---- The continuation's text ----------------------------------------------------------------------------------------

// Bytes at the end that begin a UTF-8 character without completing it.
size_t incomplete_character(std::string_view text) {
    for (size_t n = 1; n <= std::min<size_t>(3, text.size()); ++n) {
        const uint8_t byte = uint8_t(text[text.size() - n]);
        if (byte >= 0xf8 || byte < 0x80) return 0;
        if (byte >= 0xc0) return n < (byte >= 0xf0 ? 4u : byte >= 0xe0 ? 3u : 2u) ? n : 0;
    }
    return 0;
}

// ANSI colours: the last digit of the code.
constexpr char kNoColour = '9';
char colour(Origin origin) {
    return origin == Origin::target ? '3' : origin == Origin::draft ? '6' : '5';
}

// Turns accepted tokens into what is written. An incomplete character is held back, so that none is ever cut; so is
// what may become a stop text. A stop text ends the continuation with the byte that completes it, wherever tokens and
// rounds begin or end, so that the result is the same in every mode.
class Continuation {
public:
    // tokenizer: null writes ids. stop must outlive this.
    Continuation(const Tokenizer* tokenizer, const std::vector<std::string>& stop, bool trace)
        : tokenizer_(tokenizer), stop_(stop), trace_(trace) {}

    // What can be written of the prompt before the first token comes.
    std::string echo(const std::string& prompt) {
        held_ = prompt;
        colour_.assign(held_.size(), kNoColour);
        n_echo_ = held_.size();
        return release(held_.size() - incomplete_character(held_));
    }

    // What can be written now.
    std::string take(std::span<const Emitted> accepted) {
        for (const Emitted& token : accepted) {
            if (stopped_) break;
            ids_.push_back(token.token);
            append(token);
        }
        if (stopped_) return release(held_.size());
        const std::string_view written = std::string_view(held_).substr(n_echo_);
        size_t candidate = 0;  // the longest end of the text that a stop text begins with
        for (const std::string& stop : stop_)
            for (size_t n = std::min(stop.size() - 1, written.size()); n > candidate; --n)
                if (written.ends_with(std::string_view(stop).substr(0, n))) candidate = n;
        const size_t end = held_.size() - candidate;
        return release(end - incomplete_character(std::string_view(held_).substr(0, end)));
    }

    // What was still held back.
    std::string finish() { return release(held_.size()); }

    bool stopped() const { return stopped_; }                 // by a stop text
    const std::vector<int32_t>& ids() const { return ids_; }  // to the one that completed it

private:
    void append(const Emitted& token) {
        const std::string id = tokenizer_ ? "" : (first_ ? "" : " ") + std::to_string(token.token);
        first_ = false;
        for (char byte : tokenizer_ ? tokenizer_->token_bytes(token.token) : std::string_view(id)) {
            held_ += byte;
            colour_ += colour(token.origin);
            const std::string_view written = std::string_view(held_).substr(n_echo_);
            size_t found = 0;
            for (const std::string& stop : stop_)
                if (written.ends_with(stop)) found = std::max(found, stop.size());
            if (found > 0) {
                held_.resize(held_.size() - found);
                stopped_ = true;
                return;
            }
        }
    }

    // The first n of the bytes held. Colours change between characters only and never outlast a write.
    std::string release(size_t n) {
        std::string bytes = held_.substr(0, n);
        if (trace_ && n > 0) {
            bytes.clear();
            char now = kNoColour;
            for (size_t i = 0; i < n; ++i) {
                if (colour_[i] != now && (uint8_t(held_[i]) & 0xc0) != 0x80)
                    bytes += std::string("\x1b[3") + (now = colour_[i]) + "m";
                bytes += held_[i];
            }
            if (now != kNoColour) bytes += "\x1b[0m";
        }
        held_.erase(0, n);
        colour_.erase(0, n);
        n_echo_ -= std::min(n, n_echo_);
        if (n > 0) first_ = false;
        return bytes;
    }

    const Tokenizer* tokenizer_;
    const std::vector<std::string>& stop_;
    bool trace_, stopped_ = false, first_ = true;
    std::string held_, colour_;  // bytes not yet written, and the colour of each
    size_t n_echo_ = 0;          // of them, the prompt's
    std::vector<int32_t> ids_;
};

// ---- Model and device -----------------------------------------------------------------------------------------------

Blob open_model(const Options& options) {
    const Blob blob =
        options.model ? Blob::open(*options.model) : Blob::view({demo_blob_begin, demo_blob_end}, "the demo model");
    if (!options.draft_alone) return blob;
    if (!blob.has_draft())
        throw Error(kExitUsage, "--draft-alone: " + blob.name() + " holds no draft; convert with --draft");
    return blob.draft_alone();
}

std::unique_ptr<Tokenizer> open_tokenizer(const Blob& blob) {
    if (blob.tokenizer().empty()) return nullptr;
    return std::make_unique<Tokenizer>(Tokenizer::from_section(blob.tokenizer()));
}

std::string to_text(const std::vector<int32_t>& ids) {
    std::string text;
    for (int32_t id : ids) text += (text.empty() ? "" : " ") + std::to_string(id);
    return text;
}

// Ids of a text; null tokenizer: there is none in the model file.
std::vector<int32_t> to_ids(const std::string& text, bool text_is_ids, const Tokenizer* tokenizer, const Blob& blob) {
    if (text_is_ids) return parse_ids(text);
    if (!tokenizer) throw Error(kExitUsage, blob.name() + " holds no tokenizer; give token ids with --ids");
    return tokenizer->encode(text);
}

Mode usable_mode(std::optional<Mode> wanted, const Blob& blob) {
    if (!wanted) return !blob.has_draft() ? Mode::baseline : blob.has_ngram() ? Mode::staged : Mode::speculative;
    if (*wanted != Mode::baseline && !blob.has_draft())
        throw Error(kExitUsage, std::string("--mode ") + mode_name(*wanted) + " needs a draft and " + blob.name() +
                                    " holds none; use --mode baseline, or convert with --draft");
    return *wanted;
}

void note(const std::string& text) {
    std::fprintf(stderr, "staged-gpt2: note: %s\n", text.c_str());
}

// The GPU that the options ask for, -1: the CPU.
int choose_device(const Options& options, const Blob& blob) {
    const std::string& device = options.device;
    if (device == "cpu") return -1;
    int index = 0;
    if (device.starts_with("cuda:"))
        index = number("device", device.substr(5), 0, 1023, "auto, cuda, cuda:N with the number of a GPU, or cpu");
    else if (device != "cuda" && device != "auto")
        throw Error(kExitUsage, "--device must be auto, cuda, cuda:N or cpu, not \"" + device + "\"");
    const std::string fault = cuda_unusable(index, blob);
    if (fault.empty()) return index;
    if (device != "auto") throw Error(kExitNoGpu, "--device " + device + ": " + fault);
    note("running on the CPU: " + fault);
    return -1;
}

std::unique_ptr<Decoder> make_decoder(int device, const Blob& blob) {
    return device < 0 ? make_reference_decoder(blob) : make_cuda_decoder(blob, device);
}

// The tree settings that bench --tune found for the model on this device, else the device's own.
TreeSettings device_tree(const Decoder& decoder, const Blob& blob) {
    try {
        if (const auto tuned = load_tuning(tuning_path(blob, decoder.device_name()))) return *tuned;
    } catch (const Error& error) {
        note(error.what());
    }
    return decoder.default_tree();
}

// The decoder that the options ask for, whose tree settings they take on where they give none.
std::unique_ptr<Decoder> make_decoder(Options& options, const Blob& blob) {
    auto decoder = make_decoder(choose_device(options, blob), blob);
    options.generation.complete_tree(device_tree(*decoder, blob));
    return decoder;
}

Account account_of(Mode mode, const Statistics& stats, const Blob& blob, const Decoder& decoder) {
    const Config draft = blob.has_draft() ? blob.draft().config : Config{};
    return account_of(blob.target().config, blob.has_draft() ? &draft : nullptr, mode, stats, decoder.facts());
}

// ---- generate -------------------------------------------------------------------------------------------------------

struct Result {
    Statistics stats;
    Account account;
    Mode mode;
    std::vector<int32_t> ids;
    const char* ended_by;
};

// Continues `prompt` (its ids in prompt_ids). tokenizer: null writes ids. write receives the text piece by piece as it
// is accepted and returns false to end.
Result continue_text(Decoder& decoder, const Blob& blob, const Tokenizer* tokenizer, const Generation& generation,
                     bool trace, const std::string& prompt, const std::vector<int32_t>& prompt_ids,
                     const std::function<bool(std::string_view)>& write) {
    if (!generation.stop.empty() && !tokenizer)
        throw Error(kExitUsage, "--stop needs text and the output is token ids; leave out one of them");
    const Mode mode = usable_mode(generation.mode, blob);
    const Request request = {.prompt = prompt_ids,
                             .max_tokens = generation.max_tokens,
                             .mode = mode,
                             .sampling = generation.sampling,
                             .tree = generation.tree,
                             .ignore_eos = generation.ignore_eos};
    Continuation continuation(tokenizer, generation.stop, trace);
    bool going = !generation.echo || write(continuation.echo(prompt));
    const Statistics stats = decoder.generate(request, [&](std::span<const Emitted> accepted) {
        going = going && write(continuation.take(accepted));
        return going && !continuation.stopped() && !interrupted;
    });
    if (going) write(continuation.finish());
    const char* const ended_by = continuation.stopped()                 ? "stop"
                                 : stats.stop == StopReason::eos        ? "eos"
                                 : stats.stop == StopReason::max_tokens ? "max_tokens"
                                 : stats.stop == StopReason::caller     ? "interrupt"
                                                                        : "context_full";
    return {stats, account_of(mode, stats, blob, decoder), mode, continuation.ids(), ended_by};
}

int percent(int part, int whole) {
    return whole ? int(100.0 * part / whole + 0.5) : 0;
}

void print_statistics(const Result& result) {
    const Statistics& s = result.stats;
    const auto each = [](double ms, int n) { return n ? ms / n : 0; };
    std::fprintf(stderr, "\n%s, %s: %.1f MB of weights, caches and scratch\n", mode_name(result.mode), s.device.c_str(),
                 double(s.device_bytes) / 1e6);
    std::fprintf(stderr, "prompt of %d tokens in %.1f ms; %d tokens in %.1f ms: %.1f tokens/s; ended by %s\n",
                 s.prompt_tokens, s.prefill_ms, s.emitted, s.total_ms - s.prefill_ms,
                 1000 * each(s.emitted, 1) / std::max(s.total_ms - s.prefill_ms, 1e-3), result.ended_by);
    std::fprintf(stderr, "stage     passes    nodes  proposed        accepted         ms  ms/pass\n");
    if (result.mode == Mode::staged)
        std::fprintf(stderr, "n-gram  %8s %8s  %8d  %8d (%2d %%)  %9.1f\n", "", "", s.ngram_guesses, s.ngram_confirmed,
                     percent(s.ngram_confirmed, s.ngram_guesses), s.ngram_ms);
    if (result.mode != Mode::baseline)
        std::fprintf(stderr, "draft   %8d %8d  %8d  %8d (%2d %%)  %9.1f %8.2f\n", s.draft_passes, s.draft_nodes,
                     s.proposed, s.accepted, percent(s.accepted, s.proposed), s.draft_ms,
                     each(s.draft_ms, s.draft_passes));
    std::fprintf(stderr, "target  %8d %8d  %8s  %8s %6s  %9.1f %8.2f\n", s.rounds, s.target_nodes, "", "", "",
                 s.target_ms, each(s.target_ms, s.rounds));
    std::fprintf(stderr, "%.2f tokens a target pass; by target %d (%d %%), draft %d (%d %%), n-gram %d (%d %%)\n",
                 each(s.emitted, s.rounds), s.by_origin[0], percent(s.by_origin[0], s.emitted), s.by_origin[1],
                 percent(s.by_origin[1], s.emitted), s.by_origin[2], percent(s.by_origin[2], s.emitted));
    const double bytes = result.account.decode().bytes.total();
    std::fprintf(stderr, "%.2f MB of memory traffic a token, %.1f GB/s by the engine's own account\n",
                 each(bytes, s.emitted) / 1e6, bytes / std::max(s.total_ms - s.prefill_ms, 1e-3) / 1e6);
    if (result.mode == Mode::baseline) return;
    std::fprintf(stderr, "accepted at depth");
    for (int depth = 1; depth <= kMaxDepth && s.proposed_by_depth[depth]; ++depth)
        std::fprintf(stderr, "  %d: %d/%d", depth, s.accepted_by_depth[depth], s.proposed_by_depth[depth]);
    std::fprintf(stderr, "\n");
}

// Overrides settings with the members of a --jsonl line; their names may be spelt with - or _.
void apply_line(const json& line, Generation& generation) {
    if (line.contains("stop")) generation.stop.clear();
    for (const auto& [key, value] : line.items()) {
        if (key == "prompt" || key == "ids" || key == "id") continue;
        std::string name = key;
        std::replace(name.begin(), name.end(), '_', '-');
        if (name == "ignore-eos" || name == "echo") {
            if (!value.is_boolean()) throw Error(kExitUsage, "\"" + key + "\" must be true or false");
            (name == "echo" ? generation.echo : generation.ignore_eos) = value;
            continue;
        }
        const Setting* setting = std::find_if(std::begin(kSettings), std::end(kSettings),
                                              [&](const Setting& candidate) { return name == candidate.name; });
        if (setting == std::end(kSettings))
            throw Error(kExitUsage, "\"" + key + "\" is no option of generate; see staged-gpt2 --help");
        for (const json& one : value.is_array() && name == "stop" ? value : json::array({value})) {
            if (name == "stop" && !one.is_string())
                throw Error(kExitUsage, "\"stop\" must be a string or an array of strings");
            setting->set(generation, name, one.is_string() ? one.get<std::string>() : one.dump());
        }
    }
}

// The result of one --jsonl line.
json answer(const json& line, const Options& options, Decoder& decoder, const Blob& blob, const Tokenizer* tokenizer) {
    if (!line.is_object() || line.contains("prompt") == line.contains("ids"))
        throw Error(kExitUsage, "a line must be a JSON object with either \"prompt\" or \"ids\"");
    Generation generation = options.generation;
    apply_line(line, generation);
    std::vector<int32_t> ids;
    std::string prompt;
    if (line.contains("prompt")) {
        if (!line["prompt"].is_string()) throw Error(kExitUsage, "\"prompt\" must be a string");
        prompt = line["prompt"];
        ids = to_ids(prompt, false, tokenizer, blob);
    } else {
        for (const json& id : line["ids"].is_array() ? line["ids"] : json::array({nullptr})) {
            if (!id.is_number_integer() || id < 0 || id > INT_MAX)
                throw Error(kExitUsage, "\"ids\" must be an array of token ids");
            ids.push_back(id);
        }
        if (tokenizer) prompt = tokenizer->decode(ids);
    }
    std::string text;
    const Result result = continue_text(decoder, blob, tokenizer, generation, false, prompt, ids,
                                        [&](std::string_view part) { return text += part, true; });
    const Statistics& s = result.stats;
    json about;
    if (line.contains("id")) about["id"] = line["id"];
    if (tokenizer) about["text"] = text;
    about["ids"] = result.ids;
    about["ended_by"] = result.ended_by;
    about["mode"] = mode_name(result.mode);
    about["prompt_tokens"] = s.prompt_tokens;
    about["tokens"] = result.ids.size();
    about["rounds"] = s.rounds;
    about["draft_passes"] = s.draft_passes;
    about["proposed"] = s.proposed;
    about["accepted"] = s.accepted;
    about["by_origin"] = {{"target", s.by_origin[0]}, {"draft", s.by_origin[1]}, {"ngram", s.by_origin[2]}};
    about["prefill_ms"] = s.prefill_ms;
    about["total_ms"] = s.total_ms;
    about["bytes"] = {{"prefill", uint64_t(result.account.prefill.bytes.total())},
                      {"decode", uint64_t(result.account.decode().bytes.total())}};
    return about;
}

// One result line for each line of the file or standard input that is not blank, in order. A line that cannot be served
// gives {"error": ...} and, in the end, exit code 1.
int generate_lines(std::istream& lines, const Options& options, Decoder& decoder, const Blob& blob,
                   const Tokenizer* tokenizer) {
    Output output;
    ExitCode exit_code = kExitDone;
    for (std::string text; !interrupted && std::getline(lines, text);) {
        if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
        json result;
        try {
            result = answer(json::parse(text), options, decoder, blob, tokenizer);
        } catch (const json::parse_error& e) {
            result = {{"error", "the line is not JSON: wrong at byte " + std::to_string(e.byte)}};
        } catch (const Error& e) {
            if (e.code != kExitUsage) throw;
            result = {{"error", e.what()}};
        }
        if (interrupted) break;
        if (result.contains("error")) exit_code = kExitFailed;
        if (!output.write(result.dump(-1, ' ', false, json::error_handler_t::replace) + "\n")) break;
    }
    output.check();
    return exit_code;
}

// Texts that the model writes from nothing, as lines of token ids for weights_tool ngram --ids: each begins after the
// end token, with a seed of its own, so that any of them can be written again. The end token itself is not written.
int generate_samples(const Options& options, Decoder& decoder, const Blob& blob) {
    const int32_t end_token = blob.target().config.eos_token;
    Generation generation = options.generation;
    Output output;
    int64_t n_tokens = 0;
    double ms = 0;
    for (int i = 0; i < *options.samples && !interrupted; ++i, ++generation.sampling.seed) {
        const Result result = continue_text(decoder, blob, nullptr, generation, false, "", {end_token},
                                            [](std::string_view) { return true; });
        if (interrupted || !output.write(to_text(result.ids) + "\n")) break;
        n_tokens += int64_t(result.ids.size());
        ms += result.stats.total_ms;
        if (options.stats && (i + 1 == *options.samples || (i + 1) % 100 == 0))
            std::fprintf(stderr, "%d texts, %lld tokens in %.1f s: %.1f tokens/s\n", i + 1, (long long)n_tokens,
                         ms / 1000, 1000 * double(n_tokens) / std::max(ms, 1e-3));
    }
    output.check();
    return kExitDone;
}

// named: the command was given by its name.
int generate(int argc, char** argv, bool named) {
    Options options;
    Generation& generation = options.generation;
    CLI::App app(
        "Continues a text with a GPT-2 by staged speculative decoding. The text goes to standard output as it "
        "is accepted.",
        "staged-gpt2 [generate]");
    app.footer(
        "Other commands: staged-gpt2 score, bench, roofline, info; each has its own --help.\n"
        "Exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 bad model file, 4 no usable GPU, 5 out of "
        "memory.");
    app.set_version_flag("--version", std::string("staged-gpt2 ") + kVersion + " (" + kCommit + ")");
    add_text_options(app, options, "PROMPT", "The text to continue [standard input]");
    add_model_options(app, options);
    for (const Setting& setting : kSettings) add_setting(app, setting, generation);
    app.add_flag("--ignore-eos", generation.ignore_eos, "Go on after the model's end of text")->group("Text");
    app.add_flag("--echo", generation.echo, "Write the prompt first")->group("Text");
    app.add_flag("--jsonl", options.jsonl, "A JSON object with \"prompt\" or \"ids\" a line in, a result a line out");
    app.add_flag("--draft-alone", options.draft_alone, "Let the draft write, without the target; for samples of it");
    app.add_option_function<std::string>(
           "--samples", [&](const std::string& value) { options.samples = integer("samples", value, 1, INT_MAX); },
           "Write N texts without a prompt, a line of token ids each, with the seeds --seed, --seed + 1, ...")
        ->type_name("N");
    app.add_flag("--trace", options.trace, "Colour each token by who guessed it");
    app.add_flag("--stats", options.stats, "Print what each stage did, on standard error");
    parse(app, argc, argv);

    if (options.jsonl) {
        if (options.text || options.ids || options.trace || options.stats || options.samples)
            usage_error("--jsonl takes its prompts from lines and answers with counters; leave out " +
                        std::string(options.text    ? "the prompt"
                                    : options.ids   ? "--ids"
                                    : options.trace ? "--trace"
                                    : options.stats ? "--stats"
                                                    : "--samples"));
        std::ifstream file;
        if (options.file) {
            file.open(*options.file);
            if (!file) throw Error(kExitUsage, "cannot open --file " + *options.file + ": " + std::strerror(errno));
        }
        const Blob blob = open_model(options);
        const auto tokenizer = open_tokenizer(blob);
        const auto decoder = make_decoder(options, blob);
        catch_interrupts();
        const int exit_code = generate_lines(options.file ? file : std::cin, options, *decoder, blob, tokenizer.get());
        if (interrupted) end_by_interrupt();
        return exit_code;
    }

    if (options.samples) {
        if (options.text || options.file || options.trace || generation.echo || !generation.stop.empty())
            usage_error("--samples takes no prompt and writes token ids; leave out " +
                        std::string(options.text      ? "the prompt"
                                    : options.file    ? "--file"
                                    : options.trace   ? "--trace"
                                    : generation.echo ? "--echo"
                                                      : "--stop"));
        if (generation.sampling.temperature == 0 && *options.samples > 1)
            usage_error("--samples at --temperature 0 would write one text over and over; give a --temperature");
        const Blob blob = open_model(options);
        usable_mode(generation.mode, blob);
        if (blob.target().config.eos_token < 0)
            throw Error(kExitUsage, "--samples: " + blob.name() +
                                        " has no end token to begin texts after; use --jsonl with prompts of your own");
        const auto decoder = make_decoder(options, blob);
        catch_interrupts();
        const int exit_code = generate_samples(options, *decoder, blob);
        if (interrupted) end_by_interrupt();
        return exit_code;
    }

    if (const std::array commands = {"generate", "score", "bench", "roofline", "info"};
        !named && options.text && std::find(commands.begin(), commands.end(), *options.text) != commands.end())
        usage_error("a command comes before all options; to continue the word, say staged-gpt2 generate " +
                    *options.text);
    std::string prompt = read_text(options);
    const Blob blob = open_model(options);
    const auto tokenizer = open_tokenizer(blob);
    const std::vector<int32_t> ids = to_ids(prompt, options.ids, tokenizer.get(), blob);
    if (options.ids) prompt = to_text(ids);  // as --echo writes it
    check_prompt(ids, blob.target().config);
    usable_mode(generation.mode, blob);
    if (options.ids && !generation.stop.empty())
        usage_error("--stop compares text and --ids writes ids; leave out one of them");
    if (const Sampling& s = generation.sampling; s.temperature == 0 && (s.top_k > 0 || s.top_p < 1 || s.seed > 0))
        note("--top-k, --top-p and --seed change nothing at --temperature 0");
    const auto decoder = make_decoder(options, blob);
    if (options.trace)
        std::fprintf(stderr, "guessed by: \x1b[33mtarget\x1b[0m \x1b[36mdraft\x1b[0m \x1b[35mn-gram\x1b[0m\n");
    Output output;
    catch_interrupts();
    const Result result =
        continue_text(*decoder, blob, options.ids ? nullptr : tokenizer.get(), generation, options.trace, prompt, ids,
                      [&](std::string_view part) { return output.write(part); });
    if (options.ids) output.write("\n");
    output.end_line();
    if (options.stats) print_statistics(result);
    if (interrupted) end_by_interrupt();
    output.check();
    return kExitDone;
}

// ---- score ----------------------------------------------------------------------------------------------------------

int score(int argc, char** argv) {
    Options options;
    CLI::App app(
        "Prints the natural logarithm of each token's probability after the tokens before it, and the text's "
        "perplexity.",
        "staged-gpt2 score");
    add_text_options(app, options, "TEXT", "The text [standard input]");
    add_model_options(app, options);
    app.add_flag("--json", options.as_json, "Print JSON");
    parse(app, argc, argv);

    const std::string text = read_text(options);
    const Blob blob = open_model(options);
    const auto tokenizer = open_tokenizer(blob);
    const std::vector<int32_t> ids = to_ids(text, options.ids, tokenizer.get(), blob);
    check_ids(ids, blob.target().config, 0);
    if (ids.size() < 2)
        throw Error(kExitUsage, "the text is one token; score needs two, for it scores all but the first");
    const std::vector<float> log_probability = make_decoder(choose_device(options, blob), blob)->score(ids);
    const double sum = std::accumulate(log_probability.begin(), log_probability.end(), 0.0);
    const double perplexity = std::exp(-sum / double(log_probability.size()));
    std::string about;
    if (options.as_json) {
        about = json({{"ids", ids}, {"log_probability", log_probability}, {"sum", sum}, {"perplexity", perplexity}})
                    .dump() +
                "\n";
    } else {
        for (size_t i = 1; i < ids.size(); ++i) {
            const json token = tokenizer ? json(tokenizer->token_bytes(ids[i])) : json();
            char line[64];
            std::snprintf(line, sizeof line, "%10.4f %8d  ", log_probability[i - 1], ids[i]);
            about += line + (tokenizer ? token.dump(-1, ' ', false, json::error_handler_t::replace) : "") + "\n";
        }
        char line[128];
        std::snprintf(line, sizeof line, "perplexity %.4f (log-probability %.4f over %zu tokens)\n", perplexity, sum,
                      log_probability.size());
        about += line;
    }
    Output output;
    output.write(about);
    output.check();
    return kExitDone;
}

// ---- bench and roofline ---------------------------------------------------------------------------------------------

struct MeasuringOptions : Options {
    std::optional<std::string> prompts, json;
    int limit = 0, repeats = 3;
    bool tune = false;
};

// sampling: its settings may be chosen, not the seed alone. limit: prompts by default, 0: all.
void add_measuring_options(CLI::App& app, MeasuringOptions& options, bool sampling, int limit) {
    Generation& generation = options.generation;
    generation.max_tokens = 250;
    options.limit = limit;
    add_model_options(app, options);
    const auto count = [&](const char* name, int& value, const std::string& help) {
        app.add_option_function<std::string>(
               std::string("--") + name,
               [&value, name](const std::string& text) { value = integer(name, text, 1, kMostTokens); }, help)
            ->type_name("N");
    };
    app.add_option("--prompts", options.prompts, "JSON lines with \"prompt\" or \"ids\", plain or gzip [a set of 40]")
        ->type_name("FILE");
    count("limit", options.limit, "Take the first N prompts [" + (limit ? std::to_string(limit) : "all") + "]");
    count("max-tokens", generation.max_tokens, "Continue each by at most N tokens [250]");
    count("repeats", options.repeats, "Measure each N times and take the median [3]");
    app.add_option("--json", options.json, "Write the report as JSON; - is standard output")->type_name("FILE");
    app.add_flag("--ignore-eos", generation.ignore_eos, "Go on after the model's end of text");
    if (!sampling)
        app.add_flag(
            "--tune", options.tune,
            "Find the fastest tree for this model on this device, with 6 prompts unless --limit says otherwise, "
            "and keep it for later runs");
    for (const Setting& setting : kSettings) {
        const std::string_view name = setting.name, group = setting.group;
        if (name == "seed" || (group == "Sampling" && sampling) || (group == kTree && name != "mode"))
            add_setting(app, setting, generation);
    }
}

// The prompts as token ids; those that leave no room in the context are left out with a note.
std::vector<BenchPrompt> bench_prompts(const MeasuringOptions& options, const Blob& blob) {
    const auto tokenizer = open_tokenizer(blob);
    const Config config = blob.target().config;
    std::vector<BenchPrompt> prompts;
    int too_long = 0;
    for (const Prompt& prompt :
         options.prompts ? read_prompts(*options.prompts, options.limit) : built_in_prompts(options.limit)) {
        if (prompt.ids.empty() && !tokenizer)
            throw Error(kExitUsage, blob.name() + " holds no tokenizer; give --prompts whose lines hold \"ids\"");
        const std::vector<int32_t> ids = prompt.ids.empty() ? tokenizer->encode(prompt.text) : prompt.ids;
        if (ids.size() < size_t(config.n_positions)) {
            check_prompt(ids, config);
            prompts.push_back({prompt.name, ids});
        } else {
            ++too_long;
        }
    }
    if (prompts.empty())
        throw Error(kExitUsage, "every prompt fills the context of " + std::to_string(config.n_positions) +
                                    " tokens; give shorter ones with --prompts");
    if (too_long > 0)
        note(std::to_string(too_long) + " prompts are left out: they fill the context of " +
             std::to_string(config.n_positions) + " tokens");
    return prompts;
}

std::string now() {
    const std::time_t time = std::time(nullptr);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&time));
    return text;
}

// What was measured, where and by what.
json report_head(const char* kind, int argc, char** argv, const MeasuringOptions& options, const BenchPlan& plan,
                 const Blob& blob) {
    json model = blob_json(blob);
    model["checksum"] = blob_checksum(blob);
    return {{"report", kind},
            {"version", kVersion},
            {"commit", kCommit},
            {"date", now()},
            {"command", std::vector<std::string>(argv, argv + argc)},
            {"model", model},
            {"prompt_set", options.prompts.value_or("built-in")},
            {"n_prompts", plan.prompts.size()}};
}

// Finds the fastest tree settings and keeps them for later runs.
int tune_tree(Decoder& decoder, const BenchPlan& plan, const Blob& blob,
              const std::function<void(const std::string&)>& progress) {
    const std::string path = tuning_path(blob, decoder.device_name());
    if (path.empty())
        throw Error(kExitFailed, "--tune has no place for its file: neither XDG_CACHE_HOME nor HOME names a folder");
    const Tuned tuned = tune(decoder, plan, progress);
    save_tuning(path, tuned);
    Output output;
    output.write(decoder.device_name() + "\n\n" + tuned.table + "\nkept in " + path + ": " +
                 std::to_string(tuned.tree.nodes) + " nodes, draft passes of " +
                 std::to_string(tuned.tree.draft_width) + "\n");
    output.check();
    return kExitDone;
}

// bench: the modes against each other. roofline: the modes below this machine's ceilings.
int measure_modes(int argc, char** argv, bool roofline) {
    MeasuringOptions options;
    CLI::App app(roofline ? "Measures what this machine can do at best (bandwidth of its memory, arithmetic) and where "
                            "each mode of decoding stands below that."
                          : "Measures the modes of decoding against each other on a set of prompts: greedy, and "
                            "sampled at temperature 1 among the 50 most probable tokens.",
                 roofline ? "staged-gpt2 roofline" : "staged-gpt2 bench");
    add_measuring_options(app, options, roofline, roofline ? 8 : 0);
    app.footer(std::string("A report is drawn by scripts/plot_") + (roofline ? "roofline" : "bench") +
               ".py REPORT.json -o OUT.png. Nothing is reported, and the exit code is 1,\n"
               "if the modes' outputs differ.");
    parse(app, argc, argv);
    if (options.tune && options.json)
        usage_error("--tune prints its table and keeps a file of its own; leave out --json");
    if (options.tune && options.limit == 0) options.limit = 6;

    const Blob blob = open_model(options);
    if (options.tune && !blob.has_draft())
        throw Error(kExitUsage, "--tune: " + blob.name() + " holds no draft, so there is no tree to tune");
    BenchPlan plan;
    plan.prompts = bench_prompts(options, blob);
    plan.max_tokens = options.generation.max_tokens;
    plan.ignore_eos = options.generation.ignore_eos;
    plan.repeats = options.repeats;
    const Sampling& sampling = options.generation.sampling;
    if (roofline)
        plan.settings = {{sampling.temperature == 0 ? "greedy" : "sampled", sampling}};
    else
        plan.settings = {{"greedy", {}}, {"top-k", {.temperature = 1, .top_k = 50, .seed = sampling.seed}}};
    plan.modes = {Mode::baseline};
    if (blob.has_draft()) plan.modes.insert(plan.modes.end(), {Mode::speculative, Mode::staged});
    std::optional<OutputFile> file;
    if (options.json && *options.json != "-") file.emplace(*options.json);
    const auto progress = [](const std::string& what) { std::fprintf(stderr, "staged-gpt2: %s\n", what.c_str()); };

    const int device = choose_device(options, blob);
    Ceilings ceilings = {};
    if (roofline) {
        progress("measuring the ceilings");
        ceilings = device < 0 ? cpu_ceilings() : cuda_ceilings(device);
    }
    const auto decoder = make_decoder(device, blob);
    options.generation.complete_tree(device_tree(*decoder, blob));
    plan.tree = options.generation.tree;
    if (options.tune) return tune_tree(*decoder, plan, blob, progress);
    const auto results = measure(*decoder, plan, progress);
    json report = report_head(roofline ? "roofline" : "bench", argc, argv, options, plan, blob);
    report["device"] = facts_json(device < 0 ? cpu_facts() : cuda_facts(device));
    report.update(roofline ? roofline_report(plan, results[0], blob, decoder->facts(), ceilings)
                           : bench_report(plan, results, blob, decoder->facts()));
    const std::string text =
        report["device"]["name"].get<std::string>() + "\n" + (roofline ? roofline_text(report) : bench_text(report));
    const std::string dump = report.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
    if (file) {
        file->write({reinterpret_cast<const uint8_t*>(dump.data()), dump.size()});
        file->commit();
    }
    const bool to_output = options.json == "-";  // the tables make way
    if (to_output) std::fputs(text.c_str(), stderr);
    Output output;
    output.write(to_output ? dump : text);
    output.check();
    return kExitDone;
}

// ---- info -----------------------------------------------------------------------------------------------------------

int info(int argc, char** argv) {
    Options options;
    CLI::App app("Prints what the model file holds and which GPUs can be used.", "staged-gpt2 info");
    app.add_option("--model", options.model, "The model file [the demo model linked in]")->type_name("FILE");
    app.add_flag("--json", options.as_json, "Print JSON");
    parse(app, argc, argv);

    const Blob blob = open_model(options);
    json gpus = json::array();
    std::string lines;
    int n_gpus = 0;
    const std::string fault = cuda_unusable(0);
    if (fault.empty()) cudaGetDeviceCount(&n_gpus);
    for (int i = 0; i < n_gpus; ++i) {
        cudaDeviceProp gpu;
        if (cudaGetDeviceProperties(&gpu, i) != cudaSuccess) continue;
        gpus.push_back({{"index", i}, {"name", gpu.name}, {"bytes", gpu.totalGlobalMem}, {"fault", cuda_unusable(i)}});
        lines += "GPU " + std::to_string(i) + "      " + gpu.name + " " + cuda_unusable(i) + "\n";
    }
    if (n_gpus == 0) lines = "GPU        none usable: " + fault + "\n";
    Output output;
    if (options.as_json)
        output.write(json({{"version", kVersion},
                           {"commit", kCommit},
                           {"model", blob_json(blob)},
                           {"gpus", gpus},
                           {"gpu_fault", fault}})
                         .dump(2) +
                     "\n");
    else
        output.write(std::string("staged-gpt2 ") + kVersion + " (" + kCommit + ")\n" + blob_text(blob) + lines);
    output.check();
    return kExitDone;
}

int fail(ExitCode code, std::string message) {
    for (char& c : message) c = uint8_t(c) < ' ' ? ' ' : c;  // one line, whatever was found in a file or an argument
    std::fprintf(stderr, "staged-gpt2: %s\n", message.c_str());
    return code;
}

}  // namespace

int main(int argc, char** argv) {
    signal(SIGPIPE, SIG_IGN);  // a closed pipe shows as an error of write
    const std::string_view command = argc > 1 ? argv[1] : "";
    try {
        if (command == "score") return score(argc - 1, argv + 1);
        if (command == "bench" || command == "roofline")
            return measure_modes(argc - 1, argv + 1, command == "roofline");
        if (command == "info") return info(argc - 1, argv + 1);
        if (command == "generate") return generate(argc - 1, argv + 1, true);
        return generate(argc, argv, false);
    } catch (const Error& e) {
        return fail(e.code, e.what());
    } catch (const std::bad_alloc&) {
        return fail(kExitOutOfMemory, "out of memory");
    } catch (const std::exception& e) {
        return fail(kExitFailed, e.what());
    }
}

// weights_tool: turns Hugging Face checkpoints into the blob that staged-gpt2 runs, and looks into it.
#include <cstdio>
#include <new>

#include "model/error.h"
#include "weights_tool/commands.h"

int main(int argc, char** argv) {
    CLI::App app("Converts GPT-2 checkpoints to the blob of staged-gpt2, builds n-gram tables, tokenizes, inspects.",
                 "weights_tool");
    app.require_subcommand(1);
    add_convert(app);
    add_ngram(app);
    add_tokenize(app);
    add_info(app);
    add_verify(app);
    try {
        app.parse(argc, argv);
        if (std::fflush(stdout) != 0 || std::ferror(stdout))
            throw Error(kExitFailed, "standard output can't be written; is its disk full?");
        return kExitDone;
    } catch (const CLI::ParseError& e) {
        if (e.get_exit_code() == 0) return app.exit(e);  // --help
        std::fprintf(stderr, "weights_tool: %s; see weights_tool --help\n", e.what());
        return kExitUsage;
    } catch (const Error& e) {
        std::fprintf(stderr, "weights_tool: %s\n", e.what());
        return e.code;
    } catch (const std::bad_alloc&) {
        std::fprintf(stderr, "weights_tool: out of memory\n");
        return kExitOutOfMemory;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "weights_tool: %s\n", e.what());
        return kExitFailed;
    }
}

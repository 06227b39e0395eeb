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
        return kExitDone;
    } catch (const CLI::ParseError& e) {
        return app.exit(e) ? kExitUsage : kExitDone;
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

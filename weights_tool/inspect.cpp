// weights_tool info and verify: what a blob holds, and whether it is sound.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "model/blob.h"
#include "model/describe.h"
#include "model/tokenizer.h"
#include "weights_tool/commands.h"

void add_info(CLI::App& app) {
    CLI::App* command = app.add_subcommand("info", "Print what a blob holds");
    const auto path = std::make_shared<std::string>();
    const auto as_json = std::make_shared<bool>(false);
    command->add_option("BLOB", *path, "The file")->required();
    command->add_flag("--json", *as_json, "Print JSON");
    command->callback([path, as_json] {
        const Blob blob = Blob::open(*path);
        const std::string about = *as_json ? blob_json(blob).dump(2) + "\n" : blob_text(blob);
        std::printf("%s", about.c_str());
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

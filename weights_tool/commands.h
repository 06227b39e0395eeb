// The subcommands of weights_tool. Each registers its options and a callback that throws Error.
#pragma once

#include <CLI/CLI.hpp>

void add_convert(CLI::App& app);
void add_ngram(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_info(CLI::App& app);
void add_verify(CLI::App& app);

// weights_tool tokenize, and what building n-gram tables shares with it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

// From a checkpoint's folder, or, if `folder` is "", from a blob.
Tokenizer open_tokenizer(const std::string& folder, const std::string& blob_path);

// Token ids separated by white space. Throws Error(kExitUsage), beginning with `source`, that says where a word is no
// number or an id outside the vocabulary.
std::vector<int32_t> parse_ids(std::string_view text, int n_vocab, const std::string& source);

// All of standard input.
std::string read_standard_input();

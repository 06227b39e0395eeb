// The vocabularies that tests use: the demo model's, and GPT-2's where it is at hand.
#pragma once

#include <string>

#include "model/tokenizer.h"

const Tokenizer& demo_tokenizer();

// The folder of third-party data with GPT-2's vocab.json and merges.txt; "" after telling the case that it is skipped.
std::string gpt2_folder();

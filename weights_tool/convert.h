// weights_tool convert: a target, a draft, their tokenizer and an n-gram table become one blob.
#pragma once

#include <string>

struct ConvertOptions {
    std::string target;  // folder of a checkpoint
    std::string draft;   // the same, "": none
    std::string ngram;   // file made by weights_tool ngram, "": none
    std::string output;  // the blob
};

// Returns what the user should know about the blob, "" if that is nothing. Throws Error where an input is bad or the
// blob can't be written; the output then is as it was before.
std::string convert(const ConvertOptions& options);

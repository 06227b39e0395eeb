// Sets of prompts: a JSON object a line with "prompt" (text) or "ids" (token ids) and, if wanted, "task_id" or "id" as
// its name, as HumanEval's files have them; other members are passed over, blank lines too.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

struct Prompt {
    std::string name;          // "line N" where the line gives none
    std::string text;          // empty where ids are given
    std::vector<int32_t> ids;  // empty where text is given
};

// The first `limit` prompts of lines (all: 0). Throws Error(kExitUsage) that names `name` and the line.
std::vector<Prompt> parse_prompts(std::string_view lines, const std::string& name, int limit);

// The same of a file, plain or gzip. Throws Error(kExitUsage) too if it can't be read.
std::vector<Prompt> read_prompts(const std::string& path, int limit);

// The set of 40 that is linked in, written for this project: 20 of code and 20 of prose, by turns so that
// any first few hold both (decode/prompts/prompts.jsonl).
std::vector<Prompt> built_in_prompts(int limit);

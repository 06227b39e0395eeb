#include "decode/prompts.h"

#include <zlib.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "model/error.h"

using json = nlohmann::json;

extern "C" const char prompts_begin[], prompts_end[];  // decode/prompts/prompts.S

static constexpr size_t kMostBytes = size_t(1) << 30;

static Prompt parse_prompt(std::string_view line, int number) {
    const json value = json::parse(line, nullptr, false);
    if (value.is_discarded()) throw Error(kExitUsage, "is not JSON");
    if (!value.is_object() || value.contains("prompt") == value.contains("ids"))
        throw Error(kExitUsage, "must be a JSON object with either \"prompt\" or \"ids\"");
    Prompt prompt = {"line " + std::to_string(number), "", {}};
    for (const char* key : {"id", "task_id"})
        if (value.contains(key))
            prompt.name = value[key].is_string() ? value[key].get<std::string>() : value[key].dump();
    if (value.contains("prompt")) {
        if (!value["prompt"].is_string() || value["prompt"] == "")
            throw Error(kExitUsage, "has a \"prompt\" that is not a string of at least one byte");
        prompt.text = value["prompt"];
        return prompt;
    }
    if (!value["ids"].is_array() || value["ids"].empty())
        throw Error(kExitUsage, "has \"ids\" that are not an array of at least one token id");
    for (const json& id : value["ids"]) {
        if (!id.is_number_integer() || id < 0 || id > INT_MAX)
            throw Error(kExitUsage, "has \"ids\" that are not all token ids, found " + id.dump());
        prompt.ids.push_back(id);
    }
    return prompt;
}

std::vector<Prompt> parse_prompts(std::string_view lines, const std::string& name, int limit) {
    std::vector<Prompt> prompts;
    for (int number = 1; !lines.empty() && (limit == 0 || int(prompts.size()) < limit); ++number) {
        const size_t end = std::min(lines.find('\n'), lines.size());
        const std::string_view line = lines.substr(0, end);
        lines.remove_prefix(std::min(end + 1, lines.size()));
        if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
        try {
            prompts.push_back(parse_prompt(line, number));
        } catch (const Error& e) {
            throw Error(e.code,
                        name + ", line " + std::to_string(number) + " " + e.what() + "; mend the line or take it out");
        }
    }
    if (prompts.empty()) throw Error(kExitUsage, name + " holds no prompts; give a JSON object with \"prompt\" a line");
    return prompts;
}

std::vector<Prompt> read_prompts(const std::string& path, int limit) {
    const auto refuse = [&](const std::string& what) {
        return Error(kExitUsage, "--prompts " + path + " can't be read: " + what);
    };
    errno = 0;
    const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
    if (!file) throw refuse(errno ? std::strerror(errno) : "out of memory");
    std::string lines;
    char part[65536];
    int n;
    while ((n = gzread(file.get(), part, sizeof part)) > 0) {
        lines.append(part, size_t(n));
        if (lines.size() > kMostBytes) throw refuse("it holds more than 1 GiB; give fewer prompts");
    }
    int fault = Z_OK;
    const char* const message = gzerror(file.get(), &fault);
    if (fault == Z_ERRNO) throw refuse(std::strerror(errno));
    if (n < 0 || fault != Z_OK) throw refuse(std::string("its gzip data are damaged (") + message + ")");
    return parse_prompts(lines, "--prompts " + path, limit);
}

std::vector<Prompt> built_in_prompts(int limit) {
    return parse_prompts({prompts_begin, prompts_end}, "the built-in set of prompts", limit);
}

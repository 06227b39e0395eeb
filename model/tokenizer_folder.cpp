// Tokenizer::from_folder: vocab.json and merges.txt as GPT-2 was published with, or the tokenizer.json that Hugging
// Face's library writes. Both spell a token's bytes as characters: 188 bytes by themselves, the others by U+0100
// upwards.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>

#include "model/config.h"
#include "model/error.h"
#include "model/mapped_file.h"
#include "model/tokenizer.h"

using nlohmann::json;

namespace {

[[noreturn]] void refuse(const std::string& file, const std::string& found) {
    throw Error(kExitBadModel, file + " " + found);
}

// A file's own words, for messages.
std::string quoted(const std::string& text) {
    return json(text.size() > 80 ? text.substr(0, 80) + "..." : text)
        .dump(-1, ' ', true, json::error_handler_t::replace);
}

json parse(const std::string& path) {
    const MappedFile file = map_file(path, "copy it from the checkpoint again");
    json parsed = json::parse(file.text(), nullptr, false);
    if (!parsed.is_object()) refuse(path, "is not a JSON object; copy it from the checkpoint again");
    return parsed;
}

const json& at(const json& object, const char* key) {
    static const json null;
    return object.is_object() && object.contains(key) ? object[key] : null;
}

// The byte that each character from U+0000 to U+0143 spells; -1: none.
std::array<int, 0x144> byte_alphabet() {
    std::array<int, 0x144> byte;
    byte.fill(-1);
    int next = 0x100;
    for (int b = 0; b < 256; ++b) {
        const bool itself = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        byte[itself ? b : next++] = b;
    }
    return byte;
}

// The bytes that `spelling`, UTF-8, stands for; false if a character of it is outside the alphabet.
bool spelled_bytes(std::string_view spelling, std::string& bytes) {
    static const std::array<int, 0x144> alphabet = byte_alphabet();
    bytes.clear();
    for (size_t i = 0; i < spelling.size(); ++i) {
        unsigned character = uint8_t(spelling[i]);
        if (character >= 0x80) {  // only two-byte characters lie inside the alphabet
            if ((character & 0xe0) != 0xc0 || i + 1 == spelling.size()) return false;
            character = (character & 0x1f) << 6 | (uint8_t(spelling[++i]) & 0x3f);
        }
        if (character >= alphabet.size() || alphabet[character] < 0) return false;
        bytes += char(alphabet[character]);
    }
    return !bytes.empty();
}

}  // namespace

struct Tokenizer::Folder {
    std::vector<std::string> tokens;               // bytes by id; "": none yet
    std::unordered_map<std::string, int32_t> ids;  // of the vocabulary's tokens by their bytes
    std::vector<Merge> merges;
    std::unordered_map<uint64_t, size_t> ranks;  // by pair

    void add(const std::string& file, const std::string& bytes, const std::string& spelling, const json& id_value) {
        if (!id_value.is_number_unsigned() || id_value.get<uint64_t>() >= kMaxVocab)
            refuse(file, "gives token " + quoted(spelling) + " the id " + id_value.dump() + "; ids are 0 to " +
                             std::to_string(kMaxVocab - 1));
        const size_t id = id_value.get<size_t>();
        if (id >= tokens.size()) tokens.resize(id + 1);
        if (tokens[id] == bytes) return;  // an added token that the vocabulary holds too
        if (!tokens[id].empty()) refuse(file, "gives the id " + std::to_string(id) + " to more than one token");
        tokens[id] = bytes;
    }

    void add_vocabulary(const std::string& file, const json& vocabulary) {
        if (!vocabulary.is_object() || vocabulary.empty())
            refuse(file, "holds no vocabulary (an object of tokens and their ids)");
        std::string bytes;
        for (const auto& [spelling, id] : vocabulary.items()) {
            if (!spelled_bytes(spelling, bytes))
                refuse(file, "holds token " + quoted(spelling) +
                                 ", which is not spelled in GPT-2's byte alphabet; only byte-level BPE is supported");
            add(file, bytes, spelling, id);
            ids.emplace(bytes, id.get<int32_t>());
        }
    }

    void add_special(const std::string& file, const json& spelling, const json& id) {
        if (!spelling.is_string() || spelling.get_ref<const std::string&>().empty())
            refuse(file, "holds an added token without text");
        add(file, spelling, spelling, id);
    }

    // `where`: "merges.txt: line 7" or the like.
    void add_merge(const std::string& where, const std::string& left, const std::string& right) {
        const auto id = [&](const std::string& bytes) {
            const auto found = ids.find(bytes);
            return found == ids.end() ? -1 : found->second;
        };
        std::string first, second;
        if (!spelled_bytes(left, first) || !spelled_bytes(right, second) || id(first) < 0 || id(second) < 0 ||
            id(first + second) < 0)
            refuse(where,
                   "merges " + quoted(left) + " and " + quoted(right) +
                       ", but these and their union are not all in the vocabulary; take both from one checkpoint");
        const uint64_t pair = uint64_t(id(first)) << 32 | uint64_t(id(second));
        if (!ranks.emplace(pair, merges.size()).second)
            refuse(where, "repeats the merge of " + quoted(left) + " and " + quoted(right));
        merges.push_back({id(first), id(second), id(first + second)});
    }

    void read_merges(const std::string& file) {
        const MappedFile mapped = map_file(file, "copy it from the checkpoint again");
        std::string_view text = mapped.text();
        for (int line_number = 1; !text.empty(); ++line_number) {
            std::string_view line = text.substr(0, text.find('\n'));
            text.remove_prefix(std::min(line.size() + 1, text.size()));
            if (line.ends_with('\r')) line.remove_suffix(1);
            if (line.empty() || line.starts_with("#version")) continue;
            const std::string where = file + ": line " + std::to_string(line_number);
            const size_t space = line.find(' ');
            if (space == line.npos || line.find(' ', space + 1) != line.npos)
                refuse(where, "is " + quoted(std::string(line)) + ", not two tokens with a space between them");
            add_merge(where, std::string(line.substr(0, space)), std::string(line.substr(space + 1)));
        }
    }

    // Refuses whatever would make Hugging Face's tokens differ from ours.
    void read_tokenizer_json(const std::string& file) {
        const json root = parse(file);
        const json &model = at(root, "model"), &cut = at(root, "pre_tokenizer"), &post = at(root, "post_processor");
        const auto demand = [&](bool holds, const std::string& what) {
            if (!holds) refuse(file, what + "; only GPT-2's byte-level BPE is supported");
        };
        const auto unset = [](const json& value) { return value.is_null() || value == false || value == ""; };
        demand(at(model, "type") == "BPE", "has a model of type " + at(model, "type").dump());
        demand(at(cut, "type") == "ByteLevel", "has a pre-tokenizer of type " + at(cut, "type").dump());
        demand(unset(at(cut, "add_prefix_space")), "adds a space before the text");
        demand(at(cut, "use_regex").is_null() || at(cut, "use_regex") == true, "does not cut text by GPT-2's pattern");
        demand(unset(at(root, "normalizer")), "has a normalizer");
        demand(post.is_null() || at(post, "type") == "ByteLevel",
               "has a post-processor of type " + at(post, "type").dump());
        for (const char* option :
             {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"})
            demand(unset(at(model, option)), "sets \"" + std::string(option) + "\"");

        add_vocabulary(file, at(model, "vocab"));
        if (!at(model, "merges").is_array()) refuse(file, "has no list of merges");
        for (const json& merge : at(model, "merges")) {  // ["a", "b"], in older files "a b"
            const std::string where = file + ": merge " + std::to_string(merges.size());
            std::string left, right;
            if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
                left = merge[0], right = merge[1];
            } else if (merge.is_string()) {
                const std::string& both = merge.get_ref<const std::string&>();
                left = both.substr(0, both.find(' '));
                right = both.substr(std::min(left.size() + 1, both.size()));
            } else {
                refuse(where, "is not a pair of tokens");
            }
            add_merge(where, left, right);
        }
        if (at(root, "added_tokens").is_array())
            for (const json& token : at(root, "added_tokens")) add_special(file, at(token, "content"), at(token, "id"));
    }
};

bool Tokenizer::folder_has_tokenizer(const std::string& folder) {
    for (const char* name : {"vocab.json", "merges.txt", "tokenizer.json"})
        if (std::filesystem::exists(std::filesystem::path(folder) / name)) return true;
    return false;
}

Tokenizer Tokenizer::from_folder(const std::string& folder) {
    const auto path = [&](const char* name) { return (std::filesystem::path(folder) / name).string(); };
    const auto exists = [&](const char* name) { return std::filesystem::exists(path(name)); };
    Folder read;
    if (exists("vocab.json") && exists("merges.txt")) {
        read.add_vocabulary(path("vocab.json"), parse(path("vocab.json")));
        read.read_merges(path("merges.txt"));
        if (exists("added_tokens.json")) {
            const json added = parse(path("added_tokens.json"));
            for (const auto& [spelling, id] : added.items()) read.add_special(path("added_tokens.json"), spelling, id);
        }
    } else if (exists("tokenizer.json")) {
        read.read_tokenizer_json(path("tokenizer.json"));
    } else if (!std::filesystem::is_directory(folder)) {
        refuse(folder, "is not a folder; give one that holds vocab.json and merges.txt, or tokenizer.json");
    } else {
        const char* missing = exists("vocab.json") ? "merges.txt" : exists("merges.txt") ? "vocab.json" : "tokenizer";
        refuse(folder,
               std::string("has no ") + missing + "; a tokenizer is vocab.json and merges.txt, or tokenizer.json");
    }

    Tokenizer tokenizer;
    for (size_t id = 0; id < read.tokens.size(); ++id) {
        if (read.tokens[id].empty())
            refuse(folder, "has a vocabulary with a gap: it reaches id " + std::to_string(read.tokens.size() - 1) +
                               ", but no token has the id " + std::to_string(id));
        if (read.tokens[id] == "<|endoftext|>") tokenizer.eot_ = int32_t(id);
        tokenizer.bytes_ += read.tokens[id];
        tokenizer.token_end_.push_back(uint32_t(tokenizer.bytes_.size()));
    }
    tokenizer.merges_ = std::move(read.merges);
    tokenizer.build_tables();
    return tokenizer;
}

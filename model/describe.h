// What a blob holds, in words and as JSON: for the info commands of both programs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "model/blob.h"

nlohmann::ordered_json blob_json(const Blob& blob);
std::string blob_text(const Blob& blob);      // lines
std::string blob_checksum(const Blob& blob);  // of the table of sections, which holds theirs; 16 hexadecimal digits

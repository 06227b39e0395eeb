// printf to a string: for tables, whose columns it does well.
#pragma once

#include <string>

// The text, of which 511 bytes at most are kept.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

// For cases that find no GPU or no third-party data: says why in words and counts the case as skipped, not as passed.
#pragma once

#include <string>

// Call at the case's start and return from it afterwards.
void skip(const std::string& reason);

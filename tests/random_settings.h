// Settings of the tree for tests: every one at its ends, and anything between.
#pragma once

#include <random>

struct TreeSettings;

TreeSettings random_settings(std::mt19937& generator);

// A wait for what never comes, on the device.
#pragma once

#include <cstdint>

// What became of a kernel that waits for a word that nobody writes: whether the driver says that it ended itself, and
// the wait it told of. No further kernel runs in this process.
struct Hang {
    bool ended;
    uint32_t told;
};
Hang wait_for_word();

// Errors a user can cause: one sentence that names the file or option, what was found and what to do.
#pragma once

#include <stdexcept>
#include <string>

enum ExitCode {
    kExitDone = 0,
    kExitFailed = 1,       // something went wrong while running
    kExitUsage = 2,        // a bad option, prompt or argument
    kExitBadModel = 3,     // a missing, damaged or unsupported model file or checkpoint
    kExitNoGpu = 4,        // a GPU was demanded and none is usable
    kExitOutOfMemory = 5,  // host or device memory does not suffice
};

struct Error : std::runtime_error {
    Error(ExitCode code, const std::string& message) : std::runtime_error(message), code(code) {}
    ExitCode code;
};

// Waits inside kernels have an end: what would hang becomes an error.
#include "tests/gpu_waits.h"

#include <doctest/doctest.h>

#include "tests/gpu_model.h"
#include "tests/run_program.h"

// In a process of its own, because nothing runs on the device afterwards.
TEST_CASE("child: a kernel waits for a word that nobody writes" * doctest::skip()) {
    const Hang hang = wait_for_word();
    CHECK(hang.ended);
    CHECK(hang.told == 2);  // Wait::exchange
}

TEST_CASE("gpu: a wait for what never comes ends the kernel and tells which it was") {
    if (!gpu_or_skip()) return;
    const ProgramRun run = run_program("tests", {"--test-case=child: a kernel waits*", "--no-skip"});
    INFO(run.out);
    CHECK(run.exit_code == 0);
    CHECK(run.out.ends_with("1 passed, 0 failed\n"));
}

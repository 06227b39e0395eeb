#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

TEST_CASE("both executables need libc, libm and the loader at most, and glibc 2.35 at most") {
    const char* build = std::getenv("BUILD");
    CHECK(std::system((std::string("scripts/check_portable.sh ") + (build ? build : "build")).c_str()) == 0);
}

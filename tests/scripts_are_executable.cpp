// The commands that documents name: a script that begins with #! can be run as it stands.
#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

TEST_CASE("scripts that begin with #! are executable") {
    int n = 0;
    for (const auto& entry : std::filesystem::directory_iterator("scripts")) {
        if (!entry.is_regular_file()) continue;
        char begin[2] = {};
        std::ifstream(entry.path()).read(begin, sizeof begin);
        if (begin[0] != '#' || begin[1] != '!') continue;
        CAPTURE(entry.path());
        CHECK(access(entry.path().c_str(), X_OK) == 0);
        ++n;
    }
    CHECK(n >= 10);
}

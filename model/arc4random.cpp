// libstdc++'s random.o, which every C++ program that is linked with it statically contains, asks glibc for arc4random.
// glibc has it since 2.36; defined here, the executables start from glibc 2.35 on (scripts/check_portable.sh).
#include <sys/random.h>

#include <cstdint>
#include <cstdlib>

extern "C" uint32_t arc4random() noexcept {
    uint32_t value;
    if (getrandom(&value, sizeof value, 0) != sizeof value) std::abort();
    return value;
}

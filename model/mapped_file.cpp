#include "model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "model/error.h"

MappedFile map_file(const std::string& path, const std::string& advice) {
    const auto refuse = [&](const std::string& found) {
        return Error(kExitBadModel, path + " " + found + "; " + advice);
    };
    // Without O_NONBLOCK opening a pipe would wait for someone to write to it.
    const int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) throw refuse("does not exist");
    if (fd < 0) throw refuse(std::string("can't be opened (") + std::strerror(errno) + ")");
    struct stat status;
    const bool known = fstat(fd, &status) == 0;
    void* start = MAP_FAILED;
    if (known && S_ISREG(status.st_mode) && status.st_size > 0)
        start = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = errno;
    close(fd);  // a mapping outlives its descriptor
    if (known && S_ISDIR(status.st_mode)) throw refuse("is a folder where a file is needed");
    if (known && !S_ISREG(status.st_mode)) throw refuse("is a pipe or device where a regular file is needed");
    if (known && status.st_size == 0) throw refuse("is empty");
    if (start == MAP_FAILED) throw refuse(std::string("can't be mapped (") + std::strerror(error) + ")");
    const size_t size = size_t(status.st_size);
    return {std::shared_ptr<const void>(start, [size](const void* p) { munmap(const_cast<void*>(p), size); }),
            {static_cast<const uint8_t*>(start), size}};
}

void release_pages(std::span<const uint8_t> bytes) {
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (uintptr_t(bytes.data()) + page - 1) / page * page;
    const uintptr_t end = uintptr_t(bytes.data() + bytes.size()) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

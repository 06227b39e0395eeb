// A file that appears whole or not at all: written beside its final name, synced, then renamed. Destruction without
// commit(), an error or a signal that ends the program (interrupt, hang-up, termination) removes what was written.
#pragma once

#include <cstdint>
#include <span>
#include <string>

class OutputFile {
public:
    explicit OutputFile(const std::string& path);  // at most one at a time
    ~OutputFile();
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;

    // Claims disk space for `size` bytes where the file system can, so that a full disk is noticed before the work.
    void reserve(uint64_t size);
    void write(std::span<const uint8_t> bytes);  // appends
    void write_at(uint64_t offset, std::span<const uint8_t> bytes);
    uint64_t size() const { return size_; }  // bytes appended so far
    void commit();

private:
    [[noreturn]] void fail(const std::string& what, int error) const;

    std::string path_, temporary_;
    int fd_ = -1;
    uint64_t size_ = 0;
};

// A progress bar on standard error while that is a terminal; nothing otherwise.
#pragma once

#include <cstdint>
#include <string>

class Progress {
public:
    Progress(const std::string& label, uint64_t total);  // total: bytes to do
    ~Progress();                                         // clears the line
    void add(uint64_t done);

private:
    std::string label_;
    uint64_t total_, done_ = 0;
    int shown_ = -1;  // percent
    bool terminal_;
};

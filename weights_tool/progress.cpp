#include "weights_tool/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

Progress::Progress(const std::string& label, uint64_t total)
    : label_(label), total_(std::max<uint64_t>(total, 1)), terminal_(isatty(STDERR_FILENO)) {}

Progress::~Progress() {
    if (terminal_ && shown_ >= 0) std::fprintf(stderr, "\r\x1b[K");
}

void Progress::add(uint64_t done) {
    done_ = std::min(done_ + done, total_);
    const int percent = int(done_ * 100 / total_);
    if (!terminal_ || percent == shown_) return;
    shown_ = percent;
    const std::string bar(size_t(percent * 40 / 100), '#');
    std::fprintf(stderr, "\r%s [%-40s] %3d %%", label_.c_str(), bar.c_str(), percent);
}

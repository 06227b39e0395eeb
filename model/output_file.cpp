#include "model/output_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "model/error.h"

static std::atomic<const char*> unfinished = nullptr;  // what the signal handler has to remove

extern "C" void remove_unfinished_and_end(int signal_number) {
    if (const char* path = unfinished) unlink(path);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void catch_signals() {
    signal(SIGXFSZ, SIG_IGN);  // a file-size limit shows up as an error of write() instead
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
        struct sigaction action;
        sigaction(number, nullptr, &action);
        if (action.sa_handler == SIG_IGN) continue;  // as under nohup
        action = {};
        action.sa_handler = remove_unfinished_and_end;
        sigaction(number, &action, nullptr);
    }
}

OutputFile::OutputFile(const std::string& path) : path_(path) {
    if (path.empty()) throw Error(kExitUsage, "the output has an empty name; give another one");
    std::error_code ignored;
    if (std::filesystem::is_symlink(path_, ignored))  // replace the file that a link means, not the link
        path_ = std::filesystem::weakly_canonical(path_, ignored).string();
    struct stat status;
    if (stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
        throw Error(kExitUsage, path + " exists and is not a regular file; give another name for the output");
    temporary_ = path_ + ".part" + std::to_string(getpid());
    catch_signals();
    fd_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0) fail("can't be created", errno);
    unfinished = temporary_.c_str();
}

OutputFile::~OutputFile() {
    if (fd_ < 0) return;
    close(fd_);
    unlink(temporary_.c_str());
    unfinished = nullptr;
}

void OutputFile::fail(const std::string& what, int error) const {
    throw Error(kExitFailed, path_ + " " + what + ": " + std::strerror(error) + "; nothing was written");
}

void OutputFile::reserve(uint64_t size) {
    if (fallocate(fd_, 0, 0, off_t(size)) != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
        fail("needs " + std::to_string(size) + " bytes that can't be had", errno);
}

void OutputFile::write_at(uint64_t offset, std::span<const uint8_t> bytes) {
    while (!bytes.empty()) {
        const ssize_t n = pwrite(fd_, bytes.data(), bytes.size(), off_t(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail("can't be written", errno);
        bytes = bytes.subspan(size_t(n));
        offset += uint64_t(n);
    }
}

void OutputFile::write(std::span<const uint8_t> bytes) {
    write_at(size_, bytes);
    size_ += bytes.size();
}

void OutputFile::commit() {
    if (ftruncate(fd_, off_t(size_)) != 0) fail("can't be written", errno);
    if (fsync(fd_) != 0) fail("can't be written", errno);
    if (rename(temporary_.c_str(), path_.c_str()) != 0) fail("can't be put in place", errno);
    unfinished = nullptr;
    close(std::exchange(fd_, -1));
    const std::string folder = std::filesystem::path(path_).parent_path().string();
    const int folder_fd = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder_fd < 0) return;
    fsync(folder_fd);  // the new name; a file system that can't do this is no reason to fail
    close(folder_fd);
}

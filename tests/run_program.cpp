#include "tests/run_program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

namespace {

int memory_file(std::string_view bytes) {
    const int fd = memfd_create("test", MFD_CLOEXEC);
    if (fd < 0 || write(fd, bytes.data(), bytes.size()) != ssize_t(bytes.size()) || lseek(fd, 0, SEEK_SET) != 0)
        abort();
    return fd;
}

std::string read_all(int fd) {
    std::string bytes;
    char part[65536];
    for (ssize_t n; (n = read(fd, part, sizeof part)) > 0;) bytes.append(part, size_t(n));
    return bytes;
}

pid_t start(const std::string& name, const std::vector<std::string>& arguments, int in, int out, int err) {
    const std::string path = program_path(name);
    std::vector<char*> argv = {const_cast<char*>(path.c_str())};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(in, 0);
        dup2(out, 1);
        dup2(err, 2);
        execv(path.c_str(), argv.data());
        _exit(127);
    }
    return pid;
}

ProgramRun end(pid_t pid, int out, int err) {
    ProgramRun run;
    run.out = read_all(out);
    int status = 0;
    waitpid(pid, &status, 0);
    run.exit_code = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    lseek(err, 0, SEEK_SET);
    run.err = read_all(err);
    close(out);
    close(err);
    return run;
}

}  // namespace

std::string program_path(const std::string& name) {
    const char* build = std::getenv("BUILD");
    return std::string(build ? build : "build") + "/" + name;
}

RunningProgram::RunningProgram(const std::string& name, const std::vector<std::string>& arguments,
                               std::string_view input) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) abort();
    const int in = memory_file(input);
    err_ = memory_file("");
    out_ = pair[0];
    pid_ = start(name, arguments, in, pair[1], err_);
    close(in);
    close(pair[1]);
}

RunningProgram::~RunningProgram() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    wait();
}

std::string RunningProgram::read_write() {
    char part[65536];
    const ssize_t n = read(out_, part, sizeof part);
    return {part, size_t(n > 0 ? n : 0)};
}

void RunningProgram::close_output() {
    close(out_);
    out_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void RunningProgram::interrupt() {
    kill(pid_, SIGINT);
}

ProgramRun RunningProgram::wait() {
    const pid_t pid = pid_;
    pid_ = -1;
    return end(pid, out_, err_);
}

ProgramRun run_program(const std::string& name, const std::vector<std::string>& arguments, std::string_view input,
                       const char* stdin_file) {
    int out[2];
    if (pipe2(out, O_CLOEXEC) != 0) abort();
    const int in = stdin_file ? open(stdin_file, O_RDONLY | O_CLOEXEC | O_NOCTTY) : memory_file(input);
    const int err = memory_file("");
    const pid_t pid = start(name, arguments, in, out[1], err);
    close(in);
    close(out[1]);
    return end(pid, out[0], err);
}

ProgramRun staged_gpt2(std::vector<std::string> arguments, std::string_view input) {
    arguments.insert(arguments.end(), {"--device", "cpu"});
    return run_program("staged-gpt2", arguments, input);
}

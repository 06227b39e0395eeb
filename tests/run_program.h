// Runs the built programs as a shell would: arguments, bytes on standard input, and what comes back.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

std::string program_path(const std::string& name);  // of the build folder

struct ProgramRun {
    int exit_code;  // minus the signal that ended it
    std::string out, err;
};

// A program under way. Standard output is a socket that keeps the borders of writes; standard error is kept.
class RunningProgram {
public:
    RunningProgram(const std::string& name, const std::vector<std::string>& arguments, std::string_view input = "");
    ~RunningProgram();
    RunningProgram(const RunningProgram&) = delete;

    std::string read_write();  // what one write of the program carried; "" at the end
    void close_output();
    void interrupt();   // SIGINT
    ProgramRun wait();  // for its end; out is what was not read before

private:
    pid_t pid_;
    int out_, err_;
};

// To its end, with a pipe as standard output. stdin_file: what to open as standard input instead of `input`.
ProgramRun run_program(const std::string& name, const std::vector<std::string>& arguments, std::string_view input = "",
                       const char* stdin_file = nullptr);

// staged-gpt2 on the CPU, so that results are the same on every machine.
ProgramRun staged_gpt2(std::vector<std::string> arguments, std::string_view input = "");

// The version that both programs report and that blobs record.
#pragma once

constexpr char kVersion[] = "0.1.0";
extern const char* const
    kCommit;  // what it was built from, by git; written by scripts/configure, linked into staged-gpt2

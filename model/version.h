// The version that both programs report and that blobs record.
#pragma once

constexpr char kVersion[] = "0.1.0";

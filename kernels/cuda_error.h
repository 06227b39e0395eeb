// CUDA's return codes as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "model/error.h"

inline void cuda_check(cudaError_t status, const char* doing) {
    if (status == cudaSuccess) return;
    throw Error(kExitFailed, std::string("the GPU failed while ") + doing + ": " + cudaGetErrorString(status));
}

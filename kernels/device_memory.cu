#include "kernels/device_memory.h"

#include <cstring>

#include "kernels/cuda_error.h"

DeviceMemory::~DeviceMemory() {
    cudaFree(memory_);
}

void DeviceMemory::allocate(std::span<const Piece> pieces, const std::string& what) {
    const auto aligned = [](uint64_t n) { return (n + 255) / 256 * 256; };
    for (const Piece& p : pieces) bytes_ += aligned(p.bytes);
    size_t free_bytes = 0, total_bytes = 0;
    cuda_check(cudaMemGetInfo(&free_bytes, &total_bytes), "reading its free memory");
    const cudaError_t status = bytes_ > free_bytes ? cudaErrorMemoryAllocation : cudaMalloc(&memory_, bytes_);
    if (status == cudaErrorMemoryAllocation)
        throw Error(kExitOutOfMemory, what + " needs " + std::to_string((bytes_ >> 20) + 1) +
                                          " MiB of GPU memory and " + std::to_string(free_bytes >> 20) +
                                          " MiB are free; free some, take another GPU or run with --device cpu");
    cuda_check(status, "allocating memory");
    uint8_t* at = memory_;
    for (const Piece& p : pieces) {
        if (p.bytes > 0) std::memcpy(p.to, &at, sizeof at);
        at += aligned(p.bytes);
    }
}

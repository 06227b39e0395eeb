#include "tests/gpu_fetch.h"

bool fetch_bytes(void* to, const void* from, size_t bytes) {
    return cudaDeviceSynchronize() == cudaSuccess && cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost) == cudaSuccess;
}
bool store_bytes(void* to, const void* from, size_t bytes) {
    return cudaDeviceSynchronize() == cudaSuccess && cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) == cudaSuccess;
}

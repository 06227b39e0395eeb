#include "tests/gpu_mma.h"

#include "kernels/ptx.cuh"

static __global__ void mma_kernel(const uint4* a, const uint2* b, float4* d) {
    const int at = blockIdx.x * 32 + threadIdx.x;
    const uint32_t fragment[4] = {a[at].x, a[at].y, a[at].z, a[at].w};
    float sum[4] = {0, 0, 0, 0};
    ptx::mma(sum, fragment, b[at].x, b[at].y);
    d[at] = {sum[0], sum[1], sum[2], sum[3]};
}

std::vector<float> multiply_fragments(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
    uint8_t* memory = nullptr;
    const size_t n = a.size() / 128, a_bytes = n * 512, b_bytes = n * 256;
    std::vector<float> d(n * 128);
    if (cudaMalloc(&memory, 2 * a_bytes + b_bytes) != cudaSuccess) return {};
    cudaMemcpy(memory, a.data(), a_bytes, cudaMemcpyHostToDevice);
    cudaMemcpy(memory + 2 * a_bytes, b.data(), b_bytes, cudaMemcpyHostToDevice);
    mma_kernel<<<unsigned(n), 32>>>(reinterpret_cast<const uint4*>(memory),
                                    reinterpret_cast<const uint2*>(memory + 2 * a_bytes),
                                    reinterpret_cast<float4*>(memory + a_bytes));
    if (cudaMemcpy(d.data(), memory + a_bytes, a_bytes, cudaMemcpyDeviceToHost) != cudaSuccess) d.clear();
    cudaFree(memory);
    return d;
}

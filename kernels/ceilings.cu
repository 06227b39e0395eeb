// The GPU's ceilings.
//
//   reading      every thread loads 16 bytes at a time, eight loads under way, marked as read once; the buffer is many
//                times the L2 cache, and its bytes / time is the bandwidth of device memory
//   arithmetic   mma.m16n8k16, fp16 with fp32 sums, the instruction of the engine's matrices, on registers alone: each
//                warp keeps 8 sums of 16 x 8 that do not wait for each other. Where newer instructions can do more
//                (wgmma on compute capability 9.0) the GPU's data sheet promises more than this.
#include "kernels/ceilings.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <vector>

#include "decode/quantile.h"
#include "kernels/cuda_error.h"
#include "kernels/ptx.cuh"

namespace {

constexpr int kReadThreads = 512, kReadBlocks = 8;  // blocks a multiprocessor, not all at a time
constexpr int kMmaThreads = 256, kMmaChains = 8, kMmaSteps = 8192;
constexpr double kMmaFlops = 2.0 * 16 * 8 * 16;

__global__ void __launch_bounds__(kReadThreads) read_kernel(const uint4* p, uint64_t n, uint32_t* out) {
    uint32_t sum = 0;
    const uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 7 * step < n; i += 8 * step)
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const uint4 v = __ldcs(p + i + k * step);
            sum ^= v.x ^ v.y ^ v.z ^ v.w;
        }
    for (; i < n; i += step) {
        const uint4 v = __ldcs(p + i);
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x12345678) *out = sum;  // the loads are needed
}

// a, b: two halves each, what all fragments are filled with.
__global__ void __launch_bounds__(kMmaThreads) mma_kernel(uint32_t a, uint32_t b, float* out) {
    const uint32_t weights[4] = {a, a, a, a};
    float sum[kMmaChains][4];
    for (int i = 0; i < kMmaChains; ++i)  // all different, or else the compiler keeps one chain for all
        for (int j = 0; j < 4; ++j) sum[i][j] = float(i);
    for (int step = 0; step < kMmaSteps; ++step)
#pragma unroll
        for (int i = 0; i < kMmaChains; ++i) ptx::mma(sum[i], weights, b, b);
    float total = 0;
    for (int i = 0; i < kMmaChains; ++i) total += sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3];
    if (total == -1) *out = total;
}

// Median seconds of `launch`, by the GPU's own clock.
template <class Launch>
double median_seconds(const Launch& launch) {
    cudaEvent_t start, end;
    cuda_check(cudaEventCreate(&start), "measuring its ceilings");
    cuda_check(cudaEventCreate(&end), "measuring its ceilings");
    std::vector<double> times;
    for (int run = 0; run < 24; ++run) {
        cudaEventRecord(start);
        launch();
        cuda_check(cudaGetLastError(), "measuring its ceilings");
        cudaEventRecord(end);
        cuda_check(cudaEventSynchronize(end), "measuring its ceilings");
        float ms = 0;
        cuda_check(cudaEventElapsedTime(&ms, start, end), "measuring its ceilings");
        if (run >= 3) times.push_back(ms * 1e-3);
    }
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    return quantile(times, 0.5);
}

int multiprocessors() {
    int device = 0, count = 0;
    cuda_check(cudaGetDevice(&device), "reading its properties");
    cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "reading its properties");
    return count;
}

struct Freed {
    void operator()(void* p) const { cudaFree(p); }
};
using DeviceMemory = std::unique_ptr<void, Freed>;

DeviceMemory allocate(uint64_t bytes) {
    void* p = nullptr;
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        cudaGetLastError();
        throw Error(kExitOutOfMemory, "the GPU has no " + std::to_string(bytes >> 20) +
                                          " MiB free to measure its bandwidth with; end other programs on it");
    }
    return DeviceMemory(p);
}

// Clocks and power limit by nvidia-smi, which comes with the driver; "" without it.
std::string ask_nvidia_smi(int device) {
    char bus[32];
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess) return "";
    const std::string command = std::string("nvidia-smi --id=") + bus +
                                " --query-gpu=clocks.sm,clocks.max.sm,clocks.mem,power.limit --format=csv,noheader"
                                " 2>/dev/null";
    FILE* pipe = popen(command.c_str(), "r");
    if (!pipe) return "";
    char line[256] = "";
    const bool found = std::fgets(line, sizeof line, pipe) != nullptr;
    return pclose(pipe) == 0 && found ? line : "";
}

std::string driver_version() {
    std::ifstream file("/sys/module/nvidia/version");
    std::string version;
    if (file >> version) return version;
    int cuda = 0;
    cudaDriverGetVersion(&cuda);
    return "of CUDA " + std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10);
}

}  // namespace

DeviceFacts cuda_facts(int device) {
    cudaDeviceProp properties;
    cuda_check(cudaGetDeviceProperties(&properties, device), "reading its properties");
    DeviceFacts facts = {.kind = "cuda",
                         .name = properties.name,
                         .driver = driver_version(),
                         .clocks = "unknown",
                         .cache_bytes = uint64_t(properties.l2CacheSize)};
    std::string values[4];  // of ask_nvidia_smi
    const std::string answer = ask_nvidia_smi(device);
    size_t at = 0;
    for (std::string& value : values) {
        const size_t end = std::min(answer.find_first_of(",\n", at), answer.size());
        value = answer.substr(at, end - at);
        at = std::min(answer.find_first_not_of(", \n", end), answer.size());
    }
    if (!values[3].empty())
        facts.clocks = "multiprocessors " + values[0] + " of " + values[1] + ", memory " + values[2] +
                       ", power limit " + values[3];
    return facts;
}

double cuda_read_seconds(const void* p, uint64_t bytes) {
    const DeviceMemory out = allocate(sizeof(uint32_t));
    const int blocks = multiprocessors() * kReadBlocks;
    return median_seconds([&] {
        read_kernel<<<blocks, kReadThreads>>>(static_cast<const uint4*>(p), bytes / 16,
                                              static_cast<uint32_t*>(out.get()));
    });
}

Ceilings cuda_ceilings(int device) {
    cuda_check(cudaSetDevice(device), "starting");
    size_t free = 0, total = 0;
    cuda_check(cudaMemGetInfo(&free, &total), "asking for its free memory");
    const uint64_t bytes = std::max<uint64_t>(std::min<uint64_t>(uint64_t(2) << 30, free / 2), 64 << 20) >> 20 << 20;
    const DeviceMemory buffer = allocate(bytes);
    cuda_check(cudaMemset(buffer.get(), 0x5a, bytes), "measuring its ceilings");
    const double reading = cuda_read_seconds(buffer.get(), bytes);

    int blocks = 0;
    cuda_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, mma_kernel, kMmaThreads, 0), "starting");
    blocks *= multiprocessors();
    constexpr uint32_t kHalves = 0x2c002c00;  // 0.0625 twice: sums stay small
    const double computing = median_seconds(
        [&] { mma_kernel<<<blocks, kMmaThreads>>>(kHalves, kHalves, static_cast<float*>(buffer.get())); });
    const double flops = kMmaFlops * kMmaSteps * kMmaChains * (kMmaThreads / 32) * blocks;
    return {.read_bytes_per_s = double(bytes) / reading,
            .flops_per_s = flops / computing,
            .read_method = std::to_string(bytes >> 20) + " MiB of device memory read by all multiprocessors",
            .flops_method = "mma.m16n8k16 on registers, fp16 with fp32 sums"};
}

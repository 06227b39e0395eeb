// Functions marked HD are compiled for the host and, in .cu files, for the GPU too.
#pragma once

#ifdef __CUDACC__
#define HD __host__ __device__
#else
#define HD
#endif

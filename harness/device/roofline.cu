// What the memory of a device can do: every byte touched once, by 16-byte accesses.
#include "gpu.cuh"

constexpr int LOADS = 4; // in flight per thread

// Copies n vectors of 16 bytes.
//
// Any grid and block.
extern "C" __global__ void roofline_copy(const uint4* from, uint4* to, long long n) {
    const long long stride = gridDim.x * (long long)blockDim.x;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    for (; i + (LOADS - 1) * stride < n; i += LOADS * stride) {
        uint4 v[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++) v[j] = from[i + j * stride];
#pragma unroll
        for (int j = 0; j < LOADS; j++) to[i + j * stride] = v[j];
    }
    for (; i < n; i += stride) to[i] = from[i];
}

// The sum of n vectors of 16 bytes as words, modulo 2^32, one partial sum per block: what keeps the
// compiler from dropping the loads, and lets the host check that all of them were done.
//
// Any grid; block of at most 1024; partial [gridDim.x].
extern "C" __global__ void roofline_read(const uint4* from, unsigned* partial, long long n) {
    __shared__ unsigned of_thread[1024];
    const long long stride = gridDim.x * (long long)blockDim.x;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    unsigned sum = 0;
    for (; i + (LOADS - 1) * stride < n; i += LOADS * stride) {
        uint4 v[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++) v[j] = from[i + j * stride];
#pragma unroll
        for (int j = 0; j < LOADS; j++) sum += v[j].x + v[j].y + v[j].z + v[j].w;
    }
    for (; i < n; i += stride) {
        const uint4 v = from[i];
        sum += v.x + v.y + v.z + v.w;
    }
    of_thread[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (unsigned t = 1; t < blockDim.x; t++) sum += of_thread[t];
    partial[blockIdx.x] = sum;
}

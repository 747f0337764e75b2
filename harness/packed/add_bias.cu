// Adds a bias to what the vendor's matrix product left: y[rows, n_out] += bias[n_out], row-major.
// One thread per element.
#include "../device/gpu.cuh"

template <class T>
__device__ __forceinline__ void add_bias(T* y, const half* bias, int rows, int n_out) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (long long)rows * n_out) {
        y[i] = (T)((float)y[i] + (float)bias[i % n_out]);
    }
}

extern "C" __global__ void add_bias_f16(half* y, const half* bias, int rows, int n_out) {
    add_bias(y, bias, rows, n_out);
}

extern "C" __global__ void add_bias_f32(float* y, const half* bias, int rows, int n_out) {
    add_bias(y, bias, rows, n_out);
}

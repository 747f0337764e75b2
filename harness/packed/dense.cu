// `f16`, `f32`, `bf16`: weights as numbers, without a scale. F32 and BF16 only have the plain
// product: they are the precisions that others are compared with, not fast ones.

#include "linear.cuh"

struct F16 {
    static constexpr int BITS = 16, PIECE = 16, WORDS = 4, RUN = 2, DEPTH = 4;
    static constexpr bool GROUPED = false, SPLIT = false;
    static constexpr float FACTOR = 1.0f;
    struct Offset {};
    static __device__ __forceinline__ void decode(unsigned (&p)[4], const unsigned (&words)[WORDS], int, const Offset&) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[i] = words[i];
    }
    static __device__ __forceinline__ float scale(const Member&, size_t) { return 1.0f; }
    static __device__ __forceinline__ void load(float (&v)[8], const void* codes, size_t row, int unit, int k_in) {
        const half* from = static_cast<const half*>(codes) + row * k_in + unit * 8;
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = unit * 8 + i < k_in ? __half2float(from[i]) : 0.0f;
    }
};

struct F32 {
    static constexpr bool GROUPED = false;
    static __device__ __forceinline__ float scale(const Member&, size_t) { return 1.0f; }
    static __device__ __forceinline__ void load(float (&v)[8], const void* codes, size_t row, int unit, int k_in) {
        const float* from = static_cast<const float*>(codes) + row * k_in + unit * 8;
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = unit * 8 + i < k_in ? from[i] : 0.0f;
    }
};

/// The upper half of an F32.
struct Bf16 {
    static constexpr bool GROUPED = false;
    static __device__ __forceinline__ float scale(const Member&, size_t) { return 1.0f; }
    static __device__ __forceinline__ void load(float (&v)[8], const void* codes, size_t row, int unit, int k_in) {
        const unsigned short* from = static_cast<const unsigned short*>(codes) + row * k_in + unit * 8;
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = unit * 8 + i < k_in ? __uint_as_float(unsigned(from[i]) << 16) : 0.0f;
    }
};

template <class F>
__device__ __forceinline__ void linear_in_f32(const Members& members, const half* x, int rows, int k_in, int group, int output) {
    int block = blockIdx.x;
    const Member& w = member_of<linear_tile(64)>(members, block);
    linear_plain<F, linear_tile(64)>(w, block * linear_tile(64), x, rows, k_in, group, output);
}

extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 3) linear_f16_r8(LINEAR_PARAMETERS) {
    linear<F16, 8>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_f16_r16(LINEAR_PARAMETERS) {
    linear<F16, 16>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_f16_r32(LINEAR_PARAMETERS) {
    linear<F16, 32>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_f16_r64(LINEAR_PARAMETERS) {
    linear<F16, 64>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(LINEAR_THREADS) linear_f32_r64(LINEAR_PARAMETERS) {
    linear_in_f32<F32>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(LINEAR_THREADS) linear_bf16_r64(LINEAR_PARAMETERS) {
    linear_in_f32<Bf16>(LINEAR_ARGUMENTS);
}

/// `out` [rows, k_in] F32, otherwise as dequant_<format>.
extern "C" __global__ void widen_bf16(const __grid_constant__ Member w, float* out, int first_row, int rows, int k_in, int group) {
    dequantize<Bf16>(w, out, first_row, rows, k_in, group);
}

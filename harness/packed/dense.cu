// `f16`, `bf16`, `f32`: weights as numbers, without a scale.

#include "linear.cuh"

/// Eight weights are 16 bytes and nothing has to be decoded.
struct Bits16 {
    static constexpr int BITS = 16, PIECE = 16, WORDS = 4, RUN = 2, DEPTH = 4;
    static constexpr bool GROUPED = false, SPLIT = false;
    static constexpr float FACTOR = 1.0f;
    struct Offset {};
    static __device__ __forceinline__ void decode(unsigned (&p)[4], const unsigned (&words)[WORDS], int, const Offset&) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[i] = words[i];
    }
    static __device__ __forceinline__ float scale(const Member&, size_t) { return 1.0f; }
};

struct F16 : Bits16 {
    static __device__ __forceinline__ void load(float (&v)[8], const void* codes, size_t row, int unit, int k_in) {
        const half* from = static_cast<const half*>(codes) + row * k_in + unit * 8;
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = unit * 8 + i < k_in ? __half2float(from[i]) : 0.0f;
    }
};

/// The upper half of an F32.
struct Bf16 : Bits16 {
    static __device__ __forceinline__ void load(float (&v)[8], const void* codes, size_t row, int unit, int k_in) {
        const unsigned short* from = static_cast<const unsigned short*>(codes) + row * k_in + unit * 8;
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = unit * 8 + i < k_in ? __uint_as_float(unsigned(from[i]) << 16) : 0.0f;
    }
};

/// A half has three bits more than a BF16 and fewer exponents: it is the sum of the BF16 in its
/// upper bits and one of the rest. Two products of each weight are then exact.
template <>
struct Multiply<Bf16> {
    static __device__ __forceinline__ void add(float (&into)[4], const unsigned (&first)[4], const unsigned (&second)[4], const unsigned (&x)[4]) {
        unsigned upper[4], rest[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float a = __low2float(as_half2(x[i])), b = __high2float(as_half2(x[i]));
            upper[i] = __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
            a -= __uint_as_float(upper[i] << 16);
            b -= __uint_as_float(upper[i] & 0xffff0000u);
            rest[i] = __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
        }
        multiply_add_bf16(into, first, {upper[0], upper[1]});
        multiply_add_bf16(into, first, {rest[0], rest[1]});
        multiply_add_bf16(into, second, {upper[2], upper[3]});
        multiply_add_bf16(into, second, {rest[2], rest[3]});
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

/// Two weight rows of F32 from `n` on by ROWS rows of x from `row` on. No matrix instruction takes
/// F32 as it is, so the lanes of a warp share k, 16 bytes each at a time. Rows behind the last are
/// read as the last, and their sums dropped.
template <int ROWS>
__device__ __forceinline__ void multiply_f32(const Member& w, int n, const half* x, int row, int rows, int k_in, int output) {
    // Few sums leave registers for loads of several turns: 128 bytes of each lane on the way.
    constexpr int TURNS = ROWS == 1 ? 4 : 2;
    int lane = threadIdx.x % 32;
    const float* weights[2];
    const half* inputs[ROWS];
    float sum[2][ROWS] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) weights[i] = static_cast<const float*>(w.codes) + size_t(min(n + i, w.n_out - 1)) * k_in;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) inputs[r] = x + size_t(min(row + r, rows - 1)) * k_in;
#pragma unroll TURNS
    for (int k = lane * 4; k < k_in; k += 32 * 4) {
        uint4 v[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) v[i] = load_stream(reinterpret_cast<const uint4*>(weights[i] + k));
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            uint2 p = __ldg(reinterpret_cast<const uint2*>(inputs[r] + k));
            half2 low = as_half2(p.x), high = as_half2(p.y);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                sum[i][r] = fmaf(__uint_as_float(v[i].x), __low2float(low), sum[i][r]);
                sum[i][r] = fmaf(__uint_as_float(v[i].y), __high2float(low), sum[i][r]);
                sum[i][r] = fmaf(__uint_as_float(v[i].z), __low2float(high), sum[i][r]);
                sum[i][r] = fmaf(__uint_as_float(v[i].w), __high2float(high), sum[i][r]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int lanes = 16; lanes > 0; lanes /= 2) sum[i][r] += __shfl_xor_sync(0xffffffffu, sum[i][r], lanes);
            if (lane == 0 && n + i < w.n_out && row + r < rows) write_output(w, row + r, n + i, sum[i][r], output);
        }
    }
}

/// `linear` for F32. Weights that more than eight rows of x need again come from the second cache.
template <int R>
__device__ __forceinline__ void linear_f32(const Members& members, const half* x, int rows, int k_in, int group, int output) {
    constexpr int TILE = linear_tile(R), ROWS = 8;
    int block = blockIdx.x;
    const Member& w = member_of<TILE>(members, block);
    int first = block * TILE;
    bool whole = reinterpret_cast<size_t>(w.codes) % 16 == 0 && reinterpret_cast<size_t>(x) % 8 == 0 && k_in % 4 == 0;
    if (!whole) return linear_plain<F32, TILE>(w, first, x, rows, k_in, group, output);
    for (int n = first + threadIdx.x / 32 * 2; n < min(first + TILE, w.n_out); n += 2 * LINEAR_WARPS) {
        if (rows == 1) {
            multiply_f32<1>(w, n, x, 0, rows, k_in, output);
        } else {
            for (int row = 0; row < rows; row += ROWS) multiply_f32<ROWS>(w, n, x, row, rows, k_in, output);
        }
    }
}

LINEAR_KERNELS(f16, F16, 3, 2, 2, 2)
LINEAR_KERNELS(bf16, Bf16, 3, 2, 2, 2)
LINEAR_KERNEL(f32, 8, 2, linear_f32<8>)
LINEAR_KERNEL(f32, 16, 2, linear_f32<16>)
LINEAR_KERNEL(f32, 32, 2, linear_f32<32>)
LINEAR_KERNEL(f32, 64, 2, linear_f32<64>)

/// `out` [rows, k_in] F32, otherwise as dequant_<format>.
extern "C" __global__ void widen_bf16(const __grid_constant__ Member w, float* out, int first_row, int rows, int k_in, int group) {
    dequantize<Bf16>(w, out, first_row, rows, k_in, group);
}

// What the kernels of this project share: conversions, vector accesses, reductions, and the
// instructions that C++ has no word for. Every one of those has a stand-in for the emulation
// (tests/emulation), so that kernels run wherever a C++ compiler does.
#pragma once

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

#define DEVICE __device__ __forceinline__

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr float LOG2_E = 1.4426950408889634f;

// ---- numbers ---------------------------------------------------------------------------------

DEVICE float negative_infinity() { return __uint_as_float(0xff800000u); }
DEVICE float not_a_number() { return __uint_as_float(0x7fffffffu); }

DEVICE bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// Two F16 in a word, the first in the low half.
DEVICE unsigned pack(float low, float high) {
#ifdef __CUDACC__
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return __half_as_ushort(__float2half_rn(low)) |
           unsigned(__half_as_ushort(__float2half_rn(high))) << 16;
#endif
}

DEVICE float low_half(unsigned word) {
    return __half2float(__ushort_as_half((unsigned short)(word & 0xffff)));
}

DEVICE float high_half(unsigned word) {
    return __half2float(__ushort_as_half((unsigned short)(word >> 16)));
}

// 2^x, to about 2 ulp; results below 2^-126 become 0.
DEVICE float exp2_fast(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// ---- vector accesses: `p` is aligned to the width of the access --------------------------------

DEVICE void unpack8(uint4 words, float (&v)[8]) {
    const unsigned w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = low_half(w[i]);
        v[2 * i + 1] = high_half(w[i]);
    }
}

DEVICE uint4 pack8(const float (&v)[8]) {
    return make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

DEVICE void load8(const half* p, float (&v)[8]) {
    unpack8(*reinterpret_cast<const uint4*>(p), v);
}

DEVICE void load8(const float* p, float (&v)[8]) {
    const float4 a = reinterpret_cast<const float4*>(p)[0];
    const float4 b = reinterpret_cast<const float4*>(p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

DEVICE void store8(half* p, const float (&v)[8]) { *reinterpret_cast<uint4*>(p) = pack8(v); }

DEVICE void store8(float* p, const float (&v)[8]) {
    reinterpret_cast<float4*>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

// ---- reductions --------------------------------------------------------------------------------

// `combine` over the lanes that differ in the bits of `lanes - 1`; every lane gets the result.
template <typename T, typename Combine>
DEVICE T warp_reduce(T value, Combine combine, int lanes = 32) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        if (offset < lanes) value = combine(value, __shfl_xor_sync(ALL_LANES, value, offset));
    }
    return value;
}

// The same over a block of whole warps; every thread gets the result.
template <typename T, typename Combine> DEVICE T block_reduce(T value, Combine combine) {
    __shared__ T of_warp[32];
    const int warps = blockDim.x / 32;
    value = warp_reduce(value, combine);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warp[0];
    for (int i = 1; i < warps; i++) value = combine(value, of_warp[i]);
    __syncthreads(); // `of_warp` may be written again
    return value;
}

struct Sum {
    DEVICE float operator()(float a, float b) const { return a + b; }
};

// Ignores NaN.
struct Max {
    DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// ---- shared memory (PTX ISA 8: ldmatrix, cp.async; sm_80 and later) ------------------------------

// Four 8x8 matrices of F16 from shared memory: lane l gives the address of row l % 8 of matrix
// l / 8 (16 bytes, aligned) and, with l = 4 g + t, gets (row g, columns 2t, 2t + 1) of each;
// transposed: (rows 2t, 2t + 1, column g). The first is in the low half of the register.
template <bool TRANSPOSED> DEVICE void load_matrices(unsigned (&r)[4], const uint4* row) {
#ifdef __CUDACC__
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    }
#else
    emulate::ldmatrix_x4(r, row, TRANSPOSED);
#endif
}

// 16 bytes from global to shared memory without waiting, zeros where not `present`. They are
// there for this thread after `wait_for_copies`, for the block after a barrier behind that.
DEVICE void copy_async(uint4* shared, const void* global, bool present) {
#ifdef __CUDACC__
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global),
                 "r"(present ? 16 : 0)
                 : "memory");
#else
    emulate::copy_async(shared, global, 16, present ? 16 : 0);
#endif
}

DEVICE void wait_for_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_all;" ::: "memory");
#else
    emulate::commit_copies();
    emulate::wait_copies(0);
#endif
}

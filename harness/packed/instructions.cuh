// The instructions that C++ has no words for. Tests run the kernels on the CPU over a stand-in
// for the language (`tests/emulation`), which has its own of these.
#pragma once

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

/// `d += a b` by the warp: `a` 16 x 16 and `b` 16 x 8 of F16, `d` 16 x 8 of F32. Of lane `l`,
/// with `g = l / 4` and `t = l % 4`: `a` holds rows g, g + 8, g, g + 8 at k = 2t, 2t, 2t + 8,
/// 2t + 8 (and the next), `b` column g at k = 2t and 2t + 8 (and the next), `d` rows g, g, g + 8,
/// g + 8 at columns 2t, 2t + 1, 2t, 2t + 1 (PTX ISA, "Matrix Fragments for mma.m16n8k16").
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulate::mma_m16n8k16(d, a, b);
#endif
}

/// The same of BF16.
__device__ __forceinline__ void multiply_add_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulate::mma_m16n8k16_bf16(d, a, b);
#endif
}

/// Loads what is read once and in order: does not displace what is in the first cache, and asks
/// the second for the whole line, whose rest is read next.
__device__ __forceinline__ uint4 load_stream(const uint4* p) {
#ifdef __CUDACC__
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
#else
    return *p;
#endif
}

__device__ __forceinline__ unsigned as_bits(half2 v) { return *reinterpret_cast<unsigned*>(&v); }
__device__ __forceinline__ half2 as_half2(unsigned v) { return *reinterpret_cast<half2*>(&v); }

/// `a & mask | base` in one instruction: the compiler makes two of it where both are constants.
__device__ __forceinline__ unsigned masked_on(unsigned a, unsigned mask, unsigned base) {
#ifdef __CUDACC__
    unsigned v;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(a), "r"(mask), "r"(base));
    return v;
#else
    return (a & mask) | base;
#endif
}

/// `a - b` and `a * b + c` on pairs of halves.
__device__ __forceinline__ unsigned subtract2(unsigned a, unsigned b) {
    return as_bits(__hsub2(as_half2(a), as_half2(b)));
}
__device__ __forceinline__ unsigned fused2(unsigned a, unsigned b, unsigned c) {
    return as_bits(__hfma2(as_half2(a), as_half2(b), as_half2(c)));
}

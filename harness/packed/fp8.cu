// `fp8-e4m3` and `fp8-e5m2`: bytes with an F32 scale per output. Codes that are no numbers were
// refused when the weight was made.

#include "linear.cuh"

/// What both have in common: a byte becomes the upper one of a half.
template <class F>
struct Fp8 {
    static constexpr int BITS = 8, PIECE = 16, WORDS = 4, RUN = 2, DEPTH = 4;
    static constexpr bool GROUPED = false, SPLIT = false;
    struct Offset {};
    static __device__ __forceinline__ void decode(unsigned (&p)[4], const unsigned (&words)[WORDS], int unit, const Offset&) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[i] = F::halves(__byte_perm(words[unit * 2 + i / 2], 0, i % 2 ? 0x3424 : 0x1404));
    }
    static __device__ __forceinline__ float scale(const Member& w, size_t row) {
        return static_cast<const float*>(w.scales)[row];
    }
    static __device__ __forceinline__ void load(float (&v)[8], const void* codes, size_t row, int unit, int k_in) {
        const unsigned char* from = static_cast<const unsigned char*>(codes) + row * k_in + unit * 8;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            unsigned code = unit * 8 + i < k_in ? from[i] : 0;
            v[i] = __low2float(as_half2(F::halves(code << 8))) * F::FACTOR;
        }
    }
};

/// Four bits of exponent where a half has five: shifted into place, a number is 2^-8 of itself,
/// subnormal ones included.
struct E4m3 : Fp8<E4m3> {
    static constexpr float FACTOR = 256.0f;
    static __device__ __forceinline__ unsigned halves(unsigned bytes) {
        return (bytes & 0x80008000) | (bytes & 0x7f007f00) >> 1;
    }
};

/// A half without its lower byte.
struct E5m2 : Fp8<E5m2> {
    static constexpr float FACTOR = 1.0f;
    static __device__ __forceinline__ unsigned halves(unsigned bytes) { return bytes; }
};

LINEAR_KERNELS(e4m3, E4m3, 3, 2, 2, 2)
DEQUANT_KERNEL(e4m3, E4m3)

LINEAR_KERNELS(e5m2, E5m2, 3, 2, 2, 2)
DEQUANT_KERNEL(e5m2, E5m2)

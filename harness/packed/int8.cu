// `int8`: two's complement bytes with a scale per output, or one for the matrix. With its sign
// bit turned a code is unsigned and 128 more, and read as `uint-grouped` reads its bytes.

#include "linear.cuh"

struct Int8 {
    static constexpr int BITS = 8, PIECE = 16, WORDS = 4, RUN = 2, DEPTH = 4;
    static constexpr bool GROUPED = false, SPLIT = false;
    static constexpr float FACTOR = 1.0f;
    struct Offset {};
    static __device__ __forceinline__ void decode(unsigned (&p)[4], const unsigned (&words)[WORDS], int unit, const Offset&) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned codes = words[unit * 2 + i / 2] ^ 0x80808080u;
            unsigned halves = __byte_perm(codes, 0x64646464, i % 2 ? 0x4342 : 0x4140);
            // 1024 + 128.
            p[i] = subtract2(halves, 0x64806480);
        }
    }
    static __device__ __forceinline__ float scale(const Member& w, size_t row) {
        return __half2float(static_cast<const half*>(w.scales)[w.scales_per_row ? row : 0]);
    }
    static __device__ __forceinline__ void load(float (&v)[8], const void* codes, size_t row, int unit, int k_in) {
        const signed char* from = static_cast<const signed char*>(codes) + row * k_in + unit * 8;
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = unit * 8 + i < k_in ? float(from[i]) : 0.0f;
    }
};

LINEAR_KERNELS(int8, Int8, 3, 2, 2, 2)
DEQUANT_KERNEL(int8, Int8)

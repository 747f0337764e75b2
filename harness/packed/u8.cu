// `uint-grouped` of 8 bits: a byte below 0x64 is the half 1024 + code.

#include "grouped.cuh"

struct U8 : Grouped<8> {
    static constexpr int PIECE = 16, WORDS = 4, RUN = 2, DEPTH = 2;
    static constexpr bool SPLIT = false;
    struct Offset {
        unsigned of_1;
    };
    static __device__ __forceinline__ Offset offset(unsigned zero) { return {pair_of(0x6400, zero, 0)}; }
    static __device__ __forceinline__ void decode(unsigned (&p)[4], const unsigned (&words)[WORDS], int unit, const Offset& offset) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned halves = __byte_perm(words[unit * 2 + i / 2], HALF_1024, i % 2 ? 0x7372 : 0x7170);
            p[i] = subtract2(halves, offset.of_1);
        }
    }
};

LINEAR_KERNELS(u8, U8, 3, 2, 2, 2)
DEQUANT_KERNEL(u8, U8)

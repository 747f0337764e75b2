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

extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 3) linear_u8_r8(LINEAR_PARAMETERS) {
    linear<U8, 8>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_u8_r16(LINEAR_PARAMETERS) {
    linear<U8, 16>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_u8_r32(LINEAR_PARAMETERS) {
    linear<U8, 32>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_u8_r64(LINEAR_PARAMETERS) {
    linear<U8, 64>(LINEAR_ARGUMENTS);
}
extern "C" __global__ void dequant_u8(DEQUANT_PARAMETERS) {
    dequantize<U8>(DEQUANT_ARGUMENTS);
}

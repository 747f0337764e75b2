// `uint-grouped` of 4 bits.
//
// Two masks and a shift take (0, 4), (1, 5), (2, 6), (3, 7) out of a word of eight codes, and one
// subtraction or fused multiplication removes what they stand on and the zero point: 9
// instructions for 8 weights.

#include "grouped.cuh"

struct U4 : Grouped<4> {
    static constexpr int PIECE = 16, WORDS = 4, RUN = 1, DEPTH = 2;
    static constexpr bool SPLIT = true;
    struct Offset {
        unsigned of_1, of_16;
    };
    static __device__ __forceinline__ Offset offset(unsigned zero) {
        return {pair_of(0x6400, zero, 0), pair_of(0xd400, zero, 4)};
    }
    static __device__ __forceinline__ void decode(unsigned (&p)[4], const unsigned (&words)[WORDS], int unit, const Offset& offset) {
        unsigned low = words[unit], high = low >> 8;
        p[0] = subtract2(masked_on(low, 0x000f000f, HALF_1024), offset.of_1);
        p[1] = fused2(masked_on(low, 0x00f000f0, HALF_1024), HALF_16TH, offset.of_16);
        p[2] = subtract2(masked_on(high, 0x000f000f, HALF_1024), offset.of_1);
        p[3] = fused2(masked_on(high, 0x00f000f0, HALF_1024), HALF_16TH, offset.of_16);
    }
};

LINEAR_KERNELS(u4, U4, 3, 2, 2, 2)
DEQUANT_KERNEL(u4, U4)

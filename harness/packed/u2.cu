// `uint-grouped` of 2 bits.
//
// A unit of eight codes is half a word, of which a byte goes into each half of a pair: (0, 4),
// (1, 5), (2, 6), (3, 7) by four masks, without a shift.

#include "grouped.cuh"

struct U2 : Grouped<2> {
    static constexpr int PIECE = 16, WORDS = 4, RUN = 1, DEPTH = 2;
    static constexpr bool SPLIT = true;
    struct Offset {
        unsigned of_1, of_4, of_16, of_64;
    };
    static __device__ __forceinline__ Offset offset(unsigned zero) {
        return {pair_of(0x6400, zero, 0), pair_of(0xdc00, zero, 2), pair_of(0xd400, zero, 4), pair_of(0xcc00, zero, 6)};
    }
    static __device__ __forceinline__ void decode(unsigned (&p)[4], const unsigned (&words)[WORDS], int unit, const Offset& offset) {
        unsigned bytes = __byte_perm(words[unit / 2], 0, unit % 2 ? 0x4342 : 0x4140);
        p[0] = subtract2(masked_on(bytes, 0x00030003, HALF_1024), offset.of_1);
        p[1] = fused2(masked_on(bytes, 0x000c000c, HALF_1024), HALF_QUARTER, offset.of_4);
        p[2] = fused2(masked_on(bytes, 0x00300030, HALF_1024), HALF_16TH, offset.of_16);
        p[3] = fused2(masked_on(bytes, 0x00c000c0, HALF_1024), HALF_64TH, offset.of_64);
    }
};

LINEAR_KERNELS(u2, U2, 2, 2, 1, 1)
DEQUANT_KERNEL(u2, U2)

// `uint-grouped` of 3 bits.
//
// A lane's piece is 32 codes, three words. Of the 24 bits of a unit, twelve go into each half of
// a pair, and masks take out (0, 4), (1, 5), (2, 6), (3, 7).

#include "grouped.cuh"

struct U3 : Grouped<3> {
    static constexpr int PIECE = 12, WORDS = 3, RUN = 1, DEPTH = 2;
    static constexpr bool SPLIT = true;
    struct Offset {
        unsigned of_1, of_8, of_64;
    };
    static __device__ __forceinline__ Offset offset(unsigned zero) {
        return {pair_of(0x6400, zero, 0), pair_of(0xd800, zero, 3), pair_of(0xcc00, zero, 6)};
    }
    static __device__ __forceinline__ void decode(unsigned (&p)[4], const unsigned (&words)[WORDS], int unit, const Offset& offset) {
        unsigned word = unit * 24 / 32, next = word + 1 < WORDS ? word + 1 : word;
        unsigned codes = __funnelshift_r(words[word], words[next], unit * 24 % 32);
        unsigned halves = (codes & 0x00000fff) | (codes << 4 & 0x0fff0000);
        p[0] = subtract2(masked_on(halves, 0x00070007, HALF_1024), offset.of_1);
        p[1] = fused2(masked_on(halves, 0x00380038, HALF_1024), HALF_8TH, offset.of_8);
        p[2] = fused2(masked_on(halves, 0x01c001c0, HALF_1024), HALF_64TH, offset.of_64);
        p[3] = subtract2(masked_on(halves >> 9, 0x00070007, HALF_1024), offset.of_1);
    }
};

LINEAR_KERNELS(u3, U3, 3, 2, 2, 2)
DEQUANT_KERNEL(u3, U3)

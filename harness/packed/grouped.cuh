// What `uint-grouped` has in common at every width: eight codes are BITS bytes, lowest bits
// first, and so are zero points, in one stream of all rows.
#pragma once

#include "linear.cuh"

template <int WIDTH>
struct Grouped {
    static constexpr int BITS = WIDTH;
    static constexpr bool GROUPED = true;

    /// The zero point of group `i`, as bytes that are not looked at yet: three bits can lie in two.
    static __device__ __forceinline__ void load_zero(unsigned (&into)[2], const unsigned char* zeros, unsigned i) {
        unsigned bit = i * BITS;
        into[0] = __ldg(zeros + bit / 8);
        if constexpr (BITS == 3) into[1] = __ldg(zeros + (bit + BITS - 1) / 8);
    }
    static __device__ __forceinline__ unsigned zero(const unsigned (&bytes)[2], unsigned shift) {
        unsigned both = bytes[0];
        if constexpr (BITS == 3) both |= bytes[1] << 8;
        return both >> shift & ((1u << BITS) - 1);
    }
    static __device__ __forceinline__ unsigned zero_at(const unsigned char* zeros, size_t i) {
        unsigned bytes[2];
        load_zero(bytes, zeros, unsigned(i));
        return zero(bytes, unsigned(i) * BITS % 8);
    }

    /// Eight codes; a row ends with a whole unit.
    static __device__ __forceinline__ void load(float (&v)[8], const void* codes, size_t row, int unit, int k_in) {
        size_t i = row * ((k_in + 7) / 8) + unit;
        const unsigned char* from = static_cast<const unsigned char*>(codes) + i * BITS;
        // Units of a power of two are aligned.
        unsigned low, high = 0;
        if constexpr (BITS == 2) {
            low = *reinterpret_cast<const unsigned short*>(from);
        } else if constexpr (BITS == 3) {
            low = from[0] | from[1] << 8 | from[2] << 16;
        } else {
            low = *reinterpret_cast<const unsigned*>(from);
            if constexpr (BITS == 8) high = *reinterpret_cast<const unsigned*>(from + 4);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            unsigned word = BITS == 8 && j >= 4 ? high : low;
            v[j] = float(word >> (BITS * j & 31) & ((1u << BITS) - 1));
        }
    }
};

/// 1024 + code is a half of which the code is the lowest bits; a code that lies `2^s` higher
/// counts as often, and one fused multiplication by `2^-s` takes it down, exactly.
constexpr unsigned HALF_1024 = 0x64006400;
constexpr unsigned HALF_QUARTER = 0x34003400;
constexpr unsigned HALF_8TH = 0x30003000;
constexpr unsigned HALF_16TH = 0x2c002c00;
constexpr unsigned HALF_64TH = 0x24002400;

/// A pair of the half that has the bits `base | zero << shift`: `base` is a power of two, of whose
/// last place the zero point is a multiple.
__device__ __forceinline__ unsigned pair_of(unsigned base, unsigned zero, int shift) {
    return (base | zero << shift) * 0x10001u;
}

// Contents for benchmarks: random ones, because arithmetic on zeros draws less power and runs
// faster. Every value depends on its index and the seed alone, not on the grid.
#include "gpu.cuh"

// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), by index.
DEVICE unsigned long long random_bits(unsigned long long seed, unsigned long long index) {
    unsigned long long z = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

DEVICE long long first_index() { return blockIdx.x * (long long)blockDim.x + threadIdx.x; }
DEVICE long long index_stride() { return gridDim.x * (long long)blockDim.x; }

// `bytes` uniform random bytes; p is aligned to 8. Any grid and block.
extern "C" __global__ void fill_random(unsigned char* p, long long bytes,
                                       unsigned long long seed) {
    for (long long i = first_index(); 8 * i < bytes; i += index_stride()) {
        const unsigned long long bits = random_bits(seed, i);
        if (8 * i + 8 <= bytes) {
            reinterpret_cast<unsigned long long*>(p)[i] = bits;
        } else {
            for (int j = 0; 8 * i + j < bytes; j++) p[8 * i + j] = (unsigned char)(bits >> 8 * j);
        }
    }
}

// n normal values F16 with mean 0 and this standard deviation (Box and Muller); p is aligned to
// 4. Any grid and block.
extern "C" __global__ void fill_normal_f16(half* p, long long n, float deviation,
                                           unsigned long long seed) {
    for (long long i = first_index(); 2 * i < n; i += index_stride()) {
        const unsigned long long bits = random_bits(seed, i);
        // (0, 1] and [0, 1), 24 bits each: what F32 holds exactly.
        const float u = float((unsigned(bits) >> 8) + 1) * 0x1p-24f;
        const float angle = float(unsigned(bits >> 40)) * (0x1p-24f * 6.2831853f);
        const float radius = deviation * sqrtf(-2.0f * logf(u));
        const float x = radius * cosf(angle), y = radius * sinf(angle);
        if (2 * i + 1 < n) {
            reinterpret_cast<unsigned*>(p)[i] = pack(x, y);
        } else {
            p[2 * i] = __float2half_rn(x);
        }
    }
}

DEVICE void set(half& x, float value) { x = __float2half_rn(value); }
DEVICE void set(float& x, float value) { x = value; }

template <typename T> DEVICE void fill_constant(T* p, long long n, float value) {
    const float v[8] = {value, value, value, value, value, value, value, value};
    for (long long i = first_index(); i < n / 8; i += index_stride()) store8(p + 8 * i, v);
    for (long long i = n / 8 * 8 + first_index(); i < n; i += index_stride()) set(p[i], value);
}

// n times `value`; p is aligned to 16. Any grid and block.
extern "C" __global__ void fill_constant_f16(half* p, long long n, float value) {
    fill_constant(p, n, value);
}

extern "C" __global__ void fill_constant_f32(float* p, long long n, float value) {
    fill_constant(p, n, value);
}

// What follows makes the same bytes as harness/packed/random.rs, draw by draw: 64 random bits are
// four draws of 16. A thread makes what its bits are enough for.

// `bytes` random codes. A draw is spread evenly over `levels` numbers; the code is the number
// itself below `below`, and counts on from `resume` after that. Of each row of row_bytes bytes,
// bits from row_bits on are zero. p is aligned to 4. Any grid and block.
extern "C" __global__ void fill_codes(unsigned char* p, long long bytes, unsigned long long seed,
                                      unsigned levels, unsigned below, unsigned resume,
                                      long long row_bytes, long long row_bits) {
    for (long long i = first_index(); 4 * i < bytes; i += index_stride()) {
        const unsigned long long bits = random_bits(seed, i);
        long long column = 4 * i % row_bytes;
        unsigned word = 0;
        for (int j = 0; j < 4; j++) {
            unsigned code = (unsigned(bits >> 16 * j) & 0xffff) * levels >> 16;
            if (code >= below) code += resume - below;
            const long long left = row_bits - 8 * column;
            if (left < 8) code &= left > 0 ? (1u << left) - 1 : 0;
            word |= (code & 0xff) << 8 * j;
            if (++column == row_bytes) column = 0;
        }
        if (4 * i + 4 <= bytes) {
            reinterpret_cast<unsigned*>(p)[i] = word;
        } else {
            for (int j = 0; 4 * i + j < bytes; j++) p[4 * i + j] = (unsigned char)(word >> 8 * j);
        }
    }
}

// A stream of `count` zero points of `bits` bits, lowest bits first: 2^(bits - 1), less one for one
// of every two neighbours, which a coin chooses. p [ceil(count * bits / 8)]. Any grid and block.
extern "C" __global__ void fill_middle(unsigned char* p, long long count, int bits,
                                       unsigned long long seed) {
    for (long long i = first_index(); 8 * i < count * bits; i += index_stride()) {
        unsigned byte = 0;
        for (int b = 0; b < 8; b++) {
            const long long at = 8 * i + b, element = at / bits;
            if (element >= count) break;
            const long long pair = element / 2;
            const unsigned coin = unsigned(random_bits(seed, pair / 64) >> pair % 64) ^ element;
            byte |= (((1u << (bits - 1)) - (coin & 1)) >> at % bits & 1) << b;
        }
        p[i] = (unsigned char)byte;
    }
}

template <typename T>
DEVICE void fill_picks(T* p, const T* levels, long long n, unsigned long long seed) {
    for (long long i = first_index(); 4 * i < n; i += index_stride()) {
        const unsigned long long bits = random_bits(seed, i);
        for (int j = 0; j < 4 && 4 * i + j < n; j++) p[4 * i + j] = levels[bits >> 16 * j & 4095];
    }
}

// n picks from levels [4096], numbers of 16 or 32 bits. Any grid and block.
extern "C" __global__ void fill_picks_16(unsigned short* p, const unsigned short* levels,
                                         long long n, unsigned long long seed) {
    fill_picks(p, levels, n, seed);
}

extern "C" __global__ void fill_picks_32(unsigned* p, const unsigned* levels, long long n,
                                         unsigned long long seed) {
    fill_picks(p, levels, n, seed);
}

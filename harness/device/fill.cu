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

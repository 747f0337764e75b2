// Activations in 8 bits, and back: what stands before and behind a product of 8-bit codes.
#include "../device/gpu.cuh"
#include "linear.cuh"

struct E4m3 {
    using Code = unsigned char;
    static constexpr float TOP = 448.0f;

    // Nearest, ties to even, saturating (OCP OFP8 1.0). In integers, so that every card gives the
    // bytes that the CPU gives: the conversion instruction exists from sm_89 on only.
    DEVICE static Code encode(float x) {
        const unsigned bits = __float_as_uint(x) & 0x7fffffffu;
        const unsigned sign = __float_as_uint(x) >> 24 & 0x80;
        unsigned code;
        if (bits < 121u << 23) { // below 2^-6 codes are multiples of 2^-9
            code = (unsigned)rintf(__uint_as_float(bits) * 512.0f);
        } else { // a carry out of the mantissa is the next power of two
            code = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120u << 3);
        }
        return Code(sign | min(code, 0x7eu));
    }
};

struct Int8 {
    using Code = signed char;
    static constexpr float TOP = 127.0f;

    // Nearest, ties to even.
    DEVICE static Code encode(float x) { return Code(fminf(fmaxf(rintf(x), -TOP), TOP)); }
};

struct MaxBits {
    DEVICE unsigned operator()(unsigned a, unsigned b) const { return a > b ? a : b; }
};

// x F16 [rows, k] -> codes [rows, k], scales F32 [rows]: x ~ code * scale.
//
// scale = largest magnitude of the row / Format::TOP, and 1 for a row of zeros; codes are those
// nearest to x / scale. A row that holds a NaN or an infinity: codes 0 and scale NaN, so that
// every output made of it is NaN. Grid: rows; block: whole warps (256).
template <typename Format>
DEVICE void quantize_row(const half* x, typename Format::Code* codes, float* scales, int k) {
    const long long row = blockIdx.x;
    x += row * k;
    codes += row * k;
    const bool wide = k % 8 == 0;
    // Without their sign, F16 order as their bits do, infinity and NaN last.
    unsigned largest = 0;
    if (wide) {
        for (int i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
            const uint4 v = *reinterpret_cast<const uint4*>(x + i);
            const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                largest = max(largest, max(words[j] & 0x7fff, words[j] >> 16 & 0x7fff));
            }
        }
    } else {
        for (int i = threadIdx.x; i < k; i += blockDim.x) {
            largest = max(largest, unsigned(__half_as_ushort(x[i]) & 0x7fff));
        }
    }
    largest = block_reduce(largest, MaxBits());
    const bool finite = largest < 0x7c00;
    const float magnitude = __half2float(__ushort_as_half((unsigned short)largest));
    const float scale = largest == 0 ? 1.0f : magnitude / Format::TOP;
    if (threadIdx.x == 0) scales[row] = finite ? scale : not_a_number();
    const auto encode = [&](float v) {
        return finite ? Format::encode(v / scale) : typename Format::Code(0);
    };
    if (wide) {
        for (int i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
            float v[8];
            load8(x + i, v);
            unsigned words[2] = {0, 0};
#pragma unroll
            for (int j = 0; j < 8; j++) {
                words[j / 4] |= unsigned((unsigned char)encode(v[j])) << (8 * (j % 4));
            }
            *reinterpret_cast<uint2*>(codes + i) = make_uint2(words[0], words[1]);
        }
    } else {
        for (int i = threadIdx.x; i < k; i += blockDim.x) codes[i] = encode(__half2float(x[i]));
    }
}

extern "C" __global__ void quantize_rows_e4m3(const half* __restrict__ x,
                                              unsigned char* __restrict__ codes,
                                              float* __restrict__ scales, int rows, int k) {
    if (blockIdx.x < (unsigned)rows) quantize_row<E4m3>(x, codes, scales, k);
}

extern "C" __global__ void quantize_rows_int8(const half* __restrict__ x,
                                              signed char* __restrict__ codes,
                                              float* __restrict__ scales, int rows, int k) {
    if (blockIdx.x < (unsigned)rows) quantize_row<Int8>(x, codes, scales, k);
}

// Outputs that a thread makes of one row.
constexpr int RESCALE_OUTPUTS = 4;

// acc [rows, n_out] (sums of products of codes), x_scales F32 [rows], the scales of w [n_out] or,
// where scales_per_row is 0, [1] -> w.y [rows, n_out]:
// acc * x_scale * scale + bias, stored as F16 (output 0), added to F32 (1) or stored as F32 (2).
//
// Grid: (rows, ceil(n_out / (RESCALE_OUTPUTS * block))); any block (256).
template <typename Acc, typename Scale>
DEVICE void rescale(const Acc* acc, const float* x_scales, const Member& w, int output) {
    const long long row = blockIdx.x;
    const int n = w.n_out;
    const int first = RESCALE_OUTPUTS * (blockIdx.y * blockDim.x + threadIdx.x);
    const float x_scale = x_scales[row];
    const Scale* scales = static_cast<const Scale*>(w.scales);
    const long long at = row * n;
    // Wide where rows start on whole vectors.
    const bool whole = n % RESCALE_OUTPUTS == 0;
    Acc sums[RESCALE_OUTPUTS];
    float y[RESCALE_OUTPUTS];
    if (first >= n) return;
    if (whole) {
        struct alignas(16) Four {
            Acc sums[RESCALE_OUTPUTS];
        };
        const Four four = *reinterpret_cast<const Four*>(acc + at + first);
#pragma unroll
        for (int j = 0; j < RESCALE_OUTPUTS; j++) sums[j] = four.sums[j];
    } else {
#pragma unroll
        for (int j = 0; j < RESCALE_OUTPUTS; j++) sums[j] = first + j < n ? acc[at + first + j] : 0;
    }
#pragma unroll
    for (int j = 0; j < RESCALE_OUTPUTS; j++) {
        const int i = min(first + j, n - 1);
        const float scale = static_cast<float>(scales[w.scales_per_row == 0 ? 0 : i]);
        y[j] = float(sums[j]) * x_scale * scale;
        if (w.bias != nullptr) y[j] += __half2float(w.bias[i]);
    }
    if (output == 0) {
        half* to = static_cast<half*>(w.y) + at + first;
        if (whole) {
            *reinterpret_cast<uint2*>(to) = make_uint2(pack(y[0], y[1]), pack(y[2], y[3]));
        } else {
#pragma unroll
            for (int j = 0; j < RESCALE_OUTPUTS; j++) {
                if (first + j < n) to[j] = __float2half_rn(y[j]);
            }
        }
        return;
    }
    float* to = static_cast<float*>(w.y) + at + first;
    if (whole) {
        float4 v = make_float4(y[0], y[1], y[2], y[3]);
        if (output == 1) {
            const float4 old = *reinterpret_cast<const float4*>(to);
            v = make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w);
        }
        *reinterpret_cast<float4*>(to) = v;
        return;
    }
#pragma unroll
    for (int j = 0; j < RESCALE_OUTPUTS; j++) {
        if (first + j < n) to[j] = output == 1 ? to[j] + y[j] : y[j];
    }
}

// Of an FP8 product: weight scales F32.
extern "C" __global__ void rescale_f32(const float* acc, const float* x_scales, Member w, int rows,
                                       int output) {
    if (blockIdx.x < (unsigned)rows) rescale<float, float>(acc, x_scales, w, output);
}

// Of an INT8 product: weight scales F16.
extern "C" __global__ void rescale_i32(const int* acc, const float* x_scales, Member w, int rows,
                                       int output) {
    if (blockIdx.x < (unsigned)rows) rescale<int, half>(acc, x_scales, w, output);
}

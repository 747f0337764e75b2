// Runs CUDA kernels on the CPU, to test them where there is no GPU: what kernels use of the
// language, of `cuda_fp16.h` and of the machine, over fibers (one per CUDA thread, one block at a
// time; see emulate.cpp). Included before the .cu file, whose own CUDA includes and inline PTX
// stand behind `#ifdef __CUDACC__`.
//
// Static shared memory is thread-local storage of the library, because that can be found and
// poisoned as a whole, templates included. Dynamic shared memory is `emulate::dynamic_shared()`.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(4) char4 { signed char x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }
inline char4 make_char4(signed char x, signed char y, signed char z, signed char w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulate {

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

/// Half of these bits as a float: exact. Shifting the exponent into place leaves it too small by
/// 2^112, subnormals included.
inline float half_to_float(uint16_t half) {
    float magnitude = bits<float>(uint32_t(half & 0x7fff) << 13) * 0x1p112f;
    if ((half & 0x7c00) == 0x7c00) {
        magnitude = bits<float>(0x7f800000u | uint32_t(half & 0x3ff) << 13);
    }
    return bits<float>(bits<uint32_t>(magnitude) | uint32_t(half & 0x8000) << 16);
}

/// The half nearest to a float, ties to even, overflow to infinity.
inline uint16_t float_to_half(float value) {
    uint32_t word = bits<uint32_t>(value), sign = word >> 16 & 0x8000;
    word &= 0x7fffffff;
    if (word > 0x7f800000) return uint16_t(sign | 0x7fff);
    if (word >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (word < 0x38800000) {
        // Subnormal: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded by the adder.
        return uint16_t(sign | (bits<uint32_t>(bits<float>(word) + 0.5f) - 0x3f000000));
    }
    return uint16_t(sign | ((word - 0x38000000 + 0xfff + (word >> 13 & 1)) >> 13));
}

/// The half nearest to a double, rounded once: by way of a float that is odd where it is inexact.
inline uint16_t double_to_half(double value) {
    float near = float(value);
    if (double(near) != value && std::isfinite(near)) {
        uint32_t word = bits<uint32_t>(near);
        if (std::fabs(double(near)) > std::fabs(value)) word -= 1;
        near = bits<float>(word | 1);
    }
    return float_to_half(near);
}

/// Ends the launch with this error; does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// What one lane brings to an operation of its warp and takes from it, by lane number; null for
/// lanes that do not take part.
using Lanes = void* const*;
using Combine = void (*)(Lanes lanes, unsigned mask);

/// Waits until the lanes of `mask` are here too; the last one runs `combine` for all.
void collective(const char* name, unsigned mask, void* data, Combine combine, const char* file, int line);
void barrier(const char* file, int line);
unsigned lane();
void* dynamic_shared();

void copy_async(void* shared, const void* global, unsigned bytes, unsigned valid);
void commit_copies();
void wait_copies(unsigned groups_left);

template <class F>
struct Thunk;

/// Kernels by name. The constructor runs when the library is loaded.
struct Kernel {
    using Call = void (*)(void* function, void** arguments);
    const char* name;
    void* function;
    Call call;
    int parameters;
    Kernel* next;
    Kernel(const char* name, void* function, Call call, int parameters);
    template <class... P>
    Kernel(const char* name, void (*kernel)(P...))
        : Kernel(name, reinterpret_cast<void*>(kernel), &Thunk<void(P...)>::call, sizeof...(P)) {}
};

template <class... P>
struct Thunk<void(P...)> {
    template <size_t... I>
    static void call(void* function, void** arguments, std::index_sequence<I...>) {
        (void)arguments;
        reinterpret_cast<void (*)(P...)>(function)(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
    }
    static void call(void* function, void** arguments) {
        call(function, arguments, std::index_sequence_for<P...>{});
    }
};

template <class T>
struct Shuffle {
    T in, out;
    unsigned source;
    static void combine(Lanes lanes, unsigned mask) {
        for (unsigned lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            Shuffle* own = static_cast<Shuffle*>(lanes[lane]);
            if (!(mask >> own->source & 1)) fail("lane %u reads lane %u, which takes no part in the shuffle", lane, own->source);
            own->out = static_cast<Shuffle*>(lanes[own->source])->in;
        }
    }
};

template <class T>
inline T shuffle(const char* name, unsigned mask, T value, unsigned source, const char* file, int line) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "");
    Shuffle<T> own{value, value, source};
    collective(name, mask, &own, &Shuffle<T>::combine, file, line);
    return own.out;
}

struct Vote {
    unsigned in, out;
    static void combine(Lanes lanes, unsigned mask) {
        unsigned votes = 0;
        for (unsigned lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1 && static_cast<Vote*>(lanes[lane])->in) votes |= 1u << lane;
        for (unsigned lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) static_cast<Vote*>(lanes[lane])->out = votes;
    }
};

inline unsigned vote(const char* name, unsigned mask, bool predicate, const char* file, int line) {
    Vote own{predicate, 0};
    collective(name, mask, &own, &Vote::combine, file, line);
    return own.out;
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32`: `d += a b`, fragments as in the PTX manual.
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
/// The same of BF16.
void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
/// `ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16`: each lane gives the address of one row.
void ldmatrix_x4(unsigned (&d)[4], const void* row, bool transposed);
void ldmatrix_x2(unsigned (&d)[2], const void* row, bool transposed);

}  // namespace emulate

#define EMULATE_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATE_KERNEL(name) static emulate::Kernel emulate_kernel_##name(#name, name);

// Barriers and exchange within a warp.
inline void __syncthreads(EMULATE_SITE) { emulate::barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATE_SITE) {
    emulate::vote("__syncwarp", mask, false, file, line);
}
inline unsigned __ballot_sync(unsigned mask, bool p, EMULATE_SITE) { return emulate::vote("__ballot_sync", mask, p, file, line); }
inline int __any_sync(unsigned mask, bool p, EMULATE_SITE) { return emulate::vote("__any_sync", mask, p, file, line) != 0; }
inline int __all_sync(unsigned mask, bool p, EMULATE_SITE) { return emulate::vote("__all_sync", mask, p, file, line) == mask; }
template <class T>
inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMULATE_SITE) {
    unsigned first = emulate::lane() & ~(width - 1);
    return emulate::shuffle("__shfl_sync", mask, v, first | (source & (width - 1)), file, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMULATE_SITE) {
    unsigned own = emulate::lane(), source = own ^ bits;
    if ((source & ~(width - 1)) > (own & ~(width - 1))) source = own;
    return emulate::shuffle("__shfl_xor_sync", mask, v, source, file, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATE_SITE) {
    unsigned own = emulate::lane(), source = own + delta;
    if ((own & (width - 1)) + delta >= unsigned(width)) source = own;
    return emulate::shuffle("__shfl_down_sync", mask, v, source, file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATE_SITE) {
    unsigned own = emulate::lane(), source = own - delta;
    if ((own & (width - 1)) < delta) source = own;
    return emulate::shuffle("__shfl_up_sync", mask, v, source, file, line);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Atomics: fibers only change at the operations above.
template <class T>
inline T atomicAdd(T* p, T v) { T old = *p; *p = old + v; return old; }
template <class T>
inline T atomicMax(T* p, T v) { T old = *p; if (v > old) *p = v; return old; }
template <class T>
inline T atomicMin(T* p, T v) { T old = *p; if (v < old) *p = v; return old; }
template <class T>
inline T atomicExch(T* p, T v) { T old = *p; *p = v; return old; }
template <class T>
inline T atomicCAS(T* p, T compare, T v) { T old = *p; if (old == compare) *p = v; return old; }
inline unsigned atomicInc(unsigned* p, unsigned last) { unsigned old = *p; *p = old >= last ? 0 : old + 1; return old; }

// Loads and stores with a hint.
template <class T>
inline T __ldg(const T* p) { return *p; }
template <class T>
inline T __ldcs(const T* p) { return *p; }
template <class T>
inline T __ldcg(const T* p) { return *p; }
template <class T>
inline T __ldca(const T* p) { return *p; }
template <class T>
inline void __stcs(T* p, T v) { *p = v; }
template <class T>
inline void __stcg(T* p, T v) { *p = v; }

// Numbers and bits.
inline unsigned __float_as_uint(float v) { return emulate::bits<unsigned>(v); }
inline int __float_as_int(float v) { return emulate::bits<int>(v); }
inline float __uint_as_float(unsigned v) { return emulate::bits<float>(v); }
inline float __int_as_float(int v) { return emulate::bits<float>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned s = selector >> 4 * i;
        unsigned byte = bytes >> 8 * (s & 7) & 0xff;
        if (s & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __exp2f(float v) { return std::exp2(v); }
inline float __logf(float v) { return std::log(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline int __float2int_rn(float v) { return int(std::nearbyint(v)); }
inline int __float2int_rz(float v) { return int(v); }
inline unsigned __float2uint_rz(float v) { return unsigned(v); }
inline float __int2float_rn(int v) { return float(v); }
inline float __uint2float_rn(unsigned v) { return float(v); }
// Of a number and NaN, the number.
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) { using T = std::common_type_t<A, B>; return T(b) < T(a) || T(a) != T(a) ? T(b) : T(a); }
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) { using T = std::common_type_t<A, B>; return T(a) < T(b) || T(a) != T(a) ? T(b) : T(a); }
using std::isnan, std::isinf, std::isfinite;

// Half precision. Sums, differences and products of halves are exact enough in a float to be
// rounded once more without harm; a fused product needs a double.
struct alignas(2) __half {
    uint16_t word;
    __half() = default;
    __half(float v) : word(emulate::float_to_half(v)) {}
    operator float() const { return emulate::half_to_float(word); }
};
using half = __half;
struct alignas(4) __half2 {
    half x, y;
};
using half2 = __half2;
inline half __ushort_as_half(unsigned short v) { half h; h.word = v; return h; }
inline unsigned short __half_as_ushort(half v) { return v.word; }
inline half __float2half(float v) { return half(v); }
inline half __float2half_rn(float v) { return half(v); }
inline float __half2float(half v) { return float(v); }
inline half __hadd(half a, half b) { return float(a) + float(b); }
inline half __hsub(half a, half b) { return float(a) - float(b); }
inline half __hmul(half a, half b) { return float(a) * float(b); }
inline half __hdiv(half a, half b) { return __ushort_as_half(emulate::double_to_half(double(float(a)) / float(b))); }
inline half __hfma(half a, half b, half c) {
    return __ushort_as_half(emulate::double_to_half(double(float(a)) * float(b) + float(c)));
}
inline half __hneg(half a) { return __ushort_as_half(a.word ^ 0x8000); }
inline half __habs(half a) { return __ushort_as_half(a.word & 0x7fff); }
inline bool __hisnan(half a) { return (a.word & 0x7fff) > 0x7c00; }
inline half operator+(half a, half b) { return __hadd(a, b); }
inline half operator-(half a, half b) { return __hsub(a, b); }
inline half operator*(half a, half b) { return __hmul(a, b); }
inline half operator/(half a, half b) { return __hdiv(a, b); }
inline half2 make_half2(half x, half y) { return {x, y}; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline half2 __half2half2(half v) { return {v, v}; }
inline half2 __float2half2_rn(float v) { return {half(v), half(v)}; }
inline half2 __floats2half2_rn(float x, float y) { return {half(x), half(y)}; }
inline half2 __float22half2_rn(float2 v) { return {half(v.x), half(v.y)}; }
inline float2 __half22float2(half2 v) { return {float(v.x), float(v.y)}; }
inline half __low2half(half2 v) { return v.x; }
inline half __high2half(half2 v) { return v.y; }
inline float __low2float(half2 v) { return v.x; }
inline float __high2float(half2 v) { return v.y; }
inline half2 __hadd2(half2 a, half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline half2 __hsub2(half2 a, half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline half2 __hmul2(half2 a, half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline half2 __hfma2(half2 a, half2 b, half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

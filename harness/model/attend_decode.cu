// Attention of one new token per sequence: reading the cache is all the work, so each of its
// bytes is read once, for all query heads that share its KV head.
//
// The context is cut into `splits` slices, one per block, so that a single sequence fills the
// card; `attend_combine` joins their results (arXiv 2311.01282 describes the scheme). Softmax is
// online (arXiv 2205.14135).
//
//   q        F16 [batch, heads, head_dim], rotated
//   kc, vc   [batch, capacity, kv_heads, head_dim], F16 or F32
//   partial  F32 [batch, heads, splits, head_dim + 2]: sum of weight * value; the largest of
//            score * scale * log2(e); sum of weights 2^(that - largest). A slice without keys
//            has largest = -inf and zeros.
//   out      F16 [batch, heads, head_dim]
//
// Grid of attend_decode_*: (splits, kv_heads, batch), block DECODE_THREADS. The context is
// *position + 1 keys, but never more than `capacity`. heads is a multiple of kv_heads, scale > 0.
// head_dim is part of the name: 16, 32, 64, 80, 96, 128, 256.
#include "../packed/instructions.cuh"
#include "attend_f32.cuh"
#include "attention.cuh"

constexpr int DECODE_WARPS = 4;
constexpr int DECODE_THREADS = 32 * DECODE_WARPS;
// Keys of one step of a warp, and query heads of one pass: the shape of the products.
constexpr int DECODE_KEYS = 16;
constexpr int DECODE_HEADS = 8;

// The keys of one block.
struct Slice {
    unsigned begin, end;

    DEVICE Slice(unsigned position, int capacity, int splits) {
        const unsigned context = position < (unsigned)capacity ? position + 1 : capacity;
        unsigned length = (context + splits - 1) / splits;
        length = (length + DECODE_KEYS - 1) / DECODE_KEYS * DECODE_KEYS;
        begin = blockIdx.x * length; // not before `end` where no keys are left
        end = min(begin + length, context);
    }
};

// How LANES lanes share a row of D halves: each takes 16 bytes of every LANES * 8 channels, then
// 8 and 4 bytes of what is left, so that a row is read in whole sectors whatever D.
template <int D, int LANES> struct Share {
    static constexpr int WORDS = D / LANES / 2;
    static constexpr int WIDE = LANES * 8;
    static constexpr int WHOLE = D / WIDE * 4; // words that come in sixteen bytes
    static constexpr bool HALF = D % WIDE >= WIDE / 2;
    static constexpr bool QUARTER = D % (WIDE / 2) >= WIDE / 4;

    // The first of the two channels in this word of this lane.
    DEVICE static int channel(int word, int lane) {
        if (word < WHOLE) return word / 4 * WIDE + 8 * lane + 2 * (word % 4);
        if (HALF && word < WHOLE + 2) return D / WIDE * WIDE + 4 * lane + 2 * (word - WHOLE);
        return D - WIDE / 4 + 2 * lane;
    }

    DEVICE static void load(const half* row, int lane, unsigned (&words)[WORDS]) {
#pragma unroll
        for (int w = 0; w < WHOLE; w += 4) {
            const uint4 x = *reinterpret_cast<const uint4*>(row + channel(w, lane));
            words[w] = x.x, words[w + 1] = x.y, words[w + 2] = x.z, words[w + 3] = x.w;
        }
        if constexpr (HALF) {
            const uint2 x = *reinterpret_cast<const uint2*>(row + channel(WHOLE, lane));
            words[WHOLE] = x.x, words[WHOLE + 1] = x.y;
        }
        if constexpr (QUARTER) {
            const int last = WORDS - 1;
            words[last] = *reinterpret_cast<const unsigned*>(row + channel(last, lane));
        }
    }

    // Zeros where not `present`: what lies behind the context may be anything, and 0 * NaN is NaN.
    DEVICE static void load(const half* row, int lane, bool present, unsigned (&words)[WORDS]) {
        if (present) {
            load(row, lane, words);
        } else {
#pragma unroll
            for (int w = 0; w < WORDS; w++) words[w] = 0;
        }
    }
};

// Two products on tensor cores per step of 16 keys, fed from global memory without a detour:
//   scores [16 heads, 8 keys] = q [16, D] kT: the order of channels within a dot product is free,
//     so lane t of a key's four lanes reads 16 contiguous bytes, and q is read in the same order.
//     Heads 8 to 15 do not exist: their registers are zeros.
//   outT [16 channels, 8 heads] = vT [16, 16 keys] weightsT: the scores' registers are already in
//     the place of weightsT; lane g takes contiguous channels of four keys and pairs up keys.
// A warp has 2 * 16 * D * 2 bytes in flight (8 KiB for D = 128): the loads of the next step are
// issued as soon as this step's registers are free. Three or four blocks per multiprocessor give
// about 100 KiB, several times what latency * bandwidth asks for on an H100.
template <int D>
DEVICE void attend_decode_f16(const half* q, const half* kc, const half* vc, float* partial,
                              const unsigned* position, int heads, int kv_heads, int capacity,
                              int splits, float scale) {
    using Key = Share<D, 4>;
    using Value = Share<D, 8>;
    // Two rows of q start 64 bytes apart modulo 128, so that 8 lanes meet no bank conflict.
    constexpr int PITCH = D % 64 == 0 ? D + 32 : D;
    __shared__ __align__(16) half queries[DECODE_HEADS * PITCH];
    __shared__ float warp_out[DECODE_WARPS][DECODE_HEADS][D];
    __shared__ float warp_max[DECODE_WARPS][DECODE_HEADS];
    __shared__ float warp_sum[DECODE_WARPS][DECODE_HEADS];

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int g = lane / 4, t = lane % 4;
    const int kv_head = blockIdx.y, sequence = blockIdx.z;
    const int group = heads / kv_heads;
    const Slice slice(*position, capacity, splits);
    const size_t stride = (size_t)kv_heads * D;
    const size_t base = (size_t)sequence * capacity * stride + (size_t)kv_head * D;
    kc += base;
    vc += base;

    for (int first_head = 0; first_head < group; first_head += DECODE_HEADS) {
        const int here = min(group - first_head, DECODE_HEADS);
        const size_t head = (size_t)sequence * heads + kv_head * group + first_head;
        for (int i = threadIdx.x; i < DECODE_HEADS * (D / 8); i += DECODE_THREADS) {
            const int row = i / (D / 8), piece = i % (D / 8);
            uint4 x = make_uint4(0, 0, 0, 0);
            if (row < here) x = reinterpret_cast<const uint4*>(q + (head + row) * D)[piece];
            reinterpret_cast<uint4*>(queries + row * PITCH)[piece] = x;
        }
        __syncthreads();

        float out[D / 16][4] = {};
        float max = negative_infinity(), sum = 0.0f; // of head g; sum: of this lane's keys
        unsigned k[2][Key::WORDS], v[4][Value::WORDS];
        const auto load_keys = [&](unsigned first) {
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const unsigned key = first + 8 * n + g;
                Key::load(kc + key * stride, t, key < slice.end, k[n]);
            }
        };
        const auto load_values = [&](unsigned first) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const unsigned key = first + 2 * t + i % 2 + i / 2 * 8;
                Value::load(vc + key * stride, g, key < slice.end, v[i]);
            }
        };

        unsigned first = slice.begin + DECODE_KEYS * warp;
        load_keys(first);
        load_values(first);
        while (first < slice.end) {
            const unsigned next = first + DECODE_KEYS * DECODE_WARPS;
            float score[2][4] = {};
            unsigned query[Key::WORDS];
            Key::load(queries + g * PITCH, t, query);
#pragma unroll
            for (int w = 0; w < Key::WORDS; w += 2) {
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    multiply_add(score[n], {query[w], 0, query[w + 1], 0}, {k[n][w], k[n][w + 1]});
                }
            }
            load_keys(next);

            float weight[4]; // of head g and keys 2t, 2t + 1, 2t + 8, 2t + 9
            float new_max = max;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const unsigned key = first + 2 * t + i % 2 + i / 2 * 8;
                weight[i] = score[i / 2][i % 2] * (scale * LOG2_E);
                if (key >= slice.end) weight[i] = negative_infinity();
                new_max = fmaxf(new_max, weight[i]);
            }
            new_max = warp_reduce(new_max, Max(), 4);
            const float keep = exp2_fast(max - new_max);
            sum *= keep;
            max = new_max;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                weight[i] = exp2_fast(weight[i] - max);
                sum += weight[i];
            }
            // `out` holds heads 2t and 2t + 1, whose maxima other lanes have.
            const float keep_even = __shfl_sync(ALL_LANES, keep, 8 * t);
            const float keep_odd = __shfl_sync(ALL_LANES, keep, 8 * t + 4);
            const unsigned b0 = pack(weight[0], weight[1]), b1 = pack(weight[2], weight[3]);
#pragma unroll
            for (int w = 0; w < Value::WORDS; w++) {
                out[w][0] *= keep_even, out[w][1] *= keep_odd;
                out[w][2] *= keep_even, out[w][3] *= keep_odd;
                // Row g is a word's first channel, row g + 8 its second.
                multiply_add(out[w],
                             {__byte_perm(v[0][w], v[1][w], 0x5410),
                              __byte_perm(v[0][w], v[1][w], 0x7632),
                              __byte_perm(v[2][w], v[3][w], 0x5410),
                              __byte_perm(v[2][w], v[3][w], 0x7632)},
                             {b0, b1});
            }
            load_values(next);
            first = next;
        }

#pragma unroll
        for (int w = 0; w < Value::WORDS; w++) {
            const int channel = Value::channel(w, g);
            warp_out[warp][2 * t][channel] = out[w][0];
            warp_out[warp][2 * t + 1][channel] = out[w][1];
            warp_out[warp][2 * t][channel + 1] = out[w][2];
            warp_out[warp][2 * t + 1][channel + 1] = out[w][3];
        }
        sum = warp_reduce(sum, Sum(), 4);
        if (t == 0) {
            warp_max[warp][g] = max;
            warp_sum[warp][g] = sum;
        }
        __syncthreads();

        // Sixteen threads per head join the warps.
        constexpr int PER_HEAD = DECODE_THREADS / DECODE_HEADS;
        const int row = threadIdx.x / PER_HEAD;
        float total_max = negative_infinity(), total = 0.0f, factor[DECODE_WARPS];
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) total_max = fmaxf(total_max, warp_max[w][row]);
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            // A warp without keys; or one whose weights are all NaN, and 0 * NaN keeps that.
            const bool none = warp_max[w][row] == negative_infinity();
            factor[w] = none ? 0.0f : exp2_fast(warp_max[w][row] - total_max);
            total += factor[w] * warp_sum[w][row];
        }
        if (row < here) {
            float* result = partial + ((head + row) * splits + blockIdx.x) * (D + 2);
            for (int c = threadIdx.x % PER_HEAD; c < D; c += PER_HEAD) {
                float x = 0.0f;
#pragma unroll
                for (int w = 0; w < DECODE_WARPS; w++) x += factor[w] * warp_out[w][row][c];
                result[c] = x;
            }
            if (threadIdx.x % PER_HEAD == 0) {
                result[D] = total_max;
                result[D + 1] = total;
            }
        }
    }
}

// The query heads are the rows of AttendF32.
template <int D>
DEVICE void attend_decode_f32(const half* q, const float* kc, const float* vc, float* partial,
                              const unsigned* position, int heads, int kv_heads, int capacity,
                              int splits, float scale) {
    using Attend = AttendF32<D>;
    static_assert(F32_THREADS == DECODE_THREADS, "one block size for both kinds of cache");
    __shared__ __align__(16) typename Attend::Shared shared;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int kv_head = blockIdx.y, sequence = blockIdx.z;
    const int group = heads / kv_heads;
    const Slice slice(*position, capacity, splits);
    const size_t stride = (size_t)kv_heads * D;
    const size_t base = (size_t)sequence * capacity * stride + (size_t)kv_head * D;
    for (int first_head = 0; first_head < group; first_head += Attend::BLOCK_ROWS) {
        const int here = min(group - first_head, Attend::BLOCK_ROWS);
        const size_t head = (size_t)sequence * heads + kv_head * group + first_head;
        for (int i = threadIdx.x; i < Attend::BLOCK_ROWS * D; i += F32_THREADS) {
            const float x = i / D < here ? __half2float(q[head * D + i]) : 0.0f;
            shared.queries[i / D][i % D] = x * (scale * LOG2_E);
        }
        unsigned visible[Attend::ROWS];
#pragma unroll
        for (int r = 0; r < Attend::ROWS; r++) visible[r] = slice.end;
        Attend attend;
        attend.run(shared, kc + base, vc + base, stride, slice.begin, slice.end, visible);
#pragma unroll
        for (int r = 0; r < Attend::ROWS; r++) {
            const int row = warp * Attend::ROWS + r;
            if (row >= here) continue;
            float* result = partial + ((head + row) * splits + blockIdx.x) * (D + 2);
#pragma unroll
            for (int c = 0; c < Attend::CHANNELS; c++) {
                if (lane + 32 * c < D) result[lane + 32 * c] = attend.out[r][c];
            }
            if (lane == 0) {
                result[D] = attend.max[r];
                result[D + 1] = attend.sum[r];
            }
        }
    }
}

#define DECODE_PARAMETERS(KV)                                                                     \
    const half *q, const KV *kc, const KV *vc, float *partial, const unsigned *position,          \
        int batch, int heads, int kv_heads, int head_dim, int capacity, int splits, float scale
#define DECODE_ARGUMENTS q, kc, vc, partial, position, heads, kv_heads, capacity, splits, scale

ATTENTION_KERNELS(attend_decode_kvf16, attend_decode_f16, (DECODE_PARAMETERS(half)),
                  (DECODE_ARGUMENTS), DECODE_THREADS)
ATTENTION_KERNELS(attend_decode_kvf32, attend_decode_f32, (DECODE_PARAMETERS(float)),
                  (DECODE_ARGUMENTS), DECODE_THREADS, 4)

// Slices whose factors are in shared memory at a time.
constexpr int COMBINE_SLICES = 128;

// Joins the slices. Grid: (heads, batch); block: whole warps (128).
extern "C" __global__ void attend_combine(const float* __restrict__ partial,
                                          half* __restrict__ out, int batch, int heads,
                                          int head_dim, int splits) {
    __shared__ float factors[COMBINE_SLICES];
    const size_t head = (size_t)blockIdx.y * heads + blockIdx.x;
    if (blockIdx.y >= (unsigned)batch) return;
    const int pitch = head_dim + 2;
    const float* slices = partial + head * splits * pitch;
    float max = negative_infinity();
    for (int s = threadIdx.x; s < splits; s += blockDim.x) {
        max = fmaxf(max, slices[s * pitch + head_dim]);
    }
    max = block_reduce(max, Max());
    // Once, but for heads of more channels than the block has threads.
    for (int first = 0; first < head_dim; first += blockDim.x) {
        const int channel = first + threadIdx.x;
        float x = 0.0f, sum = 0.0f; // sum: of this thread's slices
        for (int begin = 0; begin < splits; begin += COMBINE_SLICES) {
            const int here = min(splits - begin, COMBINE_SLICES);
            const float* slice = slices + begin * pitch;
            __syncthreads(); // `factors` may be written again
            for (int s = threadIdx.x; s < here; s += blockDim.x) {
                factors[s] = exp2_fast(slice[s * pitch + head_dim] - max); // 0 if it is empty
                sum += factors[s] * slice[s * pitch + head_dim + 1];
            }
            __syncthreads();
            if (channel >= head_dim) continue;
            // Nothing of a step waits for the one before but the sum: eight loads are on the way.
#pragma unroll 8
            for (int s = 0; s < here; s++) x += factors[s] * slice[s * pitch + channel];
        }
        sum = block_reduce(sum, Sum());
        if (channel < head_dim) out[head * head_dim + channel] = __float2half_rn(x / sum);
    }
}

// Causal attention of many new tokens (arXiv 2205.14135 and 2307.08691): a block carries a tile
// of queries of one head over all keys that it may see, tile by tile; scores never leave the
// registers.
//
//   q, out   F16 [batch, tokens, heads, head_dim]; q rotated, its first token at *position
//   kc, vc   [batch, capacity, kv_heads, head_dim], F16 or F32, the new tokens appended already
//
// Grid: (ceil(tokens / PREFILL_QUERIES), heads, batch), block PREFILL_THREADS. Nothing behind
// position *position + tokens - 1, nor behind `capacity`, is read. heads is a multiple of
// kv_heads, scale > 0. head_dim is part of the name: 16, 32, 64, 80, 96, 128, 256.
//
// A NaN or infinity in a value also reaches the queries before it that share its tile, since
// their weight for it, 0, is multiplied all the same.
#include "../packed/instructions.cuh"
#include "attend_f32.cuh"
#include "attention.cuh"

constexpr int PREFILL_WARPS = 4;
constexpr int PREFILL_THREADS = 32 * PREFILL_WARPS;
// A warp carries sixteen queries, the rows of a product.
constexpr int PREFILL_QUERIES = 16 * PREFILL_WARPS;

// The tiles with the most keys start first, so that the short ones fill the gaps at the end.
DEVICE int first_query() { return (gridDim.x - 1 - blockIdx.x) * PREFILL_QUERIES; }

// Rows of D halves in shared memory, as 16-byte units. Eight units in one column of consecutive
// rows, which is what ldmatrix reads at a time, lie in different banks: by exchanging units within
// a row where its length is a multiple of 128 bytes, else by an odd pitch.
template <int D> struct Tile {
    static constexpr int UNITS = D / 8;
    static constexpr bool SWIZZLED = D % 64 == 0;
    static constexpr int PITCH = SWIZZLED ? UNITS : UNITS + 1;

    DEVICE static int at(int row, int unit) {
        return row * PITCH + (SWIZZLED ? unit ^ (row % 8) : unit);
    }

    // Rows first.. of `from`, `stride` halves apart; zeros from row `end` on.
    template <int ROWS>
    DEVICE static void load(uint4* tile, const half* from, size_t stride, int first, int end) {
        // For D = 256 there are no registers left to unroll into.
        // A thread starts anywhere, so the compiler takes the count for a number of rounds: without
        // the division it makes hundreds of copies that never run.
#pragma unroll(D > 128 ? 1 : ROWS * UNITS / PREFILL_THREADS)
        for (int i = threadIdx.x; i < ROWS * UNITS; i += PREFILL_THREADS) {
            const int row = i / UNITS, unit = i % UNITS;
            const bool present = first + row < end;
            // An address that is not read is still a valid one.
            const half* source = from + (present ? first + row : 0) * stride + 8 * unit;
            copy_async(&tile[at(row, unit)], source, present);
        }
    }
};

// One tile of K and one of V (32 KiB together for D = 128, 33 KiB with what the card adds: three
// blocks even where a multiprocessor has 100 KiB). The loads overlap: V arrives while scores are
// made, the next K while weights are applied; the other blocks fill what gaps remain.
template <int D>
DEVICE void attend_prefill_f16(const half* q, const half* kc, const half* vc, half* out,
                               const unsigned* position, int tokens, int heads, int kv_heads,
                               int capacity, float scale) {
    using T = Tile<D>;
    constexpr int KEYS = D > 128 ? 32 : 64;
    constexpr int STEPS = D / 16;
    __shared__ __align__(16) uint4 shared[2 * KEYS * T::PITCH];
    uint4* keys = shared;
    uint4* values = shared + KEYS * T::PITCH;
    static_assert(2 * KEYS >= PREFILL_QUERIES, "queries pass through the same memory");

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int g = lane / 4, t = lane % 4;
    const int head = blockIdx.y, sequence = blockIdx.z;
    const int first = first_query();
    const int here = min(tokens - first, PREFILL_QUERIES);
    const int start = min(*position, (unsigned)capacity);
    const int end = min(start + first + here, capacity);
    const size_t q_stride = (size_t)heads * D, stride = (size_t)kv_heads * D;
    const size_t q_base = ((size_t)sequence * tokens + first) * q_stride + (size_t)head * D;
    const size_t base =
        (size_t)sequence * capacity * stride + (size_t)(head / (heads / kv_heads)) * D;
    kc += base;
    vc += base;

    // ldmatrix: the row and the unit of the address that this lane gives.
    const int a_row = lane % 16, a_unit = lane / 16;               // queries: 16 rows, 2 units
    const int k_row = lane % 8 + lane / 16 * 8, k_unit = lane / 8 % 2; // as two columns of b
    const int v_row = lane % 16, v_unit = lane / 16;               // transposed

    unsigned query[STEPS][4];
    T::template load<PREFILL_QUERIES>(shared, q + q_base, q_stride, 0, here);
    wait_for_copies();
    __syncthreads();
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        load_matrices<false>(query[s], &shared[T::at(16 * warp + a_row, 2 * s + a_unit)]);
    }
    __syncthreads();

    float o[2 * STEPS][4] = {};
    float max[2] = {negative_infinity(), negative_infinity()}; // rows g and g + 8
    float sum[2] = {0.0f, 0.0f};                               // of this lane's keys
    const float factor = scale * LOG2_E;
    const int row_position = start + first + 16 * warp + g;

    T::template load<KEYS>(keys, kc, stride, 0, end);
    for (int first_key = 0; first_key < end; first_key += KEYS) {
        wait_for_copies();
        __syncthreads(); // K is there, and nobody reads V any more
        T::template load<KEYS>(values, vc, stride, first_key, end);

        float score[KEYS / 8][4] = {};
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                unsigned b[4];
                load_matrices<false>(b, &keys[T::at(8 * n + k_row, 2 * s + k_unit)]);
                multiply_add(score[n], query[s], {b[0], b[1]});
                multiply_add(score[n + 1], query[s], {b[2], b[3]});
            }
        }

        // Only tiles on the diagonal hold keys that a row of this warp must not see; all that is
        // behind `end` is also behind every query.
        if (first_key + KEYS - 1 > start + first + 16 * warp) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int key = first_key + 8 * n + 2 * t + i % 2;
                    if (key > row_position + i / 2 * 8) score[n][i] = negative_infinity();
                }
            }
        }

        unsigned weight[KEYS / 8][2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float new_max = max[r];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                new_max = fmaxf(new_max, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
            }
            new_max = warp_reduce(new_max, Max(), 4);
            const float keep = exp2_fast((max[r] - new_max) * factor);
            const float offset = new_max * factor;
            max[r] = new_max;
            sum[r] *= keep;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                const float low = exp2_fast(fmaf(score[n][2 * r], factor, -offset));
                const float high = exp2_fast(fmaf(score[n][2 * r + 1], factor, -offset));
                sum[r] += low + high;
                weight[n][r] = pack(low, high);
            }
#pragma unroll
            for (int n = 0; n < 2 * STEPS; n++) {
                o[n][2 * r] *= keep;
                o[n][2 * r + 1] *= keep;
            }
        }

        wait_for_copies();
        __syncthreads(); // V is there, and nobody reads K any more
        if (first_key + KEYS < end) {
            T::template load<KEYS>(keys, kc, stride, first_key + KEYS, end);
        }
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
#pragma unroll
            for (int n = 0; n < 2 * STEPS; n += 2) {
                unsigned b[4];
                load_matrices<true>(b, &values[T::at(16 * j + v_row, n + v_unit)]);
                const auto& low = weight[2 * j];
                const auto& high = weight[2 * j + 1];
                const unsigned a[4] = {low[0], low[1], high[0], high[1]};
                multiply_add(o[n], a, {b[0], b[1]});
                multiply_add(o[n + 1], a, {b[2], b[3]});
            }
        }
    }

    // Through shared memory, so that the result is written 16 bytes at a time.
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float inverse = 1.0f / warp_reduce(sum[r], Sum(), 4);
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            unsigned* unit = reinterpret_cast<unsigned*>(&shared[T::at(16 * warp + g + 8 * r, n)]);
            unit[t] = pack(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < here * T::UNITS; i += PREFILL_THREADS) {
        const int row = i / T::UNITS, unit = i % T::UNITS;
        reinterpret_cast<uint4*>(out + q_base + row * q_stride)[unit] = shared[T::at(row, unit)];
    }
}

template <int D>
DEVICE void attend_prefill_f32(const half* q, const float* kc, const float* vc, half* out,
                               const unsigned* position, int tokens, int heads, int kv_heads,
                               int capacity, float scale) {
    using Attend = AttendF32<D>;
    static_assert(F32_THREADS == PREFILL_THREADS, "one block size for both kinds of cache");
    __shared__ __align__(16) typename Attend::Shared shared;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int head = blockIdx.y, sequence = blockIdx.z;
    const int last = min(first_query() + PREFILL_QUERIES, tokens);
    const int start = min(*position, (unsigned)capacity);
    const size_t stride = (size_t)kv_heads * D;
    const size_t base =
        (size_t)sequence * capacity * stride + (size_t)(head / (heads / kv_heads)) * D;
    // Offset of a query's row in q and out.
    const auto row_at = [&](int token) {
        return (((size_t)sequence * tokens + token) * heads + head) * D;
    };
    for (int first = first_query(); first < last; first += Attend::BLOCK_ROWS) {
        const int here = min(last - first, Attend::BLOCK_ROWS);
        for (int i = threadIdx.x; i < Attend::BLOCK_ROWS * D; i += F32_THREADS) {
            const int row = i / D, c = i % D;
            const float x = row < here ? __half2float(q[row_at(first + row) + c]) : 0.0f;
            shared.queries[row][c] = x * (scale * LOG2_E);
        }
        unsigned visible[Attend::ROWS];
#pragma unroll
        for (int r = 0; r < Attend::ROWS; r++) {
            visible[r] = start + first + warp * Attend::ROWS + r + 1;
        }
        Attend attend;
        attend.run(shared, kc + base, vc + base, stride, 0, min(start + first + here, capacity),
                   visible);
#pragma unroll
        for (int r = 0; r < Attend::ROWS; r++) {
            const int row = warp * Attend::ROWS + r;
            if (row >= here) continue;
            half* result = out + row_at(first + row);
#pragma unroll
            for (int c = 0; c < Attend::CHANNELS; c++) {
                if (lane + 32 * c < D) {
                    result[lane + 32 * c] = __float2half_rn(attend.out[r][c] / attend.sum[r]);
                }
            }
        }
    }
}

#define PREFILL_PARAMETERS(KV)                                                                    \
    const half *q, const KV *kc, const KV *vc, half *out, const unsigned *position, int batch,    \
        int tokens, int heads, int kv_heads, int head_dim, int capacity, float scale
#define PREFILL_ARGUMENTS q, kc, vc, out, position, tokens, heads, kv_heads, capacity, scale

ATTENTION_KERNELS(attend_prefill_kvf16, attend_prefill_f16, (PREFILL_PARAMETERS(half)),
                  (PREFILL_ARGUMENTS), PREFILL_THREADS)
ATTENTION_KERNELS(attend_prefill_kvf32, attend_prefill_f32, (PREFILL_PARAMETERS(float)),
                  (PREFILL_ARGUMENTS), PREFILL_THREADS, 3)

// Attention over a cache that holds F32, for the checks that ask for it: plain F32 arithmetic
// (tensor cores have none), shared by decoding and prefill.
#pragma once
#include "../device/gpu.cuh"

constexpr int F32_WARPS = 4;
constexpr int F32_THREADS = 32 * F32_WARPS;
// Keys in shared memory at a time: one per lane.
constexpr int F32_KEYS = 32;

// Query rows that a warp carries. Static shared memory ends at 48 KiB.
template <int D> constexpr int F32_ROWS = D > 128 ? 2 : 4;

// One block's attention: the rows of all warps over keys begin..end.
template <int D> struct AttendF32 {
    static constexpr int ROWS = F32_ROWS<D>;
    static constexpr int BLOCK_ROWS = F32_WARPS * ROWS;
    // Channels of a lane: lane, lane + 32, ...
    static constexpr int CHANNELS = (D + 31) / 32;

    struct Shared {
        // Row r of warp w is queries[w * ROWS + r], scaled so that weights are powers of two.
        float queries[BLOCK_ROWS][D];
        // Keys, then values of the same positions. A row's pitch is an odd number of 16-byte
        // units: lanes that read one unit of their own row each meet no bank conflict.
        float tile[F32_KEYS][D + 4];
    };

    float out[ROWS][CHANNELS]; // unnormalized
    float max[ROWS];
    float sum[ROWS];

    // rows: positions begin..end of k or v, `stride` apart; zeros behind `end`.
    DEVICE static void stage(Shared& shared, const float* rows, size_t stride, unsigned begin,
                             unsigned end) {
        __syncthreads(); // nobody reads the previous tile any more
        for (int i = threadIdx.x; i < F32_KEYS * (D / 4); i += F32_THREADS) {
            const unsigned row = i / (D / 4), piece = i % (D / 4);
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (begin + row < end) {
                x = reinterpret_cast<const float4*>(rows + (begin + row) * stride)[piece];
            }
            reinterpret_cast<float4*>(shared.tile[row])[piece] = x;
        }
        __syncthreads();
    }

    // visible[r]: row r sees keys before this one. Called by all threads of the block, which may
    // have just written the queries, and may write new ones as soon as this returns.
    DEVICE void run(Shared& shared, const float* k, const float* v, size_t stride, unsigned begin,
                    unsigned end, const unsigned (&visible)[ROWS]) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            max[r] = negative_infinity();
            sum[r] = 0.0f;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) out[r][c] = 0.0f;
        }
        for (unsigned first = begin; first < end; first += F32_KEYS) {
            stage(shared, k, stride, first, end);
            float weight[ROWS] = {};
            const float4* key = reinterpret_cast<const float4*>(shared.tile[lane]);
#pragma unroll 8
            for (int i = 0; i < D / 4; i++) {
                const float4 x = key[i];
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    const float* query = shared.queries[warp * ROWS + r];
                    const float4 q = reinterpret_cast<const float4*>(query)[i];
                    weight[r] += q.x * x.x + q.y * x.y + q.z * x.z + q.w * x.w;
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (first + lane >= visible[r]) weight[r] = negative_infinity();
                const float new_max = fmaxf(max[r], warp_reduce(weight[r], Max()));
                const float keep = exp2f(max[r] - new_max);
                weight[r] = exp2f(weight[r] - new_max);
                sum[r] = sum[r] * keep + warp_reduce(weight[r], Sum());
                max[r] = new_max;
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) out[r][c] *= keep;
            }
            stage(shared, v, stride, first, end);
#pragma unroll 4
            for (int j = 0; j < F32_KEYS; j++) {
                float x[CHANNELS];
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    // The pitch leaves room for lanes that have no channel here (D = 16, 80).
                    const int channel = lane + 32 * c;
                    x[c] = channel < D ? shared.tile[j][channel] : 0.0f;
                }
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    const float p = __shfl_sync(ALL_LANES, weight[r], j);
#pragma unroll
                    for (int c = 0; c < CHANNELS; c++) out[r][c] += p * x[c];
                }
            }
        }
    }
};

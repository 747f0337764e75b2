// RMSNorm (arXiv 1910.07467): from the F32 residual stream to the F16 input of the linears.
#include "../device/gpu.cuh"

// x F32 [rows, hidden], gain F16 [hidden] -> h F16 [rows, hidden], x / sqrt(mean(x^2) + eps) * gain.
//
// Grid: rows; block: whole warps (256). The second reading of the row comes from the first cache.
extern "C" __global__ void rms_norm(const float* __restrict__ x, const half* __restrict__ gain,
                                    half* __restrict__ h, int rows, int hidden, float eps) {
    const long long row = blockIdx.x;
    if (row >= rows) return;
    x += row * hidden;
    h += row * hidden;
    const bool wide = hidden % 8 == 0;
    float sum = 0.0f;
    if (wide) {
        for (int i = 8 * threadIdx.x; i < hidden; i += 8 * blockDim.x) {
            float v[8];
            load8(x + i, v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += v[j] * v[j];
        }
    } else {
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) sum += x[i] * x[i];
    }
    const float factor = 1.0f / sqrtf(block_reduce(sum, Sum()) / hidden + eps);
    if (wide) {
        for (int i = 8 * threadIdx.x; i < hidden; i += 8 * blockDim.x) {
            float v[8], g[8];
            load8(x + i, v);
            load8(gain + i, g);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = v[j] * factor * g[j];
            store8(h + i, v);
        }
    } else {
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
            h[i] = __float2half_rn(x[i] * factor * __half2float(gain[i]));
        }
    }
}

// The gate of the feed-forward layer.
#include "../device/gpu.cuh"

DEVICE float swiglu_of(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// silu(gate) * up, elementwise over n values F16; computed in F32. y may be gate or up.
//
// Any grid and block. All three are aligned to 16 bytes.
extern "C" __global__ void swiglu(const half* gate, const half* up, half* y, long long n) {
    const long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long stride = gridDim.x * (long long)blockDim.x;
    for (long long i = first; i < n / 8; i += stride) {
        float g[8], u[8];
        load8(gate + 8 * i, g);
        load8(up + 8 * i, u);
#pragma unroll
        for (int j = 0; j < 8; j++) g[j] = swiglu_of(g[j], u[j]);
        store8(y + 8 * i, g);
    }
    for (long long i = n / 8 * 8 + first; i < n; i += stride) {
        y[i] = __float2half_rn(swiglu_of(__half2float(gate[i]), __half2float(up[i])));
    }
}

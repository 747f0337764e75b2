// Before the head: of a prompt only the last positions are wanted.
#include "../device/gpu.cuh"

// h F16 [batch, tokens, hidden] -> last F16 [batch, hidden], the last row of each sequence.
//
// Grid: batch; any block.
extern "C" __global__ void last_rows(const half* __restrict__ h, half* __restrict__ last,
                                     int tokens, int hidden) {
    const long long sequence = blockIdx.x;
    h += ((sequence + 1) * tokens - 1) * hidden;
    last += sequence * hidden;
    if (hidden % 8 == 0) {
        const uint4* from = reinterpret_cast<const uint4*>(h);
        for (int i = threadIdx.x; i < hidden / 8; i += blockDim.x) {
            reinterpret_cast<uint4*>(last)[i] = from[i];
        }
    } else {
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) last[i] = h[i];
    }
}

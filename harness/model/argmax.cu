// The last step of greedy decoding, and the step to the next position, both on the device so that
// a graph of the whole step can be replayed without the host.
#include "../device/gpu.cuh"

struct Candidate {
    float value;
    unsigned id;
};

// The larger value; NaN counts as the largest; among equals the lowest id.
struct Better {
    DEVICE Candidate operator()(Candidate a, Candidate b) const {
        const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
        const bool equal = a_nan ? b_nan : a.value == b.value;
        if (equal) return a.id < b.id ? a : b;
        return a_nan || (!b_nan && a.value > b.value) ? a : b;
    }
};

// logits F32 [batch, vocab] -> ids U32 [batch].
//
// Grid: batch; block: whole warps (1024: one block reads a whole row). A row that holds a NaN
// gives the id of its first one.
extern "C" __global__ void argmax(const float* __restrict__ logits, unsigned* __restrict__ ids,
                                  int vocab) {
    logits += blockIdx.x * (long long)vocab;
    Candidate best = {negative_infinity(), 0xffffffffu};
    const bool wide = vocab % 4 == 0;
    if (wide) {
        for (int i = 4 * threadIdx.x; i < vocab; i += 4 * blockDim.x) {
            const float4 v = *reinterpret_cast<const float4*>(logits + i);
            const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 4; j++) best = Better()(best, {values[j], unsigned(i + j)});
        }
    } else {
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
            best = Better()(best, {logits[i], unsigned(i)});
        }
    }
    // A lane without a candidate holds the lowest value and the highest id.
    __shared__ Candidate of_warp[32];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        const Candidate other = {__shfl_xor_sync(ALL_LANES, best.value, offset),
                                 __shfl_xor_sync(ALL_LANES, best.id, offset)};
        best = Better()(best, other);
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < int(blockDim.x / 32); i++) best = Better()(best, of_warp[i]);
        ids[blockIdx.x] = best.id;
    }
}

// *position += by. One thread.
extern "C" __global__ void advance(unsigned* position, unsigned by) { *position += by; }

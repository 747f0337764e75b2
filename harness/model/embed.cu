// The first step: rows of the embedding.
#include "../device/gpu.cuh"

// ids U32 [rows], table F16 [vocab, hidden] -> x F32 [rows, hidden].
//
// Grid: rows; any block. A row of NaN for an id outside the vocabulary: it shows in the logits,
// where a kernel has no other way to complain.
extern "C" __global__ void embed(const unsigned* __restrict__ ids, const half* __restrict__ table,
                                 float* __restrict__ x, int rows, int hidden, int vocab) {
    const long long row = blockIdx.x;
    if (row >= rows) return;
    x += row * hidden;
    const unsigned id = ids[row];
    if (id >= (unsigned)vocab) {
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) x[i] = not_a_number();
        return;
    }
    table += (long long)id * hidden;
    if (hidden % 8 == 0) {
        for (int i = 8 * threadIdx.x; i < hidden; i += 8 * blockDim.x) {
            float v[8];
            load8(table + i, v);
            store8(x + i, v);
        }
    } else {
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) x[i] = __half2float(table[i]);
    }
}

// Rotary embedding (arXiv 2104.09864) of queries and keys, and the appending of keys and values
// to the cache, in one pass over what the q/k/v product wrote.
#include "../device/gpu.cuh"

// q F16 [batch, tokens, heads, head_dim], rotated in place; k, v F16 [batch, tokens, kv_heads,
// head_dim] -> kc, vc [batch, capacity, kv_heads, head_dim] at positions *position + token.
// cos, sin F32 [at least capacity, head_dim / 2]; pairs are (i, i + head_dim / 2).
//
// Grid: batch * tokens; any block (256). head_dim: a multiple of 16. Where a token has no place
// in the cache, its queries become NaN and nothing is appended: a replayed graph reads the
// position from the device, where the host's check does not reach.
template <typename KV>
DEVICE void rotate_append(half* q, const half* k, const half* v, const float* cos,
                          const float* sin, KV* kc, KV* vc, const unsigned* position, int tokens,
                          int heads, int kv_heads, int head_dim, int capacity) {
    const long long row = blockIdx.x;
    const long long sequence = row / tokens;
    const long long at = (long long)*position + row % tokens;
    const int pairs = head_dim / 2;
    q += row * heads * head_dim;
    if (at >= capacity) {
        for (int i = threadIdx.x; i < heads * head_dim; i += blockDim.x) {
            q[i] = __float2half_rn(not_a_number());
        }
        return;
    }
    k += row * kv_heads * head_dim;
    v += row * kv_heads * head_dim;
    kc += (sequence * capacity + at) * kv_heads * head_dim;
    vc += (sequence * capacity + at) * kv_heads * head_dim;
    cos += at * pairs;
    sin += at * pairs;

    // Eight pairs at a time: first the heads of q, then those of k.
    const int pieces = pairs / 8;
    for (int i = threadIdx.x; i < (heads + kv_heads) * pieces; i += blockDim.x) {
        const int head = i / pieces, pair = i % pieces * 8;
        const bool is_query = head < heads;
        const int start = (is_query ? head : head - heads) * head_dim + pair;
        const half* from = (is_query ? q : k) + start;
        float low[8], high[8], c[8], s[8];
        load8(from, low);
        load8(from + pairs, high);
        load8(cos + pair, c);
        load8(sin + pair, s);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float x = low[j], y = high[j];
            low[j] = x * c[j] - y * s[j];
            high[j] = y * c[j] + x * s[j];
        }
        if (is_query) {
            store8(q + start, low);
            store8(q + start + pairs, high);
        } else {
            store8(kc + start, low);
            store8(kc + start + pairs, high);
        }
    }
    for (int i = 8 * threadIdx.x; i < kv_heads * head_dim; i += 8 * blockDim.x) {
        float values[8];
        load8(v + i, values);
        store8(vc + i, values);
    }
}

extern "C" __global__ void rotate_append_kvf16(half* q, const half* k, const half* v,
                                               const float* cos, const float* sin, half* kc,
                                               half* vc, const unsigned* position, int batch,
                                               int tokens, int heads, int kv_heads, int head_dim,
                                               int capacity) {
    if (blockIdx.x >= (unsigned)(batch * tokens)) return;
    rotate_append(q, k, v, cos, sin, kc, vc, position, tokens, heads, kv_heads, head_dim,
                  capacity);
}

extern "C" __global__ void rotate_append_kvf32(half* q, const half* k, const half* v,
                                               const float* cos, const float* sin, float* kc,
                                               float* vc, const unsigned* position, int batch,
                                               int tokens, int heads, int kv_heads, int head_dim,
                                               int capacity) {
    if (blockIdx.x >= (unsigned)(batch * tokens)) return;
    rotate_append(q, k, v, cos, sin, kc, vc, position, tokens, heads, kv_heads, head_dim,
                  capacity);
}

// Kernels with planted faults, and one without: what tests/it/emulation_faults.rs shows the
// emulation to notice.

/// Reverses each block's elements through shared memory.
template <bool BARRIER>
__device__ void reverse_block(const float* x, float* y) {
    __shared__ float values[256];
    unsigned first = blockIdx.x * blockDim.x;
    values[threadIdx.x] = x[first + threadIdx.x];
    if (BARRIER) __syncthreads();
    y[first + threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void fine_reverse(const float* x, float* y) { reverse_block<true>(x, y); }
extern "C" __global__ void fault_race(const float* x, float* y) { reverse_block<false>(x, y); }

/// `y[i] = x[i + offset]`, for any access near the ends.
extern "C" __global__ void fault_read(const float* x, float* y, int offset) {
    y[threadIdx.x] = x[int(threadIdx.x) + offset];
}
extern "C" __global__ void fault_write(const float* x, float* y, int offset) {
    y[int(threadIdx.x) + offset] = x[threadIdx.x];
}

/// Half of the threads go to a barrier that the others never reach.
extern "C" __global__ void fault_two_barriers(float* y) {
    if (threadIdx.x < blockDim.x / 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = 1.0f;
}
/// Lane 0 waits for its warp, which waits for the block.
extern "C" __global__ void fault_deadlock(float* y) {
    if (threadIdx.x == 0) {
        y[0] = __shfl_sync(0xffffffffu, 1.0f, 0);
    }
    __syncthreads();
}
extern "C" __global__ void fault_absent_lane(float* y) {
    if (threadIdx.x == 5) return;
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
extern "C" __global__ void fault_shuffle_source(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);
}

extern "C" __global__ void fault_misaligned(const float* x, float* y, int offset) {
    float4 v = *reinterpret_cast<const float4*>(x + offset);
    y[0] = v.x + v.y + v.z + v.w;
}
/// An index outside a static shared array.
extern "C" __global__ void fault_shared_index(float* y, int index) {
    __shared__ float values[32];
    values[index] = 1.0f;
    __syncthreads();
    y[0] = values[0];
}
/// Writes element `index` of the dynamic shared memory.
extern "C" __global__ void fault_dynamic_index(float* y, int index) {
    float* values = static_cast<float*>(emulate::dynamic_shared());
    values[index] = 2.0f;
    y[0] = values[index];
}
/// Reads what the block did not write: must not be what another block left.
extern "C" __global__ void fault_stale_shared(float* y) {
    __shared__ float value;
    y[blockIdx.x] = value;
    value = 7.0f;
}
/// Reads an asynchronous copy, with or without waiting for it.
extern "C" __global__ void fault_copy_async(const float* x, float* y, int wait) {
    __shared__ __align__(16) float values[4];
    emulate::copy_async(values, x, 16, 16);
    emulate::commit_copies();
    if (wait) emulate::wait_copies(0);
    y[0] = values[3];
}
extern "C" __global__ void fault_stack(float* y, int depth) {
    struct Deep {
        static float go(int depth) {
            volatile float local[1024] = {float(depth)};
            return depth ? go(depth - 1) + local[0] : local[0];
        }
    };
    y[0] = Deep::go(depth);
}

/// Exchanges within a warp, all kinds, into `y[8][32]`.
extern "C" __global__ void fine_exchange(unsigned* y) {
    unsigned lane = threadIdx.x;
    unsigned all = 0xffffffffu;
    y[lane] = __shfl_xor_sync(all, lane, 5);
    y[32 + lane] = __shfl_down_sync(all, lane, 3);
    y[64 + lane] = __shfl_up_sync(all, lane, 3);
    y[96 + lane] = __shfl_sync(all, lane, 2, 8);
    y[128 + lane] = __ballot_sync(all, lane % 3 == 0);
    y[160 + lane] = __any_sync(all, lane == 7);
    y[192 + lane] = __all_sync(all, lane < 31);
    y[224 + lane] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2);
}

/// `d[16, 8] += a[16, 16] b[16, 8]`, fragments gathered as the PTX manual says.
extern "C" __global__ void fine_mma(const half* a, const half* b, float* d) {
    unsigned group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
    auto two = [](half low, half high) { return unsigned(low.word) | unsigned(high.word) << 16; };
    unsigned fa[4], fb[2];
    for (unsigned i = 0; i < 4; ++i) {
        const half* p = a + (group + i % 2 * 8) * 16 + pair + i / 2 * 8;
        fa[i] = two(p[0], p[1]);
    }
    for (unsigned i = 0; i < 2; ++i) {
        const half* p = b + (pair + i * 8) * 8 + group;
        fb[i] = two(p[0], p[8]);
    }
    float fd[4];
    for (unsigned i = 0; i < 4; ++i) fd[i] = d[(group + i / 2 * 8) * 8 + pair + i % 2];
    emulate::mma_m16n8k16(fd, fa, fb);
    for (unsigned i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = fd[i];
}

/// Conversions: `to[i]` is the half nearest to `from[i]`, `back[i]` the float of half `i`.
extern "C" __global__ void fine_halves(const float* from, unsigned short* to, int count, float* back) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = __half_as_ushort(__float2half(from[i]));
    for (int i = threadIdx.x; i < 65536; i += blockDim.x) back[i] = __half2float(__ushort_as_half((unsigned short)i));
}
/// `y = a * b + c`, rounded once.
extern "C" __global__ void fine_half_fma(const half* a, const half* b, const half* c, half* y) {
    y[threadIdx.x] = __hfma(a[threadIdx.x], b[threadIdx.x], c[threadIdx.x]);
}

// Products of a packed weight with at most 64 rows: y = x W^T, W read in its stored form. One
// body for all formats; a format says how eight of its codes become numbers (see `u4.cu`).
//
// The matrix instruction takes 16 weight rows as its left operand, in the order of their bytes:
// the order of k in a dot product is free, so lane t of the four that share a row reads the t-th
// piece of 16 bytes of a chunk of 64, and x where its own weights are. Codes become exact halves,
// products are exact in the F32 accumulator, and a group's scale multiplies its F32 sum.
//
// What bounds it is memory: one row of x needs 2 FLOPs for every weight, so time is bytes over
// bandwidth if enough of them are on the way. A warp keeps DEPTH chunks of 16 x 64 bytes in
// registers: with 32 warps on an SM 64 KiB and more are in flight, where an H100 (3.3 TB/s,
// about 0.7 us) needs 18 KiB for each of its 132 SMs. Warps of a block divide the chunks of the
// same rows, so that even 4096 rows are 256 blocks of 8 warps; they add up in shared memory, in
// one order always. Where k, a group size or an address does not fit that, a plain loop in F32
// takes over, which reads any shape.
#pragma once

#include "instructions.cuh"

/// Threads of a block, of every linear_<format>_r<R>.
constexpr int LINEAR_THREADS = 256;
constexpr int LINEAR_WARPS = LINEAR_THREADS / 32;

/// Outputs of a block. The grid is the sum over members of ceil(n_out / linear_tile(R)) blocks.
/// No dynamic shared memory. The f32 and bf16 kernels have R = 64.
__host__ __device__ constexpr int linear_tile(int r) { return r > 16 ? r : 16; }

/// A stored matrix [n_out, k_in] and where its part of the result goes.
struct Member {
    const void* codes;
    const void* scales;
    const void* zeros;
    /// [n_out], or null.
    const half* bias;
    /// [rows, n_out], F16 or F32.
    void* y;
    int n_out;
    /// Groups in a row, 1 for a scale per output, 0 for one of the whole matrix.
    int scales_per_row;
};

/// Matrices with the same input, multiplied in one launch.
struct Members {
    Member m[3];
    int count;
};

/// What becomes of a result: stored as F16, added to an F32, stored as F32.
enum Output { STORE_F16 = 0, ADD_F32 = 1, STORE_F32 = 2 };

__device__ __forceinline__ void write_output(const Member& w, int row, int n, float sum, int output) {
    if (w.bias) sum += __half2float(w.bias[n]);
    size_t i = size_t(row) * w.n_out + n;
    if (output == STORE_F16) {
        static_cast<half*>(w.y)[i] = __float2half_rn(sum);
    } else if (output == ADD_F32) {
        static_cast<float*>(w.y)[i] += sum;
    } else {
        static_cast<float*>(w.y)[i] = sum;
    }
}

/// The member of a block, and the block's number among those of this member.
template <int TILE>
__device__ __forceinline__ Member member_of(const Members& w, int& block) {
    Member own = w.m[0];
#pragma unroll
    for (int i = 1; i < 3; ++i) {
        int blocks = (own.n_out + TILE - 1) / TILE;
        if (i >= w.count || block < blocks) break;
        block -= blocks;
        own = w.m[i];
    }
    return own;
}

/// Eight weights from input 8 * unit of a row on, zero behind its end.
template <class F>
__device__ __forceinline__ void load_weights(float (&v)[8], const Member& w, size_t row, int unit, int k_in, int group) {
    F::load(v, w.codes, row, unit, k_in);
    float scale, zero = 0.0f;
    if constexpr (F::GROUPED) {
        size_t i = row * w.scales_per_row + unit * 8 / group;
        scale = __half2float(static_cast<const half*>(w.scales)[i]);
        zero = float(F::zero_at(static_cast<const unsigned char*>(w.zeros), i));
    } else {
        scale = F::scale(w, row);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = unit * 8 + i < k_in ? (v[i] - zero) * scale : 0.0f;
}

/// Any shape: a warp for each weight row, eight rows of x at a time.
template <class F, int TILE>
__device__ __forceinline__ void linear_plain(const Member& w, int first, const half* x, int rows, int k_in, int group, int output) {
    int lane = threadIdx.x % 32;
    int units = (k_in + 7) / 8;
    for (int n = first + threadIdx.x / 32; n < min(first + TILE, w.n_out); n += LINEAR_WARPS) {
        for (int row = 0; row < rows; row += 8) {
            float sum[8] = {};
            for (int unit = lane; unit < units; unit += 32) {
                float v[8];
                load_weights<F>(v, w, n, unit, k_in, group);
#pragma unroll
                for (int r = 0; r < 8; ++r) {
                    const half* own = x + size_t(min(row + r, rows - 1)) * k_in + unit * 8;
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        if (unit * 8 + i < k_in) sum[r] = fmaf(v[i], __half2float(own[i]), sum[r]);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < 8; ++r) {
#pragma unroll
                for (int lanes = 16; lanes > 0; lanes /= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], lanes);
                if (lane == 0 && row + r < rows) write_output(w, row + r, n, sum[r], output);
            }
        }
    }
}

/// What a lane reads of a chunk: a piece of rows g and g + 8, and of groups the scale and the
/// zero point. Nothing is computed from them before their turn, so loads stay in flight.
template <class F>
struct Chunk {
    unsigned words[2][F::WORDS];
    unsigned short scale[2];
    unsigned zero[2][2];
    unsigned zero_shift;
};

/// Where a lane stands in a matrix of which groups span whole loads.
///
/// LOAD bytes go to a lane at once, and 4 * LOAD of a row to its four: SPAN inputs, which must be
/// of one group. A piece is PIECE / LOAD such loads.
template <class F, int LOAD>
struct Reader {
    static constexpr int SPANS = F::PIECE / LOAD;
    static constexpr int SPAN = 4 * LOAD * 8 / F::BITS;
    static constexpr int CHUNK = SPANS * SPAN;

    const char* row[2];
    const half* scales;
    const unsigned char* zeros;
    int row_bytes, lane_byte, chunks;
    // First group of row g; as far as row g + 8 is from there.
    int first_group, group_stride, groups;
    float groups_per_span;

    __device__ __forceinline__ Reader(const Member& w, int first, int k_in, int group) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        row_bytes = k_in * F::BITS / 8;
        lane_byte = t * LOAD;
        chunks = (k_in + CHUNK - 1) / CHUNK;
        // Rows behind the last are read as the last, and their sums dropped.
        int low = min(first + g, w.n_out - 1), high = min(first + g + 8, w.n_out - 1);
        row[0] = static_cast<const char*>(w.codes) + size_t(low) * row_bytes + lane_byte;
        row[1] = static_cast<const char*>(w.codes) + size_t(high) * row_bytes + lane_byte;
        if constexpr (F::GROUPED) {
            scales = static_cast<const half*>(w.scales);
            zeros = static_cast<const unsigned char*>(w.zeros);
            groups = w.scales_per_row;
            first_group = low * groups;
            group_stride = (high - low) * groups;
            groups_per_span = groups == 1 ? 0.0f : float(SPAN) / float(group);
        }
    }

    /// Group of a span. Groups are whole spans, and the half keeps clear of rounding: exact below
    /// 2^21 spans.
    __device__ __forceinline__ int group_of(int span) const {
        return min(int((float(span) + 0.5f) * groups_per_span), groups - 1);
    }

    __device__ __forceinline__ void load(Chunk<F>& into, int chunk) const {
#pragma unroll
        for (int i = 0; i < SPANS; ++i) {
            int byte = (chunk * SPANS + i) * 4 * LOAD;
            bool inside = byte + lane_byte < row_bytes;
#pragma unroll
            for (int r = 0; r < 2; ++r) load_words<LOAD>(&into.words[r][i * LOAD / 4], row[r] + byte, inside);
        }
        if constexpr (F::GROUPED) {
            // Of several spans each lane asks for one.
            int i = first_group + group_of(chunk * SPANS + threadIdx.x % SPANS);
            into.zero_shift = unsigned(i) * F::BITS % 8;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                into.scale[r] = __half_as_ushort(__ldg(scales + i));
                F::load_zero(into.zero[r], zeros, i);
                i += group_stride;
            }
        }
    }

    template <int BYTES>
    static __device__ __forceinline__ void load_words(unsigned* into, const char* from, bool inside) {
        if constexpr (BYTES == 16) {
            uint4 v = inside ? load_stream(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
            into[0] = v.x, into[1] = v.y, into[2] = v.z, into[3] = v.w;
        } else if constexpr (BYTES == 8) {
            uint2 v = inside ? __ldg(reinterpret_cast<const uint2*>(from)) : make_uint2(0, 0);
            into[0] = v.x, into[1] = v.y;
        } else {
#pragma unroll
            for (int i = 0; i < BYTES / 4; ++i) into[i] = inside ? __ldg(reinterpret_cast<const unsigned*>(from) + i) : 0;
        }
    }
};

/// Pairs of x for codes that decode as pairs (i, i + 4), from pairs (2i, 2i + 1) and back.
__device__ __forceinline__ void split_pairs(unsigned (&p)[4]) {
    unsigned a = __byte_perm(p[0], p[2], 0x5410), b = __byte_perm(p[0], p[2], 0x7632);
    unsigned c = __byte_perm(p[1], p[3], 0x5410), d = __byte_perm(p[1], p[3], 0x7632);
    p[0] = a, p[1] = b, p[2] = c, p[3] = d;
}
__device__ __forceinline__ void join_pairs(unsigned (&p)[4]) {
    unsigned a = __byte_perm(p[0], p[1], 0x5410), b = __byte_perm(p[2], p[3], 0x5410);
    unsigned c = __byte_perm(p[0], p[1], 0x7632), d = __byte_perm(p[2], p[3], 0x7632);
    p[0] = a, p[1] = b, p[2] = c, p[3] = d;
}

/// The sums of one warp: 16 weight rows by R rows of x, over the chunks that are its own.
template <class F, int R, int LOAD>
struct Product {
    using Read = Reader<F, LOAD>;
    static constexpr int TILES = R / 8;
    // Few rows of x are cheaper to reorder than the weights.
    static constexpr bool SPLIT_X = F::SPLIT && TILES <= 2;

    float sum[TILES][4];
    // Of row g of each tile of eight rows of x, at the first of the lane's inputs; rows behind
    // the last are read as the last, and their sums dropped.
    const half* x;
    int x_row[TILES];

    __device__ __forceinline__ Product(const half* first, int rows, int k_in) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        x = first + t * (LOAD * 8 / F::BITS);
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            x_row[n] = min(n * 8 + g, rows - 1) * k_in;
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[n][i] = 0.0f;
        }
    }

    __device__ __forceinline__ void add(const Chunk<F>& chunk, int index, const Read& read) {
        constexpr int UNITS = LOAD / F::BITS;
#pragma unroll
        for (int span = 0; span < Read::SPANS; ++span) {
            int byte = (index * Read::SPANS + span) * 4 * LOAD;
            bool inside = byte + read.lane_byte < read.row_bytes;
            int k = (index * Read::SPANS + span) * Read::SPAN;
            if constexpr (F::GROUPED) {
                float scale[2];
                typename F::Offset offset[2];
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    unsigned zero = F::zero(chunk.zero[r], chunk.zero_shift);
                    unsigned both = chunk.scale[r] | zero << 16;
                    if constexpr (Read::SPANS > 1) both = __shfl_sync(0xffffffffu, both, span, Read::SPANS);
                    scale[r] = __half2float(__ushort_as_half(static_cast<unsigned short>(both)));
                    offset[r] = F::offset(both >> 16);
                }
                float part[TILES][4] = {};
#pragma unroll
                for (int u = 0; u < UNITS; ++u) add_unit(part, chunk, span * UNITS + u, k + u * 8, inside, offset);
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) sum[n][i] = fmaf(part[n][i], scale[i / 2], sum[n][i]);
                }
            } else {
                typename F::Offset offset[2] = {};
#pragma unroll
                for (int u = 0; u < UNITS; ++u) add_unit(sum, chunk, span * UNITS + u, k + u * 8, inside, offset);
            }
        }
    }

    /// Eight weights of two rows for each lane: two matrix instructions for each tile.
    __device__ __forceinline__ void add_unit(float (&into)[TILES][4], const Chunk<F>& chunk, int unit, int k, bool inside, const typename F::Offset (&offset)[2]) {
        unsigned low[4], high[4];
        F::decode(low, chunk.words[0], unit, offset[0]);
        F::decode(high, chunk.words[1], unit, offset[1]);
        if constexpr (F::SPLIT && !SPLIT_X) {
            join_pairs(low);
            join_pairs(high);
        }
        unsigned first[4] = {low[0], high[0], low[1], high[1]};
        unsigned second[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (inside) v = __ldg(reinterpret_cast<const uint4*>(x + x_row[n] + k));
            unsigned p[4] = {v.x, v.y, v.z, v.w};
            if constexpr (SPLIT_X) split_pairs(p);
            multiply_add(into[n], first, {p[0], p[1]});
            multiply_add(into[n], second, {p[2], p[3]});
        }
    }
};

/// Every SLICES-th run of chunks, DEPTH chunks on the way.
template <class F, int R, int LOAD, int SLICES>
__device__ __forceinline__ void accumulate(Product<F, R, LOAD>& product, const Reader<F, LOAD>& read, int slice) {
    // Chunks of a run are neighbours, so that a warp reads whole cache lines.
    constexpr int RUN = F::RUN, DEPTH = F::DEPTH;
    static_assert(DEPTH % RUN == 0, "whole runs");
    Chunk<F> chunks[DEPTH];
    int at = slice * RUN;
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) {
        int chunk = at + i / RUN * SLICES * RUN + i % RUN;
        if (chunk < read.chunks) read.load(chunks[i], chunk);
    }
    for (; at < read.chunks; at += DEPTH * SLICES) {
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) {
            int now = at + i / RUN * SLICES * RUN + i % RUN, later = now + DEPTH * SLICES;
            if (now < read.chunks) product.add(chunks[i], now, read);
            if (later < read.chunks) read.load(chunks[i], later);
        }
    }
}

/// Sums of each warp, by row of x and weight row; 20 keeps a warp's writes in different banks.
template <int R>
using Sums = float[LINEAR_WARPS][R][20];

/// A block's outputs, by loads of LOAD bytes.
template <class F, int R, int LOAD>
__device__ __forceinline__ void linear_tiles(Sums<R>& sums, const Member& w, int first, const half* x, int rows, int k_in, int group, int output) {
    constexpr int ROW_TILES = linear_tile(R) / 16, SLICES = LINEAR_WARPS / ROW_TILES;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row_tile = warp % ROW_TILES;
    Product<F, R, LOAD> product(x, rows, k_in);
    if (first + row_tile * 16 < w.n_out) {
        Reader<F, LOAD> read(w, first + row_tile * 16, k_in, group);
        accumulate<F, R, LOAD, SLICES>(product, read, warp / ROW_TILES);
    }
#pragma unroll
    for (int n = 0; n < R / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[warp][n * 8 + lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] = product.sum[n][i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * ROW_TILES * 16; i += LINEAR_THREADS) {
        int n = i % (ROW_TILES * 16), row = i / (ROW_TILES * 16);
        if (first + n >= w.n_out) continue;
        float sum = 0.0f;
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice) sum += sums[slice * ROW_TILES + n / 16][row][n % 16];
        if constexpr (!F::GROUPED) sum *= F::FACTOR * F::scale(w, first + n);
        write_output(w, row, first + n, sum, output);
    }
}

/// Whether rows are made of whole pieces that can be loaded at once, and x of whole units.
template <class F>
__device__ __forceinline__ bool fits(const Member& w, const half* x, int k_in) {
    constexpr size_t ALIGNED = F::PIECE % 16 ? 4 : 16;
    return reinterpret_cast<size_t>(w.codes) % ALIGNED == 0 && reinterpret_cast<size_t>(x) % 16 == 0 && k_in % (F::PIECE * 8 / F::BITS) == 0;
}

/// Whether loads of LOAD bytes by four lanes are of one group each.
template <class F, int LOAD>
__device__ __forceinline__ bool groups_fit(const Member& w, int group) {
    if constexpr (F::GROUPED) return LOAD % F::BITS == 0 && (w.scales_per_row == 1 || group % (4 * LOAD * 8 / F::BITS) == 0);
    return true;
}

/// The body of linear_<format>_r<R>: rows <= R rows of x [rows, k_in] times each member.
template <class F, int R>
__device__ __forceinline__ void linear(const Members& members, const half* x, int rows, int k_in, int group, int output) {
    constexpr int TILE = linear_tile(R);
    __shared__ Sums<R> sums;
    int block = blockIdx.x;
    Member w = member_of<TILE>(members, block);
    int first = block * TILE;
    bool whole = fits<F>(w, x, k_in);
    if (whole && groups_fit<F, F::PIECE>(w, group)) return linear_tiles<F, R, F::PIECE>(sums, w, first, x, rows, k_in, group, output);
    // Narrow loads read as many bytes of smaller groups, with more instructions.
    if constexpr (F::GROUPED && F::PIECE == 16) {
        if (whole && groups_fit<F, 8>(w, group)) return linear_tiles<F, R, 8>(sums, w, first, x, rows, k_in, group, output);
        if constexpr (F::BITS <= 4) {
            if (whole && groups_fit<F, 4>(w, group)) return linear_tiles<F, R, 4>(sums, w, first, x, rows, k_in, group, output);
        }
    }
    linear_plain<F, TILE>(w, first, x, rows, k_in, group, output);
}

/// The body of dequant_<format>: rows first_row .. first_row + rows of a member as `out`
/// [rows, k_in], F16 or F32, rounded once. Any grid: x over the units of a row, y over rows.
template <class F, class T>
__device__ __forceinline__ void dequantize(const Member& w, T* out, int first_row, int rows, int k_in, int group) {
    int units = (k_in + 7) / 8;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        for (int unit = blockIdx.x * blockDim.x + threadIdx.x; unit < units; unit += gridDim.x * blockDim.x) {
            float v[8];
            load_weights<F>(v, w, first_row + row, unit, k_in, group);
            T* to = out + size_t(row) * k_in + unit * 8;
            if (sizeof(T) == 2 && k_in % 8 == 0 && reinterpret_cast<size_t>(out) % 16 == 0) {
                uint4 packed;
                packed.x = as_bits(__floats2half2_rn(v[0], v[1]));
                packed.y = as_bits(__floats2half2_rn(v[2], v[3]));
                packed.z = as_bits(__floats2half2_rn(v[4], v[5]));
                packed.w = as_bits(__floats2half2_rn(v[6], v[7]));
                *reinterpret_cast<uint4*>(to) = packed;
            } else {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    if (unit * 8 + i < k_in) to[i] = T(v[i]);
                }
            }
        }
    }
}

#define LINEAR_PARAMETERS const __grid_constant__ Members w, const half *x, int rows, int k_in, int group, int output
#define LINEAR_ARGUMENTS w, x, rows, k_in, group, output
#define DEQUANT_PARAMETERS const __grid_constant__ Member w, half *out, int first_row, int rows, int k_in, int group
#define DEQUANT_ARGUMENTS w, out, first_row, rows, k_in, group

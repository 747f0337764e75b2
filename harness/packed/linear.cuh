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
/// No dynamic shared memory.
__host__ __device__ constexpr int linear_tile(int r) { return r > 16 ? 32 : 16; }

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

/// The member of a block; `block` becomes its number among those of this member. Members stay in
/// the constant bank of the launch, and take no registers.
template <int TILE>
__device__ __forceinline__ const Member& member_of(const Members& w, int& block) {
    int i = 0;
#pragma unroll
    for (int last = 0; last < 2; ++last) {
        int blocks = (w.m[last].n_out + TILE - 1) / TILE;
        if (i < last || last + 1 >= w.count || block < blocks) continue;
        block -= blocks;
        ++i;
    }
    return w.m[i];
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

/// Any shape: a warp for each weight row, four rows of x at a time.
template <class F, int TILE>
__device__ __forceinline__ void linear_plain(const Member& w, int first, const half* x, int rows, int k_in, int group, int output) {
    constexpr int ROWS = 4;
    int lane = threadIdx.x % 32;
    int units = (k_in + 7) / 8;
    for (int n = first + threadIdx.x / 32; n < min(first + TILE, w.n_out); n += LINEAR_WARPS) {
        for (int row = 0; row < rows; row += ROWS) {
            float sum[ROWS] = {};
            for (int unit = lane; unit < units; unit += 32) {
                float v[8];
                load_weights<F>(v, w, n, unit, k_in, group);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    unsigned own = min(row + r, rows - 1) * k_in + unit * 8;
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        if (unit * 8 + i < k_in) sum[r] = fmaf(v[i], __half2float(x[own + i]), sum[r]);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
#pragma unroll
                for (int lanes = 16; lanes > 0; lanes /= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], lanes);
                if (lane == 0 && row + r < rows) write_output(w, row + r, n, sum[r], output);
            }
        }
    }
}

/// How loads of LOAD bytes cover a chunk: LOAD bytes go to a lane at once, and 4 * LOAD of a row to
/// its four: a span of inputs, which must be of one group. A lane's piece of a chunk is PIECE /
/// LOAD such loads.
template <class F, int LOAD>
struct Layout {
    static constexpr int SPANS = F::PIECE / LOAD;
    static constexpr int SPAN = 4 * LOAD * 8 / F::BITS;
    static constexpr int CHUNK = SPANS * SPAN;
    static constexpr int CHUNK_BYTES = SPANS * 4 * LOAD;
    static constexpr int UNITS = LOAD / F::BITS;
    /// Scales of two rows and SPANS groups, shared by four lanes.
    static constexpr int SCALES = SPANS > 2 ? SPANS / 2 : 1;
};

/// What a lane reads of a chunk: a piece of rows g and g + 8, and of groups its part of the scales
/// and zero points. Nothing is computed from them before their turn, so loads stay in flight.
template <class F, int LOAD>
struct Chunk {
    unsigned words[2][F::WORDS];
    unsigned short scale[Layout<F, LOAD>::SCALES];
    unsigned zero[Layout<F, LOAD>::SCALES][2];
    unsigned zero_shift[Layout<F, LOAD>::SCALES];
};

/// Where a warp stands in 16 weight rows: at chunk `at`. Loads are of chunks so and so far from
/// there, which the compiler knows, so that most addresses are a pointer and a constant.
template <class F, int LOAD>
struct Reader {
    using L = Layout<F, LOAD>;

    int at;
    const char* row[2];
    /// Bytes of a row from the lane's part of chunk `at` on.
    int left;
    // Of the row and span whose scale the lane loads.
    const half* scales;
    const unsigned char* zeros;
    unsigned first_group;
    float groups_per_span;
    int groups;

    /// Of rows from `first` on. Those behind the last are read as the last, and their sums
    /// dropped.
    __device__ __forceinline__ Reader(const Member& w, int first, int k_in, int group) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        int row_bytes = k_in * F::BITS / 8;
        at = 0;
        left = row_bytes - t * LOAD;
        int rows[2] = {min(first + g, w.n_out - 1), min(first + g + 8, w.n_out - 1)};
#pragma unroll
        for (int r = 0; r < 2; ++r) row[r] = static_cast<const char*>(w.codes) + size_t(rows[r]) * row_bytes + t * LOAD;
        if constexpr (F::GROUPED) {
            scales = static_cast<const half*>(w.scales);
            zeros = static_cast<const unsigned char*>(w.zeros);
            groups = w.scales_per_row;
            first_group = (t % 2 ? rows[1] : rows[0]) * groups;
            groups_per_span = groups == 1 ? 0.0f : float(L::SPAN) / float(group);
        }
    }

    __device__ __forceinline__ void advance(int chunks) {
        at += chunks;
        left -= chunks * L::CHUNK_BYTES;
        row[0] += chunks * L::CHUNK_BYTES;
        row[1] += chunks * L::CHUNK_BYTES;
    }

    /// Whether the lane's part of a span `ahead` spans further lies in the row.
    __device__ __forceinline__ bool inside(int ahead) const { return ahead * 4 * LOAD < left; }

    /// A chunk that lies `ahead`; PART of one at the end of the row.
    template <bool PART>
    __device__ __forceinline__ void load(Chunk<F, LOAD>& into, int ahead) const {
#pragma unroll
        for (int i = 0; i < L::SPANS; ++i) {
            bool there = !PART || inside(ahead * L::SPANS + i);
#pragma unroll
            for (int r = 0; r < 2; ++r) load_words(&into.words[r][i * LOAD / 4], row[r] + ahead * L::CHUNK_BYTES + i * 4 * LOAD, there);
        }
        if constexpr (F::GROUPED) {
#pragma unroll
            for (int j = 0; j < L::SCALES; ++j) {
                // Lanes of even t take row g, of odd t row g + 8.
                int span = (at + ahead) * L::SPANS + (threadIdx.x % 4 + j * 4) / 2 % L::SPANS;
                // A group is whole spans, and the half keeps clear of rounding: exact below 2^21.
                int group = int((float(span) + 0.5f) * groups_per_span);
                unsigned i = first_group + (PART ? min(group, groups - 1) : group);
                into.scale[j] = __half_as_ushort(__ldg(scales + i));
                F::load_zero(into.zero[j], zeros, i);
                into.zero_shift[j] = i * F::BITS % 8;
            }
        }
    }

    static __device__ __forceinline__ void load_words(unsigned* into, const char* from, bool there) {
        if constexpr (LOAD == 16) {
            uint4 v = there ? load_stream(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
            into[0] = v.x, into[1] = v.y, into[2] = v.z, into[3] = v.w;
        } else if constexpr (LOAD == 8) {
            uint2 v = there ? __ldg(reinterpret_cast<const uint2*>(from)) : make_uint2(0, 0);
            into[0] = v.x, into[1] = v.y;
        } else {
#pragma unroll
            for (int i = 0; i < LOAD / 4; ++i) into[i] = there ? __ldg(reinterpret_cast<const unsigned*>(from) + i) : 0;
        }
    }

    /// Scale and zero point of row g (0) or g + 8 (1) in a span of a loaded chunk.
    static __device__ __forceinline__ void scale_of(const Chunk<F, LOAD>& chunk, int span, int r, float& scale, typename F::Offset& offset) {
        int part = span * 2 + r, j = part / 4;
        unsigned both = chunk.scale[j] | F::zero(chunk.zero[j], chunk.zero_shift[j]) << 16;
        both = __shfl_sync(0xffffffffu, both, part % 4, 4);
        scale = __half2float(__ushort_as_half(static_cast<unsigned short>(both)));
        offset = F::offset(both >> 16);
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

/// What the weights of a format, decoded, make of x: halves times halves. A lane has eight weights
/// of each of two rows in `first` and `second` as the matrix instruction takes them.
template <class F>
struct Multiply {
    static __device__ __forceinline__ void add(float (&into)[4], const unsigned (&first)[4], const unsigned (&second)[4], const unsigned (&x)[4]) {
        multiply_add(into, first, {x[0], x[1]});
        multiply_add(into, second, {x[2], x[3]});
    }
};

/// The sums of one warp: 16 weight rows by COLUMNS rows of x, over the chunks that are its own.
template <class F, int COLUMNS, int LOAD>
struct Product {
    using L = Layout<F, LOAD>;
    using C = Chunk<F, LOAD>;
    static constexpr int TILES = COLUMNS / 8;
    // Few rows of x are cheaper to reorder than the weights.
    static constexpr bool SPLIT_X = F::SPLIT && TILES <= 2;

    Reader<F, LOAD> read;
    float sum[TILES][4];
    /// The lane's first input in chunk `read.at` of row g of x, and as far as row g of the other
    /// tiles of eight is from there. Rows behind the last are read as the last, and their sums
    /// dropped.
    const half* x;
    int to_tile[TILES];

    __device__ __forceinline__ Product(const Member& w, int first, const half* from, int column, int rows, int k_in, int group)
        : read(w, first, k_in, group) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        int row = min(column + g, rows - 1);
        x = from + size_t(row) * k_in + t * (LOAD * 8 / F::BITS);
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            to_tile[n] = (min(column + n * 8 + g, rows - 1) - row) * k_in;
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[n][i] = 0.0f;
        }
    }

    __device__ __forceinline__ void advance(int chunks) {
        read.advance(chunks);
        x += chunks * L::CHUNK;
    }

    /// Every SLICES-th run of chunks from `slice` on, DEPTH chunks on the way.
    template <int SLICES>
    __device__ __forceinline__ void run(int slice, int k_in) {
        // Chunks of a run are neighbours, so that a warp reads whole cache lines.
        // Many sums leave no registers for more than the chunks of a run.
        constexpr int RUN = F::RUN, DEPTH = F::GROUPED && (TILES > 2 || LOAD < F::PIECE) ? RUN : F::DEPTH;
        static_assert(DEPTH % RUN == 0, "whole runs");
        int whole = k_in / L::CHUNK;
        C chunks[DEPTH];
        advance(slice * RUN);
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) {
            int ahead = i / RUN * SLICES * RUN + i % RUN;
            if (read.at + ahead < whole) read.template load<false>(chunks[i], ahead);
        }
        for (; read.at < whole; advance(DEPTH * SLICES)) {
#pragma unroll
            for (int i = 0; i < DEPTH; ++i) {
                int ahead = i / RUN * SLICES * RUN + i % RUN;
                if (read.at + ahead < whole) add<false>(chunks[i], ahead);
                ahead += DEPTH * SLICES;
                if (read.at + ahead < whole) read.template load<false>(chunks[i], ahead);
            }
        }
        if (k_in % L::CHUNK && whole / RUN % SLICES == slice) {
            advance(whole - read.at);
            read.template load<true>(chunks[0], 0);
            add<true>(chunks[0], 0);
        }
    }

    template <bool PART>
    __device__ __forceinline__ void add(const C& chunk, int ahead) {
#pragma unroll
        for (int span = 0; span < L::SPANS; ++span) {
            typename F::Offset offset[2] = {};
            if constexpr (F::GROUPED) {
                float scale[2], part[TILES][4] = {};
#pragma unroll
                for (int r = 0; r < 2; ++r) read.scale_of(chunk, span, r, scale[r], offset[r]);
                add_span<PART>(part, chunk, ahead, span, offset);
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) sum[n][i] = fmaf(part[n][i], scale[i / 2], sum[n][i]);
                }
            } else {
                add_span<PART>(sum, chunk, ahead, span, offset);
            }
        }
    }

    /// For each lane eight weights of two rows at a time: two matrix instructions for each tile.
    template <bool PART>
    __device__ __forceinline__ void add_span(float (&into)[TILES][4], const C& chunk, int ahead, int span, const typename F::Offset (&offset)[2]) const {
        bool there = !PART || read.inside(ahead * L::SPANS + span);
#pragma unroll
        for (int u = 0; u < L::UNITS; ++u) {
            unsigned low[4], high[4];
            F::decode(low, chunk.words[0], span * L::UNITS + u, offset[0]);
            F::decode(high, chunk.words[1], span * L::UNITS + u, offset[1]);
            if constexpr (F::SPLIT && !SPLIT_X) {
                join_pairs(low);
                join_pairs(high);
            }
            unsigned first[4] = {low[0], high[0], low[1], high[1]};
            unsigned second[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                const half* from = (n ? x + to_tile[n] : x) + ahead * L::CHUNK + span * L::SPAN + u * 8;
                uint4 v = there ? __ldg(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
                unsigned p[4] = {v.x, v.y, v.z, v.w};
                if constexpr (SPLIT_X) split_pairs(p);
                Multiply<F>::add(into[n], first, second, p);
            }
        }
    }
};

/// How the warps of a block divide its outputs and k: more rows of x share what a block reads of
/// them among more weight rows, and a warp's sums stay in few enough registers.
template <int R>
struct Division {
    static constexpr int ROW_TILES = linear_tile(R) / 16;
    static constexpr int COLUMNS = R < 32 ? R : 32;
    static constexpr int COLUMN_TILES = R / COLUMNS;
    static constexpr int SLICES = LINEAR_WARPS / ROW_TILES / COLUMN_TILES;
    /// By warp, row of x and weight row; 20 keeps a warp's writes in different banks.
    using Sums = float[LINEAR_WARPS][COLUMNS][20];
};

/// A block's outputs, by loads of LOAD bytes.
template <class F, int R, int LOAD>
__device__ __forceinline__ void linear_tiles(typename Division<R>::Sums& sums, const Member& w, int first, const half* x, int rows, int k_in, int group, int output) {
    using D = Division<R>;
    int lane = threadIdx.x % 32;
    // The same in all lanes, which the compiler cannot know of threadIdx.
    int warp = __shfl_sync(0xffffffffu, int(threadIdx.x / 32), 0);
    int row_tile = warp % D::ROW_TILES, column_tile = warp / D::ROW_TILES % D::COLUMN_TILES;
    int slice = warp / (D::ROW_TILES * D::COLUMN_TILES);
    Product<F, D::COLUMNS, LOAD> product(w, first + row_tile * 16, x, column_tile * D::COLUMNS, rows, k_in, group);
    if (first + row_tile * 16 < w.n_out && column_tile * D::COLUMNS < rows) product.template run<D::SLICES>(slice, k_in);
#pragma unroll
    for (int n = 0; n < D::COLUMNS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[warp][n * 8 + lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] = product.sum[n][i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * linear_tile(R); i += LINEAR_THREADS) {
        int n = i % linear_tile(R), row = i / linear_tile(R);
        if (first + n >= w.n_out) continue;
        float sum = 0.0f;
#pragma unroll
        for (int slice = 0; slice < D::SLICES; ++slice) {
            int tile = (slice * D::COLUMN_TILES + row / D::COLUMNS) * D::ROW_TILES + n / 16;
            sum += sums[tile][row % D::COLUMNS][n % 16];
        }
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
    __shared__ typename Division<R>::Sums sums;
    int block = blockIdx.x;
    const Member& w = member_of<TILE>(members, block);
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
// linear_NAME_rROWS: a product of up to ROWS rows, with at least BLOCKS blocks on a multiprocessor.
#define LINEAR_KERNEL(NAME, ROWS, BLOCKS, ...)                                                    \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, BLOCKS)                          \
        linear_##NAME##_r##ROWS(LINEAR_PARAMETERS) {                                              \
        __VA_ARGS__(LINEAR_ARGUMENTS);                                                            \
    }
// The products of a format, with their blocks.
#define LINEAR_KERNELS(NAME, FORMAT, B8, B16, B32, B64)                                           \
    LINEAR_KERNEL(NAME, 8, B8, linear<FORMAT, 8>)                                                 \
    LINEAR_KERNEL(NAME, 16, B16, linear<FORMAT, 16>)                                              \
    LINEAR_KERNEL(NAME, 32, B32, linear<FORMAT, 32>)                                              \
    LINEAR_KERNEL(NAME, 64, B64, linear<FORMAT, 64>)
#define DEQUANT_PARAMETERS const __grid_constant__ Member w, half *out, int first_row, int rows, int k_in, int group
#define DEQUANT_ARGUMENTS w, out, first_row, rows, k_in, group
// dequant_NAME: rows of the matrix in F16.
#define DEQUANT_KERNEL(NAME, FORMAT)                                                              \
    extern "C" __global__ void dequant_##NAME(DEQUANT_PARAMETERS) {                               \
        dequantize<FORMAT>(DEQUANT_ARGUMENTS);                                                    \
    }

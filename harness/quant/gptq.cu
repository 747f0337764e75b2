// GPTQ (arXiv 2210.17323) on a GPU: what is no matrix product. The host composes these with
// products in F32 (never TF32), block of columns after block of columns:
//
//   1. U, upper triangular with H^-1 = UT U, as on the CPU: with P reversing the order of inputs
//      (`reverse_*`) and P H P = L LT, U = P L^-1 P. For each diagonal block: `cholesky_block_*`,
//      then L[below, block] = A[below, block] inverseT and
//      A[below, below] -= L[below, block] L[below, block]T. The blocks X of L^-1 follow from the
//      inverses: X[i, j] = -inverse_i sum of L[i, k] X[k, j] over k from j to i - 1.
//   2. `gptq_fit` where grids are fitted beforehand: all groups (act-order), or one that is longer
//      than a block, when its first column comes up.
//   3. `gptq_block`, then w[:, behind] -= errors U[block, behind].
//
// On the same weights, U and grids, codes and errors equal those of the CPU to the bit: the same
// operations in the same order, each rounded by itself (no fused multiply-add).
#include "../device/gpu.cuh"

// ---- grids ---------------------------------------------------------------------------------------

// Levels scale * (code - zero), codes 0..top.
struct Grid {
    float scale, zero;
};

DEVICE float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

// The nearest whole number, ties to even; codes lie within 255.
DEVICE float round_small(float x) { return rintf(clamp(x, -1024.0f, 1024.0f)); }

// The grid that spans low..high and zero. Its scale is a positive F16; where that cannot be,
// `*failed` becomes 1.
DEVICE Grid span(float low, float high, float top, unsigned* failed) {
    low = fminf(low, 0.0f);
    high = fmaxf(high, 0.0f);
    // Halves, because the difference of two finite weights may not be finite.
    const half stored = __float2half_rn(high / top - low / top);
    float scale = __half2float(stored);
    if (scale == 0.0f) scale = 0x1p-24f; // the finest step there is
    if (!is_finite(scale)) *failed = 1;
    return {scale, clamp(round_small(-low / scale), 0.0f, top)};
}

struct Min {
    DEVICE float operator()(float a, float b) const { return fminf(a, b); }
};

constexpr int FIT_WARPS = 4;

// w F32 [rows, k] -> scales, zeros F32 [rows, groups]: grids of the groups first_group,
// first_group + 1, ... of `group` columns each (the last may be short), of every row.
//
// Grid: (groups to fit, ceil(rows / FIT_WARPS)), block 32 * FIT_WARPS. `*failed` becomes 1 where
// a step exceeds F16 (weights that are no numbers included, unless the row has others).
extern "C" __global__ void gptq_fit(const float* w, float* scales, float* zeros, unsigned* failed,
                                    int rows, int k, int group, int groups, int first_group,
                                    float top) {
    const int lane = threadIdx.x % 32;
    const int row = blockIdx.y * FIT_WARPS + threadIdx.x / 32, g = first_group + blockIdx.x;
    if (row >= rows || g >= groups) return;
    w += (size_t)row * k;
    float low = 0.0f, high = 0.0f;
    for (int i = g * group + lane; i < min((g + 1) * group, k); i += 32) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    const Grid grid = span(warp_reduce(low, Min()), warp_reduce(high, Max()), top, failed);
    if (lane == 0) {
        scales[(size_t)row * groups + g] = grid.scale;
        zeros[(size_t)row * groups + g] = grid.zero;
    }
}

// ---- rounding a block of columns -------------------------------------------------------------------

constexpr int GPTQ_WIDTH = 128;
constexpr int GPTQ_WARPS = 4;
constexpr int GPTQ_ROWS = 4; // of a warp: they share what is read of U
constexpr int LANE_COLUMNS = GPTQ_WIDTH / 32;

// Rounds columns first..first + width (at most 128) of w F32 [rows, k], one after the other, and
// moves those behind each within the block.
//
//   upper     F32 [width, width] within a matrix of row pitch `pitch`: U[block, block]; what is
//             below its diagonal is not read
//   order     I32 [k], the column of the weight that stands at each place of w; or null: w is in
//             its own order. Code and grid belong to that column.
//   scales, zeros  F32 [rows, groups], grids of groups of `group` columns: read or, where `fit`,
//             written: each is fitted when its first column comes up. The block then holds whole
//             groups (or the end of k), and order is null.
//   codes     U8 [rows, k]; written in the order of the weight
//   errors    F32 [rows, width]: (w - level) / U_ii
//   failed    becomes 1 where a step exceeds F16
//
// Grid: ceil(rows / (GPTQ_WARPS * GPTQ_ROWS)), block 32 * GPTQ_WARPS. A row depends on its 128
// steps in turn; with thousands of rows the card is full, and a block of columns takes as long
// as those steps.
extern "C" __global__ void __launch_bounds__(32 * GPTQ_WARPS)
    gptq_block(const float* w, const float* upper, const int* order, float* scales, float* zeros,
               unsigned char* codes, float* errors, unsigned* failed, int rows, int k, int first,
               int width, long long pitch, int group, int groups, int fit, float top) {
    // Rows of the triangle, one behind the other.
    __shared__ float triangle[GPTQ_WIDTH * (GPTQ_WIDTH + 1) / 2];
    const auto start_of = [&](int i) { return i * width - i * (i - 1) / 2 - i; };
    for (int at = threadIdx.x; at < width * width; at += 32 * GPTQ_WARPS) {
        const int i = at / width, j = at % width;
        if (j >= i) triangle[start_of(i) + j] = upper[i * pitch + j];
    }
    __syncthreads();

    const int lane = threadIdx.x % 32;
    const int first_row = (blockIdx.x * GPTQ_WARPS + threadIdx.x / 32) * GPTQ_ROWS;
    float weight[GPTQ_ROWS][LANE_COLUMNS], error[GPTQ_ROWS][LANE_COLUMNS];
    float code[GPTQ_ROWS][LANE_COLUMNS];
    Grid grid[GPTQ_ROWS];
    size_t row_of[GPTQ_ROWS];
#pragma unroll
    for (int r = 0; r < GPTQ_ROWS; r++) {
        row_of[r] = min(first_row + r, rows - 1);
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) {
            const int column = lane + 32 * c;
            weight[r][c] = column < width ? w[row_of[r] * k + first + column] : 0.0f;
        }
    }

#pragma unroll
    for (int slot = 0; slot < LANE_COLUMNS; slot++) {
        const int steps = min(32, width - 32 * slot);
        for (int step = 0; step < steps; step++) {
            const int i = 32 * slot + step;
            const int column = order == nullptr ? first + i : order[first + i];
            const int g = column / group;
            if (fit && (first + i) % group == 0) {
#pragma unroll
                for (int r = 0; r < GPTQ_ROWS; r++) {
                    float low = 0.0f, high = 0.0f;
#pragma unroll
                    for (int c = 0; c < LANE_COLUMNS; c++) {
                        const int other = lane + 32 * c;
                        if (other >= i && other < min(i + group, width)) {
                            low = fminf(low, weight[r][c]);
                            high = fmaxf(high, weight[r][c]);
                        }
                    }
                    grid[r] = span(warp_reduce(low, Min()), warp_reduce(high, Max()), top, failed);
                    if (lane == 0 && first_row + r < rows) {
                        scales[row_of[r] * groups + g] = grid[r].scale;
                        zeros[row_of[r] * groups + g] = grid[r].zero;
                    }
                }
            }
            float u[LANE_COLUMNS];
#pragma unroll
            for (int c = slot; c < LANE_COLUMNS; c++) {
                const int other = lane + 32 * c;
                u[c] = other > i && other < width ? triangle[start_of(i) + other] : 0.0f;
            }
            const float diagonal = triangle[start_of(i) + i];
#pragma unroll
            for (int r = 0; r < GPTQ_ROWS; r++) {
                if (!fit) {
                    grid[r] = {scales[row_of[r] * groups + g], zeros[row_of[r] * groups + g]};
                }
                const float x = __shfl_sync(ALL_LANES, weight[r][slot], step);
                const float q =
                    clamp(round_small(x / grid[r].scale) + grid[r].zero, 0.0f, top);
                const float level = __fmul_rn(grid[r].scale, q - grid[r].zero);
                const float e = (x - level) / diagonal;
                if (lane == step) {
                    code[r][slot] = q;
                    error[r][slot] = e;
                }
#pragma unroll
                for (int c = slot; c < LANE_COLUMNS; c++) weight[r][c] -= __fmul_rn(e, u[c]);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < GPTQ_ROWS; r++) {
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) {
            const int i = lane + 32 * c;
            if (i >= width || first_row + r >= rows) continue;
            const int column = order == nullptr ? first + i : order[first + i];
            codes[row_of[r] * k + column] = (unsigned char)code[r][c];
            errors[row_of[r] * width + i] = error[r][c];
        }
    }
}

// ---- Cholesky ------------------------------------------------------------------------------------

constexpr int CHOLESKY_WIDTH = 64;
constexpr int CHOLESKY_THREADS = 256;

DEVICE float square_root(float x) { return sqrtf(x); }
DEVICE double square_root(double x) { return sqrt(x); }

// The block [n, n] (n at most 64) at `a`, within a matrix of row pitch `pitch`, symmetric, of
// which the lower triangle is read: overwritten by L with a = L LT, zeros above the diagonal;
// inverse [n, n] = L^-1, likewise. Where a pivot is not positive and finite, `*failed` becomes 1
// and both are left as they are.
//
// One block of CHOLESKY_THREADS threads: it is on the critical path of the factorization, between
// products that fill the card, for some tens of microseconds.
template <typename T>
DEVICE void cholesky_block(T* a, T* inverse, unsigned* failed, long long pitch, int n) {
    __shared__ T l[CHOLESKY_WIDTH][CHOLESKY_WIDTH + 1];
    __shared__ T diagonal[CHOLESKY_WIDTH];
    const int thread = threadIdx.x;
    for (int i = thread; i < n * n; i += CHOLESKY_THREADS) {
        l[i / n][i % n] = i % n <= i / n ? a[i / n * pitch + i % n] : T(0);
    }
    for (int j = 0; j < n; j++) {
        __syncthreads();
        const T pivot = l[j][j];
        // Not finite: the difference to itself is no number.
        if (!(pivot > T(0) && pivot - pivot == T(0))) {
            if (thread == 0) *failed = 1;
            return;
        }
        const T root = square_root(pivot);
        if (thread == 0) diagonal[j] = root;
        for (int i = j + 1 + thread; i < n; i += CHOLESKY_THREADS) l[i][j] /= root;
        __syncthreads();
        const int left = n - j - 1;
        for (int at = thread; at < left * left; at += CHOLESKY_THREADS) {
            const int i = j + 1 + at / left, c = j + 1 + at % left;
            if (c <= i) l[i][c] -= l[i][j] * l[c][j];
        }
    }
    __syncthreads();
    for (int i = thread; i < n * n; i += CHOLESKY_THREADS) {
        const int row = i / n, column = i % n;
        if (row == column) l[row][row] = diagonal[row];
        a[row * pitch + column] = l[row][column];
    }
    __syncthreads();
    // Row i of the inverse X takes the place of row i of L: L[i, :i] X[:i] = -L_ii X[i, :i]. Of X
    // a thread reads its own column only.
    for (int i = 0; i < n; i++) {
        T sum = T(0);
        for (int c = thread; c < i; c++) {
            sum += l[i][c] * l[c][thread];
        }
        __syncthreads();
        if (thread < i) l[i][thread] = -sum / diagonal[i];
        if (thread == i) l[i][i] = T(1) / diagonal[i];
    }
    __syncthreads();
    for (int i = thread; i < n * n; i += CHOLESKY_THREADS) inverse[i] = l[i / n][i % n];
}

extern "C" __global__ void __launch_bounds__(CHOLESKY_THREADS)
    cholesky_block_f32(float* a, float* inverse, unsigned* failed, long long pitch, int n) {
    cholesky_block(a, inverse, failed, pitch, n);
}

// In F64, as the CPU does it: for Hessians whose damping is small against their spread.
extern "C" __global__ void __launch_bounds__(CHOLESKY_THREADS)
    cholesky_block_f64(double* a, double* inverse, unsigned* failed, long long pitch, int n) {
    cholesky_block(a, inverse, failed, pitch, n);
}

// to[i] = from[n - 1 - i]: of a whole matrix, both orders reversed. Any grid and block.
template <typename From, typename To> DEVICE void reverse(const From* from, To* to, long long n) {
    const long long stride = gridDim.x * (long long)blockDim.x;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += stride) {
        to[i] = To(from[n - 1 - i]);
    }
}

extern "C" __global__ void reverse_f32(const float* from, float* to, long long n) {
    reverse(from, to, n);
}

extern "C" __global__ void reverse_f32_f64(const float* from, double* to, long long n) {
    reverse(from, to, n);
}

extern "C" __global__ void reverse_f64_f32(const double* from, float* to, long long n) {
    reverse(from, to, n);
}

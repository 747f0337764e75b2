// Calibration and the matrix work of methods on a GPU, besides the products of the vendor's
// library and GPTQ's own kernels (gptq.cu): sums over inputs, matrices put in another order.
// Matrices are row-major and without gaps.
#include "../../device/gpu.cuh"

// to[i] = from[i]: the residual stream of a window, which the decoder adds to in place.
// Any grid and block.
extern "C" __global__ void copy_f32(const float* from, float* to, long long n) {
    const long long stride = gridDim.x * (long long)blockDim.x;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += stride) {
        to[i] = from[i];
    }
}

constexpr int ABS_CHANNELS = 32;
constexpr int ABS_ROWS = 8;

// sums F64 [k] += sum over rows of |x|, x F16 [rows, k]. F64, because a channel is summed over
// all calibration tokens.
//
// Grid: ceil(k / ABS_CHANNELS), block ABS_CHANNELS * ABS_ROWS: a warp reads neighbouring channels
// of one row. It is bound by reading x once, little beside the products on the same input.
extern "C" __global__ void add_abs(const half* x, double* sums, int rows, int k) {
    __shared__ double of_row[ABS_ROWS][ABS_CHANNELS];
    const int lane = threadIdx.x % ABS_CHANNELS, first = threadIdx.x / ABS_CHANNELS;
    const int channel = blockIdx.x * ABS_CHANNELS + lane;
    double sum = 0.0;
    if (channel < k) {
        for (int r = first; r < rows; r += ABS_ROWS) {
            sum += fabsf(__half2float(x[(size_t)r * k + channel]));
        }
    }
    of_row[first][lane] = sum;
    __syncthreads();
    if (first != 0 || channel >= k) return;
    for (int r = 1; r < ABS_ROWS; r++) sum += of_row[r][lane];
    sums[channel] += sum;
}

// a F64 [n, n] = P H P: h F32 [n, n] with inputs in the order `order` U32 [n], `diagonal` F64 [n]
// (in that order) in place of its diagonal, both orders reversed. Any grid and block.
extern "C" __global__ void damped_reversed(const float* h, const unsigned* order,
                                           const double* diagonal, double* a, int n) {
    const long long stride = gridDim.x * (long long)blockDim.x, all = (long long)n * n;
    for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < all; at += stride) {
        const int i = n - 1 - int(at / n), j = n - 1 - int(at % n);
        a[at] = i == j ? diagonal[i] : double(h[(size_t)order[i] * n + order[j]]);
    }
}

// Rows first..first + width of X = L^-1, of which `solved` F64 [width, n] holds the columns before
// `first` and `inverse` F64 [width, width] those of the block itself, into upper F32 [n, n] with
// both orders reversed: rows of U = P X P, zeros below the diagonal. Any grid and block.
extern "C" __global__ void store_upper(const double* solved, const double* inverse, float* upper,
                                       int n, int first, int width) {
    const long long stride = gridDim.x * (long long)blockDim.x, all = (long long)width * n;
    for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < all; at += stride) {
        const int i = int(at / n), j = int(at % n);
        double x = 0.0;
        if (j < first) x = solved[at];
        else if (j < first + width) x = inverse[i * width + j - first];
        upper[(size_t)(n - 1 - first - i) * n + n - 1 - j] = float(x);
    }
}

// to[r, c] = from[r, order[c]], F32 [rows, k]. Grid: (ceil(k / block), min(rows, 65535)).
extern "C" __global__ void gather_columns(const float* from, const unsigned* order, float* to,
                                          int rows, int k) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= k) return;
    const unsigned column = order[c];
    for (int r = blockIdx.y; r < rows; r += gridDim.y) {
        to[(size_t)r * k + c] = from[(size_t)r * k + column];
    }
}

struct SumF64 {
    DEVICE double operator()(double a, double b) const { return a + b; }
};

// dots F64 [rows]: a[r] b[r], a and b F32 [rows, k]. Products of F32 are exact in F64, as on the
// CPU; the order of the sum is another. Grid: rows, block of whole warps.
extern "C" __global__ void row_dots(const float* a, const float* b, double* dots, int k) {
    a += (size_t)blockIdx.x * k;
    b += (size_t)blockIdx.x * k;
    double sum = 0.0;
    for (int i = threadIdx.x; i < k; i += blockDim.x) sum += double(a[i]) * double(b[i]);
    sum = block_reduce(sum, SumF64());
    if (threadIdx.x == 0) dots[blockIdx.x] = sum;
}

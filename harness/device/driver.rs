//! What a driver of a GPU does, and what it is asked for.

use crate::Result;
use candle_core::{DType, Device, Shape, Tensor};
use std::ffi::c_void;

/// What runs kernels. Calls are ordered: each sees what those before it wrote. A call may return
/// before its work is done; [`Driver::synchronize`] waits.
pub trait Driver: Send + Sync {
    /// Where the tensors that kernels read and write live.
    fn device(&self) -> &Device;

    /// Starts one kernel.
    ///
    /// # Errors
    /// A kernel that does not exist, or a launch that the device refuses.
    fn launch(&self, launch: &Launch, args: &mut Args) -> Result<()>;

    /// Blocks of so many threads, without dynamic shared memory, that a multiprocessor runs of a
    /// kernel at a time.
    ///
    /// # Errors
    /// A kernel that does not exist.
    fn resident_blocks(&self, kernel: &str, block: u32) -> Result<u32>;

    /// `y = x Wᵀ`, or `y += x Wᵀ`, by the vendor's library.
    ///
    /// # Errors
    /// A kind of product that this device does not have.
    fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// Address of a contiguous tensor's first element, for kernels; valid while the tensor lives.
    ///
    /// # Errors
    /// A tensor that lives elsewhere or is not contiguous.
    fn address(&self, tensor: &Tensor) -> Result<u64>;

    /// A new tensor of zeros, or, where the content does not matter, of anything.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if the device has too little memory left; any call while a graph is
    /// being recorded.
    fn allocate(&self, shape: &Shape, dtype: DType, zeroed: bool) -> Result<Tensor>;

    /// Copies bytes of the host to an address on the device; `bytes` may be reused at once.
    ///
    /// # Errors
    /// A call while a graph is being recorded.
    fn write(&self, bytes: &[u8], to: u64) -> Result<()>;

    /// Waits for what was started, and copies bytes at an address on the device to the host.
    ///
    /// # Errors
    /// A call while a graph is being recorded; what failed on the device.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Records what `body` launches, without running it. Products of the library are recorded
    /// too; an allocation or a copy is an error.
    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>>;

    /// Waits until everything that was started has ended, and reports what failed on the way.
    fn synchronize(&self) -> Result<()>;

    /// Seconds from the start to the end of what `body` starts, by the device's own clock where it
    /// has one.
    fn elapsed_s(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.synchronize()?;
        let start = std::time::Instant::now();
        body()?;
        self.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// What the device's allocator holds.
    fn pool(&self) -> Result<PoolUsage>;

    /// Lets the high-water marks of [`Driver::pool`] fall back to what is in use.
    fn reset_pool_peak(&self) -> Result<()>;

    /// What the device is and has.
    fn info(&self) -> &DeviceInfo;
}

/// Work that was recorded once and can be started again and again.
pub trait Graph {
    /// Starts all of it.
    fn replay(&self) -> Result<()>;

    /// Whether the memory that it works on is still there; record anew if not.
    fn is_current(&self) -> bool {
        true
    }
}

/// One kernel and its grid.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: u32,
}

/// The parameters of a kernel, in its order, each of the size and alignment that the kernel
/// declares.
#[derive(Default)]
pub struct Args {
    /// 8-byte aligned storage, a parameter starting at a multiple of 8 bytes.
    words: Vec<u64>,
    starts: Vec<usize>,
    pointers: Vec<*mut c_void>,
}

impl Args {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a parameter: an address, a number, or a `#[repr(C)]` structure of them.
    pub fn with<T: Copy>(mut self, value: T) -> Self {
        const { assert!(align_of::<T>() <= align_of::<u64>()) };
        let start = self.words.len();
        self.starts.push(start);
        self.words
            .resize(start + size_of::<T>().div_ceil(size_of::<u64>()), 0);
        // SAFETY: the words just appended have room for `T` and are aligned for it.
        unsafe {
            self.words
                .as_mut_ptr()
                .add(start)
                .cast::<T>()
                .write_unaligned(value);
        }
        self
    }

    /// One pointer per parameter, as driver interfaces take them; valid until `self` changes.
    pub fn pointers(&mut self) -> &mut [*mut c_void] {
        let base = self.words.as_mut_ptr();
        self.pointers.clear();
        // SAFETY: every start lies inside `words`.
        let at = |start: &usize| unsafe { base.add(*start) }.cast::<c_void>();
        self.pointers.extend(self.starts.iter().map(at));
        &mut self.pointers
    }

    /// Whether these are parameters of `bytes` bytes each, to the 8 bytes that one takes at least.
    pub fn fits(&self, bytes: &[usize]) -> bool {
        let end = self.words.len();
        let ends = self.starts.iter().skip(1).chain([&end]);
        let words = ends.zip(&self.starts).map(|(end, start)| end - start);
        words.eq(bytes.iter().map(|n| n.div_ceil(size_of::<u64>())))
    }

    /// The parameters' bytes, for a driver that keeps them.
    pub fn snapshot(&self) -> Args {
        Args {
            words: self.words.clone(),
            starts: self.starts.clone(),
            pointers: vec![],
        }
    }
}

/// Types of a product of the vendor's library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GemmKind {
    /// F16 × F16, F32 accumulation; `y` is F16, or F32 if `f32_output`.
    F16 { f32_output: bool },
    /// F32 × F32, no TF32.
    F32,
    /// F64 × F64.
    F64,
    /// E4M3 × E4M3, F32 accumulation and `y`; compute capability 8.9.
    Fp8,
    /// I8 × I8 → I32, exact.
    Int8,
}

/// `y[rows, n_out] = x[rows, k_in] · w[n_out, k_in]ᵀ`, row-major, by address.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    pub kind: GemmKind,
    pub x: u64,
    pub w: u64,
    pub y: u64,
    pub rows: usize,
    pub n_out: usize,
    pub k_in: usize,
    /// Elements from one stored row of `x` to the next; its width unless it is a part.
    pub x_stride: usize,
    /// Likewise of `w`.
    pub w_stride: usize,
    /// Elements from one row of `y` to the next; `n_out` unless a part of the columns is made.
    pub y_stride: usize,
    /// `x` is stored as its transpose, `[k_in, rows]`; kinds of 16 bits and more.
    pub x_transposed: bool,
    /// `w` is stored as its transpose, `[k_in, n_out]`; kinds of 16 bits and more.
    pub w_transposed: bool,
    /// Takes the product with a minus sign; kinds of 16 bits and more.
    pub negated: bool,
    /// Adds to `y` instead of replacing it.
    pub accumulate: bool,
}

impl Gemm {
    /// The product of whole matrices, none of them transposed, that replaces `y`.
    pub fn new(kind: GemmKind, [x, w, y]: [u64; 3], [rows, n_out, k_in]: [usize; 3]) -> Self {
        Gemm {
            kind,
            x,
            w,
            y,
            rows,
            n_out,
            k_in,
            x_stride: k_in,
            w_stride: k_in,
            y_stride: n_out,
            x_transposed: false,
            w_transposed: false,
            negated: false,
            accumulate: false,
        }
    }

    /// Elements of a stored row of `x` and of `w`.
    pub fn stored_widths(&self) -> (usize, usize) {
        let width = |transposed, plain, other| if transposed { other } else { plain };
        (
            width(self.x_transposed, self.k_in, self.rows),
            width(self.w_transposed, self.k_in, self.n_out),
        )
    }
}

/// Bytes of the device's memory pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolUsage {
    pub used_bytes: u64,
    /// High-water mark of what was in use.
    pub used_peak_bytes: u64,
    /// High-water mark of what the pool held, free pieces included.
    pub reserved_peak_bytes: u64,
    /// High-water mark of what nodes of graphs allocated: none, as recording refuses such nodes.
    /// The driver's own memory for a graph is not in it.
    pub graph_peak_bytes: u64,
    /// Workspace handed to the vendor's library, taken from the pool.
    pub library_workspace_bytes: u64,
    /// What the driver says is free on the device; empty where there is no driver to ask.
    pub device_free_bytes: Option<u64>,
}

/// What a device is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeviceInfo {
    /// As in results: `cuda:0`.
    pub id: String,
    /// As its maker calls it.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    pub l2_bytes: u64,
    pub total_bytes: u64,
    /// Dynamic shared memory that a block may ask for.
    pub max_shared_bytes: u32,
    pub driver_version: String,
    /// Whether it takes one process at a time (compute mode EXCLUSIVE_PROCESS).
    pub exclusive: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_compared_with_parameters_by_number_and_size() {
        let args = Args::new().with(1u64).with(2i32).with([3u64; 5]);
        assert!(args.fits(&[8, 4, 40]));
        for other in [&[8, 4][..], &[8, 4, 40, 4], &[8, 4, 48], &[4, 40, 8], &[]] {
            assert!(!args.fits(other), "{other:?}");
        }
        assert!(Args::new().fits(&[]));
    }
}

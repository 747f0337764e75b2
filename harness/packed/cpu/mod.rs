//! Products on the CPU: the choice of kernel and instruction set, and the split over threads.
//!
//! Threads are those of the rayon pool in which the product is called. They share the weight
//! rows; every output is computed by one thread, in an order that depends on the shapes and the
//! instruction set alone, so results are bit-identical for any number of threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(super) mod int8_dot;
pub(super) mod isa;
mod kernel;
mod paths;
mod peak;
mod portable;
pub(super) mod rounded;
pub(super) mod rows;

use crate::lock::lock;
use crate::memory::{self, Part};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use kernel::{BLOCK, Product, Tile};
use rows::{Elements, Rows, Scales};
use std::cell::Cell;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// Inputs up to which the fused kernel runs; more of them repay unpacking a tile.
pub const FUSED_ROWS: usize = 8;

/// The F32 workspace of one thread may not exceed this many bytes.
pub const WORKSPACE_BYTES: usize = 256 << 10;

/// Multiplications below which a product stays on the calling thread: one core does them in
/// about 5 microseconds, which is what handing half of them to a waiting thread costs.
const SERIAL: usize = 1 << 17;

/// Multiplications in a task of the fused kernel: long against the cost of a task (below a
/// microsecond), short against the whole.
const FUSED_TASK: usize = 1 << 17;

/// Environment variable that fixes the instruction set: `portable`, `avx2` or `avx512`.
pub const PATH_VARIABLE: &str = "QUANTBENCH_CPU_PATH";

/// The instruction set that kernels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Plain Rust; everywhere.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Path {
    pub const ALL: [Path; 3] = [Path::Portable, Path::Avx2, Path::Avx512];

    pub fn name(self) -> &'static str {
        match self {
            Path::Portable => "portable",
            Path::Avx2 => "avx2",
            Path::Avx512 => "avx512",
        }
    }

    /// Whether this CPU has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Path::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Those this CPU has, the best last.
    pub fn available() -> Vec<Path> {
        Path::ALL.into_iter().filter(|p| p.is_available()).collect()
    }

    /// The best this CPU has.
    pub fn best() -> Path {
        *Path::available().last().expect("portable is everywhere")
    }

    /// The path of this name, if this CPU has it.
    ///
    /// # Errors
    /// An unknown name, or one that needs instructions this CPU lacks.
    pub fn parse(name: &str) -> Result<Path> {
        let available: Vec<_> = Path::available().iter().map(|p| p.name()).collect();
        let next = format!("this CPU has: {}", available.join(", "));
        let path = Path::ALL
            .into_iter()
            .find(|p| p.name() == name)
            .ok_or_else(|| {
                Error::usage(
                    format!("{PATH_VARIABLE}: unknown instruction set `{name}`"),
                    &next,
                )
            })?;
        if !path.is_available() {
            return Err(Error::usage(
                format!("{PATH_VARIABLE}: this CPU has no {name}"),
                &next,
            ));
        }
        Ok(path)
    }
}

thread_local! {
    static FORCED: Cell<Option<Path>> = const { Cell::new(None) };
}

/// Fixes the path of what this thread calls, ahead of the environment; `None` lifts it again. For
/// tests.
///
/// # Errors
/// A path that this CPU does not have.
pub fn force(path: Option<Path>) -> Result<()> {
    if let Some(path) = path {
        Path::parse(path.name())?;
    }
    FORCED.set(path);
    Ok(())
}

/// The path in use: what [`force`] set, else `QUANTBENCH_CPU_PATH` (read once), else the best.
///
/// # Errors
/// A value of the variable that is unknown, or that this CPU does not have.
pub fn path() -> Result<Path> {
    if let Some(path) = FORCED.get() {
        return Ok(path);
    }
    /// The path, or the name that is none.
    static CHOICE: OnceLock<Result<Path, String>> = OnceLock::new();
    let choice = CHOICE.get_or_init(|| match std::env::var_os(PATH_VARIABLE) {
        None => Ok(Path::best()),
        Some(name) => {
            let name = name.to_string_lossy().into_owned();
            Path::parse(&name).map_err(|_| name)
        }
    });
    match choice {
        Ok(path) => Ok(*path),
        Err(name) => Path::parse(name),
    }
}

/// Name of the kernel for `rows` inputs, for a row of the report.
pub(super) fn kernel_name(rows: usize) -> String {
    let kernel = match rows <= FUSED_ROWS {
        true => "fused",
        false => "tile-dequant",
    };
    match path() {
        Ok(path) => format!("{kernel} {}", path.name()),
        Err(_) => "none".into(),
    }
}

/// `y = x Wᵀ` for a candle tensor `x` `[rows, k_in]` F32, contiguous, on the CPU; the result is
/// `[rows, n_out]` F32.
///
/// # Errors
/// Another dtype, rank, layout, device or number of inputs than that; a bad
/// `QUANTBENCH_CPU_PATH`.
pub(super) fn forward(w: impl Rows, x: &Tensor) -> Result<Tensor> {
    output(w.shape(), x, |x, rows, y| product(w, x, rows, y))
}

/// The tensor `y` `[rows, n_out]` of which `product` writes every element, given `x`, `rows` and
/// `y`. Errors are those of [`forward`].
fn output(
    (n_out, k_in): (usize, usize),
    x: &Tensor,
    product: impl FnOnce(&[f32], usize, &mut [MaybeUninit<f32>]) -> Result<()>,
) -> Result<Tensor> {
    let (rows, inputs) = x.dims2()?;
    if inputs != k_in {
        return Err(super::mismatch(
            "x",
            format!("[rows, {k_in}]"),
            format!("{:?}", x.dims()),
        ));
    }
    let y = super::with_slice::<f32, _>("x", x, |x| {
        let len = rows * n_out;
        let mut y = Vec::with_capacity(len);
        product(x, rows, &mut y.spare_capacity_mut()[..len])?;
        // SAFETY: `product` has written every element.
        unsafe { y.set_len(len) };
        Ok(y)
    })?;
    Ok(Tensor::from_vec(y, (rows, n_out), &Device::Cpu)?)
}

/// `y[rows, n] = x[rows, k] · w[n, k]ᵀ`, all row-major F32.
///
/// # Errors
/// A bad `QUANTBENCH_CPU_PATH`.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn product_f32(
    x: &[f32],
    w: &[f32],
    rows: usize,
    n: usize,
    k: usize,
    y: &mut [f32],
) -> Result<()> {
    let w = Elements::<super::dense::F32>::new(w, (n, k), Scales::None);
    // SAFETY: the same memory; `product` only ever writes numbers.
    let y = unsafe { &mut *(y as *mut [f32] as *mut [MaybeUninit<f32>]) };
    product(w, x, rows, y)
}

/// `y = x Wᵀ` on slices: `x` is `[rows, k_in]`, `y` is `[rows, n_out]`, row-major. Writes every
/// element of `y`, which need not be set before: clearing large outputs costs a few percent.
///
/// # Errors
/// A bad `QUANTBENCH_CPU_PATH`.
///
/// # Panics
/// If a slice is not as long as its shape says.
fn product(w: impl Rows, x: &[f32], rows: usize, y: &mut [MaybeUninit<f32>]) -> Result<()> {
    let path = path()?;
    let (n_out, k_in) = w.shape();
    assert_eq!(x.len(), rows * k_in, "x must be [rows, k_in]");
    assert_eq!(y.len(), rows * n_out, "y must be [rows, n_out]");
    if k_in == 0 {
        y.fill(MaybeUninit::new(0.0));
        return Ok(());
    }
    let p = Product {
        x: x.as_ptr(),
        y: y.as_mut_ptr().cast(),
        rows,
    };
    let parallel = rows * n_out * k_in >= SERIAL;
    if rows <= FUSED_ROWS {
        let step = (FUSED_TASK / (rows * k_in).max(1))
            .max(1)
            .next_multiple_of(BLOCK);
        split(n_out, step, parallel, |_, weight_rows| {
            // SAFETY: `path` is available, the slices have the lengths asserted above, and
            // `split` hands out disjoint ranges of weight rows.
            unsafe { paths::fused(path, w, weight_rows, p) }
        });
    } else {
        let tile = Tile::new(k_in);
        // Small matrices still give every core of a desktop something to do.
        let step = n_out.div_ceil(16).next_multiple_of(BLOCK).min(tile.rows);
        // All of them now: memory shall not depend on which threads were awake.
        let workspaces: Vec<Mutex<Vec<f32>>> = (0..workers(n_out, step, parallel))
            .map(|_| Mutex::new(workspace(tile.len())))
            .collect();
        split(n_out, step, parallel, |worker, weight_rows| {
            let mut workspace = lock(&workspaces[worker]);
            // SAFETY: as above; the workspace has room for `tile.len()` numbers, of which the
            // kernel reads only what it has written.
            unsafe { paths::tile(path, w, weight_rows, p, tile, workspace.as_mut_ptr()) }
        });
    }
    Ok(())
}

/// Runs `rounds` rounds of F32 multiply-adds on registers alone, on the calling thread, and
/// returns the operations done (a multiplication and an addition are two): the ceiling of every
/// F32 product.
///
/// # Errors
/// A bad `QUANTBENCH_CPU_PATH`.
pub fn multiply_adds(rounds: usize) -> Result<f64> {
    let path = path()?;
    // Opaque, and such that the sums stay near 1 however many there are.
    let operands = black_box([0.5; peak::OPERANDS]);
    // SAFETY: `path` is available.
    let (sum, flop) = unsafe { paths::multiply_adds(path, rounds, &operands) };
    black_box(sum);
    Ok(flop)
}

/// Loads all of `data` (but a tail of less than 1 KiB), on the calling thread, and does nothing
/// with it: the ceiling of everything that reads memory.
///
/// # Errors
/// A bad `QUANTBENCH_CPU_PATH`.
pub fn read(data: &[f32]) -> Result<()> {
    let path = path()?;
    // SAFETY: `path` is available.
    black_box(unsafe { paths::read(path, black_box(data)) });
    Ok(())
}

/// How many workers [`split`] has.
fn workers(n: usize, step: usize, parallel: bool) -> usize {
    let tasks = n.div_ceil(step);
    match parallel {
        true => rayon::current_num_threads().min(tasks).max(1),
        false => 1,
    }
}

/// Runs `task` on ranges of `step` rows that cut `0..n`, each once. Its first argument is the
/// worker, from 0: no two tasks of one run at the same time.
fn split(n: usize, step: usize, parallel: bool, task: impl Fn(usize, Range<usize>) + Sync) {
    let helpers = workers(n, step, parallel) - 1;
    let (next, entered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let worker = entered.fetch_add(1, Ordering::Relaxed);
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed) * step;
            if start >= n {
                break;
            }
            task(worker, start..(start + step).min(n));
        }
    };
    // The caller works too instead of waiting for helpers to wake up.
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| work());
        }
        work();
    });
}

/// Rows in each of the fewest parts of `rows` that have at most `most` of them.
fn even_step(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Room for `len` F32 numbers, for one worker: the only allocation of a kernel.
fn workspace(len: usize) -> Vec<f32> {
    assert!(len * size_of::<f32>() <= WORKSPACE_BYTES);
    memory::scope(Part::Workspace, || Vec::with_capacity(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_fits_the_workspace() {
        for k in 0..20_000 {
            let tile = Tile::new(k);
            assert!(tile.len() * size_of::<f32>() <= WORKSPACE_BYTES, "k {k}");
            assert_eq!(tile.chunk % 8, 0, "codes are read in blocks of eight");
            assert!(tile.chunk > 0 && tile.rows.is_multiple_of(BLOCK));
        }
    }

    #[test]
    fn unknown_paths_are_errors() {
        for name in ["", "AVX2", "sse", "avx1024"] {
            let error = Path::parse(name).unwrap_err().to_string();
            assert!(error.contains(PATH_VARIABLE) && error.contains("portable"));
        }
        assert_eq!(Path::parse("portable").unwrap(), Path::Portable);
    }
}

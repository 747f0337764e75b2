//! The [`Solver`] of a GPU: products by the vendor's library, the rest by the kernels of
//! `solver.cu` beside this file and of `gptq.cu`.
//!
//! Inputs are F16 and summed in F32; the factorization is in F64, as on the CPU: a Hessian whose
//! damping is a hundredth of a mean that few channels make has pivots that F32 cannot tell from
//! rounding. Every buffer is workspace and goes when its work is done.

use super::{Factor, InputSums, Quadratic, Rounding, Solver};
use crate::device::{Args, Buffer, Gemm, GemmKind, Gpu};
use crate::memory::Part;
use crate::quant::grid::{Grid, Rounded};
use crate::quant::stats::mirror;
use crate::quant::{LayerStats, Matrix};
use crate::{Error, Result};
use candle_core::{DType, Tensor, WithDType};
use std::ops::Range;
use std::sync::Arc;

/// Columns of a block of the Cholesky factorization (`CHOLESKY_WIDTH`).
const PANEL: usize = 64;
/// Columns of a block of rounding (`GPTQ_WIDTH`).
const WIDTH: usize = 128;
/// Rows of a block of the kernel that rounds (`GPTQ_WARPS * GPTQ_ROWS`).
const ROUNDED_ROWS: usize = 16;
/// Channels of a block of the kernel that sums magnitudes (`ABS_CHANNELS`).
const ABS_CHANNELS: usize = 32;
/// Bytes of the errors that are weighed at a time, and of their products.
const ERRORS_BYTES: usize = 256 << 20;

/// One GPU.
#[derive(Clone)]
pub struct GpuSolver {
    gpu: Gpu,
}

impl std::fmt::Debug for GpuSolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuSolver({})", self.gpu.driver().info().id)
    }
}

impl GpuSolver {
    pub fn new(gpu: Gpu) -> Self {
        GpuSolver { gpu }
    }

    fn buffer(&self, count: usize, dtype: DType) -> Result<Buffer> {
        self.gpu.buffer(count, dtype, Part::Workspace)
    }

    fn zeros(&self, count: usize, dtype: DType) -> Result<Buffer> {
        self.gpu.zeros(count, dtype, Part::Workspace)
    }

    fn upload<T: WithDType>(&self, values: &[T]) -> Result<Buffer> {
        let buffer = self.buffer(values.len(), T::DTYPE)?;
        self.gpu
            .driver()
            .write(bytes_of(values), self.at(&buffer)?)?;
        Ok(buffer)
    }

    fn download<T: WithDType>(&self, buffer: &Buffer) -> Result<Vec<T>> {
        self.gpu.driver().synchronize()?;
        Ok(buffer.tensor().to_vec1()?)
    }

    fn at(&self, buffer: &Buffer) -> Result<u64> {
        self.gpu.address(buffer.tensor())
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        if gemm.rows == 0 || gemm.n_out == 0 || gemm.k_in == 0 {
            return Ok(());
        }
        self.gpu.driver().gemm(gemm)
    }

    /// Blocks of a kernel that takes any grid over `n` elements.
    fn any_grid(&self, n: usize) -> [usize; 3] {
        let multiprocessors = self.gpu.driver().info().multiprocessors.max(1) as usize;
        [n.div_ceil(256).clamp(1, 32 * multiprocessors), 1, 1]
    }
}

/// Numbers as bytes, in the order of the machine.
fn bytes_of<T: WithDType>(values: &[T]) -> &[u8] {
    // SAFETY: the types of tensors are plain numbers, all of whose bytes are initialized.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

impl Solver for GpuSolver {
    fn sums(&self, k: usize) -> Result<Box<dyn InputSums>> {
        Ok(Box::new(Sums {
            xtx: self.zeros(k * k, DType::F32)?,
            abs: self.zeros(k, DType::F64)?,
            solver: self.clone(),
            tokens: 0,
            k,
        }))
    }

    fn quadratic<'a>(&self, h: &'a Matrix) -> Result<Box<dyn Quadratic + 'a>> {
        Ok(Box::new(Weighing {
            h: self.upload(&h.data)?,
            solver: self.clone(),
            k: h.cols,
        }))
    }

    fn factor(
        &self,
        h: &Matrix,
        order: &[usize],
        diagonal: &[f64],
    ) -> Result<Option<Box<dyn Factor>>> {
        let a = self.damped_reversed(h, order, diagonal)?;
        let upper = self.upper_factor(&a, order.len())?;
        Ok(upper.map(|upper| {
            Box::new(Triangle {
                solver: self.clone(),
                upper,
                k: order.len(),
            }) as Box<dyn Factor>
        }))
    }
}

/// `Σ x xᵀ` and `Σ |x|` on the device.
struct Sums {
    solver: GpuSolver,
    /// F32 `[k, k]`.
    xtx: Buffer,
    /// F64 `[k]`.
    abs: Buffer,
    tokens: usize,
    k: usize,
}

impl InputSums for Sums {
    fn add(&mut self, x: &Tensor) -> Result<()> {
        let (solver, k) = (&self.solver, self.k);
        let (tokens, width) = x.dims2()?;
        if width != k || x.dtype() != DType::F16 {
            return Err(Error::defect(format!(
                "inputs {:?} {:?} for {k} channels in F16",
                x.dtype(),
                x.dims()
            )));
        }
        let from = solver.gpu.address(x)?;
        solver.gemm(&Gemm {
            x_stride: k,
            w_stride: k,
            x_transposed: true,
            w_transposed: true,
            accumulate: true,
            ..Gemm::new(
                GemmKind::F16 { f32_output: true },
                [from, from, solver.at(&self.xtx)?],
                [k, k, tokens],
            )
        })?;
        solver.gpu.launch(
            "add_abs",
            [k.div_ceil(ABS_CHANNELS), 1, 1],
            256,
            Args::new()
                .with(from)
                .with(solver.at(&self.abs)?)
                .with(tokens as i32)
                .with(k as i32),
        )?;
        self.tokens += tokens;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<LayerStats> {
        let (solver, k) = (&self.solver, self.k);
        let mut xtx = Matrix {
            rows: k,
            cols: k,
            data: solver.download(&self.xtx)?,
        };
        mirror(&mut xtx);
        let tokens = self.tokens.max(1) as f64;
        let abs: Vec<f64> = solver.download(&self.abs)?;
        Ok(LayerStats {
            tokens: self.tokens,
            xtx,
            abs_mean: abs.iter().map(|sum| (sum / tokens) as f32).collect(),
            solver: Arc::new(solver.clone()),
        })
    }
}

/// `H` F32 `[k, k]` on the device.
struct Weighing {
    solver: GpuSolver,
    h: Buffer,
    k: usize,
}

impl Quadratic for Weighing {
    fn energies(&self, errors: &[f32]) -> Result<Vec<f64>> {
        let (solver, k) = (&self.solver, self.k);
        let mut energies = vec![];
        for errors in errors.chunks(errors_at_a_time(k) * k) {
            let rows = errors.len() / k;
            let d = solver.upload(errors)?;
            let product = solver.buffer(rows * k, DType::F32)?;
            let dots = solver.buffer(rows, DType::F64)?;
            let addresses = [solver.at(&d)?, solver.at(&self.h)?, solver.at(&product)?];
            solver.gemm(&Gemm::new(GemmKind::F32, addresses, [rows, k, k]))?;
            solver.gpu.launch(
                "row_dots",
                [rows, 1, 1],
                256,
                Args::new()
                    .with(addresses[0])
                    .with(addresses[2])
                    .with(solver.at(&dots)?)
                    .with(k as i32),
            )?;
            energies.extend(solver.download::<f64>(&dots)?);
        }
        Ok(energies)
    }
}

/// The most workspace that any method takes at a time for weights of up to `n` outputs and `k`
/// inputs in `groups` groups: matrices of inputs by inputs while they are factored, the weight
/// while it is rounded, errors while they are weighed.
pub fn workspace_bytes(n: usize, k: usize, groups: usize) -> u64 {
    let [n, k, groups, panel, width] = [n, k, groups, PANEL, WIDTH].map(|x| x as u64);
    let square = k * k;
    let reversing = 12 * square + 12 * k;
    let factoring = 12 * square + 8 * (2 * panel * k + panel * panel) + 4;
    let weight = (8 * n * k).max(5 * n * k + 4 * n * width);
    let rounding = 4 * square + 4 * k + 8 * n * groups + 4 + weight;
    let rows = n.min(errors_at_a_time(k as usize) as u64);
    let weighing = 4 * square + 8 * rows * (k + 1);
    reversing.max(factoring).max(rounding).max(weighing)
}

/// Bytes of the sums over inputs of `k` channels.
pub fn sums_bytes(k: usize) -> u64 {
    let k = k as u64;
    4 * k * k + 8 * k
}

/// Rows of `k` errors that are weighed at a time.
fn errors_at_a_time(k: usize) -> usize {
    (ERRORS_BYTES / 4 / k.max(1)).max(1)
}

impl GpuSolver {
    /// `P H P` F64 `[n, n]`, where `P` reverses the order of the inputs.
    fn damped_reversed(&self, h: &Matrix, order: &[usize], diagonal: &[f64]) -> Result<Buffer> {
        let n = order.len();
        let h = self.upload(&h.data)?;
        let order = self.upload(&as_u32(order))?;
        let diagonal = self.upload(diagonal)?;
        let a = self.buffer(n * n, DType::F64)?;
        self.gpu.launch(
            "damped_reversed",
            self.any_grid(n * n),
            256,
            Args::new()
                .with(self.at(&h)?)
                .with(self.at(&order)?)
                .with(self.at(&diagonal)?)
                .with(self.at(&a)?)
                .with(n as i32),
        )?;
        Ok(a)
    }

    /// `U = P L⁻¹ P` F32 `[n, n]` of `a = L Lᵀ`, which is overwritten; `None` without a factor.
    ///
    /// Elimination from left to right, a panel of columns at a time: panel `p` of the factor is
    /// taken off what is right of it, and off the right-hand side, which begins as the identity
    /// and ends as `L⁻¹`. Row block `j` of the latter is final when panel `j` comes up. It lives
    /// in `a`, left of the panel, where the factor is not needed any more.
    fn upper_factor(&self, a: &Buffer, n: usize) -> Result<Option<Buffer>> {
        let upper = self.buffer(n * n, DType::F32)?;
        let inverse = self.buffer(PANEL * PANEL, DType::F64)?;
        let panel = self.buffer(n * PANEL, DType::F64)?;
        let solved = self.buffer(PANEL * n, DType::F64)?;
        let failed = self.zeros(1, DType::U32)?;
        let at =
            |row: usize, column: usize| Ok::<_, Error>(self.at(a)? + 8 * (row * n + column) as u64);
        let (inverse_at, panel_at) = (self.at(&inverse)?, self.at(&panel)?);
        let solved_at = self.at(&solved)?;
        for first in (0..n).step_by(PANEL) {
            let width = PANEL.min(n - first);
            let end = first + width;
            let below = n - end;
            self.gpu.launch(
                "cholesky_block_f64",
                [1; 3],
                256,
                Args::new()
                    .with(at(first, first)?)
                    .with(inverse_at)
                    .with(self.at(&failed)?)
                    .with(n as i64)
                    .with(width as i32),
            )?;
            // X[j, :first] = inverse B[j, :first]
            self.gemm(&Gemm {
                w_stride: n,
                w_transposed: true,
                y_stride: n,
                ..Gemm::new(
                    GemmKind::F64,
                    [inverse_at, at(first, 0)?, solved_at],
                    [width, first, width],
                )
            })?;
            self.gpu.launch(
                "store_upper",
                self.any_grid(width * n),
                256,
                Args::new()
                    .with(solved_at)
                    .with(inverse_at)
                    .with(self.at(&upper)?)
                    .with(n as i32)
                    .with(first as i32)
                    .with(width as i32),
            )?;
            if below == 0 {
                break;
            }
            // L[below, j] = A[below, j] inverseᵀ
            self.gemm(&Gemm {
                x_stride: n,
                ..Gemm::new(
                    GemmKind::F64,
                    [at(end, first)?, inverse_at, panel_at],
                    [below, width, width],
                )
            })?;
            // A[below, below] -= L[below, j] L[below, j]ᵀ
            self.gemm(&Gemm {
                y_stride: n,
                negated: true,
                accumulate: true,
                ..Gemm::new(
                    GemmKind::F64,
                    [panel_at, panel_at, at(end, end)?],
                    [below, below, width],
                )
            })?;
            // B[below, :first] -= L[below, j] X[j, :first]
            self.gemm(&Gemm {
                w_stride: n,
                w_transposed: true,
                y_stride: n,
                negated: true,
                accumulate: true,
                ..Gemm::new(
                    GemmKind::F64,
                    [panel_at, solved_at, at(end, 0)?],
                    [below, first, width],
                )
            })?;
            // B[below, j] = -L[below, j] inverse: it was zero so far.
            self.gemm(&Gemm {
                w_transposed: true,
                y_stride: n,
                negated: true,
                ..Gemm::new(
                    GemmKind::F64,
                    [panel_at, inverse_at, at(end, first)?],
                    [below, width, width],
                )
            })?;
        }
        let failed = self.download::<u32>(&failed)?[0] != 0;
        Ok((!failed).then_some(upper))
    }
}

fn as_u32(order: &[usize]) -> Vec<u32> {
    order.iter().map(|i| *i as u32).collect()
}

/// `U` F32 `[k, k]` on the device.
struct Triangle {
    solver: GpuSolver,
    upper: Buffer,
    k: usize,
}

/// A weight on its way to codes.
struct Task<'a> {
    rounding: &'a Rounding<'a>,
    rows: usize,
    group: usize,
    groups: usize,
    /// F32 `[rows, k]`, columns in the order of rounding.
    work: u64,
    /// U32 `[k]`, or 0 where columns are in their own order.
    order: u64,
    /// F32 `[rows, groups]` each.
    scales: u64,
    zeros: u64,
    /// U8 `[rows, k]`.
    codes: u64,
    /// F32 `[rows, WIDTH]`.
    errors: u64,
    failed: u64,
}

impl Factor for Triangle {
    fn round(&self, weight: &Matrix, rounding: &Rounding) -> Result<Option<Rounded>> {
        let (solver, k) = (&self.solver, self.k);
        let spec = &rounding.spec;
        let (rows, groups) = (weight.rows, spec.groups(k));
        let in_order = rounding.order.iter().enumerate().all(|(i, c)| i == *c);
        let order = match in_order {
            true => None,
            false => Some(solver.upload(&as_u32(rounding.order))?),
        };
        let scales = solver.buffer(rows * groups, DType::F32)?;
        let zeros = solver.buffer(rows * groups, DType::F32)?;
        let failed = solver.zeros(1, DType::U32)?;
        let mut work = solver.upload(&weight.data)?;
        let mut task = Task {
            rounding,
            rows,
            group: spec.group_len(k),
            groups,
            work: solver.at(&work)?,
            order: order.as_ref().map_or(Ok(0), |o| solver.at(o))?,
            scales: solver.at(&scales)?,
            zeros: solver.at(&zeros)?,
            codes: 0,
            errors: 0,
            failed: solver.at(&failed)?,
        };
        if rounding.static_groups {
            self.fit(&task, 0..groups)?;
        }
        if !in_order {
            let gathered = solver.buffer(rows * k, DType::F32)?;
            self.gather(&task, solver.at(&gathered)?)?;
            work = gathered;
            task.work = solver.at(&work)?;
        }
        let codes = solver.buffer(rows * k, DType::U8)?;
        let errors = solver.buffer(rows * WIDTH, DType::F32)?;
        (task.codes, task.errors) = (solver.at(&codes)?, solver.at(&errors)?);
        for block in blocks(rounding, k) {
            let starts_group = block.start.is_multiple_of(task.group);
            let fits_inside = task.group <= WIDTH && !rounding.static_groups;
            if !rounding.static_groups && !fits_inside && starts_group {
                let g = block.start / task.group;
                self.fit(&task, g..g + 1)?;
            }
            self.round_block(&task, &block, fits_inside)?;
            self.correct(&task, &block)?;
        }
        if solver.download::<u32>(&failed)?[0] != 0 {
            return Ok(None);
        }
        let codes = solver.download(&codes)?;
        let grids = solver.download::<f32>(&scales)?.into_iter();
        let grids = grids.zip(solver.download::<f32>(&zeros)?);
        let top = spec.top();
        let grids = grids
            .map(|(scale, zero)| Grid { scale, zero, top })
            .collect();
        Ok(Some(Rounded { codes, grids }))
    }
}

impl Triangle {
    /// Grids of some groups, of the weights as they are now.
    fn fit(&self, task: &Task, which: Range<usize>) -> Result<()> {
        self.solver.gpu.launch(
            "gptq_fit",
            [which.len(), task.rows.div_ceil(4), 1],
            128,
            Args::new()
                .with(task.work)
                .with(task.scales)
                .with(task.zeros)
                .with(task.failed)
                .with(task.rows as i32)
                .with(self.k as i32)
                .with(task.group as i32)
                .with(task.groups as i32)
                .with(which.start as i32)
                .with(task.rounding.spec.top()),
        )
    }

    /// The weights' columns in the order of rounding.
    fn gather(&self, task: &Task, to: u64) -> Result<()> {
        self.solver.gpu.launch(
            "gather_columns",
            [self.k.div_ceil(256), task.rows.min(65_535), 1],
            256,
            Args::new()
                .with(task.work)
                .with(task.order)
                .with(to)
                .with(task.rows as i32)
                .with(self.k as i32),
        )
    }

    fn round_block(&self, task: &Task, block: &Range<usize>, fits: bool) -> Result<()> {
        let k = self.k;
        let upper = self.solver.at(&self.upper)? + 4 * (block.start * (k + 1)) as u64;
        self.solver.gpu.launch(
            "gptq_block",
            [task.rows.div_ceil(ROUNDED_ROWS), 1, 1],
            128,
            Args::new()
                .with(task.work)
                .with(upper)
                .with(task.order)
                .with(task.scales)
                .with(task.zeros)
                .with(task.codes)
                .with(task.errors)
                .with(task.failed)
                .with(task.rows as i32)
                .with(k as i32)
                .with(block.start as i32)
                .with(block.len() as i32)
                .with(k as i64)
                .with(task.group as i32)
                .with(task.groups as i32)
                .with(i32::from(fits))
                .with(task.rounding.spec.top()),
        )
    }

    /// `work[:, end..] -= errors · U[block, end..]`.
    fn correct(&self, task: &Task, block: &Range<usize>) -> Result<()> {
        let k = self.k;
        let u = self.solver.at(&self.upper)? + 4 * (block.start * k + block.end) as u64;
        let work = task.work + 4 * block.end as u64;
        self.solver.gemm(&Gemm {
            w_stride: k,
            w_transposed: true,
            y_stride: k,
            negated: true,
            accumulate: true,
            ..Gemm::new(
                GemmKind::F32,
                [task.errors, u, work],
                [task.rows, k - block.end, block.len()],
            )
        })
    }
}

/// Blocks of columns that are rounded at once: as many as are asked for and the kernel takes.
/// Where grids are fitted on the way, a block holds whole groups or lies in one.
fn blocks(rounding: &Rounding, k: usize) -> Vec<Range<usize>> {
    let most = rounding.block.clamp(1, WIDTH);
    let group = rounding.spec.group_len(k);
    let step = match (rounding.static_groups, group <= most) {
        (true, _) => return ranges(0..k, most),
        // Whole groups.
        (false, true) => most / group * group,
        // Pieces of one group; a longer block than asked for if it is the group.
        (false, false) if group <= WIDTH => group,
        (false, false) => {
            let groups = ranges(0..k, group).into_iter();
            return groups.flat_map(|g| ranges(g, most)).collect();
        }
    };
    ranges(0..k, step)
}

fn ranges(all: Range<usize>, step: usize) -> Vec<Range<usize>> {
    let end = all.end;
    all.step_by(step)
        .map(|at| at..(at + step).min(end))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::grid::GridSpec;

    fn block_lengths(group_size: i64, block: usize, static_groups: bool, k: usize) -> Vec<usize> {
        let rounding = Rounding {
            spec: GridSpec {
                bits: 4,
                group_size,
            },
            order: &[],
            static_groups,
            block,
        };
        blocks(&rounding, k).iter().map(Range::len).collect()
    }

    #[test]
    fn blocks_hold_whole_groups_or_lie_in_one() {
        assert_eq!(block_lengths(128, 128, false, 300), [128, 128, 44]);
        assert_eq!(block_lengths(48, 128, false, 200), [96, 96, 8]);
        assert_eq!(block_lengths(64, 32, false, 130), [64, 64, 2]);
        assert_eq!(block_lengths(192, 128, false, 400), [128, 64, 128, 64, 16]);
        assert_eq!(block_lengths(-1, 128, false, 200), [128, 72]);
        // Grids that stand beforehand lie across blocks.
        assert_eq!(block_lengths(48, 128, true, 200), [128, 72]);
    }
}

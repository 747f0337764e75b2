//! Products on a GPU: which kernel multiplies by a stored weight, and how it is launched. The
//! kernels stand beside their formats (`<format>.cu`); this file knows their common shape only.
//!
//! Few rows go through the fused kernels, which read each stored byte once and dequantize in
//! registers. Many rows repay the vendor's matrix product: on the stored numbers where it can
//! read them, else on tiles dequantized into a bounded workspace. Formats that quantize their
//! input too are multiplied code by code, whatever the number of rows.

use super::PackedLinear;
use crate::device::{Args, Buffer, Gemm, GemmKind, Gpu};
use crate::lock::lock;
use crate::memory::Part;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard};

/// Rows that the fused kernels serve.
pub const FUSED_ROWS: usize = 64;

/// Threads of a block of the kernels for products (`LINEAR_THREADS`).
const THREADS: u32 = 256;

/// Weight rows of a block of the fused kernel that serves `rows` rows (`linear_tile`).
fn tile(rows: usize) -> usize {
    rows.clamp(16, 32)
}

/// Bytes of dequantized weights that exist at a time: small enough to stay in the L2 cache of a
/// data-center card between the kernel that writes them and the product that reads them.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// How kernels read a stored weight on the device.
pub struct GpuWeight<'a> {
    /// What the names of the kernels carry: `linear_<name>_r8`, `dequant_<name>`.
    pub name: &'static str,
    pub codes: &'a Tensor,
    pub scales: Option<&'a Tensor>,
    pub zeros: Option<&'a Tensor>,
    /// Scales of one output; 0 where one serves the whole matrix.
    pub scales_per_row: usize,
    /// Inputs that share a scale.
    pub group: usize,
    pub many_rows: ManyRows,
}

/// How a weight is multiplied with more rows than the fused kernels serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManyRows {
    /// The codes are F16 numbers that the library reads.
    Library,
    /// Tiles are dequantized to F16 first.
    Dequantize,
    /// The fused kernel, [`FUSED_ROWS`] rows at a time: right, not fast.
    Fused,
    /// Each row of the input is quantized to E4M3, and codes are multiplied; few rows too.
    Fp8Inputs,
    /// Likewise with 8-bit integers.
    Int8Inputs,
}

/// Which kernels a user wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The fastest for the number of rows.
    #[default]
    Auto,
    /// Dequantize first, whatever it costs.
    Dequantize,
}

/// Where a product's result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Output {
    /// Replaces F16.
    F16 = 0,
    /// Adds to F32.
    AddF32 = 1,
    /// Replaces F32.
    F32 = 2,
}

impl Output {
    /// Of one element.
    fn bytes(self) -> usize {
        match self {
            Output::F16 => 2,
            Output::AddF32 | Output::F32 => 4,
        }
    }
}

/// One weight of a launch, and where its product goes.
pub struct Product<'a> {
    pub weight: &'a dyn PackedLinear,
    /// `[n_out]` F16.
    pub bias: Option<&'a Tensor>,
    /// `[rows, n_out]`.
    pub y: &'a Tensor,
}

/// `Member` of the kernels: one weight, by address.
#[derive(Clone, Copy)]
#[repr(C)]
struct Member {
    codes: u64,
    scales: u64,
    zeros: u64,
    bias: u64,
    y: u64,
    n_out: i32,
    scales_per_row: i32,
}

impl Member {
    /// The same with outputs from this row on.
    fn starting_at(mut self, row: usize, output: Output) -> Self {
        self.y += (row * self.n_out as usize * output.bytes()) as u64;
        self
    }
}

/// `Members` of the kernels: weights of one format that multiply one input.
#[derive(Clone, Copy)]
#[repr(C)]
struct Members {
    members: [Member; 3],
    count: i32,
}

/// Launches products on one device, and owns the memory that this takes.
pub struct Products {
    gpu: Gpu,
    choice: Choice,
    workspace: Mutex<Workspace>,
}

/// Scratch memory of products, made when first needed.
#[derive(Default)]
struct Workspace {
    /// A tile of dequantized weights.
    tile: Option<Buffer>,
    /// Quantized rows of the input, and their scales.
    codes: Option<Buffer>,
    scales: Option<Buffer>,
    /// Sums of products of codes.
    sums: Option<Buffer>,
}

/// A buffer of at least `count` elements; an older, smaller one goes first.
fn room<'a>(
    held: &'a mut Option<Buffer>,
    gpu: &Gpu,
    count: usize,
    dtype: DType,
) -> Result<&'a Tensor> {
    if held
        .as_ref()
        .is_none_or(|b| b.tensor().elem_count() < count)
    {
        *held = None;
    }
    let buffer = match held.take() {
        Some(buffer) => buffer,
        None => gpu.buffer(count, dtype, Part::Workspace)?,
    };
    Ok(held.insert(buffer).tensor())
}

impl Products {
    pub fn new(gpu: Gpu, choice: Choice) -> Self {
        Products {
            gpu,
            choice,
            workspace: Mutex::default(),
        }
    }

    /// What [`Products::run`] runs for this weight and number of rows, for results.
    pub fn name(&self, weight: &dyn PackedLinear, rows: usize) -> String {
        let Some(w) = weight.gpu() else {
            return "none".into();
        };
        let name = match self.plan(&w, rows) {
            Plan::Fused => "fused",
            Plan::Library => "cublas",
            Plan::Dequantize => "dequant+gemm",
            Plan::EightBit(GemmKind::Int8) => "cublaslt-int8",
            Plan::EightBit(_) => "cublaslt-fp8",
        };
        name.into()
    }

    fn plan(&self, weight: &GpuWeight, rows: usize) -> Plan {
        let few = rows <= FUSED_ROWS && self.choice == Choice::Auto;
        match weight.many_rows {
            ManyRows::Fused => Plan::Fused,
            ManyRows::Fp8Inputs => Plan::EightBit(GemmKind::Fp8),
            ManyRows::Int8Inputs => Plan::EightBit(GemmKind::Int8),
            _ if few => Plan::Fused,
            ManyRows::Library => Plan::Library,
            ManyRows::Dequantize => Plan::Dequantize,
        }
    }

    /// `y = x Wᵀ + bias` for every product; `x` is `[rows, k_in]` F16.
    ///
    /// Products that the fused kernels serve and that are stored alike share one launch.
    ///
    /// # Errors
    /// A weight that is not on the device, or shapes that contradict each other.
    pub fn run(&self, products: &[Product], x: &Tensor, output: Output) -> Result<()> {
        let (rows, k_in) = x.dims2()?;
        let mut rest = products;
        while let Some(first) = rest.first() {
            let w = on_device(first.weight)?;
            let alike = |p: &&Product| {
                p.weight.gpu().is_some_and(|v| {
                    (v.name, v.group, v.many_rows) == (w.name, w.group, w.many_rows)
                })
            };
            let count = match self.plan(&w, rows) {
                Plan::Fused | Plan::EightBit(_) => rest.iter().take(3).take_while(alike).count(),
                _ => 1,
            };
            let (together, others) = rest.split_at(count);
            for product in together {
                check(product, rows, k_in)?;
            }
            match self.plan(&w, rows) {
                Plan::Fused => self.fused(together, x, output)?,
                Plan::Library => self.library(first, &w, x, output)?,
                Plan::Dequantize => self.dequantized(first, &w, x, output)?,
                Plan::EightBit(kind) => self.eight_bit(together, kind, x, output)?,
            }
            rest = others;
        }
        Ok(())
    }

    fn fused(&self, products: &[Product], x: &Tensor, output: Output) -> Result<()> {
        let (rows, k_in) = x.dims2()?;
        let weight = on_device(products[0].weight)?;
        let mut members = Members {
            members: [self.member(&products[0])?; 3],
            count: products.len() as i32,
        };
        for (slot, product) in members.members.iter_mut().zip(products) {
            *slot = self.member(product)?;
        }
        let x_address = self.gpu.address(x)?;
        for start in (0..rows).step_by(FUSED_ROWS) {
            let n = FUSED_ROWS.min(rows - start);
            let served = [8, 16, 32].into_iter().find(|r| n <= *r);
            let served = served.unwrap_or(FUSED_ROWS);
            let outputs = products.iter().map(|p| p.weight.shape().0);
            let blocks = outputs.map(|n_out| n_out.div_ceil(tile(served))).sum();
            let mut part = members;
            part.members = part.members.map(|m| m.starting_at(start, output));
            self.gpu.launch(
                &format!("linear_{}_r{served}", weight.name),
                [blocks, 1, 1],
                THREADS,
                Args::new()
                    .with(part)
                    .with(x_address + (start * k_in * 2) as u64)
                    .with(n as i32)
                    .with(k_in as i32)
                    .with(weight.group as i32)
                    .with(output as i32),
            )?;
        }
        Ok(())
    }

    fn library(&self, p: &Product, w: &GpuWeight, x: &Tensor, output: Output) -> Result<()> {
        let codes = self.gpu.address(w.codes)?;
        self.gemm(p, codes, 0..p.weight.shape().0, x, output)?;
        self.add_bias(p, x.dim(0)?, output)
    }

    fn dequantized(&self, p: &Product, w: &GpuWeight, x: &Tensor, output: Output) -> Result<()> {
        let (n_out, k_in) = p.weight.shape();
        let mut workspace = self.workspace();
        let tile = room(
            &mut workspace.tile,
            &self.gpu,
            WORKSPACE_BYTES / 2,
            DType::F16,
        )?;
        let tile = self.gpu.address(tile)?;
        let step = (WORKSPACE_BYTES / 2 / k_in.max(1)) / 64 * 64;
        if step == 0 {
            return Err(Error::unsupported(
                format!("dequantizing rows of {k_in} inputs within {WORKSPACE_BYTES} bytes"),
                "use the fused kernels (leave --kernel out) and a batch of at most 64",
            ));
        }
        for first in (0..n_out).step_by(step) {
            let n = step.min(n_out - first);
            self.gpu.launch(
                &format!("dequant_{}", w.name),
                [k_in.div_ceil(8 * THREADS as usize), n.min(65_535), 1],
                THREADS,
                Args::new()
                    .with(self.member(p)?)
                    .with(tile)
                    .with(first as i32)
                    .with(n as i32)
                    .with(k_in as i32)
                    .with(w.group as i32),
            )?;
            self.gemm(p, tile, first..first + n, x, output)?;
        }
        self.add_bias(p, x.dim(0)?, output)
    }

    /// Products of codes with codes, a bounded number of rows at a time.
    fn eight_bit(
        &self,
        products: &[Product],
        kind: GemmKind,
        x: &Tensor,
        output: Output,
    ) -> Result<()> {
        let (rows, k_in) = x.dims2()?;
        let widest = products.iter().map(|p| p.weight.shape().0).max();
        let widest = widest.unwrap_or(1).max(1);
        // The library wants whole multiples of 16 rows; what the last ones hold is never read.
        let step = (WORKSPACE_BYTES / 4 / widest / 16 * 16)
            .max(16)
            .min(rows.next_multiple_of(16));
        let (quantize, rescale, sum) = match kind {
            GemmKind::Int8 => ("quantize_rows_int8", "rescale_i32", DType::I32),
            _ => ("quantize_rows_e4m3", "rescale_f32", DType::F32),
        };
        let mut workspace = self.workspace();
        let Workspace {
            codes,
            scales,
            sums,
            ..
        } = &mut *workspace;
        let codes = self
            .gpu
            .address(room(codes, &self.gpu, step * k_in, DType::U8)?)?;
        let scales = self
            .gpu
            .address(room(scales, &self.gpu, step, DType::F32)?)?;
        // Both kinds of sums have four bytes; a buffer serves one model and so one kind.
        let sums = self
            .gpu
            .address(room(sums, &self.gpu, step * widest, sum)?)?;
        for start in (0..rows).step_by(step) {
            let n = step.min(rows - start);
            let args = Args::new()
                .with(self.gpu.address(x)? + (start * k_in * 2) as u64)
                .with(codes)
                .with(scales)
                .with(n as i32)
                .with(k_in as i32);
            self.gpu.launch(quantize, [n, 1, 1], THREADS, args)?;
            for product in products {
                let n_out = product.weight.shape().0;
                let w = self.gpu.address(on_device(product.weight)?.codes)?;
                let sizes = [n.next_multiple_of(16), n_out, k_in];
                self.gpu
                    .driver()
                    .gemm(&Gemm::new(kind, [codes, w, sums], sizes))?;
                let args = Args::new()
                    .with(sums)
                    .with(scales)
                    .with(self.member(product)?.starting_at(start, output))
                    .with(n as i32)
                    .with(output as i32);
                let outputs = 4 * THREADS as usize;
                self.gpu
                    .launch(rescale, [n, n_out.div_ceil(outputs), 1], THREADS, args)?;
            }
        }
        Ok(())
    }

    fn workspace(&self) -> MutexGuard<'_, Workspace> {
        lock(&self.workspace)
    }

    /// The library's product of `x` with F16 rows at `w`, which are these rows of the weight.
    fn gemm(
        &self,
        p: &Product,
        w: u64,
        weight_rows: std::ops::Range<usize>,
        x: &Tensor,
        output: Output,
    ) -> Result<()> {
        let f32_output = output != Output::F16;
        let y = self.gpu.address(p.y)? + (weight_rows.start * output.bytes()) as u64;
        let (n_out, k_in) = p.weight.shape();
        self.gpu.driver().gemm(&Gemm {
            y_stride: n_out,
            accumulate: output == Output::AddF32,
            ..Gemm::new(
                GemmKind::F16 { f32_output },
                [self.gpu.address(x)?, w, y],
                [x.dim(0)?, weight_rows.len(), k_in],
            )
        })
    }

    fn add_bias(&self, p: &Product, rows: usize, output: Output) -> Result<()> {
        let Some(bias) = p.bias else { return Ok(()) };
        let n_out = p.weight.shape().0;
        let kernel = match output {
            Output::F16 => "add_bias_f16",
            Output::AddF32 | Output::F32 => "add_bias_f32",
        };
        self.gpu.launch(
            kernel,
            [(rows * n_out).div_ceil(THREADS as usize), 1, 1],
            THREADS,
            Args::new()
                .with(self.gpu.address(p.y)?)
                .with(self.gpu.address(bias)?)
                .with(rows as i32)
                .with(n_out as i32),
        )
    }

    fn member(&self, p: &Product) -> Result<Member> {
        let weight = on_device(p.weight)?;
        let address = |t: Option<&Tensor>| t.map_or(Ok(0), |t| self.gpu.address(t));
        Ok(Member {
            codes: self.gpu.address(weight.codes)?,
            scales: address(weight.scales)?,
            zeros: address(weight.zeros)?,
            bias: address(p.bias)?,
            y: self.gpu.address(p.y)?,
            n_out: p.weight.shape().0 as i32,
            scales_per_row: weight.scales_per_row as i32,
        })
    }
}

/// Ways to run a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Fused,
    Library,
    Dequantize,
    EightBit(GemmKind),
}

fn on_device(weight: &dyn PackedLinear) -> Result<GpuWeight<'_>> {
    weight.gpu().ok_or_else(|| {
        Error::unsupported(
            format!("the format `{}` on a GPU", weight.spec().format),
            "use the CPU for this precision (--device cpu)",
        )
    })
}

fn check(p: &Product, rows: usize, k_in: usize) -> Result<()> {
    let (n_out, k) = p.weight.shape();
    if k != k_in || p.y.dims() != [rows, n_out] {
        return Err(super::mismatch(
            "x and y",
            format!("[{rows}, {k}] and [{rows}, {n_out}]"),
            format!("[{rows}, {k_in}] and {:?}", p.y.dims()),
        ));
    }
    if [n_out, k, rows].iter().any(|n| i32::try_from(*n).is_err()) {
        return Err(super::mismatch(
            "shape",
            "below 2^31",
            format!("[{n_out}, {k}]"),
        ));
    }
    Ok(())
}

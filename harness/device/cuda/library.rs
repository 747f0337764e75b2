//! Matrix products of the vendor's library, cuBLASLt: it takes every type that [`GemmKind`] names,
//! and its workspace with each call, so nothing is allocated behind our back.

use super::fault::{Status, told};
use crate::device::driver::{Gemm, GemmKind};
use crate::device::gemm::{ColumnMajor, Layout};
use crate::lock::lock;
use crate::{Error, Result};
use candle_core::Tensor;
use candle_core::cuda_backend::cudarc::cublas::{self, CudaBlas};
use candle_core::cuda_backend::cudarc::cublaslt::{
    result::{self, CublasError},
    sys,
};
use candle_core::cuda_backend::cudarc::driver::{CudaStream, sys::CUdeviceptr};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// What the library may use while it works. NVIDIA recommends 32 MiB for Hopper and 4 MiB for what
/// came before it (cuBLAS documentation, `cublasSetWorkspace`); we give the latter 8 MiB, as it
/// takes by itself.
pub fn workspace_bytes(compute_capability: (u32, u32)) -> usize {
    match compute_capability >= (9, 0) {
        true => 32 << 20,
        false => 8 << 20,
    }
}

/// The library with its workspace, and the algorithm for each product that it was asked for.
pub struct Library {
    handle: sys::cublasLtHandle_t,
    plans: Mutex<HashMap<ColumnMajor, Plan>>,
    workspace: CUdeviceptr,
    workspace_bytes: usize,
    compute_capability: (u32, u32),
    /// candle's own handle, for its products.
    blas: Arc<CudaBlas>,
    stream: Arc<CudaStream>,
    /// Keeps the workspace allocated.
    _workspace: Tensor,
}

// SAFETY: the handle may be used from any thread (cuBLAS documentation, "Thread Safety"); plans are
// behind a lock.
unsafe impl Send for Library {}
unsafe impl Sync for Library {}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans.get_mut().into_iter().for_each(HashMap::clear);
        // SAFETY: both handles are alive; candle's goes back to a workspace of its own.
        unsafe {
            cublas::sys::cublasSetWorkspace_v2(*self.blas.handle(), std::ptr::null_mut(), 0);
            sys::cublasLtDestroy(self.handle);
        }
    }
}

impl Library {
    /// `workspace` is a tensor of bytes at the address `at`.
    pub fn new(
        stream: Arc<CudaStream>,
        blas: Arc<CudaBlas>,
        compute_capability: (u32, u32),
        workspace: Tensor,
        at: CUdeviceptr,
    ) -> Result<Self> {
        let bytes = workspace.elem_count();
        // SAFETY: the workspace lives as long as both handles use it: see `drop`.
        unsafe { cublas::sys::cublasSetWorkspace_v2(*blas.handle(), at as *mut c_void, bytes) }
            .result()
            .map_err(|e| fault("setting the workspace of cuBLAS", e))?;
        Ok(Library {
            handle: result::create_handle().map_err(|e| fault("opening cuBLASLt", e))?,
            plans: Mutex::default(),
            workspace: at,
            workspace_bytes: bytes,
            compute_capability,
            blas,
            stream,
            _workspace: workspace,
        })
    }

    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    /// Starts a product. See [`crate::device::Driver::gemm`].
    pub fn gemm(&self, gemm: &Gemm) -> Result<()> {
        if gemm.kind == GemmKind::Fp8 && self.compute_capability < (8, 9) {
            return Err(Error::unsupported(
                "FP8 products on a device of a compute capability below 8.9",
                "use fp8 with 16-bit activations, or a device of the Ada or Hopper generation",
            ));
        }
        if gemm.rows == 0 || gemm.n_out == 0 {
            return Ok(());
        }
        let product = ColumnMajor::new(gemm)?;
        let mut plans = lock(&self.plans);
        let plan = match plans.entry(product) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(
                Plan::new(self.handle, &product, self.workspace_bytes)
                    .map_err(|e| no_algorithm(gemm, e))?,
            ),
        };
        let alpha = Scale::new(gemm.kind, if gemm.negated { -1 } else { 1 });
        let beta = Scale::new(gemm.kind, gemm.accumulate.into());
        // SAFETY: the plan was made for these layouts; that addresses are those of large enough
        // matrices is the promise of whoever made the `Gemm`.
        unsafe { plan.run(self, gemm, &alpha, &beta) }
            .map_err(|e| fault(&format!("starting a product ({gemm:?})"), e))
    }
}

/// A number of the library's scale type: F32, F64 or I32.
#[repr(C, align(8))]
struct Scale([u8; 8]);

impl Scale {
    fn new(kind: GemmKind, n: i8) -> Self {
        let mut bytes = [0; 8];
        match kind {
            GemmKind::Int8 => bytes[..4].copy_from_slice(&i32::from(n).to_ne_bytes()),
            GemmKind::F64 => bytes = f64::from(n).to_ne_bytes(),
            _ => bytes[..4].copy_from_slice(&f32::from(n).to_ne_bytes()),
        }
        Scale(bytes)
    }
}

/// A descriptor of the library, destroyed with its owner.
struct Owned<T: Copy>(T, unsafe fn(T) -> Result<(), CublasError>);

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: created by the library, destroyed once; there is nothing to do about a failure.
        let _ = unsafe { (self.1)(self.0) };
    }
}

type Matrix = Owned<sys::cublasLtMatrixLayout_t>;

/// How the library computes one product.
struct Plan {
    product: Owned<sys::cublasLtMatmulDesc_t>,
    a: Matrix,
    b: Matrix,
    d: Matrix,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        product: &ColumnMajor,
        workspace_bytes: usize,
    ) -> Result<Self, CublasError> {
        let (input, output, compute, scale) = types(product.kind);
        let description = Owned(
            result::create_matmul_desc(compute, scale)?,
            result::destroy_matmul_desc,
        );
        use sys::cublasLtMatmulDescAttributes_t::{
            CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB,
        };
        let attributes = [CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB];
        for (attribute, transposes) in attributes.into_iter().zip(product.transposes) {
            let operation = i32::from(transposes); // CUBLAS_OP_N, CUBLAS_OP_T
            // SAFETY: the attribute is a 32-bit number (cublasLtMatmulDescAttributes_t).
            unsafe {
                result::set_matmul_desc_attribute(
                    description.0,
                    attribute,
                    (&raw const operation).cast(),
                    size_of::<i32>(),
                )?;
            }
        }
        let (a, b) = (matrix(input, &product.a)?, matrix(input, &product.b)?);
        let d = matrix(output, &product.d)?;
        let preference = preference(product, workspace_bytes)?;
        // SAFETY: every descriptor is alive.
        let best = unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                description.0,
                a.0,
                b.0,
                d.0,
                d.0,
                preference.0,
            )?
        };
        Ok(Plan {
            product: description,
            a,
            b,
            d,
            algorithm: best.algo,
        })
    }

    /// # Safety
    /// The addresses of `gemm` are those of matrices on the device of `library`.
    unsafe fn run(
        &self,
        library: &Library,
        gemm: &Gemm,
        alpha: &Scale,
        beta: &Scale,
    ) -> Result<(), CublasError> {
        let y = gemm.y as *mut c_void;
        unsafe {
            result::matmul(
                library.handle,
                self.product.0,
                (&raw const alpha.0).cast(),
                (&raw const beta.0).cast(),
                gemm.w as *const c_void,
                self.a.0,
                gemm.x as *const c_void,
                self.b.0,
                y,
                self.d.0,
                y,
                self.d.0,
                &self.algorithm,
                library.workspace as *mut c_void,
                library.workspace_bytes,
                library.stream.cu_stream().cast(),
            )
        }
    }
}

/// Of the inputs, of the output, of the accumulator, and of the factors. F32 is F32: TF32 has a
/// compute type of its own.
fn types(
    kind: GemmKind,
) -> (
    sys::cudaDataType,
    sys::cudaDataType,
    sys::cublasComputeType_t,
    sys::cudaDataType,
) {
    use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32I, CUBLAS_COMPUTE_64F};
    use sys::cudaDataType_t::*;
    match kind {
        GemmKind::F16 { f32_output: false } => {
            (CUDA_R_16F, CUDA_R_16F, CUBLAS_COMPUTE_32F, CUDA_R_32F)
        }
        GemmKind::F16 { f32_output: true } => {
            (CUDA_R_16F, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F)
        }
        GemmKind::F32 => (CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        GemmKind::F64 => (CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F, CUDA_R_64F),
        GemmKind::Fp8 => (CUDA_R_8F_E4M3, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        GemmKind::Int8 => (CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, CUDA_R_32I),
    }
}

fn matrix(dtype: sys::cudaDataType, layout: &Layout) -> Result<Matrix, CublasError> {
    let (rows, columns, leading) = (layout.rows, layout.columns, layout.leading as i64);
    let handle = result::create_matrix_layout(dtype, rows, columns, leading)?;
    Ok(Owned(handle, result::destroy_matrix_layout))
}

/// The workspace, how addresses are aligned (the library assumes 256 bytes unless told), and that
/// partial sums, where k is divided, are added as what they are: other schemes round them to the
/// type of the output first.
fn preference(
    product: &ColumnMajor,
    workspace_bytes: usize,
) -> Result<Owned<sys::cublasLtMatmulPreference_t>, CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t::*;
    let preference = Owned(result::create_matmul_pref()?, result::destroy_matmul_pref);
    let [a, b, d] = &product.alignments;
    let alignments = [
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, d),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
    ];
    let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    let numbers = alignments
        .into_iter()
        .chain([(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction)]);
    // SAFETY: the workspace's size is 64 bits wide, alignments and the mask 32
    // (cublasLtMatmulPreferenceAttributes_t).
    unsafe {
        result::set_matmul_pref_attribute(
            preference.0,
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const workspace_bytes).cast(),
            size_of::<usize>(),
        )?;
        for (attribute, number) in numbers {
            let value = std::ptr::from_ref(number).cast();
            result::set_matmul_pref_attribute(preference.0, attribute, value, size_of::<u32>())?;
        }
    }
    Ok(preference)
}

fn no_algorithm(gemm: &Gemm, error: CublasError) -> Error {
    Error::unsupported(
        format!(
            "cuBLASLt has no algorithm for a product of type {:?} with {} rows, {} outputs and {} inputs ({error})",
            gemm.kind, gemm.rows, gemm.n_out, gemm.k_in
        ),
        "use the kernels of the stored format for this shape",
    )
}

fn fault(doing: &str, error: impl Status + std::fmt::Display) -> Error {
    told(
        format!("{doing}: {error}"),
        &error,
        "see that the CUDA libraries found at run time are those of the build",
    )
}

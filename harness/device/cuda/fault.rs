//! What the driver and its libraries report, in words.

use crate::Error;
use candle_core::cuda_backend::CudaError;
use candle_core::cuda_backend::cudarc::driver::{DriverError, sys::CUresult};
use candle_core::cuda_backend::cudarc::{cublas, cublaslt, curand};
use std::fmt::Display;

/// `doing` failed on `device`.
pub fn fault(device: &str, doing: impl Display, error: DriverError) -> Error {
    let words = |text: Result<&std::ffi::CStr, DriverError>| match text {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", error.0),
    };
    let what = format!(
        "{device}: {doing}: {} ({})",
        words(error.error_string()),
        words(error.error_name()),
    );
    told(what, &error, next(error.0))
}

/// The error of a call that ended with `status`; `next` is for whatever is no lack of memory.
pub fn told(what: String, status: &impl Status, next: &str) -> Error {
    match status.is_out_of_memory() {
        true => Error::out_of_memory(what),
        false => Error::device(what, next),
    }
}

fn next(error: CUresult) -> &'static str {
    use CUresult::*;
    match error {
        // After these the device does nothing more for this process (CUDA driver API, CUresult).
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ASSERT
        | CUDA_ERROR_LAUNCH_FAILED => {
            "a defect of a kernel: this process can no longer use the device; please report it, with the output under compute-sanitizer"
        }
        CUDA_ERROR_LAUNCH_TIMEOUT => {
            "a kernel ran longer than this system allows; use a device that drives no display"
        }
        CUDA_ERROR_ECC_UNCORRECTABLE => "the device's memory is faulty; use another device",
        CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda.so.1 that was found is only for the linker; take its folder out of LD_LIBRARY_PATH"
        }
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has the device for itself; wait for it or use another device"
        }
        _ => "see that nvidia-smi lists the device as healthy, and try again",
    }
}

/// What a call of the driver or of one of its libraries ends with.
pub trait Status {
    /// Whether it found no memory for what it had to allocate.
    fn is_out_of_memory(&self) -> bool;
}

impl Status for DriverError {
    fn is_out_of_memory(&self) -> bool {
        self.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }
}

impl Status for cublas::result::CublasError {
    fn is_out_of_memory(&self) -> bool {
        self.0 == cublas::sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
    }
}

impl Status for cublaslt::result::CublasError {
    fn is_out_of_memory(&self) -> bool {
        self.0 == cublaslt::sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
    }
}

impl Status for curand::result::CurandError {
    fn is_out_of_memory(&self) -> bool {
        self.0 == curand::sys::curandStatus_t::CURAND_STATUS_ALLOCATION_FAILED
    }
}

impl Status for candle_core::Error {
    fn is_out_of_memory(&self) -> bool {
        let inner = match self {
            candle_core::Error::WithBacktrace { inner, .. } => return inner.is_out_of_memory(),
            candle_core::Error::Cuda(inner) => inner.downcast_ref::<CudaError>(),
            _ => None,
        };
        match inner {
            Some(CudaError::Cuda(e)) => e.is_out_of_memory(),
            Some(CudaError::Cublas(e)) => e.is_out_of_memory(),
            Some(CudaError::Curand(e)) => e.is_out_of_memory(),
            Some(CudaError::Load { cuda, .. }) => cuda.is_out_of_memory(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a device: only the driver's words need one.
    #[test]
    fn memory_that_is_missing_is_no_other_fault_whoever_misses_it() {
        let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let busy = CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE;
        let is_oom = |status: &dyn Status| status.is_out_of_memory();
        assert!(is_oom(&DriverError(full)) && !is_oom(&DriverError(busy)));
        use cublas::sys::cublasStatus_t as Blas;
        use cublaslt::sys::cublasStatus_t as Lt;
        use curand::sys::curandStatus_t as Rand;
        let blas = |s| cublas::result::CublasError(s);
        assert!(is_oom(&blas(Blas::CUBLAS_STATUS_ALLOC_FAILED)));
        assert!(!is_oom(&blas(Blas::CUBLAS_STATUS_NOT_INITIALIZED)));
        let lt = |s| cublaslt::result::CublasError(s);
        assert!(is_oom(&lt(Lt::CUBLAS_STATUS_ALLOC_FAILED)));
        assert!(!is_oom(&lt(Lt::CUBLAS_STATUS_EXECUTION_FAILED)));
        let rand = |s| curand::result::CurandError(s);
        assert!(is_oom(&rand(Rand::CURAND_STATUS_ALLOCATION_FAILED)));
        assert!(!is_oom(&rand(Rand::CURAND_STATUS_INITIALIZATION_FAILED)));

        // As candle wraps them.
        for (error, expected) in [
            (CudaError::Cuda(DriverError(full)), true),
            (CudaError::Cuda(DriverError(busy)), false),
            (
                CudaError::Cublas(blas(Blas::CUBLAS_STATUS_ALLOC_FAILED)),
                true,
            ),
            (
                CudaError::Curand(rand(Rand::CURAND_STATUS_ALLOCATION_FAILED)),
                true,
            ),
            (CudaError::InternalError("another"), false),
        ] {
            let error = candle_core::Error::from(error);
            assert_eq!(is_oom(&error), expected, "{error}");
        }

        let missing = told("loading".into(), &DriverError(full), "not said");
        assert!(matches!(missing, Error::OutOfMemory(_)), "{missing}");
        assert!(!missing.to_string().contains("not said"));
        let other = told("loading".into(), &DriverError(busy), "wait");
        assert_eq!(other.to_string(), "loading\n  wait");
    }
}

//! What the driver and its libraries report, in words.

use super::driver::{DriverError, sys::CUresult};
use crate::Error;
use candle_core::cuda_backend::CudaError;
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
    Error::device(what, next(error.0))
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
        CUDA_ERROR_OUT_OF_MEMORY => {
            "use a smaller model, batch or context, or a device with more memory"
        }
        CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda.so.1 that was found is only for the linker; take its folder out of LD_LIBRARY_PATH"
        }
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has the device for itself; wait for it or use another device"
        }
        _ => "see that nvidia-smi lists the device as healthy, and try again",
    }
}

/// Whether candle reports that the device's memory is full.
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => is_out_of_memory(inner),
        candle_core::Error::Cuda(inner) => matches!(
            inner.downcast_ref::<CudaError>(),
            Some(CudaError::Cuda(DriverError(
                CUresult::CUDA_ERROR_OUT_OF_MEMORY
            )))
        ),
        _ => false,
    }
}

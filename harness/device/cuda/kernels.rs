//! The kernels that the build compiled, loaded onto a device.

use super::fault::fault;
use crate::device::driver::{Args, DeviceInfo};
use crate::device::requirements::{Build, Code, Version};
use crate::{Error, Result};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::{CStr, c_int};
use std::sync::Arc;

/// Images begin at a multiple of 16 bytes: the driver reads their header in place.
#[repr(C, align(16))]
struct Aligned<B: ?Sized>(B);

// `BUILD`, and `IMAGES`: per source its name and native code with PTX.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// One kernel on the device.
pub struct Kernel {
    pub function: sys::CUfunction,
    /// Dynamic shared memory that a launch may ask for.
    pub max_shared_bytes: u32,
    /// Bytes of each parameter.
    parameter_bytes: Vec<usize>,
}

/// All of them, by name.
pub struct Kernels {
    by_name: HashMap<String, Kernel>,
    modules: Vec<sys::CUmodule>,
    context: Arc<CudaContext>,
}

// SAFETY: modules and functions belong to the context, not to a thread; the map is only read.
unsafe impl Send for Kernels {}
unsafe impl Sync for Kernels {}

impl Drop for Kernels {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure.
        let _ = self.context.bind_to_thread();
        for module in &self.modules {
            // SAFETY: loaded below, unloaded once.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}

/// Refuses a device or driver that cannot run the kernels.
pub fn code_for(device: &str, capability: Version, driver: Version) -> Result<Code> {
    BUILD.code_for(device, capability, driver)
}

impl Kernels {
    /// Loads every image, now and not at first use: a capture of a graph is no time for it.
    pub fn load(context: &Arc<CudaContext>, info: &DeviceInfo) -> Result<Self> {
        let mut kernels = Kernels {
            by_name: HashMap::new(),
            modules: vec![],
            context: context.clone(),
        };
        for (name, image) in IMAGES {
            // SAFETY: an image that nvcc made, aligned, alive for as long as the program.
            let module = unsafe { result::module::load_data(image.0.as_ptr().cast()) }
                .map_err(|e| load_fault(info, name, e))?;
            kernels.modules.push(module);
            for function in functions(module).map_err(|e| load_fault(info, name, e))? {
                let (name, kernel) = kernel(function, info.max_shared_bytes)
                    .map_err(|e| load_fault(info, name, e))?;
                if kernels.by_name.insert(name.clone(), kernel).is_some() {
                    return Err(Error::device(
                        format!("two kernels have the name `{name}`"),
                        "rename one of them",
                    ));
                }
            }
        }
        Ok(kernels)
    }

    /// The kernel called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn named(&self, name: &str) -> Result<&Kernel> {
        self.by_name.get(name).ok_or_else(|| {
            Error::unsupported(
                format!("this build has no kernel `{name}`"),
                "use another precision, and please report it",
            )
        })
    }

    /// The kernel called `name`, which takes `args`.
    ///
    /// # Errors
    /// There is none of that name, or it takes other parameters.
    pub fn get(&self, name: &str, args: &Args) -> Result<&Kernel> {
        let kernel = self.named(name)?;
        match args.fits(&kernel.parameter_bytes) {
            true => Ok(kernel),
            false => Err(Error::defect(format!(
                "the kernel `{name}` takes parameters of {:?} bytes and was given others",
                kernel.parameter_bytes
            ))),
        }
    }
}

fn load_fault(info: &DeviceInfo, image: &str, error: DriverError) -> Error {
    use sys::CUresult::*;
    match error.0 {
        // `code_for` foresees these; the driver has the last word.
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_NO_BINARY_FOR_GPU => Error::unsupported(
            format!(
                "{} cannot run the kernels of this build, which are of CUDA {}.{}: {error}",
                info.id, BUILD.toolkit.0, BUILD.toolkit.1
            ),
            "update the NVIDIA driver, or build on the machine with the GPU",
        ),
        _ => fault(&info.id, format_args!("loading {image}"), error),
    }
}

fn functions(module: sys::CUmodule) -> Result<Vec<sys::CUfunction>, DriverError> {
    let mut count = 0;
    // SAFETY: the module is loaded; the list has room for as many functions as it was asked for.
    unsafe {
        sys::cuModuleGetFunctionCount(&mut count, module).result()?;
        let mut functions = vec![std::ptr::null_mut(); count as usize];
        sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module).result()?;
        Ok(functions)
    }
}

/// Name and properties of a function, which may from now on use as much dynamic shared memory as
/// the device has; without asking, 48 KiB are the limit.
fn kernel(
    function: sys::CUfunction,
    max_shared_bytes: u32,
) -> Result<(String, Kernel), DriverError> {
    use sys::CUfunction_attribute_enum as Attribute;
    let mut name = std::ptr::null();
    // SAFETY: the function belongs to a loaded module, which also owns its name.
    let (name, static_bytes) = unsafe {
        sys::cuFuncGetName(&mut name, function).result()?;
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        let shared = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let static_bytes = result::function::get_function_attribute(function, shared)?;
        (name, static_bytes as u32)
    };
    let max_shared_bytes = max_shared_bytes.saturating_sub(static_bytes);
    // SAFETY: as above.
    unsafe {
        result::function::set_function_attribute(
            function,
            Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            max_shared_bytes as c_int,
        )?;
    }
    let kernel = Kernel {
        function,
        max_shared_bytes,
        parameter_bytes: parameter_bytes(function)?,
    };
    Ok((name, kernel))
}

/// The driver tells them one by one and calls the number behind the last an invalid value.
fn parameter_bytes(function: sys::CUfunction) -> Result<Vec<usize>, DriverError> {
    let mut all = vec![];
    loop {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function belongs to a loaded module.
        let parameter =
            unsafe { sys::cuFuncGetParamInfo(function, all.len(), &mut offset, &mut bytes) };
        match parameter {
            sys::CUresult::CUDA_SUCCESS => all.push(bytes),
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(all),
            other => return Err(DriverError(other)),
        }
    }
}

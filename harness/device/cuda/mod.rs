//! The CUDA driver: one GPU, one stream, candle's tensors, our kernels.
//!
//! All work goes to one stream that is not the default one, in order, so nothing has to wait for
//! anything else and candle's tracking of uses by events is off. Memory comes from the device's
//! stream-ordered pool, which keeps what it has: its high-water mark is what a phase needed.
//!
//! A program with this in it is linked to the driver's library, `libcuda.so.1`, and to those of
//! CUDA. Where one of them is missing the system refuses to start the program, before any of our
//! code runs: hence a feature and no default.

mod fault;
mod graph;
mod kernels;
mod library;
mod pool;
mod upload;

use super::driver::{Args, DeviceInfo, Driver, Gemm, Graph, Launch, PoolUsage};
use super::requirements::version_of;
use crate::error::Shortage;
use crate::lock::lock;
use crate::{Error, Result};
use candle_core::cuda_backend::CudaStorageSlice as Slice;
use candle_core::cuda_backend::cudarc::driver;
use candle_core::{CudaDevice, DType, Device, Shape, Storage, Tensor};
use driver::{CudaContext, CudaStream, DevicePtr, DriverError, result, sys};
use fault::{Status, fault, told};
use kernels::Kernels;
use library::Library;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use upload::Staging;

/// One GPU. See the module's documentation.
pub struct CudaDriver {
    // In the order in which they may go: what uses the context first.
    staging: Mutex<Option<Staging>>,
    library: Library,
    kernels: Arc<Kernels>,
    device: Device,
    stream: Arc<CudaStream>,
    info: DeviceInfo,
    recording: AtomicBool,
}

/// How many GPUs the driver shows to this process.
///
/// # Errors
/// A driver that does not start.
pub fn gpu_count() -> Result<usize> {
    let count = match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(0),
        Err(error) => return Err(fault("cuda", "starting the driver", error)),
        Ok(()) => result::device::get_count(),
    };
    let count = count.map_err(|e| fault("cuda", "counting the devices", e))?;
    Ok(count as usize)
}

impl CudaDriver {
    /// Opens a GPU, loads the kernels and takes the library's workspace.
    ///
    /// # Errors
    /// [`Error::Unsupported`] in one line: no GPU, none of that number, a GPU or a driver that
    /// cannot run the kernels of this build.
    pub fn open(ordinal: usize) -> Result<Self> {
        let id = format!("cuda:{ordinal}");
        match gpu_count()? {
            0 => Err(Error::unsupported(
                format!("{id}: the driver shows no GPU"),
                "use the CPU, or see what nvidia-smi and CUDA_VISIBLE_DEVICES say",
            )),
            count if ordinal >= count => Err(Error::unsupported(
                format!("{id}: this machine shows {count} GPU(s), counted from 0"),
                "use a smaller number, or see CUDA_VISIBLE_DEVICES",
            )),
            _ => Ok(()),
        }?;
        let (driver, info) = info(&id, ordinal).map_err(|e| fault(&id, "asking what it is", e))?;
        kernels::code_for(&id, info.compute_capability, driver)?;
        // candle opens its libraries here too: a device without memory left fails now.
        let cuda = CudaDevice::new_with_stream(ordinal).map_err(|e| {
            told(
                format!("{id}: opening it: {e}"),
                &e,
                "see that no other process fills it or has it for itself (nvidia-smi)",
            )
        })?;
        // SAFETY: everything happens on one stream.
        unsafe { cuda.disable_event_tracking() };
        let stream = cuda.cuda_stream();
        let context = stream.context();
        if !context.has_async_alloc() {
            return Err(Error::unsupported(
                format!("{id} has no memory pool"),
                "use a device and a driver with stream-ordered allocation (CUDA 11.2 or newer)",
            ));
        }
        pool::keep_memory(context).map_err(|e| fault(&id, "preparing its memory pool", e))?;
        let kernels = Arc::new(Kernels::load(context, &info)?);
        let device = Device::Cuda(cuda.clone());
        let bytes = library::workspace_bytes(info.compute_capability);
        // SAFETY: nobody reads a workspace before the library has written it.
        let workspace = unsafe { Tensor::empty(bytes, DType::U8, &device) }
            .map_err(|e| no_memory(context, e, bytes))?;
        let at = address(&workspace, &stream)?;
        Ok(CudaDriver {
            staging: Mutex::default(),
            library: Library::new(
                stream.clone(),
                cuda.cublas_handle(),
                info.compute_capability,
                workspace,
                at,
            )?,
            kernels,
            device,
            stream,
            info,
            recording: AtomicBool::new(false),
        })
    }

    fn fault(&self, doing: impl std::fmt::Display, error: DriverError) -> Error {
        fault(&self.info.id, doing, error)
    }

    /// Refuses what a graph cannot hold.
    fn not_recording(&self, what: &str) -> Result<()> {
        match self.recording.load(Relaxed) {
            false => Ok(()),
            true => Err(Error::defect(format!("{what} while a graph is recorded"))),
        }
    }

    fn time(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let fault = |e| self.fault("timing", e);
        let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let start = self.stream.record_event(timing).map_err(fault)?;
        body()?;
        let end = self.stream.record_event(timing).map_err(fault)?;
        let milliseconds = start.elapsed_ms(&end).map_err(fault)?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for CudaDriver {
    /// After a kernel's fault every call fails, and candle's device panics where closing one of
    /// its libraries does: that would hide what the fault said. So a device that no longer answers
    /// is left to the end of the process.
    fn drop(&mut self) {
        if self.stream.synchronize().is_err() {
            std::mem::forget(self.device.clone());
        }
    }
}

impl Driver for CudaDriver {
    fn device(&self) -> &Device {
        &self.device
    }

    fn launch(&self, launch: &Launch, args: &mut Args) -> Result<()> {
        let kernel = self.kernels.get(launch.kernel, args)?;
        if launch.shared_bytes > kernel.max_shared_bytes {
            return Err(Error::unsupported(
                format!(
                    "{} bytes of shared memory for the kernel `{}`: {} has {}",
                    launch.shared_bytes, launch.kernel, self.info.id, kernel.max_shared_bytes
                ),
                "use a device with more shared memory per block",
            ));
        }
        let ([x, y, z], [bx, by, bz]) = (launch.grid, launch.block);
        let stream = self.stream.cu_stream();
        let parameters = args.pointers().as_mut_ptr();
        // SAFETY: the parameters are as many and as large as the kernel declares; that addresses
        // among them are right is the promise of whoever made them.
        self.stream
            .context()
            .bind_to_thread()
            .and_then(|()| unsafe {
                let shared = launch.shared_bytes;
                let extra = std::ptr::null_mut();
                sys::cuLaunchKernel(
                    kernel.function,
                    x,
                    y,
                    z,
                    bx,
                    by,
                    bz,
                    shared,
                    stream,
                    parameters,
                    extra,
                )
                .result()
            })
            .map_err(|e| self.fault(format_args!("starting {launch:?}"), e))
    }

    fn resident_blocks(&self, kernel: &str, block: u32) -> Result<u32> {
        let function = self.kernels.named(kernel)?.function;
        let mut blocks = 0;
        let bound = self.stream.context().bind_to_thread();
        bound
            .and_then(|()| {
                // SAFETY: the function belongs to a loaded module.
                unsafe {
                    let block = block as i32;
                    sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                        &mut blocks,
                        function,
                        block,
                        0,
                    )
                }
                .result()
            })
            .map_err(|e| self.fault(format_args!("asking how `{kernel}` fits"), e))?;
        Ok(blocks as u32)
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        let bound = self.stream.context().bind_to_thread();
        bound.map_err(|e| self.fault("starting a product", e))?;
        self.library.gemm(gemm)
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        match tensor.device().same_device(&self.device) {
            true => address(tensor, &self.stream),
            false => Err(Error::defect(format!(
                "a tensor on {:?} for {}",
                tensor.device().location(),
                self.info.id
            ))),
        }
    }

    fn allocate(&self, shape: &Shape, dtype: DType, zeroed: bool) -> Result<Tensor> {
        self.not_recording("an allocation")?;
        let make = || match zeroed {
            true => Tensor::zeros(shape, dtype, &self.device),
            // SAFETY: the caller writes before it reads.
            false => unsafe { Tensor::empty(shape, dtype, &self.device) },
        };
        let tensor = match make() {
            // The pool may hold what is free in pieces that do not serve: the device gets them
            // back, once what was started no longer uses them.
            Err(e) if e.is_out_of_memory() => {
                self.synchronize()?;
                let given = pool::give_back(self.stream.context());
                given.map_err(|e| self.fault("giving back free memory", e))?;
                make()
            }
            made => made,
        };
        let bytes = shape.elem_count() * dtype.size_in_bytes();
        tensor.map_err(|e| no_memory(self.stream.context(), e, bytes))
    }

    fn write(&self, bytes: &[u8], to: u64) -> Result<()> {
        self.not_recording("a copy from the host")?;
        let mut staging = lock(&self.staging);
        let mut copy = || {
            self.stream.context().bind_to_thread()?;
            if staging.is_none() {
                *staging = Some(Staging::new(self.stream.context())?);
            }
            let staging = staging.as_mut().expect("just made");
            // SAFETY: that `to` has room is the promise of the caller.
            unsafe { staging.copy(&self.stream, bytes, to) }
        };
        copy().map_err(|e| self.fault("copying to the device", e))
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.not_recording("a copy to the host")?;
        let stream = &self.stream;
        let started = stream.context().bind_to_thread().and_then(|()| {
            // SAFETY: that there is as much at `from` is the promise of the caller; the bytes are
            // borrowed until the copy has ended.
            unsafe { result::memcpy_dtoh_async(bytes, from, stream.cu_stream()) }
        });
        let ended = started.and_then(|()| stream.synchronize());
        ended.map_err(|e| self.fault("copying from the device", e))
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.not_recording("a second graph")?;
        self.recording.store(true, Relaxed);
        let graph = graph::record(&self.info.id, &self.stream, &self.kernels, body);
        self.recording.store(false, Relaxed);
        Ok(Box::new(graph?))
    }

    fn synchronize(&self) -> Result<()> {
        let ended = self.stream.synchronize();
        ended.map_err(|e| self.fault("waiting for its work", e))
    }

    fn elapsed_s(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.not_recording("timing")?;
        self.time(body)
    }

    fn pool(&self) -> Result<PoolUsage> {
        let workspace_bytes = self.library.workspace_bytes() as u64;
        let usage = pool::usage(self.stream.context(), workspace_bytes);
        usage.map_err(|e| self.fault("reading its memory pool", e))
    }

    fn reset_pool_peak(&self) -> Result<()> {
        let reset = pool::reset_peak(self.stream.context());
        reset.map_err(|e| self.fault("resetting the marks of its memory pool", e))
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }
}

/// Why `bytes` could not be had.
fn no_memory(context: &CudaContext, error: candle_core::Error, bytes: usize) -> Error {
    if !error.is_out_of_memory() {
        return error.into();
    }
    let requested_bytes = bytes as u64;
    let free_bytes = pool::free_bytes(context).unwrap_or(0);
    Error::OutOfMemory(Shortage::Buffer {
        requested_bytes,
        free_bytes,
        missing_bytes: requested_bytes.saturating_sub(free_bytes),
    })
}

/// The CUDA version that the driver knows, and what the device is.
fn info(id: &str, ordinal: usize) -> Result<((u32, u32), DeviceInfo), DriverError> {
    use sys::CUdevice_attribute_enum::*;
    let device = result::device::get(ordinal as i32)?;
    let mut driver = 0;
    // SAFETY: the driver is initialized and the device exists.
    let (attribute, total_bytes) = unsafe {
        sys::cuDriverGetVersion(&mut driver).result()?;
        let attribute = move |a| result::device::get_attribute(device, a).map(|n| n as u32);
        (attribute, result::device::total_mem(device)?)
    };
    let driver = version_of(driver as u32);
    let info = DeviceInfo {
        id: id.into(),
        name: result::device::get_name(device)?,
        compute_capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        total_bytes: total_bytes as u64,
        max_shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver_version: format!("CUDA {}.{}", driver.0, driver.1),
        exclusive: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)?
            == sys::CUcomputemode_enum::CU_COMPUTEMODE_EXCLUSIVE_PROCESS as u32,
    };
    Ok((driver, info))
}

/// Address of the first element of a contiguous tensor.
fn address(tensor: &Tensor, stream: &CudaStream) -> Result<u64> {
    let defect = |what: &str| {
        Error::defect(format!(
            "{what} ({:?} {:?})",
            tensor.dtype(),
            tensor.shape()
        ))
    };
    let (storage, layout) = tensor.storage_and_layout();
    let Some((first, _)) = layout.contiguous_offsets() else {
        return Err(defect("a tensor for a kernel is not contiguous"));
    };
    let Storage::Cuda(storage) = &*storage else {
        return Err(defect("a tensor for a kernel is not on a GPU"));
    };
    let base = match &storage.slice {
        Slice::U8(s) => s.device_ptr(stream).0,
        Slice::U32(s) => s.device_ptr(stream).0,
        Slice::I16(s) => s.device_ptr(stream).0,
        Slice::I32(s) => s.device_ptr(stream).0,
        Slice::I64(s) => s.device_ptr(stream).0,
        Slice::BF16(s) => s.device_ptr(stream).0,
        Slice::F16(s) => s.device_ptr(stream).0,
        Slice::F32(s) => s.device_ptr(stream).0,
        Slice::F64(s) => s.device_ptr(stream).0,
        Slice::F8E4M3(s) => s.device_ptr(stream).0,
        _ => return Err(defect("a tensor for a kernel has a type without kernels")),
    };
    Ok(base + (first * tensor.dtype().size_in_bytes()) as u64)
}

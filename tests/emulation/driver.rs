//! The emulation as a [`Driver`]: the host's side of the GPU path runs as it would on a card, with
//! device memory in ordinary tensors and the vendor's products in plain loops.

#![allow(dead_code)]

use crate::emulation::Emulation;
use candle_core::{DType, Device, Shape, Storage, Tensor};
use half::f16;
use quantbench::device::{Args, DeviceInfo, Driver, Gemm, GemmKind, Gpu, Graph, Launch, PoolUsage};
use quantbench::memory::{self, Part};
use quantbench::model::gpu::GpuKernels;
use quantbench::model::kernels::Kernels;
use quantbench::packed::gpu::Choice;
use quantbench::{Error, Result};
use rayon::prelude::*;
use std::ops::{Add, Mul, Neg};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// The device that the tests run on: the GPU that `QUANTBENCH_TEST_DEVICE` names (`cuda:0`), else
/// the emulation; none, with a printed reason, where there is no C++ compiler.
pub fn driver() -> Option<Arc<Spy>> {
    let inner: Arc<dyn Driver> = match std::env::var("QUANTBENCH_TEST_DEVICE") {
        Ok(device) => quantbench::device::open(&device).unwrap(),
        Err(_) => EmulatedDriver::new()?,
    };
    Some(Arc::new(Spy {
        inner,
        launches: Mutex::default(),
        written_bytes: AtomicUsize::new(0),
        read_bytes: AtomicUsize::new(0),
    }))
}

/// The device of [`driver`] as the program uses it.
pub fn gpu() -> Option<Gpu> {
    Some(Gpu::new(driver()?))
}

pub fn gpu_kernels(gpu: &Gpu) -> Arc<dyn Kernels> {
    Arc::new(GpuKernels::new(gpu.clone(), Choice::Auto, false).unwrap())
}

/// Another driver, with a list of what was started.
pub struct Spy {
    inner: Arc<dyn Driver>,
    launches: Mutex<Vec<String>>,
    written_bytes: AtomicUsize,
    read_bytes: AtomicUsize,
}

impl Spy {
    /// Kernels and products started since the last call.
    pub fn take_launches(&self) -> Vec<String> {
        std::mem::take(&mut self.launches.lock().unwrap())
    }

    /// Bytes copied from the host since the last call.
    pub fn take_written_bytes(&self) -> usize {
        self.written_bytes.swap(0, Relaxed)
    }

    /// Bytes copied to the host since the last call, by [`Driver::read`].
    pub fn take_read_bytes(&self) -> usize {
        self.read_bytes.swap(0, Relaxed)
    }
}

impl Driver for Spy {
    fn device(&self) -> &Device {
        self.inner.device()
    }

    fn launch(&self, launch: &Launch, args: &mut Args) -> Result<()> {
        self.launches.lock().unwrap().push(launch.kernel.into());
        self.inner.launch(launch, args)
    }

    fn resident_blocks(&self, kernel: &str, block: u32) -> Result<u32> {
        self.inner.resident_blocks(kernel, block)
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.launches.lock().unwrap().push("gemm".into());
        self.inner.gemm(gemm)
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        self.inner.address(tensor)
    }

    fn allocate(&self, shape: &Shape, dtype: DType, zeroed: bool) -> Result<Tensor> {
        self.inner.allocate(shape, dtype, zeroed)
    }

    fn write(&self, bytes: &[u8], to: u64) -> Result<()> {
        self.written_bytes.fetch_add(bytes.len(), Relaxed);
        self.inner.write(bytes, to)
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.read_bytes.fetch_add(bytes.len(), Relaxed);
        self.inner.read(from, bytes)
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.inner.record(body)
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }

    fn elapsed_s(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.inner.elapsed_s(body)
    }

    fn pool(&self) -> Result<PoolUsage> {
        self.inner.pool()
    }

    fn reset_pool_peak(&self) -> Result<()> {
        self.inner.reset_pool_peak()
    }

    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
}

/// A driver over the emulated kernels.
struct EmulatedDriver {
    emulation: &'static Emulation,
    info: DeviceInfo,
    recording: Mutex<Option<Vec<Work>>>,
}

/// What a recorded graph does.
enum Work {
    Launch(String, [u32; 3], [u32; 3], u32, Args),
    Gemm(Gemm),
}

// SAFETY: the pointers in `Args` are made anew whenever they are asked for.
unsafe impl Send for Work {}

impl EmulatedDriver {
    /// None, with a printed reason, where the kernels cannot be compiled.
    fn new() -> Option<Arc<Self>> {
        Some(Arc::new(EmulatedDriver {
            emulation: Emulation::get()?,
            info: DeviceInfo {
                id: "emulated".into(),
                name: "emulation".into(),
                compute_capability: (8, 0),
                multiprocessors: 3,
                ..DeviceInfo::default()
            },
            recording: Mutex::default(),
        }))
    }

    fn refuse_while_recording(&self, what: &str) -> Result<()> {
        match self.recording.lock().unwrap().is_some() {
            true => Err(Error::unsupported(
                format!("{what} while recording"),
                "a defect",
            )),
            false => Ok(()),
        }
    }
}

impl Driver for EmulatedDriver {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn launch(&self, launch: &Launch, args: &mut Args) -> Result<()> {
        if let Some(work) = self.recording.lock().unwrap().as_mut() {
            work.push(Work::Launch(
                launch.kernel.into(),
                launch.grid,
                launch.block,
                launch.shared_bytes,
                args.snapshot(),
            ));
            return Ok(());
        }
        run(self.emulation, launch, args)
    }

    fn resident_blocks(&self, _kernel: &str, _block: u32) -> Result<u32> {
        Ok(4)
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        if let Some(work) = self.recording.lock().unwrap().as_mut() {
            work.push(Work::Gemm(*gemm));
            return Ok(());
        }
        product(gemm);
        Ok(())
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, _)) = layout.contiguous_offsets() else {
            return Err(Error::unsupported("a tensor with gaps", "a defect"));
        };
        let Storage::Cpu(storage) = &*storage else {
            return Err(Error::unsupported("a tensor elsewhere", "a defect"));
        };
        let base = match tensor.dtype() {
            DType::F16 => storage.as_slice::<f16>()?.as_ptr() as u64,
            DType::BF16 => storage.as_slice::<half::bf16>()?.as_ptr() as u64,
            DType::F32 => storage.as_slice::<f32>()?.as_ptr() as u64,
            DType::U32 => storage.as_slice::<u32>()?.as_ptr() as u64,
            DType::I32 => storage.as_slice::<i32>()?.as_ptr() as u64,
            DType::U8 => storage.as_slice::<u8>()?.as_ptr() as u64,
            DType::F64 => storage.as_slice::<f64>()?.as_ptr() as u64,
            other => panic!("no kernel reads {other:?}"),
        };
        Ok(base + (start * tensor.dtype().size_in_bytes()) as u64)
    }

    fn allocate(&self, shape: &Shape, dtype: DType, zeroed: bool) -> Result<Tensor> {
        self.refuse_while_recording("an allocation")?;
        // What nobody has written yet shows as NaN or as an impossible id.
        let fill = if zeroed { 0 } else { 0xff };
        // Set apart from what the host's side takes, which has no cache of its own.
        memory::scope(Part::KvCache, || {
            let bytes = vec![fill; shape.elem_count() * dtype.size_in_bytes()];
            let dims = shape.dims();
            Ok(Tensor::from_raw_buffer(&bytes, dtype, dims, &Device::Cpu)?)
        })
    }

    fn write(&self, bytes: &[u8], to: u64) -> Result<()> {
        self.refuse_while_recording("a copy")?;
        // SAFETY: the caller has the address from a tensor of at least this size.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.refuse_while_recording("a copy")?;
        // SAFETY: as for writing.
        unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len())
        };
        Ok(())
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        *self.recording.lock().unwrap() = Some(vec![]);
        let result = body();
        let work = self.recording.lock().unwrap().take().unwrap();
        result?;
        Ok(Box::new(Recorded {
            emulation: self.emulation,
            work: Mutex::new(work),
        }))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn pool(&self) -> Result<PoolUsage> {
        Ok(PoolUsage::default())
    }

    fn reset_pool_peak(&self) -> Result<()> {
        Ok(())
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }
}

struct Recorded {
    emulation: &'static Emulation,
    work: Mutex<Vec<Work>>,
}

impl Graph for Recorded {
    fn replay(&self) -> Result<()> {
        for work in self.work.lock().unwrap().iter_mut() {
            match work {
                Work::Launch(kernel, grid, block, shared_bytes, args) => {
                    let launch = Launch {
                        kernel,
                        grid: *grid,
                        block: *block,
                        shared_bytes: *shared_bytes,
                    };
                    run(self.emulation, &launch, args)?;
                }
                Work::Gemm(gemm) => product(gemm),
            }
        }
        Ok(())
    }
}

fn run(emulation: &Emulation, launch: &Launch, args: &mut Args) -> Result<()> {
    emulation
        .launch(
            launch.kernel,
            launch.grid,
            launch.block,
            launch.shared_bytes,
            args.pointers(),
        )
        .map_err(|e| Error::unsupported(format!("{}: {e}", launch.kernel), "a defect"))
}

/// The library's product, each sum one number after the other.
fn product(g: &Gemm) {
    let f32_of = |code: u8| quantbench::packed::fp8::Kind::E4m3.decode(code);
    // Copies of the operands are the device's, as in `allocate`.
    // SAFETY: the addresses and sizes are those of live tensors of the test.
    memory::scope(Part::KvCache, || unsafe {
        match g.kind {
            GemmKind::F16 { f32_output: true } => multiply(g, f16::to_f32, |y: f32| y, |x| x),
            GemmKind::F16 { f32_output: false } => {
                multiply(g, f16::to_f32, f16::to_f32, f16::from_f32)
            }
            GemmKind::F32 => multiply(g, |x: f32| x, |y: f32| y, |x| x),
            GemmKind::F64 => multiply(g, |x: f64| x, |y: f64| y, |x| x),
            GemmKind::Int8 => multiply(g, |x: i8| i32::from(x), |y: i32| y, |x| x),
            GemmKind::Fp8 => multiply(g, f32_of, |y: f32| y, |x| x),
        }
    })
}

/// A product of numbers stored as `T`, summed as `S` and stored as `Y`.
///
/// # Safety
/// The addresses are those of matrices of these types.
unsafe fn multiply<T: Copy, S, Y: Copy>(
    g: &Gemm,
    read: impl Fn(T) -> S,
    read_old: impl Fn(Y) -> S + Sync,
    write: impl Fn(S) -> Y + Sync,
) where
    S: Copy + Send + Sync + Default + Neg<Output = S> + Add<Output = S> + Mul<Output = S>,
{
    // Row after row of `count` rows, whichever way they are stored.
    let operand = |base: u64, count: usize, stride: usize, transposed: bool| -> Vec<S> {
        let places = (0..count * g.k_in).map(|i| (i / g.k_in, i % g.k_in));
        let offset = |(row, k): (usize, usize)| match transposed {
            true => k * stride + row,
            false => row * stride + k,
        };
        // SAFETY: promised by the caller.
        let value = |at: usize| read(unsafe { (base as *const T).add(at).read() });
        places.map(offset).map(value).collect()
    };
    let x = operand(g.x, g.rows, g.x_stride, g.x_transposed);
    let w = operand(g.w, g.n_out, g.w_stride, g.w_transposed);
    (0..g.rows).into_par_iter().for_each(|r| {
        let x = &x[r * g.k_in..][..g.k_in];
        for n in 0..g.n_out {
            let w = &w[n * g.k_in..][..g.k_in];
            let pairs = x.iter().zip(w);
            let sum = pairs.fold(S::default(), |sum, (x, w)| sum + *x * *w);
            let sum = if g.negated { -sum } else { sum };
            // SAFETY: promised by the caller; every element is written by one thread.
            unsafe {
                let y = (g.y as *mut Y).add(r * g.y_stride + n);
                *y = write(if g.accumulate {
                    read_old(*y) + sum
                } else {
                    sum
                });
            }
        }
    });
}

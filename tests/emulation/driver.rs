//! The emulation as a [`Driver`]: the host's side of the GPU path runs as it would on a card, with
//! device memory in ordinary tensors and the vendor's products in plain loops.

#![allow(dead_code)]

use crate::emulation::Emulation;
use candle_core::{DType, Device, Shape, Storage, Tensor};
use half::f16;
use quantbench::device::{Args, DeviceInfo, Driver, Gemm, GemmKind, Graph, Launch, PoolUsage};
use quantbench::memory::{self, Part};
use quantbench::{Error, Result};
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
    }))
}

/// Another driver, with a list of what was started.
pub struct Spy {
    inner: Arc<dyn Driver>,
    launches: Mutex<Vec<String>>,
}

impl Spy {
    /// Kernels and products started since the last call.
    pub fn take_launches(&self) -> Vec<String> {
        std::mem::take(&mut self.launches.lock().unwrap())
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
        self.inner.write(bytes, to)
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

/// The library's product, one sum after the other.
fn product(g: &Gemm) {
    // Element `k` of row `row` of an operand lies at `row * steps.0 + k * steps.1`.
    let steps = |transposed: bool, stride: usize| match transposed {
        true => (1, stride),
        false => (stride, 1),
    };
    let (x, w) = (
        steps(g.x_transposed, g.x_stride),
        steps(g.w_transposed, g.w_stride),
    );
    let sign = if g.negated { -1.0 } else { 1.0 };
    // SAFETY: the addresses and sizes are those of live tensors of the test.
    unsafe {
        for r in 0..g.rows {
            for n in 0..g.n_out {
                let at = r * g.y_stride + n;
                let places = (0..g.k_in).map(|k| (r * x.0 + k * x.1, n * w.0 + k * w.1));
                match g.kind {
                    GemmKind::F16 { f32_output } => {
                        let (x, w) = (g.x as *const f16, g.w as *const f16);
                        let value = |p: *const f16| p.read().to_f32();
                        let sum: f32 = places.map(|(i, j)| value(x.add(i)) * value(w.add(j))).sum();
                        let sum = sign as f32 * sum;
                        if f32_output {
                            let y = (g.y as *mut f32).add(at);
                            *y = if g.accumulate { *y + sum } else { sum };
                        } else {
                            let y = (g.y as *mut f16).add(at);
                            let old = if g.accumulate { (*y).to_f32() } else { 0.0 };
                            *y = f16::from_f32(old + sum);
                        }
                    }
                    GemmKind::F32 => {
                        let (x, w) = (g.x as *const f32, g.w as *const f32);
                        let sum: f32 = places.map(|(i, j)| *x.add(i) * *w.add(j)).sum();
                        let sum = sign as f32 * sum;
                        let y = (g.y as *mut f32).add(at);
                        *y = if g.accumulate { *y + sum } else { sum };
                    }
                    GemmKind::F64 => {
                        let (x, w) = (g.x as *const f64, g.w as *const f64);
                        let sum: f64 = places.map(|(i, j)| *x.add(i) * *w.add(j)).sum();
                        let y = (g.y as *mut f64).add(at);
                        *y = sign * sum + if g.accumulate { *y } else { 0.0 };
                    }
                    GemmKind::Int8 => {
                        let (x, w) = (g.x as *const i8, g.w as *const i8);
                        let sum: i32 = places
                            .map(|(i, j)| i32::from(*x.add(i)) * i32::from(*w.add(j)))
                            .sum();
                        *(g.y as *mut i32).add(at) = sum;
                    }
                    GemmKind::Fp8 => {
                        let value = |code: u8| quantbench::packed::fp8::Kind::E4m3.decode(code);
                        let (x, w) = (g.x as *const u8, g.w as *const u8);
                        let sum: f32 = places
                            .map(|(i, j)| value(*x.add(i)) * value(*w.add(j)))
                            .sum();
                        *(g.y as *mut f32).add(at) = sum;
                    }
                }
            }
        }
    }
}

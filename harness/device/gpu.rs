//! A GPU in use: its driver, and the memory that was asked of it, counted by part.

use super::driver::{Args, Driver, Launch};
use crate::error::Shortage;
use crate::memory::{self, Part};
use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// A driver, and what it has handed out by part.
#[derive(Clone)]
pub struct Gpu {
    driver: Arc<dyn Driver>,
    limit_bytes: Arc<AtomicUsize>,
    releases: Arc<AtomicU64>,
}

/// Device memory that is counted under a part for as long as it is held.
pub struct Buffer {
    tensor: Tensor,
    claim: Claim,
}

impl Buffer {
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The tensor, and what counts it as long as it is held.
    pub fn into_parts(self) -> (Tensor, Claim) {
        (self.tensor, self.claim)
    }
}

/// Bytes of device memory, counted in [`crate::memory::device`] until dropped.
pub struct Claim {
    part: Part,
    bytes: usize,
    releases: Arc<AtomicU64>,
}

impl Claim {
    fn new(part: Part, bytes: usize, releases: Arc<AtomicU64>) -> Self {
        memory::device::claim(part, bytes);
        Claim {
            part,
            bytes,
            releases,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        memory::device::release(self.part, self.bytes);
        self.releases.fetch_add(1, Relaxed);
    }
}

impl Gpu {
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Gpu {
            driver,
            limit_bytes: Arc::new(AtomicUsize::new(usize::MAX)),
            releases: Arc::default(),
        }
    }

    /// Refuses buffers that would bring what is claimed above `bytes`.
    pub fn set_limit(&self, bytes: usize) {
        self.limit_bytes.store(bytes, Relaxed);
    }

    /// How many buffers were given back so far. A graph that was recorded at another count may
    /// point to memory that is gone.
    pub fn releases(&self) -> u64 {
        self.releases.load(Relaxed)
    }

    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }

    pub fn device(&self) -> &Device {
        self.driver.device()
    }

    /// A tensor of anything, counted under `part`.
    pub fn buffer(&self, shape: impl Into<Shape>, dtype: DType, part: Part) -> Result<Buffer> {
        self.allocate(shape.into(), dtype, part, false)
    }

    /// A tensor of zeros, counted under `part`.
    pub fn zeros(&self, shape: impl Into<Shape>, dtype: DType, part: Part) -> Result<Buffer> {
        self.allocate(shape.into(), dtype, part, true)
    }

    fn allocate(&self, shape: Shape, dtype: DType, part: Part, zeroed: bool) -> Result<Buffer> {
        let bytes = shape.elem_count() * dtype.size_in_bytes();
        let limit = self.limit_bytes.load(Relaxed);
        let live = memory::device::live().total_bytes;
        if live.saturating_add(bytes) > limit {
            return Err(Error::OutOfMemory(Shortage::Buffer {
                requested_bytes: bytes as u64,
                free_bytes: limit.saturating_sub(live) as u64,
                missing_bytes: (live.saturating_add(bytes) - limit) as u64,
            }));
        }
        let tensor = self.driver.allocate(&shape, dtype, zeroed)?;
        Ok(Buffer {
            tensor,
            claim: Claim::new(part, bytes, self.releases.clone()),
        })
    }

    /// Address of a contiguous tensor on this device.
    pub fn address(&self, tensor: &Tensor) -> Result<u64> {
        self.driver.address(tensor)
    }

    /// The values of a contiguous F32 tensor, and not what else its buffer holds: candle would copy
    /// all of that.
    pub fn read_f32(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        if tensor.dtype() != DType::F32 {
            return Err(Error::defect(format!(
                "reading {:?} as F32",
                tensor.dtype()
            )));
        }
        let mut values = vec![0f32; tensor.elem_count()];
        // SAFETY: any bytes are an F32.
        let bytes = unsafe {
            let bytes = values.as_mut_ptr().cast();
            std::slice::from_raw_parts_mut(bytes, size_of_val(&values[..]))
        };
        self.driver.read(self.address(tensor)?, bytes)?;
        Ok(values)
    }

    /// Starts `kernel` on a grid; see [`Driver::launch`].
    pub fn launch(&self, kernel: &str, grid: [usize; 3], block: u32, args: Args) -> Result<()> {
        self.launch_shared(kernel, grid, block, 0, args)
    }

    /// [`Gpu::launch`] with dynamic shared memory.
    pub fn launch_shared(
        &self,
        kernel: &str,
        grid: [usize; 3],
        block: u32,
        shared_bytes: usize,
        mut args: Args,
    ) -> Result<()> {
        // Only x may be large; y and z end at 65535.
        let limits = [i32::MAX as usize, 65_535, 65_535];
        if grid.iter().zip(limits).any(|(n, limit)| *n > limit) {
            return Err(Error::unsupported(
                format!("a grid of {grid:?} blocks for the kernel `{kernel}`"),
                "use a smaller batch or a shorter context",
            ));
        }
        if grid.contains(&0) {
            return Ok(());
        }
        let launch = Launch {
            kernel,
            grid: grid.map(|n| n as u32),
            block: [block, 1, 1],
            shared_bytes: shared_bytes as u32,
        };
        self.driver.launch(&launch, &mut args)
    }
}

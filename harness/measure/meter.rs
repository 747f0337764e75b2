//! Bytes of the measured parts on whichever device a model runs: from the counting allocator on
//! the CPU, from the memory pool and our own claims on a GPU.

use super::nvml;
use crate::Result;
use crate::device::{Gpu, PoolUsage};
use crate::lock::lock;
use crate::memory::{self, Bracket, Usage};
use crate::model::kernels::Kernels;
use std::sync::Mutex;

/// Reads memory, phase by phase.
pub struct Meter {
    bracket: Bracket,
    gpu: Option<OnGpu>,
    /// On the device, before this process had a context there.
    free_bytes_before: Option<u64>,
}

struct OnGpu {
    gpu: Gpu,
    /// Highest marks of any phase, for figures that no part explains.
    highest: Mutex<PoolUsage>,
}

/// What a pool and a driver say beside the parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceMemory {
    /// High-water mark of what the pool held, free pieces included.
    pub pool_reserved_bytes: u64,
    /// All memory of the device.
    pub total_bytes: u64,
    /// Its last cache.
    pub l2_bytes: u64,
    /// Whether it takes one process at a time.
    #[serde(default)]
    pub exclusive: bool,
    /// High-water mark of what nodes of recorded graphs allocated, a part: none, as recording
    /// refuses such nodes. What the driver takes for a graph shows in `driver_delta_bytes` alone.
    pub graph_pool_bytes: u64,
    /// Workspace of the vendor's library, counted as workspace.
    pub library_workspace_bytes: u64,
    /// What was free on the device before this process touched it, less what is free now, both as
    /// NVML sees the whole device: the pool as it was reserved, and what no part counts: the
    /// context, loaded modules, recorded graphs, the vendor's library beside its workspace. The
    /// pool gives nothing back, so it is at its highest. Other processes that came or went
    /// meanwhile are in it. Absent where NVML does not tell.
    #[serde(default)]
    pub driver_delta_bytes: Option<u64>,
}

impl Meter {
    /// Starts to count where these kernels run.
    ///
    /// # Errors
    /// See [`Meter::on_gpu`].
    pub fn open(kernels: &dyn Kernels) -> Result<Self> {
        match kernels.gpu() {
            None => Ok(Self::on_cpu()),
            Some(gpu) => Self::on_gpu(gpu.clone()),
        }
    }

    /// Starts to count on the CPU; what is alive now stays outside.
    pub fn on_cpu() -> Self {
        Meter {
            bracket: Bracket::open(),
            gpu: None,
            free_bytes_before: None,
        }
    }

    /// Starts to count on a GPU: everything that its pool hands out.
    ///
    /// # Errors
    /// A pool that cannot be read.
    pub fn on_gpu(gpu: Gpu) -> Result<Self> {
        let meter = Meter {
            bracket: Bracket::open(),
            gpu: Some(OnGpu {
                gpu,
                highest: Mutex::default(),
            }),
            free_bytes_before: None,
        };
        meter.reset_peak()?;
        Ok(meter)
    }

    /// Tells what was free on the device before this process touched it, where that is known.
    pub fn since(mut self, free_bytes_before: Option<u64>) -> Self {
        self.free_bytes_before = free_bytes_before;
        self
    }

    /// How the headline was measured, as results name it.
    pub fn method(&self) -> &'static str {
        match self.gpu {
            None => "allocator",
            Some(_) => "cuda-pool",
        }
    }

    /// Refuses allocations beyond this; see [`Bracket::set_limit`]. A GPU has its own limit.
    pub fn set_limit(&self, bytes: usize) {
        match &self.gpu {
            None => self.bracket.set_limit(bytes),
            Some(on) => on.gpu.set_limit(bytes),
        }
    }

    /// Bytes alive now.
    pub fn live(&self) -> Result<Usage> {
        match &self.gpu {
            None => Ok(self.bracket.live()),
            Some(on) => on.usage(memory::device::live(), |pool| pool.used_bytes),
        }
    }

    /// Highest marks since the phase began.
    pub fn peak(&self) -> Result<Usage> {
        match &self.gpu {
            None => Ok(self.bracket.peak()),
            Some(on) => on.usage(memory::device::peak(), |pool| pool.used_peak_bytes),
        }
    }

    /// Begins a new phase.
    pub fn reset_peak(&self) -> Result<()> {
        match &self.gpu {
            None => self.bracket.reset_peak(),
            Some(on) => {
                on.gpu.driver().synchronize()?;
                memory::device::reset_peak();
                on.gpu.driver().reset_pool_peak()?;
            }
        }
        Ok(())
    }

    /// What a GPU tells beside the parts; nothing on the CPU.
    pub fn device_memory(&self) -> Result<Option<DeviceMemory>> {
        let Some(on) = &self.gpu else {
            return Ok(None);
        };
        on.read()?;
        let highest = lock(&on.highest);
        Ok(Some(DeviceMemory {
            pool_reserved_bytes: highest.reserved_peak_bytes,
            total_bytes: on.gpu.driver().info().total_bytes,
            l2_bytes: on.gpu.driver().info().l2_bytes,
            exclusive: on.gpu.driver().info().exclusive,
            graph_pool_bytes: highest.graph_peak_bytes,
            library_workspace_bytes: highest.library_workspace_bytes,
            driver_delta_bytes: self
                .free_bytes_before
                .zip(nvml::free_bytes(&on.gpu.driver().info().id))
                .map(|(before, now)| before.saturating_sub(now)),
        }))
    }
}

impl OnGpu {
    fn read(&self) -> Result<PoolUsage> {
        self.gpu.driver().synchronize()?;
        let pool = self.gpu.driver().pool()?;
        let mut highest = lock(&self.highest);
        highest.reserved_peak_bytes = highest.reserved_peak_bytes.max(pool.reserved_peak_bytes);
        highest.graph_peak_bytes = highest.graph_peak_bytes.max(pool.graph_peak_bytes);
        highest.library_workspace_bytes = pool.library_workspace_bytes;
        Ok(pool)
    }

    /// Our claims by part, completed by what the pool knows. What is in the pool and in no part
    /// is `untagged`: it is reported, not hidden in a remainder.
    fn usage(&self, claims: Usage, total: fn(&PoolUsage) -> u64) -> Result<Usage> {
        let pool = self.read()?;
        let workspace = pool.library_workspace_bytes as usize;
        let graphs = pool.graph_peak_bytes as usize;
        let in_pool = total(&pool) as usize;
        Ok(Usage {
            workspace_bytes: claims.workspace_bytes + workspace,
            other_bytes: claims.other_bytes + graphs,
            untagged_bytes: in_pool.saturating_sub(claims.total_bytes + workspace),
            // The pool of graphs lies beside the pool of allocations.
            total_bytes: in_pool + graphs,
            ..claims
        })
    }
}

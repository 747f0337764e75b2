//! Which device a person asks for, and opening it.

use super::driver::Driver;
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What `--device` may say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU where this build can use one, else the CPU. A build that can and finds none
    /// says so: a person who wants the CPU there asks for it.
    #[default]
    Auto,
    Cpu,
    /// The GPU with this number, as the CUDA driver counts them.
    Cuda {
        ordinal: usize,
    },
}

impl FromStr for DeviceChoice {
    type Err = Error;

    /// Reads `auto`, `cpu`, `cuda` (the first) or `cuda:N`.
    fn from_str(spec: &str) -> Result<Self> {
        let ordinal = |n: &str| n.parse().ok().filter(|_| !n.starts_with('+'));
        match (spec, spec.strip_prefix("cuda:").map(ordinal)) {
            ("auto", _) => Ok(DeviceChoice::Auto),
            ("cpu", _) => Ok(DeviceChoice::Cpu),
            ("cuda", _) => Ok(DeviceChoice::Cuda { ordinal: 0 }),
            (_, Some(Some(ordinal))) => Ok(DeviceChoice::Cuda { ordinal }),
            _ => Err(Error::usage(
                format!("there is no device `{spec}`"),
                "use auto, cpu, cuda or cuda:N",
            )),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl DeviceChoice {
    /// The device that `auto` is on this machine; others stay what they are.
    ///
    /// # Errors
    /// A driver that does not start; a GPU that this build or this machine does not have, or
    /// `auto` where this build could use one.
    pub fn resolve(self) -> Result<Self> {
        match (self, gpu_count()) {
            (DeviceChoice::Cpu, _) => Ok(self),
            (DeviceChoice::Auto, count) => match count? {
                0 if cfg!(feature = "cuda") => Err(Error::unsupported(
                    "this build is for GPUs and the driver shows none",
                    "use --device cpu, or see what nvidia-smi and CUDA_VISIBLE_DEVICES say",
                )),
                0 => Ok(DeviceChoice::Cpu),
                _ => Ok(DeviceChoice::Cuda { ordinal: 0 }),
            },
            (DeviceChoice::Cuda { .. }, _) if !cfg!(feature = "cuda") => {
                self.driver().map(|_| self)
            }
            (DeviceChoice::Cuda { ordinal }, count) => match count? {
                count if ordinal < count => Ok(self),
                count => Err(Error::usage(
                    format!("there is no {self}: this machine shows {count} GPU(s)"),
                    "use --device cpu, or see what nvidia-smi and CUDA_VISIBLE_DEVICES say",
                )),
            },
        }
    }

    /// The driver of the device; none is the CPU, which needs none.
    ///
    /// # Errors
    /// A GPU that was asked for by name and is not there, and, `auto` too, one that is there but
    /// cannot be used: the reason is in the message, nothing else is taken in its place.
    pub fn driver(self) -> Result<Option<Arc<dyn Driver>>> {
        match self {
            DeviceChoice::Cpu => Ok(None),
            DeviceChoice::Auto if gpu_count()? == 0 => Ok(None),
            DeviceChoice::Auto => open_cuda(0).map(Some),
            DeviceChoice::Cuda { ordinal } => open_cuda(ordinal).map(Some),
        }
    }
}

/// Opens the GPU that `spec` names: `cuda`, `cuda:N`, or `auto`.
///
/// # Errors
/// See [`DeviceChoice::driver`]; also where `spec` means the CPU.
pub fn open(spec: &str) -> Result<Arc<dyn Driver>> {
    spec.parse::<DeviceChoice>()?.driver()?.ok_or_else(|| {
        Error::unsupported(
            format!("`{spec}` is the CPU here, which has no driver for kernels"),
            "use cuda or cuda:N on a machine with a GPU",
        )
    })
}

#[cfg(feature = "cuda")]
use super::cuda::gpu_count;

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> Result<Arc<dyn Driver>> {
    Ok(Arc::new(super::cuda::CudaDriver::open(ordinal)?))
}

/// A build without CUDA sees no GPU.
#[cfg(not(feature = "cuda"))]
fn gpu_count() -> Result<usize> {
    Ok(0)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(ordinal: usize) -> Result<Arc<dyn Driver>> {
    Err(Error::unsupported(
        format!("cuda:{ordinal}: this quantbench was built without CUDA"),
        "build it with `cargo build --release --features cuda` (docs/cuda.md)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for (spec, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda { ordinal: 0 }),
            ("cuda:12", DeviceChoice::Cuda { ordinal: 12 }),
        ] {
            assert_eq!(spec.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), spec);
        }
        let first = DeviceChoice::Cuda { ordinal: 0 };
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), first);
    }

    #[test]
    fn refuses_everything_else() {
        for spec in [
            "", "CUDA", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:1 ", "cuda1",
            "auto:0",
        ] {
            let error = spec.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{spec}`")), "{error}");
        }
    }

    /// Whatever the machine has: a GPU of that number it has not.
    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_that_is_not_there_is_an_error_in_words() {
        let said = open("cuda:4096").map(|_| ()).unwrap_err().to_string();
        println!("{said}");
        assert!(said.starts_with("unsupported: cuda:4096: ") || said.starts_with("cuda: "));
        assert_eq!(said.lines().count(), 2, "{said}");
    }

    /// No GPU is no reason to measure the CPU under a name that nobody typed.
    #[cfg(feature = "cuda")]
    #[test]
    fn auto_is_never_the_cpu_in_a_build_for_gpus() {
        let resolved = DeviceChoice::Auto.resolve();
        assert!(!matches!(resolved, Ok(DeviceChoice::Cpu)), "{resolved:?}");
        assert_eq!(DeviceChoice::Cpu.resolve().unwrap(), DeviceChoice::Cpu);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_the_feature_says_how_to_build_with_it() {
        let message = |spec| open(spec).map(|_| ()).unwrap_err().to_string();
        assert!(message("cuda:1").contains("--features cuda"));
        assert!(message("cuda:1").contains("cuda:1"));
        // `auto` is then the CPU, which is no error for whoever can run there.
        assert!(message("auto").contains("the CPU"));
        assert!(DeviceChoice::Auto.driver().unwrap().is_none());
        assert_eq!(DeviceChoice::Auto.resolve().unwrap(), DeviceChoice::Cpu);
    }
}

//! Which GPUs and drivers can run the kernels of a build, decided before anything is loaded, so
//! that the answer is one sentence instead of an error code.
//!
//! CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility"; CUDA Compatibility,
//! "Minor Version Compatibility".

use crate::{Error, Result};

/// Major and minor.
pub type Version = (u32, u32);

/// What the kernels were compiled by and for.
#[derive(Debug, Clone, Copy)]
pub struct Build<'a> {
    /// CUDA toolkit.
    pub toolkit: Version,
    /// Compute capabilities with native code.
    pub native: &'a [Version],
    /// Compute capability of the PTX, which the driver compiles for this one and every later.
    pub ptx: Version,
}

/// Where a GPU's code comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Native,
    /// Compiled by the driver when it is loaded, once: the driver keeps the result.
    Ptx,
}

impl Build<'_> {
    /// Whether, and how, a device of compute capability `capability` runs the kernels under a
    /// driver that knows CUDA up to `driver`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason.
    pub fn code_for(&self, device: &str, capability: Version, driver: Version) -> Result<Code> {
        if driver.0 < self.toolkit.0 {
            return Err(self.driver_too_old(device, driver));
        }
        // Native code runs on its own minor version and later ones of the same major.
        let runs = |native: &&Version| native.0 == capability.0 && native.1 <= capability.1;
        if self.native.iter().any(|native| runs(&native)) {
            return Ok(Code::Native);
        }
        if capability < self.ptx {
            let built: Vec<String> = self.native.iter().map(dotted).collect();
            return Err(Error::unsupported(
                format!(
                    "{device} has compute capability {}, the kernels were built for {} and later",
                    dotted(&capability),
                    built.join(", "),
                ),
                format!(
                    "build on the machine with the GPU, or with CUDA_COMPUTE_CAP={}{} (8.0 is the least)",
                    capability.0, capability.1
                ),
            ));
        }
        // PTX of a toolkit that is newer than the driver, even by a minor version, is refused.
        match driver < self.toolkit {
            true => Err(self.driver_too_old(device, driver)),
            false => Ok(Code::Ptx),
        }
    }

    fn driver_too_old(&self, device: &str, driver: Version) -> Error {
        Error::unsupported(
            format!(
                "the driver of {device} knows CUDA up to {}, the kernels were built by CUDA {}",
                dotted(&driver),
                dotted(&self.toolkit),
            ),
            "update the NVIDIA driver, or build with a CUDA toolkit that is not newer than it",
        )
    }
}

fn dotted(version: &Version) -> String {
    format!("{}.{}", version.0, version.1)
}

/// The driver's numbers: 13010 is 13.1.
pub fn version_of(number: u32) -> Version {
    (number / 1000, number % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: Build = Build {
        toolkit: (13, 0),
        native: &[(8, 0), (8, 9), (9, 0)],
        ptx: (9, 0),
    };

    #[test]
    fn native_code_serves_its_major_version_from_its_minor_on() {
        for capability in [(8, 0), (8, 6), (8, 9), (9, 0)] {
            let code = BUILD.code_for("cuda:0", capability, (13, 0)).unwrap();
            assert_eq!(code, Code::Native, "{capability:?}");
        }
    }

    #[test]
    fn ptx_serves_later_architectures() {
        for capability in [(10, 0), (12, 0)] {
            let code = BUILD.code_for("cuda:0", capability, (13, 1)).unwrap();
            assert_eq!(code, Code::Ptx, "{capability:?}");
        }
        let only_old = Build {
            native: &[(8, 0)],
            ptx: (8, 0),
            ..BUILD
        };
        let code = only_old.code_for("cuda:0", (9, 0), (13, 0)).unwrap();
        assert_eq!(code, Code::Ptx);
    }

    #[test]
    fn an_older_gpu_is_refused_by_name() {
        let only_hopper = Build {
            native: &[(9, 0)],
            ..BUILD
        };
        for (build, capability) in [(BUILD, (7, 5)), (only_hopper, (8, 9))] {
            let error = build.code_for("cuda:2", capability, (13, 0)).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, Error::Unsupported { .. }), "{said}");
            assert!(said.contains("cuda:2") && said.contains(&dotted(&capability)));
        }
    }

    #[test]
    fn an_older_driver_is_refused_where_it_matters() {
        let newer = Build {
            toolkit: (13, 1),
            ..BUILD
        };
        // Native code runs under an older driver of the same major version, PTX does not.
        assert!(newer.code_for("cuda:0", (9, 0), (13, 0)).is_ok());
        for (capability, driver) in [((10, 0), (13, 0)), ((9, 0), (12, 9))] {
            let error = newer.code_for("cuda:0", capability, driver).unwrap_err();
            assert!(error.to_string().contains(&dotted(&driver)), "{error}");
            assert!(error.to_string().contains("13.1"), "{error}");
        }
    }

    #[test]
    fn reads_the_drivers_numbers() {
        assert_eq!(version_of(12040), (12, 4));
        assert_eq!(version_of(13000), (13, 0));
    }
}

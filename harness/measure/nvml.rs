//! NVML, the management library of NVIDIA's driver. It is loaded when it is asked for: a machine
//! without it has no telemetry, and a sentence that says so.

use super::telemetry::{Process, Reading, Sensors};
use crate::record::run_info::GpuInfo;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::ffi::OsStr;
use std::sync::OnceLock;

/// Selects the GPUs that CUDA shows to a process, and their order.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// The library, loaded once; why it cannot be, otherwise.
fn nvml() -> Result<&'static Nvml, String> {
    static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();
    let loaded = NVML.get_or_init(|| {
        // Containers have the library under its full name only.
        ["libnvidia-ml.so.1", "libnvidia-ml.so"]
            .map(OsStr::new)
            .iter()
            .find_map(|name| Nvml::builder().lib_path(name).init().ok())
            .map_or_else(
                || Nvml::init().map_err(|e| format!("NVML cannot be used ({e})")),
                Ok,
            )
    });
    loaded.as_ref().map_err(Clone::clone)
}

/// Every GPU that the driver shows, and the driver's version; nothing without NVML.
pub fn gpus() -> (Vec<GpuInfo>, Option<String>) {
    let Ok(nvml) = nvml() else {
        return (vec![], None);
    };
    let gpus = devices(nvml)
        .map(|device| GpuInfo {
            name: device.name().unwrap_or_default(),
            memory_bytes: device.memory_info().ok().map(|m| m.total),
            gpu_clock_max_mhz: device.max_clock_info(Clock::SM).ok(),
            memory_clock_max_mhz: device.max_clock_info(Clock::Memory).ok(),
            power_limit_w: device.enforced_power_limit().ok().map(milli),
        })
        .collect();
    (gpus, nvml.sys_driver_version().ok())
}

fn devices(nvml: &'static Nvml) -> impl Iterator<Item = Device<'static>> {
    (0..nvml.device_count().unwrap_or(0)).filter_map(|i| nvml.device_by_index(i).ok())
}

/// Watts of milliwatts, joules of millijoules.
fn milli(value: u32) -> f64 {
    f64::from(value) / 1000.0
}

/// The GPU that CUDA calls `cuda:N`.
pub struct NvmlGpu {
    device: Device<'static>,
}

impl NvmlGpu {
    /// NVML counts all GPUs in the order of the bus; CUDA counts those in `CUDA_VISIBLE_DEVICES`.
    /// A number in there is taken as NVML's, which holds where all GPUs are alike or
    /// `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    ///
    /// # Errors
    /// In words: no NVML, or no such GPU.
    pub fn open(device: &str) -> Result<Self, String> {
        let nvml = nvml()?;
        let visible = std::env::var(VISIBLE).ok();
        let found = match Choice::of(device, visible.as_deref())? {
            Choice::Index(index) => nvml.device_by_index(index).map_err(|e| e.to_string()),
            // A part of a GPU is not among those counted.
            Choice::Id(id) if id.starts_with("MIG-") => {
                nvml.device_by_uuid(id).map_err(|e| e.to_string())
            }
            Choice::Id(id) => devices(nvml)
                .find(|d| d.uuid().is_ok_and(|uuid| uuid.starts_with(&id)))
                .ok_or_else(|| format!("it knows no {id}")),
        };
        match found {
            Ok(device) => Ok(NvmlGpu { device }),
            Err(why) => Err(format!("NVML does not show {device} ({why})")),
        }
    }
}

/// How a GPU is found.
#[derive(Debug, PartialEq)]
enum Choice {
    Index(u32),
    /// Beginning of its UUID.
    Id(String),
}

impl Choice {
    fn of(device: &str, visible: Option<&str>) -> Result<Self, String> {
        let unknown = || format!("`{device}` is no GPU that NVML could show");
        let ordinal: usize = match device.split_once(':') {
            None if device == "cuda" => 0,
            Some(("cuda", ordinal)) => ordinal.parse().map_err(|_| unknown())?,
            _ => return Err(unknown()),
        };
        let Some(visible) = visible else {
            return Ok(Choice::Index(ordinal as u32));
        };
        let entry = visible.split(',').nth(ordinal).map(str::trim);
        match entry.filter(|entry| !entry.is_empty()) {
            None => Err(format!("{VISIBLE}={visible} hides {device}")),
            Some(entry) => Ok(entry
                .parse()
                .map_or_else(|_| Choice::Id(entry.into()), Choice::Index)),
        }
    }
}

/// Memory that is free on the GPU that CUDA calls `device`, whoever uses the rest; nothing where
/// NVML cannot say. It needs no context, so it can be asked before there is one.
pub fn free_bytes(device: &str) -> Option<u64> {
    let memory = NvmlGpu::open(device).ok()?.device.memory_info();
    memory.ok().map(|m| m.free)
}

impl Sensors for NvmlGpu {
    fn read(&mut self) -> Result<Reading, String> {
        let device = &self.device;
        let gpu_clock_mhz = known(device.clock_info(Clock::SM))?.map(f64::from);
        Ok(Reading {
            gpu_clock_mhz,
            memory_clock_mhz: known(device.clock_info(Clock::Memory))?.map(f64::from),
            temperature_c: known(device.temperature(TemperatureSensor::Gpu))?.map(f64::from),
            power_w: known(device.power_usage())?.map(milli),
            throttle_reasons: known(device.current_throttle_reasons())?.map(in_words),
            energy_j: known(device.total_energy_consumption())?.map(|mj| mj as f64 / 1000.0),
            processes: known(device.running_compute_processes())?.map(|list| {
                let process = |p: nvml_wrapper::struct_wrappers::device::ProcessInfo| Process {
                    id: p.pid,
                    bytes: match p.used_gpu_memory {
                        UsedGpuMemory::Used(bytes) => Some(bytes),
                        UsedGpuMemory::Unavailable => None,
                    },
                };
                list.into_iter().map(process).collect()
            }),
        })
    }
}

/// Absent where this GPU, this driver or this user's rights do not offer a value.
fn known<T>(value: Result<T, NvmlError>) -> Result<Option<T>, String> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(
            NvmlError::NotSupported
            | NvmlError::NoPermission
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::UnexpectedVariant(_)
            | NvmlError::InsufficientSize(_),
        ) => Ok(None),
        Err(e) => Err(format!("NVML stopped answering ({e})")),
    }
}

/// Reasons that keep a clock below what was asked for. Being idle and clocks that somebody fixed
/// are none: the first is no load, the second is the setting under test.
fn in_words(reasons: ThrottleReasons) -> Vec<String> {
    [
        (ThrottleReasons::SW_POWER_CAP, "power limit"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "heat"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "heat"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power supply"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware protection"),
        (ThrottleReasons::SYNC_BOOST, "clocks tied to other GPUs"),
    ]
    .into_iter()
    .filter(|(reason, _)| reasons.contains(*reason))
    .map(|(_, words)| words.to_string())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words() {
        let reasons = ThrottleReasons::GPU_IDLE | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING;
        assert!(in_words(reasons).is_empty());
        let reasons =
            reasons | ThrottleReasons::SW_POWER_CAP | ThrottleReasons::SW_THERMAL_SLOWDOWN;
        assert_eq!(in_words(reasons), ["power limit", "heat"]);
    }

    #[test]
    fn cuda_ordinals_are_found_among_the_visible() {
        let id = |text: &str| Ok(Choice::Id(text.into()));
        assert_eq!(Choice::of("cuda", None), Ok(Choice::Index(0)));
        assert_eq!(Choice::of("cuda:3", None), Ok(Choice::Index(3)));
        assert_eq!(Choice::of("cuda:1", Some("5, 2")), Ok(Choice::Index(2)));
        assert_eq!(Choice::of("cuda:0", Some("GPU-12ab")), id("GPU-12ab"));
        for (device, visible) in [
            ("cuda:1", Some("5")),
            ("cuda:0", Some("")),
            ("cuda:x", None),
            ("cpu", None),
        ] {
            assert!(Choice::of(device, visible).is_err(), "{device} {visible:?}");
        }
    }

    #[test]
    fn a_machine_without_nvml_has_a_reason_and_no_gpus() {
        let (gpus, driver) = gpus();
        match nvml() {
            Ok(_) => assert!(driver.is_some()),
            Err(why) => {
                assert!(gpus.is_empty() && driver.is_none());
                assert!(why.contains("NVML"), "{why}");
                assert!(NvmlGpu::open("cuda:0").is_err());
                assert_eq!(free_bytes("cuda:0"), None);
            }
        }
    }
}

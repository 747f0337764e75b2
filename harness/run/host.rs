//! The machine that a run was made on.

use crate::measure::nvml;
use crate::packed::cpu;
use crate::record::run_info::Host;
use std::fs::read_to_string;

/// Reads what the operating system tells; what it does not tell is empty.
pub fn describe() -> Host {
    let (gpus, gpu_driver) = nvml::gpus();
    Host {
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_default(),
        cores: cores(),
        instruction_set: cpu::path().map_or(String::new(), |p| p.name().into()),
        last_level_cache_bytes: last_level_cache_bytes(),
        memory_bytes: meminfo_bytes("MemTotal"),
        os: field_with('=', "/etc/os-release", "PRETTY_NAME")
            .map(|s| s.trim_matches('"').to_string())
            .unwrap_or_else(|| std::env::consts::OS.into()),
        kernel: read_to_string("/proc/sys/kernel/osrelease")
            .map(|s| s.trim().to_string())
            .unwrap_or_default(),
        gpus,
        gpu_driver,
    }
}

/// Seconds since 1970, by the machine's clock.
pub fn unix_s() -> f64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Bytes that could be allocated now without swapping.
pub fn available_memory_bytes() -> Option<u64> {
    meminfo_bytes("MemAvailable")
}

/// Size of the largest cache of the first core.
pub fn last_level_cache_bytes() -> Option<u64> {
    (0..8)
        .filter_map(|i| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size");
            bytes(&read_to_string(path).ok()?)
        })
        .max()
}

/// Size of the largest caches of all cores together, each shared one counted once.
pub fn last_level_caches_bytes() -> Option<u64> {
    let largest = last_level_cache_bytes()?;
    let mut groups: Vec<String> = (0..)
        .map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/cache"))
        .take_while(|folder| std::path::Path::new(folder).exists())
        .filter_map(|folder| {
            (0..8).find_map(|i| {
                let of = |what: &str| read_to_string(format!("{folder}/index{i}/{what}")).ok();
                (bytes(&of("size")?)? == largest).then(|| of("shared_cpu_list"))?
            })
        })
        .collect();
    groups.sort();
    groups.dedup();
    Some(largest * groups.len().max(1) as u64)
}

/// A size such as `32768K`.
fn bytes(size: &str) -> Option<u64> {
    let size = size.trim();
    let (number, unit) = size.split_at(size.len().checked_sub(1)?);
    let unit: u64 = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return size.parse().ok(),
    };
    Some(number.parse::<u64>().ok()? * unit)
}

fn meminfo_bytes(key: &str) -> Option<u64> {
    let value = field("/proc/meminfo", key)?;
    let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

fn field(path: &str, key: &str) -> Option<String> {
    field_with(':', path, key)
}

fn field_with(separator: char, path: &str, key: &str) -> Option<String> {
    let text = read_to_string(path).ok()?;
    let (_, value) = text
        .lines()
        .filter_map(|l| l.split_once(separator))
        .find(|(k, _)| k.trim() == key)?;
    Some(value.trim().to_string())
}

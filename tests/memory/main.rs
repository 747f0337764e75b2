//! Tests of the counters that a process has one of: the allocator's and the device's. They take
//! turns, and nothing else runs beside them.

#[path = "../common/mod.rs"]
mod common;
#[path = "../emulation/driver.rs"]
mod driver;
#[path = "../emulation/mod.rs"]
mod emulation;

mod allocator;
mod divergence;
mod gpu_quantize;

use quantbench::memory::CountingAllocator;
use std::sync::{Mutex, MutexGuard};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The turn of a test.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

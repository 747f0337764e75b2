//! Mutexes whose holder may have panicked.

use std::sync::{Mutex, MutexGuard};

/// Locks it whether or not a thread panicked with it: the panic itself is reported where it
/// happened, and nothing here is left half-changed between two locks.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

//! Datasets: documents of every format, files that lie about themselves, multiple-choice items,
//! and the hub's cache through the real binary.

#[path = "../common/mod.rs"]
mod common;

mod documents;
mod hostile_parquet;
mod hub;
mod items;
mod raw;

use quantbench::data::{self, Dataset, Kind};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

/// Remembers the largest request of each thread, granted or not.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn remember(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        remember(size);
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

/// The largest allocation that `f` asks for.
fn largest_allocation(f: impl FnOnce()) -> usize {
    LARGEST.set(0);
    f();
    LARGEST.get()
}

/// The evaluation set of this name or path.
fn evaluation(name: impl AsRef<Path>) -> quantbench::Result<Dataset> {
    let name = name.as_ref().to_str().unwrap().to_string();
    data::select(&[name], Kind::Evaluation).map(|mut sets| sets.remove(0))
}

/// Expects a refusal with these words, and with what to do next.
fn refused(name: impl AsRef<Path>, words: &[&str]) {
    let text = evaluation(name).unwrap_err().to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(text.lines().count() >= 2, "no way out in: {text}");
}

/// The lines of a manifest that has the keys that all have, and `more`.
fn manifest(name: &str, more: &str) -> String {
    format!(
        "name = '{name}'\ntitle = 't'\nkind = 'evaluation'\ndomain = 'd'\nsplit = 's'\n\
         licence = 'l'\nsource = 'o'\n{more}"
    )
}

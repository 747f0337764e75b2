//! The counting allocator: how many bytes are alive, by part, and their high-water marks.
//!
//! Every allocation carries the [`Part`] that was current on its thread, in a header in front of
//! the block that is itself not counted. Counters are process-wide; a bracket ([`Bracket`])
//! subtracts what was alive when it opened, so tokenizer and texts loaded before do not count.
//! Nothing is a remainder: what no scope claimed is [`Part::Untagged`] and is reported.
//!
//! A program opts in with `#[global_allocator] static A: CountingAllocator = CountingAllocator;`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// What an allocation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// Outside every scope.
    Untagged,
    /// Packed linears of the decoder blocks.
    Weights,
    /// Embedding, head and norms.
    Embeddings,
    KvCache,
    Activations,
    /// Scratch of kernels.
    Workspace,
    /// RoPE tables, token ids.
    Other,
}

const PARTS: usize = 7;
const ALL_PARTS: [Part; PARTS] = [
    Part::Untagged,
    Part::Weights,
    Part::Embeddings,
    Part::KvCache,
    Part::Activations,
    Part::Workspace,
    Part::Other,
];

/// Exit code of a process whose allocator refused a request beyond [`Bracket::set_limit`].
pub const EXIT_OUT_OF_MEMORY: i32 = 77;

/// First word of the line that such a process leaves on standard error.
pub const OUT_OF_MEMORY_MARK: &str = "quantbench-oom:";

static LIVE: [AtomicUsize; PARTS] = [const { AtomicUsize::new(0) }; PARTS];
static PEAK: [AtomicUsize; PARTS] = [const { AtomicUsize::new(0) }; PARTS];
static TOTAL_LIVE: AtomicUsize = AtomicUsize::new(0);
static TOTAL_PEAK: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static INSTALLED: AtomicBool = AtomicBool::new(false);

thread_local! {
    // `const` and without a destructor, so that the allocator may read it at any time.
    static CURRENT: Cell<Part> = const { Cell::new(Part::Untagged) };
}

/// Runs `f` with every allocation of this thread counted under `part`.
pub fn scope<T>(part: Part, f: impl FnOnce() -> T) -> T {
    struct Restore(Part);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(part));
    f()
}

/// The part that allocations of this thread are counted under.
pub fn current() -> Part {
    CURRENT.get()
}

/// Whether this process counts its allocations.
pub fn installed() -> bool {
    INSTALLED.load(Relaxed)
}

/// Bytes by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub untagged_bytes: usize,
    pub weights_bytes: usize,
    pub embeddings_bytes: usize,
    pub kv_cache_bytes: usize,
    pub activations_bytes: usize,
    pub workspace_bytes: usize,
    pub other_bytes: usize,
    /// The sum now, or the high-water mark of the sum (not the sum of the marks).
    pub total_bytes: usize,
}

impl Usage {
    fn read(parts: &[AtomicUsize; PARTS], total: &AtomicUsize, base: &[usize; PARTS]) -> Self {
        let at = |part: Part| {
            parts[part as usize]
                .load(Relaxed)
                .saturating_sub(base[part as usize])
        };
        Usage {
            untagged_bytes: at(Part::Untagged),
            weights_bytes: at(Part::Weights),
            embeddings_bytes: at(Part::Embeddings),
            kv_cache_bytes: at(Part::KvCache),
            activations_bytes: at(Part::Activations),
            workspace_bytes: at(Part::Workspace),
            other_bytes: at(Part::Other),
            total_bytes: total.load(Relaxed).saturating_sub(base.iter().sum()),
        }
    }
}

/// Measures from the moment it was opened.
pub struct Bracket {
    base: [usize; PARTS],
}

impl Bracket {
    /// Starts to count; what is alive now stays outside.
    pub fn open() -> Self {
        let bracket = Bracket {
            base: ALL_PARTS.map(|p| LIVE[p as usize].load(Relaxed)),
        };
        bracket.reset_peak();
        bracket
    }

    /// Begins a new phase: high-water marks fall back to what is alive.
    pub fn reset_peak(&self) {
        for (peak, live) in PEAK.iter().zip(&LIVE) {
            peak.store(live.load(Relaxed), Relaxed);
        }
        TOTAL_PEAK.store(TOTAL_LIVE.load(Relaxed), Relaxed);
    }

    pub fn live(&self) -> Usage {
        Usage::read(&LIVE, &TOTAL_LIVE, &self.base)
    }

    pub fn peak(&self) -> Usage {
        Usage::read(&PEAK, &TOTAL_PEAK, &self.base)
    }

    /// Refuses allocations that would bring the bracket above `bytes`: the process then says so
    /// on standard error and ends with [`EXIT_OUT_OF_MEMORY`]. Rust programs abort when an
    /// allocation fails; leaving at once with a code of our own keeps the cause.
    pub fn set_limit(&self, bytes: usize) {
        LIMIT.store(
            self.base.iter().sum::<usize>().saturating_add(bytes),
            Relaxed,
        );
    }
}

/// The same counters for device memory, fed by whoever allocates there.
pub mod device {
    use super::{ALL_PARTS, PARTS, Part, Usage};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    static LIVE: [AtomicUsize; PARTS] = [const { AtomicUsize::new(0) }; PARTS];
    static PEAK: [AtomicUsize; PARTS] = [const { AtomicUsize::new(0) }; PARTS];
    static TOTAL_LIVE: AtomicUsize = AtomicUsize::new(0);
    static TOTAL_PEAK: AtomicUsize = AtomicUsize::new(0);

    /// Counts `bytes` of device memory under `part`.
    pub fn claim(part: Part, bytes: usize) {
        let live = LIVE[part as usize].fetch_add(bytes, Relaxed) + bytes;
        PEAK[part as usize].fetch_max(live, Relaxed);
        let total = TOTAL_LIVE.fetch_add(bytes, Relaxed) + bytes;
        TOTAL_PEAK.fetch_max(total, Relaxed);
    }

    /// Takes back a [`claim`].
    pub fn release(part: Part, bytes: usize) {
        LIVE[part as usize].fetch_sub(bytes, Relaxed);
        TOTAL_LIVE.fetch_sub(bytes, Relaxed);
    }

    pub fn live() -> Usage {
        Usage::read(&LIVE, &TOTAL_LIVE, &[0; PARTS])
    }

    pub fn peak() -> Usage {
        Usage::read(&PEAK, &TOTAL_PEAK, &[0; PARTS])
    }

    /// Begins a new phase: high-water marks fall back to what is alive.
    pub fn reset_peak() {
        for part in ALL_PARTS {
            let live = LIVE[part as usize].load(Relaxed);
            PEAK[part as usize].store(live, Relaxed);
        }
        TOTAL_PEAK.store(TOTAL_LIVE.load(Relaxed), Relaxed);
    }
}

/// Highest resident set size of this process so far, from the operating system.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Gives freed memory back to the system and lets [`peak_rss_bytes`] begin anew; whether the
/// system does that.
pub fn reset_peak_rss() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: asks the allocator to return free pages; no block in use is touched.
    unsafe {
        libc::malloc_trim(0);
    }
    // 5 stands for the high-water mark (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// See the module's documentation.
pub struct CountingAllocator;

/// Room for the tag in front of a block, which keeps the block's alignment.
fn header_bytes(layout: Layout) -> usize {
    layout.align().max(16)
}

fn outer(layout: Layout) -> Option<Layout> {
    let size = layout.size().checked_add(header_bytes(layout))?;
    Layout::from_size_align(size, header_bytes(layout)).ok()
}

fn count(part: Part, bytes: usize) {
    let live = LIVE[part as usize].fetch_add(bytes, Relaxed) + bytes;
    PEAK[part as usize].fetch_max(live, Relaxed);
    let total = TOTAL_LIVE.fetch_add(bytes, Relaxed) + bytes;
    TOTAL_PEAK.fetch_max(total, Relaxed);
}

fn discount(part: Part, bytes: usize) {
    LIVE[part as usize].fetch_sub(bytes, Relaxed);
    TOTAL_LIVE.fetch_sub(bytes, Relaxed);
}

fn check_limit(bytes: usize) {
    let limit = LIMIT.load(Relaxed);
    let live = TOTAL_LIVE.load(Relaxed);
    if live.saturating_add(bytes) > limit {
        leave_out_of_memory(bytes, live.saturating_add(bytes) - limit);
    }
}

/// Writes one line without allocating, and ends the process.
#[cold]
fn leave_out_of_memory(requested_bytes: usize, missing_bytes: usize) -> ! {
    use std::io::Write;
    LIMIT.store(usize::MAX, Relaxed);
    let mut line = [0u8; 160];
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "{OUT_OF_MEMORY_MARK} memory limit: a request of {requested_bytes} bytes exceeds it by {missing_bytes} bytes"
    );
    let unused = rest.len();
    let used = line.len() - unused;
    // SAFETY: writes initialized bytes of a live array to descriptor 2; `_exit` does not return
    // and runs no destructors, which could allocate again.
    unsafe {
        libc::write(2, line.as_ptr().cast(), used);
        libc::_exit(EXIT_OUT_OF_MEMORY)
    }
}

/// Tags a fresh outer block and returns the inner one.
///
/// # Safety
/// `base` is null or points to a block of `outer(layout)`.
unsafe fn finish(base: *mut u8, layout: Layout, part: Part) -> *mut u8 {
    if base.is_null() {
        return base;
    }
    count(part, layout.size());
    // SAFETY: the header is at least 16 bytes long and lies inside the block.
    unsafe {
        let inner = base.add(header_bytes(layout));
        inner.sub(1).write(part as u8);
        inner
    }
}

/// The part written by [`finish`].
///
/// # Safety
/// `inner` came from this allocator.
unsafe fn tag(inner: *mut u8) -> Part {
    // SAFETY: `finish` wrote the byte in front of the block.
    ALL_PARTS[unsafe { inner.sub(1).read() } as usize % PARTS]
}

// SAFETY: every block is a `System` block of `outer(layout)`, shifted by the header; sizes and
// alignments are kept, and the same shift is undone before the block goes back to `System`.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        INSTALLED.store(true, Relaxed);
        check_limit(layout.size());
        let Some(outer) = outer(layout) else {
            return std::ptr::null_mut();
        };
        unsafe { finish(System.alloc(outer), layout, CURRENT.get()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        INSTALLED.store(true, Relaxed);
        check_limit(layout.size());
        let Some(outer) = outer(layout) else {
            return std::ptr::null_mut();
        };
        unsafe { finish(System.alloc_zeroed(outer), layout, CURRENT.get()) }
    }

    unsafe fn dealloc(&self, inner: *mut u8, layout: Layout) {
        unsafe {
            discount(tag(inner), layout.size());
            let header = header_bytes(layout);
            let outer = Layout::from_size_align_unchecked(layout.size() + header, header);
            System.dealloc(inner.sub(header), outer);
        }
    }

    unsafe fn realloc(&self, inner: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        check_limit(new_size.saturating_sub(layout.size()));
        let header = header_bytes(layout);
        let Some(new_outer_size) = new_size.checked_add(header) else {
            return std::ptr::null_mut();
        };
        unsafe {
            let part = tag(inner);
            let outer = Layout::from_size_align_unchecked(layout.size() + header, header);
            let base = System.realloc(inner.sub(header), outer, new_outer_size);
            if base.is_null() {
                return base;
            }
            // The tag moved with the block's content; the block keeps its part.
            discount(part, layout.size());
            count(part, new_size);
            base.add(header)
        }
    }
}

//! Runs the CUDA kernels of `harness/` on the CPU, so that they are tested where there is no GPU.
//!
//! Every `.cu` file under `harness/` and `tests/emulation/` is compiled by the C++ compiler
//! (`CXX`, or the first of `c++ g++ clang++`) over `emulate.h`, once for all test programs: the
//! objects lie in `CARGO_TARGET_TMPDIR` under the hash of what they were made of. Kernels need no
//! registration; they are found by `__global__` in the source.
//!
//! ```ignore
//! let Some(emulation) = Emulation::get() else { return };
//! let x = Guarded::from(&[1f32, 2.0]);
//! let y = Guarded::<f32>::poisoned(2);
//! emulation.launch("twice", [1; 3], [32, 1, 1], 0, arguments![x.pointer(), y.pointer(), 2i32])?;
//! ```

#![allow(dead_code)]

use libloading::{Library, Symbol};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::ffi::{CStr, CString, OsString, c_char, c_int, c_uint, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// Order in which the threads and blocks of a launch run. Results that differ show a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    Forward,
    Reverse,
    /// Random, by this seed.
    Shuffled(u32),
}

impl Schedule {
    pub const ALL: [Schedule; 3] = [Schedule::Forward, Schedule::Reverse, Schedule::Shuffled(1)];
}

/// The arguments of a launch: pointers to values, which must have the types of the kernel's
/// parameters. They live as long as the statement: write it inside the call of `launch`.
#[allow(unused_macros)]
macro_rules! arguments {
    ($($value:expr),* $(,)?) => {
        &mut [$(std::ptr::from_mut(&mut { $value }).cast::<std::ffi::c_void>()),*]
    };
}

/// The compiled kernels.
pub struct Emulation {
    library: Library,
    /// The machine has one state.
    turn: Mutex<()>,
}

thread_local! {
    static SCHEDULE: Cell<Schedule> = const { Cell::new(Schedule::Forward) };
}

impl Emulation {
    /// The kernels, compiled if they are not yet; none, with a printed reason, where there is no
    /// C++ compiler.
    ///
    /// # Panics
    /// If a kernel does not compile.
    pub fn get() -> Option<&'static Emulation> {
        static EMULATION: OnceLock<Option<Result<Emulation, String>>> = OnceLock::new();
        let emulation = EMULATION.get_or_init(|| {
            Some(build(&compiler()?).map(|library| Emulation {
                // SAFETY: its constructors only register kernels.
                library: unsafe { Library::new(&library) }.unwrap(),
                turn: Mutex::new(()),
            }))
        });
        if emulation.is_none() {
            println!("SKIPPED: no C++ compiler");
        }
        let compiled = emulation.as_ref()?;
        Some(compiled.as_ref().unwrap_or_else(|e| panic!("{e}")))
    }

    /// Sets the order for launches of the calling thread.
    pub fn schedule(&self, schedule: Schedule) {
        SCHEDULE.set(schedule);
    }

    /// Runs a kernel to its end. Each argument points to a value of the parameter's type, as for
    /// `cuLaunchKernel`.
    ///
    /// # Errors
    /// A kernel that does not exist, a wrong number of arguments, a launch that a GPU would
    /// refuse, and what the kernel did wrong: access out of bounds, misaligned access, barrier
    /// divergence, deadlock, absent lanes.
    pub fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), String> {
        type Launch = unsafe extern "C" fn(
            *const c_char,
            *const c_uint,
            *const c_uint,
            c_uint,
            *mut *mut c_void,
        ) -> c_int;
        let name = CString::new(kernel).map_err(|e| e.to_string())?;
        let (kind, seed) = match SCHEDULE.get() {
            Schedule::Forward => (0, 0),
            Schedule::Reverse => (1, 0),
            Schedule::Shuffled(seed) => (2, seed),
        };
        let _turn = self.turn();
        // SAFETY: the signatures are those of emulate.cpp. That the arguments fit the kernel is
        // the caller's care, as with any launch.
        unsafe {
            let parameters: Symbol<unsafe extern "C" fn(*const c_char) -> c_int> =
                self.symbol("emulate_parameters");
            let expected = parameters(name.as_ptr());
            if expected >= 0 && expected as usize != arguments.len() {
                return Err(format!(
                    "{kernel} has {expected} parameters, not {}",
                    arguments.len()
                ));
            }
            let schedule: Symbol<unsafe extern "C" fn(c_int, c_uint)> =
                self.symbol("emulate_schedule");
            schedule(kind, seed);
            let launch: Symbol<Launch> = self.symbol("emulate_launch");
            let arguments = arguments.as_mut_ptr();
            match launch(
                name.as_ptr(),
                grid.as_ptr(),
                block.as_ptr(),
                shared_bytes,
                arguments,
            ) {
                0 => Ok(()),
                _ => {
                    let error: Symbol<unsafe extern "C" fn() -> *const c_char> =
                        self.symbol("emulate_error");
                    Err(CStr::from_ptr(error()).to_string_lossy().into_owned())
                }
            }
        }
    }

    /// Names of all kernels, in the order of their files.
    pub fn kernels() -> Vec<String> {
        let compiler = compiler().expect("a C++ compiler");
        let names = |source: &PathBuf| kernel_names(&compiler, source).unwrap();
        sources().iter().flat_map(names).collect()
    }

    fn turn(&self) -> std::sync::MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// SAFETY: `T` must be the symbol's type.
    unsafe fn symbol<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: passed on.
        unsafe { self.library.get(name) }.unwrap()
    }
}

/// Device memory of the emulation: no access is allowed behind its last (up to 15 bytes later, and
/// there writes are noticed) or before its first element.
pub struct Guarded<T: Copy> {
    pointer: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    /// Elements whose bytes are all 0xff: NaN as any float.
    pub fn poisoned(len: usize) -> Self {
        let emulation = Emulation::get().expect("checked by the caller");
        let _turn = emulation.turn();
        // SAFETY: the signature is that of emulate.cpp.
        let pointer = unsafe {
            let alloc: Symbol<unsafe extern "C" fn(usize) -> *mut c_void> =
                emulation.symbol("emulate_alloc");
            alloc(len * size_of::<T>())
        };
        assert!(!pointer.is_null(), "no memory");
        let pointer = pointer.cast();
        Self { pointer, len }
    }

    pub fn from(values: &[T]) -> Self {
        let buffer = Self::poisoned(values.len());
        // SAFETY: both have this many elements, and the buffer is new.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), buffer.pointer, values.len()) };
        buffer
    }

    pub fn pointer(&self) -> *mut T {
        self.pointer
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: allocated and initialized; kernels that write run to their end in `launch`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl<T: Copy> Drop for Guarded<T> {
    fn drop(&mut self) {
        let emulation = Emulation::get().expect("it made this buffer");
        let _turn = emulation.turn();
        // SAFETY: the signature is that of emulate.cpp, and the pointer came from there.
        let damage = unsafe {
            let free: Symbol<unsafe extern "C" fn(*mut c_void) -> c_int> =
                emulation.symbol("emulate_free");
            free(self.pointer.cast())
        };
        if damage != 0 && !std::thread::panicking() {
            panic!("something was written around a buffer of {}", self.len);
        }
    }
}

fn compiler() -> Option<OsString> {
    let named = std::env::var_os("CXX").into_iter();
    let usual = ["c++", "g++", "clang++"].map(OsString::from);
    named
        .chain(usual)
        .find(|name| Command::new(name).arg("--version").output().is_ok())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a folder whose names end like this, sorted.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

/// Every file with kernels.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root().join("harness"), "cu", &mut found);
    files(&root().join("tests/emulation"), "cu", &mut found);
    found
}

/// Names of the kernels that a file defines, once its macros are expanded: `__global__ void
/// [__launch_bounds__(..)] name(`.
fn kernel_names(compiler: &OsString, source: &Path) -> Result<Vec<String>, String> {
    let mut preprocess = Command::new(compiler);
    preprocess.args(["-E", "-P", "-x", "c++"]).arg(source);
    let output = preprocess.output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{preprocess:?}\n{messages}"));
    }
    let code = String::from_utf8_lossy(&output.stdout);
    let mut names = Vec::new();
    for definition in code.split("__global__").skip(1) {
        let rest = definition.trim_start().trim_start_matches("void");
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix("__launch_bounds__") {
            Some(bounds) => bounds.split_once(')').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let name = rest.split('(').next().unwrap_or_default().trim();
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Sanitizers trap on what a GPU would refuse: misaligned access, and indices outside arrays.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    // A large frame cannot jump over the guard below its stack.
    "-fstack-clash-protection",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-unknown-pragmas",
];
const SANITIZE: &[&str] = &[
    "-fsanitize=alignment,bounds,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
];

/// Compiles what changed and links the library; its path.
fn build(compiler: &OsString) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulation");
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    // Other test programs may build at the same time.
    let lock = fs::File::create(folder.join("lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;

    let here = root().join("tests/emulation");
    let mut headers = vec![here.join("emulate.h")];
    files(&root().join("harness"), "cuh", &mut headers);
    let mut common = Sha256::new();
    common.update(compiler.as_encoded_bytes());
    common.update(format!("{FLAGS:?} {SANITIZE:?}"));
    for header in &headers {
        common.update(fs::read(header).map_err(|e| e.to_string())?);
    }

    let mut units = vec![Unit::new(&here.join("emulate.cpp"), &common, &folder)];
    for source in sources() {
        units.push(Unit::new(&source, &common, &folder));
    }
    compile(compiler, &units)?;

    let mut all = Sha256::new();
    units
        .iter()
        .for_each(|u| all.update(u.object.as_os_str().as_encoded_bytes()));
    let library = folder.join(format!("kernels-{}.so", short(all)));
    if !library.exists() {
        let mut link = Command::new(compiler);
        link.arg("-shared").args(units.iter().map(|u| &u.object));
        run_to(link, &library)?;
    }
    Ok(library)
}

/// One object file and what it is made of.
struct Unit {
    path: PathBuf,
    /// What is compiled: `path`, and an entry per kernel in it.
    source: PathBuf,
    object: PathBuf,
}

impl Unit {
    fn new(path: &Path, common: &Sha256, folder: &Path) -> Self {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let mut hash = common.clone();
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update(fs::read(path).unwrap());
        let name = format!("{stem}-{}", short(hash));
        Self {
            path: path.into(),
            source: folder.join(format!("{name}.cpp")),
            object: folder.join(format!("{name}.o")),
        }
    }

    fn compile(&self, compiler: &OsString) -> Result<(), String> {
        if self.object.exists() {
            return Ok(());
        }
        // The machine itself has no kernels, and reads at any address.
        let kernels = match self.path.extension() {
            Some(extension) if extension == "cu" => kernel_names(compiler, &self.path)?,
            _ => vec![],
        };
        let header = root().join("tests/emulation/emulate.h");
        let mut text = format!("#include {header:?}\n#include {:?}\n", self.path);
        for kernel in &kernels {
            text += &format!("EMULATE_KERNEL({kernel})\n");
        }
        fs::write(&self.source, text).map_err(|e| e.to_string())?;
        let mut command = Command::new(compiler);
        command.args(FLAGS).arg("-c").arg(&self.source);
        if !kernels.is_empty() {
            command.args(SANITIZE);
        }
        run_to(command, &self.object)
    }
}

fn compile(compiler: &OsString, units: &[Unit]) -> Result<(), String> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let take = || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::iter::from_fn(|| units.get(take())).try_for_each(|unit| unit.compile(compiler))
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap())
    })
}

/// Runs a compiler with `-o`; the file appears when it is complete.
fn run_to(mut command: Command, output: &Path) -> Result<(), String> {
    let partial = output.with_extension("partial");
    command.arg("-o").arg(&partial);
    let result = command.output().map_err(|e| e.to_string())?;
    if !result.status.success() {
        let messages = String::from_utf8_lossy(&result.stderr);
        return Err(format!("{command:?}\n{messages}"));
    }
    fs::rename(&partial, output).map_err(|e| e.to_string())
}

fn short(hash: Sha256) -> String {
    hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

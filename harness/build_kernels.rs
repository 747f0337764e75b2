//! Compiles every `.cu` file below `harness/` with nvcc and writes `kernels.rs` into `OUT_DIR`:
//! one image per file with native code and PTX, and what they were compiled by and for.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::{env, fs, thread};

const FLAGS: [&str; 3] = ["-fatbin", "-O3", "-std=c++17"];

/// Without a wish or a GPU to ask: A100, L4 and RTX 4090, H100. Later ones run the PTX.
const ARCHITECTURES: [u32; 3] = [80, 89, 90];

pub fn compile(root: &Path, out: &Path) -> Result<(), String> {
    for variable in [
        "QUANTBENCH_CUDA_ARCHS",
        "CUDA_COMPUTE_CAP",
        "CUDA_HOME",
        "NVCC_CCBIN",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=harness/build_kernels.rs");
    let (nvcc, toolkit) = nvcc()?;
    let architectures = architectures()?;
    let mut flags: Vec<String> = FLAGS.map(String::from).into();
    flags.extend(generate_flags(&architectures));
    let (sources, headers) = sources(&root.join("harness"))?;
    let jobs = env::var("NUM_JOBS").ok();
    let images = Compilation {
        nvcc,
        key: key(&(toolkit, &flags), &headers)?,
        flags,
        root: root.join("harness"),
        jobs: jobs.and_then(|n| n.parse().ok()).unwrap_or(1),
        out: out.join("kernels"),
    }
    .run(&sources)?;

    let version = |n: &u32| format!("({}, {})", n / 10, n % 10);
    let native: Vec<String> = architectures.iter().map(version).collect();
    let mut rust = String::new();
    writeln!(rust, "const BUILD: Build = Build {{").unwrap();
    writeln!(rust, "    toolkit: {toolkit:?},").unwrap();
    writeln!(rust, "    native: &[{}],", native.join(", ")).unwrap();
    writeln!(rust, "    ptx: {},", native.last().expect("not empty")).unwrap();
    writeln!(rust, "}};\nconst IMAGES: &[(&str, &Aligned<[u8]>)] = &[").unwrap();
    for (source, image) in sources.iter().zip(&images) {
        let name = source.strip_prefix(root).unwrap_or(source).display();
        let image = image.to_str().ok_or("OUT_DIR is not UTF-8")?;
        let include = format!("&Aligned(*include_bytes!({image:?}))");
        writeln!(rust, "    (\"{name}\", {include}),").unwrap();
    }
    rust += "];\n";
    fs::write(out.join("kernels.rs"), rust).map_err(|e| format!("OUT_DIR: {e}"))
}

/// The compiler, and the version of its toolkit.
fn nvcc() -> Result<(PathBuf, (u32, u32)), String> {
    let mut places = vec![PathBuf::from("nvcc")];
    places.extend(env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc")));
    for nvcc in places {
        let Some(said) = output(&nvcc, &["--version"]) else {
            continue;
        };
        let version = said.split("release ").nth(1).and_then(|rest| {
            let (major, minor) = rest.split(',').next()?.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let version = version.ok_or(format!("{} does not say its version", nvcc.display()))?;
        if version < (12, 4) {
            return Err(format!(
                "{} is of CUDA {}.{}, the kernels need 12.4 or newer; {HOW}",
                nvcc.display(),
                version.0,
                version.1
            ));
        }
        return Ok((nvcc, version));
    }
    Err(format!("nvcc is neither on PATH nor in CUDA_HOME; {HOW}"))
}

const HOW: &str = "get it by: eval \"$(scripts/cuda-toolchain.sh)\"";

/// Compute capabilities without the dot, ascending: those asked for, or that of the GPUs here.
fn architectures() -> Result<Vec<u32>, String> {
    let wished = ["QUANTBENCH_CUDA_ARCHS", "CUDA_COMPUTE_CAP"]
        .into_iter()
        .find_map(|name| env::var(name).ok());
    let gpus = || {
        let query = ["--query-gpu=compute_cap", "--format=csv,noheader"];
        output(Path::new("nvidia-smi"), &query).map(|said| said.trim().replace(['\n', ' '], ","))
    };
    let Some(list) = wished.or_else(gpus) else {
        return Ok(ARCHITECTURES.into());
    };
    // "9.0" and "90a" both mean 90: our kernels use nothing that only one architecture has.
    let number = |s: &str| {
        let digits = s.trim().replace('.', "");
        let digits = digits.trim_end_matches(['a', 'f']);
        digits.parse().ok().filter(|n| (80..1000).contains(n))
    };
    let numbers: Option<Vec<u32>> = list.split(',').map(number).collect();
    let mut numbers = numbers.ok_or(format!(
        "`{list}` is no list of compute capabilities of 80 or more, like 80,89,90 \
         (QUANTBENCH_CUDA_ARCHS, CUDA_COMPUTE_CAP, or what nvidia-smi says)"
    ))?;
    numbers.sort();
    numbers.dedup();
    Ok(numbers)
}

/// Native code for each, and PTX of the highest for what comes after it.
fn generate_flags(architectures: &[u32]) -> Vec<String> {
    let highest = architectures.last();
    let code = |n: &u32| match Some(n) == highest {
        true => format!("[sm_{n},compute_{n}]"),
        false => format!("sm_{n}"),
    };
    architectures
        .iter()
        .map(|n| format!("-gencode=arch=compute_{n},code={}", code(n)))
        .collect()
}

/// The `.cu` and the `.cuh` files of all folders below `folder`, in name order.
fn sources(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), String> {
    let (mut sources, mut headers) = (vec![], vec![]);
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let mut has_kernels = false;
        for entry in fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))? {
            let path = entry.map_err(|e| e.to_string())?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("cu") => sources.push(path),
                Some("cuh") => headers.push(path),
                _ if path.is_dir() => {
                    folders.push(path);
                    continue;
                }
                _ => continue,
            }
            has_kernels = true;
        }
        // A whole folder, so that a new file is seen; what did not change is not compiled again.
        if has_kernels {
            println!("cargo:rerun-if-changed={}", folder.display());
        }
    }
    sources.sort();
    headers.sort();
    Ok((sources, headers))
}

/// One compiler run per file, as many at a time as Cargo allows.
struct Compilation {
    nvcc: PathBuf,
    flags: Vec<String>,
    /// Hash of whatever all files depend on.
    key: u64,
    root: PathBuf,
    out: PathBuf,
    jobs: usize,
}

impl Compilation {
    /// The image of each source.
    fn run(&self, sources: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
        fs::create_dir_all(&self.out).map_err(|e| format!("OUT_DIR: {e}"))?;
        let results = Mutex::new(vec![None; sources.len()]);
        let waiting = Mutex::new(0..sources.len());
        thread::scope(|scope| {
            for _ in 0..sources.len().min(self.jobs) {
                scope.spawn(|| {
                    while let Some(i) = { waiting.lock().unwrap().next() } {
                        let result = self.image(&sources[i]);
                        results.lock().unwrap()[i] = Some(result);
                    }
                });
            }
        });
        let results = results.into_inner().unwrap().into_iter();
        results.map(|r| r.expect("each was compiled")).collect()
    }

    /// The image of one source, which is made again only if something of it changed.
    fn image(&self, source: &PathBuf) -> Result<PathBuf, String> {
        let below = source.strip_prefix(&self.root).unwrap_or(source);
        let name = below.to_string_lossy().replace(['/', '\\'], "-");
        let image = self.out.join(name).with_extension("fatbin");
        let made_from = image.with_extension("key");
        let key = key(&self.key, std::slice::from_ref(source))?.to_string();
        if image.exists() && fs::read_to_string(&made_from).is_ok_and(|old| old == key) {
            return Ok(image);
        }
        let mut args: Vec<OsString> = self.flags.iter().map(OsString::from).collect();
        // Architectures of a file at the same time: the longest file is what a build waits for.
        args.push(format!("--threads={}", self.jobs).into());
        args.extend(["-o".into(), image.clone().into(), source.into()]);
        let run = Command::new(&self.nvcc).args(&args).output();
        let run = run.map_err(|e| format!("{}: {e}", self.nvcc.display()))?;
        if !run.status.success() {
            return Err(format!("nvcc {}:\n{}", source.display(), said(&run)));
        }
        said(&run)
            .lines()
            .for_each(|line| println!("cargo::warning={line}"));
        fs::write(made_from, key).map_err(|e| format!("OUT_DIR: {e}"))?;
        Ok(image)
    }
}

fn said(run: &Output) -> String {
    String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr)
}

/// What a program that ends well writes to standard output.
fn output(program: &Path, args: &[&str]) -> Option<String> {
    let run = Command::new(program).args(args).output().ok()?;
    run.status
        .success()
        .then(|| String::from_utf8_lossy(&run.stdout).into_owned())
}

/// A hash of `base` and of the names and contents of files.
fn key(base: &impl Hash, files: &[PathBuf]) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    base.hash(&mut hasher);
    for file in files {
        file.hash(&mut hasher);
        fs::read(file)
            .map_err(|e| format!("{}: {e}", file.display()))?
            .hash(&mut hasher);
    }
    Ok(hasher.finish())
}

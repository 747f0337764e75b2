//! Compiles the embedded datasets in: writes `datasets.rs` into `OUT_DIR`; with the feature `cuda`
//! also the kernels.

mod build_kernels;

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let sets = folders(Path::new(&root), "embedded", "FOLDERS")
        + &folders(Path::new(&root), "public", "PUBLIC");
    fs::write(Path::new(&out).join("datasets.rs"), sets).expect("OUT_DIR can be written");
    println!("cargo:rerun-if-changed=harness/build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(error) = build_kernels::compile(Path::new(&root), Path::new(&out))
    {
        error
            .lines()
            .for_each(|line| println!("cargo::error={line}"));
    }
    println!(
        "cargo:rustc-env=QUANTBENCH_GIT_COMMIT={}",
        git_commit(Path::new(&root))
    );
}

/// The commit that is built, empty outside a repository (an unpacked package).
fn git_commit(root: &Path) -> String {
    // Rebuild when HEAD moves: to another branch, or by a commit on this one.
    for name in [".git/HEAD", ".git/logs/HEAD"] {
        if root.join(name).exists() {
            println!("cargo:rerun-if-changed={name}");
        }
    }
    std::process::Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .current_dir(root)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default()
        .trim()
        .to_string()
}

/// The source of a constant: every folder of `datasets/<place>` with a manifest, in name order.
fn folders(root: &Path, place: &str, constant: &str) -> String {
    let base = format!("datasets/{place}");
    // Cargo looks into the folder, so a new dataset is seen too.
    println!("cargo:rerun-if-changed={base}");
    let mut source = format!("const {constant}: &[Folder] = &[\n");
    for folder in names(&root.join(&base)) {
        let files = names(&root.join(&base).join(&folder));
        if !files.iter().any(|f| f == "manifest.toml") {
            continue;
        }
        let include = |file: &str| {
            let path = format!("/{base}/{folder}/{file}");
            format!("include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))")
        };
        writeln!(source, "    Folder {{ name: {folder:?},").unwrap();
        writeln!(source, "        manifest: {},", include("manifest.toml")).unwrap();
        writeln!(source, "        files: &[").unwrap();
        for file in files.iter().filter(|f| *f != "manifest.toml") {
            writeln!(source, "            ({file:?}, {}),", include(file)).unwrap();
        }
        writeln!(source, "        ] }},").unwrap();
    }
    source + "];\n"
}

/// Names in a folder, sorted; none if it is a file or missing.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

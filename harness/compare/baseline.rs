//! Named baselines: copies of a run's files under `DIR/NAME`.
//!
//! A copy is made beside its destination and then exchanged with it, so that a reader meets the
//! old baseline or the new one, and a crash leaves one of the two.

use super::side::run_folders;
use crate::record::tables::TABLES;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of a baseline. [`Error::Usage`] for a name that is no plain file name.
pub fn folder(dir: &Path, name: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || name.len() > 64 || !name.chars().all(plain) {
        return Err(Error::usage(
            format!("`{}` is no name for a baseline", name.escape_default()),
            "use up to 64 letters, digits, `.`, `_` and `-`, a letter or digit first",
        ));
    }
    Ok(dir.join(name))
}

/// Copies the run, or the runs, in `from` to the baseline `name` in `dir`, which is made if need
/// be; an earlier baseline of that name is replaced. Gives its folder.
pub fn save(from: &Path, dir: &Path, name: &str) -> Result<PathBuf> {
    let next = "choose a folder that can be written with --baselines";
    let to = folder(dir, name)?;
    let runs = run_folders(from)?;
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e, next))?;
    let beside = tempfile::Builder::new()
        .prefix(&format!(".{name}-"))
        .tempdir_in(dir)
        .map_err(|e| Error::io(dir, e, next))?;
    // One deeper: temporary folders are closed to others, a baseline is not.
    let copy = beside.path().join(name);
    for (run, source) in runs {
        let target = copy.join(run);
        fs::create_dir_all(&target).map_err(|e| Error::io(&target, e, next))?;
        for table in TABLES {
            let file = source.join(table.name);
            match fs::copy(&file, target.join(table.name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(&file, e, next));
                }
                _ => {}
            }
        }
    }
    replace(&copy, &to).map_err(|e| Error::io(&to, e, next))?;
    // The temporary folder now holds the former baseline, if there was one, and goes with it.
    Ok(to)
}

/// Puts the folder `new` where `old` is, or would be.
fn replace(new: &Path, old: &Path) -> std::io::Result<()> {
    if !old.exists() {
        return fs::rename(new, old);
    }
    exchange(new, old).or_else(|_| exchange_in_steps(new, old))
}

/// For file systems that cannot exchange: for a moment there is no baseline of this name.
fn exchange_in_steps(new: &Path, old: &Path) -> std::io::Result<()> {
    let aside = new.with_file_name("former");
    fs::rename(old, &aside)?;
    fs::rename(new, old).or_else(|e| fs::rename(&aside, old).and(Err(e)))
}

#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let a = CString::new(a.as_os_str().as_bytes())?;
    let b = CString::new(b.as_os_str().as_bytes())?;
    let here = libc::AT_FDCWD;
    // SAFETY: both are strings that end in NUL and live until the call returns.
    let done =
        unsafe { libc::renameat2(here, a.as_ptr(), here, b.as_ptr(), libc::RENAME_EXCHANGE) };
    match done {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Tables;

    #[test]
    fn names_stay_inside_their_folder() {
        let dir = Path::new("baselines");
        for good in ["main", "v1.2", "last-good", "2026_11", "a"] {
            assert_eq!(folder(dir, good).unwrap(), dir.join(good));
        }
        let long = "x".repeat(65);
        for bad in [
            "", ".", "..", ".x", "-x", "a/b", "../x", "a\\b", "a b", "ä", "a\n", &long,
        ] {
            assert!(folder(dir, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_baseline_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (run, baselines) = (dir.path().join("run"), dir.path().join("baselines"));
        fs::create_dir(&run).unwrap();
        fs::write(run.join("results.csv"), "first").unwrap();
        fs::write(run.join("windows.csv"), "w").unwrap();
        fs::write(run.join("index.html"), "page").unwrap();
        let kept = save(&run, &baselines, "main").unwrap();
        assert_eq!(
            fs::read_to_string(kept.join("results.csv")).unwrap(),
            "first"
        );
        assert!(kept.join("windows.csv").exists() && !kept.join("index.html").exists());
        fs::write(run.join("results.csv"), "second").unwrap();
        fs::remove_file(run.join("windows.csv")).unwrap();
        save(&run, &baselines, "main").unwrap();
        assert_eq!(
            fs::read_to_string(kept.join("results.csv")).unwrap(),
            "second"
        );
        assert!(!kept.join("windows.csv").exists());
        let left = fs::read_dir(&baselines).unwrap().count();
        assert_eq!(left, 1, "something stayed beside the baseline");
        assert!(save(&baselines.join("nothing"), &baselines, "main").is_err());
        assert!(kept.exists());
    }

    #[test]
    fn a_baseline_keeps_every_table() {
        let dir = tempfile::tempdir().unwrap();
        let (run, baselines) = (dir.path().join("run"), dir.path().join("baselines"));
        Tables::default().write(&run).unwrap();
        let kept = save(&run, &baselines, "main").unwrap();
        for table in TABLES {
            let bytes = |dir: &Path| fs::read(dir.join(table.name)).unwrap();
            assert_eq!(bytes(&kept), bytes(&run), "{}", table.name);
        }
    }

    #[test]
    fn folders_are_replaced_without_exchange_too() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (folder, word) in [(&a, "new"), (&b, "old")] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("word"), word).unwrap();
        }
        exchange_in_steps(&a, &b).unwrap();
        assert_eq!(fs::read_to_string(b.join("word")).unwrap(), "new");
        assert!(exchange_in_steps(&dir.path().join("nothing"), &b).is_err());
        assert_eq!(fs::read_to_string(b.join("word")).unwrap(), "new");
    }
}

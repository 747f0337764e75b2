//! Quantized weights that outlive their run: a folder of packed files, each under the hash of all
//! that determines its bytes (see [`keys`](super::keys)).
//!
//! An entry is `<key>.safetensors` and, written after it, `<key>.json` with what quantizing gave
//! and the file's SHA-256, which is checked before every use. Who uses an entry holds a shared
//! lock on its JSON file; beyond the size limit the least recently used entries that nobody holds
//! are removed. The time of use is the JSON file's time of modification.

use super::job::QuantizeResult;
use crate::hash::sha256_of_file;
use crate::record::tables::write_whole;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Names the folder, or says `off`.
pub const VARIABLE: &str = "QUANTBENCH_CACHE";

/// Where a cache is to be and how large it may grow.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Empty where the platform has none for this user.
    pub folder: PathBuf,
    pub limit_bytes: u64,
}

/// The platform's folder for what can be made again; None where it has none for this user.
pub fn platform_folder() -> Option<PathBuf> {
    let folder = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let base = if cfg!(target_os = "macos") {
        folder("HOME")?.join("Library/Caches")
    } else if cfg!(windows) {
        folder("LOCALAPPDATA")?
    } else {
        folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?
    };
    Some(base.join("quantbench"))
}

/// An entry that stays while this lives.
#[derive(Debug)]
pub struct Held {
    pub result: QuantizeResult,
    pub packed: PathBuf,
    _lock: File,
}

#[derive(Debug)]
pub struct Cache {
    /// Of packed files; the cache's folder has room for other kinds.
    folder: PathBuf,
    limit_bytes: u64,
}

/// Files that belong to no entry are remains of a killed process after this long.
const REMAINS_AFTER: Duration = Duration::from_secs(3600);

impl Cache {
    /// Makes the folder if need be. The error is a reason in words: a run goes on without.
    pub fn open(choice: &Choice) -> Result<Self, String> {
        if choice.folder.as_os_str().is_empty() {
            return Err("this user has no cache folder (name one with --cache)".into());
        }
        let folder = choice.folder.join("packed");
        let cannot = |e: std::io::Error| format!("{}: {e}", folder.display());
        std::fs::create_dir_all(&folder).map_err(cannot)?;
        tempfile::tempfile_in(&folder).map_err(cannot)?;
        let cache = Cache {
            folder,
            limit_bytes: choice.limit_bytes,
        };
        cache.trim();
        Ok(cache)
    }

    fn entry(&self, key: &str) -> (PathBuf, PathBuf) {
        let of = |extension: &str| self.folder.join(format!("{key}.{extension}"));
        (of("json"), of("safetensors"))
    }

    /// The weights with this key, whole. The error says which damaged entry was removed.
    pub fn get(&self, key: &str) -> Result<Option<Held>, String> {
        let (about, packed) = self.entry(key);
        let Ok(lock) = OpenOptions::new().read(true).write(true).open(&about) else {
            return Ok(None);
        };
        // Being removed, or removed before the lock was had.
        if lock.try_lock_shared().is_err() || !about.exists() {
            return Ok(None);
        }
        let result = std::fs::read(&about)
            .map_err(|e| e.to_string())
            .and_then(|b| serde_json::from_slice(&b).map_err(|e| e.to_string()))
            .and_then(|result: QuantizeResult| match sha256_of_file(&packed) {
                Ok(sha256) if sha256 == result.packed_sha256 => Ok(result),
                Ok(_) => Err("its bytes have changed".to_string()),
                Err(e) => Err(e.to_string()),
            });
        match result {
            Ok(result) => {
                // Where this fails, the entry is only thought older than it is.
                let _ = lock.set_modified(SystemTime::now());
                Ok(Some(Held {
                    result,
                    packed,
                    _lock: lock,
                }))
            }
            Err(why) => {
                remove(&about, &packed);
                Err(format!(
                    "cached weights {} were damaged ({why}) and are removed",
                    packed.display()
                ))
            }
        }
    }

    /// Takes over the file `made`. The error says why not; the file then stays where it is.
    pub fn put(&self, key: &str, result: &QuantizeResult, made: &Path) -> Result<Held, String> {
        // Another run may have made it meanwhile, and may be using it.
        if let Ok(Some(held)) = self.get(key) {
            let _ = std::fs::remove_file(made);
            return Ok(held);
        }
        let bytes = std::fs::metadata(made).map_err(|e| e.to_string())?.len();
        if bytes > self.limit_bytes {
            return Err(format!(
                "{bytes} bytes are more than the cache may hold ({}, --cache-limit)",
                self.limit_bytes
            ));
        }
        let (about, packed) = self.entry(key);
        let json = serde_json::to_vec_pretty(result).map_err(|e| e.to_string())?;
        place(made, &packed).map_err(|e| e.to_string())?;
        let written = write_whole(&about, &json).map_err(|e| e.to_string());
        let held = match written.and_then(|()| self.get(key)) {
            Ok(Some(held)) => held,
            other => {
                // The run still needs the file.
                let _ = std::fs::remove_file(&about);
                place(&packed, made).map_err(|e| format!("{}: {e}", packed.display()))?;
                return Err(other.err().unwrap_or("no entry can be held there".into()));
            }
        };
        self.trim();
        Ok(held)
    }

    /// Removes the least recently used entries that nobody holds until the rest fits the limit.
    fn trim(&self) {
        let mut entries = vec![];
        for path in std::fs::read_dir(&self.folder).into_iter().flatten() {
            let Some(path) = path.ok().map(|entry| entry.path()) else {
                continue;
            };
            let about = path.with_extension("json");
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path == about && !name.starts_with('.') {
                let packed = path.with_extension("safetensors");
                let bytes = std::fs::metadata(&packed).map_or(0, |m| m.len());
                entries.push((modified(&about), bytes, about, packed));
            } else if (path == about || !about.exists())
                && modified(&path).elapsed().unwrap_or_default() > REMAINS_AFTER
            {
                let _ = std::fs::remove_file(&path);
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, bytes, ..)| bytes).sum();
        for (_, bytes, about, packed) in entries {
            if total <= self.limit_bytes {
                return;
            }
            let free = File::open(&about).ok().filter(|f| f.try_lock().is_ok());
            if free.is_some() {
                remove(&about, &packed);
                total -= bytes;
            }
        }
    }
}

fn modified(path: &Path) -> SystemTime {
    let about = std::fs::metadata(path).and_then(|m| m.modified());
    about.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// First what makes it an entry; what cannot be removed is found again by the next trim.
fn remove(about: &Path, packed: &Path) {
    let _ = std::fs::remove_file(about);
    let _ = std::fs::remove_file(packed);
}

/// Moves a file, across file systems too, so that its new name never stands for half of it.
fn place(from: &Path, to: &Path) -> std::io::Result<()> {
    if std::fs::rename(from, to).is_ok() {
        return Ok(());
    }
    let partial = to.with_extension(format!("{}.partial", std::process::id()));
    let copied = std::fs::copy(from, &partial).and_then(|_| std::fs::rename(&partial, to));
    if copied.is_err() {
        let _ = std::fs::remove_file(&partial);
        return copied;
    }
    std::fs::remove_file(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Bench {
        dir: tempfile::TempDir,
        cache: Cache,
    }

    impl Bench {
        fn new(limit_bytes: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("cache");
            let cache = Cache::open(&Choice {
                folder,
                limit_bytes,
            })
            .unwrap();
            Bench { dir, cache }
        }

        /// Puts 100 bytes.
        fn put(&self, key: &str) -> Result<Held, String> {
            let made = self.dir.path().join("made");
            std::fs::write(&made, [7; 100]).unwrap();
            let result = QuantizeResult {
                quantize_s: 1.5,
                peak_bytes: 3,
                notes: BTreeMap::new(),
                packed_sha256: sha256_of_file(&made).unwrap(),
                device_peak_bytes: None,
                peak_rss_bytes: None,
            };
            self.cache.put(key, &result, &made)
        }

        fn has(&self, key: &str) -> bool {
            self.cache.get(key).unwrap().is_some()
        }

        fn used(&self, key: &str, seconds_ago: u64) {
            let file = OpenOptions::new()
                .write(true)
                .open(self.cache.entry(key).0)
                .unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds_ago))
                .unwrap();
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_nothing_in_use() {
        let bench = Bench::new(250);
        drop(bench.put("a").unwrap());
        drop(bench.put("b").unwrap());
        bench.used("a", 10);
        bench.used("b", 20);
        let c = bench.put("c").unwrap();
        assert!(!bench.has("b") && bench.has("a"));
        // Held ones stay although they are the oldest.
        let a = bench.cache.get("a").unwrap().unwrap();
        bench.used("a", 50);
        bench.used("c", 40);
        let d = bench.put("d").unwrap();
        assert!(bench.has("a") && bench.has("c") && bench.has("d"));
        drop((a, c, d));
        bench.cache.trim();
        assert_eq!(
            ["a", "c", "d"].into_iter().filter(|k| bench.has(k)).count(),
            2
        );
    }

    #[test]
    fn what_is_larger_than_the_limit_stays_where_it_was() {
        let bench = Bench::new(99);
        assert!(bench.put("a").unwrap_err().contains("--cache-limit"));
        assert!(bench.dir.path().join("made").exists() && !bench.has("a"));
    }

    #[test]
    fn what_cannot_be_entered_stays_where_it_was() {
        let bench = Bench::new(1000);
        // As on a full disk: the packed file can be moved, what is said of it cannot be written.
        std::fs::create_dir(bench.cache.entry("a").0).unwrap();
        assert!(bench.put("a").is_err());
        let made = std::fs::read(bench.dir.path().join("made")).unwrap();
        assert_eq!(made, [7; 100]);
        assert!(!bench.cache.entry("a").1.exists());
    }

    #[test]
    fn a_damaged_entry_is_removed_and_named() {
        let bench = Bench::new(1000);
        let held = bench.put("a").unwrap();
        assert_eq!(held.result.quantize_s, 1.5);
        std::fs::write(&held.packed, [8; 100]).unwrap();
        drop(held);
        let why = bench.cache.get("a").unwrap_err();
        assert!(why.contains("changed"), "{why}");
        assert!(!bench.has("a"));
        drop(bench.put("b").unwrap());
        std::fs::write(bench.cache.entry("b").0, "{").unwrap();
        assert!(bench.cache.get("b").is_err() && !bench.has("b"));
    }

    #[test]
    fn remains_of_a_killed_process_go_after_a_while() {
        let bench = Bench::new(1000);
        let remains = bench.cache.folder.join("x.77.partial");
        std::fs::write(&remains, "half").unwrap();
        bench.cache.trim();
        assert!(remains.exists());
        let long_ago = SystemTime::now() - 2 * REMAINS_AFTER;
        let file = OpenOptions::new().write(true).open(&remains).unwrap();
        file.set_modified(long_ago).unwrap();
        bench.cache.trim();
        assert!(!remains.exists());
    }
}

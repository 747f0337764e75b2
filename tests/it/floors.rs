//! Imports of harness/ go down the floors only, and no files import each other in a circle.
//!
//! What counts as an import: a `use` line, and a path that begins with `crate::`, outside of tests
//! and comments. A registry that names the files of its own folder by path (`&rtn::FAMILY`) is no
//! import, but the place where a method, format or plot is plugged in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The floors from the top: a folder or file of harness/ may import from floors below its own, and
/// from itself.
const FLOORS: &[&[&str]] = &[
    &["main", "lib"],
    &["cli"],
    &["run"],
    &["measure", "tokenizer", "history"],
    &["formats", "compare"],
    &["quant", "model"],
    &["packed", "data", "report"],
    &["device", "record", "hub"],
    &["error", "memory", "hash", "lock", "stats", "say"],
];

/// Imports that go up all the same, each with its reason.
const ALLOWED_UP: &[(&str, &str, &str)] = &[];

/// Circles of files that are still to be taken apart, each with its reason. A file that leaves its
/// circle is taken out here.
const ALLOWED_CIRCLES: &[(&[&str], &str)] = &[
    (
        &[
            "quant/grid.rs",
            "quant/mod.rs",
            "quant/solver/cpu.rs",
            "quant/solver/mod.rs",
            "quant/stats.rs",
        ],
        "a layer's statistics carry the solver that works on them",
    ),
    (
        &[
            "run/suite/cell.rs",
            "run/suite/choices.rs",
            "run/suite/mod.rs",
            "run/suite/options.rs",
            "run/suite/pieces.rs",
            "run/suite/plan.rs",
            "run/suite/prepare.rs",
            "run/suite/scoring.rs",
            "run/suite/sweep.rs",
            "run/suite/telemetry.rs",
            "run/suite/texts.rs",
            "run/suite/weights.rs",
        ],
        "a run is one struct whose methods lie in the files of its steps",
    ),
];

/// What each file of a tree imports: files and names of the same tree, relative to its root.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn imports_go_down_the_floors() {
    let imports = imports(&super::common::root().join("harness"));
    assert!(imports.len() > 100, "{} files read", imports.len());
    let found = upward(&imports);
    assert!(
        found.is_empty(),
        "imports that go up:\n{}",
        found.join("\n")
    );
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports(&super::common::root().join("harness"));
    let found = circles(&imports);
    let allowed = ALLOWED_CIRCLES.iter().map(|(files, _)| files.to_vec());
    assert_eq!(
        found,
        allowed.collect::<Vec<_>>(),
        "circles beside the allowed ones"
    );
}

#[test]
fn an_upward_import_and_a_circle_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "quant/mod.rs",
        "pub mod rtn;\npub mod awq;\npub mod group;\n",
    );
    write(
        "quant/rtn.rs",
        "use super::{awq::{self, X}, group};\nuse crate::run::suite;\n",
    );
    write(
        "quant/awq.rs",
        "fn f() { crate::quant::rtn::g() }\n// use crate::cli;\n",
    );
    write(
        "quant/group.rs",
        "#[cfg(test)]\nmod tests {\n    use crate::run::suite;\n}\n",
    );
    write("run/mod.rs", "pub mod suite;\n");
    write("run/suite.rs", "use crate::quant::rtn::{\n    Rtn,\n};\n");
    let imports = imports(dir.path());
    assert_eq!(upward(&imports), ["quant/rtn.rs -> run/suite.rs"]);
    let circle = ["quant/awq.rs", "quant/rtn.rs", "run/suite.rs"].map(String::from);
    assert_eq!(circles(&imports), [circle.to_vec()]);
}

/// The imports that go up, or sideways to another folder of the same floor.
fn upward(imports: &Imports) -> Vec<String> {
    let floor = |file: &str| {
        let name = file.split(['/', '.']).next().unwrap_or_default();
        let floor = FLOORS.iter().position(|names| names.contains(&name));
        (
            floor.unwrap_or_else(|| panic!("{file} stands on no floor")),
            name.to_string(),
        )
    };
    let mut found = vec![];
    for (file, targets) in imports {
        for target in targets {
            let ((from, own), (to, other)) = (floor(file), floor(target));
            let allowed = ALLOWED_UP
                .iter()
                .any(|(a, b, _)| *a == file.as_str() && *b == target.as_str());
            if own != other && to <= from && !allowed {
                found.push(format!("{file} -> {target}"));
            }
        }
    }
    found
}

/// Sets of files of which each imports, by whatever way, each other.
fn circles(imports: &Imports) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = imports
        .keys()
        .map(|file| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![file]);
            while let Some(next) = open.pop() {
                for target in imports.get(next).into_iter().flatten() {
                    if seen.insert(target) {
                        open.push(target);
                    }
                }
            }
            (file, seen)
        })
        .collect();
    let mut found = BTreeSet::new();
    for (file, seen) in &reached {
        let circle: Vec<String> = seen
            .iter()
            .filter(|other| reached.get(*other).is_some_and(|r| r.contains(file)))
            .map(|other| other.to_string())
            .collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

fn imports(root: &Path) -> Imports {
    let files = files(root);
    let known: BTreeMap<Vec<String>, String> = files
        .iter()
        .map(|file| (module_of(file), file.clone()))
        .collect();
    let mut imports = Imports::new();
    for file in &files {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let own = module_of(file);
        let targets = paths(&text)
            .iter()
            .filter_map(|path| resolve(path, &own, &known))
            .filter(|target| target != file && target != "lib.rs")
            .collect();
        imports.insert(file.clone(), targets);
    }
    imports
}

/// Every `.rs` file below `root` but those of tests, relative, in name order.
fn files(root: &Path) -> Vec<String> {
    let (mut found, mut open) = (vec![], vec![root.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let aside = ["benches", "build.rs", "build_kernels.rs"].contains(&name.as_str());
            if path.is_dir() && !aside {
                open.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && !aside {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

/// `quant/rtn.rs` is the module `quant::rtn`, `quant/mod.rs` is `quant`, `lib.rs` is the root.
fn module_of(file: &str) -> Vec<String> {
    let mut parts: Vec<String> = file
        .trim_end_matches(".rs")
        .split('/')
        .map(String::from)
        .collect();
    if parts
        .last()
        .is_some_and(|last| last == "mod" || last == "lib")
    {
        parts.pop();
    }
    parts
}

/// The file that a path leads to: of the longest part of it that is a module.
fn resolve(
    path: &[String],
    own: &[String],
    known: &BTreeMap<Vec<String>, String>,
) -> Option<String> {
    let (mut base, mut rest) = match path.first()?.as_str() {
        "crate" => (vec![], &path[1..]),
        "super" | "self" => (own.to_vec(), path),
        // A child of this module.
        child if known.contains_key(&[own, &[child.to_string()]].concat()) => (own.to_vec(), path),
        _ => return None,
    };
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        rest = others;
    }
    for name in rest {
        base.push(name.clone());
        if !known.contains_key(&base) {
            base.pop();
            break;
        }
    }
    known.get(&base).cloned()
}

/// The paths of `use` items, braces resolved, and those that begin with `crate::` elsewhere.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code = without_comments(text);
    let code = &code[..code.find("\nmod tests {").unwrap_or(code.len())];
    let mut found = vec![];
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rsplit('\n').next().unwrap_or_default().trim();
        let item = code[at + 4..].split(';').next().unwrap_or_default();
        // `super` of an inline module is the file itself.
        let inline = code[..at].ends_with(' ') && item == "super::*";
        if !inline && (line.is_empty() || line.starts_with("pub") && !line.contains('"')) {
            expand(item, &[], &mut found);
        }
    }
    for (at, _) in code.match_indices("crate::") {
        let path = code[at..].split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        let path = path.into_iter().next().unwrap_or_default();
        found.push(path.split("::").map(String::from).collect());
    }
    found
}

fn expand(item: &str, before: &[String], found: &mut Vec<Vec<String>>) {
    let item = item.trim();
    let Some(open) = item.find('{') else {
        let path = item.split(" as ").next().unwrap_or_default();
        let parts = path.split("::").map(|part| part.trim().to_string());
        found.push(before.iter().cloned().chain(parts).collect());
        return;
    };
    let head = item[..open].trim().trim_end_matches("::");
    let parts = head.split("::").filter(|p| !p.is_empty()).map(String::from);
    let before: Vec<String> = before.iter().cloned().chain(parts).collect();
    let inner = &item[open + 1..item.rfind('}').unwrap_or(item.len())];
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[start..at].trim().is_empty() {
                    expand(&inner[start..at], &before, found);
                }
                start = (at + 1).min(inner.len());
            }
            _ => {}
        }
    }
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| match line.find("//") {
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    });
    lines.collect::<Vec<&str>>().join("\n")
}

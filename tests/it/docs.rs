//! The pages that people read: their links lead somewhere, and what they name is there.

use crate::common::{quantbench, root, stdout};
use quantbench::data::protocol::PROTOCOLS;
use quantbench::quant;
use quantbench::record::Tables;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Options in the pages that are cargo's or a script's own.
const OF_OTHERS: &[&str] = &[
    "--bench",
    "--check",
    "--features",
    "--no-default-features",
    "--release",
];
/// Folders whose files pages name in code. What a run writes (`reports/latest`) need not be there.
const FOLDERS: &[&str] = &["datasets/", "docs/", "harness/", "scripts/", "tests/"];

struct Page {
    /// From the root of the repository.
    path: PathBuf,
    headings: Vec<String>,
    prose: String,
    /// Spans and blocks of code, one after the other.
    code: Vec<String>,
}

impl Page {
    fn read(path: &Path) -> Page {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let (mut outside, mut blocks, mut fenced) = (String::new(), vec![], false);
        for line in text.lines() {
            if line.starts_with("```") {
                fenced = !fenced;
                blocks.extend(fenced.then(String::new));
            } else if let (true, Some(block)) = (fenced, blocks.last_mut()) {
                *block += &format!("{line}\n");
            } else {
                outside += &format!("{line}\n");
            }
        }
        let headings = outside.lines().filter_map(|line| {
            let title = line.trim_start_matches('#');
            (title.len() < line.len()).then(|| anchor(title.trim()))
        });
        let headings = headings.collect();
        let mut prose = String::new();
        for (n, part) in outside.split('`').enumerate() {
            match n % 2 {
                0 => prose += part,
                _ => blocks.push(part.into()),
            }
        }
        Page {
            path: path.into(),
            headings,
            prose,
            code: blocks,
        }
    }

    fn links(&self) -> impl Iterator<Item = &str> {
        let targets = self.prose.split("](").skip(1);
        targets.filter_map(|rest| Some(rest.split_once(')')?.0))
    }

    fn words_of_code(&self) -> impl Iterator<Item = &str> {
        self.code.iter().flat_map(|code| code.split_whitespace())
    }
}

/// What a heading is linked by.
fn anchor(title: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    let kept: String = title.to_lowercase().chars().filter(kept).collect();
    kept.replace(' ', "-")
}

/// Markdown files below a folder of the repository whose names pass.
fn below(folder: &str, passes: fn(&str) -> bool, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{folder}/{name}");
        if entry.file_type().unwrap().is_dir() {
            below(&path, passes, found);
        } else if passes(&name) {
            found.push(path.into());
        }
    }
}

/// Every page that is kept up to date.
fn pages() -> Vec<Page> {
    let mut found: Vec<PathBuf> = ["README.md", "scripts/README.md", "reports/README.md"]
        .iter()
        .chain(&["CHANGELOG.md", "ARCHITECTURE.md"])
        .map(PathBuf::from)
        .filter(|path| root().join(path).exists())
        .collect();
    below("docs", |name| name.ends_with(".md"), &mut found);
    below("datasets", |name| name == "README.md", &mut found);
    assert!(found.len() > 15, "{found:?}");
    found.iter().map(|path| Page::read(path)).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut seen = 0;
    for page in pages() {
        let from = page.path.display();
        for link in page.links().filter(|link| !link.contains("://")) {
            seen += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.path.clone(),
                _ => page.path.parent().unwrap().join(file),
            };
            assert!(root().join(&target).exists(), "{from}: no file {link}");
            if !heading.is_empty() {
                let headings = Page::read(&target).headings;
                let there = headings.iter().any(|h| h == heading);
                assert!(there, "{from}: no heading {link} among {headings:?}");
            }
        }
    }
    assert!(seen > 50, "{seen} links");
}

#[test]
fn every_page_of_docs_is_linked_from_the_readme() {
    let readme = Page::read(Path::new("README.md"));
    let linked: BTreeSet<&str> = readme
        .links()
        .map(|l| l.split('#').next().unwrap())
        .collect();
    let mut docs = vec![];
    below("docs", |name| name.ends_with(".md"), &mut docs);
    for page in docs {
        let path = page.to_str().unwrap();
        assert!(linked.contains(path), "{path}");
    }
}

#[test]
fn files_named_in_code_are_there() {
    let mut seen = 0;
    // What changes say about the past need not hold today.
    for page in pages().iter().filter(|p| !p.path.ends_with("CHANGELOG.md")) {
        let words = page.words_of_code();
        for word in words.filter(|w| FOLDERS.iter().any(|folder| w.starts_with(folder))) {
            seen += 1;
            let there = root().join(word).exists();
            assert!(there, "{}: no file {word}", page.path.display());
        }
    }
    assert!(seen > 20, "{seen} files");
}

/// What the program says about itself and its commands.
fn help(command: &[&str]) -> String {
    let output = quantbench().args(command).arg("--help").output().unwrap();
    stdout(&output)
}

#[test]
fn commands_and_options_exist() {
    let commands = ["run", "list", "report", "compare", "history"];
    let helps = commands.map(|command| help(&[command]));
    let letters = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    let known: BTreeSet<&str> = helps
        .iter()
        .flat_map(|text| text.split(letters))
        .chain(OF_OTHERS.iter().copied())
        .filter(|word| word.starts_with("--"))
        .collect();
    let pages = pages();
    let (mut options, mut called) = (BTreeSet::new(), BTreeSet::new());
    for page in &pages {
        let from = page.path.display();
        for word in page.words_of_code().filter(|word| word.starts_with("--")) {
            let option = word.split(letters).next().unwrap();
            assert!(option == "--" || known.contains(option), "{from}: {word}");
            options.insert(option);
        }
        for code in &page.code {
            let words: Vec<&str> = code.split_whitespace().collect();
            for pair in words.windows(2).filter(|pair| pair[0] == "quantbench") {
                let known = commands.contains(&pair[1]) || pair[1].starts_with("--");
                assert!(known, "{from}: {}", pair.join(" "));
                called.insert(pair[1]);
            }
            for triple in words
                .windows(3)
                .filter(|t| t[..2] == ["quantbench", "list"])
            {
                let listed = helps[1].contains(triple[2]);
                assert!(listed, "{from}: {}", triple.join(" "));
            }
        }
    }
    assert!(options.len() > 40, "{options:?}");
    assert_eq!(called.len(), commands.len(), "{called:?}");
}

/// The code in the first column of the tables below a heading; of the whole page without one.
fn first_column(page: &str, heading: Option<&str>) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let lines = text.lines();
    let of_section = |line: &&str| !line.starts_with("## ");
    let lines: Vec<&str> = match heading {
        None => lines.collect(),
        Some(heading) => {
            let after = lines.skip_while(|line| *line != format!("## {heading}"));
            after.skip(1).take_while(of_section).collect()
        }
    };
    let cells = lines.iter().filter_map(|line| line.strip_prefix("| "));
    let cells = cells.filter_map(|line| line.split(" | ").next());
    let code = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    code.map(String::from).collect()
}

#[test]
fn every_column_is_defined() {
    let dir = tempfile::tempdir().unwrap();
    Tables::default().write(dir.path()).unwrap();
    let mut tables = 0;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "csv") {
            tables += 1;
            let header = fs::read_to_string(&path).unwrap();
            let columns: BTreeSet<String> =
                header.trim_end().split(',').map(String::from).collect();
            let file = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(
                first_column("docs/columns.md", Some(file)),
                columns,
                "{file}"
            );
        }
    }
    assert!(tables >= 7, "{tables} tables");
}

#[test]
fn every_precision_and_protocol_is_described() {
    let families = quant::families().flat_map(|family| family.ids);
    let precisions = families.chain(quant::BY_PATH).map(|l| l.id.to_string());
    let described = first_column("docs/precisions.md", None);
    assert_eq!(described, precisions.collect());
    let protocols = PROTOCOLS.iter().map(|p| p.id.to_string());
    let described = first_column("docs/reading-the-numbers.md", Some("Perplexity"));
    assert_eq!(described, protocols.collect());
}

//! Tokenized WikiText is not taken for the raw text.

use super::{evaluation, manifest, refused};
use crate::common::root;
use quantbench::hash::sha256;
use std::fs;

const TOKENIZED: &str = " \n = Robert <unk> = \n \n He had a guest @-@ starring role . \n";
const RAW: &str = " \n = Robert Boulter = \n \n He had a guest @-@ starring role . \n";

#[test]
fn tokenized_text_is_refused_under_a_raw_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["mine.txt", "wikitext-2-raw.txt"] {
        fs::write(path(name), TOKENIZED).unwrap();
    }
    // A file of one's own is doubted, not refused.
    let mine = evaluation(path("mine.txt")).unwrap();
    assert!(mine.warnings()[0].contains("<unk>"));
    let words = ["tokenized variant", "raw", "wiki.test.raw", "another name"];
    refused(path("wikitext-2-raw.txt"), &words);
    fs::write(path("wikitext-2-raw.txt"), RAW).unwrap();
    // What separates punctuation is part of the raw text.
    let raw = evaluation(path("wikitext-2-raw.txt")).unwrap();
    assert!(raw.warnings().is_empty());

    let write = |name: &str, text: &str, more: &str| {
        let hash = sha256([text.as_bytes()]);
        fs::write(path("mine.txt"), text).unwrap();
        let more = format!("file = 'mine.txt'\nsha256 = '{hash}'\n{more}");
        fs::write(path("manifest.toml"), manifest(name, &more)).unwrap();
    };
    write("own", TOKENIZED, "raw = true\n");
    refused(dir.path(), &words);
    write("wikitext-2-raw", TOKENIZED, "");
    refused(dir.path(), &words);
    write("wikitext-2-tokenized", TOKENIZED, "");
    assert!(!evaluation(dir.path()).unwrap().warnings().is_empty());
    write("own", RAW, "raw = true\n");
    assert!(evaluation(dir.path()).is_ok());
}

#[test]
fn the_published_tokenized_file_is_refused() {
    let file = root().join("../shared/data/wikitext-2.test.txt");
    if !file.exists() {
        println!(
            "SKIPPED: the_published_tokenized_file_is_refused: {} is missing",
            file.display()
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("wikitext-2-raw.txt");
    fs::copy(&file, &copy).unwrap();
    refused(&copy, &["`<unk>`", "tokenized variant"]);
    let set = evaluation(&file).unwrap();
    assert_eq!(set.text.len(), 1_256_449);
    assert!(set.warnings()[0].contains("<unk>"));
}

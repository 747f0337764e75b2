//! Models and datasets by their id on the hub: out of its cache, downloaded from a server that
//! speaks as it does, and refused with words where neither is possible.

use super::documents::write_parquet;
use crate::common::{quick_run, root, stderr};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::basic::Compression as Codec;
use quantbench::hash::sha256_of_file;
use quantbench::record::Tables;
use quantbench::tokenizer::Tokenizer;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A folder of the cache in `home` for a repository's files; `main` stands at [`COMMIT`].
fn snapshot(home: &Path, repository: &str, revision: &str) -> PathBuf {
    let folder = home.join("hub").join(repository);
    let reference = folder.join("refs").join(revision);
    fs::create_dir_all(reference.parent().unwrap()).unwrap();
    fs::write(reference, COMMIT).unwrap();
    let files = folder.join("snapshots").join(COMMIT);
    fs::create_dir_all(&files).unwrap();
    files
}

/// A short run that knows no cache but `home` and no server but `endpoint`.
fn run(home: &Path, out: &Path, endpoint: &str) -> Command {
    let mut command = quick_run(out);
    command
        .args(["--precisions", "fp16"])
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", endpoint)
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE");
    command
}

/// No server listens there.
const NOWHERE: &str = "http://127.0.0.1:9";

fn finished(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    output
}

fn refused(command: &mut Command, words: &[&str]) {
    let output = finished(command);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

/// The manifest of a public set in a folder of its own, without its hash.
fn unpinned(dir: &Path, set: &str) -> String {
    let manifest = root()
        .join("datasets/public")
        .join(set)
        .join("manifest.toml");
    let text = fs::read_to_string(manifest).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("sha256"));
    let copy = dir.join(set);
    fs::create_dir_all(&copy).unwrap();
    let lines: Vec<&str> = lines.collect();
    fs::write(copy.join("manifest.toml"), lines.join("\n")).unwrap();
    copy.display().to_string()
}

#[test]
fn public_sets_are_read_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let (home, out) = (dir.path().join("home"), dir.path().join("out"));
    let wiki = snapshot(&home, "datasets--Salesforce--wikitext", "main");
    let wiki = wiki.join("wikitext-2-raw-v1/test-00000-of-00001.parquet");
    fs::create_dir_all(wiki.parent().unwrap()).unwrap();
    let lines: Vec<String> = (0..400)
        .map(|i| match i % 3 {
            0 => String::new(),
            _ => format!(" line {i} of a text about nothing in particular . \n"),
        })
        .collect();
    let rows: Vec<(&[u8], Option<&str>)> = lines.iter().map(|l| (l.as_bytes(), None)).collect();
    write_parquet(&wiki, Codec::SNAPPY, true, &rows);

    let c4 = snapshot(&home, "datasets--allenai--c4", "main");
    let c4 = c4.join("en/c4-validation.00000-of-00008.json.gz");
    fs::create_dir_all(c4.parent().unwrap()).unwrap();
    let write_c4 = |documents: usize| {
        let mut gzip = GzEncoder::new(fs::File::create(&c4).unwrap(), Compression::fast());
        for i in 0..documents {
            writeln!(
                gzip,
                "{{\"text\": \"document {i} about birds\", \"url\": \"u\"}}"
            )
            .unwrap();
        }
        gzip.finish().unwrap();
    };
    write_c4(1105);
    // The public sets are pinned, so that nothing made up passes for them.
    for (set, words) in [
        ("wikitext-2-raw", ["test-00000", "5f1bea067869"]),
        ("c4-new", ["c4-validation", "1f25b6af12da"]),
    ] {
        let mut command = run(&home, &out, NOWHERE);
        refused(command.args(["--datasets", set]), &words);
    }
    let wiki_set = unpinned(dir.path(), "wikitext-2-raw");
    let c4_set = unpinned(dir.path(), "c4-new");
    let both = format!("{wiki_set},{c4_set}");
    let output = finished(run(&home, &out, NOWHERE).args(["--datasets", &both]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let texts = Tables::read(&out).unwrap().info.texts;
    // Joined as GPTQ's code joins each: blank lines between rows, and spaces between 1100 texts.
    let tokenizer = Tokenizer::load(None, None).unwrap();
    let tokens = |parts: &[String], separator: &str| {
        let encoding = tokenizer.encode(&parts.join(separator)).unwrap();
        encoding.ids.len() as u64
    };
    assert_eq!(texts[0].tokens, tokens(&lines, "\n\n"));
    let documents: Vec<String> = (0..1100)
        .map(|i| format!("document {i} about birds"))
        .collect();
    assert_eq!(texts[1].tokens, tokens(&documents, " "));
    assert_ne!(tokens(&documents, " "), tokens(&documents, "\n\n"));
    // Of what was read, since nothing was pinned.
    assert_eq!(texts[0].sha256, sha256_of_file(&wiki).unwrap());
    assert_eq!(texts[1].sha256, sha256_of_file(&c4).unwrap());

    write_c4(7);
    refused(
        run(&home, &out, NOWHERE).args(["--datasets", &c4_set]),
        &["c4-validation", "expected at least 1100 documents, found 7"],
    );
    let tokenized: Vec<(&[u8], Option<&str>)> = vec![(b" = Robert <unk> = \n", None)];
    write_parquet(&wiki, Codec::SNAPPY, true, &tokenized);
    refused(
        run(&home, &out, NOWHERE).args(["--datasets", &wiki_set]),
        &["wikitext-2-raw", "tokenized variant"],
    );
}

#[test]
fn what_is_nowhere_is_named_with_the_place_where_to_put_it() {
    let dir = tempfile::tempdir().unwrap();
    let (home, out) = (dir.path().join("home"), dir.path().join("out"));
    let cache = home.join("hub").display().to_string();
    let place = "datasets--ptb-text-only--ptb_text_only/snapshots/refs/convert/parquet/\
                 penn_treebank/test/0000.parquet";
    let mut command = run(&home, &out, NOWHERE);
    command.args(["--datasets", "ptb-new"]);
    refused(
        &mut command,
        &["ptb-text-only/ptb_text_only", &cache, place],
    );
    command.env("HF_HUB_OFFLINE", "1");
    #[cfg(feature = "hub")]
    refused(&mut command, &["HF_HUB_OFFLINE"]);
    #[cfg(not(feature = "hub"))]
    refused(&mut command, &["without the feature `hub`"]);

    let mut command = run(&home, &out, NOWHERE);
    command.args(["--model", "hub:owner/tiny"]);
    let words = [
        "owner/tiny",
        &cache,
        "models--owner--tiny/snapshots/main/config.json",
    ];
    refused(&mut command, &words);
    for bad in ["hub:", "hub:../x", "hub:a/b/c", "hub:a/b@"] {
        let mut command = run(&home, &out, NOWHERE);
        refused(command.args(["--model", bad]), &["hub:owner/name"]);
    }
}

/// Files of the embedded model.
const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

#[test]
fn a_model_is_read_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let (home, out) = (dir.path().join("home"), dir.path().join("out"));
    let folder = snapshot(&home, "models--owner--tiny", "main");
    for name in FILES {
        fs::copy(
            root().join("datasets/embedded-model").join(name),
            folder.join(name),
        )
        .unwrap();
    }
    let output = finished(run(&home, &out, NOWHERE).args(["--model", "hub:owner/tiny"]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let model = Tables::read(&out).unwrap().info.model;
    assert_eq!(
        (model.name.as_str(), model.source.as_str()),
        ("tiny", "hub:owner/tiny")
    );

    // By commit, which no branch needs to stand at.
    fs::remove_dir_all(home.join("hub/models--owner--tiny/refs")).unwrap();
    let id = format!("hub:owner/tiny@{COMMIT}");
    let output = finished(run(&home, &out, NOWHERE).args(["--model", &id]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    // A shard of an index that is not there.
    fs::rename(folder.join(FILES[2]), folder.join("part-1.safetensors")).unwrap();
    let index = "{\"weight_map\": {\"a\": \"part-1.safetensors\", \"b\": \"part-2.safetensors\"}}";
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    refused(
        run(&home, &out, NOWHERE).args(["--model", &id]),
        &["`part-2.safetensors`", COMMIT],
    );
}

#[test]
fn nothing_is_asked_of_the_network_unless_an_id_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (home, out) = (dir.path().join("home"), dir.path().join("out"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let output = finished(&mut run(&home, &out, &endpoint));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(listener.accept().is_err(), "a connection was made");
    assert!(!home.exists(), "the cache was touched");
    // The same listener does see a connection where an id is named.
    #[cfg(feature = "hub")]
    {
        let mut child = run(&home, &out, &endpoint)
            .args(["--model", "hub:owner/tiny"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let start = std::time::Instant::now();
        while listener.accept().is_err() {
            assert!(start.elapsed().as_secs() < 600, "no connection was made");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[cfg(feature = "hub")]
mod server {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::sync::{Arc, Mutex};

    /// Serves the embedded model as `owner/tiny`, as the hub does: a list of files, and ranges of
    /// each. Returns its address and the paths that were asked for.
    fn start() -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(vec![]));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                let path = request.split(' ').nth(1).unwrap().to_string();
                let mut range = None;
                for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
                    let line = line.to_ascii_lowercase();
                    if let Some(bytes) = line.strip_prefix("range: bytes=") {
                        range = Some(bytes.to_string());
                    }
                }
                log.lock().unwrap().push(path.clone());
                let (head, body) = answer(&path, range.as_deref());
                let length = body.len();
                write!(
                    stream,
                    "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                )
                .unwrap();
                let _ = stream.write_all(&body);
            }
        });
        (address, asked)
    }

    fn answer(path: &str, range: Option<&str>) -> (String, Vec<u8>) {
        if path == "/api/models/owner/tiny/revision/main" {
            let files = FILES.map(|name| format!("{{\"rfilename\": \"{name}\"}}"));
            let list = files.join(", ");
            let json = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{list}]}}");
            return (
                "200 OK\r\nContent-Type: application/json".into(),
                json.into(),
            );
        }
        let name = path.strip_prefix("/owner/tiny/resolve/main/");
        let Some(name) = name.filter(|name| FILES.contains(name)) else {
            return ("404 Not Found".into(), vec![]);
        };
        let whole = fs::read(root().join("datasets/embedded-model").join(name)).unwrap();
        let (start, end) = range.unwrap_or("0-").split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end: usize = end.parse().map_or(whole.len(), |end: usize| end + 1);
        let head = format!(
            "206 Partial Content\r\nETag: \"etag-of-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
             Content-Range: bytes {start}-{}/{}",
            end - 1,
            whole.len()
        );
        (head, whole[start..end].to_vec())
    }

    #[test]
    fn a_model_is_downloaded_once() {
        let dir = tempfile::tempdir().unwrap();
        let (home, out) = (dir.path().join("home"), dir.path().join("out"));
        let (address, asked) = start();
        let model = ["--model", "hub:owner/tiny"];
        let output = finished(run(&home, &out, &address).args(model));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let folder = home.join("hub/models--owner--tiny/snapshots").join(COMMIT);
        for name in FILES {
            let original = root().join("datasets/embedded-model").join(name);
            assert_eq!(
                sha256_of_file(&folder.join(name)).unwrap(),
                sha256_of_file(&original).unwrap()
            );
        }
        assert_eq!(Tables::read(&out).unwrap().info.model.name, "tiny");
        let asked = || asked.lock().unwrap().len();
        let before = asked();
        assert!(before >= 4);
        let output = finished(run(&home, &out, &address).args(model));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(asked(), before, "it was in the cache");
        // A set that the server does not have.
        refused(
            run(&home, &out, &address).args(["--datasets", "c4-new"]),
            &["allenai/c4", "cannot be downloaded", "404"],
        );
    }
}

//! Documents of text, JSONL and Parquet files.

use super::{evaluation, manifest, refused};
use crate::allocations::largest_allocation;
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::basic::{Compression as Codec, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use quantbench::data;
use quantbench::hash::sha256;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Writes two row groups with columns `text` (required), `note` (optional) and `n` (a number).
pub fn write_parquet(path: &Path, codec: Codec, dictionary: bool, rows: &[(&[u8], Option<&str>)]) {
    let schema = "message m { required binary text (UTF8); optional binary note (UTF8); \
                  required int64 n; }";
    let properties = WriterProperties::builder()
        .set_compression(codec)
        .set_dictionary_enabled(dictionary)
        .build();
    let mut file = SerializedFileWriter::new(
        fs::File::create(path).unwrap(),
        Arc::new(parse_message_type(schema).unwrap()),
        Arc::new(properties),
    )
    .unwrap();
    for rows in rows.chunks(rows.len().div_ceil(2)) {
        let mut group = file.next_row_group().unwrap();
        let texts: Vec<ByteArray> = rows.iter().map(|r| r.0.to_vec().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let notes: Vec<ByteArray> = rows.iter().filter_map(|r| Some(r.1?.into())).collect();
        let levels: Vec<i16> = rows.iter().map(|r| i16::from(r.1.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&notes, Some(&levels), None).unwrap();
        column.close().unwrap();
        let numbers: Vec<i64> = (0..rows.len() as i64).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<Int64Type>();
        typed.write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    file.close().unwrap();
}

const ROWS: [(&[u8], Option<&str>); 5] = [
    (b" = Heading = \n", Some("a")),
    (b"", Some("b")),
    ("caf\u{e9} one".as_bytes(), Some("c")),
    (b"two", Some("d")),
    (b"two", Some("e")),
];

fn documents(name: impl AsRef<Path>) -> Vec<String> {
    let set = evaluation(name).unwrap();
    let documents = set.documents();
    assert_eq!(documents.concat(), set.text);
    documents.into_iter().map(str::to_string).collect()
}

#[test]
fn a_text_is_one_document() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.txt");
    fs::write(&path, "one\n\ntwo\n").unwrap();
    assert_eq!(documents(&path), ["one\n\ntwo\n"]);
    assert_eq!(documents("prose").len(), 1);
}

#[test]
fn a_parquet_column_is_read_in_every_encoding() {
    let dir = tempfile::tempdir().unwrap();
    let wanted: Vec<&str> = ROWS
        .iter()
        .map(|r| std::str::from_utf8(r.0).unwrap())
        .collect();
    let zstd = Codec::ZSTD(ZstdLevel::try_new(3).unwrap());
    for (i, codec) in [Codec::UNCOMPRESSED, Codec::SNAPPY, zstd]
        .into_iter()
        .enumerate()
    {
        for dictionary in [true, false] {
            let path = dir.path().join(format!("{i}{dictionary}.parquet"));
            write_parquet(&path, codec, dictionary, &ROWS);
            assert_eq!(documents(&path), wanted);
            let column = format!("{}#note", path.display());
            assert_eq!(documents(column), ["a", "b", "c", "d", "e"]);
        }
    }
    // By content, whatever it is called; more rows than are decoded at a time.
    let path = dir.path().join("download");
    let many: Vec<String> = (0..2000).map(|i| format!("row {i}")).collect();
    let rows: Vec<(&[u8], Option<&str>)> = many.iter().map(|r| (r.as_bytes(), None)).collect();
    write_parquet(&path, Codec::SNAPPY, true, &rows);
    assert_eq!(documents(&path), many);
}

#[test]
fn parquet_refusals_name_row_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let named = |field: &str| format!("{}#{field}", path.display());
    let mut rows = ROWS.to_vec();
    rows[3].1 = None;
    rows[4].0 = b"caf\xe9";
    write_parquet(&path, Codec::SNAPPY, true, &rows);
    refused(
        &path,
        &["rows.parquet", "row 4", "`text`", "UTF-8", "byte 3"],
    );
    refused(
        named("note"),
        &["row 3", "`note`", "expected a string, found null"],
    );
    refused(named("n"), &["`n`", "expected strings, found INT64"]);
    refused(
        named("body"),
        &["expected a column `body`, found `text`, `note`, `n`"],
    );
    let codec = Codec::SNAPPY;
    write_parquet(&path, codec, false, &[(b"", None), (b" ", None)]);
    refused(&path, &["empty"]);
    fs::write(&path, "PAR1 and no more").unwrap();
    refused(&path, &["not a readable Parquet file"]);
}

#[test]
fn a_jsonl_field_is_read_and_others_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let lines = "{\"text\": \"one \\u00e9\", \"n\": [1, {\"text\": 2}]}\r\n\n\
                 {\"n\": 1e3, \"body\": \"second\", \"text\": \"two\"}\n\
                 {\"text\": \"\", \"body\": \"third\"}";
    fs::write(&path, lines).unwrap();
    assert_eq!(documents(&path), ["one \u{e9}", "two", ""]);
    refused(
        format!("{}#body", path.display()),
        &[
            "a.jsonl: line 1",
            "expected a field `body`, found `text`, `n`",
        ],
    );
    // Compressed, and under a name that says nothing.
    let packed = dir.path().join("b.jsonl.gz");
    let mut gzip = GzEncoder::new(fs::File::create(&packed).unwrap(), Compression::fast());
    gzip.write_all(lines.as_bytes()).unwrap();
    gzip.finish().unwrap();
    assert_eq!(documents(&packed), documents(&path));
    let plain = dir.path().join("plain");
    fs::write(&plain, lines).unwrap();
    assert_eq!(documents(format!("{}#text", plain.display())).len(), 3);
    assert_eq!(documents(&plain), [lines]);
    // Cut off in the middle.
    let bytes = fs::read(&packed).unwrap();
    fs::write(&packed, &bytes[..bytes.len() - 12]).unwrap();
    refused(&packed, &["b.jsonl.gz", "line "]);
}

#[test]
fn the_name_of_all_sets_together_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("overall.txt");
    fs::write(&path, "Some text.").unwrap();
    refused(&path, &["`overall`", "Rename"]);
}

#[test]
fn hostile_lines_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    let good = b"{\"text\": \"fine\"}\n".as_slice();
    let deep = [b"{\"text\": ".as_slice(), &b"[".repeat(100_000)].concat();
    let cases: &[(&[u8], &[&str])] = &[
        (
            b"{\"text\": 3}",
            &["`text`", "expected a string, found a number"],
        ),
        (b"{\"text\": null}", &["found null"]),
        (b"{\"text\": [\"a\"]}", &["found a list"]),
        (b"{\"text\": {\"a\": 1}}", &["found an object"]),
        (b"{\"text\": true}", &["found a boolean"]),
        (b"{}", &["expected a field `text`, found none"]),
        (b"[1, 2]", &["expected a JSON object, found a list"]),
        (b"\"text\"", &["expected a JSON object, found a string"]),
        (b"{\"text\": \"a", &["not valid JSON at column 11"]),
        (b"{\"text\": \"a\"} {}", &["not valid JSON at column"]),
        (b"{\"text\": \"caf\xe9\"}", &["UTF-8", "byte 13"]),
        (&deep, &["not valid JSON", "list"]),
    ];
    for (line, words) in cases {
        fs::write(&path, [good, line].concat()).unwrap();
        refused(&path, &[&["x.jsonl: line 2"], *words].concat());
    }
}

#[test]
fn too_much_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large.txt");
    let size = data::MAX_TEXT_BYTES as u64 + 1;
    fs::File::create(&large).unwrap().set_len(size).unwrap();
    let most = largest_allocation(|| refused(&large, &["large.txt", "268435457"]));
    assert!(most < 4 << 20, "{most} bytes were asked for at once");
    // Some ten thousand bytes that become a line of eighty million.
    let bomb = dir.path().join("bomb.jsonl.gz");
    let mut gzip = GzEncoder::new(fs::File::create(&bomb).unwrap(), Compression::fast());
    for _ in 0..80 {
        gzip.write_all(&vec![b' '; 1_000_000]).unwrap();
    }
    gzip.finish().unwrap();
    let most = largest_allocation(|| refused(&bomb, &["line 1", "expected at most 67108864"]));
    assert!(most <= 128 << 20, "{most} bytes were asked for at once");
}

#[test]
fn a_manifest_says_format_field_and_how_many() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let rows: Vec<String> = (0..10)
        .map(|i| format!("{{\"body\": \"row {i}\"}}\n"))
        .collect();
    fs::write(path("rows"), rows.concat()).unwrap();
    let hash = sha256([rows.concat().as_bytes()]);
    let write = |more: &str| {
        let more = format!("file = 'rows'\nformat = 'jsonl'\nfield = 'body'\n{more}");
        fs::write(path("manifest.toml"), manifest("own", &more)).unwrap();
    };
    write(&format!(
        "sha256 = '{hash}'\ntake_documents = 3\nseparator = ' '\n"
    ));
    let set = evaluation(dir.path()).unwrap();
    assert_eq!(set.documents(), ["row 0", "row 1", "row 2"]);
    assert_eq!(set.manifest.separator.as_deref(), Some(" "));
    // Of the whole file, not of what was taken.
    assert_eq!(set.manifest.sha256, hash);
    write(&format!("sha256 = '{hash}'\ntake_documents = 11\n"));
    refused(dir.path(), &["expected at least 11 documents, found 10"]);
    write(&format!("sha256 = '{}'\n", "0".repeat(64)));
    refused(dir.path(), &[&hash, "sha256"]);
    // The documents themselves, whatever holds them: here those of the first three lines.
    let three = sha256([set.text.as_bytes()]);
    let pinned = |text_hash: &str| {
        write(&format!(
            "sha256 = '{hash}'\ntext_sha256 = '{text_hash}'\ntake_documents = 3\n"
        ))
    };
    pinned(&three);
    assert_eq!(evaluation(dir.path()).unwrap().text, set.text);
    pinned(&hash);
    refused(dir.path(), &[&three, &hash, "documents"]);
    write("take_documents = 3\n");
    refused(dir.path(), &["manifest.toml", "`sha256` is missing"]);
    write(&format!("sha256 = '{hash}'\ntake_documents = 0\n"));
    refused(dir.path(), &["`take_documents`", "at least 1"]);
    write(&format!("sha256 = '{hash}'\nfromat = 'jsonl'\n"));
    refused(dir.path(), &["fromat"]);
}

#[test]
fn public_sets_are_described_without_their_text() {
    let manifests = quantbench::data::public().unwrap();
    let names: Vec<&str> = manifests.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["wikitext-2-raw", "c4-new", "ptb-new"]);
    for m in &manifests {
        let hub = m.hub.as_ref().unwrap();
        assert!(hub.id.contains('/') && !hub.file.is_empty(), "{}", m.name);
        assert!(!m.licence.is_empty() && !m.source.is_empty());
    }
    let c4 = &manifests[1];
    assert_eq!(
        (c4.take_documents, c4.take_windows),
        (Some(1100), Some(256))
    );
    assert!(manifests[0].is_raw() && !manifests[2].is_raw());
}

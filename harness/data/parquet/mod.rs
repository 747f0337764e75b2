//! One column of strings out of a Parquet file.

mod pages;

use std::cell::Cell;
use std::fs::File;
use std::path::Path;
use std::sync::Once;

use parquet::basic::{Compression, Type};
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;

use super::documents::Documents;
use crate::{Error, Result};

/// Rows decoded at a time.
const BATCH: usize = 256;

const NEXT: &str = "Write the file again with a column of strings, uncompressed or compressed \
                    with snappy or zstd; name the column as FILE#COLUMN or in a manifest \
                    (datasets/README.md).";

/// The first `take` rows of a column, each a document.
pub fn column(path: &Path, name: &str, take: usize) -> Result<Documents> {
    // The file's own claims are checked before they are acted on; against what remains, such as
    // an assertion inside the decoder, a damaged file still ends as an error.
    quietly(|| rows(path, name, take))
        .unwrap_or_else(|| Err("damaged: the decoder gave up on it".into()))
        .map_err(|what| Error::file(path, what, NEXT))
}

thread_local! {
    /// Whether this thread decodes a file, so that a panic of its is the file's fault.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; `None` if it panicked, without a word on standard error.
fn quietly<T>(f: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !DECODING.get() {
                usual(panic);
            }
        }));
    });
    DECODING.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    DECODING.set(false);
    result.ok()
}

fn rows(path: &Path, name: &str, take: usize) -> Result<Documents, String> {
    let damaged = |e: parquet::errors::ParquetError| format!("not a readable Parquet file: {e}");
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let reader = file
        .try_clone()
        .map_err(|e| e.to_string())
        .and_then(|file| SerializedFileReader::new(file).map_err(damaged))?;
    let metadata = reader.metadata();
    let index = find(metadata.file_metadata().schema_descr(), name)?;
    let mut documents = Documents::default();
    for group in 0..metadata.num_row_groups() {
        let chunk = metadata
            .row_group(group)
            .columns()
            .get(index)
            .ok_or_else(|| format!("row group {group} has no column `{name}`"))?;
        check_chunk(&mut file, chunk).map_err(|what| format!("row group {group}: {what}"))?;
        let column = reader
            .get_row_group(group)
            .and_then(|group| group.get_column_reader(index))
            .map_err(damaged)?;
        let ColumnReader::ByteArrayColumnReader(mut column) = column else {
            return Err(format!(
                "column `{name}`: expected strings, found another type"
            ));
        };
        let nullable = chunk.column_descr().max_def_level();
        let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
        while documents.ends.len() < take {
            values.clear();
            levels.clear();
            let row = documents.ends.len();
            let (records, ..) = column
                .read_records(BATCH, Some(&mut levels), None, &mut values)
                .map_err(|e| format!("row {row}: damaged: {e}"))?;
            if records == 0 {
                break;
            }
            if let Some(null) = levels.iter().position(|level| *level < nullable) {
                return Err(format!(
                    "row {}: column `{name}`: expected a string, found null",
                    row + null
                ));
            }
            for value in values.iter().take(take - row) {
                let row = documents.ends.len();
                let text = std::str::from_utf8(value.data()).map_err(|e| {
                    format!(
                        "row {row}: column `{name}`: expected UTF-8 text, but byte {} does not \
                         decode",
                        e.valid_up_to()
                    )
                })?;
                documents
                    .push(text)
                    .map_err(|what| format!("row {row}: {what}"))?;
            }
        }
    }
    Ok(documents)
}

/// The index of a top-level column of byte strings.
fn find(schema: &parquet::schema::types::SchemaDescriptor, name: &str) -> Result<usize, String> {
    let columns = schema.columns();
    let index = columns
        .iter()
        .position(|c| c.path().string() == name)
        .ok_or_else(|| {
            let names: Vec<String> = columns
                .iter()
                .take(8)
                .map(|c| format!("`{}`", c.path().string()))
                .collect();
            format!("expected a column `{name}`, found {}", names.join(", "))
        })?;
    let column = &columns[index];
    if column.physical_type() != Type::BYTE_ARRAY || column.max_rep_level() > 0 {
        return Err(format!(
            "column `{name}`: expected strings, found {}{}",
            match column.max_rep_level() {
                0 => "",
                _ => "lists of ",
            },
            column.physical_type()
        ));
    }
    Ok(index)
}

/// Refuses what the decoder cannot do, or would allocate memory for on the file's word.
fn check_chunk(file: &mut File, chunk: &ColumnChunkMetaData) -> Result<(), String> {
    match chunk.compression() {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => {}
        other => {
            return Err(format!(
                "expected no compression, snappy or zstd, found {other}"
            ));
        }
    }
    if chunk.file_path().is_some() {
        return Err("its data lies in another file".into());
    }
    let start = chunk
        .dictionary_page_offset()
        .unwrap_or(chunk.data_page_offset());
    let range = u64::try_from(start)
        .ok()
        .zip(u64::try_from(chunk.compressed_size()).ok());
    let (start, length) = range.ok_or("damaged: a negative offset or size")?;
    pages::check(file, start, length)
}

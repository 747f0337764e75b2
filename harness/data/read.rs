//! The documents of a file: all of a text, a field of every JSON line, a column of a Parquet file.

use super::documents::{Documents, MAX_TEXT_BYTES, SMALLER, open};
use super::manifest::Format;
use super::{jsonl, parquet};
use crate::{Error, Result};
use std::io::Read;
use std::path::Path;

/// Reads the documents of a file: `field` of every JSON line or Parquet row, the first `take` of
/// them if that is given.
///
/// # Errors
///
/// Whatever is not as it should be is named by file, line or row, what was expected and what was
/// found: damage, another type, a missing field, text that is not UTF-8, too much of it.
pub fn read(path: &Path, format: Format, field: &str, take: Option<usize>) -> Result<Documents> {
    let documents = match format {
        Format::Text => whole(path)?,
        Format::Jsonl => jsonl::json_lines(path, field, take.unwrap_or(usize::MAX))?,
        Format::Parquet => parquet::column(path, field, take.unwrap_or(usize::MAX))?,
    };
    match take {
        Some(take) if documents.ends.len() < take => Err(Error::file(
            path,
            format!(
                "expected at least {take} documents, found {}",
                documents.ends.len()
            ),
            "The set is defined as that many: get the whole file, or correct `take_documents`.",
        )),
        _ => Ok(documents),
    }
}

/// The whole file as one document.
fn whole(path: &Path) -> Result<Documents> {
    let file = open(path)?;
    let size = file.metadata().map_or(0, |about| about.len());
    if size > MAX_TEXT_BYTES as u64 {
        let what = format!("expected at most {MAX_TEXT_BYTES} bytes, found {size}");
        return Err(Error::file(path, what, SMALLER));
    }
    let mut bytes = Vec::new();
    file.take(MAX_TEXT_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e, "Check the path and its permissions."))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::file(
            path,
            format!(
                "not UTF-8 text: byte {} does not decode",
                e.utf8_error().valid_up_to()
            ),
            "Convert the text to UTF-8.",
        )
    })?;
    let mut documents = Documents::default();
    documents
        .push(&text)
        .map_err(|what| Error::file(path, what, SMALLER))?;
    Ok(documents)
}

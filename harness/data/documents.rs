//! The documents of a text, and how much text is too much.
//!
//! Files are read piece by piece; what is kept never exceeds [`MAX_TEXT_BYTES`].

use crate::{Error, Result};
use std::fs::File;
use std::path::Path;

/// Most text of one set, in bytes: some sixty million tokens.
pub const MAX_TEXT_BYTES: usize = 256 << 20;

/// Most documents of one set; empty ones cost memory too.
const MAX_DOCUMENTS: usize = 1 << 24;

/// Text of several documents, one after the other with nothing between them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Documents {
    pub text: String,
    /// Where each document ends in `text`.
    pub ends: Vec<usize>,
}

impl Documents {
    /// Appends one; says what is too much if it is.
    pub fn push(&mut self, document: &str) -> Result<(), String> {
        if self.text.len() + document.len() > MAX_TEXT_BYTES || self.ends.len() == MAX_DOCUMENTS {
            return Err(format!(
                "expected at most {MAX_DOCUMENTS} documents of {MAX_TEXT_BYTES} bytes in all, \
                 found more"
            ));
        }
        self.text.push_str(document);
        self.ends.push(self.text.len());
        Ok(())
    }
}

pub fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io(path, e, "Check the path and its permissions."))
}

pub const SMALLER: &str = "Take a part of it: `take_documents` in a manifest, or a shorter file.";

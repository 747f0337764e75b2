//! Log-probabilities of a reference model on disk, for others to be compared with.
//!
//! # The file
//! All numbers are little endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`] |
//! | 4 | u32 [`VERSION`] |
//! | 4 | u32 length `n` of the header, at most 1 MiB |
//! | n | header: an [`Address`] as JSON |
//! | 32 | SHA-256 of everything before |
//! | rows × (16 + 2 V) | one row per scored position, in order of text, window and position |
//!
//! A row of a vocabulary of V is
//!
//! | bytes | what |
//! |---|---|
//! | 4 | f32 `step`, NaN where a logit was not finite (the rest then says nothing) |
//! | 4 | f32 `minimum`: the smallest log-probability of the row, in nats |
//! | 4 | u32 id of the most probable token (the smallest of equals) |
//! | 4 | u32 CRC-32 of the rest of the row: the 12 bytes before, then the codes |
//! | 2 V | u16 codes |
//!
//! and `ln p(i) ≈ minimum + step · code(i)` before normalization.
//!
//! # Resolution
//! Every row has its own step: its range of logits over 65535, rounded up. A decoded value is off
//! by an error within ± step / 2, and a reader normalizes again, so that what all errors of a row
//! have in common cancels. Of two distributions `p` and `p̂ ∝ p e^ε` with ε in an interval of width
//! w, neither divergence exceeds w² / 8 (the second derivative of `ln E e^{tε}` is a variance, and
//! the variance on such an interval is at most w² / 4). So a distribution compared with its own
//! stored form comes out below `step² / 8`: 3e-8 nats where logits span 32.
//!
//! # Content address
//! The header names everything that the rows depend on. A reader says what it expects and refuses
//! a file with another header, so that a stale file cannot be taken for the right one.

use super::quality::ScoredRows;
use super::softmax::{self, Range};
use crate::memory::{self, Part};
use crate::packed::cpu::{self, Path as Instructions};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

pub const MAGIC: [u8; 8] = *b"QBLOGPRB";
/// Raised when the layout changes.
pub const VERSION: u32 = 2;
const MOST_HEADER_BYTES: u32 = 1 << 20;
const HASH_BYTES: usize = 32;
const ROW_HEAD_BYTES: usize = 16;
/// Rows are encoded and read in blocks of about this size.
const BLOCK_BYTES: usize = 8 << 20;

const DAMAGED: &str = "the file is damaged or belongs to another run; measure the reference again";
const NO_ROOM: &str =
    "make room on the disk, or compare fewer tokens (--kl-cache BYTES) or none (--no-kl)";

/// What the rows of a file are: whose, of which texts, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Hash of the model's weights as its source has them.
    pub weights_sha256: String,
    pub tokenizer_sha256: String,
    /// Precision id.
    pub precision: String,
    /// Hash of the packed weights that ran: a name or an id does not say what a method was calibrated
    /// on, nor what a folder holds.
    pub packed_sha256: String,
    /// Precision of the KV cache.
    pub kv_cache: String,
    /// Protocol id.
    pub protocol: String,
    /// Where the model ran, and in which version of this program: kernels round differently.
    pub device: String,
    pub program: String,
    pub vocab_size: usize,
    pub texts: Vec<AddressedText>,
}

/// The part of a text that the rows are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressedText {
    /// Hash of its token ids.
    pub ids_sha256: String,
    /// The first so many of its windows.
    pub windows: usize,
    /// Scored tokens in these windows.
    pub scored_tokens: u64,
}

impl Address {
    /// Rows of the file.
    pub fn scored_tokens(&self) -> u64 {
        let tokens = self.texts.iter().map(|t| t.scored_tokens);
        tokens.fold(0, u64::saturating_add)
    }

    /// Whether the rows of this window are kept.
    pub(super) fn covers(&self, text: usize, window: usize) -> bool {
        self.texts.get(text).is_some_and(|t| window < t.windows)
    }

    fn json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::defect(format!("a header of {e}")))
    }
}

/// Bytes of one row of a vocabulary.
pub fn row_bytes(vocab_size: usize) -> usize {
    ROW_HEAD_BYTES + 2 * vocab_size
}

/// Rows of a block.
fn block_rows(vocab_size: usize) -> usize {
    (BLOCK_BYTES / row_bytes(vocab_size)).max(1)
}

/// Writes the file of a reference; it has its name only once it is whole.
pub struct Writer {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    address: Address,
    rows_left: u64,
    instructions: Instructions,
    block: Vec<u8>,
}

impl Writer {
    /// [`Error::Io`] where `path` cannot be written.
    pub fn create(path: &Path, address: Address) -> Result<Self> {
        let partial = path.with_extension("partial");
        let mut file = File::create(&partial).map_err(|e| Error::io(&partial, e, NO_ROOM))?;
        let json = address.json()?;
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((json.len() as u32).to_le_bytes());
        head.extend(json.as_bytes());
        let hash = Sha256::digest(&head);
        head.extend(hash);
        file.write_all(&head)
            .map_err(|e| Error::io(&partial, e, NO_ROOM))?;
        Ok(Writer {
            path: path.into(),
            partial,
            file,
            rows_left: address.scored_tokens(),
            address,
            instructions: cpu::path()?,
            block: vec![],
        })
    }

    /// Appends rows, unless they are of a window that is not kept.
    pub fn append(&mut self, rows: &ScoredRows) -> Result<()> {
        if !self.address.covers(rows.text, rows.window) {
            return Ok(());
        }
        let vocab = self.address.vocab_size;
        let count = rows.targets.len() as u64;
        if rows.logits.len() != rows.targets.len() * vocab || count > self.rows_left {
            return Err(self.miscounted());
        }
        self.rows_left -= count;
        let instructions = self.instructions;
        for logits in rows.logits.chunks(block_rows(vocab) * vocab) {
            let bytes = logits.len() / vocab * row_bytes(vocab);
            let block = &mut self.block;
            memory::scope(Part::Workspace, || block.resize(bytes, 0));
            block
                .par_chunks_exact_mut(row_bytes(vocab))
                .zip(logits.par_chunks_exact(vocab))
                .for_each(|(row, logits)| encode(instructions, logits, row));
            self.file
                .write_all(&self.block)
                .map_err(|e| Error::io(&self.partial, e, NO_ROOM))?;
        }
        Ok(())
    }

    /// Gives the file its name. Fails if rows are missing.
    pub fn finish(self) -> Result<()> {
        if self.rows_left > 0 {
            return Err(self.miscounted());
        }
        std::fs::rename(&self.partial, &self.path).map_err(|e| Error::io(&self.path, e, NO_ROOM))
    }

    fn miscounted(&self) -> Error {
        Error::file(
            &self.path,
            format!(
                "it was made for {} rows of {}, and the model gives others",
                self.address.scored_tokens(),
                self.address.vocab_size
            ),
            "report this as a defect",
        )
    }
}

/// Writes one row; `row` has [`row_bytes`] of the vocabulary.
fn encode(instructions: Instructions, logits: &[f32], row: &mut [u8]) {
    let (head, codes) = row.split_at_mut(ROW_HEAD_BYTES);
    let (step, minimum, top) = match softmax::range(instructions, logits) {
        None => {
            codes.fill(0);
            (f32::NAN, f32::NAN, 0)
        }
        Some(Range { min, max, top }) => {
            let (low, high) = (f64::from(min), f64::from(max));
            let step = step_of(high - low);
            softmax::encode(instructions, logits, low, f64::from(step), codes);
            let log_sum = softmax::exp_sum(instructions, logits, high).ln() + high;
            (step, (low - log_sum) as f32, top as u32)
        }
    };
    head[..4].copy_from_slice(&step.to_le_bytes());
    head[4..8].copy_from_slice(&minimum.to_le_bytes());
    head[8..12].copy_from_slice(&top.to_le_bytes());
    let crc = row_crc(head, codes);
    head[12..].copy_from_slice(&crc.to_le_bytes());
}

/// The smallest F32 step whose 65535 multiples cover `span`.
fn step_of(span: f64) -> f32 {
    let exact = span / 65535.0;
    let step = exact as f32;
    match f64::from(step) < exact {
        true => step.next_up(),
        false => step,
    }
}

fn row_crc(head: &[u8], codes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..12]);
    crc.update(codes);
    crc.finalize()
}

/// One row as it is stored.
pub(super) struct Row<'a> {
    pub(super) step: f64,
    /// Id of the most probable token.
    pub(super) top: usize,
    /// Two bytes per token of the vocabulary.
    pub(super) codes: &'a [u8],
}

impl Row<'_> {
    pub(super) fn code(&self, token: usize) -> u16 {
        u16::from_le_bytes([self.codes[2 * token], self.codes[2 * token + 1]])
    }

    /// Upper bound of the divergence of the row from the one that it was made of, in nats.
    pub(super) fn resolution_nats(&self) -> f64 {
        self.step * self.step / 8.0
    }
}

/// Rows that were read together.
pub(super) struct Block<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
}

impl Block<'_> {
    /// Row `i`; `None` where the reference was not finite. Says in words what is damaged.
    pub(super) fn row(&self, i: usize) -> std::result::Result<Option<Row<'_>>, &'static str> {
        let row = &self.bytes[i * self.row_bytes..(i + 1) * self.row_bytes];
        let (head, codes) = row.split_at(ROW_HEAD_BYTES);
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        if row_crc(head, codes) != u32::from_le_bytes(word(12)) {
            return Err("its check sum is wrong");
        }
        let step = f32::from_le_bytes(word(0));
        if step.is_nan() {
            return Ok(None);
        }
        let top = u32::from_le_bytes(word(8)) as usize;
        if !(step.is_finite() && step >= 0.0) || top >= codes.len() / 2 {
            return Err("its step or its most probable token is impossible");
        }
        Ok(Some(Row {
            step: f64::from(step),
            top,
            codes,
        }))
    }
}

/// Reads the file of a reference from its first row to its last.
pub struct Reader {
    path: PathBuf,
    file: File,
    address: Address,
    rows_left: u64,
    block: Vec<u8>,
}

impl Reader {
    /// Opens the file of this reference. [`Error::Io`] if it cannot be read, [`Error::File`] if
    /// it is something else, of something else, damaged or cut short.
    pub fn open(path: &Path, address: Address) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io(path, e, DAMAGED))?;
        let length = file
            .metadata()
            .map_err(|e| Error::io(path, e, DAMAGED))?
            .len();
        let wrong = |what: String| Error::file(path, what, DAMAGED);
        let head = read_head(&mut file, length).map_err(&wrong)?;
        let json = &head[MAGIC.len() + 8..];
        let found: Address = serde_json::from_slice(json)
            .map_err(|e| wrong(format!("its header is not readable: {e}")))?;
        if found != address {
            return Err(wrong("it is of another model, text or protocol".into()));
        }
        let rows = address.scored_tokens();
        let expected = rows
            .checked_mul(row_bytes(address.vocab_size) as u64)
            .and_then(|bytes| bytes.checked_add((head.len() + HASH_BYTES) as u64));
        if expected != Some(length) {
            return Err(wrong(format!(
                "{length} bytes are not what {rows} rows of {} take",
                address.vocab_size
            )));
        }
        Ok(Reader {
            path: path.into(),
            file,
            address,
            rows_left: rows,
            block: vec![],
        })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Calls `compare` with the rows that belong to these, block by block, and their targets and
    /// logits.
    pub(super) fn alongside(
        &mut self,
        rows: &ScoredRows,
        mut compare: impl FnMut(
            &Block,
            &[u32],
            &[f32],
        ) -> std::result::Result<(), (usize, &'static str)>,
    ) -> Result<()> {
        let vocab = self.address.vocab_size;
        let count = rows.targets.len() as u64;
        if rows.logits.len() != rows.targets.len() * vocab || count > self.rows_left {
            return Err(self.wrong(format!(
                "its rows of {vocab} are not those that this model gives"
            )));
        }
        let row_bytes = row_bytes(vocab);
        let at_once = block_rows(vocab);
        let pieces = rows.targets.chunks(at_once);
        for (targets, logits) in pieces.zip(rows.logits.chunks(at_once * vocab)) {
            let block = &mut self.block;
            let bytes = targets.len() * row_bytes;
            memory::scope(Part::Workspace, || block.resize(bytes, 0));
            self.file
                .read_exact(block)
                .map_err(|e| Error::io(&self.path, e, DAMAGED))?;
            let bytes = self.block.as_slice();
            let number = self.address.scored_tokens() - self.rows_left;
            self.rows_left -= targets.len() as u64;
            compare(&Block { bytes, row_bytes }, targets, logits).map_err(|(row, what)| {
                self.wrong(format!("row {}: {what}", number + row as u64))
            })?;
        }
        Ok(())
    }

    /// Fails if the model gave fewer rows than the file holds.
    pub fn finish(self) -> Result<()> {
        match self.rows_left {
            0 => Ok(()),
            left => Err(self.wrong(format!("{left} of its rows were not compared"))),
        }
    }

    fn wrong(&self, what: String) -> Error {
        Error::file(&self.path, what, DAMAGED)
    }
}

/// Magic, version, length and header, after their hash has been checked. Allocates no more than
/// the file holds.
fn read_head(file: &mut File, length: u64) -> std::result::Result<Vec<u8>, String> {
    let cut = |e: std::io::Error| format!("it ends in its header ({e})");
    let mut head = vec![0; MAGIC.len() + 8];
    file.read_exact(&mut head).map_err(cut)?;
    let (magic, rest) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("it holds no log-probabilities".into());
    }
    let word = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
    let (version, header_bytes) = (word(0), word(4));
    if version != VERSION {
        return Err(format!("layout version {version}, expected {VERSION}"));
    }
    if header_bytes > MOST_HEADER_BYTES || u64::from(header_bytes) > length {
        return Err(format!("a header of {header_bytes} bytes"));
    }
    head.resize(head.len() + header_bytes as usize, 0);
    file.read_exact(&mut head[MAGIC.len() + 8..]).map_err(cut)?;
    let mut hash = [0; HASH_BYTES];
    file.read_exact(&mut hash).map_err(cut)?;
    match Sha256::digest(&head)[..] == hash {
        true => Ok(head),
        false => Err("its header does not match its check sum".into()),
    }
}

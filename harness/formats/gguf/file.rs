//! A GGUF file (versions 2 and 3, little-endian), memory-mapped.
//!
//! The header is read with our own parser, because the file is not trusted: a count is checked
//! against the bytes that are left before anything is built from it, arithmetic is checked for
//! overflow, arrays stay where they are in the file, and every tensor must lie in the file.
//! Blocks are widened to F32 with candle's types, which follow ggml's definitions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

use crate::formats::source::{Bytes, Float};
use crate::{Error, Result};

pub(crate) const MAGIC: &[u8] = b"GGUF";

/// Arrays in arrays deeper than this are refused (real files have none at all).
const MAX_DEPTH: usize = 4;
const MAX_DIMENSIONS: u32 = 4;
/// Larger than any page; a bigger alignment is damage.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// How a tensor's elements are stored: blocks of `elements` in `bytes`.
#[derive(Clone, Copy)]
pub(super) struct Type {
    pub(super) id: u32,
    pub(super) name: &'static str,
    pub(super) elements: usize,
    pub(super) bytes: usize,
    pub(super) decode: Decode,
}

#[derive(Clone, Copy)]
pub(super) enum Decode {
    Float(Float),
    Blocks(GgmlDType),
}

const fn float(id: u32, name: &'static str, bytes: usize, float: Float) -> Type {
    Type {
        id,
        name,
        elements: 1,
        bytes,
        decode: Decode::Float(float),
    }
}

const fn blocks(
    id: u32,
    name: &'static str,
    elements: usize,
    bytes: usize,
    blocks: GgmlDType,
) -> Type {
    Type {
        id,
        name,
        elements,
        bytes,
        decode: Decode::Blocks(blocks),
    }
}

/// ggml's type ids that can be read.
const TYPES: &[Type] = &[
    float(0, "F32", 4, Float::F32),
    float(1, "F16", 2, Float::F16),
    float(30, "BF16", 2, Float::BF16),
    blocks(2, "Q4_0", 32, 18, GgmlDType::Q4_0),
    blocks(3, "Q4_1", 32, 20, GgmlDType::Q4_1),
    blocks(6, "Q5_0", 32, 22, GgmlDType::Q5_0),
    blocks(7, "Q5_1", 32, 24, GgmlDType::Q5_1),
    blocks(8, "Q8_0", 32, 34, GgmlDType::Q8_0),
    blocks(10, "Q2_K", 256, 84, GgmlDType::Q2K),
    blocks(11, "Q3_K", 256, 110, GgmlDType::Q3K),
    blocks(12, "Q4_K", 256, 144, GgmlDType::Q4K),
    blocks(13, "Q5_K", 256, 176, GgmlDType::Q5K),
    blocks(14, "Q6_K", 256, 210, GgmlDType::Q6K),
];

/// Names of ids that cannot be read, for the refusal.
const OTHER_TYPES: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// A metadata value. Strings and arrays are ranges of the file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Checked to be UTF-8.
    String(Span),
    /// `count` elements of type `kind`, checked to lie in the file.
    Array {
        kind: u32,
        count: u64,
        start: usize,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

pub(super) struct Tensor {
    pub(super) kind: Type,
    /// Row-major, slowest first (GGUF writes the fastest first).
    pub(super) shape: Vec<usize>,
    pub(super) span: Span,
}

/// A parsed file: metadata and tensor table, nothing yet said about the model in it.
pub(crate) struct Gguf {
    pub(super) path: PathBuf,
    pub(super) bytes: Bytes,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// A bounds-checked reader of the header.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn damaged(&self, what: impl std::fmt::Display) -> Error {
        damaged(self.path, what)
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        if count > self.remaining() as u64 {
            return Err(self.damaged(format!(
                "{what} at byte {} claims {count} bytes, but only {} are left",
                self.at,
                self.remaining()
            )));
        }
        let start = self.at;
        self.at += count as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        let mut out = [0; N];
        out.copy_from_slice(bytes);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: u64, what: &str) -> Result<u64> {
        let count = self.u64(what)?;
        if count > self.remaining() as u64 / least {
            return Err(self.damaged(format!(
                "{what} is {count}, which the {} bytes that are left cannot hold",
                self.remaining()
            )));
        }
        Ok(count)
    }

    fn span(&mut self, what: &str) -> Result<Span> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        if let Err(e) = std::str::from_utf8(bytes) {
            return Err(self.damaged(format!("{what} is not UTF-8: {e}")));
        }
        Ok(Span {
            start: self.at - bytes.len(),
            end: self.at,
        })
    }

    fn string(&mut self, what: &str) -> Result<&'a str> {
        let span = self.span(what)?;
        // `span` checked it.
        Ok(std::str::from_utf8(&self.bytes[span.start..span.end]).unwrap_or_default())
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => match self.array::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(self.damaged(format!("{key} is {other}, not a bool"))),
            },
            8 => Value::String(self.span(key)?),
            9 => {
                let kind = self.u32(key)?;
                let least = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    8 | 10..=12 => 8,
                    9 => 12,
                    _ => return Err(self.damaged(format!("{key} has unknown type {kind}"))),
                };
                let count = self.count(least, key)?;
                if kind == 9 && depth >= MAX_DEPTH {
                    return Err(self.damaged(format!("{key} nests arrays too deeply")));
                }
                let start = self.at;
                if matches!(kind, 7..=9) {
                    for _ in 0..count {
                        self.value(kind, key, depth + 1)?;
                    }
                } else {
                    // Cannot overflow: `count` elements were found to fit.
                    self.take(count * least, key)?;
                }
                Value::Array { kind, count, start }
            }
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(self.damaged(format!("{key} has unknown type {kind}"))),
        })
    }
}

pub(super) fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::file(
        path,
        format!("damaged GGUF: {what}"),
        "Download the file again.",
    )
}

impl Gguf {
    /// Maps and parses the file; every tensor's bytes lie in it afterwards.
    pub(crate) fn open(path: &Path) -> Result<Gguf> {
        let bytes = Bytes::map(path)?;
        let mut cursor = Cursor {
            path,
            bytes: &bytes,
            at: 0,
        };
        let (metadata, tensors) = parse(&mut cursor)?;
        Ok(Gguf {
            path: path.to_path_buf(),
            bytes,
            metadata,
            tensors,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(&self.bytes[span.start..span.end]).unwrap_or_default()
    }

    fn wrong(&self, key: &str, wanted: &str) -> Error {
        damaged(&self.path, format!("`{key}` is not {wanted}"))
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(span)) => Ok(Some(self.text(*span))),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a bool")),
        }
    }

    /// A number that fits 32 bits: counts, sizes and token ids.
    pub(crate) fn count(&self, key: &str) -> Result<Option<u32>> {
        let value = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(value)) => u32::try_from(*value).ok(),
            Some(Value::Signed(value)) => u32::try_from(*value).ok(),
            Some(_) => None,
        };
        value
            .map(Some)
            .ok_or_else(|| self.wrong(key, "one number of at most 32 bits"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(Value::Unsigned(value)) => Ok(Some(*value as f64)),
            Some(Value::Signed(value)) => Ok(Some(*value as f64)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// An array of strings.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let elements = self.elements(key, 8, "an array of strings")?;
        Ok(elements.map(|values| {
            values
                .into_iter()
                .filter_map(|value| match value {
                    Value::String(span) => Some(self.text(span)),
                    _ => None,
                })
                .collect()
        }))
    }

    /// An array of 32-bit integers.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let elements = self.elements(key, 5, "an array of 32-bit integers")?;
        Ok(elements.map(|values| {
            values
                .into_iter()
                .filter_map(|value| match value {
                    Value::Signed(value) => Some(value),
                    _ => None,
                })
                .collect()
        }))
    }

    pub(super) fn elements(
        &self,
        key: &str,
        wanted: u32,
        words: &str,
    ) -> Result<Option<Vec<Value>>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Array { kind, count, start }) if kind == wanted => {
                let mut cursor = Cursor {
                    path: &self.path,
                    bytes: &self.bytes,
                    at: start,
                };
                (0..count)
                    .map(|_| cursor.value(kind, key, 0))
                    .collect::<Result<Vec<_>>>()
                    .map(Some)
            }
            Some(_) => Err(self.wrong(key, words)),
        }
    }

    /// The tensor as row-major F32, rows in the file's order.
    pub(super) fn dequantize(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let bytes = &self.bytes[tensor.span.start..tensor.span.end];
        let blocks = match tensor.kind.decode {
            Decode::Float(float) => return Ok(float.to_f32(bytes)),
            Decode::Blocks(blocks) => blocks,
        };
        // In pieces, because candle copies blocks and result once each.
        const BLOCKS: usize = 4096;
        let mut values = Vec::with_capacity(tensor.shape.iter().product());
        for piece in bytes.chunks(BLOCKS * tensor.kind.bytes) {
            let count = piece.len() / tensor.kind.bytes * tensor.kind.elements;
            let storage = QStorage::from_data(Cow::Borrowed(piece), &Device::Cpu, blocks)?;
            let piece = QTensor::new(storage, count)?.dequantize(&Device::Cpu)?;
            values.extend(piece.to_vec1::<f32>()?);
        }
        Ok(values)
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, Tensor>);

fn parse(cursor: &mut Cursor) -> Result<Header> {
    if cursor.take(4, "the magic")? != MAGIC {
        return Err(cursor.damaged("it does not begin with `GGUF`"));
    }
    let version = cursor.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(Error::unsupported(
            if version.swap_bytes() <= 3 {
                format!("{}: big-endian GGUF", cursor.path.display())
            } else {
                format!("{}: GGUF version {version}", cursor.path.display())
            },
            "Convert the model again with a current tool, to little-endian version 3.",
        ));
    }
    // A tensor takes at least name length, dimension count, type and offset; a value at least
    // key length, type and one byte.
    let tensor_count = cursor.count(24, "the number of tensors")?;
    let value_count = cursor.count(13, "the number of metadata values")?;

    let mut metadata = BTreeMap::new();
    for _ in 0..value_count {
        let key = cursor.string("a metadata key")?;
        let kind = cursor.u32(key)?;
        let value = cursor.value(kind, key, 0)?;
        if metadata.insert(key.to_string(), value).is_some() {
            return Err(cursor.damaged(format!("`{key}` is there twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(a)) if a.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(a) => *a,
        Some(other) => {
            return Err(cursor.damaged(format!(
                "`general.alignment` is {other:?}, not a power of two from 8 to {MAX_ALIGNMENT}"
            )));
        }
    };

    // Offsets count from the data's start, which is known only after the last entry.
    let mut table = Vec::new();
    for _ in 0..tensor_count {
        table.push(tensor_entry(cursor, alignment)?);
    }
    let data = (cursor.at as u64)
        .checked_next_multiple_of(alignment)
        .and_then(|at| usize::try_from(at).ok())
        .ok_or_else(|| cursor.damaged("its header is too long"))?;

    let mut tensors = BTreeMap::new();
    let mut spans = Vec::new();
    for (name, kind, shape, offset, size) in table {
        let end = usize::try_from(offset)
            .ok()
            .and_then(|offset| data.checked_add(offset))
            .and_then(|start| Some((start, start.checked_add(size)?)))
            .filter(|&(_, end)| end <= cursor.bytes.len());
        let Some((start, end)) = end else {
            return Err(cursor.damaged(format!(
                "tensor `{name}` needs {size} bytes at {offset} after byte {data}, but the file \
                 has {} bytes",
                cursor.bytes.len()
            )));
        };
        spans.push((start, end, name));
        let tensor = Tensor {
            kind,
            shape,
            span: Span { start, end },
        };
        if tensors.insert(name.to_string(), tensor).is_some() {
            return Err(cursor.damaged(format!("tensor `{name}` is there twice")));
        }
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(cursor.damaged(format!(
                "tensors `{}` and `{}` overlap",
                pair[0].2, pair[1].2
            )));
        }
    }
    Ok((metadata, tensors))
}

/// One row of the tensor table: name, type, shape, offset from the data's start, bytes.
type Entry<'a> = (&'a str, Type, Vec<usize>, u64, usize);

fn tensor_entry<'a>(cursor: &mut Cursor<'a>, alignment: u64) -> Result<Entry<'a>> {
    let name = cursor.string("a tensor's name")?;
    let dimensions = cursor.u32(name)?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(cursor.damaged(format!("tensor `{name}` has {dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        match usize::try_from(cursor.u64(name)?) {
            Ok(d) if d > 0 => shape.push(d),
            _ => {
                return Err(cursor.damaged(format!(
                    "tensor `{name}` has a dimension of zero or beyond this machine"
                )));
            }
        }
    }
    let id = cursor.u32(name)?;
    let Some(kind) = TYPES.iter().find(|t| t.id == id) else {
        let known = OTHER_TYPES.iter().find(|(other, _)| *other == id);
        return Err(Error::unsupported(
            format!(
                "{}: tensor `{name}` has type {}",
                cursor.path.display(),
                known.map_or_else(|| format!("{id}"), |(_, name)| name.to_string())
            ),
            format!(
                "Use a file whose tensors are of the types {}.",
                TYPES.iter().map(|t| t.name).collect::<Vec<_>>().join(", ")
            ),
        ));
    };
    let offset = cursor.u64(name)?;
    if !offset.is_multiple_of(alignment) {
        return Err(cursor.damaged(format!(
            "tensor `{name}` at offset {offset} is not aligned to {alignment}"
        )));
    }
    if !shape[0].is_multiple_of(kind.elements) {
        return Err(cursor.damaged(format!(
            "tensor `{name}` has rows of {}, not a multiple of the {} of a {} block",
            shape[0], kind.elements, kind.name
        )));
    }
    let size = shape[1..]
        .iter()
        .try_fold(shape[0] / kind.elements, |n, &d| n.checked_mul(d))
        .and_then(|blocks| blocks.checked_mul(kind.bytes))
        // So that the element count cannot overflow either.
        .filter(|_| {
            shape
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d))
                .is_some()
        })
        .ok_or_else(|| {
            cursor.damaged(format!("tensor `{name}` of shape {shape:?} is too large"))
        })?;
    shape.reverse();
    Ok((name, *kind, shape, offset, size))
}

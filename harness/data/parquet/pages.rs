//! What the page headers of a Parquet column claim, read before the decoder acts on it: it
//! allocates as much as a header says.
//!
//! Headers are structures of Thrift's compact protocol (parquet-format, parquet.thrift,
//! `PageHeader`): each field is a byte of type and distance from the id before, then its value.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// Most bytes of one page, decompressed; writers make pages of about one MiB.
const MAX_PAGE_BYTES: i64 = 64 << 20;

/// Encodings of a page of strings (`Encoding` in parquet.thrift).
const PLAIN: i64 = 0;
const PLAIN_DICTIONARY: i64 = 2;
const RLE_DICTIONARY: i64 = 8;

/// Checks every page of the chunk of `length` bytes at `start`.
pub(super) fn check(file: &mut File, start: u64, length: u64) -> Result<(), String> {
    let io = |e: std::io::Error| format!("damaged: {e}");
    let size = file.metadata().map_err(io)?.len();
    let end = start
        .checked_add(length)
        .filter(|end| *end <= size)
        .ok_or_else(|| {
            format!("expected its {length} bytes at {start} within the file's {size} bytes")
        })?;
    let mut at = start;
    while at < end {
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut input = Compact {
            input: BufReader::with_capacity(512, (&mut *file).take(end - at)),
            consumed: 0,
        };
        let page = input
            .page()
            .map_err(|what| format!("damaged: page header at byte {at}: {what}"))?;
        page.check()
            .map_err(|what| format!("page at byte {at}: {what}"))?;
        at = at
            .checked_add(input.consumed + page.compressed_bytes as u64)
            .filter(|next| *next <= end)
            .ok_or_else(|| {
                format!(
                    "damaged: page at byte {at}: expected at most {} bytes, found a claim of {}",
                    end - at,
                    page.compressed_bytes
                )
            })?;
    }
    Ok(())
}

/// The fields of a page header that cost memory.
#[derive(Default)]
struct Page {
    bytes: i64,
    compressed_bytes: i64,
    values: i64,
    encoding: i64,
    dictionary: bool,
}

impl Page {
    fn check(&self) -> Result<(), String> {
        if !(0..=MAX_PAGE_BYTES).contains(&self.bytes) || self.compressed_bytes < 0 {
            return Err(format!(
                "expected at most {MAX_PAGE_BYTES} bytes, found a claim of {}",
                self.bytes
            ));
        }
        // A string of a dictionary takes at least its length of four bytes.
        if self.values < 0 || (self.dictionary && self.values > self.bytes / 4) {
            return Err(format!(
                "damaged: a claim of {} strings in {} bytes",
                self.values, self.bytes
            ));
        }
        match self.encoding {
            PLAIN | PLAIN_DICTIONARY | RLE_DICTIONARY => Ok(()),
            other => Err(format!(
                "expected strings stored plainly or by dictionary, found encoding {other}"
            )),
        }
    }
}

/// A reader of Thrift's compact protocol.
struct Compact<R> {
    input: R,
    consumed: u64,
}

/// Type numbers of the protocol.
const STOP: u8 = 0;
const STRUCT: u8 = 12;

/// Levels of nesting; a page header has three.
const MAX_DEPTH: usize = 8;

impl<R: Read> Compact<R> {
    fn page(&mut self) -> Result<Page, String> {
        let mut page = Page::default();
        let mut id = 0;
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (2, 5) => page.bytes = self.integer()?,
                (3, 5) => page.compressed_bytes = self.integer()?,
                // Data page, dictionary page, data page of version 2.
                (5 | 7 | 8, STRUCT) => {
                    page.dictionary = id == 7;
                    let encoding_id = if id == 8 { 4 } else { 2 };
                    let mut inner = 0;
                    while let Some(kind) = self.field(&mut inner)? {
                        match (inner, kind) {
                            (1, 5) => page.values = self.integer()?,
                            (i, 5) if i == encoding_id => page.encoding = self.integer()?,
                            _ => self.skip(kind, 1)?,
                        }
                    }
                }
                _ => self.skip(kind, 0)?,
            }
        }
        Ok(page)
    }

    /// The type of the next field, its number in `id`; `None` at the end of the structure.
    fn field(&mut self, id: &mut i64) -> Result<Option<u8>, String> {
        let byte = self.byte()?;
        if byte == STOP {
            return Ok(None);
        }
        *id = match byte >> 4 {
            0 => self.integer()?,
            distance => id.wrapping_add(i64::from(distance)),
        };
        Ok(Some(byte & 15))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err("nested too deeply".into());
        }
        match kind {
            // A boolean is in its type.
            1 | 2 => Ok(()),
            3 => self.byte().map(|_| ()),
            4..=6 => self.varint().map(|_| ()),
            7 => self.pass(8),
            8 => {
                let bytes = self.varint()?;
                self.pass(bytes)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => self.varint()?,
                    short => u64::from(short),
                };
                for _ in 0..count {
                    match head & 15 {
                        1 | 2 => self.byte().map(|_| ())?,
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
                Ok(())
            }
            STRUCT => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            other => Err(format!("no field has type {other}")),
        }
    }

    fn byte(&mut self) -> Result<u8, String> {
        let mut byte = [0];
        self.input
            .read_exact(&mut byte)
            .map_err(|_| "it ends too early".to_string())?;
        self.consumed += 1;
        Ok(byte[0])
    }

    fn pass(&mut self, bytes: u64) -> Result<(), String> {
        let passed = std::io::copy(&mut (&mut self.input).take(bytes), &mut std::io::sink())
            .map_err(|e| e.to_string())?;
        self.consumed += passed;
        match passed == bytes {
            true => Ok(()),
            false => Err("it ends too early".into()),
        }
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("a number of more than 64 bits".into())
    }

    /// A signed number: positive and negative take turns.
    fn integer(&mut self) -> Result<i64, String> {
        self.varint().map(|n| (n >> 1) as i64 ^ -((n & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A signed number as the protocol writes it.
    fn number(n: i64) -> Vec<u8> {
        let mut rest = ((n << 1) ^ (n >> 63)) as u64;
        let mut bytes = vec![];
        while rest > 127 {
            bytes.push((rest & 127) as u8 | 128);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    }

    /// A page of `compressed` bytes whose header claims these numbers; `kind` is the field of the
    /// inner structure: 5 for data, 7 for a dictionary.
    fn page(bytes: i64, claimed: i64, kind: u8, values: i64, encoding: i64) -> Vec<u8> {
        let i32s = |numbers: &[i64]| -> Vec<u8> {
            let fields = numbers.iter().map(|n| [vec![0x15], number(*n)].concat());
            fields.collect::<Vec<_>>().concat()
        };
        [
            i32s(&[0, bytes, claimed]),
            vec![((kind - 3) << 4) | STRUCT],
            i32s(&[values, encoding]),
            // Field 5 of the inner structure, to be passed over: a structure with a string.
            vec![0x3c, 0x18, 3, b'a', b'b', b'c', STOP, STOP, STOP],
            b"page".to_vec(),
        ]
        .concat()
    }

    fn checked(bytes: &[u8], length: u64) -> Result<(), String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"PAR1").unwrap();
        file.write_all(bytes).unwrap();
        check(&mut file, 4, length)
    }

    #[test]
    fn claims_are_held_against_what_is_there() {
        let whole = |page: &[u8]| checked(page, page.len() as u64);
        let good = page(4, 4, 5, 2, PLAIN);
        assert_eq!(whole(&good), Ok(()));
        assert_eq!(
            whole(&[good.clone(), page(9, 4, 7, 2, PLAIN_DICTIONARY)].concat()),
            Ok(())
        );
        for (page, word) in [
            (page(i64::from(i32::MAX), 4, 5, 2, PLAIN), "67108864"),
            (page(-1, 4, 5, 2, PLAIN), "claim of -1"),
            (
                page(4, i64::from(i32::MAX), 5, 2, PLAIN),
                "claim of 2147483647",
            ),
            (page(4, 5, 5, 2, PLAIN), "at most"),
            (page(4, -5, 5, 2, PLAIN), "at most"),
            (
                page(8, 4, 7, 1 << 30, PLAIN),
                "1073741824 strings in 8 bytes",
            ),
            (page(8, 4, 5, -1, PLAIN), "-1 strings"),
            (page(4, 4, 5, 2, 6), "encoding 6"),
            (good[..9].to_vec(), "too early"),
            ([&[0xfd; 1][..], &good].concat(), "type 13"),
        ] {
            let text = whole(&page).unwrap_err();
            assert!(text.contains(word), "{text}");
        }
        assert!(checked(&good, 1 << 40).unwrap_err().contains("within"));
        assert!(checked(&good, u64::MAX).is_err());
        // A list that claims more than the file holds, and one nested without end.
        let list = [vec![0x19, 0xf8], vec![0xff; 9], vec![1]].concat();
        assert!(whole(&list).unwrap_err().contains("too early"));
        let nested = [vec![0x1c; 100], vec![0; 100]].concat();
        assert!(whole(&nested).unwrap_err().contains("nested"));
    }
}

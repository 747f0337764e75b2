//! A field of every line of a JSONL file, read line by line.

use super::documents::{Documents, SMALLER, open};
use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Longest line of a JSONL file.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// `field` of the first `take` lines that are not blank.
pub fn json_lines(path: &Path, field: &str, take: usize) -> Result<Documents> {
    let mut input = BufReader::new(open(path)?);
    let start = input
        .fill_buf()
        .map_err(|e| Error::io(path, e, "Check the path and its permissions."))?;
    let mut input: Box<dyn BufRead> = match start.starts_with(&[0x1f, 0x8b]) {
        true => Box::new(BufReader::new(MultiGzDecoder::new(input))),
        false => Box::new(input),
    };
    let mut documents = Documents::default();
    let mut bytes = Vec::new();
    let mut line = 0;
    while documents.ends.len() < take {
        line += 1;
        bytes.clear();
        let damaged = |what: String| Error::file(path, format!("line {line}: {what}"), REPAIR);
        let read = (&mut input)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(|e| damaged(format!("it cannot be read on: {e}")))?;
        if read == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(damaged(format!(
                "expected at most {MAX_LINE_BYTES} bytes, found more"
            )));
        }
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            damaged(format!(
                "not UTF-8 text: byte {} of the line does not decode",
                e.valid_up_to()
            ))
        })?;
        if !text.trim().is_empty() {
            let document = field_of(text, field).map_err(damaged)?;
            documents
                .push(&document)
                .map_err(|what| Error::file(path, format!("line {line}: {what}"), SMALLER))?;
        }
    }
    Ok(documents)
}

const REPAIR: &str = "Give a file with one JSON object a line and the text in one of its fields; \
                      name that field as FILE#FIELD or in a manifest (datasets/README.md).";

/// The string in one field of a JSON object; other fields are passed over unread.
fn field_of(line: &str, field: &str) -> Result<String, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let found = Shallow(Some(field))
        .deserialize(&mut json)
        .and_then(|found| json.end().map(|()| found))
        .map_err(|e| match e.column() {
            0 => format!("not valid JSON: {e}"),
            column => format!("not valid JSON at column {column}: {e}"),
        })?;
    match found {
        Shape::Field(inner) => match *inner {
            Shape::Text(text) => Ok(text),
            other => Err(format!(
                "field `{field}`: expected a string, found {}",
                other.word()
            )),
        },
        Shape::Object(names) => Err(format!(
            "expected a field `{field}`, found {}",
            match names.is_empty() {
                true => "none".into(),
                false => names.join(", "),
            }
        )),
        other => Err(format!("expected a JSON object, found {}", other.word())),
    }
}

/// A JSON value, looked at no deeper than needed.
enum Shape {
    Text(String),
    Number,
    Boolean,
    Null,
    List,
    /// The names of its first fields, quoted.
    Object(Vec<String>),
    /// What stands in the field that was asked for.
    Field(Box<Shape>),
}

impl Shape {
    fn word(&self) -> &'static str {
        match self {
            Shape::Text(_) => "a string",
            Shape::Number => "a number",
            Shape::Boolean => "a boolean",
            Shape::Null => "null",
            Shape::List => "a list",
            Shape::Object(_) | Shape::Field(_) => "an object",
        }
    }
}

/// Reads a [`Shape`]; with a name, that field of an object.
struct Shallow<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for Shallow<'_> {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Shape, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shallow<'_> {
    type Value = Shape;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Boolean)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<Shape, E> {
        Ok(Shape::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Shape::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Shape, A::Error> {
        let (mut names, mut found) = (Vec::new(), None);
        while let Some(name) = object.next_key::<String>()? {
            if self.0 == Some(&name) {
                found = Some(object.next_value_seed(Shallow(None))?);
                continue;
            }
            object.next_value::<IgnoredAny>()?;
            if names.len() < 8 {
                names.push(format!("`{}`", name.chars().take(40).collect::<String>()));
            }
        }
        Ok(match found {
            Some(shape) => Shape::Field(Box::new(shape)),
            None => Shape::Object(names),
        })
    }
}

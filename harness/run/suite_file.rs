//! Suite files: models × precisions × KV caches × datasets × batches × contexts, in TOML.
//!
//! The keys are the long names of `quantbench run`'s options, so whatever the command line takes
//! a file takes too; `datasets/suites/README.md` is the documented schema. A list option takes a
//! list, one value, or a range of whole numbers:
//!
//! ```text
//! range = FIRST ".." LAST [ "+" STEP | "x" FACTOR ]      both ends are meant, spaces are free
//! ```
//!
//! `"1..32 x2"` is 1 2 4 8 16 32, `"128..512 +128"` is 128 256 384 512, `"1..4"` is 1 2 3 4.

use super::suite::Narrowed;
use crate::{Error, Result, quant};
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// An option of the command line, as far as a file can set it.
#[derive(Debug, Clone)]
pub struct Key {
    pub name: String,
    pub takes: Takes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// `true` or `false`.
    Nothing,
    One,
    Many,
}

/// A setting and its values; none for a flag that is on.
pub type Setting = (String, Vec<String>);

/// What a suite file says.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteFile {
    /// At least one.
    pub models: Vec<Model>,
    /// For every model.
    pub settings: Vec<Setting>,
    /// By precision id as it is written.
    pub narrowed: BTreeMap<String, Narrowed>,
    /// As it stands there.
    pub compare: Table,
}

/// A model of a suite and what is particular to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Folder of its run, below the suite's.
    pub name: String,
    /// None for the embedded one.
    pub path: Option<String>,
    pub settings: Vec<Setting>,
}

const MODEL: &str = "model";
/// The word for the model that has no path.
const EMBEDDED: &str = "embedded";
/// Tables that are no option.
const TABLES: [&str; 2] = ["precision", "compare"];
/// Options that make no sense inside a file.
const OUTSIDE: [&str; 6] = ["suite", "dry-run", "force", "quiet", "turns", "help"];
/// Values that a range may stand for.
const MOST_VALUES: usize = 1000;

/// Reads a suite file. Errors name the file, the key and the nearest known one.
pub fn read(path: &Path, known: &[Key]) -> Result<SuiteFile> {
    let next = "the keys are the options of `quantbench run`, see `quantbench run --help`";
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::io(path, e, "name a suite file (TOML) with --suite"))?;
    parse(&text, known).map_err(|what| Error::file(path, what, next))
}

/// Errors are in words, without the file's name.
fn parse(text: &str, known: &[Key]) -> Result<SuiteFile, String> {
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let models = models(table.remove(MODEL), known)?;
    let narrowed = match table.remove("precision") {
        Some(value) => narrowed(value)?,
        None => BTreeMap::new(),
    };
    let compare = match table.remove("compare") {
        Some(Value::Table(compare)) => compare,
        Some(_) => return Err("`compare` is not a table".into()),
        None => Table::new(),
    };
    Ok(SuiteFile {
        models,
        settings: settings(&table, known, "")?,
        narrowed,
        compare,
    })
}

/// `model` is one path, a list of paths, or tables with `path`, `name` and settings.
fn models(value: Option<Value>, known: &[Key]) -> Result<Vec<Model>, String> {
    let entries = match value {
        None => vec![Value::String(EMBEDDED.into())],
        Some(Value::Array(entries)) if !entries.is_empty() => entries,
        Some(Value::Array(_)) => return Err("`model` is an empty list".into()),
        Some(one) => vec![one],
    };
    let mut models: Vec<Model> = vec![];
    for entry in entries {
        let model = match entry {
            Value::String(path) => Model::new(path, None, vec![])?,
            Value::Table(mut table) => {
                let mut word = |key: &str| match table.remove(key) {
                    Some(Value::String(word)) => Ok(Some(word)),
                    Some(other) => Err(format!("`{key}` of a model is {other}, not a text")),
                    None => Ok(None),
                };
                let (path, name) = (word("path")?, word("name")?);
                let place = " of a model";
                let path = path.unwrap_or_else(|| EMBEDDED.into());
                Model::new(path, name, settings(&table, known, place)?)?
            }
            other => return Err(format!("`model` holds {other}, neither a path nor a table")),
        };
        if models.iter().any(|m| m.name == model.name) {
            return Err(format!(
                "two models are called `{}`: give them a `name` each",
                model.name
            ));
        }
        models.push(model);
    }
    Ok(models)
}

impl Model {
    fn new(path: String, name: Option<String>, settings: Vec<Setting>) -> Result<Self, String> {
        let name = name.unwrap_or_else(|| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
            let stem = Path::new(&path).file_stem().unwrap_or_default();
            let stem = stem.to_string_lossy();
            stem.chars()
                .map(|c| if plain(c) { c } else { '-' })
                .collect()
        });
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!(
                "a model is called {name:?}: a name is a folder's, of letters, digits or . _ + -"
            ));
        }
        Ok(Model {
            path: (path != EMBEDDED).then_some(path),
            name,
            settings,
        })
    }
}

fn settings(table: &Table, known: &[Key], place: &str) -> Result<Vec<Setting>, String> {
    let known: Vec<&Key> = known
        .iter()
        .filter(|k| !OUTSIDE.contains(&k.name.as_str()) && k.name != MODEL)
        .collect();
    let mut settings = vec![];
    for (name, value) in table {
        let Some(key) = known.iter().find(|k| k.name == *name) else {
            let names = known.iter().map(|k| k.name.as_str());
            let others: &[&str] = match place {
                "" => &[MODEL, TABLES[0], TABLES[1]],
                _ => &["path", "name"],
            };
            return Err(unknown(name, place, names.chain(others.iter().copied())));
        };
        let values = values(value, key).map_err(|why| format!("`{name}`{place}: {why}"))?;
        if let Some(values) = values {
            settings.push((name.clone(), values));
        }
    }
    Ok(settings)
}

fn unknown<'a>(name: &str, place: &str, known: impl Iterator<Item = &'a str>) -> String {
    let by_distance = known.map(|k| (quant::edit_distance(name, k), k));
    match by_distance.min() {
        Some((_, nearest)) => format!("unknown key `{name}`{place}: did you mean `{nearest}`?"),
        None => format!("unknown key `{name}`{place}"),
    }
}

/// The values of a key as the command line would have them; None for a flag that is off.
fn values(value: &Value, key: &Key) -> Result<Option<Vec<String>>, String> {
    match (key.takes, value) {
        (Takes::Nothing, Value::Boolean(on)) => Ok(on.then(Vec::new)),
        (Takes::Nothing, other) => Err(format!("expected true or false, found {other}")),
        (Takes::One, Value::Array(_)) => Err("it takes one value, not a list".into()),
        (Takes::One, one) => Ok(Some(vec![scalar(one)?])),
        (Takes::Many, Value::Array(list)) if list.is_empty() => Err("the list is empty".into()),
        (Takes::Many, Value::Array(list)) => {
            let lists: Vec<Vec<String>> = list.iter().map(expanded).collect::<Result<_, _>>()?;
            Ok(Some(lists.concat()))
        }
        (Takes::Many, one) => Ok(Some(expanded(one)?)),
    }
}

fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        other => Err(format!("expected a text or a number, found {other}")),
    }
}

/// One value, or those of a range.
fn expanded(value: &Value) -> Result<Vec<String>, String> {
    let text = scalar(value)?;
    let is_range = |t: &str| t.starts_with(|c: char| c.is_ascii_digit()) && t.contains("..");
    match is_range(text.trim()) {
        true => Ok(range(&text)?.iter().map(usize::to_string).collect()),
        false => Ok(vec![text]),
    }
}

/// The numbers of `FIRST..LAST [+STEP | xFACTOR]`.
fn range(text: &str) -> Result<Vec<usize>, String> {
    let expected = || {
        format!("`{text}` is no range: expected FIRST..LAST, then +STEP or xFACTOR, as in 1..32 x2")
    };
    let number = |t: &str| t.trim().parse::<usize>().map_err(|_| expected());
    let (first, rest) = text.split_once("..").ok_or_else(expected)?;
    let multiplied = rest.split_once('x');
    let (last, step) = multiplied
        .or_else(|| rest.split_once('+'))
        .unwrap_or((rest, "1"));
    let step = number(step)?;
    let following = |n: usize| match multiplied {
        Some(_) => n.checked_mul(step),
        None => n.checked_add(step),
    };
    let (first, last) = (number(first)?, number(last)?);
    let mut numbers = vec![];
    let mut next = Some(first);
    while let Some(n) = next.filter(|n| *n <= last) {
        numbers.push(n);
        next = following(n).filter(|next| *next > n);
        if next.is_none() && n < last || numbers.len() > MOST_VALUES {
            return Err(format!(
                "`{text}` never reaches its end, or takes more than {MOST_VALUES} values"
            ));
        }
    }
    match numbers.is_empty() {
        true => Err(format!(
            "`{text}` holds no number: its end lies before its beginning"
        )),
        false => Ok(numbers),
    }
}

/// `[precision.ID]` with `kv`, `batch` and `context`.
fn narrowed(value: Value) -> Result<BTreeMap<String, Narrowed>, String> {
    let keys: Vec<Key> = ["kv", "batch", "context"]
        .map(|name| Key {
            name: name.into(),
            takes: Takes::Many,
        })
        .into();
    let Value::Table(precisions) = value else {
        return Err("`precision` is not a table of tables, as in [precision.fp16]".into());
    };
    let mut narrowed = BTreeMap::new();
    for (id, table) in precisions {
        let Value::Table(table) = table else {
            return Err(format!("`precision.{id}` is not a table"));
        };
        let mut choice = Narrowed::default();
        for (name, value) in &table {
            let place = format!(" of precision.{id}");
            let Some(key) = keys.iter().find(|k| k.name == *name) else {
                return Err(unknown(name, &place, keys.iter().map(|k| k.name.as_str())));
            };
            let list = values(value, key).map_err(|why| format!("`{name}`{place}: {why}"))?;
            let list = list.unwrap_or_default();
            let numbers = || -> Result<Vec<usize>, String> {
                let parsed = list
                    .iter()
                    .map(|t| t.parse::<usize>().ok().filter(|n| *n > 0));
                parsed
                    .collect::<Option<_>>()
                    .ok_or(format!("`{name}`{place}: expected numbers from 1"))
            };
            match name.as_str() {
                "kv" => choice.kv = list,
                "batch" => choice.batch = numbers()?,
                _ => choice.context = numbers()?,
            }
        }
        narrowed.insert(id, choice);
    }
    Ok(narrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<Key> {
        [
            ("precisions", Takes::Many),
            ("batch", Takes::Many),
            ("context", Takes::Many),
            ("reps", Takes::One),
            ("no-graph", Takes::Nothing),
        ]
        .map(|(name, takes)| Key {
            name: name.into(),
            takes,
        })
        .into()
    }

    #[test]
    fn ranges() {
        for (text, numbers) in [
            ("1..32 x2", vec![1, 2, 4, 8, 16, 32]),
            ("1 .. 33x2", vec![1, 2, 4, 8, 16, 32]),
            ("128..512+128", vec![128, 256, 384, 512]),
            ("1..4", vec![1, 2, 3, 4]),
            ("7..7", vec![7]),
        ] {
            assert_eq!(range(text).unwrap(), numbers, "{text}");
        }
        for bad in [
            "1..",
            "..4",
            "4..1",
            "1..8 x1",
            "1..8 +0",
            "0..8 x2",
            "1..4 x",
            "1..9999999",
            "1..2..3",
            "1..18446744073709551615 x-2",
        ] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_is_read() {
        let text = "precisions = [\"fp16\", \"int8\"]\nbatch = [\"1..4 x2\", 16]\nno-graph = true\n\
                    [[model]]\n[[model]]\npath = \"a/b.gguf\"\nreps = 2\n\
                    [precision.fp16]\nbatch = 1\n[compare]\nspeed = 0.1\n";
        let file = parse(text, &keys()).unwrap();
        let names: Vec<&str> = file.models.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["embedded", "b"]);
        assert_eq!(file.models[1].settings, [("reps".into(), vec!["2".into()])]);
        let batch = file
            .settings
            .iter()
            .find(|(name, _)| name == "batch")
            .unwrap();
        assert_eq!(batch.1, ["1", "2", "4", "16"]);
        assert!(file.settings.contains(&("no-graph".into(), vec![])));
        assert_eq!(file.narrowed["fp16"].batch, [1]);
        assert_eq!(file.compare["speed"].as_float(), Some(0.1));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("batches = 1", "did you mean `batch`"),
            (
                "[[model]]\nrep = 1",
                "`rep` of a model: did you mean `reps`",
            ),
            ("[precision.fp16]\nbatchs = 1", "did you mean `batch`"),
            ("[precision.fp16]\nbatch = 0", "numbers from 1"),
            ("reps = [1, 2]", "one value"),
            ("no-graph = 1", "true or false"),
            ("batch = []", "empty"),
            ("batch = \"1..0\"", "before its beginning"),
            ("model = []", "empty"),
            ("model = [\"a/x\", \"b/x\"]", "two models are called `x`"),
            ("[[model]]\nname = \"../x\"", "a name is a folder's"),
            ("compare = 1", "not a table"),
            ("batch = ", "line 1"),
        ] {
            let message = parse(text, &keys()).unwrap_err();
            assert!(message.contains(words), "{text}: {message}");
        }
    }
}

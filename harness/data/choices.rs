//! Multiple-choice items: one JSON object a line,
//! `{"task": …, "context": …, "choices": […], "answer": …}`.
//!
//! `context` is what the model reads, each of `choices` a continuation of it as it stands (a
//! separating space is part of the choice), `answer` the index of the right one, from 0. `task`
//! is optional; other fields are refused, for they would mean something that is not done.

use serde_json::{Map, Value};

use super::Dataset;
use crate::{Error, Result};

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What it tests, in a word; may be empty.
    pub task: String,
    pub context: String,
    /// At least two.
    pub choices: Vec<String>,
    /// Index of the right choice.
    pub answer: usize,
    /// Where it stands in its file, from 1.
    pub line: usize,
}

/// The questions of a set, in the order of its file.
///
/// # Errors
///
/// A line that is not such an object: named by file, line and field.
pub fn questions(set: &Dataset) -> Result<Vec<Question>> {
    let mut questions = vec![];
    for (i, line) in set.text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let question = question(line, i + 1).map_err(|what| {
            Error::file(
                &set.path,
                format!("line {}: {what}", i + 1),
                "Each line is {\"task\": \"…\", \"context\": \"…\", \"choices\": [\" …\", \" …\"], \
                 \"answer\": 0}: see datasets/README.md.",
            )
        })?;
        questions.push(question);
    }
    Ok(questions)
}

fn question(line: &str, number: usize) -> Result<Question, String> {
    let mut fields: Map<String, Value> = serde_json::from_str(line)
        .map_err(|e| format!("expected a JSON object, found something else: {e}"))?;
    let mut take = |name: &str| fields.remove(name);
    let task = match take("task") {
        None => String::new(),
        Some(task) => string("task", task)?,
    };
    let context = string("context", take("context").unwrap_or_default())?;
    if context.is_empty() {
        return Err("field `context`: expected some text, found none".into());
    }
    let choices = match take("choices").unwrap_or_default() {
        Value::Array(choices) => choices
            .into_iter()
            .enumerate()
            .map(|(i, choice)| string(&format!("choices[{i}]"), choice))
            .collect::<Result<Vec<String>, String>>()?,
        other => return Err(unlike("choices", "a list of strings", &other)),
    };
    if choices.len() < 2 {
        let found = choices.len();
        return Err(format!(
            "field `choices`: expected at least 2, found {found}"
        ));
    }
    for (i, choice) in choices.iter().enumerate() {
        if choice.is_empty() || choices[..i].contains(choice) {
            return Err(format!(
                "field `choices[{i}]`: expected a text of its own, found {choice:?}"
            ));
        }
    }
    let answer = take("answer").unwrap_or_default();
    let expected = format!("an index below {}", choices.len());
    let answer = answer
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| *n < choices.len())
        .ok_or_else(|| unlike("answer", &expected, &answer))?;
    match fields.keys().next() {
        Some(other) => Err(format!(
            "field `{}`: expected task, context, choices and answer only",
            other.chars().take(40).collect::<String>()
        )),
        None => Ok(Question {
            task,
            context,
            choices,
            answer,
            line: number,
        }),
    }
}

fn string(name: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(unlike(name, "a string", &other)),
    }
}

fn unlike(name: &str, expected: &str, found: &Value) -> String {
    let found = match found {
        Value::Null => "none".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(n) => n.to_string(),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".to_string(),
    };
    format!("field `{name}`: expected {expected}, found {found}")
}

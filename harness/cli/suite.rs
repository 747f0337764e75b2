//! `--suite FILE`: what the file says and what was typed, as the options of one run per model.

use super::args::{RunArgs, options};
use crate::run::suite::{Narrowed, Options};
use crate::run::suite_file::{self, Key, Model, Setting, SuiteFile, Takes};
use crate::{Error, Result, quant};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, Parser};
use std::path::Path;

/// The options of a run, apart from the rest of the command line.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Alone {
    #[command(flatten)]
    run: RunArgs,
}

/// A run of a suite.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) options: Options,
}

/// The runs that a suite file and the typed arguments ask for. What was typed goes before what
/// the file says, for every model and precision.
pub(super) fn parts(path: &Path, typed: &ArgMatches) -> Result<Vec<Part>> {
    let command = Alone::command();
    let file = suite_file::read(path, &keys(&command))?;
    let typed = typed_settings(&command, typed);
    let model = typed.iter().position(|(name, _)| name == "model");
    let models = match model {
        Some(_) => vec![Model {
            name: String::new(),
            path: None,
            settings: vec![],
        }],
        None => file.models.clone(),
    };
    let several = models.len() > 1;
    models
        .iter()
        .map(|model| {
            let own = [&model.settings[..], &of_path(model)].concat();
            let settings = layered(&command, &[&file.settings, &own, &typed]);
            let args = Alone::try_parse_from(settings.iter().map(argument)).map_err(|e| {
                let text = e.render().to_string();
                let what = text.lines().next().unwrap_or_default();
                let what = what.trim_start_matches("error: ").to_string();
                Error::file(path, what, "correct the file, or what was typed beside it")
            })?;
            let mut options = options(&args.run)?;
            narrow(path, &mut options, &file, &typed)?;
            options.compare = file.compare.clone();
            if several {
                options.out = options.out.join(&model.name);
            }
            Ok(Part {
                name: model.name.clone(),
                options,
            })
        })
        .collect()
}

fn of_path(model: &Model) -> Vec<Setting> {
    let path = model.path.clone().map(|path| ("model".into(), vec![path]));
    path.into_iter().collect()
}

fn keys(command: &Command) -> Vec<Key> {
    // Under headings stands what follows a run: it is typed, and thresholds have their own table.
    let options = command.get_arguments();
    options
        .filter(|arg| arg.get_help_heading().is_none())
        .filter_map(|arg| {
            let takes = match (arg.get_action().takes_values(), arg.get_value_delimiter()) {
                (false, _) => Takes::Nothing,
                (true, None) => Takes::One,
                (true, Some(_)) => Takes::Many,
            };
            let name = arg.get_long()?.into();
            Some(Key { name, takes })
        })
        .collect()
}

/// What was typed, not what has its default.
fn typed_settings(command: &Command, typed: &ArgMatches) -> Vec<Setting> {
    let given = command
        .get_arguments()
        .filter(|arg| typed.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine));
    given
        .filter_map(|arg| {
            let values = match arg.get_action().takes_values() {
                true => typed.get_raw(arg.get_id().as_str())?,
                false => return Some((arg.get_long()?.into(), vec![])),
            };
            let values = values.map(|v| v.to_string_lossy().into_owned());
            Some((arg.get_long()?.to_string(), values.collect()))
        })
        .filter(|(name, _): &Setting| name != "suite" && name != "dry-run")
        .collect()
}

/// The layers on top of each other: a setting hides those below that it replaces or contradicts.
fn layered(command: &Command, layers: &[&[Setting]]) -> Vec<Setting> {
    let of = |name: &str| command.get_arguments().find(|a| a.get_long() == Some(name));
    let contradict = |a: &str, b: &str| -> bool {
        let conflicts = of(a).map(|arg| command.get_arg_conflicts_with(arg));
        let mut conflicts = conflicts.into_iter().flatten();
        conflicts.any(|other| other.get_long() == Some(b))
    };
    let mut result: Vec<Setting> = vec![];
    for layer in layers {
        result.retain(|(below, _)| {
            let hides = |(above, _): &Setting| {
                above == below || contradict(above, below) || contradict(below, above)
            };
            !layer.iter().any(hides)
        });
        result.extend(layer.iter().cloned());
    }
    result
}

fn argument((name, values): &Setting) -> String {
    match values.is_empty() {
        true => format!("--{name}"),
        false => format!("--{name}={}", values.join(",")),
    }
}

/// Enters `[precision.ID]`: each list is narrowed or widened for that precision alone.
fn narrow(path: &Path, options: &mut Options, file: &SuiteFile, typed: &[Setting]) -> Result<()> {
    let is_typed = |name: &str| typed.iter().any(|(n, _)| n == name);
    let ids: Vec<String> = options
        .precisions
        .iter()
        .map(|id| Ok(quant::parse(id)?.id()))
        .collect::<Result<_>>()?;
    let base = Narrowed {
        kv: options.kv.clone(),
        batch: options.batch.clone(),
        context: options.contexts(),
    };
    for (id, choice) in &file.narrowed {
        let id = quant::parse(id).map_or_else(|_| id.clone(), |method| method.id());
        if !ids.contains(&id) {
            if is_typed("precisions") || file.models.iter().any(|m| !m.settings.is_empty()) {
                continue;
            }
            return Err(Error::file(
                path,
                format!("[precision.{id}] is about a precision that the suite does not measure"),
                format!("add it to `precisions` ({})", ids.join(", ")),
            ));
        }
        let mut own = base.clone();
        if !choice.kv.is_empty() && !is_typed("kv") {
            own.kv = choice.kv.clone();
        }
        if !choice.batch.is_empty() && !is_typed("batch") {
            own.batch = choice.batch.clone();
        }
        let depth_typed = is_typed("context") || is_typed("prompt-tokens");
        if !choice.context.is_empty() && !depth_typed {
            own.context = choice.context.clone();
        }
        options.narrowed.insert(id, own);
    }
    if options.narrowed.is_empty() {
        return Ok(());
    }
    // Precisions without a table keep to the file's lists while others go beyond them.
    for id in ids {
        options.narrowed.entry(id).or_insert_with(|| base.clone());
    }
    options.context = base.context;
    for own in options.narrowed.values() {
        extend(&mut options.kv, &own.kv);
        extend(&mut options.batch, &own.batch);
        extend(&mut options.context, &own.context);
    }
    Ok(())
}

fn extend<T: Clone + PartialEq>(list: &mut Vec<T>, more: &[T]) {
    for value in more {
        if !list.contains(value) {
            list.push(value.clone());
        }
    }
}

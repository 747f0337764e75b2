//! `report.md`: the same tables and sentences for places that show Markdown.

use super::content::{self, Kind, Table};
use super::plots::Figure;
use crate::record::format::one_line;
use crate::record::tables::{TABLES, Tables};

/// The whole file.
pub fn page(tables: &Tables, figures: &[Figure]) -> String {
    let summary = &content::first_workload(tables);
    let mut page = format!(
        "# {}\n\n{}\n",
        escape(&super::html::title(tables)),
        escape(&content::headline(summary))
    );
    for notice in content::notices(tables) {
        page += &format!("\n> {}\n", escape(&notice));
    }
    page += &section("Results", &table(&content::results(summary)));
    page += &section("Every batch and context", &table(&content::sweep(tables)));
    let warnings: String = content::warnings(tables)
        .iter()
        .map(|warning| format!("- {}\n", escape(warning)))
        .collect();
    page += &section("Warnings", &warnings);
    for figure in figures {
        let picture = match &figure.svg {
            Some(_) => format!(
                "![{}]({}.svg)\n\n",
                escape(figure.plot.title),
                figure.plot.name
            ),
            None => String::new(),
        };
        page += &section(
            figure.plot.title,
            &format!("{picture}{}\n", escape(&figure.caption)),
        );
    }
    page += &section(
        "Perplexity by kind of text",
        &table(&content::domains(summary)),
    );
    page += &section(
        "Distance from the reference, token by token",
        &table(&content::divergence(summary)),
    );
    page += &section(
        "Mean KL by the reference's confidence",
        &table(&content::confidence(summary)),
    );
    page += &section(
        "Differences between precisions",
        &table(&content::pairs(tables)),
    );
    page += &section("Multiple choice", &table(&content::choices(tables)));
    page += &section(
        "Speed of one precision against another",
        &table(&content::speed_pairs(summary)),
    );
    page += &section(
        "Memory by part, in numbers",
        &table(&content::memory(summary)),
    );
    let notes: String = content::method_notes(summary)
        .iter()
        .map(|(term, text)| format!("- **{term}.** {}\n", escape(text)))
        .collect();
    page += &section("How each number was made", &notes);
    page += &section("Methods", &table(&content::methods(tables)));
    page += &section("Texts", &table(&content::texts(tables)));
    if !tables.info.command.is_empty() {
        page += &section(
            "Command",
            &format!("    {}\n", one_line(&tables.info.command)),
        );
    }
    let files: String = TABLES
        .iter()
        .map(|file| format!("- [{0}]({0}): {1}\n", file.name, file.holds))
        .collect();
    page += &section("Files", &files);
    page
}

fn section(title: &str, body: &str) -> String {
    if body.is_empty() {
        String::new()
    } else {
        format!("\n## {}\n\n{body}", escape(title))
    }
}

/// A table, or nothing without rows.
pub fn table(table: &Table) -> String {
    if table.rows.is_empty() {
        return String::new();
    }
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(
        table
            .columns
            .iter()
            .map(|c| match c.unit.as_str() {
                "" => escape(&c.head),
                unit => format!("{} ({})", escape(&c.head), escape(unit)),
            })
            .collect(),
    );
    text += &line(
        table
            .columns
            .iter()
            .map(|c| {
                if c.kind == Kind::Number {
                    "---:"
                } else {
                    "---"
                }
                .into()
            })
            .collect(),
    );
    for row in &table.rows {
        text += &line(row.cells.iter().map(|c| escape(&c.joined())).collect());
    }
    text
}

/// Text that Markdown shows as it is.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '|' | '[' | ']' | '#' | '~' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

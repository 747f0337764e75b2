//! How the documents of a text become the texts that are tokenized.

use super::wikitext;
use serde::Serialize;
use std::borrow::Cow;

/// How documents are put together. A single document is its own text under all but `Pages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Join {
    /// One stream: `\n\n` between documents.
    Paragraphs,
    /// One stream: documents end to end, an empty one as the line ` \n` that it stands for in
    /// WikiText. Gives back the bytes of a raw WikiText file from its rows.
    Lines,
    /// One stream: a space between documents.
    Spaces,
    /// A stream per page, detokenized. Pages begin at WikiText's headings of the first level where
    /// there are any; else every document is one.
    Pages,
}

/// A text to tokenize.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<'a> {
    pub text: Cow<'a, str>,
    /// Words of the text before it was detokenized.
    pub words: u64,
    /// Bytes of the text before it was detokenized.
    pub bytes: u64,
}

impl<'a> Reading<'a> {
    /// One stream of all documents.
    pub fn joined(documents: &[&'a str], between: &str) -> Self {
        Reading::of(match documents {
            [one] => Cow::Borrowed(*one),
            many => Cow::Owned(many.join(between)),
        })
    }

    fn of(text: Cow<'a, str>) -> Self {
        Reading {
            words: wikitext::words(&text),
            bytes: text.len() as u64,
            text,
        }
    }
}

impl Join {
    /// What is tokenized of these documents, one token stream each.
    pub fn readings<'a>(self, documents: &[&'a str]) -> Vec<Reading<'a>> {
        match self {
            Join::Paragraphs => vec![Reading::joined(documents, "\n\n")],
            Join::Spaces => vec![Reading::joined(documents, " ")],
            Join::Lines => vec![Reading::of(lines(documents))],
            Join::Pages => pages(documents)
                .into_iter()
                .map(|page| Reading {
                    text: Cow::Owned(wikitext::detokenized(&page)),
                    ..Reading::of(page)
                })
                .collect(),
        }
    }
}

fn lines<'a>(documents: &[&'a str]) -> Cow<'a, str> {
    match documents {
        [one] => Cow::Borrowed(*one),
        many => many
            .iter()
            .map(|d| if d.is_empty() { " \n" } else { d })
            .collect(),
    }
}

fn pages<'a>(documents: &[&'a str]) -> Vec<Cow<'a, str>> {
    let text = lines(documents);
    if text.split('\n').any(wikitext::is_heading) {
        return wikitext::pages(&text).into_iter().map(Cow::Owned).collect();
    }
    documents
        .iter()
        .filter(|d| !d.trim().is_empty())
        .map(|d| Cow::Borrowed(*d))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(join: Join, documents: &[&str]) -> Vec<String> {
        let readings = join.readings(documents);
        readings.into_iter().map(|r| r.text.into_owned()).collect()
    }

    #[test]
    fn documents_are_joined_as_each_convention_joins_them() {
        let rows = ["", " = A = \n", "", " b c \n"];
        assert_eq!(
            texts(Join::Paragraphs, &rows),
            ["\n\n = A = \n\n\n\n\n b c \n"]
        );
        assert_eq!(texts(Join::Lines, &rows), [" \n = A = \n \n b c \n"]);
        assert_eq!(texts(Join::Spaces, &["a", "b"]), ["a b"]);
        for join in [Join::Paragraphs, Join::Lines, Join::Spaces] {
            assert_eq!(texts(join, &["as it is \n"]), ["as it is \n"]);
        }
    }

    #[test]
    fn pages_are_documents_or_begin_at_headings() {
        assert_eq!(
            texts(Join::Pages, &["one , two", "", "three"]),
            ["one, two", "three"]
        );
        let rows = [
            "",
            " = A = \n",
            "",
            " b \n",
            " = = C = = \n",
            " = D = \n",
            " e \n",
        ];
        let found = Join::Pages.readings(&rows);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].text, " = A =\n\nb\n== C == ");
        assert_eq!(found[1].text, " = D =\ne\n");
        // Words and bytes are those of the page before it was detokenized.
        let page = " = D = \n e \n";
        assert_eq!((found[1].words, found[1].bytes), (6, page.len() as u64));
        // One file of the same lines is the same pages.
        assert_eq!(Join::Pages.readings(&[&lines(&rows)]), found);
    }
}

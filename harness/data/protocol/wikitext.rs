//! WikiText's pages and the undoing of its tokenization, as lm-evaluation-harness does both:
//! tasks/wikitext/preprocess_wikitext.py, and the script of the data set that it reads. Every
//! step, in their order, since their numbers depend on it.

/// Whether a line of the raw file is a heading of the first level, ` = Title = `: those of lower
/// levels have several equals signs on each side.
pub(super) fn is_heading(line: &str) -> bool {
    if !line.starts_with(" = ") || !line.ends_with(" = ") {
        return false;
    }
    let line = line.replace("= = =", "===").replace("= =", "==");
    let line = line.trim();
    line.starts_with("= ") && line.ends_with(" =")
}

/// The pages of a raw file: the lines from each heading to the next, without the last line's end;
/// blank ones are left out.
pub(super) fn pages(text: &str) -> Vec<String> {
    let mut pages: Vec<Vec<&str>> = vec![vec![]];
    for line in text.split('\n') {
        if is_heading(line) {
            pages.push(vec![]);
        }
        if let Some(page) = pages.last_mut() {
            page.push(line);
        }
    }
    pages
        .into_iter()
        .map(|lines| lines.join("\n"))
        .filter(|page| !page.trim().is_empty())
        .collect()
}

/// Runs of white space plus one: what splitting at them gives, empty ends included.
pub(super) fn words(text: &str) -> u64 {
    let mut runs = 0;
    let mut inside = false;
    for c in text.chars() {
        let space = is_space(c);
        runs += u64::from(space && !inside);
        inside = space;
    }
    runs + 1
}

/// What Python's regular expressions take for white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// A page as a person would have written it.
pub(super) fn detokenized(page: &str) -> String {
    let mut text = page.replace("s '", "s'");
    text = slashed_digit(&text);
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        text = text.replace(from, to);
    }
    for (open, close) in [('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')] {
        text = tightened(&text, open, close);
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// A slip of the source kept as it is: a pattern with slashes that belong to another language, so
/// that it matches `/' 5/`, and writes the pattern's own text.
fn slashed_digit(text: &str) -> String {
    let mut out = text.to_string();
    for digit in '0'..='9' {
        out = out.replace(&format!("/' {digit}/"), "/'[0-9]/");
    }
    out
}

/// Without white space inside pairs of brackets or quotes. Each opening one pairs with the next
/// closing one; a pair inside a pair is not looked at.
fn tightened(text: &str, open: char, close: char) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(open) {
        let Some((inside, behind)) = after.split_once(close) else {
            break;
        };
        out.push_str(before);
        out.push(open);
        out.push_str(inside.trim_matches(is_space));
        out.push(close);
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_of_the_first_level_begin_pages() {
        assert!(is_heading(" = Robert Boulter = "));
        for line in [
            " = = Career = = ",
            " = = = 2000 = = = ",
            "= A =",
            " a = b ",
            " = ",
            "",
        ] {
            assert!(!is_heading(line), "{line}");
        }
        let text = " \n = A = \n \n a b \n = = C = = \n c \n \n = B = \n d \n";
        assert_eq!(
            pages(text),
            [" = A = \n \n a b \n = = C = = \n c \n ", " = B = \n d \n"]
        );
        assert!(pages(" \n\n").is_empty());
    }

    #[test]
    fn words_are_counted_with_empty_ends() {
        for (text, count) in [("", 1), ("a", 1), ("a b", 2), (" a  b\n", 4), (" \n ", 2)] {
            assert_eq!(words(text), count, "{text:?}");
        }
    }

    #[test]
    fn detokenizing_undoes_each_kind_of_mark() {
        for (from, to) in [
            ("a 1 @,@ 000 @-@ b 2 @.@ 5", "a 1,000-b 2.5"),
            ("a , b ; c : d . e ! f ? g", "a, b; c: d. e! f? g"),
            ("the boys ' toys", "the boys' toys"),
            ("( a ( b ) c )", "(a ( b) c )"),
            ("[ x ] { y } ( \u{2003}z\n)", "[x] {y} (z)"),
            ("( open", "( open"),
            (
                "he said \" yes , no \" and left",
                "he said \"yes, no\" and left",
            ),
            ("x ' y ' z", "x 'y' z"),
            ("it 's", "it's"),
            (" = = A = = \n = = = B = = = \n", " == A ==\n=== B ===\n"),
            ("20 \u{b0} C", "20\u{b0}C"),
            ("costs N dollars", "costs 1 dollars"),
            ("/' 5/", "/'[0-9]/"),
            ("unchanged text.", "unchanged text."),
        ] {
            assert_eq!(detokenized(from), to, "{from:?}");
        }
    }

    /// Against the same steps as regular expressions in Python, over a whole file.
    #[test]
    fn a_whole_file_agrees_with_python() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = root.join("../shared/data/wikitext-2.test.txt");
        let Ok(text) = std::fs::read_to_string(&file) else {
            println!("SKIPPED: {} is not there", file.display());
            return;
        };
        let pages = pages(&text);
        let words: u64 = pages.iter().map(|p| words(p)).sum();
        assert_eq!((pages.len(), words), (62, 241_335));
        let pages: Vec<String> = pages.iter().map(|p| detokenized(p)).collect();
        let sha256 = crate::hash::sha256([pages.join("\0").as_bytes()]);
        assert_eq!(
            sha256,
            "d3a9f56365df82b54e98dc161f503b193736c52d759e02e74cd872f3d0ed0eb1"
        );
    }
}

//! What a protocol is: the choices that conventions differ in, and the special tokens they meet.

use super::join::Join;
use serde::Serialize;

/// A perplexity protocol with its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// Name and version: the id up to `@`.
    pub name: &'static str,
    /// How the documents of a text become streams.
    pub join: Join,
    /// What is put around a stream, and whether special tokens are seen in it.
    pub specials: Specials,
    /// Tokens per window.
    pub window: usize,
    /// Tokens from the start of a window to that of the next.
    pub stride: usize,
    /// The first token of a window that is scored; all after it are too.
    pub first_scored: FirstScored,
    /// What is put at the start of windows.
    pub bos: Bos,
    /// What becomes of tokens that fill no window.
    pub tail: Tail,
    /// How much a window counts.
    pub weighting: Weighting,
    /// A text that fills fewer windows is not used.
    pub least_windows: usize,
    /// Windows used of a text.
    pub most_windows: Option<usize>,
}

/// What is put around a stream when it is tokenized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Specials {
    /// What the tokenizer adds by itself; the text of a special token is that token.
    Default,
    /// What the tokenizer adds by itself; the text of a special token is text.
    DefaultLiteral,
    /// Nothing; the text of a special token is that token.
    None,
}

/// The first scored token of a window. The very first cannot be: nothing predicts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstScored {
    /// The second: all that have a predecessor in the window.
    Second,
    /// The one after the middle: number N/2 + 1, counted from zero.
    SecondHalf,
    /// The first that no earlier window held.
    New,
}

/// What is put at the start of windows. Without the token that a rule asks for, nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bos {
    Nothing,
    /// BOS takes the place of the window's first token if the tokenizer adds a BOS to texts.
    ReplaceFirst,
    /// BOS goes before the window, whose last token is dropped, if the architecture needs one.
    PrependDropLast,
    /// BOS, or EOS where the tokenizer has no BOS, stands before the whole stream to predict its
    /// first token. Windows then hold one token more, whose last is predicted and not fed.
    LeadStream,
}

/// What becomes of the tokens at the end that fill no window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    Drop,
    /// Dropped, and so is a window that ends where the stream does.
    DropAndLast,
    /// They are a shorter window.
    Keep,
    /// They are a window as long as the others, which reaches back.
    ReachBack,
}

/// How much a window counts in the mean over windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// As many as its scored tokens.
    Tokens,
    /// Each the same: the mean of the windows' means.
    Windows,
    /// Its labels less one, which is one too few where the first label has a predecessor.
    LabelsLessOne,
    /// As many as the words of the text that it scores: the mean is per word.
    Words,
}

/// The special tokens of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    /// Put before every text by the tokenizer.
    pub added_bos: Option<u32>,
    /// Put after every text by the tokenizer.
    pub added_eos: Option<u32>,
    /// The token that begins texts, whether it is added or not.
    pub bos: Option<u32>,
    /// The token that ends texts, whether it is added or not.
    pub eos: Option<u32>,
    /// Whether the architecture is no use without a BOS.
    pub requires_bos: bool,
}

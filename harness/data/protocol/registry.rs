//! The registered protocols, each with the source that it follows.

use super::definition::{Bos, FirstScored, Protocol, Specials, Tail, Weighting};
use super::join::Join;

/// A protocol before its numbers are filled in.
pub struct ProtocolFamily {
    /// With `N` for the window and `S` for the stride.
    pub id: &'static str,
    /// One line, for `list`.
    pub summary: &'static str,
    /// Whole sentences, for a report.
    pub about: &'static str,
    /// Its rules; window and stride are those of the source.
    pub values: Protocol,
}

impl ProtocolFamily {
    /// Whether the stride is part of the id.
    pub fn strided(&self) -> bool {
        self.id.ends_with(":S")
    }

    /// The shortest window that scores a token.
    pub fn least_window(&self) -> usize {
        match self.values.first_scored {
            FirstScored::SecondHalf => 3,
            FirstScored::Second | FirstScored::New => 2,
        }
    }
}

const GPTQ: Protocol = Protocol {
    name: "gptq-v1",
    join: Join::Paragraphs,
    specials: Specials::Default,
    window: 2048,
    stride: 2048,
    first_scored: FirstScored::Second,
    bos: Bos::Nothing,
    tail: Tail::Drop,
    weighting: Weighting::Tokens,
    least_windows: 1,
    most_windows: None,
};

const HF_STRIDED: Protocol = Protocol {
    name: "hf-strided-exact",
    window: 1024,
    stride: 512,
    first_scored: FirstScored::New,
    tail: Tail::Keep,
    ..GPTQ
};

/// Every protocol, the default first. A window that the user does not state is 512 tokens
/// whatever the source uses (the id says so); a stride is half the window.
pub const PROTOCOLS: &[ProtocolFamily] = &[
    // IST-DASLab/gptq datautils.py and llama.py, AutoAWQ evaluation/eval_utils.py.
    ProtocolFamily {
        id: "gptq-v1@N",
        summary: "disjoint windows of N tokens, tokens 1..N of each scored, tail dropped (GPTQ, \
                  AWQ; they use 2048)",
        about: "Documents are joined by blank lines, tokenized once with the tokenizer's own \
                special tokens and cut into windows of N that do not overlap; the rest is \
                dropped. Every token but the first of each window is scored, from an empty \
                cache. All scored tokens weigh the same.",
        values: GPTQ,
    },
    // The first form of the page that v2 follows: the mean of the windows' losses.
    ProtocolFamily {
        id: "hf-strided-v1@N:S",
        summary: "as hf-strided-exact, but every window weighs the same, the short last one too \
                  (transformers' older documentation)",
        about: "Windows of N tokens advance by S; what no earlier window held is scored, the \
                tail included. The number is the mean of the windows' means: a short last window \
                weighs as much as any.",
        values: Protocol {
            name: "hf-strided-v1",
            weighting: Weighting::Windows,
            ..HF_STRIDED
        },
    },
    // transformers docs/source/en/perplexity.md.
    ProtocolFamily {
        id: "hf-strided-v2@N:S",
        summary: "as hf-strided-exact, but a window weighs one token less than it has labels \
                  (transformers' documentation; N = 1024, S = 512)",
        about: "Windows of N tokens advance by S; what no earlier window held is scored, the \
                tail included. As in its source a window weighs its labels less one, which is \
                one too few wherever windows overlap.",
        values: Protocol {
            name: "hf-strided-v2",
            weighting: Weighting::LabelsLessOne,
            ..HF_STRIDED
        },
    },
    ProtocolFamily {
        id: "hf-strided-exact@N:S",
        summary: "windows of N tokens advance by S, what no earlier window held is scored, tail \
                  included; all tokens weigh the same",
        about: "Windows of N tokens advance by S; what no earlier window held is scored, the \
                tail included. All scored tokens weigh the same.",
        values: HF_STRIDED,
    },
    // llama.cpp tools/perplexity/perplexity.cpp, `perplexity()`.
    ProtocolFamily {
        id: "llamacpp-v1@N",
        summary: "disjoint windows of N tokens, the second half of each scored, BOS in place of \
                  each first token if the tokenizer adds one (llama.cpp; N = 512)",
        about: "The text as its file has it, special tokens in it taken as text, is cut into \
                windows of N; a text needs two. Only tokens N/2 + 1 and later of each window are \
                scored, so that all have context. Where the tokenizer adds a BOS, it takes the \
                place of every window's first token. All scored tokens weigh the same.",
        values: Protocol {
            name: "llamacpp-v1",
            join: Join::Lines,
            specials: Specials::DefaultLiteral,
            window: 512,
            stride: 512,
            first_scored: FirstScored::SecondHalf,
            bos: Bos::ReplaceFirst,
            least_windows: 2,
            ..GPTQ
        },
    },
    // lm_eval/models/huggingface.py loglikelihood_rolling, lm_eval/utils.py
    // get_rolling_token_windows with a context of 1, lm_eval/tasks/wikitext.
    ProtocolFamily {
        id: "lmeval-wikitext-v2@N",
        summary: "pages detokenized, each from BOS (or EOS) on in rolling windows of N tokens, \
                  every token scored once; perplexity per word (lm-evaluation-harness)",
        about: "Each page (a document) is detokenized as WikiText needs it and tokenized without \
                special tokens. Every token is scored once: the first from BOS (or EOS), later \
                ones in windows of N that begin with the last token scored; the last window \
                reaches back. The perplexity is per word of the page as it stood, so is every \
                difference.",
        values: Protocol {
            name: "lmeval-wikitext-v2",
            join: Join::Pages,
            specials: Specials::None,
            first_scored: FirstScored::New,
            bos: Bos::LeadStream,
            tail: Tail::ReachBack,
            weighting: Weighting::Words,
            ..GPTQ
        },
    },
    // exllamav2 test_inference.py, `-ed`.
    ProtocolFamily {
        id: "exl2-ed-v1@N",
        summary: "documents joined by spaces, the first 128 windows of N tokens, tokens 1..N of \
                  each scored, no special tokens (exllamav2 -ed; N = 2048)",
        about: "Documents are joined by spaces and tokenized without special tokens; the first \
                128 windows of N that do not overlap are used. Every token but the first of each \
                is scored; only for architectures that need a BOS one goes before each window, \
                whose last token is then dropped. All scored tokens weigh the same.",
        values: Protocol {
            name: "exl2-ed-v1",
            join: Join::Spaces,
            specials: Specials::None,
            bos: Bos::PrependDropLast,
            most_windows: Some(128),
            ..GPTQ
        },
    },
    // exllamav3 eval/ppl.py.
    ProtocolFamily {
        id: "exl3-v1@N",
        summary: "as gptq-v1 without special tokens, the first 100 windows, never one that ends \
                  where the text does (exllamav3 eval/ppl.py; N = 2048)",
        about: "Documents are joined by blank lines and tokenized without special tokens; the \
                first 100 windows of N that do not overlap are used, but none that ends where \
                the text does. Every token but the first of each is scored. All scored tokens \
                weigh the same.",
        values: Protocol {
            name: "exl3-v1",
            specials: Specials::None,
            tail: Tail::DropAndLast,
            most_windows: Some(100),
            ..GPTQ
        },
    },
];

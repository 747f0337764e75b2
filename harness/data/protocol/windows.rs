//! The engine of all protocols: from streams to windows.
//!
//! Whatever a protocol puts at the start of a window, in place of a token or before it, a window
//! comes out as an optional token and a range of the stream; what is scored is a range too.

use super::definition::{Bos, FirstScored, Protocol, SpecialTokens, Tail, Weighting};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How long a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    pub tokens: usize,
    /// Words of the text that the stream stands for.
    pub words: u64,
}

impl Length {
    /// The length of a stream whose words do not matter.
    pub fn of(tokens: usize) -> Self {
        Length { tokens, words: 0 }
    }
}

/// One forward pass and what of it counts. Ranges are positions of the stream, the tokens that
/// the tokenizer put around the text included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Index of the stream.
    pub stream: usize,
    /// Fed before `tokens`.
    pub prefix: Option<u32>,
    /// Fed.
    pub tokens: Range<usize>,
    /// Predicted and scored; never empty. May end one after `tokens`.
    pub scored: Range<usize>,
    /// What the window's summed NLL is multiplied by where windows are averaged.
    pub nll_scale: f64,
    /// What that product is worth in the average: the mean is Σ scale × sum / Σ weight.
    pub weight: f64,
}

impl Window {
    /// Tokens of the forward pass.
    pub fn fed_tokens(&self) -> usize {
        usize::from(self.prefix.is_some()) + self.tokens.len()
    }

    /// The ids of the forward pass; `ids` are the stream's.
    pub fn inputs(&self, ids: &[u32]) -> Vec<u32> {
        let tokens = ids[self.tokens.clone()].iter().copied();
        self.prefix.into_iter().chain(tokens).collect()
    }

    /// Rows of the logits that predict the scored tokens: row i follows the i-th fed token.
    pub fn rows(&self) -> Range<usize> {
        let before = self.scored.start + usize::from(self.prefix.is_some()) - self.tokens.start;
        before - 1..before - 1 + self.scored.len()
    }

    /// Whether it is one of a stream of so many tokens, with a row for all that it scores.
    pub fn is_within(&self, stream_tokens: usize) -> bool {
        let Window { tokens, scored, .. } = self;
        tokens.start <= tokens.end
            && tokens.end <= stream_tokens
            && scored.start < scored.end
            && scored.end <= stream_tokens
            && scored.end <= tokens.end + 1
            && scored.start + usize::from(self.prefix.is_some()) > tokens.start
    }
}

impl Protocol {
    /// The windows of a text, over its streams in order; none if it is too short to be used.
    ///
    /// A window without a scored token (a last one of a single token) is left out: where the
    /// source takes a mean over nothing, it gets no number at all.
    pub fn windows(&self, streams: &[Length], special: &SpecialTokens) -> Vec<Window> {
        let mut windows: Vec<Window> = streams
            .iter()
            .enumerate()
            .flat_map(|(i, length)| self.stream_windows(i, *length, special))
            .collect();
        if windows.len() < self.least_windows {
            return vec![];
        }
        windows.truncate(self.most_windows.unwrap_or(usize::MAX));
        windows
    }

    fn stream_windows(
        &self,
        stream: usize,
        length: Length,
        special: &SpecialTokens,
    ) -> Vec<Window> {
        let start_token = self.start_token(special);
        let mut windows = vec![];
        let mut held_to = 0;
        for span in self.spans(length.tokens) {
            let first = match self.first_scored {
                FirstScored::Second => span.start + 1,
                FirstScored::SecondHalf => span.start + self.window / 2 + 1,
                FirstScored::New => held_to.max(span.start + 1),
            };
            let labels = span.end - held_to.min(span.end);
            held_to = span.end;
            if first >= span.end {
                continue;
            }
            let (prefix, tokens, scored) = self.placed(span.clone(), first, start_token);
            let tokens_scored = scored.len() as f64;
            let (nll_scale, weight) = match self.weighting {
                Weighting::Tokens => (1.0, tokens_scored),
                Weighting::Windows => (1.0 / tokens_scored, 1.0),
                Weighting::LabelsLessOne => {
                    let counted = (labels - 1) as f64;
                    (counted / tokens_scored, counted)
                }
                Weighting::Words => (1.0, length.words_in(&scored)),
            };
            windows.push(Window {
                stream,
                prefix,
                tokens,
                scored,
                nll_scale,
                weight,
            });
        }
        windows
    }

    /// Where windows begin and end in a stream of so many tokens, the leading one counted.
    fn spans(&self, tokens: usize) -> Vec<Range<usize>> {
        let lead = usize::from(self.bos == Bos::LeadStream);
        let (length, span) = (tokens + lead, self.window.saturating_add(lead));
        let mut spans = vec![];
        for start in (0..length).step_by(self.stride) {
            let end = start.saturating_add(span);
            let held = match self.tail {
                _ if end < length => start..end,
                Tail::DropAndLast => break,
                _ if end == length => start..end,
                Tail::Drop => break,
                Tail::Keep => start..length,
                Tail::ReachBack => length.saturating_sub(span)..length,
            };
            let last = held.end == length;
            spans.push(held);
            if last {
                break;
            }
        }
        spans
    }

    /// What is fed and scored of a span whose tokens from `first` on count: prefix, tokens and
    /// scored tokens in positions of the stream.
    fn placed(
        &self,
        span: Range<usize>,
        first: usize,
        start_token: Option<u32>,
    ) -> (Option<u32>, Range<usize>, Range<usize>) {
        match (self.bos, start_token) {
            (Bos::ReplaceFirst, Some(bos)) => {
                (Some(bos), span.start + 1..span.end, first..span.end)
            }
            (Bos::PrependDropLast, Some(bos)) => {
                let fed = span.start..span.end - 1;
                (Some(bos), fed, first - 1..span.end - 1)
            }
            // The leading token is number 0 of the span's positions and none of the stream's; the
            // last is not fed.
            (Bos::LeadStream, lead) => {
                let prefix = lead.filter(|_| span.start == 0);
                let fed = span.start.saturating_sub(1)..span.end - 2;
                (prefix, fed, first - 1..span.end - 1)
            }
            (Bos::Nothing | Bos::ReplaceFirst | Bos::PrependDropLast, _) => {
                (None, span.clone(), first..span.end)
            }
        }
    }
}

impl Length {
    /// The words that some of the tokens stand for: the stream's, shared out evenly over its
    /// tokens, so that half a page counts half its words.
    fn words_in(&self, tokens: &Range<usize>) -> f64 {
        self.words as f64 * (tokens.len() as f64 / self.tokens.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::protocol::PROTOCOLS;

    const BOS: u32 = 90;
    const EOS: u32 = 91;

    /// A tokenizer that declares BOS and EOS and adds neither.
    fn declared() -> SpecialTokens {
        SpecialTokens {
            bos: Some(BOS),
            eos: Some(EOS),
            ..SpecialTokens::default()
        }
    }

    /// A tokenizer that puts a BOS before texts, of an architecture that needs it.
    fn adding() -> SpecialTokens {
        SpecialTokens {
            added_bos: Some(BOS),
            requires_bos: true,
            ..declared()
        }
    }

    /// Windows over streams of so many tokens, whose ids are 0, 1, 2, ...: what is fed (a prefix
    /// is [`BOS`] or [`EOS`]), and which positions are scored.
    fn windows(
        id: &str,
        streams: &[usize],
        special: &SpecialTokens,
    ) -> (Vec<Vec<u32>>, Vec<Vec<usize>>) {
        let protocol = Protocol::parse(id, 512).unwrap();
        let lengths: Vec<Length> = streams.iter().map(|n| Length::of(*n)).collect();
        let windows = protocol.windows(&lengths, special);
        for w in &windows {
            // The row of a scored token follows the token before it in the stream, or a prefix.
            let ids: Vec<u32> = (0..streams[w.stream] as u32).collect();
            let inputs = w.inputs(&ids);
            assert_eq!(inputs.len(), w.fed_tokens());
            for (row, target) in w.rows().zip(w.scored.clone()) {
                let expected = match (row, w.prefix) {
                    (0, Some(prefix)) => prefix,
                    _ => target as u32 - 1,
                };
                assert_eq!(inputs[row], expected, "{id}: {w:?}");
            }
        }
        let fed = |w: &Window| w.inputs(&(0..streams[w.stream] as u32).collect::<Vec<u32>>());
        (
            windows.iter().map(fed).collect(),
            windows.iter().map(|w| w.scored.clone().collect()).collect(),
        )
    }

    /// Expects these windows whatever the special tokens.
    fn expect(id: &str, tokens: usize, fed: &[&[u32]], scored: &[&[usize]]) {
        for special in [SpecialTokens::default(), declared(), adding()] {
            let (found_fed, found_scored) = windows(id, &[tokens], &special);
            assert_eq!(found_fed, fed, "{id} of {tokens}: fed");
            assert_eq!(found_scored, scored, "{id} of {tokens}: scored");
        }
    }

    /// Scored positions alone.
    fn scored(id: &str, tokens: usize, special: &SpecialTokens) -> Vec<Vec<usize>> {
        windows(id, &[tokens], special).1
    }

    const NONE: [Vec<usize>; 0] = [];

    #[test]
    fn gptq_scores_all_but_the_first_of_disjoint_windows() {
        expect(
            "gptq-v1@4",
            11,
            &[&[0, 1, 2, 3], &[4, 5, 6, 7]],
            &[&[1, 2, 3], &[5, 6, 7]],
        );
        assert_eq!(scored("gptq-v1@4", 8, &adding()), [[1, 2, 3], [5, 6, 7]]);
        assert_eq!(scored("gptq-v1@4", 4, &adding()), [[1, 2, 3]]);
        assert_eq!(scored("gptq-v1@4", 3, &adding()), NONE);
        assert_eq!(scored("gptq-v1@4", 0, &adding()), NONE);
    }

    #[test]
    fn hf_strided_scores_what_is_new_and_the_tail() {
        for version in ["v1", "v2", "exact"] {
            let id = |numbers: &str| format!("hf-strided-{version}@{numbers}");
            expect(
                &id("4:2"),
                9,
                &[&[0, 1, 2, 3], &[2, 3, 4, 5], &[4, 5, 6, 7], &[6, 7, 8]],
                &[&[1, 2, 3], &[4, 5], &[6, 7], &[8]],
            );
            // An exact fit ends it.
            expect(
                &id("4:2"),
                6,
                &[&[0, 1, 2, 3], &[2, 3, 4, 5]],
                &[&[1, 2, 3], &[4, 5]],
            );
            // A stride that does not divide the window.
            expect(
                &id("5:3"),
                9,
                &[&[0, 1, 2, 3, 4], &[3, 4, 5, 6, 7], &[6, 7, 8]],
                &[&[1, 2, 3, 4], &[5, 6, 7], &[8]],
            );
            // Without overlap the first of each window has no predecessor; a last window of one
            // token scores nothing.
            expect(
                &id("4:4"),
                9,
                &[&[0, 1, 2, 3], &[4, 5, 6, 7]],
                &[&[1, 2, 3], &[5, 6, 7]],
            );
            expect(
                &id("4:4"),
                6,
                &[&[0, 1, 2, 3], &[4, 5]],
                &[&[1, 2, 3], &[5]],
            );
            // Shorter than a window.
            expect(&id("4:2"), 3, &[&[0, 1, 2]], &[&[1, 2]]);
            expect(&id("4:2"), 1, &[], &[]);
            expect(&id("4:2"), 0, &[], &[]);
        }
    }

    #[test]
    fn hf_strided_versions_weigh_as_their_sources_do() {
        let weights = |id: &str, tokens: usize| -> Vec<(f64, f64)> {
            let protocol = Protocol::parse(id, 0).unwrap();
            let windows = protocol.windows(&[Length::of(tokens)], &declared());
            windows.iter().map(|w| (w.nll_scale, w.weight)).collect()
        };
        // Scored 3, 2, 2, 1; labels 4, 2, 2, 1.
        let sums = [(1.0, 3.0), (1.0, 2.0), (1.0, 2.0), (1.0, 1.0)];
        assert_eq!(weights("hf-strided-exact@4:2", 9), sums);
        let means = [(1.0 / 3.0, 1.0), (0.5, 1.0), (0.5, 1.0), (1.0, 1.0)];
        assert_eq!(weights("hf-strided-v1@4:2", 9), means);
        let one_less = [(1.0, 3.0), (0.5, 1.0), (0.5, 1.0), (0.0, 0.0)];
        assert_eq!(weights("hf-strided-v2@4:2", 9), one_less);
        // Without overlap v2 is exact.
        let exact = [(1.0, 3.0), (1.0, 3.0), (1.0, 1.0)];
        assert_eq!(weights("hf-strided-v2@4:4", 10), exact);
    }

    #[test]
    fn llamacpp_scores_second_halves_and_replaces_the_first_token() {
        let id = "llamacpp-v1@6";
        let (fed, found) = windows(id, &[13], &adding());
        assert_eq!(fed, [[BOS, 1, 2, 3, 4, 5], [BOS, 7, 8, 9, 10, 11]]);
        assert_eq!(found, [[4, 5], [10, 11]]);
        let (fed, found) = windows(id, &[12], &declared());
        assert_eq!(fed, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]);
        assert_eq!(found, [[4, 5], [10, 11]]);
        // Two windows, or none.
        assert_eq!(scored(id, 11, &adding()), NONE);
        // 512: 255 tokens of each, from 257 on.
        let found = scored("llamacpp-v1", 1030, &adding());
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].len(), found[0][0]), (255, 257));
        assert_eq!((found[1][0], found[1][254]), (512 + 257, 1023));
        assert_eq!(scored("llamacpp-v1@5", 10, &adding()), [[3, 4], [8, 9]]);
    }

    #[test]
    fn lmeval_scores_every_token_once_from_a_leading_token() {
        let id = "lmeval-wikitext-v2@4";
        let (fed, found) = windows(id, &[10], &adding());
        assert_eq!(fed, [[BOS, 0, 1, 2], [3, 4, 5, 6], [5, 6, 7, 8]]);
        assert_eq!(found, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        // Exact fits: of one window, of two.
        let (fed, found) = windows(id, &[4], &declared());
        assert_eq!(fed, [[BOS, 0, 1, 2]]);
        assert_eq!(found, [[0, 1, 2, 3]]);
        let (fed, found) = windows(id, &[8], &declared());
        assert_eq!(fed, [[BOS, 0, 1, 2], [3, 4, 5, 6]]);
        assert_eq!(found, [[0, 1, 2, 3], [4, 5, 6, 7]]);
        // Documents are streams of their own, even of one token; EOS serves where there is no BOS.
        let eos_only = SpecialTokens {
            eos: Some(EOS),
            ..SpecialTokens::default()
        };
        let (fed, found) = windows(id, &[1, 0, 5], &eos_only);
        assert_eq!(fed, [vec![EOS], vec![EOS, 0, 1, 2], vec![0, 1, 2, 3]]);
        assert_eq!(found, [vec![0], vec![0, 1, 2, 3], vec![4]]);
    }

    #[test]
    fn lmeval_shares_the_words_of_a_page_out_over_its_windows() {
        let protocol = Protocol::parse("lmeval-wikitext-v2@4", 0).unwrap();
        let page = |tokens, words| Length { tokens, words };
        let windows = protocol.windows(&[page(8, 6), page(3, 5)], &declared());
        let weights: Vec<f64> = windows.iter().map(|w| w.weight).collect();
        assert_eq!(weights, [3.0, 3.0, 5.0]);
        assert!(windows.iter().all(|w| w.nll_scale == 1.0));
    }

    #[test]
    fn exl2_scores_all_but_the_first_or_prepends_a_token() {
        let id = "exl2-ed-v1@4";
        let (fed, found) = windows(id, &[11], &declared());
        assert_eq!(fed, [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(found, [[1, 2, 3], [5, 6, 7]]);
        // Where the architecture needs a BOS; that the tokenizer adds one is not enough.
        let (fed, found) = windows(id, &[8], &adding());
        assert_eq!(fed, [[BOS, 0, 1, 2], [BOS, 4, 5, 6]]);
        assert_eq!(found, [[0, 1, 2], [4, 5, 6]]);
        let adds_only = SpecialTokens {
            requires_bos: false,
            ..adding()
        };
        assert_eq!(scored(id, 8, &adds_only), [[1, 2, 3], [5, 6, 7]]);
        assert_eq!(scored(id, 3, &declared()), NONE);
        assert_eq!(scored(id, 4 * 200, &declared()).len(), 128);
    }

    #[test]
    fn exl3_leaves_out_a_window_that_ends_the_text() {
        let id = "exl3-v1@4";
        let two: &[&[usize]] = &[&[1, 2, 3], &[5, 6, 7]];
        expect(id, 9, &[&[0, 1, 2, 3], &[4, 5, 6, 7]], two);
        expect(id, 11, &[&[0, 1, 2, 3], &[4, 5, 6, 7]], two);
        expect(id, 8, &[&[0, 1, 2, 3]], &two[..1]);
        expect(id, 4, &[], &[]);
        assert_eq!(scored(id, 4 * 200, &adding()).len(), 100);
    }

    #[test]
    fn blocks_are_windows_that_share_tokens() {
        let block = |id: &str| Protocol::parse(id, 512).unwrap().block_windows();
        assert_eq!(block("hf-strided-exact@8:2"), 4);
        assert_eq!(block("hf-strided-v1@8:3"), 3);
        assert_eq!(block("hf-strided-v2@8:8"), 1);
        for family in PROTOCOLS.iter().filter(|f| !f.strided()) {
            assert_eq!(block(family.values.name), 1);
        }
    }
}

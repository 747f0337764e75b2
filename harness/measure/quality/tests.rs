use super::*;
use crate::data::protocol::{Length, PROTOCOLS, Protocol, SpecialTokens};
use crate::measure::nll;

const VOCAB: usize = 7;

/// A model whose logits depend on the current token and on the first of its input, so that a
/// token in place of the first shows.
struct Table {
    rows: Vec<Vec<f32>>,
    /// What was fed, pass by pass.
    fed: Vec<Vec<u32>>,
}

impl Table {
    fn new(rows: Vec<Vec<f32>>) -> Self {
        Table { rows, fed: vec![] }
    }

    fn row(&self, first: u32, current: u32) -> &[f32] {
        &self.rows[(3 * first + current) as usize % self.rows.len()]
    }

    /// -ln p of `target` after an input that begins with `first` and ends with `current`, from the
    /// logits as stored: F32 cannot hold the logarithms themselves.
    fn nll(&self, first: u32, current: u32, target: u32) -> f64 {
        let row = self.row(first, current);
        let z: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        z.ln() - f64::from(row[target as usize])
    }
}

impl LanguageModel for Table {
    fn vocab_size(&self) -> usize {
        self.rows[0].len()
    }

    fn logits(
        &mut self,
        ids: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.fed.push(ids.to_vec());
        // Uneven pieces, to exercise the bookkeeping.
        let mut at = 0;
        for n in [1, 2, 3].into_iter().cycle() {
            if at >= ids.len() {
                break;
            }
            let piece = &ids[at..ids.len().min(at + n)];
            let rows: Vec<f32> = piece
                .iter()
                .flat_map(|id| self.row(ids[0], *id).to_vec())
                .collect();
            sink(at, &rows)?;
            at += n;
        }
        Ok(())
    }
}

/// Seven unlike distributions.
fn model() -> Table {
    let row =
        |r: usize| (0..VOCAB).map(move |c| ((r * r + 3 * c + r * c) % 11) as f32 * 0.37 - 1.9);
    Table::new((0..VOCAB).map(|r| row(r).collect()).collect())
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * i + i / 5 + 2) % VOCAB as u32)
        .collect()
}

fn stream(ids: Vec<u32>) -> TokenStream {
    let bytes = ids.iter().map(|id| id % 3).collect();
    TokenStream { ids, bytes }
}

/// A tokenizer that adds a BOS, 5, of an architecture that needs one.
fn special() -> SpecialTokens {
    SpecialTokens {
        added_bos: Some(5),
        bos: Some(5),
        requires_bos: true,
        ..SpecialTokens::default()
    }
}

/// A text of these streams, each of so many words, under a protocol.
fn text(id: &str, streams: &[TokenStream], words: u64, special: &SpecialTokens) -> ScoredText {
    let protocol = Protocol::parse(id, 8).unwrap();
    let tokens = streams.iter().map(|s| s.ids.len());
    let lengths: Vec<Length> = tokens.map(|tokens| Length { tokens, words }).collect();
    ScoredText {
        protocol: protocol.id(),
        windows: protocol.windows(&lengths, special),
    }
}

fn score(
    model: &mut Table,
    streams: &[TokenStream],
    texts: &[ScoredText],
) -> Vec<Vec<WindowScore>> {
    let plan = Plan::new(streams, texts).unwrap();
    plan.score(model, &mut [], &mut |_, _| Ok(())).unwrap()
}

/// The mean NLL of one stream of 50 words under a protocol.
fn mean(model: &mut Table, id: &str, ids: &[u32], special: &SpecialTokens) -> f64 {
    let streams = [stream(ids.to_vec())];
    let texts = [text(id, &streams, 50, special)];
    nll::mean_nll(&score(model, &streams, &texts)[0]).unwrap()
}

#[test]
fn uniform_logits_give_the_vocabulary_size_under_every_protocol() {
    for family in PROTOCOLS {
        for vocab in [7, 4096, 49152] {
            let mut model = Table::new(vec![vec![-3.25; vocab]; 7]);
            let name = family.values.name;
            let per_word = name == "lmeval-wikitext-v2";
            let exponent = if per_word { 67.0 / 50.0 } else { 1.0 };
            for special in [
                special(),
                SpecialTokens {
                    bos: Some(5),
                    ..Default::default()
                },
            ] {
                let nll = mean(&mut model, name, &ids(67), &special);
                let ratio = nll / (exponent * (vocab as f64).ln());
                assert!((ratio - 1.0).abs() < 1e-12, "{name} of {vocab}: {ratio}");
            }
        }
    }
}

/// Each protocol as its source computes it, over 67 tokens and windows of 8.
fn closed_form(name: &str, model: &Table, x: &[u32], special: &SpecialTokens) -> f64 {
    let n = 8;
    // The mean of -ln p of x[i], from..to, each after an input that begins with `first`.
    let mean_of = |first: u32, from: usize, to: usize| -> f64 {
        let sum: f64 = (from..to).map(|i| model.nll(first, x[i - 1], x[i])).sum();
        sum / (to - from) as f64
    };
    match name {
        "gptq-v1" => {
            let windows = x.len() / n;
            let sum: f64 = (0..windows)
                .map(|w| mean_of(x[w * n], w * n + 1, (w + 1) * n) * n as f64)
                .sum();
            sum / (windows * n) as f64
        }
        "hf-strided-v1" | "hf-strided-v2" | "hf-strided-exact" => {
            let (mut sum, mut count, mut previous_end) = (0.0, 0.0, 0);
            for begin in (0..x.len()).step_by(n / 2) {
                let end = (begin + n).min(x.len());
                let labels = end - previous_end;
                let first_label = (end - labels).max(begin + 1);
                let weight = match name {
                    "hf-strided-v1" => 1.0,
                    "hf-strided-v2" => (labels - 1) as f64,
                    _ => (end - first_label) as f64,
                };
                sum += mean_of(x[begin], first_label, end) * weight;
                count += weight;
                previous_end = end;
                if end == x.len() {
                    break;
                }
            }
            sum / count
        }
        "llamacpp-v1" => {
            let (mut sum, mut count) = (0.0, 0);
            for chunk in x.chunks_exact(n) {
                let mut input = chunk.to_vec();
                if let Some(bos) = special.added_bos {
                    input[0] = bos;
                }
                for i in n / 2..=n - 2 {
                    sum += model.nll(input[0], input[i], chunk[i + 1]);
                    count += 1;
                }
            }
            sum / f64::from(count)
        }
        "lmeval-wikitext-v2" => {
            let prefix = special.bos.unwrap();
            let with_prefix = [&[prefix], x].concat();
            let mut sum = 0.0;
            let mut predicted = 0;
            while predicted < x.len() {
                let end = (predicted + n).min(x.len());
                let start = if predicted == 0 { 0 } else { end - n };
                let first = with_prefix[start];
                for i in predicted..end {
                    sum += model.nll(first, with_prefix[i], x[i]);
                }
                predicted = end;
            }
            sum / 50.0
        }
        "exl2-ed-v1" => {
            let rows: Vec<f64> = x
                .chunks_exact(n)
                .map(|row| {
                    let input = match special.requires_bos {
                        true => [&[5], &row[..n - 1]].concat(),
                        false => row.to_vec(),
                    };
                    let of = |i: usize| model.nll(input[0], input[i - 1], input[i]);
                    (1..n).map(of).sum::<f64>() / (n - 1) as f64
                })
                .collect();
            rows.iter().sum::<f64>() / rows.len() as f64
        }
        "exl3-v1" => {
            let (mut sum, mut count) = (0.0, 0);
            for a in (0..x.len() - n).step_by(n) {
                for i in a + 1..a + n {
                    sum += model.nll(x[a], x[i - 1], x[i]);
                    count += 1;
                }
            }
            sum / f64::from(count)
        }
        other => panic!("no closed form for {other}"),
    }
}

#[test]
fn a_table_of_probabilities_gives_each_protocols_closed_form() {
    let declared = SpecialTokens {
        bos: Some(6),
        ..SpecialTokens::default()
    };
    let mut seen = vec![];
    for family in PROTOCOLS {
        let name = family.values.name;
        for (tokens, special) in [(67, special()), (67, declared), (64, special())] {
            let x = ids(tokens);
            let mut model = model();
            let found = mean(&mut model, name, &x, &special);
            let expected = closed_form(name, &model, &x, &special);
            assert!(
                (found / expected - 1.0).abs() < 1e-12,
                "{name}: {found} {expected}"
            );
            seen.push(found);
        }
    }
    // They are different questions: no two protocols agree on the last text.
    let last: Vec<f64> = seen.into_iter().skip(2).step_by(3).collect();
    for (i, a) in last.iter().enumerate() {
        for b in &last[..i] {
            assert!((a / b - 1.0).abs() > 1e-9, "{last:?}");
        }
    }
}

#[test]
fn bytes_are_those_of_the_scored_tokens() {
    let streams = [stream(ids(20))];
    for family in PROTOCOLS {
        let texts = [text(family.values.name, &streams, 1, &special())];
        let scores = score(&mut model(), &streams, &texts);
        for (score, window) in scores[0].iter().zip(&texts[0].windows) {
            let bytes: u32 = window.scored.clone().map(|i| streams[0].ids[i] % 3).sum();
            assert_eq!(score.scored_bytes, u64::from(bytes));
            assert_eq!(score.scored_tokens, window.scored.len() as u64);
        }
    }
}

#[test]
fn protocols_share_the_passes_in_which_they_feed_the_same() {
    let streams = [stream(ids(67))];
    let none = SpecialTokens::default();
    let names = [
        "gptq-v1@8",
        "llamacpp-v1@8",
        "exl3-v1@8",
        "hf-strided-exact@8:8",
        "exl2-ed-v1@8",
    ];
    let texts: Vec<ScoredText> = names
        .iter()
        .map(|id| text(id, &streams, 1, &none))
        .collect();
    let mut counted = model();
    let together = score(&mut counted, &streams, &texts);
    // Eight windows of 8, and the tail of the strided one.
    assert_eq!(counted.fed.len(), 9);
    assert_eq!(Plan::new(&streams, &texts).unwrap().passes(), 9);
    let windows: usize = texts.iter().map(|t| t.windows.len()).sum();
    assert_eq!(windows, 8 + 8 + 8 + 9 + 8);
    for (i, own) in texts.iter().enumerate() {
        let mut alone = model();
        let scores = score(&mut alone, &streams, std::slice::from_ref(own));
        assert_eq!(scores[0], together[i], "{}", own.protocol);
        assert_eq!(alone.fed.len(), own.windows.len());
    }

    // A BOS in place of the first token makes another pass of every window that has none there.
    let mut with_bos = ids(67);
    with_bos[0] = 5;
    let streams = [stream(with_bos)];
    let texts: Vec<ScoredText> = names[..2]
        .iter()
        .map(|id| text(id, &streams, 1, &special()))
        .collect();
    let mut counted = model();
    score(&mut counted, &streams, &texts);
    let other = streams[0].ids[..64]
        .iter()
        .step_by(8)
        .filter(|id| **id != 5);
    let other = other.count();
    assert!((4..8).contains(&other));
    assert_eq!(counted.fed.len(), 8 + other);
}

#[test]
fn windows_alike_within_a_protocol_keep_their_own_passes() {
    let streams = [stream([1, 2, 3, 4].repeat(3))];
    let texts =
        ["gptq-v1@4", "exl2-ed-v1@4"].map(|id| text(id, &streams, 1, &SpecialTokens::default()));
    let mut model = model();
    let scores = score(&mut model, &streams, &texts);
    assert_eq!(model.fed.len(), 3);
    assert_eq!(scores[0], scores[1]);
}

#[test]
fn scores_do_not_depend_on_threads() {
    let streams = [stream(ids(67)), stream(ids(31))];
    let texts: Vec<ScoredText> = PROTOCOLS
        .iter()
        .map(|f| text(f.values.name, &streams, 9, &special()))
        .collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap()
            .install(|| score(&mut model(), &streams, &texts))
    };
    let bits = |scores: Vec<Vec<WindowScore>>| -> Vec<u64> {
        let all = scores.into_iter().flatten();
        all.map(|s| s.nll_sum_nats.to_bits()).collect()
    };
    let one = bits(run(1));
    for threads in [2, 3, 7] {
        assert_eq!(bits(run(threads)), one);
    }
}

/// Writes down what it sees.
#[derive(Default)]
struct Notes(Vec<(usize, usize, u32, Vec<f32>)>);

impl Observer for Notes {
    fn rows(&mut self, rows: &ScoredRows) -> Result<()> {
        let vocab = rows.logits.len() / rows.targets.len();
        for (target, logits) in rows.targets.iter().zip(rows.logits.chunks_exact(vocab)) {
            self.0
                .push((rows.text, rows.window, *target, logits.to_vec()));
        }
        Ok(())
    }
}

#[test]
fn observers_see_the_first_protocols_rows_in_order() {
    let streams = [stream(ids(19)), stream(ids(11))];
    let of = |id: &str, s: usize| {
        let mut text = text(id, &streams[s..=s], 1, &special());
        text.windows.iter_mut().for_each(|w| w.stream = s);
        text
    };
    let texts = [
        of("gptq-v1@4", 0),
        of("gptq-v1@4", 1),
        of("exl3-v1@4", 0),
        of("exl3-v1@4", 1),
    ];
    let (mut first, mut second) = (Notes::default(), Notes::default());
    let mut order = vec![];
    let plan = Plan::new(&streams, &texts).unwrap();
    assert_eq!(plan.longest(), 4);
    let mut model = model();
    let scores = plan
        .score(
            &mut model,
            &mut [&mut first, &mut second],
            &mut |text, score| {
                order.push((text, score.nll_sum_nats));
                Ok(())
            },
        )
        .unwrap();
    assert_eq!(first.0, second.0);
    let mut expected = vec![];
    for (t, s) in [(0, 0), (1, 1)] {
        for w in 0..streams[s].ids.len() / 4 {
            for i in 4 * w + 1..4 * w + 4 {
                let ids = &streams[s].ids;
                expected.push((t, w, ids[i], model.row(ids[4 * w], ids[i - 1]).to_vec()));
            }
        }
    }
    assert_eq!(first.0, expected);
    // Progress told every score once, those of a text in order.
    for (t, scores) in scores.iter().enumerate() {
        let told: Vec<f64> = order.iter().filter(|o| o.0 == t).map(|o| o.1).collect();
        let kept: Vec<f64> = scores.iter().map(|s| s.nll_sum_nats).collect();
        assert_eq!(told, kept);
    }
    assert_eq!(order.len(), 4 + 2 + 4 + 2);
}

#[test]
fn nonfinite_logits_are_counted_not_hidden() {
    let mut model = Table::new(vec![vec![0.0, f32::NAN], vec![0.0, 0.0]]);
    for (id, weight) in [("gptq-v1@4", 2.0), ("hf-strided-v1@4:4", 2.0 / 3.0)] {
        // The row of the first token is not finite, those of the others are.
        let streams = [stream(vec![0, 1, 1, 1])];
        let texts = [text(id, &streams, 1, &SpecialTokens::default())];
        let scores = score(&mut model, &streams, &texts);
        assert_eq!(scores[0][0].nonfinite_tokens, 1);
        assert_eq!(scores[0][0].scored_tokens, 3);
        assert!((scores[0][0].weight - weight).abs() < 1e-12);
        let mean = nll::mean_nll(&scores[0]).unwrap();
        assert!((mean - 2f64.ln()).abs() < 1e-12, "{mean}");
    }
}

#[test]
fn a_target_outside_the_vocabulary_is_not_finite() {
    assert!(nll_nats(&[0.0, 1.0], 2).is_nan());
    let streams = [stream(vec![0, 1, 2, 99])];
    let texts = [text("gptq-v1@4", &streams, 1, &SpecialTokens::default())];
    assert_eq!(
        score(&mut model(), &streams, &texts)[0][0].nonfinite_tokens,
        1
    );
}

#[test]
fn windows_outside_their_stream_are_refused() {
    let streams = [stream(ids(8))];
    let good = text("gptq-v1@4", &streams, 1, &SpecialTokens::default());
    assert!(Plan::new(&streams, std::slice::from_ref(&good)).is_ok());
    let edits: [fn(&mut Window); 6] = [
        |w| w.stream = 1,
        |w| w.tokens.end = 9,
        |w| w.scored.end = 9,
        |w| w.scored.start = w.tokens.start,
        |w| w.scored.start = w.scored.end,
        |w| w.tokens.end = w.scored.end - 2,
    ];
    for edit in edits {
        let mut bad = good.clone();
        edit(&mut bad.windows[1]);
        assert!(Plan::new(&streams, &[bad]).is_err());
    }
    let cut = [TokenStream {
        bytes: vec![1; 7],
        ..streams[0].clone()
    }];
    assert!(Plan::new(&cut, &[good]).is_err());
}

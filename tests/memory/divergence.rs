//! Distributions against the reference's, in this process: the embedded model against itself, and
//! memory with a large vocabulary.

use crate::alone;
use crate::common::packed;
use quantbench::data::protocol::{Length, Protocol, SpecialTokens};
use quantbench::measure::divergence::{Pass, WindowDivergence, summary};
use quantbench::measure::log_probs::{Address, AddressedText};
use quantbench::measure::quality::{
    CachedDecoder, LanguageModel, Plan, ScoredText, TokenStream, WindowScore,
};
use quantbench::memory::Bracket;
use quantbench::model::kv_cache::KvPrecision;
use quantbench::tokenizer::Tokenizer;
use quantbench::{Result, data};
use std::fs;
use std::path::Path;

fn address(vocab_size: usize, windows: usize, scored_tokens: u64) -> Address {
    Address {
        weights_sha256: "weights".into(),
        tokenizer_sha256: "tokenizer".into(),
        precision: "reference".into(),
        packed_sha256: "packed".into(),
        kv_cache: "fp16".into(),
        protocol: "gptq-v1".into(),
        device: "cpu".into(),
        program: "test".into(),
        vocab_size,
        texts: vec![AddressedText {
            ids_sha256: "ids".into(),
            windows,
            scored_tokens,
        }],
    }
}

/// Scores a text before the eyes of a pass, which is then ended.
fn observe(
    model: &mut dyn LanguageModel,
    text: &TokenStream,
    window: usize,
    mut pass: Pass,
) -> Vec<WindowScore> {
    let protocol = Protocol::parse("gptq-v1", window).unwrap();
    let length = Length::of(text.ids.len());
    let scored = [ScoredText {
        protocol: protocol.id(),
        windows: protocol.windows(&[length], &SpecialTokens::default()),
    }];
    let streams = std::slice::from_ref(text);
    let plan = Plan::new(streams, &scored).unwrap();
    let mut scores = plan
        .score(model, &mut [&mut pass], &mut |_, _| Ok(()))
        .unwrap();
    pass.finish().unwrap();
    scores.remove(0)
}

/// Records one model, then compares another with it.
fn contrast(
    path: &Path,
    address: &Address,
    text: &TokenStream,
    window: usize,
    reference: &mut dyn LanguageModel,
    candidate: &mut dyn LanguageModel,
) -> Vec<WindowDivergence> {
    let pass = Pass::record(path, address.clone()).unwrap();
    observe(reference, text, window, pass);
    let mut windows = vec![];
    let mut sink = |w| {
        windows.push(w);
        Ok(())
    };
    let pass = Pass::compare(path, address.clone(), &mut sink).unwrap();
    observe(candidate, text, window, pass);
    windows
}

/// The embedded model at a precision, over the first windows of an evaluation text.
#[test]
fn the_embedded_model_against_itself_is_below_the_resolution() {
    let _alone = alone();
    let tokenizer = Tokenizer::load(None, None).unwrap();
    let set = &data::select(&["prose".into()], data::Kind::Evaluation).unwrap()[0];
    let (window, windows) = (256, 4);
    let ids = tokenizer.encode(&set.text).unwrap().ids[..window * windows].to_vec();
    let text = TokenStream {
        bytes: vec![1; ids.len()],
        ids,
    };
    let loaded = packed(None, "fp16", window);
    let kv = KvPrecision::parse("fp16").unwrap();
    let vocab = loaded.decoder.config.vocab_size;
    let model = || CachedDecoder {
        cache: loaded.decoder.cache(1, window, kv).unwrap(),
        decoder: &loaded.decoder,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reference.logprobs");
    let address = address(vocab, windows, (windows * (window - 1)) as u64);
    let windows = contrast(&path, &address, &text, window, &mut model(), &mut model());
    let sum = summary(&windows).unwrap();
    println!(
        "resolution {:e}, mean {:e}, max {:e}",
        sum.resolution_nats,
        sum.kl_mean_nats.unwrap(),
        sum.kl_max_nats.unwrap()
    );
    assert_eq!(sum.tokens, 4 * 255);
    assert!(sum.resolution_nats < 1e-7);
    assert!(sum.kl_max_nats.unwrap() <= sum.resolution_nats);
    assert!(sum.kl_mean_nats.unwrap() > 0.0, "the file stores no F32");
    assert_eq!(sum.top1_agreement, Some(1.0));
}

/// Pseudo-random logits over a vocabulary, a few rows at a time, as a real model gives them.
struct Mock {
    vocab: usize,
    seed: u32,
    rows: Vec<f32>,
}

impl LanguageModel for Mock {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn logits(
        &mut self,
        ids: &[u32],
        sink: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        for (c, chunk) in ids.chunks(32).enumerate() {
            self.rows.resize(chunk.len() * self.vocab, 0.0);
            for (i, x) in self.rows.iter_mut().enumerate() {
                let mixed = (i as u32 ^ (chunk[0] << 20))
                    .wrapping_add(self.seed)
                    .wrapping_mul(2_654_435_761);
                *x = (mixed >> 8) as f32 / (1 << 20) as f32;
            }
            sink(c * 32, &self.rows)?;
        }
        Ok(())
    }
}

#[test]
fn memory_stays_bounded_for_a_vocabulary_of_152_thousand() {
    let _alone = alone();
    let (vocab, window, windows) = (151_936, 128, 3);
    let ids: Vec<u32> = (0..(window * windows) as u32).collect();
    let text = TokenStream {
        bytes: vec![1; ids.len()],
        ids,
    };
    let mock = |seed| Mock {
        vocab,
        seed,
        rows: vec![],
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reference.logprobs");
    let tokens = windows * (window - 1);
    let address = address(vocab, windows, tokens as u64);
    let (mut reference, mut candidate) = (mock(1), mock(2));
    let bracket = Bracket::open();
    let found = contrast(
        &path,
        &address,
        &text,
        window,
        &mut reference,
        &mut candidate,
    );
    let peak = bracket.peak().total_bytes;
    assert_eq!(found.iter().map(|w| w.tokens()).sum::<u64>(), tokens as u64);
    assert!(summary(&found).unwrap().kl_mean_nats.unwrap() > 0.1);
    let file = fs::metadata(&path).unwrap().len();
    println!("{tokens} tokens: file {file} bytes, peak {peak} bytes");
    assert!(file > (2 * vocab * tokens) as u64);
    assert!(peak < 2 << 30);
    // Two mocks hold 32 rows of logits each; the comparison itself one block of the file.
    let mocks = 2 * 32 * vocab * 4;
    assert!(peak < mocks + (24 << 20), "{peak}");
}

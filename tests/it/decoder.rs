//! The decoder against independent implementations and against itself.

use crate::common::{cpu, packed, root, smollm2};
use candle_core::{DType, Device, Tensor};
use quantbench::data::protocol::{Length, Protocol, SpecialTokens};
use quantbench::formats;
use quantbench::measure::nll;
use quantbench::measure::quality::{CachedDecoder, Plan, ScoredText, TokenStream, nll_nats};
use quantbench::model::decoder::Decoder;
use quantbench::model::kv_cache::{KvCache, KvPrecision};
use quantbench::model::layout;
use quantbench::model::synthetic;
use quantbench::packed::dense::Dense;
use quantbench::quant;
use std::path::Path;
use std::sync::Arc;

fn cache(decoder: &Decoder, batch: usize, capacity: usize) -> KvCache {
    let kv = KvPrecision::parse("fp32").unwrap();
    decoder.cache(batch, capacity, kv).unwrap()
}

/// Logits of all positions, `[tokens][vocab]`.
fn all_logits(decoder: &Decoder, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = vec![];
    let mut cache = cache(decoder, 1, ids.len());
    decoder
        .score(ids, &mut cache, &mut |first, values| {
            assert_eq!(first, rows.len());
            rows.extend(
                values
                    .chunks(decoder.config.vocab_size)
                    .map(<[f32]>::to_vec),
            );
            Ok(())
        })
        .unwrap();
    rows
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn logits_of_the_embedded_model_equal_pytorch() {
    let golden = root().join("tests/golden/embedded/reference_logits.npz");
    let arrays = Tensor::read_npz(&golden).unwrap();
    let array = |name: &str| {
        let (_, tensor) = arrays.iter().find(|(n, _)| n == name).unwrap();
        tensor.clone()
    };
    let ids: Vec<Vec<u32>> = array("ids")
        .to_dtype(DType::U32)
        .unwrap()
        .to_vec2()
        .unwrap();
    let expected: Vec<Vec<Vec<f32>>> = array("logits").to_vec3().unwrap();
    assert_eq!((ids.len(), ids[0].len()), (4, 64));
    for precision in ["fp32", "fp16"] {
        let loaded = packed(None, precision, 64);
        let mut worst = 0f32;
        for (ids, expected) in ids.iter().zip(&expected) {
            for (row, expected) in all_logits(&loaded.decoder, ids).iter().zip(expected) {
                worst = worst.max(max_difference(row, expected));
            }
        }
        println!("{precision}: largest difference of a logit {worst:.2e}");
        assert!(worst <= 2e-4, "{precision}: {worst}");
    }
}

#[test]
fn steps_chunks_and_batches_agree() {
    let loaded = packed(None, "fp16", 400);
    let decoder = &loaded.decoder;
    let ids: Vec<u32> = (0..300u32).map(|i| (i * 37 + i * i) % 4096).collect();
    let whole = all_logits(decoder, &ids);

    // One token at a time.
    let mut step_cache = cache(decoder, 1, 300);
    for (i, id) in ids.iter().take(40).enumerate() {
        let input = Tensor::new(&[[*id]], &Device::Cpu).unwrap();
        let row = decoder.step(&input, &mut step_cache).unwrap();
        let row: Vec<f32> = row.squeeze(0).unwrap().to_vec1().unwrap();
        assert!(max_difference(&row, &whole[i]) < 1e-3, "step {i}");
    }

    // The last position of a prompt longer than a prefill chunk, alone and in a batch.
    let other: Vec<u32> = ids.iter().rev().copied().collect();
    let prompts = [ids.clone(), other.clone()].concat();
    let mut batch_cache = cache(decoder, 2, 300);
    let batch: Vec<Vec<f32>> = decoder
        .prefill(&prompts, 2, &mut batch_cache)
        .unwrap()
        .to_vec2()
        .unwrap();
    assert_eq!(batch_cache.len(), 300);
    assert!(max_difference(&batch[0], &whole[299]) < 1e-3);
    assert!(max_difference(&batch[1], &all_logits(decoder, &other)[299]) < 1e-3);
}

#[test]
fn a_cache_refuses_more_than_it_holds() {
    let loaded = packed(None, "fp16", 32);
    let kv = KvPrecision::parse("fp16").unwrap();
    assert!(loaded.decoder.cache(1, 33, kv).is_err());
    let mut cache = loaded.decoder.cache(1, 8, kv).unwrap();
    let error = loaded.decoder.prefill(&[0; 9], 1, &mut cache).unwrap_err();
    assert!(error.to_string().contains("9 tokens"), "{error}");
}

/// NLLs of `transformers` in float32 on the same dequantized weights and tokens.
#[test]
fn smollm2_reproduces_the_reference_implementation() {
    let Some(model) = smollm2("smollm2_reproduces_the_reference_implementation") else {
        return;
    };
    let golden =
        |name: &str| Tensor::read_npy(root().join("tests/golden/smollm2").join(name)).unwrap();
    let ids: Vec<Vec<u32>> = golden("smollm2_tokens.npy")
        .to_dtype(DType::U32)
        .unwrap()
        .to_vec2()
        .unwrap();
    let expected: Vec<Vec<f64>> = golden("smollm2_nll.npy").to_vec2().unwrap();
    let logits: Vec<Vec<f32>> = golden("smollm2_logits_w0_p0-15.npy").to_vec2().unwrap();
    let mut loaded = packed(Some(&model), "fp32", 512);

    // As shipped: embedding and norms in F16, the cache in F16.
    let n = 20 * 511;
    let streams = [TokenStream {
        ids: ids.concat(),
        bytes: vec![1; 20 * 512],
    }];
    // Its tokenizer adds no BOS, so that both protocols feed the same windows.
    let texts = ["gptq-v1@512", "llamacpp-v1@512"].map(|id| ScoredText {
        protocol: id.into(),
        windows: Protocol::parse(id, 0)
            .unwrap()
            .windows(&[Length::of(20 * 512)], &SpecialTokens::default()),
    });
    let plan = Plan::new(&streams, &texts).unwrap();
    assert_eq!(plan.passes(), 20);
    let kv = KvPrecision::parse("fp16").unwrap();
    let mut model_as_shipped = CachedDecoder {
        decoder: &loaded.decoder,
        cache: loaded.decoder.cache(1, 512, kv).unwrap(),
    };
    let scores = plan
        .score(&mut model_as_shipped, &mut [], &mut |_, _| Ok(()))
        .unwrap();
    // The NLL of token t stands at t - 1: tokens 257 to 511 are the second half's.
    let halves: Vec<f64> = expected.iter().flat_map(|w| w[256..].to_vec()).collect();
    let means = [
        expected.concat().iter().sum::<f64>() / f64::from(n),
        halves.iter().sum::<f64>() / halves.len() as f64,
    ];
    assert_eq!(halves.len(), 20 * 255);
    assert!((means[0].exp() - 29.30827).abs() < 1e-4);
    for ((text, scores), mean) in texts.iter().zip(&scores).zip(means) {
        let found = nll::mean_nll(scores).unwrap();
        let (perplexity, reference) = (found.exp(), mean.exp());
        println!(
            "{} of the 20 windows: {perplexity:.5}, reference {reference:.5}",
            text.protocol
        );
        assert!((perplexity / reference - 1.0).abs() < 1e-4);
        assert!((found / mean - 1.0).abs() < 1e-4);
    }
    // Window by window, so that what is too high here cannot hide what is too low there.
    for (score, nlls) in scores[0].iter().zip(&expected) {
        let reference = nlls.iter().sum::<f64>();
        assert!((score.nll_sum_nats / reference - 1.0).abs() < 1e-3);
    }

    // In F32 throughout, as the reference was computed: token by token.
    use_f32_embedding_and_norms(&mut loaded.decoder, &model);
    let (mut difference, mut worst) = (0.0, 0f32);
    for (w, (ids, expected)) in ids.iter().zip(&expected).take(8).enumerate() {
        let rows = all_logits(&loaded.decoder, ids);
        if w == 0 {
            let differences = rows.iter().zip(&logits).map(|(a, b)| max_difference(a, b));
            worst = differences.fold(0.0, f32::max);
        }
        for (i, expected) in expected.iter().enumerate() {
            difference += (nll_nats(&rows[i], ids[i + 1]) - expected).abs();
        }
    }
    difference /= 8.0 * 511.0;
    println!("mean absolute difference of per-token NLL: {difference:.2e} nats");
    println!("largest difference of a logit: {worst:.2e}");
    assert!(difference < 1e-4);
    assert!(worst < 1e-2);
}

/// Replaces what quantbench keeps in F16 whatever the precision by the source's own F32.
fn use_f32_embedding_and_norms(decoder: &mut Decoder, model: &std::path::Path) {
    let source = formats::open(Some(model)).unwrap();
    let (vocab, hidden) = (decoder.config.vocab_size, decoder.config.hidden_size);
    let values = source.tensor(layout::EMBEDDING, &[vocab, hidden]).unwrap();
    let embedding = Arc::new(Dense::new(DType::F32, &values, (vocab, hidden)).unwrap());
    decoder.embedding = embedding.clone();
    decoder.head = embedding;
    let gain = |name: &str| {
        let values = source.tensor(name, &[hidden]).unwrap();
        Tensor::from_vec(values, hidden, &Device::Cpu).unwrap()
    };
    decoder.final_norm = gain(layout::FINAL_NORM);
    for (layer, block) in decoder.blocks.iter_mut().enumerate() {
        for row in layout::norms(&decoder.config) {
            block.gains.insert(row.norm, gain(&row.tensor(layer)));
        }
    }
}

/// Random weights keep activations in range: thirty blocks deep, logits are finite and as large
/// as those of a trained model.
#[test]
fn synthetic_models_give_finite_logits_at_every_precision() {
    let shape = quantbench::formats::shapes::named(Path::new("synthetic:smollm2-135m"));
    let config = shape.unwrap().unwrap().info.config;
    let kv = KvPrecision::parse("fp16").unwrap();
    let ids: Vec<u32> = (0..24)
        .map(|i| i * 1999 % config.vocab_size as u32)
        .collect();
    for listed in quant::families().flat_map(|f| f.ids) {
        let spec = quant::parse(listed.id).unwrap().spec();
        let logits = |seed| -> Vec<f32> {
            let decoder = synthetic::decoder(&config, &spec, seed, 24, &cpu()).unwrap();
            let mut cache = decoder.cache(1, 24, kv).unwrap();
            let logits = decoder.prefill(&ids, 1, &mut cache).unwrap();
            logits.flatten_all().unwrap().to_vec1().unwrap()
        };
        let first = logits(1);
        assert_eq!(first.len(), config.vocab_size);
        assert!(first.iter().all(|x| x.is_finite()), "{}", listed.id);
        let squares: f64 = first.iter().map(|x| f64::from(*x).powi(2)).sum();
        let size = (squares / first.len() as f64).sqrt();
        assert!((0.1..10.0).contains(&size), "{}: {size}", listed.id);
        if listed.id == "rtn-int4" {
            assert_eq!(first, logits(1));
            assert_ne!(first, logits(2));
        }
    }
}

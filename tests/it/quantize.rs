//! Whole models on their way through a method, on the CPU: what is refused, what is counted, and
//! tensors that a folder brings.

use crate::common::{cpu, fp16_cache};
use candle_core::{DType, Device, Tensor};
use quantbench::Result;
use quantbench::formats::drawn::Drawn;
use quantbench::formats::source::{SourceInfo, WeightSource};
use quantbench::formats::{self, native};
use quantbench::model::angles::RopeScaling;
use quantbench::model::config::Config;
use quantbench::model::kv_cache::KvPrecision;
use quantbench::model::layout::layout;
use quantbench::quant;
use quantbench::run::quantize::{Quantized, Setting, quantize, quantize_in};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn config(kv_heads: usize) -> Config {
    Config {
        architecture: "qwen2".into(),
        hidden_size: 32,
        intermediate_size: 48,
        layers: 2,
        heads: 4,
        kv_heads,
        head_dim: 8,
        vocab_size: 64,
        max_position_embeddings: 64,
        // As GGUF has it.
        rms_norm_eps: f64::from(1e-5f32),
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        tied_head: true,
        qkv_bias: true,
        bos_token_id: None,
        eos_token_id: None,
    }
}

/// A drawn model, one of whose values is another.
struct Changed {
    drawn: Drawn,
    name: String,
    at: usize,
    value: f32,
}

impl Changed {
    fn new(config: Config, name: &str, at: usize, value: f32) -> Self {
        let name = name.into();
        let drawn = Drawn::new("tiny", "nothing", config);
        Changed {
            drawn,
            name,
            at,
            value,
        }
    }

    /// As it was drawn.
    fn nothing(config: Config) -> Self {
        Changed::new(config, "", 0, 0.0)
    }
}

impl WeightSource for Changed {
    fn info(&self) -> &SourceInfo {
        self.drawn.info()
    }

    fn has(&self, name: &str) -> bool {
        self.drawn.has(name)
    }

    fn tensor(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let mut values = self.drawn.tensor(name, expected)?;
        if name == self.name {
            values[self.at] = self.value;
        }
        Ok(values)
    }

    fn sha256(&self) -> Result<String> {
        Ok(String::new())
    }
}

fn quantized(source: &Changed, id: &str) -> Result<Quantized> {
    let windows: Vec<Vec<u32>> = (0..2)
        .map(|w| (0..48).map(|i| (i * i + 37 * i + w) % 64).collect())
        .collect();
    let method = quant::parse(id)?;
    let kv = KvPrecision::parse("fp16").unwrap();
    quantize(source, method.as_ref(), &windows, kv, &mut |_, _| Ok(()))
}

fn refusal(source: &Changed, id: &str) -> String {
    match quantized(source, id) {
        Ok(_) => panic!("{} is not refused by {id}", source.name),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_stays_in_fp16_must_fit_it() {
    assert!(quantized(&Changed::nothing(config(2)), "rtn-int8").is_ok());
    for name in [
        "model.layers.1.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.1.self_attn.v_proj.bias",
        "model.norm.weight",
        EMBEDDING,
    ] {
        for value in [7e4, -1e30, f32::INFINITY, f32::NAN] {
            let source = Changed::new(config(2), name, 3, value);
            for id in ["fp16", "rtn-int8", "awq-int4"] {
                let message = refusal(&source, id);
                let what = format!("`{name}` holds {value} at 3");
                assert!(message.contains(&what), "{id}: {message}");
            }
        }
        let largest = Changed::new(config(2), name, 3, 65504.0);
        assert!(quantized(&largest, "fp16").is_ok(), "{name}");
    }
}

/// `o_proj`, where grouped-query attention makes `v_proj` narrower.
#[test]
fn groups_that_cannot_be_folded_are_counted() {
    let notes = |kv_heads| {
        let source = Changed::nothing(config(kv_heads));
        quantized(&source, "awq-int4").unwrap().notes
    };
    let (narrow, whole) = (notes(2), notes(4));
    assert_eq!(narrow["awq_unfoldable_groups"], 2.0);
    assert_eq!(narrow["awq_groups"], 6.0);
    assert!(!whole.contains_key("awq_unfoldable_groups"));
    assert_eq!(whole["awq_groups"], 8.0);
}

/// A folder with the weights of a model, its config.json and these tensors besides or instead.
struct Folder {
    dir: tempfile::TempDir,
    id: String,
}

impl Folder {
    fn new(source: &Changed, changed: &[(&str, Vec<f32>)]) -> Folder {
        let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = layout(source.config())
            .into_iter()
            .map(|(name, shape)| {
                let values = source.tensor(&name, &shape).unwrap();
                (name, (shape, values))
            })
            .collect();
        for (name, values) in changed {
            tensors.insert(name.to_string(), (vec![64, 32], values.clone()));
        }
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, (shape, values))| {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
            (name.as_str(), view)
        });
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weights.safetensors");
        safetensors::serialize_to_file(views, None, &file).unwrap();
        let about = "name = \"mine\"\nbits_per_weight = 4\nformat = \"x\"\n";
        fs::write(dir.path().join("quantbench.toml"), about).unwrap();
        let id = format!("dir:{}", dir.path().display());
        Folder { dir, id }
    }

    fn describe(&self, config: &Value) {
        fs::write(self.dir.path().join("config.json"), config.to_string()).unwrap();
    }
}

/// The `config.json` of [`config`]`(2)`.
fn config_json() -> Value {
    json!({
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": true, "bos_token_id": 1,
        "quantization_config": {"quant_method": "gptq"},
    })
}

#[test]
fn a_folder_of_another_decoder_is_refused_by_key() {
    let source = Changed::nothing(config(2));
    let folder = Folder::new(&source, &[]);
    folder.describe(&config_json());
    quantized(&source, &folder.id).unwrap();
    for (key, value, words) in [
        (
            "tie_word_embeddings",
            json!(false),
            "is false, the model's is true",
        ),
        ("head_dim", json!(16), "is 16, the model's is 8"),
        ("num_key_value_heads", json!(4), "is 4, the model's is 2"),
        ("rms_norm_eps", json!(1e-6), "is 0.000001, the model's is"),
        ("rope_theta", json!(1e4), "is 10000, the model's is 500000"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0}),
            "is Linear { factor: 2.0 }, the model's is None",
        ),
        (
            "max_position_embeddings",
            json!(128),
            "is 128, the model's is 64",
        ),
        ("hidden_act", json!("gelu"), "\"gelu\""),
        ("vocab_size", Value::Null, "is missing"),
    ] {
        let mut other = config_json();
        other[key] = value;
        folder.describe(&other);
        let message = refusal(&source, &folder.id);
        let named = message.contains(&format!("`{key}`")) && message.contains("config.json");
        assert!(named && message.contains(words), "{message}");
    }
    let mut plain = config_json();
    plain["model_type"] = json!("llama");
    folder.describe(&plain);
    let message = refusal(&source, &folder.id);
    assert!(message.contains("`attention_bias` is false"), "{message}");
    // Of the same layers under another name.
    plain["attention_bias"] = json!(true);
    folder.describe(&plain);
    quantized(&source, &folder.id).unwrap();
}

/// Llama 3's scaling is a rule in `config.json` and its result in GGUF.
#[test]
fn positions_are_compared_however_they_are_stated() {
    let mut scaled = config(2);
    // Wavelengths of 6.3, 167, 4443 and 118148 tokens.
    scaled.rope_scaling = RopeScaling::Factors(vec![1.0, 1.0, 2.694_53, 8.0]);
    let source = Changed::nothing(scaled);
    let folder = Folder::new(&source, &[]);
    let mut json = config_json();
    json["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    folder.describe(&json);
    quantized(&source, &folder.id).unwrap();
    json["rope_scaling"]["factor"] = json!(9.0);
    folder.describe(&json);
    let message = refusal(&source, &folder.id);
    assert!(message.contains("`rope_scaling` is Llama3"), "{message}");
}

#[test]
fn a_folder_cannot_bring_a_head_for_tied_embeddings() {
    let source = Changed::nothing(config(2));
    let embedding = source.tensor(EMBEDDING, &[64, 32]).unwrap();
    let mut other = embedding.clone();
    let last = other.len() - 1;
    other[last] += 1.0;
    // Its own embedding once more, whether or not that is the model's.
    for same in [&embedding, &other] {
        let both = [(EMBEDDING, same.clone()), (HEAD, same.clone())];
        quantized(&source, &Folder::new(&source, &both).id).unwrap();
    }
    for changed in [
        vec![(HEAD, other.clone())],
        vec![(EMBEDDING, other), (HEAD, embedding)],
    ] {
        let folder = Folder::new(&source, &changed);
        let message = refusal(&source, &folder.id);
        for words in [HEAD, "`tie_word_embeddings`", "at 2047", &folder.id] {
            assert!(message.contains(words), "{words}: {message}");
        }
    }
    // Where the model has a head of its own, so may the folder.
    let mut untied = config(2);
    untied.tied_head = false;
    let source = Changed::nothing(untied);
    let head = vec![0.5; 64 * 32];
    quantized(&source, &Folder::new(&source, &[(HEAD, head)]).id).unwrap();
}

#[test]
fn a_config_json_that_cannot_be_read_is_named() {
    let source = Changed::nothing(config(2));
    let folder = Folder::new(&source, &[]);
    let path: &Path = &folder.dir.path().join("config.json");
    for text in ["", "[]", "{}"] {
        fs::write(path, text).unwrap();
        let message = refusal(&source, &folder.id);
        assert!(message.contains("config.json"), "{message}");
    }
}

#[test]
fn drawn_weights_are_quantized_in_a_file_as_in_memory() {
    let config = Config {
        hidden_size: 128,
        intermediate_size: 320,
        head_dim: 32,
        tied_head: false,
        qkv_bias: false,
        ..config(2)
    };
    let source = Drawn::new("tiny", "nothing", config);
    let method = quant::parse("rtn-int4").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut files = BTreeMap::new();
    for spool in [None, Some(folder.path().to_path_buf())] {
        let path = folder.path().join(format!("{}", spool.is_some()));
        let setting = Setting {
            kernels: cpu(),
            kv: fp16_cache(),
            spool,
        };
        let done = quantize_in(&setting, &source, method.as_ref(), &[], &mut |_, _| Ok(()));
        done.unwrap().model.write(&path).unwrap();
        files.insert(path.clone(), std::fs::read(&path).unwrap());
    }
    let bytes: Vec<&Vec<u8>> = files.values().collect();
    assert!(bytes[0] == bytes[1], "the files differ");
    assert!(formats::open(Some(Path::new("synthetic-fp16:llama-2-7b"))).is_ok());
}

#[test]
fn a_bias_that_the_configuration_lacks_is_refused() {
    let config = Config {
        qkv_bias: false,
        ..config(2)
    };
    let source = Drawn::new("tiny", "nothing", config);
    let method = quant::parse("fp16").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed");
    let written = |bias: Option<&str>| {
        let done = quantize(&source, method.as_ref(), &[], fp16_cache(), &mut |_, _| {
            Ok(())
        });
        let mut model = done.unwrap().model;
        if let Some(name) = bias {
            let zeros = Tensor::zeros(32, DType::F16, &Device::Cpu).unwrap();
            model.add_tensor(name, zeros).unwrap();
        }
        model.write(&path).unwrap();
        native::load(&path, 16, &cpu()).map(drop)
    };
    written(None).unwrap();
    for module in [
        "layers.0.self_attn.q_proj",
        "layers.1.mlp.down_proj",
        "norm",
    ] {
        let name = format!("model.{module}.bias");
        let message = written(Some(&name)).unwrap_err().to_string();
        assert!(
            message.contains(&name) && message.contains("no bias"),
            "{message}"
        );
    }
}

//! Weight sources: exact values, and files that lie about themselves.

use std::fs;
use std::path::{Path, PathBuf};

use crate::allocations::largest_allocation;
use half::{bf16, f16};
use quantbench::Error;
use quantbench::formats::{open, source::WeightSource};
use quantbench::hash::sha256;
use quantbench::model::angles::RopeScaling;
use quantbench::model::config::Config;
use quantbench::model::layout::layout;
use serde_json::{Value, json};

// ---------------------------------------------------------------- the largest allocation

/// Runs a test whose files are all small: so must be every allocation.
fn without_wild_allocations(test: impl FnOnce()) {
    let largest = largest_allocation(test);
    assert!(
        (1..4 << 20).contains(&largest),
        "{largest} bytes were asked for at once"
    );
}

// ---------------------------------------------------------------- what the fixtures hold

/// 2 layers, 2 query heads on 1 key/value head, head dimension 4: every shape differs.
fn config_json() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 6, "intermediate_size": 10, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 12,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": [1, 2],
    })
}

fn with(key: &str, value: Value) -> Value {
    let mut config = config_json();
    config[key] = value;
    config
}

fn parse(json: &Value) -> Result<(Config, Vec<String>), Error> {
    Config::from_hugging_face(Path::new("config.json"), &json.to_string())
}

/// A value for every element of every tensor, exact in F16 and BF16.
fn value(name: &str, i: usize) -> f32 {
    let salt: usize = name.bytes().map(usize::from).sum();
    ((salt * 31 + i * 7) % 255) as f32 / 64.0 - 2.0
}

fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    (0..shape.iter().product())
        .map(|i| value(name, i))
        .collect()
}

fn encode(dtype: &str, values: &[f32]) -> Vec<u8> {
    match dtype {
        "F32" => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        "F16" => values
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect(),
        "BF16" => values
            .iter()
            .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
            .collect(),
        _ => unreachable!(),
    }
}

// ---------------------------------------------------------------- safetensors

type Named = (String, String, Vec<usize>, Vec<u8>);

fn safetensors(tensors: &[Named]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
        data.extend_from_slice(bytes);
    }
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    framed(&Value::Object(header).to_string(), &data)
}

fn framed(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

fn tensors_of(config: &Config, dtype: &str) -> Vec<Named> {
    layout(config)
        .into_iter()
        .map(|(name, shape)| {
            let bytes = encode(dtype, &values(&name, &shape));
            (name, dtype.to_string(), shape, bytes)
        })
        .collect()
}

fn folder(config: &Value, files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn assert_fixture(source: &dyn WeightSource) {
    for (name, shape) in layout(source.config()) {
        assert!(source.has(&name));
        let found = source.tensor(&name, &shape).unwrap();
        assert_eq!(found, values(&name, &shape), "{name}");
    }
}

/// The error of opening, which must be of the given kind and say all the words.
fn refused(path: &Path, kind: &str, words: &[&str]) {
    let error = match open(Some(path)) {
        Ok(_) => panic!("{} opened; expected {words:?}", path.display()),
        Err(error) => error,
    };
    let found = match error {
        Error::Usage { .. } => "usage",
        Error::Io { .. } => "io",
        Error::File { .. } => "file",
        Error::Tensor(_) => "tensor",
        Error::Unsupported { .. } => "unsupported",
        _ => "other",
    };
    let text = error.to_string();
    assert_eq!(found, kind, "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(text.contains("\n  "), "no way out in: {text}");
}

#[test]
fn every_float_type_reads_exactly() {
    let (config, _) = parse(&config_json()).unwrap();
    for dtype in ["F32", "F16", "BF16"] {
        let file = safetensors(&tensors_of(&config, dtype));
        let hash = sha256([&file[..]]);
        let folder = folder(&config_json(), &[("model.safetensors", file)]);
        let source = open(Some(folder.path())).unwrap();
        assert_fixture(&*source);
        let format = format!("safetensors-{}", dtype.to_lowercase());
        assert_eq!(source.info().source_format, format);
        assert_eq!(source.sha256().unwrap(), hash);
        assert_eq!(source.config(), &config);
        let wrong = source
            .tensor("model.norm.weight", &[7])
            .unwrap_err()
            .to_string();
        assert!(wrong.contains("[7]") && wrong.contains("[6]"), "{wrong}");
        assert!(source.tensor("nothing", &[1]).is_err());
    }
    // Every bit pattern of the two narrow types, NaN and subnormals included.
    let mut json = with("vocab_size", json!(65536));
    json["hidden_size"] = json!(1);
    let (config, _) = parse(&json).unwrap();
    for dtype in ["F16", "BF16"] {
        let mut tensors = tensors_of(&config, dtype);
        let embedding = tensors.iter_mut().find(|t| t.0.contains("embed")).unwrap();
        embedding.3 = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let folder = folder(&json, &[("model.safetensors", safetensors(&tensors))]);
        let source = open(Some(folder.path())).unwrap();
        let found = source
            .tensor("model.embed_tokens.weight", &[65536, 1])
            .unwrap();
        for (bits, found) in found.iter().enumerate() {
            let wanted = match dtype {
                "F16" => f16::from_bits(bits as u16).to_f32(),
                _ => f32::from_bits((bits as u32) << 16),
            };
            assert!(wanted.is_nan() && found.is_nan() || wanted.to_bits() == found.to_bits());
        }
    }
}

#[test]
fn a_mixed_checkpoint_says_so() {
    let (config, _) = parse(&config_json()).unwrap();
    let mut tensors = tensors_of(&config, "F16");
    let other = tensors_of(&config, "F32");
    for (t, o) in tensors.iter_mut().zip(&other) {
        // Norms in F32 beside linears in F16 are common and do not count.
        if t.0.contains("norm") {
            *t = o.clone();
        }
    }
    let one = folder(
        &config_json(),
        &[("model.safetensors", safetensors(&tensors))],
    );
    assert_eq!(
        open(Some(one.path())).unwrap().info().source_format,
        "safetensors-f16"
    );
    let at = tensors
        .iter()
        .position(|t| t.0.contains("up_proj"))
        .unwrap();
    tensors[at] = other[at].clone();
    let two = folder(
        &config_json(),
        &[("model.safetensors", safetensors(&tensors))],
    );
    let source = open(Some(two.path())).unwrap();
    assert_eq!(source.info().source_format, "safetensors-mixed");
    assert_fixture(&*source);
}

#[test]
fn shards_equal_one_file() {
    let (config, _) = parse(&config_json()).unwrap();
    let tensors = tensors_of(&config, "BF16");
    let parts: Vec<(String, &[Named])> = tensors
        .chunks(tensors.len().div_ceil(3))
        .enumerate()
        .map(|(i, part)| (format!("model-{}-of-3.safetensors", i + 1), part))
        .collect();
    let map: serde_json::Map<String, Value> = parts
        .iter()
        .flat_map(|(file, part)| part.iter().map(move |t| (t.0.clone(), json!(file))))
        .collect();
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    let mut files: Vec<(&str, Vec<u8>)> = parts
        .iter()
        .map(|(file, part)| (file.as_str(), safetensors(part)))
        .collect();

    // Without an index, every file is read.
    let loose = folder(&config_json(), &files);
    assert_fixture(&*open(Some(loose.path())).unwrap());

    files.push(("model.safetensors.index.json", index.clone().into_bytes()));
    // Not in the index, so not read: some publishers keep a second copy beside it.
    files.push(("consolidated.safetensors", safetensors(&tensors)));
    let sharded = folder(&config_json(), &files);
    let source = open(Some(sharded.path())).unwrap();
    assert_fixture(&*source);
    let bytes: Vec<u8> = files[..3].iter().flat_map(|(_, b)| b.clone()).collect();
    assert_eq!(source.sha256().unwrap(), sha256([&bytes[..]]));
    drop(source);

    fs::remove_file(sharded.path().join(&parts[1].0)).unwrap();
    refused(sharded.path(), "io", &["model-2-of-3.safetensors"]);
    fs::write(
        sharded.path().join("model.safetensors.index.json"),
        index.replacen("model-1-of-3", "../model-1-of-3", 1),
    )
    .unwrap();
    refused(sharded.path(), "file", &["weight_map", "../model-1-of-3"]);

    // The same tensor in two files.
    let twice = folder(
        &config_json(),
        &[
            ("a.safetensors", safetensors(&tensors)),
            ("b.safetensors", safetensors(&tensors)),
        ],
    );
    refused(
        twice.path(),
        "file",
        &["a.safetensors", "b.safetensors", "is also in"],
    );
}

#[test]
fn hostile_safetensors_are_refused() {
    without_wild_allocations(hostile_safetensors);
}

fn hostile_safetensors() {
    let (config, _) = parse(&config_json()).unwrap();
    let tensors = tensors_of(&config, "F32");
    let good = safetensors(&tensors);
    let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let dir = folder(&config_json(), &[]);
    let path = dir.path().join("model.safetensors");
    let case = |bytes: &[u8], kind: &str, words: &[&str]| {
        // The same path again: a mapping of the old file must not be cut short.
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).unwrap();
        refused(dir.path(), kind, words);
    };

    case(b"", "file", &["empty"]);
    // Every truncation of length and header, and some of the data.
    for cut in (1..8 + length + 1).chain([good.len() - 1]) {
        case(&good[..cut], "file", &["model.safetensors"]);
    }
    for claim in [1 << 60, u64::MAX, u64::MAX - 7, good.len() as u64] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&claim.to_le_bytes());
        case(&bytes, "file", &["header claims", &claim.to_string()]);
    }
    let more = [&good[..], b"x"].concat();
    case(&more, "file", &["belong to none"]);

    let entry = |entry: Value| framed(&json!({"model.norm.weight": entry}).to_string(), &[0; 24]);
    let norm = |shape: Value, offsets: Value| {
        entry(json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}))
    };
    case(
        &norm(json!([6]), json!([0, 28])),
        "file",
        &["model.norm.weight", "0..28"],
    );
    case(&norm(json!([6]), json!([24, 0])), "file", &["24..0"]);
    case(
        &norm(json!([6]), json!([0, u64::MAX])),
        "file",
        &["model.norm.weight"],
    );
    case(
        &norm(json!([5]), json!([0, 24])),
        "tensor",
        &["[5]", "24 bytes"],
    );
    case(
        &norm(json!([u64::MAX, 8]), json!([0, 24])),
        "tensor",
        &["24 bytes"],
    );
    case(
        &norm(json!([1u64 << 62, 4]), json!([0, 0])),
        "tensor",
        &["0 bytes"],
    );
    case(
        &norm(json!([-6]), json!([0, 24])),
        "file",
        &["bad header entry"],
    );
    case(&norm(json!([6]), json!([0])), "file", &["bad header entry"]);
    case(&entry(json!(7)), "file", &["bad header entry"]);
    case(&framed("[]", b""), "file", &["not valid JSON"]);
    case(
        &framed(&"[".repeat(100_000), b""),
        "file",
        &["not valid JSON"],
    );
    case(
        &entry(json!({"dtype": "I32", "shape": [6], "data_offsets": [0, 24]})),
        "unsupported",
        &["model.norm.weight", "I32"],
    );
    let two = json!({
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    });
    case(
        &framed(&two.to_string(), &[0; 24]),
        "file",
        &["`b` overlaps"],
    );
    let gap = json!({
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    });
    case(&framed(&gap.to_string(), &[0; 24]), "file", &["gap"]);

    // Valid files that do not fit the configuration.
    let missing: Vec<Named> = tensors
        .iter()
        .filter(|t| !t.0.ends_with("1.mlp.up_proj.weight"))
        .cloned()
        .collect();
    case(
        &safetensors(&missing),
        "tensor",
        &[
            "model.layers.1.mlp.up_proj.weight",
            "[10, 6]",
            "no such tensor",
        ],
    );
    let mut wrong = tensors.clone();
    wrong[0].2.reverse();
    case(
        &safetensors(&wrong),
        "tensor",
        &[&wrong[0].0, "[12, 6]", "[6, 12]"],
    );
    let extra = |name: &str| {
        let mut tensors = tensors.clone();
        tensors.push((name.into(), "F32".into(), vec![1], vec![0; 4]));
        safetensors(&tensors)
    };
    for name in [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.up_proj.bias",
    ] {
        case(&extra(name), "unsupported", &[name, "no place"]);
    }
    let _ = fs::remove_file(&path);
    fs::write(&path, extra("model.layers.0.self_attn.rotary_emb.inv_freq")).unwrap();
    assert_fixture(&*open(Some(dir.path())).unwrap());

    // A configuration that claims more layers than there are tensors builds no list of them.
    let many = folder(
        &with("num_hidden_layers", json!(1_000_000)),
        &[("model.safetensors", good)],
    );
    refused(many.path(), "file", &["1000000 layers"]);
}

#[test]
fn a_head_beside_tied_embeddings_is_the_embedding_once_more() {
    let (config, _) = parse(&config_json()).unwrap();
    let tensors = tensors_of(&config, "F16");
    let embedding = values("model.embed_tokens.weight", &[12, 6]);
    let beside = |dtype: &str, shape: &[usize], values: &[f32]| {
        let mut tensors = tensors.clone();
        let bytes = encode(dtype, values);
        tensors.push(("lm_head.weight".into(), dtype.into(), shape.into(), bytes));
        let file = safetensors(&tensors);
        folder(&config_json(), &[("model.safetensors", file)])
    };
    for dtype in ["F32", "F16", "BF16"] {
        let same = beside(dtype, &[12, 6], &embedding);
        assert_fixture(&*open(Some(same.path())).unwrap());
    }
    let mut other = embedding.clone();
    other[71] += 0.25;
    let found = format!(
        "found {} at 71, where that has {}",
        other[71], embedding[71]
    );
    let words = [
        "model.safetensors",
        "`lm_head.weight`",
        "`tie_word_embeddings`",
        &found,
    ];
    for dtype in ["F32", "F16"] {
        refused(beside(dtype, &[12, 6], &other).path(), "tensor", &words);
    }
    let turned = beside("F16", &[6, 12], &embedding);
    refused(turned.path(), "tensor", &["`lm_head.weight`", "[12, 6]"]);

    // More values than are compared at once, the last of which differs.
    let long = with("vocab_size", json!(20_000));
    let (config, _) = parse(&long).unwrap();
    let mut tensors = tensors_of(&config, "F16");
    let mut head = values("model.embed_tokens.weight", &[20_000, 6]);
    head[119_999] = 100.0;
    let bytes = encode("F16", &head);
    tensors.push((
        "lm_head.weight".into(),
        "F16".into(),
        vec![20_000, 6],
        bytes,
    ));
    let long = folder(&long, &[("model.safetensors", safetensors(&tensors))]);
    refused(long.path(), "tensor", &["found 100 at 119999"]);
}

#[test]
fn folders_that_are_no_model() {
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), "io", &["config.json"]);
    let bare = folder(&config_json(), &[]);
    refused(bare.path(), "file", &["no *.safetensors"]);
    let pickled = folder(&config_json(), &[("pytorch_model.bin", vec![0])]);
    refused(pickled.path(), "unsupported", &["pickled", "Convert"]);
    refused(&empty.path().join("nothing"), "io", &["embedded"]);
    let text = empty.path().join("model.gguf");
    fs::write(&text, "not what its name says").unwrap();
    refused(&text, "file", &["neither a folder nor a GGUF file"]);
    let one = empty.path().join("one.safetensors");
    fs::write(&one, "x").unwrap();
    refused(&one, "file", &["config.json"]);
}

#[test]
fn quantized_folders_are_unsupported() {
    let gptq = with(
        "quantization_config",
        json!({"quant_method": "gptq", "bits": 4}),
    );
    let dir = folder(&gptq, &[]);
    refused(
        dir.path(),
        "unsupported",
        &["`quantization_config`", "gptq", "full-precision"],
    );
    for file in [
        "quantize_config.json",
        "quant_config.json",
        "hf_quant_config.json",
    ] {
        let dir = folder(&config_json(), &[(file, b"{}".to_vec())]);
        refused(dir.path(), "unsupported", &[file]);
    }
    let dense = parse(&with("quantization_config", Value::Null));
    assert!(dense.is_ok());
}

// ---------------------------------------------------------------- config.json

#[test]
fn configuration_is_read() {
    let (config, warnings) = parse(&config_json()).unwrap();
    assert!(warnings.is_empty());
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (2, 1, 4));
    assert_eq!(
        (config.bos_token_id, config.eos_token_id),
        (Some(0), Some(1))
    );
    assert!(config.tied_head && !config.qkv_bias);
    assert_eq!(config.rope_scaling, RopeScaling::None);
}

#[test]
fn configuration_defaults() {
    let mut json = with("hidden_size", json!(8));
    for key in [
        "head_dim",
        "num_key_value_heads",
        "tie_word_embeddings",
        "rope_theta",
    ] {
        json.as_object_mut().unwrap().remove(key);
    }
    let (config, _) = parse(&json).unwrap();
    assert_eq!((config.head_dim, config.kv_heads), (4, 2));
    assert_eq!((config.tied_head, config.rope_theta), (false, 10_000.0));

    json["model_type"] = json!("qwen2");
    json["architectures"] = json!(["Qwen2ForCausalLM"]);
    // Qwen2's own default is another number, so it must be there.
    assert!(
        parse(&json)
            .unwrap_err()
            .to_string()
            .contains("num_key_value_heads")
    );
    json["num_key_value_heads"] = json!(2);
    json["sliding_window"] = json!(16);
    json["use_sliding_window"] = json!(false);
    let (config, warnings) = parse(&json).unwrap();
    assert!(config.qkv_bias && warnings.is_empty());
    assert_eq!(config.max_position_embeddings, 64);
    let biases = layout(&config)
        .keys()
        .filter(|name| name.ends_with("bias"))
        .count();
    assert_eq!(biases, 2 * 3);

    json["use_sliding_window"] = json!(true);
    let (config, warnings) = parse(&json).unwrap();
    assert_eq!(config.max_position_embeddings, 16);
    assert!(warnings[0].contains("sliding"));
}

/// As transformers' `MistralConfig` has it: the window is there unless the file says null.
#[test]
fn mistral_has_a_window_by_default() {
    let mut json = with("model_type", json!("mistral"));
    json["architectures"] = json!(["MistralForCausalLM"]);
    json["max_position_embeddings"] = json!(32768);
    let (config, warnings) = parse(&json).unwrap();
    assert_eq!(config.max_position_embeddings, 4096);
    assert!(warnings[0].contains("sliding"), "{warnings:?}");
    json["sliding_window"] = Value::Null;
    let (config, warnings) = parse(&json).unwrap();
    assert_eq!(config.max_position_embeddings, 32768);
    assert!(warnings.is_empty());
    // Within the window there is nothing to say.
    json.as_object_mut().unwrap().remove("sliding_window");
    json["max_position_embeddings"] = json!(2048);
    let (config, warnings) = parse(&json).unwrap();
    assert_eq!(config.max_position_embeddings, 2048);
    assert!(warnings.is_empty());
}

#[test]
fn rotary_scaling_in_old_and_new_words() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let wanted = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let (old, _) = parse(&with("rope_scaling", llama3.clone())).unwrap();
    assert_eq!(old.rope_scaling, wanted);
    let mut new = llama3.clone();
    new["rope_theta"] = json!(500_000.0);
    let (new, _) = parse(&with("rope_parameters", new)).unwrap();
    assert_eq!((new.rope_scaling, new.rope_theta), (wanted, 500_000.0));
    for key in ["type", "rope_type"] {
        let linear = json!({key: "linear", "factor": 2.0});
        let (config, _) = parse(&with("rope_scaling", linear)).unwrap();
        assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    }
    let plain = json!({"rope_type": "default", "rope_theta": 7.0});
    let (config, _) = parse(&with("rope_parameters", plain)).unwrap();
    assert_eq!(
        (config.rope_scaling, config.rope_theta),
        (RopeScaling::None, 7.0)
    );
    for (bad, word) in [
        (json!({"type": "yarn", "factor": 2.0}), "yarn"),
        (json!({"type": "linear"}), "rope_scaling.factor"),
        (
            json!({"type": "linear", "factor": -1.0}),
            "rope_scaling.factor",
        ),
        (
            json!({"rope_type": "llama3", "factor": 2.0}),
            "low_freq_factor",
        ),
        (json!(3), "rope_scaling"),
    ] {
        let text = parse(&with("rope_scaling", bad)).unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
    }
}

/// What is not understood of a section is never read as "unscaled".
#[test]
fn rotary_sections_that_are_not_understood_are_refused() {
    for section in ["rope_scaling", "rope_parameters"] {
        for (bad, word) in [
            (json!({"factor": 4.0}), "`rope_type` is missing"),
            (
                json!({"rope_type": "default", "factor": 4.0}),
                "`rope_type` is default",
            ),
            (
                json!({"rope_type": null, "factor": 4.0}),
                "`rope_type` is missing",
            ),
            (json!({"type": 1, "factor": 4.0}), ".type` is 1"),
            (json!({"type": ["linear"], "factor": 4.0}), ".type` is"),
            (
                json!({"rope_type": "default", "type": "linear", "factor": 4.0}),
                "\"linear\"",
            ),
            (
                json!({"full_attention": {"rope_type": "linear", "factor": 4.0}}),
                "full_attention",
            ),
            (
                json!({"rope_type": "default", "sliding_attention": {"rope_type": "default"}}),
                "sliding_attention",
            ),
        ] {
            let text = parse(&with(section, bad)).unwrap_err().to_string();
            assert!(text.contains(word) && text.contains(section), "{text}");
        }
        for plain in [
            json!({}),
            json!({"rope_type": "default", "factor": 1.0}),
            json!({"factor": 1}),
            json!({"type": "default", "rope_type": "default", "mrope_section": [1, 1]}),
        ] {
            let (config, _) = parse(&with(section, plain)).unwrap();
            assert_eq!(config.rope_scaling, RopeScaling::None);
        }
    }
}

#[test]
fn both_rotary_sections_must_say_the_same() {
    let both = |old: Value, new: Value| {
        let mut json = with("rope_scaling", old);
        json["rope_parameters"] = new;
        parse(&json)
    };
    let old = json!({"type": "linear", "factor": 2.0});
    let new = json!({"rope_type": "linear", "factor": 2, "rope_theta": 10000.0});
    let (config, _) = both(old.clone(), new).unwrap();
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    for other in [
        json!({"rope_type": "default"}),
        json!({"rope_type": "linear", "factor": 4.0}),
        json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000.0}),
    ] {
        let text = both(old.clone(), other).unwrap_err().to_string();
        assert!(
            text.contains("`rope_parameters`") && text.contains("`rope_scaling`"),
            "{text}"
        );
    }
    // Absent, as JSON has it.
    let (config, _) = both(old, Value::Null).unwrap();
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn other_models_are_refused_by_key() {
    for (key, value, kind) in [
        ("model_type", json!("gemma2"), "unsupported"),
        ("model_type", Value::Null, "file"),
        (
            "architectures",
            json!(["LlamaForSequenceClassification"]),
            "unsupported",
        ),
        ("hidden_act", json!("gelu"), "unsupported"),
        ("mlp_bias", json!(true), "unsupported"),
        ("num_local_experts", json!(8), "unsupported"),
        ("partial_rotary_factor", json!(0.5), "unsupported"),
        ("hidden_size", json!(0), "file"),
        ("hidden_size", json!("six"), "file"),
        ("vocab_size", Value::Null, "file"),
        ("num_hidden_layers", json!(u64::MAX), "file"),
        ("tie_word_embeddings", json!("yes"), "file"),
        ("bos_token_id", json!(-1), "file"),
    ] {
        let error = parse(&with(key, value)).unwrap_err();
        let found = match error {
            Error::Unsupported { .. } => "unsupported",
            Error::File { .. } => "file",
            _ => "other",
        };
        assert_eq!(found, kind, "{error}");
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
    for (key, value) in [
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(5)),
        ("rms_norm_eps", json!(0.0)),
        ("rope_theta", json!(0.5)),
        ("intermediate_size", json!(1 << 30)),
    ] {
        assert!(
            matches!(parse(&with(key, value)), Err(Error::File { .. })),
            "{key}"
        );
    }
    for text in ["", "[]", "{", "null"] {
        assert!(Config::from_hugging_face(Path::new("config.json"), text).is_err());
    }
}

// ---------------------------------------------------------------- the embedded model

#[test]
fn the_embedded_model_opens() {
    let source = open(None).unwrap();
    assert_eq!(
        source.sha256().unwrap(),
        "4ce8c8f559e64eaa78404af0faccfd63d731ae7410bdcdf67cf8178ee4ceefd2"
    );
    assert_eq!(source.info().source_format, "safetensors-f16");
    let weights: usize = layout(source.config())
        .iter()
        .map(|(name, shape)| source.tensor(name, shape).unwrap().len())
        .sum();
    assert_eq!(weights, 7_344_384);
    // The same files as a folder.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/embedded-model");
    let copy = open(Some(&folder)).unwrap();
    assert_eq!(copy.config(), source.config());
    assert_eq!(copy.sha256().unwrap(), source.sha256().unwrap());
}

// ---------------------------------------------------------------- GGUF

/// Name, dimensions (fastest first), type id, bytes.
type GgufTensor = (String, Vec<u64>, u32, Vec<u8>);

/// Writes GGUF, right or wrong.
#[derive(Clone, Default)]
struct Writer {
    values: Vec<Vec<u8>>,
    tensors: Vec<GgufTensor>,
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

impl Writer {
    fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) -> &mut Self {
        let entry = [&string(key.as_bytes())[..], &kind.to_le_bytes(), bytes].concat();
        self.values.push(entry);
        self
    }

    fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.value(key, 4, &value.to_le_bytes())
    }

    fn text(&mut self, key: &str, text: &str) -> &mut Self {
        self.value(key, 8, &string(text.as_bytes()))
    }

    fn tensor(&mut self, name: &str, dimensions: &[u64], kind: u32, bytes: Vec<u8>) -> &mut Self {
        self.tensors
            .push((name.into(), dimensions.to_vec(), kind, bytes));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_with(|offset| offset)
    }

    fn bytes_with(&self, offset: impl Fn(u64) -> u64) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        out.extend(self.values.concat());
        let mut data: Vec<u8> = Vec::new();
        for (name, dimensions, kind, bytes) in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            out.extend(string(name.as_bytes()));
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset(data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

/// GGUF's row order of a q or k: neighbours instead of halves.
fn permuted(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let head = values.len() / heads;
    let half = head / 2;
    let mut out = vec![0.0; values.len()];
    for h in 0..heads {
        for j in 0..2 {
            for i in 0..half / columns {
                let from = h * head + j * half + i * columns;
                let to = h * head + (2 * i + j) * columns;
                out[to..to + columns].copy_from_slice(&values[from..from + columns]);
            }
        }
    }
    out
}

/// The fixture model of one layer, as a GGUF of F32.
fn small_gguf(architecture: &str) -> Writer {
    let (mut config, _) = parse(&with("num_hidden_layers", json!(1))).unwrap();
    config.qkv_bias = architecture == "qwen2";
    let mut w = Writer::default();
    w.text("general.architecture", architecture);
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 6),
        ("feed_forward_length", 10),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 4),
        ("attention.value_length", 4),
        ("rope.dimension_count", 4),
    ] {
        w.u32(&format!("{architecture}.{key}"), value);
    }
    w.value(
        &format!("{architecture}.attention.layer_norm_rms_epsilon"),
        6,
        &1e-5f32.to_le_bytes(),
    );
    for (name, shape) in layout(&config) {
        let mut v = values(&name, &shape);
        let columns = shape.get(1).copied().unwrap_or(1);
        if architecture == "llama" && name.contains("q_proj") {
            v = permuted(&v, 2, columns);
        }
        if architecture == "llama" && name.contains("k_proj") {
            v = permuted(&v, 1, columns);
        }
        let dimensions: Vec<u64> = shape.iter().rev().map(|&d| d as u64).collect();
        w.tensor(&gguf_name(&name), &dimensions, 0, encode("F32", &v));
    }
    w
}

fn gguf_name(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(from, to);
    }
    name
}

/// The folder, which lives as long as this, and a file whose name says nothing of its content.
struct OnDisk(#[allow(dead_code)] tempfile::TempDir, PathBuf);

fn on_disk(bytes: &[u8]) -> OnDisk {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some.model");
    fs::write(&path, bytes).unwrap();
    OnDisk(dir, path)
}

#[test]
fn gguf_reads_in_hugging_face_order() {
    for architecture in ["llama", "qwen2"] {
        let file = on_disk(&small_gguf(architecture).bytes());
        let source = open(Some(&file.1)).unwrap();
        assert_eq!(source.info().source_format, "gguf-f32");
        assert_eq!(source.info().name, "some");
        assert!(source.info().warnings.is_empty());
        assert_eq!(source.config().qkv_bias, architecture == "qwen2");
        assert!(source.config().tied_head && !source.has("lm_head.weight"));
        assert_eq!(
            (source.config().vocab_size, source.config().head_dim),
            (12, 4)
        );
        assert_fixture(&*source);
        assert_eq!(
            source.sha256().unwrap(),
            sha256([&fs::read(&file.1).unwrap()[..]])
        );
    }
}

#[test]
fn rows_are_put_back_by_hand() {
    // One head of dimension 4, rows numbered as Hugging Face has them: halves 0 1 | 2 3.
    // The converter writes rotary pairs side by side: 0 2 1 3.
    let mut w = small_gguf("llama");
    for (name, dimensions, _, bytes) in &mut w.tensors {
        if name.contains("attn_k") {
            *dimensions = vec![6, 4];
            let rows = [0.0, 2.0, 1.0, 3.0f32];
            *bytes = encode("F32", &rows.map(|r| [r; 6]).concat());
        }
    }
    let file = on_disk(&w.bytes());
    let source = open(Some(&file.1)).unwrap();
    let k = source
        .tensor("model.layers.0.self_attn.k_proj.weight", &[4, 6])
        .unwrap();
    let rows: Vec<f32> = k.chunks(6).map(|row| row[0]).collect();
    assert_eq!(rows, [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn an_untied_head_and_rope_factors() {
    let mut w = small_gguf("llama");
    let head = values("lm_head.weight", &[12, 6]);
    w.tensor("output.weight", &[6, 12], 0, encode("F32", &head));
    w.tensor("rope_freqs.weight", &[2], 0, encode("F32", &[1.0, 8.0]));
    let file = on_disk(&w.bytes());
    let source = open(Some(&file.1)).unwrap();
    assert!(!source.config().tied_head);
    assert_eq!(source.tensor("lm_head.weight", &[12, 6]).unwrap(), head);
    assert_eq!(
        source.config().rope_scaling,
        RopeScaling::Factors(vec![1.0, 8.0])
    );

    let mut linear = small_gguf("llama");
    linear.text("llama.rope.scaling.type", "linear");
    linear.value("llama.rope.scaling.factor", 6, &4f32.to_le_bytes());
    let file = on_disk(&linear.bytes());
    let source = open(Some(&file.1)).unwrap();
    assert_eq!(
        source.config().rope_scaling,
        RopeScaling::Linear { factor: 4.0 }
    );
}

/// llama.cpp's reading: `std::string rope_scaling("linear")` unless the file names a type, then
/// `rope.scaling.factor`, else `rope.scale_linear`, and 0 for none.
#[test]
fn gguf_scales_positions_as_llama_cpp_does() {
    let none = RopeScaling::None;
    let linear = |factor| RopeScaling::Linear { factor };
    let (new, old) = ("llama.rope.scaling.factor", "llama.rope.scale_linear");
    for (kind, factors, wanted) in [
        (None, &[(new, 4f32)][..], linear(4.0)),
        (None, &[(old, 4.0)], linear(4.0)),
        (None, &[(new, 2.0), (old, 4.0)], linear(2.0)),
        // Found, so that the old key is not looked at.
        (None, &[(new, 0.0), (old, 4.0)], none.clone()),
        (None, &[(old, 1.0)], none.clone()),
        (None, &[(old, 0.0)], none.clone()),
        (None, &[(new, 1.0)], none.clone()),
        (Some("linear"), &[(old, 8.0)], linear(8.0)),
        (Some("linear"), &[], none.clone()),
        (Some("none"), &[(new, 4.0)], none.clone()),
        (
            None,
            &[("llama.rope.scaling.attn_factor", 1.0), (new, 4.0)],
            linear(4.0),
        ),
    ] {
        let mut w = small_gguf("llama");
        if let Some(kind) = kind {
            w.text("llama.rope.scaling.type", kind);
        }
        for (key, factor) in factors {
            w.value(key, 6, &factor.to_le_bytes());
        }
        let file = on_disk(&w.bytes());
        let source = open(Some(&file.1)).unwrap();
        let found = &source.config().rope_scaling;
        assert_eq!(found, &wanted, "{kind:?} {factors:?}");
    }
    let mut both = small_gguf("llama");
    both.value(old, 6, &4f32.to_le_bytes());
    both.tensor("rope_freqs.weight", &[2], 0, encode("F32", &[1.0, 8.0]));
    let words = ["`llama.rope`", "rope_freqs.weight"];
    refused(&on_disk(&both.bytes()).1, "unsupported", &words);
}

/// Every truncation and every single flipped byte of a small file: an answer, never a panic.
#[test]
fn no_damage_panics() {
    without_wild_allocations(damage_everywhere);
}

fn damage_everywhere() {
    let good = small_gguf("llama").bytes();
    let header = good.len() - 12 * 6 * 4;
    let file = on_disk(&good);
    for cut in 0..good.len() {
        fs::remove_file(&file.1).unwrap();
        fs::write(&file.1, &good[..cut]).unwrap();
        assert!(open(Some(&file.1)).is_err(), "opened when cut at {cut}");
    }
    for at in 0..header.min(2500) {
        let mut bytes = good.clone();
        for flip in [0x01, 0x80, 0xff] {
            bytes[at] = good[at] ^ flip;
            fs::remove_file(&file.1).unwrap();
            fs::write(&file.1, &bytes).unwrap();
            if let Ok(source) = open(Some(&file.1)) {
                for (name, shape) in layout(source.config()) {
                    let _ = source.tensor(&name, &shape);
                }
            }
        }
    }
}

#[test]
fn hostile_gguf_is_refused() {
    without_wild_allocations(hostile_gguf);
}

fn hostile_gguf() {
    let case = |bytes: &[u8], kind: &str, words: &[&str]| {
        refused(&on_disk(bytes).1, kind, words);
    };
    let good = small_gguf("llama").bytes();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    case(
        &patched(4, &1u32.to_le_bytes()),
        "unsupported",
        &["GGUF version 1"],
    );
    case(
        &patched(4, &3u32.to_be_bytes()),
        "unsupported",
        &["big-endian"],
    );
    for huge in [1 << 60, u64::MAX, 1 << 31] {
        case(
            &patched(8, &huge.to_le_bytes()),
            "file",
            &["number of tensors"],
        );
        case(
            &patched(16, &huge.to_le_bytes()),
            "file",
            &["number of metadata"],
        );
        // The first key's length.
        case(
            &patched(24, &huge.to_le_bytes()),
            "file",
            &["metadata key", "are left"],
        );
    }
    case(&patched(32, &[0xff]), "file", &["not UTF-8"]);

    let extra = |kind: u32, bytes: &[u8]| {
        let mut w = small_gguf("llama");
        w.value("extra", kind, bytes);
        w.bytes()
    };
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    case(&extra(13, &[]), "file", &["extra", "unknown type 13"]);
    case(&extra(7, &[2]), "file", &["extra", "not a bool"]);
    case(
        &extra(9, &array(4, 1 << 61)),
        "file",
        &["extra", "cannot hold"],
    );
    case(
        &extra(9, &array(8, u64::MAX)),
        "file",
        &["extra", "cannot hold"],
    );
    case(&extra(9, &array(77, 0)), "file", &["unknown type 77"]);
    let deep = array(9, 1).repeat(1000);
    case(&extra(9, &deep), "file", &["too deeply"]);
    assert!(open(Some(&on_disk(&extra(9, &array(4, 0))).1)).is_ok());

    let mut twice = small_gguf("llama");
    twice.u32("llama.block_count", 1);
    case(&twice.bytes(), "file", &["llama.block_count", "twice"]);
    for bad in [0u32, 3, 4, 1 << 30] {
        let mut w = small_gguf("llama");
        w.u32("general.alignment", bad);
        case(&w.bytes(), "file", &["general.alignment", "power of two"]);
    }

    let edit = |change: &dyn Fn(&mut GgufTensor)| {
        let mut w = small_gguf("llama");
        let tensor = w
            .tensors
            .iter_mut()
            .find(|t| t.0 == "blk.0.ffn_up.weight")
            .unwrap();
        change(tensor);
        w.bytes()
    };
    let up = "blk.0.ffn_up.weight";
    case(&edit(&|t| t.1 = vec![]), "file", &[up, "0 dimensions"]);
    case(&edit(&|t| t.1 = vec![1; 5]), "file", &[up, "5 dimensions"]);
    case(&edit(&|t| t.1 = vec![6, 0]), "file", &[up, "zero"]);
    case(
        &edit(&|t| t.1 = vec![1 << 63, 4]),
        "file",
        &[up, "too large"],
    );
    case(
        &edit(&|t| t.1 = vec![1 << 40, 1 << 10]),
        "file",
        &[up, "but the file has"],
    );
    case(
        &edit(&|t| t.1 = vec![10, 6]),
        "tensor",
        &["up_proj", "[10, 6]", "[6, 10]"],
    );
    case(&edit(&|t| t.2 = 20), "unsupported", &[up, "IQ4_NL"]);
    case(&edit(&|t| t.2 = 999), "unsupported", &[up, "999"]);
    case(&edit(&|t| t.2 = 2), "file", &[up, "rows of 6", "Q4_0"]);
    case(
        &edit(&|t| t.0 = "blk.0.ffn_gate.weight".into()),
        "file",
        &["ffn_gate", "twice"],
    );
    case(
        &edit(&|t| t.0 = "blk.0.ffn_gate_inp.weight".into()),
        "tensor",
        &["up_proj"],
    );

    let small = small_gguf("llama");
    case(&small.bytes_with(|o| o + 1), "file", &["not aligned"]);
    case(
        &small.bytes_with(|o| o + (1 << 40)),
        "file",
        &["but the file has"],
    );
    case(
        &small.bytes_with(|o| u64::MAX - 31 - o),
        "file",
        &["but the file has"],
    );
    case(&small.bytes_with(|_| 0), "file", &["overlap"]);

    let more = |name: &str| {
        let mut w = small_gguf("llama");
        w.tensor(name, &[4], 0, vec![0; 16]);
        w.bytes()
    };
    case(
        &more("blk.0.attn_q_norm.weight"),
        "unsupported",
        &["attn_q_norm"],
    );
    case(
        &more("rope_freqs.weight"),
        "tensor",
        &["rope_freqs", "[2]", "[4]"],
    );
}

#[test]
fn other_gguf_models_are_refused_by_key() {
    without_wild_allocations(other_gguf_models);
}

fn other_gguf_models() {
    let changed = |key: &str, value: Option<(u32, Vec<u8>)>| {
        let mut w = small_gguf("llama");
        let start = string(key.as_bytes());
        w.values.retain(|entry| !entry.starts_with(&start));
        if let Some((kind, bytes)) = value {
            w.value(key, kind, &bytes);
        }
        w.bytes()
    };
    let number = |v: u32| Some((4, v.to_le_bytes().to_vec()));
    let float = |v: f32| Some((6, v.to_le_bytes().to_vec()));
    let text = |t: &str| Some((8, string(t.as_bytes())));
    for (key, value, kind) in [
        ("general.architecture", text("gemma"), "unsupported"),
        ("general.architecture", None, "file"),
        ("general.architecture", number(3), "file"),
        ("split.count", number(2), "unsupported"),
        ("llama.expert_count", number(8), "unsupported"),
        ("llama.rope.dimension_count", number(2), "unsupported"),
        ("llama.attention.value_length", number(8), "unsupported"),
        ("llama.rope.scaling.type", text("yarn"), "unsupported"),
        ("llama.rope.scaling.attn_factor", float(0.5), "unsupported"),
        ("llama.rope.scaling.factor", float(-4.0), "file"),
        ("llama.rope.scale_linear", float(f32::INFINITY), "file"),
        ("llama.block_count", None, "file"),
        ("llama.block_count", text("one"), "file"),
    ] {
        let file = on_disk(&changed(key, value));
        refused(&file.1, kind, &[&format!("`{key}`")]);
    }
    for (key, value) in [
        ("llama.block_count", u32::MAX),
        ("llama.block_count", 0),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count_kv", 0),
        ("llama.context_length", 0),
    ] {
        refused(&on_disk(&changed(key, number(value))).1, "file", &[]);
    }
}

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

/// A one-layer model whose `ffn_up` is `blocks` of a type, read back through the source.
fn dequantized(kind: u32, columns: u64, rows: u64, blocks: Vec<u8>) -> (Vec<f32>, Vec<String>) {
    let hidden = columns as usize;
    let mut json = with("num_hidden_layers", json!(1));
    json["hidden_size"] = json!(hidden);
    json["intermediate_size"] = json!(rows);
    let (config, _) = parse(&json).unwrap();
    let mut w = small_gguf("llama");
    let changed = [
        string(b"llama.embedding_length"),
        string(b"llama.feed_forward_length"),
    ];
    w.values
        .retain(|v| !changed.iter().any(|c| v.starts_with(c)));
    w.u32("llama.embedding_length", hidden as u32);
    w.u32("llama.feed_forward_length", rows as u32);
    w.tensors.clear();
    for (name, shape) in layout(&config) {
        let dimensions: Vec<u64> = shape.iter().rev().map(|&d| d as u64).collect();
        if name.ends_with("up_proj.weight") {
            w.tensor(&gguf_name(&name), &dimensions, kind, blocks.clone());
        } else {
            let bytes = encode("F32", &values(&name, &shape));
            w.tensor(&gguf_name(&name), &dimensions, 0, bytes);
        }
    }
    let file = on_disk(&w.bytes());
    let source = open(Some(&file.1)).unwrap();
    assert_eq!(source.info().source_format, "gguf-f32-mixed");
    let up = "model.layers.0.mlp.up_proj.weight";
    (
        source.tensor(up, &[rows as usize, hidden]).unwrap(),
        source.info().warnings.clone(),
    )
}

#[test]
fn blocks_by_hand() {
    let half = |v: f32| f16::from_f32(v).to_le_bytes();
    // Q4_1: scale, minimum, 16 bytes; low nibbles are elements 0..16, high ones 16..32.
    let nibbles: Vec<u8> = (0..16u8).map(|i| i | ((15 - i) << 4)).collect();
    let q4_1 = [&half(0.5)[..], &half(-2.0), &nibbles].concat();
    let wanted: Vec<f32> = (0..16)
        .chain((0..16).rev())
        .map(|q| 0.5 * q as f32 - 2.0)
        .collect();
    assert_eq!(dequantized(3, 32, 1, q4_1.clone()).0, wanted);
    // Q4_0: the same without a minimum, codes centred on 8.
    let q4_0 = [&half(0.25)[..], &nibbles].concat();
    let wanted: Vec<f32> = (0..16)
        .chain((0..16).rev())
        .map(|q| 0.25 * (q as f32 - 8.0))
        .collect();
    assert_eq!(dequantized(2, 32, 1, q4_0).0, wanted);
    // Q8_0: scale and 32 signed bytes.
    let codes: Vec<i8> = (0..32).map(|i| (i * 8 - 128) as i8).collect();
    let bytes: Vec<u8> = codes.iter().map(|&c| c as u8).collect();
    let q8_0 = [&half(-0.125)[..], &bytes].concat();
    let wanted: Vec<f32> = codes.iter().map(|&c| -0.125 * f32::from(c)).collect();
    assert_eq!(dequantized(8, 32, 1, q8_0).0, wanted);
    // More rows than are widened in one piece.
    let (many, _) = dequantized(3, 32, 5000, q4_1.repeat(5000));
    assert_eq!(many.len(), 32 * 5000);
    assert!(many.chunks(32).all(|row| row == &many[..32]));
}

#[test]
fn blocks_agree_with_an_independent_reader() {
    let golden = golden("gguf_blocks.json");
    let types = golden["types"].as_object().unwrap();
    assert_eq!(types.len(), 10);
    for (name, case) in types {
        let elements = case["elements"].as_u64().unwrap();
        let kind = case["id"].as_u64().unwrap() as u32;
        let (found, _) = dequantized(kind, elements, 2, unhex(&case["bytes"]));
        let wanted: Vec<f32> = unhex(&case["values"])
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        assert_eq!(found.len(), wanted.len());
        let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (f, w) in found.iter().zip(&wanted) {
            // One rounding more or less: the order of the products is not defined.
            assert!((f - w).abs() <= 2e-7 * largest, "{name}: {f} is not {w}");
        }
    }
}

/// The downloaded model, or a printed reason to skip.
fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("QUANTBENCH_SMOLLM2").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("models/smollm2-135m-instruct-q4_1.gguf"),
        PathBuf::from,
    );
    if path.exists() {
        return Some(path);
    }
    println!(
        "SKIPPED: {} is not there; run scripts/fetch-smollm2.sh",
        path.display()
    );
    None
}

#[test]
fn smollm2_agrees_with_an_independent_reader() {
    let Some(path) = smollm2() else { return };
    let golden = golden("smollm2/weights.json");
    let source = open(Some(&path)).unwrap();
    assert_eq!(source.sha256().unwrap(), golden["model_sha256"]);
    assert_eq!(source.info().source_format, "gguf-q4_1");
    assert_eq!(
        source.info().warnings,
        [
            "weights were already quantized (Q4_1): 4-bit rows look better than they would from \
          full precision"
        ]
    );
    let config = source.config();
    assert_eq!(
        (config.hidden_size, config.intermediate_size, config.layers),
        (576, 1536, 30)
    );
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (9, 3, 64));
    assert_eq!(
        (config.vocab_size, config.max_position_embeddings),
        (49152, 8192)
    );
    assert_eq!((config.rope_theta, config.tied_head), (100_000.0, true));
    for (name, wanted) in golden["tensors"].as_object().unwrap() {
        let shape: Vec<usize> = serde_json::from_value(wanted["shape"].clone()).unwrap();
        let found = source.tensor(name, &shape).unwrap();
        let first: Vec<f32> = serde_json::from_value(wanted["first"].clone()).unwrap();
        assert_eq!(found[..4], first, "{name}");
        let sum: f64 = found.iter().map(|&v| f64::from(v)).sum();
        assert!(
            (sum - wanted["sum"].as_f64().unwrap()).abs() < 1e-6,
            "{name}"
        );
        assert_eq!(
            sha256([&encode("F32", &found)[..]]),
            wanted["sha256"],
            "{name}"
        );
    }
}

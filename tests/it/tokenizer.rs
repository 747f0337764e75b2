//! Tokenizers against an independent one, bytes of text per token, and the texts themselves.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use quantbench::Error;
use quantbench::data::{self, Dataset, Kind};
use quantbench::formats::open;
use quantbench::hash::sha256;
use quantbench::model::config::Config;
use quantbench::tokenizer::{Encoding, Tokenizer};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file that tests may use, or a printed reason to skip.
fn optional(path: PathBuf, how: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: {} is not there; {how}", path.display());
    None
}

fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("QUANTBENCH_SMOLLM2").map_or_else(
        || root().join("models/smollm2-135m-instruct-q4_1.gguf"),
        PathBuf::from,
    );
    optional(path, "run scripts/fetch-smollm2.sh")
}

/// Every source byte is counted once, in order.
fn assert_bytes(encoding: &Encoding, text: &str) {
    assert_eq!(encoding.ids.len(), encoding.ends.len());
    assert!(encoding.ends.is_sorted());
    let tokens = encoding.ids.len();
    let total: usize = (0..tokens).map(|i| encoding.bytes(i..i + 1)).sum();
    assert_eq!(total, text.len());
    assert_eq!(encoding.bytes(0..tokens), text.len());
}

// ---------------------------------------------------------------- against Python's tokenizers

fn assert_hashes(tokenizer: &Tokenizer, which: &str) {
    let golden = fs::read(root().join("tests/golden/smollm2/token_hashes.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let mut compared = 0;
    for set in data::embedded().unwrap() {
        if set.manifest.kind == Kind::Choices {
            continue;
        }
        let key = format!("{}/{}", set.manifest.kind, set.manifest.name);
        let wanted = &golden[which][&key];
        let encoding = tokenizer.encode(&set.text).unwrap();
        assert_eq!(
            encoding.ids.len(),
            wanted["tokens"].as_u64().unwrap() as usize,
            "{key}"
        );
        let bytes: Vec<u8> = encoding
            .ids
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .collect();
        assert_eq!(sha256([&bytes[..]]), wanted["sha256"], "{key}");
        assert_bytes(&encoding, &set.text);
        compared += 1;
    }
    assert_eq!(compared, golden[which].as_object().unwrap().len());
}

#[test]
fn embedded_ids_agree() {
    let tokenizer = Tokenizer::load(None, None).unwrap();
    assert_hashes(&tokenizer, "embedded");
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos()), (4096, Some(0)));
    let file = root().join("datasets/embedded-model/tokenizer.json");
    assert_eq!(tokenizer.sha256(), sha256([&fs::read(&file).unwrap()[..]]));
    tokenizer.check(open(None).unwrap().config()).unwrap();
    // The same from the folder and from the file.
    for copy in [
        Tokenizer::load(file.parent(), None).unwrap(),
        Tokenizer::load(None, Some(&file)).unwrap(),
    ] {
        assert_eq!(
            copy.encode("A small test.").unwrap(),
            tokenizer.encode("A small test.").unwrap()
        );
        assert_eq!(copy.sha256(), tokenizer.sha256());
        assert_eq!(copy.declared(), tokenizer.declared());
    }
    let declared = tokenizer.declared();
    assert_eq!((declared.bos, declared.eos), (Some(0), Some(1)));
    assert_eq!((declared.adds_bos, tokenizer.eos()), (Some(true), None));
}

#[test]
fn special_tokens_are_added_or_not_and_seen_or_not() {
    let tokenizer = Tokenizer::load(None, None).unwrap();
    let text = "one<|end_of_text|> two";
    let default = tokenizer.encode(text).unwrap();
    let bare = tokenizer.encode_bare(text).unwrap();
    let literal = tokenizer.encode_literal(text).unwrap();
    assert_eq!(default.ids[0], 0);
    assert_eq!(default.ids[1..], bare.ids);
    assert!(bare.ids.contains(&1));
    assert!(literal.ids[0] == 0 && !literal.ids.contains(&1));
    assert!(literal.ids.len() > default.ids.len());
    for encoding in [&default, &bare, &literal] {
        assert_bytes(encoding, text);
    }
    // Where no special token is in the text, there is no difference.
    let plain = tokenizer.encode("plain text").unwrap();
    assert_eq!(tokenizer.encode_literal("plain text").unwrap(), plain);
}

#[test]
fn smollm2_ids_agree() {
    let Some(model) = smollm2() else { return };
    let tokenizer = Tokenizer::load(Some(&model), None).unwrap();
    assert_hashes(&tokenizer, "smollm2");
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos()), (49152, None));
    tokenizer
        .check(open(Some(&model)).unwrap().config())
        .unwrap();
}

/// int32 values of a `.npy` file.
fn npy(path: &Path) -> Vec<i32> {
    let bytes = fs::read(path).unwrap();
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(bytes[10..10 + header].windows(5).any(|w| w == b"'<i4'"));
    bytes[10 + header..]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| i32::from_le_bytes(*b))
        .collect()
}

/// A reader of the GGUF that forgets to split digits differs at token 245,502 of this text.
#[test]
fn smollm2_on_wikitext() {
    let Some(model) = smollm2() else { return };
    let text = root().join("../shared/data/wikitext-2.test.txt");
    let how = "it is WikiText-2 test in the tokenized variant (1,256,449 bytes)";
    let Some(text) = optional(text, how) else {
        return;
    };
    let text = fs::read_to_string(text).unwrap();
    assert_eq!(text.len(), 1_256_449);
    let tokenizer = Tokenizer::load(Some(&model), None).unwrap();
    let encoding = tokenizer.encode(&text).unwrap();
    assert_eq!(encoding.ids.len(), 312_144);
    let golden = fs::read(root().join("tests/golden/smollm2/token_hashes.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let bytes: Vec<u8> = encoding
        .ids
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    // The count alone would not show the trap: it is the same either way.
    assert_eq!(sha256([&bytes[..]]), golden["smollm2_wikitext"]["sha256"]);
    let wanted = npy(&root().join("tests/golden/smollm2/smollm2_tokens.npy"));
    assert_eq!(wanted.len(), 20 * 512);
    assert!(
        wanted
            .iter()
            .zip(&encoding.ids)
            .all(|(w, f)| *w as u32 == *f)
    );
    assert_bytes(&encoding, &text);
}

// ---------------------------------------------------------------- bytes of text per token

#[test]
fn bytes_are_counted_once() {
    let embedded = Tokenizer::load(None, None).unwrap();
    let smollm2 = smollm2().map(|model| Tokenizer::load(Some(&model), None).unwrap());
    for tokenizer in [Some(&embedded), smollm2.as_ref()].into_iter().flatten() {
        for text in [
            "a",
            " ",
            "  leading and trailing  \n\n",
            "x\t\ty;\n\n    return 12345;\n}\n",
            "naïve café",
            "日本語 😀👩‍👩‍👧 ﷽",
            "e\u{301}\u{301} <|endoftext|> <|begin_of_text|> end",
            "\u{0}\r\n\u{feff}",
        ] {
            assert_bytes(&tokenizer.encode(text).unwrap(), text);
        }
    }
    // The special token at the start has none; a split character counts with its first token.
    let encoding = embedded.encode("😀a").unwrap();
    let bytes: Vec<usize> = (0..encoding.ids.len())
        .map(|i| encoding.bytes(i..i + 1))
        .collect();
    assert_eq!(encoding.ids[0], 0);
    assert_eq!(bytes, [0, 4, 0, 0, 0, 1]);
    // White space belongs to the token that holds it, not to the next.
    let encoding = embedded.encode("if x;\n    y").unwrap();
    let tokens: Vec<&str> = (1..encoding.ids.len())
        .map(|i| &"if x;\n    y"[encoding.ends[i - 1]..encoding.ends[i]])
        .collect();
    assert_eq!(tokens, ["if", " x", ";", "\n   ", " y"]);
    let empty = embedded.encode("").unwrap();
    assert_eq!((empty.ids, empty.ends), (vec![0], vec![0]));
}

#[test]
fn saved_settings_do_not_change_ids() {
    let file = root().join("datasets/embedded-model/tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<|end_of_text|>", "pad_to_multiple_of": null});
    json["post_processor"]["processors"][0]["trim_offsets"] = json!(true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    let text = "Several words, more than four tokens;\n\nand  spaces. ";
    let plain = Tokenizer::load(None, None).unwrap().encode(text).unwrap();
    let saved = Tokenizer::load(None, Some(&path))
        .unwrap()
        .encode(text)
        .unwrap();
    assert_eq!(saved, plain);
}

/// A post-processor that trims offsets would give a token's trailing space to the next one.
#[test]
fn white_space_stays_with_its_token() {
    let definition = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\w+|[^\w\s]+ *|\s+"},
             "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
             "use_regex": false},
        ]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                           "use_regex": false},
        "model": {"type": "BPE", "vocab": {"a": 0, ";": 1, "Ġ": 2, ";Ġ": 3, "b": 4},
                  "merges": [[";", "Ġ"]]},
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, definition.to_string()).unwrap();
    let encoding = Tokenizer::load(None, Some(&path))
        .unwrap()
        .encode("a; b")
        .unwrap();
    assert_eq!(encoding.ids, [0, 3, 4]);
    assert_eq!(encoding.ends, [1, 3, 4]);
}

// ---------------------------------------------------------------- built from a GGUF

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn strings(list: &[&str]) -> Vec<u8> {
    let mut bytes = [&8u32.to_le_bytes()[..], &(list.len() as u64).to_le_bytes()].concat();
    list.iter().for_each(|text| bytes.extend(string(text)));
    bytes
}

/// A GGUF of metadata only: GPT-2's printable ASCII bytes, space and line feed, two merges.
fn gguf(changes: &[Change]) -> (tempfile::TempDir, PathBuf) {
    let mut tokens: Vec<String> = (33..127u8).map(|b| char::from(b).to_string()).collect();
    tokens.extend(["Ġ", "Ċ", "12", "123", "<s>", "</s>", "<user>"].map(String::from));
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut types = [
        &5u32.to_le_bytes()[..],
        &(tokens.len() as u64).to_le_bytes(),
    ]
    .concat();
    for token in &tokens {
        let kind: i32 = match *token {
            "<s>" | "</s>" => 3,
            "<user>" => 4,
            _ => 1,
        };
        types.extend(kind.to_le_bytes());
    }
    let id = |token: &str| {
        let id = tokens.iter().position(|t| *t == token).unwrap() as u32;
        (4, id.to_le_bytes().to_vec())
    };
    let mut values = vec![
        ("tokenizer.ggml.model", (8, string("gpt2"))),
        ("tokenizer.ggml.pre", (8, string("gpt-2"))),
        ("tokenizer.ggml.tokens", (9, strings(&tokens))),
        ("tokenizer.ggml.token_type", (9, types)),
        ("tokenizer.ggml.merges", (9, strings(&["1 2", "12 3"]))),
        ("tokenizer.ggml.bos_token_id", id("<s>")),
        ("tokenizer.ggml.eos_token_id", id("</s>")),
    ];
    for (key, change) in changes {
        values.retain(|(k, _)| k != key);
        values.extend(change.clone().map(|value| (*key, value)));
    }
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((values.len() as u64).to_le_bytes());
    for (key, (kind, value)) in values {
        bytes.extend([&string(key)[..], &kind.to_le_bytes(), &value].concat());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer-only");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A metadata key with its type and bytes, or without: the key is left out.
type Change<'a> = (&'a str, Option<(u32, Vec<u8>)>);

const PRE: &str = "tokenizer.ggml.pre";

fn named(pre: &str) -> Change<'static> {
    (PRE, Some((8, string(pre))))
}

fn flag(key: &'static str, value: bool) -> Change<'static> {
    (key, Some((7, vec![u8::from(value)])))
}

/// Lengths in bytes of the tokens of a text.
fn lengths(changes: &[Change], text: &str) -> Vec<usize> {
    let (_dir, path) = gguf(changes);
    let encoding = Tokenizer::load(Some(&path), None)
        .unwrap()
        .encode(text)
        .unwrap();
    assert_bytes(&encoding, text);
    (0..encoding.ids.len())
        .map(|i| encoding.bytes(i..i + 1))
        .collect()
}

#[test]
fn pre_tokenizers_split_numbers_their_own_way() {
    let text = "1234";
    assert_eq!(lengths(&[], text), [3, 1]);
    assert_eq!(lengths(&[named("smollm")], text), [1, 1, 1, 1]);
    assert_eq!(lengths(&[named("qwen2")], text), [1, 1, 1, 1]);
    for name in ["llama-bpe", "llama3", "llama-v3"] {
        let no_bos = flag("tokenizer.ggml.add_bos_token", false);
        assert_eq!(lengths(&[named(name), no_bos], text), [3, 1]);
    }
    // Llama 3 splits after three digits, GPT-2 does not: seen where a merge would cross.
    let crossing = (
        "tokenizer.ggml.merges",
        Some((9, strings(&["2 3", "23 4"]))),
    );
    let tokens = (
        "tokenizer.ggml.tokens",
        Some((9, strings(&["1", "2", "3", "4", "23", "234", "<s>"]))),
    );
    let types = ("tokenizer.ggml.token_type", None);
    let bos = (
        "tokenizer.ggml.bos_token_id",
        Some((4, 6u32.to_le_bytes().to_vec())),
    );
    let no_bos = flag("tokenizer.ggml.add_bos_token", false);
    let base = [crossing, tokens, types, bos, no_bos];
    assert_eq!(lengths(&base, "1234"), [1, 3]);
    let llama = [&base[..], &[named("llama-bpe")]].concat();
    assert_eq!(lengths(&llama, "1234"), [1, 2, 1]);
}

#[test]
fn special_tokens_of_a_gguf() {
    let load = |changes: &[Change]| {
        let (_dir, path) = gguf(changes);
        Tokenizer::load(Some(&path), None).unwrap()
    };
    let plain = load(&[]);
    assert_eq!(plain.bos(), None);
    let bos = plain.encode("<s>").unwrap().ids;
    assert_eq!(bos.len(), 1, "a control token is matched whole");
    assert_eq!(plain.encode("<user>").unwrap().ids.len(), 1);
    assert_eq!(plain.vocab_size(), 94 + 7);

    let with_bos = load(&[flag("tokenizer.ggml.add_bos_token", true)]);
    assert_eq!(with_bos.bos(), Some(bos[0]));
    assert_ne!(with_bos.sha256(), plain.sha256());
    // Llama 3 begins with it unless the file says otherwise.
    assert_eq!(load(&[named("llama-bpe")]).bos(), Some(bos[0]));
    let both = load(&[
        flag("tokenizer.ggml.add_bos_token", true),
        flag("tokenizer.ggml.add_eos_token", true),
    ]);
    let encoding = both.encode("ab").unwrap();
    assert_eq!(encoding.ids.len(), 4);
    assert_eq!(encoding.ends, [0, 1, 2, 2]);
    // A word that is a token is taken whole by Llama 3, whatever the merges.
    let no_merges = ("tokenizer.ggml.merges", Some((9, strings(&[]))));
    let llama = [no_merges.clone(), named("llama-bpe")];
    assert_eq!(lengths(&llama, "123"), [0, 3]);
    assert_eq!(lengths(&[no_merges], "123"), [1, 1, 1]);
}

#[test]
fn unknown_tokenizers_are_refused() {
    let number = |v: u32| Some((4, v.to_le_bytes().to_vec()));
    for (change, words) in [
        (
            named("deepseek-coder"),
            &["`tokenizer.ggml.pre` \"deepseek-coder\""][..],
        ),
        ((PRE, None), &["`tokenizer.ggml.pre` is missing"]),
        ((PRE, number(3)), &["`tokenizer.ggml.pre`"]),
        (
            ("tokenizer.ggml.model", Some((8, string("llama")))),
            &["\"llama\"", "byte-level BPE"],
        ),
        (("tokenizer.ggml.model", None), &["no tokenizer"]),
        (
            ("tokenizer.ggml.tokens", Some((9, strings(&["a", "a"])))),
            &["0 and 1 are both"],
        ),
        (
            ("tokenizer.ggml.tokens", number(1)),
            &["an array of strings"],
        ),
        (
            ("tokenizer.ggml.merges", Some((9, strings(&["12"])))),
            &["not a pair"],
        ),
        (
            ("tokenizer.ggml.merges", Some((9, strings(&["é é"])))),
            &["not a usable tokenizer"],
        ),
    ] {
        let (_dir, path) = gguf(&[change]);
        let text = Tokenizer::load(Some(&path), None)
            .err()
            .unwrap()
            .to_string();
        for word in words.iter().chain(&["\n  "]) {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }
    let (_dir, path) = gguf(&[
        flag("tokenizer.ggml.add_bos_token", true),
        ("tokenizer.ggml.bos_token_id", number(9999)),
    ]);
    let text = Tokenizer::load(Some(&path), None)
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("9999"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let text = Tokenizer::load(Some(dir.path()), None)
        .err()
        .unwrap()
        .to_string();
    assert!(
        text.contains("tokenizer.json") && text.contains("--tokenizer"),
        "{text}"
    );
    let file = dir.path().join("tokenizer.json");
    for bad in ["", "{}", "[1]", "{\"model\": {\"type\": \"BPE\"}}"] {
        fs::write(&file, bad).unwrap();
        let text = Tokenizer::load(None, Some(&file))
            .err()
            .unwrap()
            .to_string();
        assert!(text.contains("not a usable tokenizer"), "{text}");
    }
}

#[test]
fn another_vocabulary_is_refused() {
    let tokenizer = Tokenizer::load(None, None).unwrap();
    let mut config: Config = open(None).unwrap().config().clone();
    // Padded tables are normal.
    for (rows, fits) in [
        (4096, true),
        (4100, true),
        (4224, true),
        (4095, false),
        (8192, false),
        (49152, false),
    ] {
        config.vocab_size = rows;
        let result = tokenizer.check(&config);
        assert_eq!(result.is_ok(), fits, "{rows}");
        if let Err(error) = result {
            assert!(matches!(error, Error::Usage { .. }));
            let text = error.to_string();
            for word in [
                "another vocabulary",
                "4096",
                &rows.to_string(),
                "--tokenizer",
            ] {
                assert!(text.contains(word), "{text}");
            }
        }
    }
}

// ---------------------------------------------------------------- the texts

#[test]
fn embedded_sets_are_in_order() {
    let names = |kind| -> Vec<String> {
        let sets = data::select(&[], kind).unwrap();
        sets.into_iter().map(|set| set.manifest.name).collect()
    };
    let wanted = ["prose", "dialogue", "technical", "summary", "code", "math"];
    assert_eq!(names(Kind::Evaluation), wanted);
    assert_eq!(names(Kind::Calibration), wanted);
    assert_eq!(names(Kind::Choices), ["choices"]);
    let bytes: usize = data::select(&[], Kind::Evaluation)
        .unwrap()
        .iter()
        .map(|s| s.text.len())
        .sum();
    assert_eq!(bytes, 39_789 + 40_435 + 43_810 + 32_873 + 41_538 + 34_863);
}

/// Runs of `length` words.
fn runs(set: &Dataset, length: usize) -> HashSet<Vec<&str>> {
    let words: Vec<&str> = set.text.split_whitespace().collect();
    words.windows(length).map(<[&str]>::to_vec).collect()
}

#[test]
fn evaluation_and_calibration_share_no_text() {
    let evaluation = data::select(&[], Kind::Evaluation).unwrap();
    let calibration = data::select(&[], Kind::Calibration).unwrap();
    for e in &evaluation {
        for c in &calibration {
            let formal = |set: &Dataset| matches!(set.manifest.domain.as_str(), "code" | "math");
            let length = if formal(e) || formal(c) { 10 } else { 8 };
            let (e_runs, c_runs) = (runs(e, length), runs(c, length));
            assert!(e_runs.len() > 1000);
            let shared: Vec<_> = e_runs.intersection(&c_runs).collect();
            assert!(
                shared.is_empty(),
                "{}, {}: {shared:?}",
                e.manifest.name,
                c.manifest.name
            );
        }
    }
}

#[test]
fn sets_are_selected_by_name_or_path() {
    let select = |names: &[&str], kind| {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        data::select(&names, kind)
    };
    let chosen = select(&["math", "prose"], Kind::Calibration).unwrap();
    assert_eq!(
        (&chosen[0].manifest.name[..], &chosen[1].manifest.name[..]),
        ("math", "prose")
    );
    assert!(
        chosen
            .iter()
            .all(|set| set.manifest.kind == Kind::Calibration)
    );

    let says = |names: &[&str], kind, words: &[&str]| {
        let text = select(names, kind).unwrap_err().to_string();
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    };
    says(
        &["poetry"],
        Kind::Evaluation,
        &["poetry", "prose, dialogue, technical"],
    );
    says(&["math", "math"], Kind::Evaluation, &["math", "twice"]);

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    fs::write(path("mine.txt"), "some text, <unk> included\n").unwrap();
    for kind in [Kind::Evaluation, Kind::Calibration] {
        let mine = select(&["prose", &path("mine.txt")], kind)
            .unwrap()
            .remove(1);
        assert_eq!(
            (&mine.manifest.name[..], mine.manifest.kind),
            ("mine", kind)
        );
        assert_eq!(mine.manifest.sha256, sha256([mine.text.as_bytes()]));
        assert!(mine.warnings()[0].contains("<unk>"));
    }
    fs::write(path("latin1.txt"), b"caf\xe9").unwrap();
    says(
        &[&path("latin1.txt")],
        Kind::Evaluation,
        &["latin1.txt", "not UTF-8", "byte 3"],
    );
    fs::write(path("empty.txt"), " \n").unwrap();
    says(&[&path("empty.txt")], Kind::Evaluation, &["empty"]);

    // A manifest of the user's, by file or folder.
    let hash = sha256([&fs::read(path("mine.txt")).unwrap()[..]]);
    let manifest = |sha256: &str| {
        format!(
            "name = 'own'\ntitle = 't'\nkind = 'calibration'\ndomain = 'd'\nfile = 'mine.txt'\n\
             split = 's'\nlicence = 'l'\nsource = 'o'\nsha256 = '{sha256}'\n"
        )
    };
    fs::write(path("manifest.toml"), manifest(&hash)).unwrap();
    for name in [path("manifest.toml"), path("")] {
        let own = select(&[&name], Kind::Calibration).unwrap().remove(0);
        assert_eq!(own.manifest.name, "own");
        says(&[&name], Kind::Evaluation, &["calibration", "evaluation"]);
    }
    let other = "0".repeat(64);
    fs::write(path("manifest.toml"), manifest(&other)).unwrap();
    says(
        &[&path("")],
        Kind::Calibration,
        &["mine.txt", &hash, &other],
    );
    fs::write(path("manifest.toml"), manifest(&hash) + "extra = 1\n").unwrap();
    says(&[&path("")], Kind::Calibration, &["manifest.toml", "extra"]);
    fs::write(
        path("manifest.toml"),
        manifest(&hash).replace("mine.txt", "gone.txt"),
    )
    .unwrap();
    says(&[&path("")], Kind::Calibration, &["gone.txt"]);
    fs::remove_file(path("manifest.toml")).unwrap();
    says(&[&path("")], Kind::Calibration, &["manifest.toml"]);
}

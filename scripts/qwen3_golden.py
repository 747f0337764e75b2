"""Makes tests/golden/qwen3/: a tiny random Qwen3 in Hugging Face's form and as GGUF, and its logits.

    python3 scripts/qwen3_golden.py        (needs torch transformers accelerate safetensors gguf numpy)

Logits are those of transformers' Qwen3ForCausalLM in float32 with eager attention. A second
implementation here, in NumPy and float64, has to agree with them, and each of the ways to get the
model wrong has to show in the logits: else nothing is written. The GGUF file has the keys and names
that llama.cpp's converter writes for the architecture `qwen3` (rows of q and k as they are).
"""

import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "tests/golden/qwen3"
# 4 heads of 16 are not the 32 hidden units; 2 query heads share each key/value head.
HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 32, 48, 2, 4, 2, 16
POSITIONS, EPS, THETA, TOKENS = 2048, 1e-6, 1_000_000.0, 20
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BOS, EOS = SPECIAL[0], SPECIAL[2]


def vocabulary():
    """GPT-2's characters of the 256 bytes, a few merges, and the special tokens at the end."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    characters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]
    merges = [("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġ", "a"), ("r", "e"), ("o", "n"), ("Ġt", "he"), ("e", "r"),
              ("a", "t"), ("Ġ", "s"), ("in", "g"), ("a", "n"), ("o", "r")]  # fmt: skip
    return characters + ["".join(pair) for pair in merges] + SPECIAL, merges


def tokenizer_files(folder, tokens, merges):
    """A byte-level BPE as Qwen's, whose pre-tokenizer GGUF calls `qwen2`."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokens.index(word), "content": word, **flags} for word in SPECIAL],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens) if token not in SPECIAL},
            "merges": [list(pair) for pair in merges],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False))
    declared = {"add_bos_token": False, "bos_token": None, "eos_token": EOS, "pad_token": SPECIAL[0]}
    declared["tokenizer_class"] = "Qwen2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(declared, indent=2) + "\n")


def config_of(tied, tokens):
    """As published Qwen3 checkpoints have it."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokens.index(BOS),
        "eos_token_id": tokens.index(EOS),
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": POSITIONS,
        "max_window_layers": LAYERS,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": EPS,
        "rope_scaling": None,
        "rope_theta": int(THETA),
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": len(tokens),
    }


def random_weights(vocab):
    """F16 values, so that every reader has the same in F32. Norm weights are far from 1."""
    random = np.random.default_rng(20250429)
    inner = HEADS * HEAD_DIM
    matrices = {"self_attn.q_proj": (inner, HIDDEN), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
                "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, inner),
                "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}  # fmt: skip
    norms = {"input_layernorm": HIDDEN, "self_attn.q_norm": HEAD_DIM, "self_attn.k_norm": HEAD_DIM,
             "post_attention_layernorm": HIDDEN}  # fmt: skip
    matrix = lambda rows, columns: random.normal(0, 1.2 / np.sqrt(columns), (rows, columns))
    norm = lambda size: random.uniform(0.4, 1.8, size)
    weights = {"model.embed_tokens.weight": matrix(vocab, HIDDEN), "lm_head.weight": matrix(vocab, HIDDEN)}
    for layer in range(LAYERS):
        for name, shape in matrices.items():
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(*shape)
        for name, size in norms.items():
            weights[f"model.layers.{layer}.{name}.weight"] = norm(size)
    weights["model.norm.weight"] = norm(HIDDEN)
    return {name: values.astype(np.float16) for name, values in weights.items()}


# ---------------------------------------------------------------- the second implementation


def rms_norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def rotate(x, neighbours=False):
    """`[tokens, heads, head_dim]` by its position; pairs are the two halves, or neighbours."""
    half = HEAD_DIM // 2
    angle = np.arange(len(x))[:, None, None] * THETA ** -(np.arange(half) / half)
    first, second = (x[..., ::2], x[..., 1::2]) if neighbours else (x[..., :half], x[..., half:])
    out = [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    return np.stack(out, -1).reshape(x.shape) if neighbours else np.concatenate(out, -1)


def logits_of(weights, ids, tied, wrong=None):
    """Logits in float64; `wrong` names a mistake to make."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    x = w["model.embed_tokens.weight"][ids]
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(LAYERS):
        of = lambda name: w[f"model.layers.{layer}.{name}.weight"]
        h = rms_norm(x, of("input_layernorm"))
        heads = lambda name: (h @ of(f"self_attn.{name}_proj").T).reshape(len(ids), -1, HEAD_DIM)
        q, k, v = heads("q"), heads("k"), heads("v")
        turn = lambda y: rotate(y, wrong == "rotary pairs of neighbours")
        if wrong == "no q/k norms":
            q, k = turn(q), turn(k)
        elif wrong == "q/k norms without weights":
            q, k = turn(rms_norm(q, 1)), turn(rms_norm(k, 1))
        elif wrong == "q/k norms after rotation":
            q, k = rms_norm(turn(q), of("self_attn.q_norm")), rms_norm(turn(k), of("self_attn.k_norm"))
        elif wrong == "q and k norm exchanged":
            q, k = turn(rms_norm(q, of("self_attn.k_norm"))), turn(rms_norm(k, of("self_attn.q_norm")))
        elif wrong == "a norm over all heads":
            over_all = lambda y, weight: rms_norm(y.reshape(len(ids), -1), 1).reshape(y.shape) * weight
            q, k = turn(over_all(q, of("self_attn.q_norm"))), turn(over_all(k, of("self_attn.k_norm")))
        else:
            q, k = turn(rms_norm(q, of("self_attn.q_norm"))), turn(rms_norm(k, of("self_attn.k_norm")))
        share = (lambda y: np.tile(y, (1, HEADS // KV_HEADS, 1))) if wrong == "key/value heads in turns" else (
            lambda y: np.repeat(y, HEADS // KV_HEADS, axis=1)
        )  # fmt: skip
        size = HIDDEN // HEADS if wrong == "head_dim from hidden_size" else HEAD_DIM
        scores = np.einsum("ihd,jhd->hij", q, share(k)) / np.sqrt(size) + future
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), share(v))
        x = x + mixed.reshape(len(ids), -1) @ of("self_attn.o_proj").T
        h = rms_norm(x, of("post_attention_layernorm"))
        gate = h @ of("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ of("mlp.up_proj").T)) @ of("mlp.down_proj").T
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return rms_norm(x, w["model.norm.weight"]) @ w[head].T


MISTAKES = ["no q/k norms", "q/k norms without weights", "q/k norms after rotation", "q and k norm exchanged",
            "a norm over all heads", "rotary pairs of neighbours", "key/value heads in turns",
            "head_dim from hidden_size"]  # fmt: skip

# ---------------------------------------------------------------- files


def write_gguf(path, weights, tokens, merges):
    """The untied model: matrices in F16, norms in F32."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_type("model")
    writer.add_name("Tiny Random Qwen3")
    writer.add_block_count(LAYERS)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(EOS))
    writer.add_pad_token_id(tokens.index(SPECIAL[0]))
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, LAYERS)
    for name, values in weights.items():
        kept = values if values.ndim == 2 else values.astype(np.float32)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def transformers_logits(ids, folder, **more):
    model, info = transformers.Qwen3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **more
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], (what, info[what])
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)[None]).logits[0].numpy(), model.config


def main():
    tokens, merges = vocabulary()
    weights = random_weights(len(tokens))
    ids = np.random.default_rng(3).integers(0, len(tokens), TOKENS)
    shutil.rmtree(OUT, ignore_errors=True)
    logits, furthest = {}, 0.0
    for name, tied in (("untied", False), ("tied", True)):
        folder = OUT / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config_of(tied, tokens), indent=2) + "\n")
        own = {n: v for n, v in weights.items() if not (tied and n == "lm_head.weight")}
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer_files(folder, tokens, merges)
        logits[name], config = transformers_logits(ids, folder)
        if tied:
            # As transformers 5 writes it: positions under `rope_parameters`.
            config.dtype = torch.float16
            config.save_pretrained(folder)
        furthest = max(furthest, np.abs(logits[name] - logits_of(weights, ids, tied)).max())
        for wrong in MISTAKES:
            off = np.abs(logits[name] - logits_of(weights, ids, tied, wrong)).max()
            print(f"{name}: {wrong}: off by {off:.2f}")
            assert off > 1, wrong
    assert furthest < 2e-5, furthest
    write_gguf(OUT / "untied.gguf", weights, tokens, merges)
    # Its reader of GGUF files takes every head dimension of this family for 128: told what it is.
    config = transformers.Qwen3Config.from_pretrained(OUT / "untied")
    from_gguf, _ = transformers_logits(ids, OUT, gguf_file="untied.gguf", config=config)
    assert np.array_equal(from_gguf, logits["untied"])
    made_by = (
        f"scripts/qwen3_golden.py, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"numpy {np.__version__}"
    )
    save_file(
        {"token_ids": ids.astype(np.int64)} | {k: np.ascontiguousarray(v) for k, v in logits.items()},
        OUT / "logits.safetensors",
        metadata={"made_by": made_by, "furthest_from_float64": f"{furthest:.1e}"},
    )
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    print(f"{made_by}\nagree with NumPy in float64 to {furthest:.1e}; {size} bytes in all")
    return 0 if size < 300_000 else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Weights of SmolLM2 by an independent reader: gguf_values.py MODEL.gguf

Writes tests/golden/smollm2/weights.json: for a few tensors, under Hugging Face names, the shape,
the SHA-256 of the little-endian F32 values in Hugging Face row order, their sum, and the first
four values. Read and dequantized with the `gguf` package; the rows of q and k are put back by
undoing the reshape and transpose of llama.cpp's converter. Also random blocks of every quantized
type with their values: tests/golden/gguf_blocks.json.
Needs: pip install gguf numpy
"""
import hashlib
import json
import pathlib
import sys

import gguf
import numpy as np
from gguf.quants import dequantize

ROOT = pathlib.Path(__file__).resolve().parent.parent
TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.7.self_attn.v_proj.weight": "blk.7.attn_v.weight",
    "model.layers.15.mlp.down_proj.weight": "blk.15.ffn_down.weight",
    "model.layers.29.self_attn.k_proj.weight": "blk.29.attn_k.weight",
    "model.layers.29.post_attention_layernorm.weight": "blk.29.ffn_norm.weight",
}
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# Byte offsets of the F16 scales within a block, which must not become infinite or NaN.
SCALES = dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108],
              Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208])


def from_interleaved(w, heads):
    rows, columns = w.shape
    return w.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(w.shape)


def weights(path):
    reader = gguf.GGUFReader(path)
    heads = {"attn_q": reader.fields["llama.attention.head_count"].contents(),
             "attn_k": reader.fields["llama.attention.head_count_kv"].contents()}
    stored = {t.name: t for t in reader.tensors}
    found = {}
    for name, other in TENSORS.items():
        tensor = stored[other]
        w = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype="<f4")
        w = w.reshape([int(d) for d in reversed(tensor.shape)])
        for module, count in heads.items():
            if module in other:
                w = from_interleaved(w, count)
        w = np.ascontiguousarray(w)
        found[name] = {
            "shape": list(w.shape),
            "sha256": hashlib.sha256(w.tobytes()).hexdigest(),
            "sum": float(w.astype(np.float64).sum()),
            "first": [float(v) for v in w.ravel()[:4]],
        }
    return found


def blocks():
    rng = np.random.default_rng(0)
    found = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (2, size), dtype=np.uint8)
        for at in SCALES[name]:
            scale = rng.uniform(-0.1, 0.1, 2).astype("<f2")
            raw[:, at:at + 2] = scale.view(np.uint8).reshape(2, 2)
        values = dequantize(raw, kind).astype("<f4")
        found[name] = {"id": int(kind), "elements": elements, "bytes": raw.tobytes().hex(),
                       "values": values.tobytes().hex()}
    return found


def main():
    model = pathlib.Path(sys.argv[1])
    made_by = f"scripts/gguf_values.py, numpy {np.__version__}"
    for out, content in (
        ("smollm2/weights.json", {"model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
                                  "tensors": weights(model)}),
        ("gguf_blocks.json", {"types": blocks()}),
    ):
        path = ROOT / "tests/golden" / out
        path.write_text(json.dumps({"made_by": made_by, **content}, indent=2) + "\n")


if __name__ == "__main__":
    main()

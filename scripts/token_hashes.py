#!/usr/bin/env python3
"""Token ids of the texts by an independent tokenizer: token_hashes.py MODEL.gguf WIKITEXT

Writes tests/golden/smollm2/token_hashes.json: for SmolLM2 and for the embedded model, how many
tokens each text of datasets/embedded has and the SHA-256 of the ids as little-endian u32,
special tokens that the tokenizer adds by default included. For SmolLM2 also of WikiText-2 test
in its tokenized variant, the file WIKITEXT (its sha256 is in tests/golden/smollm2/README.md).

SmolLM2's tokenizer is put together here from the GGUF's own vocabulary and merges, read with the
`gguf` package; the embedded model's is its tokenizer.json. Both run in Python's `tokenizers`.
Needs: pip install gguf tokenizers
"""
import hashlib
import json
import pathlib
import struct
import sys
import tomllib

import gguf
import tokenizers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent


def smollm2(path):
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    assert (get("model"), get("pre"), get("add_bos_token")) == ("gpt2", "smollm", False)
    tokens = get("tokens")
    merges = [tuple(m.split(" ")) for m in get("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    control = [t for t, kind in zip(tokens, get("token_type")) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    assert all(tokenizer.token_to_id(t) == i for i, t in enumerate(tokens))
    return tokenizer


def summary(tokenizer, path):
    ids = tokenizer.encode(path.read_bytes().decode()).ids
    return {
        "tokens": len(ids),
        "sha256": hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest(),
    }


def hashes(tokenizer):
    found = {}
    for path in sorted(ROOT.glob("datasets/embedded/*/manifest.toml")):
        manifest = tomllib.loads(path.read_text())
        if manifest["kind"] == "choices":
            continue
        key = f"{manifest['kind']}/{manifest['name']}"
        found[key] = summary(tokenizer, path.with_name(manifest["file"]))
    return found


def main():
    model, wikitext = map(pathlib.Path, sys.argv[1:])
    embedded = Tokenizer.from_file(str(ROOT / "datasets/embedded-model/tokenizer.json"))
    smol = smollm2(model)
    result = {
        "made_by": f"scripts/token_hashes.py, tokenizers {tokenizers.__version__}",
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "smollm2": hashes(smol),
        "embedded": hashes(embedded),
        "smollm2_wikitext": summary(smol, wikitext),
    }
    out = ROOT / "tests/golden/smollm2/token_hashes.json"
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

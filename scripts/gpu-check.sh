#!/usr/bin/env bash
# Everything that only a GPU can confirm, in one command; the exit code tells.
#
#   scripts/gpu-check.sh [cuda:N]
#
# Runs the GPU path's tests on the card (kernels against dequantized weights, the decoder against
# the CPU at every stored form, recorded steps against plain ones), then the embedded model on both
# devices, and compares perplexities. compute-sanitizer is used where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda:0}
eval "$(scripts/cuda-toolchain.sh)"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

echo "== tests on $device"
export QUANTBENCH_TEST_DEVICE=$device
cargo test --release --locked --features cuda --test gpu --test gpu_quantize -- --nocapture --test-threads 1
if command -v compute-sanitizer >/dev/null; then
    echo "== compute-sanitizer"
    program=$(cargo test --release --locked --features cuda --test gpu --no-run --message-format json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    compute-sanitizer --error-exitcode 1 "$program" --test-threads 1 products_of
else
    echo "SKIPPED: compute-sanitizer is not installed"
fi

echo "== perplexity on $device and on the CPU"
precisions=fp16,fp8,int8,rtn-int4,awq-int4,gptq-int4,int8-w8a8
for where in cpu "$device"; do
    cargo run --release --locked --features cuda -- run --device "$where" --quiet \
        --precisions $precisions --reps 2 --out "$out/${where/:/-}"
done
python3 - "$out/cpu/results.csv" "$out/${device/:/-}/results.csv" <<'PYTHON'
import csv, sys
cpu, gpu = ({row["precision"]: row for row in csv.DictReader(open(path))} for path in sys.argv[1:])
worst = 0.0
print(f"{'precision':12} {'cpu':>10} {'gpu':>10} {'relative':>10} {'decode tok/s':>13} {'mbu':>6} parts/peak")
for name, row in gpu.items():
    if row["status"] != "ok":
        print(f"{name:12} {row['status']}: {row['error']}")
        worst = max(worst, 1.0)
        continue
    a, b = float(cpu[name]["perplexity"]), float(row["perplexity"])
    parts = sum(int(row[c] or 0) for c in ("weight_bytes", "embedding_bytes", "kv_cache_bytes",
                "activation_peak_bytes", "workspace_bytes", "other_bytes"))
    share = parts / int(row["peak_memory_bytes"])
    print(f"{name:12} {a:10.4f} {b:10.4f} {b / a - 1:10.1e} {row['decode_tok_s']:>13} {row['mbu']:>6} {share:.3f}")
    worst = max(worst, abs(b / a - 1))
    if abs(share - 1) > 0.01:
        worst = max(worst, 1.0)
sys.exit(worst > 1e-3)
PYTHON

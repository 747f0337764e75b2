#!/usr/bin/env bash
# Decides GPTQ's default column order without touching evaluation text: calibrates on the first
# half of every calibration text and scores the second half.
#
#   scripts/gptq-order.sh OUT [MODEL [OPTION...]]
#
# OUT: folder for the results, seen from the repository; the halves are in it while this runs.
# MODEL: as for --model; without it the embedded one.
# OPTION: more for `quantbench run`, for example --limit 24 --calibration-limit 24
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/gptq-order.sh OUT [MODEL [OPTION...]]}
halves=$out/halves
mkdir -p "$out"
mkdir "$halves" # must be new: it is removed at the end
trap 'rm -rf "$halves"' EXIT
for text in datasets/embedded/*-calibration/*.txt; do
    name=$(basename "$(dirname "$text")" -calibration)
    lines=$(wc -l <"$text")
    head -n $((lines / 2)) "$text" >"$halves/$name-first.txt"
    tail -n +$((lines / 2 + 1)) "$text" >"$halves/$name-second.txt"
done
list() { local IFS=,; echo "$*"; }
cargo run --release --locked -- run ${2:+--model "$2"} \
    --precisions fp16,rtn-int4,gptq-int4,gptq-int4-noao \
    --calibration "$(list "$halves"/*-first.txt)" --datasets "$(list "$halves"/*-second.txt)" \
    --reps 1 --gen-tokens 8 --out "$out" "${@:3}"

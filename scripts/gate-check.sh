#!/usr/bin/env bash
# Evidence that `quantbench compare` raises few false alarms and finds planted regressions.
#
#   scripts/gate-check.sh OUT aa       1,000 simulated comparisons of equal runs (half a minute)
#   scripts/gate-check.sh OUT pairs    20 pairs of the same build, measured in turns
#   scripts/gate-check.sh OUT judge    the same runs compared again, by another build
#   scripts/gate-check.sh OUT planted  four regressions, 20 times each; needs the runs of `pairs`
#   scripts/gate-check.sh OUT all      the three, one after the other
#
# OUT gets aa.txt, pairs.csv and planted.csv, each ending in a line with the counts. The runs
# themselves stay in target/gate. The exit code tells whether everything was as it has to be. The
# machine should do nothing else.
#
# Settings, as environment variables:
#   PAIRS     pairs, and text subsets [20]
#   REPEATS   runs on each side of a pair [3]; `pairs` ends by saying how much the sides differ
#   OPTIONS   of these runs [--limit 6 --calibration-limit 2 --prompt-tokens 128 --gen-tokens 32
#             --reps 40 --processes 10 --no-roofline]
#   AA_RUN    the kept run to resample [reports/2026-11-21-epyc-2core-embedded]
#   AA_COUNT  comparisons [1000]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/gate-check.sh OUT aa|pairs|judge|planted|all}
step=${2:?usage: scripts/gate-check.sh OUT aa|pairs|judge|planted|all}
pairs=${PAIRS:-20}
repeats=${REPEATS:-3}
workload="--prompt-tokens 128 --gen-tokens 32 --reps 40 --processes 10 --no-roofline"
options=${OPTIONS:---limit 6 --calibration-limit 2 $workload}
work=target/gate
mkdir -p "$out" "$work"
cargo build --release --locked
quantbench=target/release/quantbench
gate=$(cargo test --release --locked --test gate --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*gate-[^"]*\)".*/\1/p' | tail -1)

# The last line says what was found; the exit code whether it is right.
aa() {
    "$gate" aa "${AA_RUN:-reports/2026-11-21-epyc-2core-embedded}" "${AA_COUNT:-1000}" | tee "$out/aa.txt"
}

# One timed run. Short repetitions tell more than long ones: the two sides then share each moment of
# the machine.
measure() { # OUT TURNS
    # shellcheck disable=SC2086 # options are words
    "$quantbench" run --quiet --precisions fp16,int8 --no-noise-floor --choices none $options \
        --turns "$2" --out "$1" >"$1.log" 2>&1
}

number() { printf %02d "$1"; }

pairs() {
    for i in $(seq "$pairs"); do
        local pair=$work/pairs/$(number "$i")
        rm -rf "$pair"
        mkdir -p "$pair/base" "$pair/new"
        # In turns, and neither side always first: what the machine does hits both alike.
        for r in $(seq "$repeats"); do
            if ((r % 2)); then sides=(base new); else sides=(new base); fi
            measure "$pair/${sides[0]}/$r" "$pair/turns-$r" &
            # It has the turn before it makes its journal.
            until [ -e "$pair/${sides[0]}/$r/journal.jsonl" ]; do
                kill -0 $! || break
                sleep 0.05
            done
            measure "$pair/${sides[1]}/$r" "$pair/turns-$r"
            wait $!
        done
    done
    judge
}

judge() {
    local files=()
    for i in $(seq "$pairs"); do
        local pair=$work/pairs/$(number "$i")
        "$quantbench" compare --repeated --format json --output "$pair.json" "$pair/base" "$pair/new" || true
        files+=("$pair.json")
    done
    "$gate" pairs "${files[@]}" | tee "$out/pairs.csv"
}

# Real runs of the second side of a pair, worsened in their rows: the noise is that of the machine.
plant() { # PAIR WHAT FACTOR PRECISION
    local pair=$work/pairs/$1 planted=$work/planted/$2/$1
    rm -rf "$planted"
    for run in "$pair"/new/*/; do
        "$gate" "$2" "$run" "$4" "$3" "$planted/$(basename "$run")"
    done
    "$quantbench" compare --repeated --format json --output "$planted.json" "$pair/base" "$planted" >/dev/null || true
}

# Quality on a subset of the texts: every choice of three of six.
subsets() {
    local texts=(prose dialogue technical summary code math)
    for a in 0 1 2 3; do
        for b in $(seq $((a + 1)) 4); do
            for c in $(seq $((b + 1)) 5); do
                echo "${texts[a]},${texts[b]},${texts[c]}"
            done
        done
    done
}

quality() { # NUMBER TEXTS
    local runs=$work/quality/$1
    rm -rf "$runs"
    mkdir -p "$runs"
    local scored=(--quiet --datasets "$2" --limit 20 --calibration-limit 12 --reps 1
        --prompt-tokens 16 --gen-tokens 4 --no-noise-floor --choices none)
    "$quantbench" run "${scored[@]}" --precisions fp16,gptq-int4 --out "$runs/base" >/dev/null 2>&1
    QUANTBENCH_TEST_GATE=1 "$gate" run "${scored[@]}" \
        --precisions fp16,gptq-int3,scales-x2-gptq-int4 --out "$runs/new" >/dev/null 2>&1
    for planted in gptq-int3 scales-x2-gptq-int4; do
        "$gate" take "$runs/new" $planted gptq-int4 "$runs/$planted"
        "$quantbench" compare --format json --output "$runs/$planted.json" "$runs/base" "$runs/$planted" >/dev/null || true
    done
}

planted() {
    local i=0 fine=0
    for texts in $(subsets | head -n "$pairs"); do
        i=$((i + 1))
        quality "$(number $i)" "$texts"
    done
    for i in $(seq "$pairs"); do
        plant "$(number "$i")" slower 1.12 int8
        plant "$(number "$i")" memory 1.02 int8
    done
    {
        echo "comparison,metric,precision,change,interval,verdict"
        "$gate" found perplexity gptq-int4 "$work"/quality/*/gptq-int3.json || fine=1
        "$gate" found perplexity gptq-int4 "$work"/quality/*/scales-x2-gptq-int4.json || fine=1
        "$gate" found decode_tok_s int8 "$work"/planted/slower/*.json || fine=1
        "$gate" found peak_memory_bytes int8 "$work"/planted/memory/*.json || fine=1
    } >"$out/planted.csv"
    grep '^#' "$out/planted.csv"
    return $fine
}

case $step in
aa | pairs | judge | planted) "$step" ;;
all)
    fine=0
    aa || fine=1
    pairs || fine=1
    planted || fine=1
    exit $fine
    ;;
*)
    echo "unknown step $step: aa, pairs, judge, planted or all" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# A nightly run: measures, appends to the history, draws the trend, and fails where something got
# worse than the last good night (or a named baseline).
#
#   scripts/nightly.sh [OPTION...]      options of `quantbench run`: what to measure
#
# Settings, as environment variables:
#   RUNS        how often everything is measured [5]; speeds are judged by how these runs scatter
#   BASELINE    name of the baseline to compare with [last-good, which every good night replaces]
#   REPORTS     folder for nights, baselines and history [reports]
#   THRESHOLDS  TOML file with a [compare] table [the defaults]
#   QUANTBENCH  the program [built here]
#   AGAINST     another build of the program to compare with instead of a baseline: it is measured
#               anew, in turns with this one, so that speeds are of the same hour on the same machine
#
# Writes $REPORTS/nightly/DATE/ (the runs, compare.md, compare.json, compare.xml for JUnit; with
# AGAINST its runs in DATE-against/) and
# $REPORTS/history.csv with trend.md. Exit code: that of `quantbench compare`: 0 fine (also on the
# first night, which has nothing to be worse than), 1 regression, 2 usage, 3 cells failed, 4 the
# baseline is missing or does not compare.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${RUNS:-5}
reports=${REPORTS:-reports}
baseline=${BASELINE:-last-good}
night=$reports/nightly/$(date -u +%Y-%m-%dT%H%M%SZ)
quantbench=${QUANTBENCH:-}
if [ -z "$quantbench" ]; then
    cargo build --release --locked
    quantbench=target/release/quantbench
fi

# measured CODE: cells that failed are the comparison's to judge; anything else measured nothing
measured() {
    if [ "$1" != 0 ] && [ "$1" != 3 ]; then
        echo "quantbench run ended with $1" >&2
        exit "$1"
    fi
}

mkdir -p "$reports/nightly"
for i in $(seq "$runs"); do
    code=0
    if [ -n "${AGAINST:-}" ]; then
        against=0
        "$AGAINST" run --turns "$night-turns" --out "$night-against/$i" "$@" &
        "$quantbench" run --turns "$night-turns" --out "$night/$i" "$@" || code=$?
        wait $! || against=$?
        measured "$against"
    else
        "$quantbench" run --out "$night/$i" "$@" || code=$?
    fi
    measured "$code"
done
rm -f "$night-turns" "$night-turns.next"

# A history that cannot be written must not hide what the night found.
"$quantbench" history --history "$reports/history.csv" "$night" ||
    echo "warning: the history was not updated" >&2

compare() {
    "$quantbench" compare --repeated --baselines "$reports/baselines" \
        ${THRESHOLDS:+--thresholds "$THRESHOLDS"} "$@" "$night"
}

# written BASE...: the comparison with this base as files, and for the job's summary
written() {
    for format in markdown:compare.md json:compare.json junit:compare.xml; do
        compare --format "${format%%:*}" --output "$night/${format#*:}" "$@" || true
    done
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -e "$night/compare.md" ]; then
        cat "$night/compare.md" >>"$GITHUB_STEP_SUMMARY"
    fi
}

if [ -n "${AGAINST:-}" ]; then
    code=0
    compare "$night-against" || code=$?
    written "$night-against"
    exit "$code"
fi
if [ "$baseline" = last-good ] && [ ! -e "$reports/baselines/last-good" ]; then
    echo "no good night yet: this one is the first"
    # Against itself nothing is worse; but what has failed is no baseline.
    if [ "$code" = 0 ]; then
        compare --save-baseline last-good
    fi
    exit "$code"
fi
code=0
compare --baseline "$baseline" || code=$?
# Where there is no baseline there is nothing to show.
[ -e "$reports/baselines/$baseline" ] || exit "$code"
written --baseline "$baseline"
if [ "$code" = 0 ] && [ "$baseline" = last-good ]; then
    compare --save-baseline last-good
fi
exit "$code"

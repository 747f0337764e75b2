#!/usr/bin/env bash
# A nightly run: measures, appends to the history, draws the trend, and fails where something got
# worse than the last good night (or a named baseline).
#
#   scripts/nightly.sh [OPTION...]      options of `quantbench run`: what to measure, of one model
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
# Relative paths start at the root of the repository.
#
# Writes $REPORTS/nightly/DATE/ (the runs, compare.md, compare.json, compare.xml for JUnit; with
# AGAINST its runs in DATE-against/) and
# $REPORTS/history.csv with trend.md. Exit code: that of `quantbench compare`: 0 fine (also on the
# first night, which has nothing to be worse than), 1 regression, 2 usage, 3 cells failed (be it
# cells that the baseline lacks), 4 the baseline is missing or does not compare; 130 stopped by a
# signal. Only a night whose cells were all measured in every run becomes `last-good`.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${RUNS:-5}
reports=${REPORTS:-reports}
baseline=${BASELINE:-last-good}
night=$reports/nightly/$(date -u +%Y-%m-%dT%H%M%SZ)
quantbench=${QUANTBENCH:-}

# refuse WHAT NEXT: a mistake of the user's
refuse() {
    printf 'error: %s\n  %s\n' "$1" "$2" >&2
    exit 2
}

# Mistakes show here, before hours of measuring.
if ! [[ $runs =~ ^[1-9][0-9]*$ ]]; then
    refuse "RUNS is $runs" "set it to a whole number from 1, or leave it out for 5"
fi
for program in QUANTBENCH AGAINST; do
    if [ -n "${!program:-}" ] && ! command -v -- "${!program}" >/dev/null; then
        refuse "$program is ${!program}, which is no program that can be run" \
            "name an executable file (a relative path starts at $PWD)"
    fi
done
if [ -z "$quantbench" ]; then
    cargo build --release --locked
    quantbench=target/release/quantbench
fi
# Reads the options and the thresholds, and shows the cells: a head, a row each, and their number.
plan=$("$quantbench" run --dry-run --out "$night/1" \
    ${THRESHOLDS:+--thresholds "$THRESHOLDS"} "$@") || exit $?
one_model() {
    refuse "these options measure several models, and a night compares runs of one" \
        "start a nightly run for each model, with a REPORTS folder of its own"
}
models=$(printf '%s\n' "$plan" | sed -e '1d' -e '$d' -e 's/  .*//' | sort -u | wc -l)
if [ "$models" -gt 1 ]; then
    one_model
fi

running=
stopped=
trap 'rm -f "$night-turns"' EXIT
# The first signal lets a run write what it has measured, a second one ends it at once.
stop() {
    stopped=yes
    if [ -z "$running" ]; then
        exit 130
    fi
    kill -INT $running 2>/dev/null || true
}
trap stop INT TERM HUP

# start COMMAND...: starts a run; its number is in $!
start() {
    # In a process group of its own: of a Ctrl-C, which goes to a whole group, it would get a second
    # signal beside that of `stop`.
    set -m
    "$@" </dev/null &
    set +m
    running="$running $!"
    # A signal that came while it started has missed it.
    if [ -n "$stopped" ]; then
        kill -INT $! 2>/dev/null || true
    fi
}

# finish PID: waits for a run and leaves its exit code in $code
finish() {
    code=0
    wait "$1" || code=$?
    # A signal ends the waiting, not the run.
    while kill -0 "$1" 2>/dev/null; do
        code=0
        wait "$1" || code=$?
    done
}

# measured CODE: cells that failed are the comparison's to judge; anything else measured nothing
measured() {
    if [ "$1" != 0 ] && [ "$1" != 3 ]; then
        echo "quantbench run ended with $1" >&2
        exit "$1"
    fi
}

mkdir -p "$reports/nightly"
worst=0
for i in $(seq "$runs"); do
    if [ -n "${AGAINST:-}" ]; then
        start "$AGAINST" run --turns "$night-turns" --out "$night-against/$i" "$@"
        other=$!
        start "$quantbench" run --turns "$night-turns" --out "$night/$i" "$@"
        this=$!
        finish "$other"
        against=$code
        finish "$this"
    else
        start "$quantbench" run --out "$night/$i" "$@"
        against=0
        finish $!
    fi
    running=
    if [ -n "$stopped" ]; then
        echo "stopped: what was measured is in $night, and is not compared" >&2
        exit 130
    fi
    measured "$against"
    measured "$code"
    if [ "$code" -gt "$worst" ]; then
        worst=$code
    fi
    # Models of one name, as one folder twice, show only in the folders of their runs.
    [ -e "$night/$i/run.json" ] || one_model
done

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

# conclude CODE: ends with the code of a comparison, unless cells failed that it has no base for
conclude() {
    if [ "$1" = 0 ] && [ "$worst" != 0 ]; then
        echo "cells failed: see results.csv in the folders of $night" >&2
        exit "$worst"
    fi
    exit "$1"
}

if [ -n "${AGAINST:-}" ]; then
    code=0
    compare "$night-against" || code=$?
    written "$night-against"
    conclude "$code"
fi
if [ "$baseline" = last-good ] && [ ! -e "$reports/baselines/last-good" ]; then
    echo "no good night yet: this one is the first"
    # Against itself nothing is worse; but what has failed is no baseline.
    if [ "$worst" = 0 ]; then
        compare --save-baseline last-good
    fi
    conclude 0
fi
code=0
compare --baseline "$baseline" || code=$?
# Where there is no baseline there is nothing to show.
[ -e "$reports/baselines/$baseline" ] || exit "$code"
written --baseline "$baseline"
if [ "$code" = 0 ] && [ "$worst" = 0 ] && [ "$baseline" = last-good ]; then
    compare --save-baseline last-good
fi
conclude "$code"

#!/usr/bin/env bash
# Kills a small suite at N random moments (default 50), resumes it each time, and compares the
# final tables with those of an undisturbed run. Seeds differ: kill-check.sh [N [SEED]]
set -euo pipefail
cd "$(dirname "$0")/.."
export QUANTBENCH_KILLS="${1:-50}" QUANTBENCH_KILL_SEED="${2:-7}"
exec cargo test --release --test it killed_again -- --nocapture

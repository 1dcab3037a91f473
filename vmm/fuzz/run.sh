#!/usr/bin/env bash
# Runs every fuzz target for a while: FUZZ_SECONDS (60) each. What it finds is in vmm/fuzz/artifacts; new inputs stay out of the kept
# corpus, which plain tests replay. The toolchain is the stable one, told to take the flags that libFuzzer needs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
seconds=${FUZZ_SECONDS:-60}
export RUSTC_BOOTSTRAP=1
command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked
cd "$here/.."
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
for target in $(cargo fuzz list); do
    mkdir -p "$found/$target"
    cargo fuzz run --sanitizer none "$target" "$found/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=20 -rss_limit_mb=1024 -print_final_stats=1 2>&1 |
        grep -E 'BINGO|ERROR|panicked|number_of_executed_units|peak_rss|Test unit|crash-' | sed "s/^/$target: /" || true
    if [ -n "$(ls -A "fuzz/artifacts/$target" 2>/dev/null)" ]; then
        echo "$target: found something: vmm/fuzz/artifacts/$target"
        exit 1
    fi
done

#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS (60), beginning with the kept corpus; what is found beyond it stays in corpus-grown.
# Needs no nightly compiler: coverage is a matter of stable flags, and what the sanitizers would find, safe Rust does not have.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
version=0.13.2
tools=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/cargo-fuzz-$version
[ -x "$tools/bin/cargo-fuzz" ] || cargo install cargo-fuzz --version "$version" --locked --root "$tools"
export PATH=$tools/bin:$PATH
unset CARGO_TARGET_DIR
for target in ${*:-layers trees documents references streams}; do
    mkdir -p "fuzz/corpus-grown/$target"
    echo "== $target, $seconds s"
    cargo fuzz run --sanitizer none "$target" "fuzz/corpus-grown/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1
done

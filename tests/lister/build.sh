#!/usr/bin/env bash
# Builds the lister, static so that it runs in any image, and prints its path.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
# --target keeps the flag away from build scripts; the same directory as the agent's, so that what both use is built once.
RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --quiet --locked --manifest-path "$here/Cargo.toml" \
    --profile agent --target x86_64-unknown-linux-gnu --target-dir "$target/guest"
echo "$target/guest/x86_64-unknown-linux-gnu/agent/bulkhead-lister"

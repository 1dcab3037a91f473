#!/usr/bin/env bash
# Builds the agent and packs it as the only file of an initramfs: build-initramfs.sh OUTPUT
# The archive is reproducible: the same agent gives the same bytes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
output=$(realpath -m "${1:?usage: build-initramfs.sh OUTPUT}")
target=${CARGO_TARGET_DIR:-$here/../target}

# Static, so that it runs where there is nothing else; --target keeps the flag away from build scripts and procedural macros.
RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --quiet --manifest-path "$here/Cargo.toml" --bin bulkhead-agent \
    --profile agent --target x86_64-unknown-linux-gnu --target-dir "$target/guest"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -m 755 "$target/guest/x86_64-unknown-linux-gnu/agent/bulkhead-agent" "$work/init"
size=$(stat -c %s "$work/init")
[ "$size" -le $((2 << 20)) ] || {
    printf 'bulkhead: the agent is too large\nwhy: %s bytes, the bound is 2 MiB\nnext: cargo bloat -p agent\n' "$size" >&2
    exit 1
}
mkdir "$work/dev" "$work/proc" "$work/sys"
touch -d @0 "$work/init" "$work/dev" "$work/proc" "$work/sys" "$work"
mkdir -p "$(dirname "$output")"
(cd "$work" && printf '%s\n' dev init proc sys | cpio --quiet -o -H newc -R 0:0 --reproducible) > "$output.new"
mv "$output.new" "$output"

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
agent=$target/guest/x86_64-unknown-linux-gnu/agent/bulkhead-agent
size=$(stat -c %s "$agent")
[ "$size" -le $((2 << 20)) ] || {
    printf 'bulkhead: the agent is too large\nwhy: %s bytes, the bound is 2 MiB\nnext: cargo bloat -p agent\n' "$size" >&2
    exit 1
}

# One entry of a "newc" archive, written here because device nodes cannot be made without root.
inode=0
entry() { # name, mode (octal), device major, device minor, [file]
    local name=$1 bytes=0
    [ -z "${5:-}" ] || bytes=$(stat -c %s "$5")
    printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\0' \
        $((inode += 1)) $((8#$2)) 0 0 1 0 "$bytes" 0 0 "$3" "$4" $((${#name} + 1)) 0 "$name"
    pad $((110 + ${#name} + 1))
    [ -z "${5:-}" ] || { cat "$5" && pad "$bytes"; }
}
pad() { head -c $(((4 - $1 % 4) % 4)) /dev/zero; }

mkdir -p "$(dirname "$output")"
{
    entry dev 040755 0 0
    # A program whose standard streams are closed at its start would be ended by its own library; the kernel opens the console for it.
    entry dev/console 020600 5 1
    entry dev/null 020666 1 3
    entry init 100755 0 0 "$agent"
    entry TRAILER!!! 0 0 0
} > "$output.new"
mv "$output.new" "$output"

#!/usr/bin/env bash
# Runs every test: test.sh BULKHEAD
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
export BULKHEAD=$1
BULKHEAD_KERNEL_UML=$(guest-kernel/build.sh uml)
BULKHEAD_KERNEL_KVM=$(guest-kernel/build.sh kvm)
export BULKHEAD_KERNEL_UML BULKHEAD_KERNEL_KVM
BULKHEAD_INITRAMFS=$(dirname "$BULKHEAD")/initramfs.cpio
export BULKHEAD_INITRAMFS

# A test that cannot run here says so in a line with "skipped:"; they are gathered at the end, so that nobody overlooks them.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo fmt --all --check || status=1
cargo test --workspace --locked --no-fail-fast -- --nocapture 2>&1 | tee "$log" || status=1
passed=$(grep -E '^test result:' "$log" | awk '{ n += $4 } END { print n + 0 }')
failed=$(grep -E '^test result:' "$log" | awk '{ n += $6 } END { print n + 0 }')
skipped=$(grep -c 'skipped:' "$log" || true)
grep -o 'skipped:.*' "$log" | sort | uniq -c || true
grep -E '^test .* FAILED$' "$log" || true
echo "$passed passed, $failed failed, $skipped skipped"
exit $status

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
# The tests write to a file and have a session of their own: a process that one of them left behind can neither keep this
# script waiting for the end of a pipe, nor outlive it.
log=$(mktemp --suffix=.log)
tests=
clean_up() {
    [ -z "$tests" ] || pkill -KILL -s "$tests" || true
    rm -f "$log"
}
trap clean_up EXIT
status=0
cargo fmt --all --check || status=1
setsid timeout --kill-after=30 "${TEST_TIMEOUT:-50m}" \
    cargo test --workspace --locked --no-fail-fast -- --nocapture >"$log" 2>&1 &
tests=$!
tail --pid="$tests" -n +1 -f "$log"
wait "$tests" || status=1
# What is just ending gets a moment for it.
for _ in $(seq 50); do
    pgrep -s "$tests" >/dev/null || break
    sleep 0.2
done
if left=$(pgrep -l -s "$tests"); then
    echo "left behind by the tests: $left"
    status=1
fi
passed=$(grep -E '^test result:' "$log" | awk '{ n += $4 } END { print n + 0 }')
failed=$(grep -E '^test result:' "$log" | awk '{ n += $6 } END { print n + 0 }')
skipped=$(grep -c 'skipped:' "$log" || true)
grep -o 'skipped:.*' "$log" | sort | uniq -c || true
grep -E '^test .* FAILED$' "$log" || true
echo "$passed passed, $failed failed, $skipped skipped"
exit $status

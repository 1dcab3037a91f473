#!/usr/bin/env bash
# Runs every test: test.sh BULKHEAD
#
# Tests here boot real machines. One that fails is run once more, by itself: passes it then, it is named as flaky at the end,
# which is a fault to be mended, but not in what was being tested. More than FEW failures are never tried again.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
export BULKHEAD=$1
BULKHEAD_KERNEL_UML=$(guest-kernel/build.sh uml)
BULKHEAD_KERNEL_KVM=$(guest-kernel/build.sh kvm)
export BULKHEAD_KERNEL_UML BULKHEAD_KERNEL_KVM
BULKHEAD_INITRAMFS=$(dirname "$BULKHEAD")/initramfs.cpio
export BULKHEAD_INITRAMFS
FEW=6

# A test that cannot run here says so in a line with "skipped:"; they are gathered at the end, so that nobody overlooks them.
# The tests write to a file and have a session of their own: a process that one of them left behind can neither keep this
# script waiting for the end of a pipe, nor outlive it.
log=$(mktemp --suffix=.log)
again=$(mktemp --suffix=.log)
tests=
clean_up() {
    [ -z "$tests" ] || pkill -KILL -s "$tests" || true
    rm -f "$log" "$again"
}
trap clean_up EXIT

# run_tests LOG ARGUMENT...: cargo test with these arguments; what they leave behind is a failure of its own.
left_behind=0
run_tests() {
    local log=$1 result=0
    shift
    setsid timeout --kill-after=30 "${TEST_TIMEOUT:-50m}" cargo test --locked "$@" >"$log" 2>&1 &
    tests=$!
    tail --pid="$tests" -n +1 -f "$log"
    wait "$tests" || result=1
    # What is just ending gets a moment for it.
    for _ in $(seq 50); do
        pgrep -s "$tests" >/dev/null || break
        sleep 0.2
    done
    if left=$(pgrep -l -s "$tests"); then
        echo "left behind by the tests: $left"
        left_behind=1
        pkill -KILL -s "$tests" || true
    fi
    return $result
}

# failures LOG: each failed target's arguments, and after a tab the names of its failed tests (none: it died as a whole).
failures() {
    awk '/^failures:$/ { listed = 1; names = ""; next }
        listed && /^    [A-Za-z0-9_:]+$/ { names = names " " $1; next }
        listed && /^test result:/ { listed = 0 }
        /^error: (doc)?test failed, to rerun pass/ { split($0, part, "`"); print part[2] "\t" names; names = "" }' "$1"
}

# total FIELD LOG...: the sum of a field of the result lines.
total() {
    local field=$1
    shift
    cat "$@" | awk -v field="$field" '/^test result:/ { n += $field } END { print n + 0 }'
}

status=0
cargo fmt --all --check || status=1
flaky=()
if ! run_tests "$log" --workspace --no-fail-fast -- --nocapture; then
    failed=$(failures "$log")
    count=$(wc -w <<<"$(cut -f 2 <<<"$failed")")
    if [ -z "$failed" ] || [ "$count" -gt "$FEW" ]; then
        status=1
    else
        while IFS=$'\t' read -r target names; do
            echo "failed:$names ($target), once more:"
            # The words of the target and the names are arguments of their own.
            # shellcheck disable=SC2086
            if run_tests "$again" $target -- --nocapture --test-threads 1 --exact $names; then
                flaky+=("$target:$names")
                passed_again=$((${passed_again:-0} + $(total 4 "$again")))
            else
                status=1
            fi
        done <<<"$failed"
    fi
fi
[ "$left_behind" = 0 ] || status=1
passed=$(($(total 4 "$log") + ${passed_again:-0}))
failed=$(($(total 6 "$log") - ${passed_again:-0}))
skipped=$(grep -c 'skipped:' "$log" || true)
grep -o 'skipped:.*' "$log" | sort | uniq -c || true
grep -E '^test .* FAILED$' "$log" || true
for name in ${flaky[@]+"${flaky[@]}"}; do
    echo "flaky: $name passed when it ran again"
done
echo "$passed passed, $failed failed, $skipped skipped"
exit $status

#!/usr/bin/env bash
# Runs a first container: demo.sh BULKHEAD
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bulkhead=$1

accelerator=$("$bulkhead" accelerator)
"$here/guest-kernel/build.sh" "$accelerator" > /dev/null
image=$("$here/tests/images/busybox.sh")

run() { # echo the command, then run it
    echo "\$ bulkhead run --rm $*"
    "$bulkhead" run --rm "$@"
}
run "oci:$image" uname -a
run "oci:$image" ps
run "oci:$image" mount
status=0
run "oci:$image" sh -c 'echo "hello from a $(hostname | wc -c)-byte name"; exit 7' || status=$?
echo "exit status $status"
[ "$status" = 7 ]

#!/usr/bin/env bash
# Times one container from a cached image to its exit, beside runc, ctr and podman in the same run: run.sh BULKHEAD
# The programs take turns, so that a noisy minute hits all of them. Medians of $RUNS (default 15). Needs root.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
bulkhead=$1
runs=${RUNS:-15}
image=$("$here/tests/images/busybox.sh")
work=$(mktemp -d)
containerd_pid=
cleanup() {
    [ -z "$containerd_pid" ] || { kill "$containerd_pid" && wait "$containerd_pid"; } 2> /dev/null || true
    umount -l "$work/podman/overlay" 2> /dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
export BULKHEAD_ROOT=$work/bulkhead

names=() commands=() notes=()
add() { # name, command; it is run once to see whether it works, and to fill caches
    if output=$(eval "$2" 2>&1) && [ "$output" = hello ]; then
        names+=("$1"); commands+=("$2")
    else
        notes+=("$1: skipped: $(echo "$output" | tail -n 1 | cut -c1-140)")
    fi
}

"$bulkhead" run --rm "oci:$image" true > /dev/null 2>&1
accelerator=$("$bulkhead" accelerator)
add "bulkhead run ($accelerator)" "$bulkhead run --rm oci:$image echo hello"
[ "$accelerator" = uml ] || add "bulkhead run (uml)" "$bulkhead run --rm --accel uml oci:$image echo hello"

if command -v runc > /dev/null && command -v umoci > /dev/null; then
    umoci unpack --image "$image:latest" "$work/bundle" > /dev/null 2>&1
    sed -i 's/"terminal": true/"terminal": false/' "$work/bundle/config.json"
    python3 - "$work/bundle/config.json" <<'P'
import json, sys
path = sys.argv[1]
spec = json.load(open(path))
spec["process"]["args"] = ["echo", "hello"]
json.dump(spec, open(path, "w"))
P
    add "runc run" "runc --root $work/runc run --bundle $work/bundle bench"
fi
if command -v ctr > /dev/null; then
    containerd --address "$work/containerd.sock" --root "$work/containerd" --state "$work/containerd-state" > "$work/containerd.log" 2>&1 &
    containerd_pid=$!
    for _ in $(seq 50); do [ -S "$work/containerd.sock" ] && break; sleep 0.1; done
    (cd "$image" && tar -cf "$work/image.tar" .)
    ctr="ctr --address $work/containerd.sock"
    $ctr image import --base-name bench "$work/image.tar" > "$work/import.log" 2>&1 || true
    name=$($ctr image ls -q 2> /dev/null | head -n 1)
    add "ctr run" "$ctr run --rm ${name:-none} bench echo hello"
    [ "${names[-1]}" = "ctr run" ] || add "ctr run (native)" "$ctr run --snapshotter native --rm ${name:-none} bench echo hello"
fi
if command -v podman > /dev/null; then
    (cd "$image" && tar -cf "$work/podman.tar" .)
    podman="podman --root $work/podman --runroot $work/podman-run --cgroup-manager cgroupfs --events-backend none"
    loaded=$($podman load -q -i "$work/podman.tar" 2>&1 | sed -n 's/^Loaded image: //p' | head -n 1) || true
    add "podman run" "$podman run --rm --runtime runc --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --network none ${loaded:-none} echo hello"
fi

for i in "${!names[@]}"; do : > "$work/times-$i"; done
for _ in $(seq "$runs"); do
    for i in "${!names[@]}"; do
        start=$(date +%s%N)
        eval "${commands[$i]}" > /dev/null 2>&1
        echo $((($(date +%s%N) - start) / 1000)) >> "$work/times-$i"
    done
done

printf '\n%-24s %10s %10s %10s   (ms, %s runs; echo hello, cached image to exit)\n' "" median best worst "$runs"
for i in "${!names[@]}"; do
    sort -n "$work/times-$i" | awk -v name="${names[$i]}" '{ t[NR] = $1 } END {
        printf "%-24s %10.1f %10.1f %10.1f\n", name, t[int((NR + 1) / 2)] / 1000, t[1] / 1000, t[NR] / 1000 }'
done
for note in ${notes[@]+"${notes[@]}"}; do echo "$note"; done

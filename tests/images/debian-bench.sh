#!/usr/bin/env bash
# Makes an OCI image of Debian with fio and iperf3, on top of debian-python.sh's, and prints its directory. Needs root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/images
key=$(cat "$0" "$here/debian-python.sh" | sha256sum | cut -c1-16)
image=$cache/debian-bench-$key
[ -e "$image/index.json" ] && echo "$image" && exit 0

base=$("$here/debian-python.sh")
work=$(mktemp -d "$cache/.debian-bench-XXXXXX")
trap 'rm -rf "$work"' EXIT

quiet() { "$@" > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }; }
cp -r "$base" "$work/out"
quiet umoci unpack --image "$work/out:latest" "$work/bundle"
root=$work/bundle/rootfs
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
quiet chroot "$root" apt-get -q update
quiet chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    apt-get -q -y install --no-install-recommends fio iperf3
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists "$root"/usr/share/doc "$root"/usr/sbin/policy-rc.d
: > "$root/etc/resolv.conf"
quiet umoci repack --refresh-bundle --image "$work/out:latest" "$work/bundle"
umoci config --image "$work/out:latest" --config.workingdir /
umoci gc --layout "$work/out"
mv "$work/out" "$image" 2> /dev/null || [ -e "$image/index.json" ]
echo "$image"

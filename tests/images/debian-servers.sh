#!/usr/bin/env bash
# Makes an OCI image of Debian with nginx, PostgreSQL, Redis and their benchmarks, on top of debian-python.sh's, and prints its directory.
# Needs root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/images
key=$(cat "$0" "$here/debian-python.sh" | sha256sum | cut -c1-16)
image=$cache/debian-servers-$key
[ -e "$image/index.json" ] && echo "$image" && exit 0

base=$("$here/debian-python.sh")
work=$(mktemp -d "$cache/.debian-servers-XXXXXX")
trap 'rm -rf "$work"' EXIT

quiet() { "$@" > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }; }
cp -r "$base" "$work/out"
quiet umoci unpack --image "$work/out:latest" "$work/bundle"
root=$work/bundle/rootfs
# The image's own /opt is a file; packages would have a directory.
rm -f "$root/opt" && mkdir "$root/opt"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# No service is started here, and no cluster made: its users run them.
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/etc/postgresql-common"
echo 'create_main_cluster = false' > "$root/etc/postgresql-common/createcluster.conf"
quiet chroot "$root" apt-get -q update
quiet chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    apt-get -q -y -o DPkg::Options::=--force-confold install --no-install-recommends curl nginx-light postgresql redis-server redis-tools wrk
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists "$root"/usr/share/doc "$root"/usr/sbin/policy-rc.d
: > "$root/etc/resolv.conf"
quiet umoci repack --refresh-bundle --image "$work/out:latest" "$work/bundle"
umoci config --image "$work/out:latest" --config.cmd bash --config.env PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umoci gc --layout "$work/out"
mv "$work/out" "$image" 2> /dev/null || [ -e "$image/index.json" ]
echo "$image"

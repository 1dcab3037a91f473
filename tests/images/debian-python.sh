#!/usr/bin/env bash
# Makes an OCI image of Debian with Python in three layers, the last one mostly whiteouts, and prints its directory. Needs root.
set -euo pipefail
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/images
key=$(sha256sum < "$0" | cut -c1-16)
image=$cache/debian-python-$key
[ -e "$image/index.json" ] && echo "$image" && exit 0

mkdir -p "$cache"
work=$(mktemp -d "$cache/.debian-python-XXXXXX")
trap 'rm -rf "$work"' EXIT
mirror=$(apt-get indextargets --format '$(REPO_URI)' 2> /dev/null | sort -u | grep -m1 -E '/debian/?$' || echo http://deb.debian.org/debian/)

quiet() { "$@" > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }; }
umoci init --layout "$work/out"
umoci new --image "$work/out:latest"
quiet umoci unpack --image "$work/out:latest" "$work/bundle"
root=$work/bundle/rootfs
layer() { quiet umoci repack --refresh-bundle --image "$work/out:latest" "$work/bundle"; }

quiet debootstrap --variant=minbase bookworm "$root" "$mirror"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
layer

# The second layer: Python, from the same mirror.
quiet chroot "$root" apt-get -q update
quiet chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends python3
rm -rf "$root"/var/cache/apt/archives/*.deb
layer

# The third layer: whole directories and single files go away, one directory becomes a file, one file changes.
rm -rf "$root"/usr/share/doc "$root"/usr/share/man "$root"/var/lib/apt/lists "$root"/usr/share/locale "$root"/etc/motd
rm -rf "$root"/opt && echo 'a file where a directory was' > "$root/opt"
echo 'third layer' > "$root/etc/issue"
layer

umoci config --image "$work/out:latest" --config.cmd python3 --config.env PATH=/usr/local/bin:/usr/bin:/bin --config.workingdir /srv
umoci gc --layout "$work/out"
mv "$work/out" "$image" 2> /dev/null || [ -e "$image/index.json" ]
echo "$image"

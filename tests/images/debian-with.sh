# shellcheck shell=bash
# To be sourced: makes an OCI image of Debian with further packages, on top of debian-python.sh's, and prints its directory. Needs root.

# Before packages are installed; $1 is the image's root directory.
before() { :; }

# debian_with NAME "PACKAGES" [OPTIONS OF umoci config]...
debian_with() {
    local name=$1 packages=$2 here cache key image base root
    shift 2
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/images
    key=$(cat "$0" "${BASH_SOURCE[0]}" "$here/debian-python.sh" | sha256sum | cut -c1-16)
    image=$cache/$name-$key
    [ -e "$image/index.json" ] && echo "$image" && return

    base=$("$here/debian-python.sh")
    work=$(mktemp -d "$cache/.$name-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cp -r "$base" "$work/out"
    quiet umoci unpack --image "$work/out:latest" "$work/bundle"
    root=$work/bundle/rootfs
    # The image's own /opt is a file; packages would have a directory.
    rm -f "$root/opt" && mkdir "$root/opt"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    # No service is started here: the image's users do that.
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    before "$root"
    quiet chroot "$root" apt-get -q update
    # shellcheck disable=SC2086 # a list of packages
    quiet chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        apt-get -q -y -o DPkg::Options::=--force-confold install --no-install-recommends $packages
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists "$root"/usr/share/doc "$root"/usr/sbin/policy-rc.d
    : > "$root/etc/resolv.conf"
    quiet umoci repack --refresh-bundle --image "$work/out:latest" "$work/bundle"
    umoci config --image "$work/out:latest" "$@"
    umoci gc --layout "$work/out"
    mv "$work/out" "$image" 2> /dev/null || [ -e "$image/index.json" ]
    echo "$image"
}

quiet() { "$@" > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }; }

#!/usr/bin/env bash
# Makes an OCI image layout of Debian's busybox-static and prints its directory.
set -euo pipefail
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/images
busybox=$(command -v busybox)
key=$({ cat "$0" "$busybox"; } | sha256sum | cut -c1-16)
image=$cache/busybox-$key
[ -e "$image/index.json" ] && echo "$image" && exit 0

mkdir -p "$cache"
work=$(mktemp -d "$cache/.busybox-XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,etc,root,tmp,usr,var} "$work/out/blobs/sha256"
chmod 1777 "$root/tmp"
install -m 755 "$busybox" "$root/bin/busybox"
# Links, not copies: one program, many names.
for name in $("$busybox" --list); do
    [ "$name" = busybox ] || ln -s busybox "$root/bin/$name"
done
ln -s bin "$root/sbin"
echo 'root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false' > "$root/etc/passwd"
echo 'root:x:0:
nogroup:x:65534:' > "$root/etc/group"

tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$work/layer.tar" .
diff_id=$(sha256sum < "$work/layer.tar" | cut -d' ' -f1)
gzip -n "$work/layer.tar"

blob() { # FILE: moves it in and prints digest and size
    local digest size
    digest=$(sha256sum < "$1" | cut -d' ' -f1)
    size=$(stat -c %s "$1")
    mv "$1" "$work/out/blobs/sha256/$digest"
    echo "\"digest\":\"sha256:$digest\",\"size\":$size"
}
layer=$(blob "$work/layer.tar.gz")
printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$diff_id" > "$work/config"
config=$(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",%s}]}' \
    "$config" "$layer" > "$work/manifest"
manifest=$(blob "$work/manifest")
echo '{"imageLayoutVersion":"1.0.0"}' > "$work/out/oci-layout"
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' \
    "$manifest" > "$work/out/index.json"
mv "$work/out" "$image" 2> /dev/null || [ -e "$image/index.json" ]
echo "$image"

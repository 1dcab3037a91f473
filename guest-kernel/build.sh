#!/usr/bin/env bash
# Builds a guest kernel: build.sh uml|kvm [--print-path]
#
# The source is Debian's linux-source package at the version and SHA-256 of sources.lock, or, where Debian's archive cannot be
# reached, the same upstream version from kernel.org. The product is cached by the hash of everything that goes into it, outside the
# checkout, and is never built twice for the same inputs. The path of the product is the last line of the output.
#
#   BULKHEAD_CACHE            where to cache (default: $XDG_CACHE_HOME/bulkhead, else ~/.cache/bulkhead)
#   BULKHEAD_KERNEL_STRICT=1  refuse a source that is not the pinned one, even if it carries the archive's signature
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}
kind=${1:-}

fail() { # what, why, next
    printf 'bulkhead: %s\nwhy: %s\nnext: %s\n' "$1" "$2" "$3" >&2
    exit 1
}

read -r _ product arch package version sha256 suites < <(grep -E "^$kind[[:space:]]" "$here/sources.lock" || true) || true
[ -n "${product:-}" ] || fail "unknown guest kernel '$kind'" "there are two: uml and kvm" "guest-kernel/build.sh uml"

shopt -s nullglob
patches=("$here/patches/$kind-"*.patch)
key=$({ grep -E "^$kind[[:space:]]" "$here/sources.lock"; cat "$here/config/common.config" "$here/config/$kind.config" "${patches[@]}" "$here/build.sh"
    gcc -dumpfullversion 2>/dev/null || echo none; } | sha256sum | cut -c1-16)
final=$cache/kernels/$kind-$key
link=$cache/kernels/$kind

publish() {
    ln -sfn "$kind-$key" "$link"
    echo "$link/$product"
    exit 0
}

[ -e "$final/$product" ] && publish
[ "${2:-}" = --print-path ] && fail "the $kind guest kernel is not built" "nothing is cached for these inputs" "make kernel-$kind"

mkdir -p "$cache/kernels" "$cache/kernel-source"
exec 9> "$cache/kernels/.$kind.lock"
flock 9
[ -e "$final/$product" ] && publish

for tool in gcc make flex bison bc xz patch dpkg-deb; do
    command -v "$tool" > /dev/null || fail "the $kind guest kernel cannot be built" "$tool is not installed" "make setup"
done

work=$(mktemp -d "$cache/kernels/.build-$kind-XXXXXX")
trap 'rm -rf "$work"' EXIT
started=$(date +%s)
say() { echo "guest kernel $kind: $*" >&2; }

# The machine's own mirror, so that a company's proxy or a CI's cache is used; the machine's apt configuration is not touched.
mirror() { # repository name
    apt-get indextargets --format '$(REPO_URI)' 2> /dev/null | sort -u | grep -m1 -E "/$1/?\$" || echo "http://deb.debian.org/$1/"
}

fetch_debian() {
    local apt=$work/apt uri suite
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    for suite in ${suites//,/ }; do
        case $suite in *-security) uri=$(mirror debian-security) ;; *) uri=$(mirror debian) ;; esac
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main"
    done > "$apt/sources.list"
    local options=(-q -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3)
    apt-get "${options[@]}" update >&2 || return 1
    if ! (cd "$work" && apt-get "${options[@]}" download "$package=$version" >&2); then
        [ -z "${BULKHEAD_KERNEL_STRICT:-}" ] || return 1
        say "WARNING: Debian's archive no longer has $package $version; taking the newest one that its signature vouches for"
        (cd "$work" && apt-get "${options[@]}" download "$package" >&2) || return 1
        sha256=""
    fi
    mv "$work/$package"_*.deb "$work/source.deb"
}

# Not pinned by us: the checksum is the one that kernel.org publishes beside the file, over TLS.
fetch_kernel_org() {
    local upstream=${version%%-*} base
    base=https://cdn.kernel.org/pub/linux/kernel/v${upstream%%.*}.x
    command -v curl > /dev/null || return 1
    curl -fsS --retry 3 -o "$work/linux.tar.xz" "$base/linux-$upstream.tar.xz" || return 1
    curl -fsS --retry 3 "$base/sha256sums.asc" | grep " linux-$upstream.tar.xz\$" | sed "s# .*#  $work/linux.tar.xz#" | sha256sum -c --status
}

deb=$cache/kernel-source/${package}_$version.deb
if [ -e "$deb" ]; then
    cp "$deb" "$work/source.deb"
elif command -v apt-get > /dev/null && say "fetching $package $version" && fetch_debian; then
    :
elif say "Debian's archive failed; trying kernel.org" && fetch_kernel_org; then
    :
else
    fail "the source of the $kind guest kernel could not be fetched" "neither Debian's archive nor kernel.org answered with $package $version" \
        "check the network, or put the package at $deb"
fi

if [ -e "$work/source.deb" ]; then
    if [ -n "$sha256" ]; then
        echo "$sha256  $work/source.deb" | sha256sum -c --status || {
            rm -f "$deb"
            fail "the source of the $kind guest kernel is not the pinned one" "the SHA-256 of $package $version differs from guest-kernel/sources.lock" \
                "run it again; if it stays so, compare the package with Debian's archive"
        }
        cp "$work/source.deb" "$deb.tmp$$" && mv "$deb.tmp$$" "$deb"
    fi
    dpkg-deb --fsys-tarfile "$work/source.deb" | tar -x -C "$work" --wildcards --strip-components=3 './usr/src/linux-source-*.tar.xz'
    mv "$work"/linux-source-*.tar.xz "$work/linux.tar.xz"
    rm "$work/source.deb"
fi

say "unpacking the source"
mkdir "$work/source" "$work/out"
xz -dc "$work/linux.tar.xz" | tar -x -C "$work/source" --strip-components=1
rm "$work/linux.tar.xz"
for patch in ${patches[@]+"${patches[@]}"}; do
    say "applying $(basename "$patch")"
    patch --quiet --forward --fuzz=0 -p1 -d "$work/source" < "$patch" >&2 ||
        fail "a patch does not fit the source of the $kind guest kernel" "$(basename "$patch") was made for $package $version" "remake the patch for the new source"
done

make_kernel() { make -C "$work/source" O="$work/out" ARCH="$arch" KBUILD_BUILD_USER=bulkhead KBUILD_BUILD_HOST=bulkhead \
    KBUILD_BUILD_TIMESTAMP='1970-01-01' "$@"; }

cat "$here/config/common.config" "$here/config/$kind.config" > "$work/fragment"
make_kernel -s KCONFIG_ALLCONFIG="$work/fragment" allnoconfig > "$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
missing=$(grep -E '^CONFIG_' "$work/fragment" | grep -vxFf "$work/out/.config" || true)
[ -z "$missing" ] || fail "the configuration of the $kind guest kernel does not hold" "Kconfig dropped: $(echo $missing)" "edit guest-kernel/config/$kind.config"

# A line of output is about one file; the totals were counted once and only steer the percentage.
case $kind in uml) total=1500 ;; *) total=1750 ;; esac
say "compiling with $(nproc) jobs, about 4 minutes on two cores"
make_kernel -j"$(nproc)" "$product" 2>&1 | tee "$work/log" | awk -v total=$total -v kind="$kind" '
    { n++; p = int(n * 20 / total) * 5; if (p > 95) p = 95; if (p != last) { last = p; printf "guest kernel %s: %d%%\n", kind, p; fflush() } }' >&2 || {
    tail -n 30 "$work/log" >&2
    fail "the $kind guest kernel did not compile" "the compiler's last lines are above" "fix the cause and run it again"
}

mkdir "$work/result"
strip -o "$work/result/$product" "$work/out/$product"
cp "$work/out/.config" "$work/result/config"
chmod 755 "$work/result" "$work/result/$product"
mv "$work/result" "$final"
say "built in $(($(date +%s) - started)) s"
publish

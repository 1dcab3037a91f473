#!/usr/bin/env bash
# Prints the path of a docker command line: $DOCKER, else the one that is installed, else Debian's docker-cli of a later release (it is
# one program and needs nothing but libc), unpacked into the cache. The package docker.io of Debian 12 would bring a daemon with it.
set -euo pipefail
if [ -n "${DOCKER:-}" ]; then
    echo "$DOCKER"
    exit 0
fi
if command -v docker; then
    exit 0
fi
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/docker-cli
suite=trixie
if [ -x "$cache/docker" ]; then
    echo "$cache/docker"
    exit 0
fi
command -v apt-get > /dev/null || {
    echo "no docker command line, and no apt-get to fetch one with" >&2
    exit 1
}
mkdir -p "$cache"
work=$(mktemp -d "$cache/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
# The machine's own mirror; the machine's apt configuration is not touched.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 2> /dev/null | sort -u | grep -m1 -E '/debian/?$' || echo http://deb.debian.org/debian/)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$work/apt/sources.list"
options=(-q -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$work/apt/lists"
    -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3)
apt-get "${options[@]}" update >&2
(cd "$work" && apt-get "${options[@]}" download docker-cli >&2)
dpkg-deb -x "$work"/docker-cli_*.deb "$work/root"
mv "$work/root/usr/bin/docker" "$cache/docker"
"$cache/docker" --version >&2
echo "$cache/docker"

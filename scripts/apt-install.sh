#!/usr/bin/env bash
# Installs the Debian packages that are missing: apt-install.sh PACKAGE...
set -euo pipefail
missing=()
for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
command -v apt-get > /dev/null || {
    printf 'bulkhead: packages are missing\nwhy: this is no Debian system: %s\nnext: install them with your own package manager\n' "${missing[*]}" >&2
    exit 1
}
echo "installing Debian packages: ${missing[*]}" >&2
root=()
[ "$(id -u)" = 0 ] || root=(sudo)
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get -q -o Acquire::Retries=3 update > /dev/null
"${root[@]}" apt-get -q -y -o Acquire::Retries=3 install --no-install-recommends "${missing[@]}" > /dev/null

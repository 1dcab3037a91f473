#!/usr/bin/env bash
# Makes an OCI image of Debian with nginx, PostgreSQL, Redis and their benchmarks, and prints its directory. Needs root.
set -euo pipefail
. "$(dirname "$0")/debian-with.sh"

before() {
    # No cluster is made: the image's users do that.
    mkdir -p "$1/etc/postgresql-common"
    echo 'create_main_cluster = false' > "$1/etc/postgresql-common/createcluster.conf"
}

debian_with debian-servers 'curl nginx-light postgresql redis-server redis-tools wrk' --config.cmd bash \
    --config.env PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

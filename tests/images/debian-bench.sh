#!/usr/bin/env bash
# Makes an OCI image of Debian with fio and iperf3, and prints its directory. Needs root.
set -euo pipefail
. "$(dirname "$0")/debian-with.sh"

debian_with debian-bench 'fio iperf3' --config.workingdir /

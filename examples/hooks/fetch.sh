#!/bin/sh
# Fetches a new version and its checksums, and installs it.
#
#   fetch.sh SERVICE URL [DIRECTORY]
#
# URL is the program or archive; a file SHA256SUMS is next to it. The files go to a temporary directory, or to
# DIRECTORY. Exit codes are those of `handoff installed`: 0 it runs, 4 it was rolled back, 6 it was refused
# before it ran.
set -eu

service=$1
url=$2
directory=${3:-$(mktemp -d)}
[ $# -gt 2 ] || trap 'rm -rf "$directory"' EXIT

curl --fail --silent --show-error --location --output "$directory/${url##*/}" "$url"
curl --fail --silent --show-error --location --output "$directory/SHA256SUMS" "${url%/*}/SHA256SUMS"
# Downloaded files are not executable; archives need not be.
chmod +x "$directory/${url##*/}"

handoff installed "$service" "$directory/${url##*/}" --sha256sums "$directory/SHA256SUMS"

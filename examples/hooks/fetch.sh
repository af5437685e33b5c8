#!/bin/sh
# Fetches a new version and its checksums, and brings it in.
#
#   fetch.sh SERVICE URL [DIRECTORY]
#
# URL is that of the program or archive; beside it lies a file SHA256SUMS. The files go to a directory of this call, or to
# DIRECTORY. Exit codes are those of `handoff installed`: 0 it runs, 4 it was rolled back, 6 it was refused before it ran.
set -eu

service=$1
url=$2
directory=${3:-$(mktemp -d)}
[ $# -gt 2 ] || trap 'rm -rf "$directory"' EXIT

curl --fail --silent --show-error --location --output "$directory/${url##*/}" "$url"
curl --fail --silent --show-error --location --output "$directory/SHA256SUMS" "${url%/*}/SHA256SUMS"
# What was downloaded is not executable; an archive does not mind.
chmod +x "$directory/${url##*/}"

handoff installed "$service" "$directory/${url##*/}" --sha256sums "$directory/SHA256SUMS"

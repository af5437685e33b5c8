#!/bin/sh
# For tools that update themselves: takes the program out of a downloaded zip file, puts it in place, and
# reports it.
#
#   self-update.sh SERVICE ZIP MEMBER TARGET
#
# The program is extracted next to TARGET and renamed, so that no process sees a partial file. If the service
# is stopped, or no daemon runs, handoff keeps the new version for the next start.
set -eu

service=$1
zip=$2
member=$3
target=$4
beside=$target.new.$$
trap 'rm -f "$beside"' EXIT

unzip -p "$zip" "$member" > "$beside"
chmod 755 "$beside"
mv -f "$beside" "$target"

# You may repeat this call, and several tools may make it at once.
code=0
handoff installed "$service" "$target" || code=$?
case $code in
0) ;;
2) echo "no daemon runs, and the new version could not be kept for the next start" >&2; exit 2 ;;
4) echo "the new version was rolled back; the old one serves" >&2; exit 4 ;;
*) exit "$code" ;;
esac

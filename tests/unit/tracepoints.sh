#!/bin/sh
# SPDX-License-Identifier: MIT
# The library has the tracepoints of docs/rcu.md, with as many arguments, and no others (TAP).
# tracepoints.sh LIBRARY DOCUMENT BUILT(true|false)
set -u
library=$1
document=$2
built=$3
# shellcheck source=tests/harness/tap.sh
. "$(dirname "$0")/../harness/tap.sh"

name="the library has the tracepoints of docs/rcu.md with their arguments, and no others"
if [ "$built" != true ]; then
	skip "$name" "built without <sys/sdt.h> (systemtap-sdt-dev)"
elif ! command -v readelf > /dev/null; then
	skip "$name" "no readelf"
else
	# name and number of arguments, from the note and from the table
	readelf -n "$library" | awk '
		$1 == "Provider:" { provider = $2 }
		$1 == "Name:" { name = $2 }
		$1 == "Arguments:" && provider == "guestram" { print name, NF - 1 }' | sort -u > "$tmp/there"
	awk -F'|' '/^\| `rcu_/ { gsub(/[` ]/, "", $2); gsub(/\([^)]*\)/, "", $3); print $2, split($3, a, ",") }' \
		"$document" | sort -u > "$tmp/told"
	[ -s "$tmp/there" ] && diff "$tmp/told" "$tmp/there" > "$tmp/out"
	report "$name"
fi
echo "1..$n"
exit $bad

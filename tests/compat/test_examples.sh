#!/bin/sh
# SPDX-License-Identifier: MIT
# liburcu's own examples, untouched, on guestram's RCU: each must say what it says on liburcu
# (TAP). test_examples.sh SOURCE BUILD CC
set -u
cd "$1" || exit 1
build=$2
cc=$3
# shellcheck source=tests/harness/tap.sh
. tests/harness/tap.sh

examples=/usr/share/doc/liburcu-dev/examples
if [ ! -d $examples ] || ! echo '#include <urcu.h>' | $cc -E -xc - > /dev/null 2>&1; then
	skip "liburcu's examples say the same" "no liburcu-dev, or without its examples"
	echo "1..$n"
	exit 0
fi

# words PROGRAM: what it prints, in no order (hash tables have none).
words() {
	timeout 60 "$1" > "$tmp/said" 2>&1 || { echo "$1: status $?"; cat "$tmp/said"; return 1; }
	tr -s ' \t\n' '\n' < "$tmp/said" | sort
}

LD_LIBRARY_PATH=$build/src
export LD_LIBRARY_PATH
for source in "$examples"/*/*.c; do
	name=$(basename "$source" .c)
	flavor=$(sed -n 's|^#include <urcu/urcu-\([a-z]*\)\.h>.*|\1|p' "$source" | head -1)
	# What is not RCU is liburcu's still: hash table, stacks and queues.
	cds='-lurcu-cds -lurcu-common'
	(
		# shellcheck disable=SC2086  # lists of words
		$cc -O2 -o "$tmp/theirs" "$source" $cds ${flavor:+"-lurcu-$flavor"} &&
			$cc -O2 -Wall -Wextra -Werror -Iinclude -include guestram/urcu.h -o "$tmp/ours" \
				"$source" "-L$build/src" -lguestram -Wl,--as-needed $cds &&
			words "$tmp/theirs" > "$tmp/a" && words "$tmp/ours" > "$tmp/b" &&
			diff "$tmp/a" "$tmp/b"
	) > "$tmp/out" 2>&1
	report "liburcu's example $name says the same"
done
echo "1..$n"
exit $bad

#!/bin/sh
# SPDX-License-Identifier: MIT
# Style as a test (TAP): what a reviewer would have to look for by hand. style.sh SOURCE BUILD
set -u
cd "$1" || exit 1
build=$2
# shellcheck source=tests/harness/tap.sh
. tests/harness/tap.sh

sources=$(find src vmm tool bench examples -name '*.[ch]')

# shellcheck disable=SC2086  # a list of files on purpose
awk -f scripts/check-layers.awk $sources > "$tmp/out"
report "lower layers do not include upper ones"

(
	status=0
	for h in include/guestram/*.h; do
		gcc -std=gnu17 -Wall -Wextra -Werror -fsyntax-only -Iinclude -x c "$h" || status=1
	done
	exit $status
) > "$tmp/out" 2>&1
report "each public header compiles alone"

if command -v g++ > /dev/null; then
	(
		status=0
		for h in include/guestram/*.h; do
			g++ -std=gnu++17 -Wall -Wextra -Werror -fsyntax-only -Iinclude -x c++ "$h" || status=1
		done
		exit $status
	) > "$tmp/out" 2>&1
	report "each public header compiles as C++"
else
	skip "each public header compiles as C++" "no g++"
fi

(
	nm -D --defined-only "$build/src/libguestram.so" | awk '$2 ~ /[TBDR]/ { sub(/@.*/, "", $3); print $3 }' |
		sort -u > "$tmp/exported"
	cat include/guestram/*.h | grep -v '^ \*' | tr '\n' ' ' |
		grep -oE 'GR_EXPORT[^;{]*[;{]' | grep -oE '\bgr_[a-z0-9_]+ *(\(|;|\[)' | grep -oE 'gr_[a-z0-9_]+' |
		sort -u > "$tmp/declared"
	missing=$(comm -23 "$tmp/exported" "$tmp/declared" | grep -v '^GUESTRAM_')
	[ -z "$missing" ] || { echo "exported, not declared with GR_EXPORT:"; echo "$missing"; exit 1; }
) > "$tmp/out" 2>&1
report "nothing but declared symbols is exported"

(
	# A docstring stands right above each GR_EXPORT.
	awk '/^GR_EXPORT/ && prev !~ /\*\/[ \t]*$/ { printf "%s:%d: %s\n", FILENAME, FNR, $0; bad = 1 }
	     { prev = $0 } END { exit bad }' include/guestram/*.h
) > "$tmp/out" 2>&1
report "each exported function has a docstring"

(
	files=$(find README.md docs -name '*.md' 2> /dev/null)
	count=0
	for f in $files; do
		count=$(awk -v out="$tmp" -v n="$count" -f scripts/doc-snippets.awk "$f")
	done
	status=0
	for c in "$tmp"/snippet-*.c; do
		[ -e "$c" ] || continue
		gcc -std=gnu17 -Wall -Werror -Wno-unused -D_GNU_SOURCE -fsyntax-only -Iinclude "$c" || status=1
	done
	exit $status
) > "$tmp/out" 2>&1
report "the C in README and docs compiles"

(
	# The first thing that a newcomer copies.
	{
		printf '#include <guestram/rcu.h>\n#include <stdlib.h>\nstruct conf { int limit; };\n'
		printf 'int read_limit(void);\nvoid replace(struct conf *new_conf);\n'
		sed -n '/struct conf __gr_rcu/,/^ \*$/p; /int read_limit/,/^ \* More/p' include/guestram/rcu.h |
			sed -n 's/^ \*     //p'
	} > "$tmp/example.c"
	status=0
	for c in gcc clang; do
		command -v $c > /dev/null || continue
		$c -std=c17 -Wall -Wextra -Werror -fsyntax-only -Iinclude "$tmp/example.c" || status=1
	done
	grep -q free "$tmp/example.c" && exit $status
) > "$tmp/out" 2>&1
report "the example of rcu.h compiles, with clang too"

(
	grep -nE '\b(TODO|FIXME|XXX|HACK)\b' $sources include/guestram/*.h docs/*.md README.md && exit 1
	exit 0
) > "$tmp/out" 2>&1
report "nothing is left open in the tree"

(
	lines=$(wc -l < examples/kvm.c)
	[ "$lines" -lt 200 ] || { echo "examples/kvm.c has $lines lines"; exit 1; }
) > "$tmp/out" 2>&1
report "a KVM host fits in 200 lines"

(
	# docs/origins.md and docs/testing.md name tests: `tests/...` paths must exist.
	status=0
	for p in $(grep -ohE '`(tests|src|vmm|tool|include|bench|models|docs|scripts|examples)/[A-Za-z0-9_./-]+`' README.md docs/*.md |
		tr -d '\`' | sort -u); do
		[ -e "$p" ] || { echo "named in the documents, but absent: $p"; status=1; }
	done
	# `test_file: test_name` rows: the test must be in the file.
	grep -ohE 'tests/[a-z_/]+\.(c|py):[a-z0-9_]+' docs/*.md README.md | sort -u | while IFS=: read -r file name; do
		grep -q "$name" "$file" 2> /dev/null || { echo "no test $name in $file"; exit 1; }
	done || status=1
	exit $status
) > "$tmp/out" 2>&1
report "files and tests named in the documents exist"

(
	# Relative links in the documents lead somewhere.
	status=0
	for f in README.md CONTRIBUTING.md docs/*.md docs/adr/*.md; do
		for target in $(grep -oE '\]\([^)#:]+\)' "$f" | sed 's/^](//; s/)$//'); do
			[ -e "$(dirname "$f")/$target" ] || { echo "$f: dead link $target"; status=1; }
		done
	done
	exit $status
) > "$tmp/out" 2>&1
report "links in the documents lead somewhere"

if command -v shellcheck > /dev/null; then
	find scripts tests .ci -name '*.sh' -print0 | xargs -0 shellcheck -S warning > "$tmp/out" 2>&1
	report "shell scripts pass shellcheck"
else
	skip "shell scripts pass shellcheck" "no shellcheck"
fi

echo "1..$n"
exit $bad

#!/bin/sh
# SPDX-License-Identifier: MIT
# What must not compile does not, and says why (TAP). test_misuse.sh SOURCE CC
set -u
cd "$1" || exit 1
cc=$2
# shellcheck source=tests/harness/tap.sh
. tests/harness/tap.sh

# compiles: the program on stdin. Says what the compiler says.
compiles() {
	$cc -std=gnu17 -Wall -Werror -fsyntax-only -Iinclude -x c - > "$tmp/said" 2>&1
}

# refused WORDS: the program on stdin does not compile, and the reason has these words.
refused() {
	compiles && { echo "it compiles"; return 1; }
	grep -q "$1" "$tmp/said" || { cat "$tmp/said"; return 1; }
}

printf '#include <guestram/urcu.h>\n#include <guestram/qemu-rcu.h>\n' |
	refused 'one per file' > "$tmp/out" 2>&1
report "liburcu's and QEMU's names do not go into one file"

printf '#include <guestram/qemu-rcu.h>\n#include <guestram/urcu.h>\n' |
	refused 'one per file' > "$tmp/out" 2>&1
report "nor in the other order"

if echo '#include <urcu.h>' | compiles; then
	printf '#include <urcu.h>\n#include <guestram/urcu.h>\n' |
		refused "must be included before liburcu's headers" > "$tmp/out" 2>&1
	report "our header behind liburcu's is refused"
else
	skip "our header behind liburcu's is refused" "no liburcu-dev"
fi

qemu='#include <guestram/qemu-rcu.h>
struct obj { struct rcu_head rcu; int i; struct rcu_head second; };
void reclaim(struct obj *o);
void other(int *i);
void f(struct obj *o);
void f(struct obj *o) { g_free_rcu(o, rcu); call_rcu(o, reclaim, rcu); '
echo "$qemu }" | compiles
[ ! -s "$tmp/said" ]
cp "$tmp/said" "$tmp/out"
report "call_rcu() takes a function of the object, and its first member"
echo "$qemu call_rcu(o, reclaim, second); }" | refused 'negative' > "$tmp/out" 2>&1
report "call_rcu() refuses another member"
echo "$qemu g_free_rcu(o, second); }" | refused 'negative' > "$tmp/out" 2>&1
report "g_free_rcu() refuses another member"
echo "$qemu call_rcu(o, other, rcu); }" | refused 'negative' > "$tmp/out" 2>&1
report "call_rcu() refuses a function of something else"

echo "1..$n"
exit $bad

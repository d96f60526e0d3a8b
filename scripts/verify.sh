#!/bin/sh
# SPDX-License-Identifier: MIT
# Check the models exhaustively: verify.sh [MODEL]... (names of models/models.tsv; default: all).
#
# For each row of the table: the protocol as it is must hold, in a search that was complete, with as
# many states as the table says (another number: the model changed, look at it and at the table);
# each of the row's mutants must be caught. Prints TAP for one model; for all of them, which
# run side by side, a summary last. FULL=1 adds the rows with large bounds (minutes, gigabytes), and the
# searches of the rows of which otherwise only the mutants are tried.
set -u
cd "$(dirname "$0")/.." || exit 1
root=$PWD
table=$root/models/models.tsv
# shellcheck source=tests/harness/tap.sh
. tests/harness/tap.sh

rows() { # of a model, or all; fields are separated by tabs and never empty
	grep -v '^#' "$table" | awk -F'\t' -v m="${1:-}" -v full="${FULL:-}" \
		'(m == "" || $1 == m) && ($5 != "full" || full != "")'
}

# pan SOURCE BOUNDS GCC-OPTION...: SPIN's search of one model; what it says goes to $tmp/out.
pan() {
	source=$1 bounds=$2
	shift 2
	rm -rf "$tmp/pan"
	mkdir "$tmp/pan"
	(
		cd "$tmp/pan" || exit 1
		# shellcheck disable=SC2086  # a list of words on purpose
		spin -a $bounds "$source" && gcc "$@" -w -DSAFETY -DCOLLAPSE -DMEMLIM=6000 -o pan pan.c &&
			./pan -m1000000 -w20
	) > "$tmp/out" 2>&1
}

# Is it the answer to all of the question? A truncated search is none.
is_complete() {
	! grep -qE 'max search depth too small|Search not completed|out of memory|memory limit|truncated' "$tmp/out"
}

states_in() { sed -nE 's/^ *([0-9]+) states, stored.*/\1/p' "$tmp/out"; }

holds_pml() { # SOURCE BOUNDS STATES
	# To optimise takes longer than to search a million states without.
	case $3 in
	- | ???????*) optimise=-O1 ;; # a million and more
	*) optimise=-O0 ;;
	esac
	pan "$1" "$2" $optimise && grep -q 'errors: 0' "$tmp/out" && is_complete || return 1
	[ "$3" = - ] || [ "$(states_in)" = "$3" ] || {
		echo "$(states_in) states, models/models.tsv says $3" >> "$tmp/out"
		return 1
	}
}

# An error is one whether the search went on after it or not.
caught_pml() { # SOURCE BOUNDS MUTANT
	pan "$1" "$2 -DMUTANT_$3" -O0
	grep -qE 'errors: [1-9]' "$tmp/out"
}

# The checkers say by their exit status: 0 it holds, 1 it does not, 2 wrong usage.
holds_py() {
	# shellcheck disable=SC2086
	python3 "$1" $2 > "$tmp/out" 2>&1 || return 1
	[ "$3" = - ] || [ "$(states_in)" = "$3" ] || {
		echo "$(states_in) states, models/models.tsv says $3" >> "$tmp/out"
		return 1
	}
}

caught_py() {
	# shellcheck disable=SC2086
	python3 "$1" $2 --mutant "$3" > "$tmp/out" 2>&1
	[ $? -eq 1 ]
}

verify() { # MODEL
	case "$1" in
	*.pml) kind=pml tools='spin gcc' ;;
	*) kind=py tools=python3 ;;
	esac
	for tool in $tools; do
		command -v "$tool" > /dev/null || {
			skip "$1" "no $tool: make verify installs it"
			return
		}
	done
	rows "$1" > "$tmp/rows"
	[ -s "$tmp/rows" ] || {
		echo "no such model in models/models.tsv" > "$tmp/out"
		false
		report "$1"
	}
	while IFS='	' read -r model name bounds states when mutants; do
		[ "$bounds" != - ] || bounds=
		if [ "$when" != mutants ] || [ -n "${FULL:-}" ]; then
			holds_$kind "$root/models/$model" "$bounds" "$states"
			report "$model, $name: holds, $(states_in | tail -1) states"
		fi
		[ "$mutants" != - ] || mutants=
		for mutant in $mutants; do
			caught_$kind "$root/models/$model" "$bounds" "$mutant"
			report "$model, $name: $mutant is caught"
		done
	done < "$tmp/rows"
}

if [ $# -gt 0 ]; then
	for model in "$@"; do
		verify "$model"
	done
	echo "1..$n"
	exit $bad
fi

all=$(mktemp -d)
rows | cut -f1 | uniq > "$all/models"
xargs -P "$(nproc)" -I{} sh -c "scripts/verify.sh {} > '$all/{}.tap'; cat '$all/{}.tap'" < "$all/models"
cat "$all"/*.tap > "$all/tap"
failed=$(grep -c '^not ok' "$all/tap")
skipped=$(grep -c '^ok.*# SKIP' "$all/tap")
passed=$(($(grep -c '^ok' "$all/tap") - skipped))
rm -rf "$all"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$((passed + skipped))" -gt 0 ]

#!/bin/sh
# SPDX-License-Identifier: MIT
# Fuzz every parser for FUZZ_SECONDS (60) each, or only those named. New inputs stay in
# build-fuzz/corpus; what is worth keeping goes to tests/fuzz/corpus by hand.
set -eu
cd "$(dirname "$0")/.."
scripts/deps.sh fuzz

[ -f build-fuzz/build.ninja ] || CC=clang meson setup build-fuzz -Dfuzz=true -Dmutants=false \
	-Db_sanitize=address,undefined -Db_lundef=false >&2
ninja -C build-fuzz >&2
# Without this undefined behaviour is printed and fuzzed over.
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

if [ $# -eq 0 ]; then
	for target in tests/fuzz/fuzz_*.c; do
		target=${target##*/fuzz_}
		set -- "$@" "${target%.c}"
	done
fi
for target in "$@"; do
	mkdir -p "build-fuzz/corpus/$target"
	echo "== $target"
	"build-fuzz/tests/fuzz/fuzz_$target" -max_total_time="${FUZZ_SECONDS:-60}" -max_len=65536 \
		-rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix="build-fuzz/$target-" \
		"build-fuzz/corpus/$target" "tests/fuzz/corpus/$target"
done

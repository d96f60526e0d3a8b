#!/bin/sh
# SPDX-License-Identifier: MIT
# Build the benchmarks (optimised, without checks) and run them: bench.sh [OPTION...] goes to each.
set -eu
cd "$(dirname "$0")/.."
scripts/deps.sh bench
if [ ! -f build/build.ninja ]; then
	meson setup build -Dbench=true >&2
else
	meson configure build -Dbench=true
fi
ninja -C build >&2
for b in build/bench/*; do
	[ -x "$b" ] && [ -f "$b" ] || continue
	"$b" "$@"
done

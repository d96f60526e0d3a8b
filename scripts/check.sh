#!/bin/sh
# SPDX-License-Identifier: MIT
# Static checks: a clang build with warnings as errors (thread-safety analysis, documentation
# comments), style tests, spelling, format.
set -eu
cd "$(dirname "$0")/.."
scripts/deps.sh check
if [ ! -f build-clang/build.ninja ]; then
	CC=clang meson setup build-clang -Dwerror=true -Dmutants=false >&2
fi
ninja -C build-clang
meson test -C build-clang --suite style --print-errorlogs
codespell -q 3 README.md docs include src vmm tool man examples tests/*/*.c
git ls-files '*.[ch]' | xargs clang-format-14 --dry-run 2>&1 | head -20

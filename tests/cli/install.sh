#!/bin/sh
# SPDX-License-Identifier: MIT
# What `meson install` installs is enough to build and run a program (TAP): install.sh SOURCE BUILD
set -u
source=$1 build=$2
# shellcheck source=tests/harness/tap.sh
. "$source/tests/harness/tap.sh"

echo 1..4
meson install -C "$build" --no-rebuild --destdir "$tmp/root" > "$tmp/out" 2>&1
report "meson install succeeds"

pc=$(find "$tmp/root" -name guestram.pc)
export PKG_CONFIG_PATH="${pc%/*}" PKG_CONFIG_SYSROOT_DIR="$tmp/root"
# shellcheck disable=SC2046  # flags on purpose
{
	cc -o "$tmp/shared" "$source/examples/ram.c" $(pkg-config --cflags --libs guestram) &&
		LD_LIBRARY_PATH=$(dirname "$(find "$tmp/root" -name libguestram.so.0)") "$tmp/shared"
} > "$tmp/out" 2>&1
report "a program builds with pkg-config and runs with the shared library"

lib=$(find "$tmp/root" -name libguestram.a)
# shellcheck disable=SC2046
{ cc -o "$tmp/static" "$source/examples/ram.c" $(pkg-config --cflags guestram) "$lib" -pthread &&
	"$tmp/static"; } > "$tmp/out" 2>&1
report "the same with the static library"

tool=$(find "$tmp/root" -path '*bin/guestram')
LD_LIBRARY_PATH=$(dirname "$lib") "$tool" --version > "$tmp/out" 2>&1 && grep -q guestram "$tmp/out"
report "the installed tool runs"
exit $bad

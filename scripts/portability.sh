#!/bin/sh
# SPDX-License-Identifier: MIT
# Build the library for other machines and systems, and run the core's tests there: by emulation,
# under Wine, with other page sizes. Last comes a table: a row for each, and the sum of their tests.
#
#     make portability [PLATFORMS="aarch64 windows"]
#
# Installs what is missing (scripts/deps.sh). What cannot be tried is a failure.
set -u
cd "$(dirname "$0")/.." || exit
platforms=${*:-native posix i686 aarch64 armhf s390x ppc64 pages16k pages64k windows code}
common='-Dmutants=false -Dmonitor=false -Dwerror=true'
limits=$PWD/scripts/limits
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
logs=
missing=0
tests='--suite core'

build() { # FOLDER OPTION...: set up once
	dir=$1
	shift
	# shellcheck disable=SC2086  # a list of options on purpose
	[ -f "$dir/build.ninja" ] || meson setup "$dir" $common "$@" >"$work/setup" 2>&1 || {
		cat "$work/setup" >&2
		return 1
	}
}

row() { # PLATFORM PASSED FAILED SKIPPED [WHY]
	printf '%-9s %7s %7s %8s %8s  %s\n' "$1" "$2" "$3" "$4" "$(($(date +%s) - begun))" "${5:-}" >>"$work/rows"
}

cannot() { # PLATFORM WHY
	row "$1" - - - "not tried: $2"
	missing=$((missing + 1))
}

# run PLATFORM FOLDER NAME=VALUE...: $tests, with the environment.
run() {
	platform=$1 dir=$2
	shift 2
	log=$dir/meson-logs/$platform.json
	rm -f "$log"
	# shellcheck disable=SC2086  # a list of words on purpose
	env GR_TEST_TIMEOUT=300 "$@" meson test -C "$dir" $tests --logbase "$platform" \
		--timeout-multiplier 5 --print-errorlogs >&2 </dev/null
	if [ -f "$log" ]; then
		logs="$logs $log"
		# shellcheck disable=SC2046  # three numbers on purpose
		row "$platform" $(counts "$log")
	else
		cannot "$platform" "it does not build"
	fi
}

counts() { # LOG...: passed, failed and skipped
	python3 scripts/count-tests.py "$@" | tail -n 1 | tr -dc '0-9 '
}

emulated() { # PLATFORM MACHINE NAME=VALUE...
	platform=$1 machine=$2
	shift 2
	if build "build-$machine" --cross-file "scripts/cross/$machine.ini"; then
		run "$platform" "build-$machine" GR_TEST_LIMITS="$limits/qemu-user" "$@"
	else
		cannot "$platform" "cannot be configured"
	fi
}

windows() {
	# A server of its own first: one that a test started would hold the test's output open.
	WINEPREFIX=$PWD/build-windows-prefix WINEDEBUG=-all
	export WINEPREFIX WINEDEBUG
	wine wineboot >/dev/null 2>&1 </dev/null
	wineserver=$(command -v wineserver || echo /usr/lib/wine/wineserver)
	"$wineserver" -p >/dev/null 2>&1 </dev/null
	if build build-windows --cross-file scripts/cross/windows.ini; then
		run windows build-windows GR_TEST_LIMITS="$limits/wine"
	else
		cannot windows "cannot be configured"
	fi
	"$wineserver" -k >/dev/null 2>&1 || : # perhaps it has gone by itself
}

for p in $platforms; do
	echo "== $p" >&2
	begun=$(date +%s)
	if ! scripts/deps.sh "portability-$p"; then
		cannot "$p" "its tools cannot be installed"
		continue
	fi
	case "$p" in
	native) build build-native -Ddebug_checks=true && run native build-native ;;
	posix) build build-posix -Dplatform=posix -Ddebug_checks=true && run posix build-posix ;;
	i686) build build-i686 --cross-file scripts/cross/i686.ini -Ddebug_checks=true &&
		run i686 build-i686 ;;
	pages16k) emulated "$p" aarch64 QEMU_PAGESIZE=16384 ;;
	pages64k) emulated "$p" aarch64 QEMU_PAGESIZE=65536 ;;
	windows) windows ;;
	code) build build-native -Ddebug_checks=true && tests='--no-rebuild rcu_code' && run code build-native ;;
	*) emulated "$p" "$p" ;;
	esac || cannot "$p" "cannot be configured"
	tests='--suite core'
done

echo
# What was skipped and failed, by name.
# shellcheck disable=SC2086  # a list of files on purpose
[ -z "$logs" ] || python3 scripts/count-tests.py $logs | sed '$d'
# shellcheck disable=SC2046,SC2086
set -- $([ -z "$logs" ] || counts $logs)
echo
printf '%-9s %7s %7s %8s %8s\n' row passed failed skipped seconds
cat "$work/rows"
echo "${1:-0} passed, $((${2:-0} + missing)) failed, ${3:-0} skipped"
[ $((${2:-0} + missing)) -eq 0 ] && [ "${1:-0}" -gt 0 ]

#!/bin/sh
# SPDX-License-Identifier: MIT
# Build and run the tests: test.sh [plain|asan|tsan]...; the last line counts them.
# Without arguments: the plain build, and with CI=true all three.
set -eu
cd "$(dirname "$0")/.."
scripts/deps.sh test

if [ $# -eq 0 ]; then
	set -- plain
	[ "${CI:-}" = true ] && set -- plain asan tsan
fi

status=0
logs=
for kind in "$@"; do
	case "$kind" in
	plain) dir=build; args= ;;
	asan) dir=build-asan; args='-Db_sanitize=address,undefined -Db_lundef=false -Dmutants=false' ;;
	tsan) dir=build-tsan; args='-Db_sanitize=thread -Db_lundef=false -Dmutants=false' ;;
	*) echo "test.sh: unknown kind '$kind'" >&2; exit 2 ;;
	esac
	# shellcheck disable=SC2086  # a list of options on purpose
	[ -f "$dir/build.ninja" ] || meson setup "$dir" $args >&2
	ninja -C "$dir" >&2
	echo "== $kind"
	ASAN_OPTIONS=detect_stack_use_after_return=0 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
	meson test -C "$dir" --no-rebuild --print-errorlogs || status=1
	logs="$logs $dir/meson-logs/testlog.json"
done
# shellcheck disable=SC2086
python3 scripts/count-tests.py $logs || status=1
exit $status

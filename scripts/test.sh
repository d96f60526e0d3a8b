#!/bin/sh
# SPDX-License-Identifier: MIT
# Build and run the tests: test.sh [plain|asan|tsan]...; the last line counts them.
# Without arguments: the plain build, and with CI=true all three.
set -eu
cd "$(dirname "$0")/.."
scripts/deps.sh test
if [ "${CI:-}" = true ]; then
	scripts/deps.sh machines # elsewhere they are used where they are
fi

if [ $# -eq 0 ]; then
	set -- plain
	[ "${CI:-}" = true ] && set -- plain asan tsan
fi

# A newer QEMU, too: CI fetches it, otherwise it is used where it is (make qemu10).
offline=--offline
[ "${CI:-}" = true ] && offline=
# shellcheck disable=SC2086
if qemu10=$(scripts/qemu10.sh $offline); then
	export GR_QEMU10="$qemu10/usr/bin/qemu-system-x86_64" GR_QEMU10_DATA="$qemu10/usr/share/qemu"
fi

# The limits are for what hangs, on machines of any speed.
run_tests()
{
	tests_of=$1
	shift
	GR_TEST_TIMEOUT="${GR_TEST_TIMEOUT:-240}" \
	ASAN_OPTIONS=detect_stack_use_after_return=0 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
	meson test -C "$tests_of" --no-rebuild --timeout-multiplier 4 "$@"
}

logs=
for kind in "$@"; do
	case "$kind" in
	plain) dir=build; args=; [ "${CI:-}" = true ] && args=-Dbench=true ;; # built, so that they stay whole
	asan) dir=build-asan; args='-Db_sanitize=address,undefined -Db_lundef=false -Dmutants=false' ;;
	tsan) dir=build-tsan; args='-Db_sanitize=thread -Db_lundef=false -Dmutants=false' ;;
	*) echo "test.sh: unknown kind '$kind'" >&2; exit 2 ;;
	esac
	# shellcheck disable=SC2086  # a list of options on purpose
	[ -f "$dir/build.ninja" ] || meson setup "$dir" $args >&2
	ninja -C "$dir" >&2
	echo "== $kind"
	log="$dir/meson-logs/testlog.json"
	rm -f "$dir/meson-logs/again.json"
	if ! run_tests "$dir" --print-errorlogs; then
		again=$(python3 scripts/count-tests.py --unsteady "$log")
		# shellcheck disable=SC2086
		[ -z "$again" ] || run_tests "$dir" --num-processes 1 --repeat 3 --logbase again $again || :
	fi
	logs="$logs $log"
done
# shellcheck disable=SC2086
python3 scripts/count-tests.py --cases tests/cases.tsv $logs

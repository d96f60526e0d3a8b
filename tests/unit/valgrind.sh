#!/bin/sh
# SPDX-License-Identifier: MIT
# RCU's programs under valgrind (TAP): no error, nothing definitely lost. valgrind.sh BUILD SANITIZER
# Scaled down, and by fences: valgrind runs one thread at a time, too slowly for readers to become
# hot. In turn (fair scheduling): one that spins could keep all others away. 20 s of CPU time.
set -u
build=$1
# shellcheck source=tests/harness/tap.sh
. "$(dirname "$0")/../harness/tap.sh"
export GR_FORCE_FENCES=1 GR_TEST_SECONDS=0.1 GR_TEST_TIMEOUT=200

why=
[ "$2" = none ] || why="built with a sanitizer"
command -v valgrind > /dev/null || why="no valgrind"

# clean NAME LEAKS PROGRAM TEST...: LEAKS is full, or no where children of a fork leave what was their
# parent's other threads'.
clean() {
	name="$1 is clean under valgrind"
	leaks=$2
	shift 2
	if [ -n "$why" ]; then
		skip "$name" "$why"
		return
	fi
	valgrind -q --fair-sched=try --error-exitcode=9 --leak-check="$leaks" --show-leak-kinds=definite \
		--errors-for-leak-kinds=definite "$@" > "$tmp/out" 2>&1
	report "$name"
}

if [ -n "$why" ]; then
	skip "valgrind finds a use after free" "$why"
else
	valgrind -q --fair-sched=try --error-exitcode=9 "$build/tests/unit/valgrind_canary" > "$tmp/out" 2>&1
	[ $? -eq 9 ]
	report "valgrind finds a use after free"
fi
clean rcu full "$build/tests/unit/test_rcu" \
	synchronize_waits_for_an_open_section_cold_or_hot \
	a_cookie_is_passed_by_a_whole_grace_period_only \
	explicit_registration_is_idempotent_and_leaving_is_not_for_ever \
	fork_inside_a_section_with_a_grace_period_under_way \
	callbacks_from_before_a_fork_run_in_the_child_once_it_queues_another
clean rcu_queue full "$build/tests/unit/test_rcu_queue" \
	callbacks_run_before_the_barrier_returns_on_either_kind_of_queue \
	freeing_a_queue_runs_what_its_callbacks_queue \
	queues_come_and_go_with_barriers_from_many_threads
clean rcu_domain full "$build/tests/unit/test_rcu_domain" \
	a_wait_is_for_the_sections_of_its_own_domain_only \
	a_thread_has_one_reader_in_each_of_many_domains_and_takes_them_along \
	a_domain_may_be_read_in_thread_exit_destructors \
	explicit_readers_are_waited_for_in_their_domain
clean rcu_qs full "$build/tests/unit/test_rcu_qs"
clean rcu_stall full "$build/tests/unit/test_rcu_stall"
clean rculist full "$build/tests/unit/test_rculist"
clean rcutorture no "$build/tests/torture/torture_rcutorture"
echo "1..$n"
exit $bad

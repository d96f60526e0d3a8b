#!/bin/sh
# SPDX-License-Identifier: MIT
# The tests that need /dev/kvm, and the mutants that only it kills, in one boot of the rig:
# for machines without /dev/kvm. kvm-test.sh [BUILD FOLDER]. Takes a few minutes.
set -eu
cd "$(dirname "$0")/.."
scripts/deps.sh test
build=$(realpath "${1:-build}")
# program[:test]
tests="examples/example_kvm tests/contract/test_trackers_kvm tests/vmm/test_kvm_log tests/vmm/test_kvm_ring tests/vmm/test_kvm_machine
tests/vmm/test_vmm_quiet:no_grace_period_interrupts_a_kvm_vcpu_or_waits_for_it"
mutants="kvm_rearm_own_set:two_consumers_of_one_log_both_end_with_the_guests_bytes_with_manual_protect
kvm_ring_rearm_forgets:every_page_the_guest_wrote_is_reported_with_manual_protect
kvm_delete_unsynced:a_slot_that_goes_leaves_its_dirty_bits
kvm_pause_unsettled:what_a_vcpu_left_the_guest_for_is_done_once_also_over_a_move
kvm_vcpu_stays_online:no_grace_period_interrupts_a_kvm_vcpu_or_waits_for_it"

[ -f "$build/build.ninja" ] || meson setup "$build" >&2
targets=
for t in $tests; do
	targets="$targets ${t%%:*}"
done
for m in $mutants; do
	targets="$targets tests/mutants/mutant_${m%%:*}"
done
# shellcheck disable=SC2086  # a list on purpose
ninja -C "$build" $targets >&2

mkdir -p build-kvm-rig
list=$(mktemp build-kvm-rig/tests.XXXXXX)
trap 'rm -f "$list"' EXIT
files=
{
	echo '#!/bin/sh'
	echo 'status=0'
	for t in $tests; do
		name=${t#"${t%%:*}"} # with its colon, or empty
		files="$files -f $build/${t%%:*}"
		echo "$build/${t%%:*} ${name#:} || status=1"
	done
	for m in $mutants; do
		exe=$build/tests/mutants/mutant_${m%%:*}
		files="$files -f $exe"
		echo "if $exe ${m#*:} | tee /tmp/out | grep -q '^not ok'; then"
		echo "	echo 'ok - ${m#*:} kills ${m%%:*}'"
		echo "else"
		echo "	echo 'not ok - ${m#*:} kills ${m%%:*}'; cat /tmp/out; status=1"
		echo "fi"
	done
	echo "exit \$status"
} >"$list"
chmod +x "$list"
# shellcheck disable=SC2086  # a list of options on purpose
KVM_RIG_SECONDS=${KVM_RIG_SECONDS:-1200} scripts/kvm-rig.sh $files "$list"

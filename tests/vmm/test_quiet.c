/* SPDX-License-Identifier: MIT */
/*
 * Grace periods and a running guest leave each other alone: while blocks come and go and thousands
 * of grace periods pass, no vCPU is interrupted for one, and none waits for the guest.
 *
 * Seen twice: by the statistics, and by a filter that lets membarrier(2), which is what would
 * interrupt the CPUs that run the guest, fail from the moment the machine stands: the library
 * dies if it has to call it.
 */
#include "harness.h"
#include "machine_internal.h"
#ifdef VMM_HAVE_KVM
#	include "kvm_vcpu.h"
#endif
#include <errno.h>
#include <guestram/rcu_control.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)

enum { MEMORY = 4 << 20, PLUG = 64 << 10, GRACE_PERIODS = 3000, PLUGS = 40 };

static void forbid_membarrier(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) !=
	    0) {
		test_diag("no filter here (%s): the statistics alone must do", strerror(errno));
	}
}

static struct vmm_machine *make(const char *accel)
{
	const struct vmm_machine_params params = { .memory_bytes = MEMORY,
						   .vcpus = 2,
						   .accel = accel,
						   .rate_bytes_per_s = VMM_RATE_UNLIMITED,
						   .debug_fd = -1 };
	struct vmm_machine *machine;
	struct gr_error err;

	if (vmm_machine_create(&params, &machine, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return machine;
}

/* An ordinary reader that never rests: without a quiet time each grace period would fence for it.
 */
static uint32_t stop_reading;
static uint64_t lookups;

static void *read_always(void *opaque)
{
	struct vmm_machine *machine = opaque;

	while (!LOAD(&stop_reading)) {
		gr_rcu_read_lock();
		ASSERT(gr_ram_block_by_gpa_rcu(vmm_machine_ram(machine), gr_gpa(0), NULL, NULL));
		gr_rcu_read_unlock();
		ADD(&lookups, 1);
	}
	return NULL;
}

static uint64_t fences(void)
{
	struct gr_rcu_stats stats;

	gr_rcu_stats_get(NULL, &stats);
	return stats.entry_fences + stats.flag_fences;
}

static uint64_t grace_periods(void)
{
	struct gr_rcu_stats stats;

	gr_rcu_stats_get(NULL, &stats);
	return stats.grace_periods;
}

static uint64_t progress; /* grace periods that have come to their end */

static void wait_for_grace_periods(uint64_t n)
{
	for (; n > 0; n--) {
		gr_rcu_synchronize();
		ADD(&progress, 1);
	}
}

/* Every vCPU does something more. */
static void await_ops(struct vmm_machine *machine)
{
	uint64_t from[VMM_WRITERS_MAX] = { 0 }, now[VMM_WRITERS_MAX] = { 0 };

	vmm_machine_ops(machine, from);
	do {
		nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
		vmm_machine_ops(machine, now);
	} while (now[0] <= from[0] || now[1] <= from[1]);
}

static void plug_and_unplug(struct vmm_machine *machine)
{
	struct gr_error err;

	for (int i = 0; i < PLUGS; i++) {
		char id[16];

		(void)snprintf(id, sizeof(id), "p%d", i);
		if (vmm_machine_plug(machine, id, PLUG, 0, &err) < 0) {
			FAIL("%s", err.msg);
		}
		wait_for_grace_periods(2);
		if (vmm_machine_unplug(machine, id, &err) < 0) {
			FAIL("%s", err.msg);
		}
	}
}

static void leave_each_other_alone(struct vmm_machine *machine)
{
	struct vmm_check result;
	pthread_t reader;
	struct gr_error err;
	uint64_t before, passed;

	test_watch_progress(&progress, 30);
	forbid_membarrier();
	before = fences();
	passed = grace_periods();
	ASSERT_EQ(pthread_create(&reader, NULL, read_always, machine), 0);
	wait_for_grace_periods(100); /* the vCPUs stand at the gate */
	ASSERT_EQ(vmm_machine_cont(machine, &err), 0);
	await_ops(machine);
	wait_for_grace_periods(GRACE_PERIODS);
	plug_and_unplug(machine);
	await_ops(machine);
	ASSERT_EQ(vmm_machine_stop(machine, &err), 0);
	wait_for_grace_periods(100);
	ASSERT_EQ(fences(), before);
	gr_rcu_quiet_begin(); /* the machine's ends with it, and the filter does not */
	ASSERT_GE(grace_periods() - passed, GRACE_PERIODS);
	STORE(&stop_reading, 1);
	ASSERT_EQ(pthread_join(reader, NULL), 0);
	ASSERT_GT(LOAD(&lookups), 1000u); /* it was no idle reader */
	ASSERT_EQ(vmm_machine_check(machine, &result, &err), 0);
	ASSERT_EQ(result.pages_wrong, 0u);
}

TEST(no_grace_period_interrupts_a_vcpu_or_waits_for_it)
{
	struct vmm_machine *machine = make("threads");

	leave_each_other_alone(machine);
	vmm_machine_free(machine);
}

TEST(a_machine_that_is_gone_leaves_no_quiet_time_behind)
{
	vmm_machine_free(make("threads"));
	vmm_machine_free(make("threads"));
	gr_rcu_quiet_begin();
	gr_rcu_quiet_end();
	ASSERT_EQ(LOAD(&gr_rcu_is_quiet), 0u);
}

#ifdef VMM_HAVE_KVM
static uint64_t interruptions(struct vmm_machine *machine)
{
	struct vmm_kvm *kvm = (struct vmm_kvm *)(void *)machine->accel; /* its first member */
	uint64_t sum = 0;

	for (unsigned int v = 0; v < vmm_machine_vcpus(machine); v++) {
		sum += __atomic_load_n(&kvm->vcpu[v].interrupted, __ATOMIC_RELAXED);
	}
	return sum;
}

TEST(no_grace_period_interrupts_a_kvm_vcpu_or_waits_for_it)
{
	struct vmm_machine *machine;
	struct gr_error err;
	uint64_t before;

	if (vmm_accel_kvm.probe(&err) < 0) {
		SKIP("%s", err.msg);
	}
	machine = make("kvm");
	test_watch_progress(&progress, 30);
	ASSERT_EQ(vmm_machine_cont(machine, &err), 0);
	await_ops(machine);
	/* Nothing but grace periods: no stay in the guest is cut short. */
	before = interruptions(machine);
	wait_for_grace_periods(GRACE_PERIODS);
	ASSERT_EQ(interruptions(machine), before);
	ASSERT_EQ(vmm_machine_stop(machine, &err), 0);
	leave_each_other_alone(machine);
	vmm_machine_free(machine);
}
#endif

TEST_MAIN()

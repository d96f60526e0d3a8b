/* SPDX-License-Identifier: MIT */
/*
 * The trackers of KVM under every condition (suite.h): a virtual CPU writes, and beside it a device
 * that marks. Skipped where there is no /dev/kvm; `make kvm-rig` runs it anywhere.
 */
#include "../vmm/kvm_guest.h"
#include "base/compiler.h"
#include "suite.h"
#include "track/kvm_memory.h"
#include <errno.h>

enum {
	RING_ENTRIES = 256, /* a page of them, the smallest; KVM keeps 64 in reserve */
	CODE_SLOT = 2 * SUITE_SLOTS,
	WINDOW_PAGES = 64, /* so many are written at a time, powers of two */
	WINDOW_PAGES_RACE = 16,
	PHASES = 20,
};

struct vm {
	struct kvm_guest guest;
	struct gr_kvm_memory *kvm;
};

static void *vm_create(struct suite *s)
{
	struct gr_tracker_params params = { .size = sizeof(params),
					    .ring_entries = s->row->ring_entries,
					    .log_initially_set = s->row->log_initially_set };
	struct gr_ram_block_desc code = { .size = sizeof(code),
					  .id = "code",
					  .used_bytes = ORACLE_PAGE,
					  .mapped = true,
					  .gpa = gr_gpa(CODE_SLOT * SUITE_SLOT_BYTES) };
	struct vm *vm = calloc(1, sizeof(*vm));
	struct gr_error err;

	ASSERT(vm);
	kvm_guest_create(&vm->guest);
	if (gr_kvm_memory_create(s->ram, vm->guest.vm_fd, kvm_guest_kick, kvm_guest_resume,
				 &vm->guest, &vm->kvm, &err) < 0) {
		FAIL("%s", err.msg);
	}
	params.kvm = vm->kvm;
	if (gr_track_use(s->track, s->row->kind, &params, &err) < 0) {
		SKIP("%s", err.msg);
	}
	if (s->row->no_manual_protect) {
		ASSERT_EQ(gr_kvm_log_set_mode(vm->kvm, GR_KVM_LOG_PLAIN, NULL), 0);
	}
	ASSERT_EQ(gr_ram_block_add(s->ram, &code, NULL, NULL), 0);
	kvm_guest_add_vcpu(&vm->guest, vm->kvm);
	kvm_guest_boot(&vm->guest, s->ram, (uint32_t)code.gpa.v);
	return vm;
}

/* The first addresses of a window of a slot's pages, which moves up as pages retire. */
static uint32_t window(const struct suite *s, unsigned int slot, uint32_t pages,
		       uint32_t window_pages)
{
	uint64_t page = suite_retired(s, pages - window_pages);

	return (uint32_t)(slot * SUITE_SLOT_BYTES + page * ORACLE_PAGE);
}

/* In turn, the blocks that stay and those that come and go; stores to what is not there do nothing.
 */
static uint64_t vm_write(struct suite *s, void *opaque)
{
	struct vm *vm = opaque;
	bool race = s->condition == SUITE_RACE;
	uint32_t n = race ? WINDOW_PAGES_RACE : WINDOW_PAGES;
	uint32_t fixed = race ? SUITE_RACE_PAGES : SUITE_FIXED_PAGES;
	uint32_t bits = (n - 1) * ORACLE_PAGE | (uint32_t)SUITE_SLOT_BYTES;
	uint32_t stores = 0;

	for (unsigned int phase = 0; suite_elapsed(s) < 1 || stores == 0; phase++) {
		bool come_and_go = !race && phase % 2 == 1;

		kvm_guest_spin_over(&vm->guest,
				    come_and_go
					    ? window(s, SUITE_SLOTS - 2, SUITE_PLUG_PAGES_MAX, n)
					    : window(s, phase / 2 % 2, fixed, n),
				    bits, stores);
		usleep((useconds_t)(s->seconds * 1e6 / PHASES));
		stores += kvm_guest_halt(&vm->guest);
	}
	test_diag("full rings: %" PRIu64, vm->guest.ring_full);
	return stores;
}

static void vm_destroy(void *opaque)
{
	struct vm *vm = opaque;

	gr_kvm_vcpu_del(vm->kvm, vm->guest.vcpu_fd);
	gr_kvm_memory_free(vm->kvm);
	kvm_guest_destroy(&vm->guest);
	free(vm);
}

#define KVM_ROW(kind_)                                                                  \
	.kind = (kind_), .backing = GR_RAM_MEMFD,                                       \
	.writers = GR_WRITERS_KVM_VCPUS | GR_WRITERS_MARKED, .guest_create = vm_create, \
	.guest_write = vm_write, .guest_destroy = vm_destroy

static const struct suite_row kvm_log = { KVM_ROW(GR_TRACKER_KVM_LOG) };
static const struct suite_row kvm_log_without_manual_protect = { KVM_ROW(GR_TRACKER_KVM_LOG),
								 .no_manual_protect = true };
static const struct suite_row kvm_log_initially_set = { KVM_ROW(GR_TRACKER_KVM_LOG),
							.log_initially_set = true };
static const struct suite_row kvm_tiny_ring = { KVM_ROW(GR_TRACKER_KVM_RING),
						.ring_entries = RING_ENTRIES };

SUITE_ROWS(kvm_log)
SUITE_ROWS(kvm_log_without_manual_protect)
SUITE_ROWS(kvm_log_initially_set)
SUITE_ROWS(kvm_tiny_ring)

/* Four times as many pages as the smallest ring has room for, between two syncs. */
TEST(kvm_tiny_ring_runs_full_and_loses_nothing)
{
	static struct suite s = { .row = &kvm_tiny_ring };
	struct vm *vm;
	struct gr_error err;

	ASSERT_EQ(gr_ram_create(NULL, &s.ram, NULL), 0);
	ASSERT_EQ(gr_track_create(s.ram, &s.track, NULL), 0);
	vm = vm_create(&s);
	struct gr_ram_block_desc ram = { .size = sizeof(ram),
					 .id = "ram",
					 .used_bytes = 4 * RING_ENTRIES * ORACLE_PAGE,
					 .mapped = true };

	ASSERT_EQ(gr_ram_block_add(s.ram, &ram, NULL, NULL), 0);
	if (gr_track_start(s.track, GR_WRITERS_KVM_VCPUS, &err) < 0) {
		FAIL("%s", err.msg);
	}
	oracle_start(&s.a, "A", s.ram, s.track);
	oracle_round(&s.a);
	for (uint32_t turn = 0; turn < 3; turn++) {
		uint64_t full = vm->guest.ring_full;

		kvm_guest_fill(&vm->guest, 8, ORACLE_PAGE, 4 * RING_ENTRIES, turn + 1);
		ASSERT_GE(vm->guest.ring_full, full + 3);
		oracle_round(&s.a);
		ASSERT_GE(s.a.epoch_pages, (uint64_t)4 * RING_ENTRIES);
	}
	oracle_check(&s.a);
	gr_track_stop(s.track);
	vm_destroy(vm);
	gr_track_free(s.track);
	gr_ram_free(s.ram);
}

TEST_MAIN()

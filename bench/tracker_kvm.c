/* SPDX-License-Identifier: MIT */
/*
 * A guest of KVM that fills pages: its log and its rings, by ours and as QEMU uses them. One vCPU
 * in flat 32-bit mode runs through a list of addresses and halts.
 */
#include "bench/flat.h"
#include "bench/harness.h"
#include "bench/tracker.h"
#include "guest/segments.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	CODE_BYTES = 32768, /* at guest address 0: the program, then the list */
	LIST = 4096,
	RAM_GPA = 0x10000000,
	RING_ENTRIES = 4096,
	CODE_SLOT = 100, /* beside ours' own */
};

/*
 * next: lodsd; mov edi, eax; mov eax, edx; mov ecx, 1024; rep stosd
 *       inc edx; dec ebx; jnz next; hlt
 */
static const uint8_t code[] = { 0xad, 0x89, 0xc7, 0x89, 0xd0, 0xb9, 0x00, 0x04, 0x00,
				0x00, 0xf3, 0xab, 0x42, 0x4b, 0x75, 0xf0, 0xf4 };

struct vm {
	int kvm, fd, vcpu;
	struct kvm_run *run;
	size_t run_bytes;
	uint8_t *code;
	/* The ring is full: whoever tracks empties it. */
	void (*full)(struct watched *w);

	/* Ours. */
	struct ours *ours;
	struct gr_kvm_memory *memory;

	/* QEMU's. */
	struct flat *flat;
	uint64_t *words; /* of the log */
	struct kvm_dirty_gfn *ring;
	uint32_t at;
	pthread_mutex_t lock; /* as its big lock: who reaps */
};

const char *kvm_missing(void)
{
	static char why[64];
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		(void)snprintf(why, sizeof(why), "no /dev/kvm: %s", strerror(errno));
		return why;
	}
	close(fd);
	return NULL;
}

static void must(bool ok, const char *what)
{
	if (!ok) {
		bench_die("KVM: %s: %s", what, strerror(errno));
	}
}

static void set_slot(struct vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint8_t *host,
		     uint64_t bytes)
{
	struct kvm_userspace_memory_region r = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uint64_t)(uintptr_t)host,
	};

	must(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r) == 0, "a memory slot");
}

static struct vm *vm_create(struct watched *w)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	must(vm != NULL, "memory");
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	must(vm->fd >= 0, "a machine");
	vm->code =
		mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(vm->code != MAP_FAILED, "memory");
	memcpy(vm->code, code, sizeof(code));
	set_slot(vm, CODE_SLOT, 0, 0, vm->code, CODE_BYTES);
	pthread_mutex_init(&vm->lock, NULL);
	w->guest = vm;
	return vm;
}

static void vm_add_vcpu(struct vm *vm)
{
	struct kvm_sregs s;

	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	must(vm->vcpu >= 0, "a vCPU");
	vm->run_bytes = (size_t)ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	vm->run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	must(vm->run != MAP_FAILED, "a vCPU's memory");
	must(ioctl(vm->vcpu, KVM_GET_SREGS, &s) == 0, "registers");
	guest_flat_segments(&s);
	must(ioctl(vm->vcpu, KVM_SET_SREGS, &s) == 0, "registers");
}

static void vm_burst(struct watched *w, const uint32_t *page, unsigned n, uint32_t value)
{
	struct vm *vm = w->guest;
	struct kvm_regs r = { .rip = 0, .rsi = LIST, .rbx = n, .rdx = value, .rflags = 2 };

	for (unsigned i = 0; i < n; i++) {
		uint32_t gpa = RAM_GPA + page[i] * PAGE;

		memcpy(vm->code + LIST + i * sizeof(gpa), &gpa, sizeof(gpa));
	}
	must(ioctl(vm->vcpu, KVM_SET_REGS, &r) == 0, "registers");
	for (;;) {
		must(ioctl(vm->vcpu, KVM_RUN, 0) == 0 || errno == EINTR, "KVM_RUN");
		if (vm->run->exit_reason == KVM_EXIT_HLT) {
			return;
		}
		if (vm->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			vm->full(w);
		} else if (vm->run->exit_reason != KVM_EXIT_INTR) {
			bench_die("KVM: the guest left for reason %u", vm->run->exit_reason);
		}
	}
}

static void vm_free(struct vm *vm)
{
	munmap(vm->run, vm->run_bytes);
	close(vm->vcpu);
	close(vm->fd);
	close(vm->kvm);
	munmap(vm->code, CODE_BYTES);
	free(vm);
}

static void untracked_create(struct watched *w)
{
	struct vm *vm = vm_create(w);

	set_slot(vm, 0, 0, RAM_GPA, w->host, w->pages * PAGE);
	vm_add_vcpu(vm);
	w->burst = vm_burst;
}

static void untracked_destroy(struct watched *w)
{
	vm_free(w->guest);
}

/* ---- ours ----------------------------------------------------------------------------- */

static void ours_full(struct watched *w)
{
	struct vm *vm = w->guest;
	struct gr_error err;

	if (gr_kvm_ring_full(vm->memory, &err) < 0) {
		bench_die("%s", err.msg);
	}
}

static void ours_kvm_create(struct watched *w, enum gr_tracker_kind kind)
{
	struct vm *vm = vm_create(w);
	struct gr_tracker_params params = { .size = sizeof(params), .ring_entries = RING_ENTRIES };
	struct gr_error err;

	vm->full = ours_full;
	vm->ours = ours_create(w, RAM_GPA);
	if (gr_kvm_memory_create(vm->ours->ram, vm->fd, NULL, NULL, NULL, &vm->memory, &err) < 0) {
		bench_die("%s", err.msg);
	}
	params.kvm = vm->memory;
	if (gr_track_use(vm->ours->track, kind, &params, &err) < 0) {
		bench_die("%s", err.msg);
	}
	vm_add_vcpu(vm);
	if (gr_kvm_vcpu_add(vm->memory, vm->vcpu, &err) < 0) {
		bench_die("%s", err.msg);
	}
	ours_start(vm->ours, GR_WRITERS_KVM_VCPUS);
	w->tracker = vm->ours;
	w->burst = vm_burst;
}

static void log_create(struct watched *w)
{
	ours_kvm_create(w, GR_TRACKER_KVM_LOG);
}

static void ring_create(struct watched *w)
{
	ours_kvm_create(w, GR_TRACKER_KVM_RING);
}

static void ours_kvm_destroy(struct watched *w)
{
	struct vm *vm = w->guest;

	gr_kvm_vcpu_del(vm->memory, vm->vcpu);
	gr_kvm_memory_free(vm->memory);
	ours_free(vm->ours);
	vm_free(vm);
}

/* ---- as QEMU does it ------------------------------------------------------------------ */

static void qemu_read(struct watched *w)
{
	struct vm *vm = w->guest;
	uint64_t first, n;

	for (uint64_t at = 0; flat_next(vm->flat, at, &first, &n); at = first + n) {
		flat_clear(vm->flat, first, n);
		watched_read(w, first, n);
	}
}

static void qemu_log_create(struct watched *w)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				      .args = { KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE } };
	struct vm *vm = vm_create(w);

	vm->flat = flat_create(w->pages);
	vm->words = calloc(w->pages / 64, sizeof(*vm->words));
	must(vm->words != NULL, "memory");
	must(ioctl(vm->fd, KVM_ENABLE_CAP, &cap) == 0, "manual protect");
	set_slot(vm, 0, KVM_MEM_LOG_DIRTY_PAGES, RAM_GPA, w->host, w->pages * PAGE);
	vm_add_vcpu(vm);
	w->burst = vm_burst;
}

/* Fetch the slot's log, OR it in, and before the first page of a GiB is read protect all of it. */
static void qemu_log_round(struct watched *w)
{
	struct vm *vm = w->guest;
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = vm->words };
	struct kvm_clear_dirty_log clear = { .slot = 0,
					     .num_pages = (uint32_t)w->pages,
					     .dirty_bitmap = vm->words };

	must(ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log) == 0, "the dirty log");
	for (uint64_t i = 0; i < w->pages / 64; i++) {
		uint64_t bits = le64toh(vm->words[i]);

		if (bits) {
			__atomic_fetch_or(&vm->flat->live[0][i], bits, __ATOMIC_SEQ_CST);
		}
	}
	if (flat_harvest(vm->flat) > 0) {
		must(ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear) == 0, "to clear the dirty log");
	}
	qemu_read(w);
}

static void qemu_log_destroy(struct watched *w)
{
	struct vm *vm = w->guest;

	free(vm->words);
	flat_free(vm->flat);
	vm_free(vm);
}

/* Each entry is a bit; then KVM has them back. */
static void qemu_reap(struct watched *w)
{
	struct vm *vm = w->guest;
	unsigned taken = 0;

	pthread_mutex_lock(&vm->lock);
	for (;; taken++) {
		struct kvm_dirty_gfn *e = &vm->ring[vm->at % RING_ENTRIES];

		if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY) {
			break;
		}
		flat_mark(vm->flat, e->offset);
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		vm->at++;
	}
	if (taken > 0) {
		must(ioctl(vm->fd, KVM_RESET_DIRTY_RINGS, 0) == (int)taken, "to reset the ring");
	}
	pthread_mutex_unlock(&vm->lock);
}

static void qemu_ring_create(struct watched *w)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING,
				      .args = { RING_ENTRIES * sizeof(struct kvm_dirty_gfn) } };
	struct vm *vm = vm_create(w);

	vm->full = qemu_reap;
	vm->flat = flat_create(w->pages);
	must(ioctl(vm->fd, KVM_ENABLE_CAP, &cap) == 0, "dirty rings");
	vm_add_vcpu(vm);
	vm->ring = mmap(NULL, (size_t)cap.args[0], PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu,
			(off_t)KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
	must(vm->ring != MAP_FAILED, "the ring");
	set_slot(vm, 0, KVM_MEM_LOG_DIRTY_PAGES, RAM_GPA, w->host, w->pages * PAGE);
	w->burst = vm_burst;
}

static void qemu_ring_round(struct watched *w)
{
	struct vm *vm = w->guest;

	qemu_reap(w);
	(void)flat_harvest(vm->flat);
	qemu_read(w);
}

static void qemu_ring_destroy(struct watched *w)
{
	struct vm *vm = w->guest;

	munmap(vm->ring, RING_ENTRIES * sizeof(struct kvm_dirty_gfn));
	flat_free(vm->flat);
	vm_free(vm);
}

const struct comparison compare_kvm_log = {
	.name = "kvm_log",
	.ours = { "ours", log_create, ours_round, ours_kvm_destroy },
	.qemu = { "QEMU's scheme: log", qemu_log_create, qemu_log_round, qemu_log_destroy },
	.untracked = { "untracked guest", untracked_create, NULL, untracked_destroy },
};
const struct comparison compare_kvm_ring = {
	.name = "kvm_ring",
	.ours = { "ours", ring_create, ours_round, ours_kvm_destroy },
	.qemu = { "QEMU's scheme: ring", qemu_ring_create, qemu_ring_round, qemu_ring_destroy },
	.untracked = { "untracked guest", untracked_create, NULL, untracked_destroy },
	.log = &compare_kvm_log.ours,
};

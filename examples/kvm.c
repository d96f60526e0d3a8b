/* SPDX-License-Identifier: MIT */
/*
 * A host for KVM on x86-64: one vCPU in real mode, RAM that KVM's slots follow by themselves, and
 * a dirty log. The guest writes eight pages, two times; the host says which pages it wrote since
 * it looked last.
 */
#include <errno.h>
#include <fcntl.h>
#include <guestram/rcu_qs.h>
#include <guestram/track.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CODE = 0x1000, SKIPPED = 77 };

static const uint8_t code[] = {
	0xb9, 0x08, 0x00,	/* again: mov cx, 8 */
	0xbf, 0x00, 0x40,	/*        mov di, 0x4000 */
	0x89, 0x0d,		/* next:  mov [di], cx */
	0x81, 0xc7, 0x00, 0x10, /*        add di, 0x1000 */
	0xb0, 0x2e,		/*        mov al, '.' */
	0xe6, 0xe9,		/*        out 0xe9, al */
	0xe2, 0xf4,		/*        loop next */
	0xf4,			/*        hlt */
	0xeb, 0xeb,		/*        jmp again */
};

struct host {
	struct gr_ram *ram;
	struct gr_kvm_memory *slots;
	struct gr_track *track;
	struct gr_dirty_consumer *consumer;
	struct kvm_run *run;
	int vm, vcpu;
};

static void check(int rc, const char *what, const struct gr_error *err)
{
	if (rc < 0) {
		fprintf(stderr, "kvm: %s: %s\n", what, err ? err->msg : strerror(errno));
		exit(1);
	}
}

static void make_vm(struct host *h)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int run_bytes;

	if (kvm < 0) {
		fprintf(stderr, "kvm: /dev/kvm: %s\n", strerror(errno));
		exit(SKIPPED);
	}
	check(h->vm = ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM", NULL);
	check(h->vcpu = ioctl(h->vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU", NULL);
	check(run_bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE", NULL);
	h->run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, h->vcpu, 0);
	check(h->run == MAP_FAILED ? -1 : 0, "mmap", NULL);
	close(kvm);
}

static void make_ram(struct host *h)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "ram", .used_bytes = 1 << 20, .mapped = true
	};
	struct gr_tracker_params params = { .size = sizeof(params) };
	struct gr_error err;

	check(gr_ram_create(NULL, &h->ram, &err), "RAM", &err);
	/*
	 * From here on every region has its slot. With vCPUs on other threads, pass functions that
	 * have them leave the guest: a slot is removed while none of them is inside.
	 */
	check(gr_kvm_memory_create(h->ram, h->vm, NULL, NULL, NULL, &h->slots, &err), "slots",
	      &err);
	check(gr_ram_block_add(h->ram, &desc, NULL, &err), "block", &err);

	check(gr_dirty_consumer_add(gr_ram_dirty(h->ram), "example", GR_DIRTY_START_CLEAN,
				    &h->consumer, &err),
	      "consumer", &err);
	params.kvm = h->slots;
	check(gr_track_create(h->ram, &h->track, &err), "trackers", &err);
	check(gr_track_use(h->track, GR_TRACKER_KVM_LOG, &params, &err), "dirty log", &err);
	/* Who writes? The vCPU, and gr_ram_write() below, which marks: both are covered. */
	check(gr_track_start(h->track, GR_WRITERS_KVM_VCPUS | GR_WRITERS_MARKED, &err), "start",
	      &err);
	check(gr_ram_write(h->ram, gr_gpa(CODE), code, sizeof(code), &err), "code", &err);
}

static void reset_vcpu(struct host *h)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_sregs sregs;

	check(ioctl(h->vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS", NULL);
	sregs.cs.base = sregs.cs.selector = 0;
	check(ioctl(h->vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS", NULL);
	check(ioctl(h->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS", NULL);
}

/* Until the guest halts. Offline while it is inside: grace periods do not wait for it. */
static void run_guest(struct host *h)
{
	for (;;) {
		int rc;

		gr_rcu_thread_offline();
		rc = ioctl(h->vcpu, KVM_RUN, 0);
		gr_rcu_thread_online();
		if (rc < 0 && errno == EINTR) {
			continue;
		}
		check(rc, "KVM_RUN", NULL);
		if (h->run->exit_reason == KVM_EXIT_HLT) {
			printf("\n");
			return;
		}
		if (h->run->exit_reason != KVM_EXIT_IO) {
			fprintf(stderr, "kvm: exit reason %u\n", h->run->exit_reason);
			exit(1);
		}
		fwrite((uint8_t *)h->run + h->run->io.data_offset, h->run->io.size, h->run->io.count,
		       stdout);
	}
}

static uint64_t print_dirty(struct host *h)
{
	uint64_t at = 0, first, n, pages;
	struct gr_ram_block *block;
	struct gr_error err;

	check(gr_track_sync(h->track, &err), "sync", &err);
	check(gr_dirty_epoch_begin(h->consumer, &pages, &err), "epoch", &err);
	printf("%llu pages:", (unsigned long long)pages);
	for (; gr_dirty_epoch_next(h->consumer, at, &first, &n); at = first + n) {
		uint64_t offset, page = gr_ram_page_bytes(h->ram);

		gr_rcu_read_lock();
		block = gr_ram_block_find_rcu(h->ram, gr_ram_addr(first * page));
		gr_ram_block_get(block);
		gr_rcu_read_unlock();
		offset = first * page - block->offset.v;
		/* Watch them again, and only then read them: what comes later is reported later. */
		check(gr_track_rearm(h->track, block, offset, n * page, &err), "re-arm", &err);
		printf(" %s+%#llx (%llu)", block->id, (unsigned long long)offset,
		       (unsigned long long)n);
		gr_ram_block_put(block);
	}
	printf("\n");
	gr_dirty_epoch_commit(h->consumer);
	return pages;
}

int main(void)
{
	struct host h = { 0 };
	uint64_t first, second;

	gr_rcu_qs_register_thread(); /* a vCPU's thread: its sections cost nothing */
	make_vm(&h);
	make_ram(&h);
	reset_vcpu(&h);
	run_guest(&h);
	first = print_dirty(&h); /* the code, too */
	run_guest(&h);
	second = print_dirty(&h);

	gr_track_stop(h.track);
	gr_track_free(h.track);
	gr_dirty_consumer_del(h.consumer);
	gr_kvm_memory_free(h.slots);
	gr_rcu_qs_unregister_thread();
	gr_ram_free(h.ram);
	return first >= 9 && second == 8 ? 0 : 1;
}

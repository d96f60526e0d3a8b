/* SPDX-License-Identifier: MIT */
/*
 * KVM's slots and dirty log under a real guest: what it wrote is reported, whatever
 * happens to the slots meanwhile. The oracle is the difference of memory. With -DKVM_RING all of it
 * runs over dirty rings, the smallest that there are (test_kvm_ring).
 */
#include "base/compiler.h"
#include "harness.h"
#include "kvm_guest.h"
#include "track/kvm_memory.h"
#include <errno.h>
#include <guestram/dirty_rate.h>
#include <guestram/track.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	RAM_PAGES = 512,
	CODE = (RAM_PAGES - 1) * PAGE,
	PLUG_GPA = 0x40000000,
	RING_ENTRIES = 256, /* a page of them; KVM keeps 64 in reserve */
};

struct machine {
	struct kvm_guest guest;
	struct gr_ram *ram;
	struct gr_ram_block *block;
	struct gr_kvm_memory *kvm;
	struct gr_track *track;
};

static struct gr_ram_block *plug(struct machine *m, const char *id, uint64_t gpa, uint64_t pages)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = pages * PAGE,
					  .mapped = true,
					  .gpa = gr_gpa(gpa) };
	struct gr_ram_block *block;

	ASSERT_EQ(gr_ram_block_add(m->ram, &desc, &block, NULL), 0);
	return block;
}

/* A guest with RAM_PAGES of RAM; nothing tracks yet. */
static void machine_create(struct machine *m)
{
	struct gr_tracker_params params = { .size = sizeof(params) };
	struct gr_error err;

	kvm_guest_create(&m->guest);
	ASSERT_EQ(gr_ram_create(NULL, &m->ram, NULL), 0);
	m->block = plug(m, "ram", 0, RAM_PAGES);
	if (gr_kvm_memory_create(m->ram, m->guest.vm_fd, kvm_guest_kick, kvm_guest_resume,
				 &m->guest, &m->kvm, &err) < 0) {
		FAIL("%s", err.msg);
	}
	ASSERT_EQ(gr_track_create(m->ram, &m->track, NULL), 0);
	params.kvm = m->kvm;
#ifdef KVM_RING
	params.ring_entries = RING_ENTRIES;
	if (gr_track_use(m->track, GR_TRACKER_KVM_RING, &params, &err) < 0) {
		SKIP("%s", err.msg);
	}
#else
	if (gr_track_use(m->track, GR_TRACKER_KVM_LOG, &params, &err) < 0) {
		FAIL("%s", err.msg);
	}
#endif
	kvm_guest_add_vcpu(&m->guest, m->kvm);
	kvm_guest_boot(&m->guest, m->ram, CODE);
}

/* Of the log alone. */
static void choose(struct machine *m, enum gr_kvm_log_mode mode)
{
#ifndef KVM_RING
	struct gr_error err;

	if (gr_kvm_log_set_mode(m->kvm, mode, &err) < 0) {
		SKIP("%s", err.msg);
	}
#else
	(void)m;
	(void)mode;
#endif
}

static void track(struct machine *m)
{
	struct gr_error err;

	if (gr_track_start(m->track, GR_WRITERS_KVM_VCPUS | GR_WRITERS_MARKED, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void machine_destroy(struct machine *m)
{
	gr_kvm_vcpu_del(m->kvm, m->guest.vcpu_fd);
	gr_kvm_memory_free(m->kvm);
	gr_track_free(m->track);
	gr_ram_free(m->ram);
	kvm_guest_destroy(&m->guest);
}

/* A consumer with a copy of one block, kept up to date as a migration does it. */
struct copier {
	struct machine *m;
	struct gr_ram_block *block;
	struct gr_dirty_consumer *c;
	uint8_t *copy;
};

static void copier_create(struct copier *k, struct machine *m, struct gr_ram_block *block,
			  enum gr_dirty_start start)
{
	k->m = m;
	k->block = block;
	k->copy = calloc(1, block->max_bytes);
	ASSERT(k->copy);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(m->ram), "copier", start, &k->c, NULL), 0);
}

static void copier_destroy(struct copier *k)
{
	gr_dirty_consumer_del(k->c);
	free(k->copy);
}

static uint64_t begin(struct copier *k)
{
	struct gr_error err;
	uint64_t pages;

	if (gr_track_sync(k->m->track, &err) < 0) {
		FAIL("%s", err.msg);
	}
	ASSERT_EQ(gr_dirty_epoch_begin(k->c, &pages, NULL), 0);
	return pages;
}

/* Re-arms and reads what is in the epoch. */
static void copy(struct copier *k)
{
	uint64_t base = k->block->offset.v / PAGE, end = base + k->block->max_bytes / PAGE;
	uint64_t first, pages;

	for (uint64_t at = base; gr_dirty_epoch_next(k->c, at, &first, &pages) && first < end;
	     at = first + pages) {
		uint64_t offset, bytes;
		struct gr_error err;

		pages = GR_MIN(pages, end - first);
		offset = (first - base) * PAGE;
		bytes = pages * PAGE;
		if (gr_track_rearm(k->m->track, k->block, offset, bytes, &err) < 0) {
			FAIL("%s", err.msg);
		}
		memcpy(k->copy + offset, k->block->host + offset, bytes);
	}
}

static uint64_t round_of(struct copier *k)
{
	uint64_t pages = begin(k);

	copy(k);
	ASSERT_EQ(gr_dirty_epoch_commit(k->c), 0);
	return pages;
}

static void assert_up_to_date(const struct copier *k)
{
	uint64_t wrong = 0;

	for (uint64_t p = 0; p < k->block->max_bytes; p += PAGE) {
		wrong += memcmp(k->copy + p, k->block->host + p, PAGE) != 0;
	}
	ASSERT_EQ(wrong, 0u);
}

/* Every n-th page, from one that is no multiple of 64 on. */
static void scripted_writes(enum gr_kvm_log_mode mode)
{
	struct machine m;
	struct copier k;
	uint64_t pages;

	machine_create(&m);
	choose(&m, mode);
	track(&m);
	copier_create(&k, &m, m.block, GR_DIRTY_START_FULL);
	ASSERT_GE(round_of(&k), (uint64_t)RAM_PAGES);
	for (uint32_t n = 1; n < 40; n += 7) {
		uint32_t count = RAM_PAGES / 2 / n;

		kvm_guest_fill(&m.guest, 5 * PAGE + 8, n * PAGE, count, 1000 + n);
		pages = round_of(&k);
		assert_up_to_date(&k);
		/* KVM counts a page that it maps writable on a fetch: the code's. */
		ASSERT_LE(pages, (uint64_t)count + 1);
		ASSERT_GE(pages, (uint64_t)count);
	}
	ASSERT_LE(round_of(&k), 1u); /* nothing comes twice */
	copier_destroy(&k);
	machine_destroy(&m);
}

TEST(every_page_the_guest_wrote_is_reported_with_manual_protect)
{
	scripted_writes(GR_KVM_LOG_MANUAL);
}

TEST(every_page_the_guest_wrote_is_reported_without_manual_protect)
{
	scripted_writes(GR_KVM_LOG_PLAIN);
}

/*
 * A has copied P and re-armed it; the guest writes P again; B, to whom P is still pending,
 * copies. If B cleared P in KVM's log again, A would never learn of the second write.
 */
static void two_consumers(enum gr_kvm_log_mode mode)
{
	struct machine m;
	struct copier a, b;

	machine_create(&m);
	choose(&m, mode);
	track(&m);
	copier_create(&a, &m, m.block, GR_DIRTY_START_FULL);
	copier_create(&b, &m, m.block, GR_DIRTY_START_FULL);
	round_of(&a);
	round_of(&b);

	kvm_guest_fill(&m.guest, 10 * PAGE, PAGE, 128, 1);
	begin(&b);
	begin(&a); /* after B's: A's next epoch is not told of P by B's sync */
	copy(&a);
	kvm_guest_fill(&m.guest, 10 * PAGE, PAGE, 112, 2);
	copy(&b);
	ASSERT_EQ(gr_dirty_epoch_commit(a.c), 0);
	ASSERT_EQ(gr_dirty_epoch_commit(b.c), 0);

	ASSERT_GE(round_of(&a), 112u);
	round_of(&b);
	assert_up_to_date(&a);
	assert_up_to_date(&b);
	copier_destroy(&b);
	copier_destroy(&a);
	machine_destroy(&m);
}

TEST(two_consumers_of_one_log_both_end_with_the_guests_bytes_with_manual_protect)
{
	two_consumers(GR_KVM_LOG_MANUAL);
}

TEST(two_consumers_of_one_log_both_end_with_the_guests_bytes_without_manual_protect)
{
	two_consumers(GR_KVM_LOG_PLAIN);
}

#ifdef KVM_RING
TEST(a_full_ring_stops_the_guest_until_it_is_emptied_and_loses_nothing)
{
	struct machine m;
	struct copier k;

	machine_create(&m);
	track(&m);
	copier_create(&k, &m, m.block, GR_DIRTY_START_FULL);
	round_of(&k);
	kvm_guest_fill(&m.guest, PAGE, PAGE, 500, 7);
	ASSERT_GE(m.guest.ring_full, 1u);
	ASSERT_GE(round_of(&k), 500u);
	assert_up_to_date(&k);
	ASSERT_LE(round_of(&k), 1u);
	copier_destroy(&k);
	machine_destroy(&m);
}

/* As if KVM had stopped in the middle of a reset: the fake KVM below shows that it is seen. */
TEST(a_log_that_begins_anew_reports_all_pages_and_watches_them)
{
	struct machine m;
	struct copier k;

	machine_create(&m);
	track(&m);
	copier_create(&k, &m, m.block, GR_DIRTY_START_FULL);
	round_of(&k);
	kvm_guest_fill(&m.guest, PAGE, PAGE, 50, 7);
	m.kvm->ring_lost = true;
	ASSERT_GE(round_of(&k), 50u);
	ASSERT_GE(round_of(&k), (uint64_t)RAM_PAGES);
	ASSERT_LE(round_of(&k), 1u);
	kvm_guest_fill(&m.guest, PAGE, PAGE, 60, 8);
	ASSERT_GE(round_of(&k), 60u);
	assert_up_to_date(&k);
	copier_destroy(&k);
	machine_destroy(&m);
}

TEST(rings_come_before_vcpus_and_instead_of_the_log)
{
	struct gr_tracker_params params = { .size = sizeof(params), .ring_entries = 3 };
	struct machine m;
	struct gr_error err;

	kvm_guest_create(&m.guest);
	ASSERT_EQ(gr_ram_create(NULL, &m.ram, NULL), 0);
	ASSERT_EQ(gr_track_create(m.ram, &m.track, NULL), 0);
	ASSERT_EQ(gr_track_use(m.track, GR_TRACKER_KVM_RING, &params, &err), -EINVAL);
	ASSERT_HAS(err.msg, "memory slots");
	ASSERT_EQ(gr_kvm_memory_create(m.ram, m.guest.vm_fd, NULL, NULL, NULL, &m.kvm, NULL), 0);
	params.kvm = m.kvm;
	ASSERT_EQ(gr_track_use(m.track, GR_TRACKER_KVM_RING, &params, &err), -EINVAL);
	ASSERT_HAS(err.msg, "power of two");
	params.ring_entries = 1 << 23;
	ASSERT_EQ(gr_track_use(m.track, GR_TRACKER_KVM_RING, &params, &err), -EINVAL);
	ASSERT_HAS(err.msg, "too big");
	params.ring_entries = 0;
	ASSERT_EQ(gr_track_use(m.track, GR_TRACKER_KVM_RING, &params, &err), 0);
	ASSERT_EQ(gr_track_use(m.track, GR_TRACKER_KVM_LOG, &params, &err), -EBUSY);
	ASSERT_HAS(err.msg, "dirty rings instead");
	ASSERT_EQ(gr_track_start(m.track, GR_WRITERS_KVM_VCPUS, &err), -EINVAL);
	ASSERT_HAS(err.msg, "gr_kvm_vcpu_add");
	kvm_guest_add_vcpu(&m.guest, m.kvm);
	ASSERT_EQ(gr_track_start(m.track, GR_WRITERS_KVM_VCPUS, &err), 0);
	machine_destroy(&m);

	kvm_guest_create(&m.guest);
	kvm_guest_add_vcpu(&m.guest, NULL);
	ASSERT_EQ(gr_ram_create(NULL, &m.ram, NULL), 0);
	ASSERT_EQ(gr_track_create(m.ram, &m.track, NULL), 0);
	ASSERT_EQ(gr_kvm_memory_create(m.ram, m.guest.vm_fd, NULL, NULL, NULL, &m.kvm, NULL), 0);
	params.kvm = m.kvm;
	ASSERT_EQ(gr_track_use(m.track, GR_TRACKER_KVM_RING, &params, &err), -EINVAL);
	ASSERT_HAS(err.msg, "before the first vCPU");
	machine_destroy(&m);
}

/*
 * A KVM that is not there, for what the real one does too seldom or on other machines only: its
 * rings are files, its guest is fake_write(). ioctl() below is the program's own.
 */
enum { FAKE_PAGES = 64, FAKE_VCPUS = GR_DIRTY_RATE_VCPUS_MAX + 1 };

static struct fake_vcpu {
	int fd;
	struct kvm_dirty_gfn *ring;
	uint32_t written, reset;
} fake_vcpus[FAKE_VCPUS];

static struct {
	int vm_fd; /* 0: there is none */
	unsigned int vcpus;
	bool with_bitmap;	 /* writes outside of vCPUs go to a bitmap */
	bool interrupted;	 /* the next reset ends after `until` entries */
	bool always_interrupted; /* and all after it */
	int until;
	unsigned int enabled;	  /* how often rings were */
	unsigned int switched_on; /* how often a log was */
	bool logs;
} fake;

static int fake_reset(void)
{
	sigset_t set;
	int n = 0;

	pthread_sigmask(SIG_BLOCK, NULL, &set);
	ASSERT_EQ(sigismember(&set, SIGUSR1), 1); /* KVM would stop in the middle */
	for (unsigned int v = 0; v < fake.vcpus; v++) {
		struct fake_vcpu *vcpu = &fake_vcpus[v];

		for (;;) {
			struct kvm_dirty_gfn *e = &vcpu->ring[vcpu->reset % RING_ENTRIES];

			if (fake.interrupted && n == fake.until) {
				fake.interrupted = fake.always_interrupted;
				return n;
			}
			if (e->flags != KVM_DIRTY_GFN_F_RESET) {
				break;
			}
			e->flags = 0;
			vcpu->reset++;
			n++;
		}
	}
	return n;
}

static int fake_check(uintptr_t cap)
{
	switch (cap) {
	case KVM_CAP_NR_MEMSLOTS:
		return 32;
	case 223: /* KVM_CAP_DIRTY_LOG_RING_ACQ_REL */
		return 65536;
	case 225: /* KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP */
		return fake.with_bitmap;
	default:
		return 0;
	}
}

static int fake_ioctl(unsigned long request, void *arg)
{
	const struct kvm_userspace_memory_region *r = arg;
	bool on;

	switch (request) {
	case KVM_CHECK_EXTENSION:
		return fake_check((uintptr_t)arg);
	case KVM_ENABLE_CAP:
		fake.enabled++;
		return 0;
	case KVM_RESET_DIRTY_RINGS:
		return fake_reset();
	case KVM_SET_USER_MEMORY_REGION: /* of its one slot */
		on = r->memory_size > 0 && (r->flags & KVM_MEM_LOG_DIRTY_PAGES);
		fake.switched_on += on && !fake.logs;
		fake.logs = on;
		return 0;
	default:
		errno = ENOTTY;
		return -1;
	}
}

#	ifdef __GLIBC__
int ioctl(int fd, unsigned long request, ...)
#	else
int ioctl(int fd, int request, ...)
#	endif
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (fake.vm_fd > 0 && fd == fake.vm_fd) {
		return fake_ioctl((unsigned int)request, arg);
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

static void fake_create(struct machine *m)
{
	struct gr_error err;

	memset(m, 0, sizeof(*m));
	fake.vm_fd = memfd_create("vm", MFD_CLOEXEC);
	ASSERT_GT(fake.vm_fd, 0);
	ASSERT_EQ(gr_ram_create(NULL, &m->ram, NULL), 0);
	m->block = plug(m, "ram", 0, FAKE_PAGES);
	if (gr_kvm_memory_create(m->ram, fake.vm_fd, NULL, NULL, NULL, &m->kvm, &err) < 0) {
		FAIL("%s", err.msg);
	}
	ASSERT_EQ(gr_track_create(m->ram, &m->track, NULL), 0);
}

static int fake_use(struct machine *m, enum gr_tracker_kind kind, uint32_t entries,
		    struct gr_error *err)
{
	struct gr_tracker_params params = { .size = sizeof(params),
					    .kvm = m->kvm,
					    .ring_entries = entries };

	return gr_track_use(m->track, kind, &params, err);
}

static struct fake_vcpu *fake_add_vcpu(struct machine *m)
{
	struct fake_vcpu *vcpu = &fake_vcpus[fake.vcpus];
	off_t at = (off_t)64 * (off_t)m->kvm->page_bytes; /* KVM_DIRTY_LOG_PAGE_OFFSET */
	size_t bytes = RING_ENTRIES * sizeof(*vcpu->ring);
	struct gr_error err;

	vcpu->fd = memfd_create("vcpu", MFD_CLOEXEC);
	ASSERT_GE(vcpu->fd, 0);
	ASSERT_EQ(ftruncate(vcpu->fd, at + (off_t)bytes), 0);
	vcpu->ring = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, at);
	ASSERT(vcpu->ring != MAP_FAILED);
	fake.vcpus++;
	if (gr_kvm_vcpu_add(m->kvm, vcpu->fd, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return vcpu;
}

static void fake_write(struct fake_vcpu *vcpu, uint64_t page)
{
	struct kvm_dirty_gfn *e = &vcpu->ring[vcpu->written++ % RING_ENTRIES];

	ASSERT_EQ(e->flags, 0u);
	e->slot = 0;
	e->offset = page;
	e->flags = KVM_DIRTY_GFN_F_DIRTY;
}

static void fake_destroy(struct machine *m)
{
	gr_kvm_memory_free(m->kvm);
	gr_track_free(m->track);
	gr_ram_free(m->ram);
}

/* A machine with one vCPU, tracked and up to date. */
static struct fake_vcpu *fake_track(struct machine *m, struct copier *k)
{
	struct fake_vcpu *vcpu;

	fake_create(m);
	ASSERT_EQ(fake_use(m, GR_TRACKER_KVM_RING, RING_ENTRIES, NULL), 0);
	vcpu = fake_add_vcpu(m);
	track(m);
	copier_create(k, m, m->block, GR_DIRTY_START_CLEAN);
	ASSERT_EQ(round_of(k), 0u);
	return vcpu;
}

TEST(a_reset_of_the_rings_that_is_cut_short_loses_no_page)
{
	struct machine m;
	struct copier k;
	struct fake_vcpu *vcpu = fake_track(&m, &k);
	sigset_t set;

	for (int until = 0; until < 4; until++) {
		unsigned int before = fake.switched_on;

		for (uint64_t p = 0; p < 4; p++) {
			fake_write(vcpu, 3 * p);
		}
		fake.interrupted = true;
		fake.until = until;
		ASSERT_EQ(round_of(&k), 4u);
		ASSERT_EQ(vcpu->reset, vcpu->written); /* all is given back */
		/* Who knows what KVM did not protect: the log began anew, and all was written. */
		ASSERT_EQ(fake.switched_on, before + 1);
		ASSERT_EQ(round_of(&k), (uint64_t)FAKE_PAGES);
		ASSERT_EQ(round_of(&k), 0u);
	}
	fake_write(vcpu, 1);
	fake.interrupted = true;
	fake.until = 0;
	ASSERT_EQ(gr_kvm_ring_full(m.kvm, NULL), 0);
	ASSERT_EQ(round_of(&k), (uint64_t)FAKE_PAGES);
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	ASSERT_EQ(sigismember(&set, SIGUSR1), 0);
	copier_destroy(&k);
	fake_destroy(&m);
}

TEST(rings_that_are_never_given_back_are_an_error_until_they_are)
{
	struct machine m;
	struct copier k;
	struct fake_vcpu *vcpu = fake_track(&m, &k);
	struct gr_error err;

	fake_write(vcpu, 1);
	fake.interrupted = fake.always_interrupted = true;
	ASSERT_EQ(begin(&k), 1u);
	ASSERT_EQ(gr_track_rearm(m.track, m.block, 0, PAGE, &err), -EIO);
	ASSERT_HAS(err.msg, "1 entries are not given back");
	ASSERT_EQ(gr_dirty_epoch_abort(k.c), 0);
	fake.interrupted = false;
	ASSERT_EQ(round_of(&k), 1u);
	ASSERT_EQ(round_of(&k), (uint64_t)FAKE_PAGES);
	ASSERT_EQ(vcpu->reset, vcpu->written);
	copier_destroy(&k);
	fake_destroy(&m);
}

TEST(a_vcpu_that_comes_back_goes_on_in_its_ring)
{
	struct machine m;
	struct copier k;
	struct fake_vcpu *first = fake_track(&m, &k), *second;
	int number = first->fd;

	for (uint64_t p = 0; p < 3; p++) {
		fake_write(first, p);
	}
	gr_kvm_vcpu_del(m.kvm, number);
	ASSERT_EQ(round_of(&k), 3u); /* reported as it went */
	ASSERT_EQ(gr_kvm_vcpu_add(m.kvm, number, NULL), 0);
	fake_write(first, 7);
	ASSERT_EQ(round_of(&k), 1u);

	/* Another one under the same number begins at its own start. */
	gr_kvm_vcpu_del(m.kvm, number);
	second = fake_add_vcpu(&m);
	gr_kvm_vcpu_del(m.kvm, second->fd);
	ASSERT_EQ(dup2(second->fd, number), number);
	ASSERT_EQ(gr_kvm_vcpu_add(m.kvm, number, NULL), 0);
	fake_write(second, 8);
	fake_write(second, 9);
	ASSERT_EQ(round_of(&k), 2u);
	ASSERT_EQ(second->reset, 2u);
	copier_destroy(&k);
	fake_destroy(&m);
}

TEST(the_ring_dirty_rate_counts_every_vcpu_also_one_that_goes)
{
	struct gr_dirty_rate_params params = { .size = sizeof(params),
					       .mode = GR_DIRTY_RATE_RING,
					       .writers = GR_WRITERS_KVM_VCPUS };
	static struct gr_dirty_rate_result result;
	struct gr_dirty_rate *rate;
	struct machine m;
	struct copier k;
	struct fake_vcpu *first = fake_track(&m, &k), *last = first;

	while (fake.vcpus < FAKE_VCPUS) {
		last = fake_add_vcpu(&m);
	}
	fake_write(first, 1);
	fake_write(first, 2);
	params.track = m.track;
	params.kvm = m.kvm;
	ASSERT_EQ(gr_dirty_rate_begin(m.ram, &params, &rate, NULL), 0);
	gr_kvm_vcpu_del(m.kvm, first->fd);
	fake_write(last, 3);
	result.size = sizeof(result);
	ASSERT_EQ(gr_dirty_rate_end(rate, &result, NULL), 0);
	ASSERT_EQ(result.dirty_pages, 1u);
	ASSERT_EQ(result.vcpus, (unsigned int)GR_DIRTY_RATE_VCPUS_MAX);
	for (unsigned int i = 0; i < result.vcpus; i++) {
		ASSERT_EQ(result.vcpu_bytes_per_s[i], 0u);
	}
	gr_dirty_rate_free(rate);
	copier_destroy(&k);
	fake_destroy(&m);
}

TEST(rings_are_refused_where_kvm_writes_outside_of_vcpus)
{
	struct machine m;
	struct gr_error err;

	fake_create(&m);
	fake.with_bitmap = true;
	ASSERT_EQ(fake_use(&m, GR_TRACKER_KVM_RING, 0, &err), -ENOTSUP);
	ASSERT_HAS(err.msg, "outside of any vCPU");
	ASSERT_EQ(fake_use(&m, GR_TRACKER_KVM_LOG, 0, &err), 0);
	fake_destroy(&m);
}

TEST(a_vm_has_one_tracker_at_a_time_and_its_rings_for_good)
{
	struct machine m;
	struct gr_error err;

	fake_create(&m);
	ASSERT_EQ(fake_use(&m, GR_TRACKER_KVM_LOG, 0, &err), 0);
	ASSERT_EQ(fake_use(&m, GR_TRACKER_KVM_RING, 0, &err), -EBUSY);
	ASSERT_HAS(err.msg, "another tracker of KVM");
	for (unsigned int turn = 0; turn < 2; turn++) {
		struct machine other = m;

		gr_track_free(m.track);
		ASSERT_EQ(gr_track_create(m.ram, &m.track, NULL), 0);
		if (turn > 0) {
			ASSERT_EQ(fake_use(&m, GR_TRACKER_KVM_RING, 1024, &err), -EBUSY);
			ASSERT_HAS(err.msg, "cannot become 1024");
		}
		ASSERT_EQ(fake_use(&m, GR_TRACKER_KVM_RING, RING_ENTRIES, &err), 0);
		ASSERT_EQ(fake.enabled, 1u);
		ASSERT_EQ(gr_track_create(m.ram, &other.track, NULL), 0);
		ASSERT_EQ(fake_use(&other, GR_TRACKER_KVM_RING, RING_ENTRIES, &err), -EBUSY);
		ASSERT_EQ(fake_use(&other, GR_TRACKER_KVM_LOG, 0, &err), -EBUSY);
		gr_track_free(other.track);
	}
	fake_destroy(&m);
}
#else
TEST(a_page_that_nobody_rearms_is_reported_again)
{
	struct machine m;
	struct copier k;

	machine_create(&m);
	track(&m);
	copier_create(&k, &m, m.block, GR_DIRTY_START_FULL);
	round_of(&k);
	kvm_guest_fill(&m.guest, 0, PAGE, 100, 7);
	ASSERT_GE(begin(&k), 100u);
	ASSERT_EQ(gr_dirty_epoch_commit(k.c), 0); /* not re-armed, not read */
	ASSERT_GE(round_of(&k), 100u);
	ASSERT_LE(round_of(&k), 1u);
	assert_up_to_date(&k);
	copier_destroy(&k);
	machine_destroy(&m);
}
#endif

/*
 * calc-dirty-rate beside a consumer that goes on copying. The ring counts an entry for each page in each
 * round; the log a page once, however often it is written.
 */
TEST(the_dirty_rate_is_what_the_guest_wrote)
{
	struct gr_dirty_rate_params params = { .size = sizeof(params),
#ifdef KVM_RING
					       .mode = GR_DIRTY_RATE_RING,
#else
					       .mode = GR_DIRTY_RATE_BITMAP,
#endif
					       .writers = GR_WRITERS_KVM_VCPUS };
	static struct gr_dirty_rate_result result = { .size = sizeof(result) };
	const uint64_t times = params.mode == GR_DIRTY_RATE_RING ? 2 : 1;
	struct gr_dirty_rate *rate;
	struct gr_error err;
	struct machine m;
	struct copier k;

	machine_create(&m);
	params.track = m.track;
	params.kvm = m.kvm;
	/* It starts the tracking that it needs, and stops it with its end. */
	if (gr_dirty_rate_begin(m.ram, &params, &rate, &err) < 0) {
		FAIL("%s", err.msg);
	}
	copier_create(&k, &m, m.block, GR_DIRTY_START_FULL);
	round_of(&k);
	for (uint32_t n = 0; n < 2; n++) {
		kvm_guest_fill(&m.guest, 5 * PAGE, PAGE, 400, n + 1);
		round_of(&k);
	}
	ASSERT_EQ(gr_dirty_rate_end(rate, &result, NULL), 0);
	ASSERT_GE(result.dirty_pages, 400 * times);
	/* KVM counts a page that it maps writable on a fetch: the code's, after each re-arm. */
	ASSERT_LE(result.dirty_pages, 400 * times + 4 + m.guest.ring_full);
	ASSERT_GT(result.elapsed_ns, 0u);
	ASSERT_GT(result.bytes_per_s, 0u);
#ifdef KVM_RING
	ASSERT_GE(m.guest.ring_full, 2u); /* more than the smallest ring holds, each time */
	ASSERT_EQ(result.vcpus, 1u);
	ASSERT_EQ(result.vcpu_bytes_per_s[0], result.bytes_per_s);
#endif
	assert_up_to_date(&k);
	gr_dirty_rate_free(rate);
	kvm_guest_fill(&m.guest, 5 * PAGE, PAGE, 100, 9);
	ASSERT_EQ(round_of(&k), 0u); /* nobody looks any more */
	copier_destroy(&k);
	machine_destroy(&m);
}

/* The block stays when its region goes, so its bits must not go with the slot. */
TEST(a_slot_that_goes_leaves_its_dirty_bits)
{
	struct machine m;
	struct copier k;
	struct gr_ram_block *dimm;
	struct gr_ram_region region;

	machine_create(&m);
	track(&m);
	dimm = plug(&m, "dimm", PLUG_GPA, 128);
	copier_create(&k, &m, dimm, GR_DIRTY_START_FULL);
	round_of(&k);
	kvm_guest_fill(&m.guest, PLUG_GPA + 3 * PAGE, 2 * PAGE, 50, 9);
	ASSERT_EQ(gr_ram_region_del(m.ram, gr_gpa(PLUG_GPA), NULL), 0);
	ASSERT_GE(round_of(&k), 50u);
	assert_up_to_date(&k);

	/* The guest sees it again elsewhere, and goes on. */
	region = (struct gr_ram_region){ .gpa = gr_gpa(2 * (uint64_t)PLUG_GPA),
					 .bytes = 128 * PAGE,
					 .block = dimm };
	ASSERT_EQ(gr_ram_region_add(m.ram, &region, NULL), 0);
	kvm_guest_fill(&m.guest, 2u * PLUG_GPA, 2 * PAGE, 60, 10);
	ASSERT_GE(round_of(&k), 60u);
	assert_up_to_date(&k);
	copier_destroy(&k);
	machine_destroy(&m);
}

TEST(a_block_plugged_while_tracking_is_tracked)
{
	struct machine m;
	struct copier k;
	struct gr_ram_block *dimm;

	machine_create(&m);
	track(&m);
	dimm = plug(&m, "dimm", PLUG_GPA, 100); /* the last word of its log is half used */
	copier_create(&k, &m, dimm, GR_DIRTY_START_FULL);
	round_of(&k);
	kvm_guest_fill(&m.guest, PLUG_GPA + 90 * PAGE, PAGE, 10, 3);
	ASSERT_GE(round_of(&k), 10u);
	kvm_guest_fill(&m.guest, PLUG_GPA + 90 * PAGE, PAGE, 10, 4);
	ASSERT_GE(round_of(&k), 10u);
	assert_up_to_date(&k);
	ASSERT_LE(round_of(&k), 1u);
	ASSERT_EQ(gr_ram_block_del_by_id(m.ram, "dimm", NULL), 0);
	/* Nobody is there any more: as a device's window. */
	ASSERT_EQ(kvm_guest_store(&m.guest, PLUG_GPA, 1), (uint32_t)KVM_EXIT_MMIO);
	copier_destroy(&k);
	machine_destroy(&m);
}

/* The log's words lie across those of the dirty memory. */
TEST(a_region_that_begins_inside_a_block_is_reported_at_the_right_pages)
{
	struct machine m;
	struct copier k;
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "dimm",
					  .used_bytes = 512 * PAGE };
	struct gr_ram_block *dimm;
	struct gr_ram_region parts[] = {
		{ .gpa = gr_gpa(PLUG_GPA), .bytes = 37 * PAGE, .block_offset = 0 },
		{ .gpa = gr_gpa(2u * PLUG_GPA), .bytes = 201 * PAGE, .block_offset = 37 * PAGE },
		{ .gpa = gr_gpa(3u * PLUG_GPA), .bytes = 64 * PAGE, .block_offset = 300 * PAGE },
	};

	machine_create(&m);
	ASSERT_EQ(gr_ram_block_add(m.ram, &desc, &dimm, NULL), 0);
	for (unsigned int i = 0; i < 3; i++) {
		parts[i].block = dimm;
		ASSERT_EQ(gr_ram_region_add(m.ram, &parts[i], NULL), 0);
	}
	track(&m);
	copier_create(&k, &m, dimm, GR_DIRTY_START_FULL);
	round_of(&k);
	for (unsigned int i = 0; i < 3; i++) {
		uint32_t pages = (uint32_t)(parts[i].bytes / PAGE);

		kvm_guest_store(&m.guest, (uint32_t)parts[i].gpa.v + (pages - 1) * PAGE, 40 + i);
		ASSERT_GE(round_of(&k), 1u);
		assert_up_to_date(&k);
		kvm_guest_fill(&m.guest, (uint32_t)parts[i].gpa.v, 5 * PAGE, pages / 5, 50 + i);
		ASSERT_LE(round_of(&k), (uint64_t)pages / 5 + 1);
		assert_up_to_date(&k);
	}
	copier_destroy(&k);
	machine_destroy(&m);
}

TEST(a_block_mapped_twice_is_tracked_through_both)
{
	struct machine m;
	struct copier k;
	struct gr_ram_region second;

	machine_create(&m);
	second = (struct gr_ram_region){ .gpa = gr_gpa(PLUG_GPA),
					 .bytes = 100 * PAGE,
					 .block = m.block,
					 .block_offset = 64 * PAGE };
	ASSERT_EQ(gr_ram_region_add(m.ram, &second, NULL), 0);
	track(&m);
	copier_create(&k, &m, m.block, GR_DIRTY_START_FULL);
	round_of(&k);
	for (uint32_t n = 0; n < 3; n++) {
		kvm_guest_fill(&m.guest, 70 * PAGE, PAGE, 20, 100 + n);
		round_of(&k);
		assert_up_to_date(&k);
		kvm_guest_fill(&m.guest, PLUG_GPA + 6 * PAGE, PAGE, 20, 200 + n);
		round_of(&k);
		assert_up_to_date(&k);
	}
	ASSERT_LE(round_of(&k), 1u);
	copier_destroy(&k);
	machine_destroy(&m);
}

TEST(the_guest_cannot_write_a_read_only_region)
{
	struct machine m;
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "rom",
					  .used_bytes = 16 * PAGE,
					  .flags = GR_RAM_READONLY,
					  .mapped = true,
					  .gpa = gr_gpa(PLUG_GPA) };
	struct gr_ram_block *rom;

	machine_create(&m);
	track(&m);
	ASSERT_EQ(gr_ram_block_add(m.ram, &desc, &rom, NULL), 0);
	ASSERT_EQ(kvm_guest_store(&m.guest, PLUG_GPA + 8, 1), (uint32_t)KVM_EXIT_MMIO);
	ASSERT_EQ(rom->host[8], 0);
	ASSERT_EQ(gr_track_sync(m.track, NULL), 0);
	machine_destroy(&m);
}

TEST(a_region_that_kvm_refuses_is_not_mapped)
{
	struct machine m;
	struct gr_error err;
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "odd",
					  .used_bytes = PAGE,
					  .mapped = true,
					  .gpa = gr_gpa(PLUG_GPA) };

	machine_create(&m);
	m.kvm->slots_max = 1;
	ASSERT_EQ(gr_ram_block_add(m.ram, &desc, NULL, &err), -ENOSPC);
	ASSERT_HAS(err.msg, "no memory slot left");
	m.kvm->slots_max = 2;
	ASSERT_EQ(gr_ram_block_add(m.ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(kvm_guest_store(&m.guest, PLUG_GPA, 77), (uint32_t)KVM_EXIT_HLT);
	/* A number that was given back is used again. */
	ASSERT_EQ(gr_ram_block_del_by_id(m.ram, "odd", NULL), 0);
	ASSERT_EQ(gr_ram_block_add(m.ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(kvm_guest_store(&m.guest, PLUG_GPA, 77), (uint32_t)KVM_EXIT_HLT);
	machine_destroy(&m);
}

/* Its last slot has the highest number that the kernel takes, and the guest's stores there are seen. */
TEST(slots_go_up_to_the_limit_of_the_kernel)
{
	struct machine m;
	struct gr_error err;
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "last",
					  .used_bytes = PAGE,
					  .mapped = true,
					  .gpa = gr_gpa(PLUG_GPA) };
	int offered;
	struct gr_ram_block *block;

	machine_create(&m);
	offered = ioctl(m.guest.vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	ASSERT_EQ(m.kvm->slots_max, (unsigned int)offered);
	ASSERT_NE(offered % 64, 0); /* or there is no number above it to try */
	track(&m);
	/* As if all but the last were taken: thirty thousand changes would take too long. */
	for (unsigned int id = 0; id < m.kvm->slots_max - 1; id++) {
		m.kvm->ids[id / 64] |= UINT64_C(1) << id % 64;
	}
	ASSERT_EQ(gr_ram_block_add(m.ram, &desc, &block, NULL), 0);
	ASSERT_EQ(gr_track_sync(m.track, NULL), 0);
	ASSERT_EQ(kvm_guest_store(&m.guest, PLUG_GPA, 77), (uint32_t)KVM_EXIT_HLT);
	ASSERT_EQ(block->host[0], 77);
	ASSERT_EQ(gr_track_sync(m.track, NULL), 0);
	desc.id = "more";
	desc.gpa.v += 16 * PAGE;
	ASSERT_EQ(gr_ram_block_add(m.ram, &desc, NULL, &err), -ENOSPC);
	ASSERT_HAS(err.msg, "no memory slot left");
	/* It is the kernel's limit, not a lower one of ours. */
	m.kvm->slots_max++;
	ASSERT_EQ(gr_ram_block_add(m.ram, &desc, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "KVM refuses memory slot");
	m.kvm->slots_max--;
	machine_destroy(&m);
}

TEST(smaller_pages_than_kvms_are_refused_with_the_reason)
{
	struct kvm_guest g;
	struct gr_ram_params params = { .size = sizeof(params), .page_bytes = 1024 };
	struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "small", .used_bytes = 8192 };
	struct gr_ram_region region = { .gpa = gr_gpa(1024), .bytes = 4096 };
	struct gr_kvm_memory *kvm;
	struct gr_ram *ram;
	struct gr_error err;

	kvm_guest_create(&g);
	ASSERT_EQ(gr_ram_create(&params, &ram, NULL), 0);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, &region.block, NULL), 0);
	ASSERT_EQ(gr_kvm_memory_create(ram, g.vm_fd, NULL, NULL, NULL, &kvm, NULL), 0);
	ASSERT_EQ(gr_ram_region_add(ram, &region, &err), -EINVAL);
	ASSERT_HAS(err.msg, "whole pages of 4096");
	gr_kvm_memory_free(kvm);
	gr_ram_free(ram);
	kvm_guest_destroy(&g);
}

TEST(tracking_can_stop_and_start_again)
{
	struct machine m;
	struct copier k;

	machine_create(&m);
	for (uint32_t n = 0; n < 3; n++) {
		track(&m);
		copier_create(&k, &m, m.block, GR_DIRTY_START_FULL);
		round_of(&k);
		kvm_guest_fill(&m.guest, PAGE, PAGE, 77, n);
		ASSERT_GE(round_of(&k), 77u);
		assert_up_to_date(&k);
		gr_track_stop(m.track);
		kvm_guest_fill(&m.guest, PAGE, PAGE, 77, 50 + n);
		ASSERT_EQ(round_of(&k), 0u); /* nobody looks */
		copier_destroy(&k);
	}
	machine_destroy(&m);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* The guest writes all the time; slots come and go; two consumers copy at their own pace. */
static void running_guest(enum gr_kvm_log_mode mode)
{
	struct machine m;
	struct copier a, b;
	double end = now() + test_seconds(1.0);
	uint64_t rounds = 0, plugs = 0;

	machine_create(&m);
	choose(&m, mode);
	kvm_guest_spin(&m.guest, 0, 256 * PAGE);
	track(&m);
	copier_create(&a, &m, m.block, GR_DIRTY_START_FULL);
	copier_create(&b, &m, m.block, GR_DIRTY_START_FULL);
	while (now() < end || rounds < 3) {
		begin(&a);
		begin(&b);
		copy(&a);
		plug(&m, "dimm", PLUG_GPA, 64);
		copy(&b);
		ASSERT_EQ(gr_dirty_epoch_commit(a.c), 0);
		ASSERT_EQ(rounds % 2 ? gr_dirty_epoch_abort(b.c) : gr_dirty_epoch_commit(b.c), 0);
		ASSERT_EQ(gr_ram_block_del_by_id(m.ram, "dimm", NULL), 0);
		plugs++;
		rounds++;
	}
	ASSERT_GT(kvm_guest_halt(&m.guest), 0u);
	round_of(&a);
	round_of(&b);
	assert_up_to_date(&a);
	assert_up_to_date(&b);
	test_diag("%" PRIu64 " rounds", rounds);
	copier_destroy(&b);
	copier_destroy(&a);
	machine_destroy(&m);
}

TEST(a_running_guest_loses_no_page_with_manual_protect)
{
	running_guest(GR_KVM_LOG_MANUAL);
}

TEST(a_running_guest_loses_no_page_without_manual_protect)
{
	running_guest(GR_KVM_LOG_PLAIN);
}

#ifndef KVM_RING
/* It protects nothing when it starts: what was written before it was fetched is reported with all. */
TEST(a_log_that_begins_set_reports_all_pages_once_and_then_those_that_are_written)
{
	struct machine m;
	struct copier k;

	machine_create(&m);
	choose(&m, GR_KVM_LOG_INITIALLY_SET);
	copier_create(&k, &m, m.block, GR_DIRTY_START_CLEAN);
	track(&m);
	kvm_guest_fill(&m.guest, 8, PAGE, 20, 7);
	ASSERT_GE(round_of(&k), (uint64_t)RAM_PAGES);
	assert_up_to_date(&k);
	ASSERT_LE(round_of(&k), 1u); /* the code's */
	copier_destroy(&k);
	machine_destroy(&m);
	scripted_writes(GR_KVM_LOG_INITIALLY_SET);
	two_consumers(GR_KVM_LOG_INITIALLY_SET);
	running_guest(GR_KVM_LOG_INITIALLY_SET);
}
#endif

/* The region that a running guest writes goes: what it wrote until then must be seen. */
TEST(a_slot_that_goes_under_a_running_guest_loses_no_page)
{
	struct machine m;
	struct copier k;
	struct gr_ram_block *dimm;
	struct gr_ram_region region;
	double end = now() + test_seconds(1.0);
	uint64_t turns = 0;

	machine_create(&m);
	dimm = plug(&m, "dimm", PLUG_GPA, 128);
	region = (struct gr_ram_region){ .gpa = gr_gpa(PLUG_GPA),
					 .bytes = 128 * PAGE,
					 .block = dimm };
	track(&m);
	copier_create(&k, &m, dimm, GR_DIRTY_START_FULL);
	kvm_guest_spin(&m.guest, PLUG_GPA, 128 * PAGE);
	while (now() < end || turns < 3) {
		uint64_t seen = 0;

		while (seen == 0) { /* it writes */
			seen = round_of(&k);
		}
		ASSERT_EQ(gr_ram_region_del(m.ram, region.gpa, NULL), 0);
		round_of(&k);
		assert_up_to_date(&k);
		ASSERT_EQ(gr_ram_region_add(m.ram, &region, NULL), 0);
		turns++;
	}
	kvm_guest_halt(&m.guest);
	round_of(&k);
	assert_up_to_date(&k);
	test_diag("%" PRIu64 " turns", turns);
	copier_destroy(&k);
	machine_destroy(&m);
}

TEST_MAIN()

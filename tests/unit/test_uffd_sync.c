/* SPDX-License-Identifier: MIT */
/*
 * uffd-sync, page by page: what it reports and what not, that a mark comes before its store, and
 * that nobody is left asleep. On both kinds of memory.
 */
#include "base/uapi.h"
#include "concurrent.h"
#include "smaps.h"
#include "track/uffd_server.h"
#include "track/uffd_wp.h"
#include "uffd_rig.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/ram_change.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 1024 };

static void (*hook)(const char *place); /* (a) */

void gr_test_hook(const char *place);
void gr_test_hook(const char *place)
{
	void (*fn)(const char *) = __atomic_load_n(&hook, __ATOMIC_ACQUIRE);

	if (fn) {
		fn(place);
	}
}

static struct tracked make_rig(enum gr_ram_backing backing)
{
	return make_tracked(GR_TRACKER_UFFD_SYNC, backing, PAGES);
}

static void start(struct gr_track *track)
{
	start_for(track, GR_WRITERS_STORES);
}

static volatile uint8_t *at(struct tracked *r, unsigned int page)
{
	return page_of(r->block, page);
}

/* Every test below runs on both kinds of memory. */
ON_BOTH(a_store_is_reported_once_and_after_a_rearm_again)
{
	struct tracked r = make_rig(backing);

	*at(&r, 5) = 1; /* before: not ours to know */
	start(r.track);
	look(&r);
	*at(&r, 5) = 2;
	EXPECT(&r, 5);
	EXPECT_NOTHING(&r);
	*at(&r, 5) = 3;
	*at(&r, 5) = 4;
	*at(&r, PAGES - 1) = 1;
	EXPECT(&r, 5, PAGES - 1);
	ASSERT_EQ(*at(&r, 5), 4);
	free_tracked(&r);
}

ON_BOTH(a_hole_is_reported_when_written_not_when_read)
{
	struct tracked r = make_rig(backing);

	start(r.track);
	look(&r);
	(void)*at(&r, 7);
	EXPECT_NOTHING(&r);
	*at(&r, 0) = 1;
	*at(&r, 7) = 1;
	*at(&r, 9) = 1;
	EXPECT(&r, 0, 7, 9);
	EXPECT_NOTHING(&r);
	*at(&r, 9) = 2;
	EXPECT(&r, 9);
	free_tracked(&r);
}

/* Or it is refused to track who makes such calls: see below. */
ON_BOTH(a_system_call_that_writes_guest_memory_waits_and_is_reported)
{
	struct tracked r = make_rig(backing);
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
	struct gr_error err;

	if (gr_track_start(r.track, GR_WRITERS_MAPPING, &err) < 0) {
		SKIP("%s", err.msg);
	}
	look(&r);
	*at(&r, 20) = 1; /* one page there, one hole */
	EXPECT(&r, 20);
	ASSERT_EQ(read(zero, r.block->host + 20 * PAGE + 100, PAGE), (ssize_t)PAGE);
	EXPECT(&r, 20, 21);
	ASSERT_EQ(write(zero, r.block->host + 20 * PAGE, PAGE), (ssize_t)PAGE); /* reads it */
	EXPECT_NOTHING(&r);
	close(zero);
	free_tracked(&r);
}

/* ---- the order of a fault -------------------------------------------------------------- */

static struct tracked *hooked;
static uint32_t store_done;  /* (a) */
static uint32_t found_dirty; /* (a) */

static void when_opened(const char *place)
{
	uint64_t pages = 0;

	if (strcmp(place, "uffd_sync fault: opened") != 0 || LOAD(&found_dirty) != 0) {
		return;
	}
	/* Writers stop only here, perhaps: their last store is done. Then comes a last harvest. */
	while (!__atomic_load_n(&store_done, __ATOMIC_ACQUIRE)) {
		sched_yield();
	}
	ASSERT_EQ(gr_dirty_epoch_begin(hooked->consumer, &pages, NULL), 0);
	ASSERT_EQ(gr_dirty_epoch_commit(hooked->consumer), 0);
	__atomic_store_n(&found_dirty, pages == 1 ? 1 : 2, __ATOMIC_RELEASE);
}

/* Nothing is fetched later: a store that was made is marked, whoever asks. */
ON_BOTH(a_page_is_marked_before_its_store_is_made)
{
	struct tracked r = make_rig(backing);

	start(r.track);
	look(&r);
	hooked = &r;
	__atomic_store_n(&hook, when_opened, __ATOMIC_RELEASE);
	*at(&r, 3) = 1;
	__atomic_store_n(&store_done, 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&found_dirty, __ATOMIC_ACQUIRE) == 0) {
		sched_yield();
	}
	__atomic_store_n(&hook, NULL, __ATOMIC_RELEASE);
	ASSERT_EQ(LOAD(&found_dirty), 1u);
	free_tracked(&r);
}

/* ---- blocks that change ---------------------------------------------------------------- */

ON_BOTH(a_discarded_page_is_protected_again_before_it_is_read)
{
	struct tracked r = make_rig(backing);

	start(r.track);
	look(&r);
	*at(&r, 8) = 1;
	*at(&r, 9) = 1;
	EXPECT(&r, 8, 9);
	/* The kernel forgets the protection together with the page. */
	ASSERT_EQ(gr_ram_discard(r.block, 9 * PAGE, 2 * PAGE, NULL), 0);
	EXPECT(&r, 9, 10);
	EXPECT_NOTHING(&r);
	*at(&r, 9) = 2;
	*at(&r, 10) = 2;
	EXPECT(&r, 9, 10);
	ASSERT_EQ(gr_ram_remap(r.block, 8 * PAGE, PAGE, NULL), 0);
	EXPECT(&r, 8);
	*at(&r, 8) = 2;
	EXPECT(&r, 8);
	free_tracked(&r);
}

ON_BOTH(blocks_come_go_and_grow_while_they_are_tracked)
{
	struct tracked r = make_rig(backing);
	struct gr_ram_block *more;

	start(r.track);
	look(&r);
	more = plug(r.ram, (struct gr_ram_block_desc){ .id = "more",
						       .used_bytes = 64 * PAGE,
						       .max_bytes = 128 * PAGE,
						       .backing = backing });
	look(&r); /* begins dirty */
	ASSERT_EQ(r.dirty, 64u);
	((volatile uint8_t *)more->host)[9 * PAGE] = 1;
	look(&r);
	ASSERT_EQ(r.dirty, 1u);
	ASSERT_EQ(gr_ram_block_resize(more, 128 * PAGE, NULL), 0);
	look(&r); /* what grew is dirty */
	ASSERT_EQ(r.dirty, 64u);
	((volatile uint8_t *)more->host)[127 * PAGE] = 1;
	look(&r);
	ASSERT_EQ(r.dirty, 1u);
	ASSERT_EQ(gr_ram_block_del(more, NULL), 0);
	*at(&r, 1) = 1;
	EXPECT(&r, 1);
	free_tracked(&r);
}

struct writer {
	struct gr_ram_block *block;
	uint64_t stores; /* (a) */
	uint32_t stop;	 /* (a) */
};

static void *write_on(void *opaque)
{
	struct writer *w = opaque;

	for (uint64_t i = 0; !LOAD(&w->stop); i++) {
		volatile uint64_t *word =
			(volatile uint64_t *)(void *)(w->block->host + i % PAGES * PAGE);

		__atomic_store_n(word, i, __ATOMIC_RELAXED);
		ADD(&w->stores, 1);
	}
	return NULL;
}

static void wait_for_more(const uint64_t *counter, uint64_t more)
{
	uint64_t end = LOAD(counter) + more, deadline = now_ns() + UINT64_C(30000000000);

	while (LOAD(counter) < end) {
		if (now_ns() > deadline) {
			FAIL("a writer was left asleep");
		}
		sched_yield();
	}
}

ON_BOTH(writers_that_wait_go_on_when_tracking_stops)
{
	struct tracked r = make_rig(backing);
	struct writer w[2] = { { .block = r.block }, { .block = r.block } };
	pthread_t t[2];

	for (unsigned int i = 0; i < 2; i++) {
		t[i] = spawn(write_on, &w[i]);
	}
	for (unsigned int n = 0; n < 30; n++) {
		start(r.track);
		wait_for_more(&w[n % 2].stores, 20);
		gr_track_stop(r.track);
	}
	wait_for_more(&w[0].stores, 2 * PAGES);
	wait_for_more(&w[1].stores, 2 * PAGES);
	for (unsigned int i = 0; i < 2; i++) {
		STORE(&w[i].stop, 1);
		ASSERT_EQ(pthread_join(t[i], NULL), 0);
	}
	free_tracked(&r);
}

/* In a read-side section of theirs; the fault is served without a grace period. */
ON_BOTH(the_librarys_own_writers_wait_like_others)
{
	struct tracked r = make_rig(backing);
	struct gr_ram_iov iov[1];
	unsigned int entries;
	struct gr_error err;
	uint64_t value = 7, expected = 0;
	bool swapped;

	if (gr_track_start(r.track, GR_WRITERS_STORES | GR_WRITERS_MARKED, &err) < 0) {
		SKIP("%s", err.msg);
	}
	look(&r);
	ASSERT_EQ(gr_ram_write(r.ram, gr_gpa(3 * PAGE - 4), &value, sizeof(value), NULL), 0);
	ASSERT_EQ(gr_ram_fill(r.ram, gr_gpa(5 * PAGE), 1, PAGE, NULL), 0);
	ASSERT_EQ(gr_ram_cmpxchg(r.ram, gr_gpa(7 * PAGE), &expected, &value, 8, &swapped, NULL), 0);
	ASSERT(swapped);
	ASSERT_EQ(gr_ram_iov_get(r.ram, gr_gpa(9 * PAGE), 8, true, iov, 1, &entries, NULL), 0);
	memcpy(iov[0].iov.iov_base, &value, 8);
	gr_ram_iov_put(iov, 1, 8);
	EXPECT(&r, 2, 3, 5, 7, 9);
	free_tracked(&r);
}

/* ---- memory of all kinds --------------------------------------------------------------- */

TEST(a_store_to_a_huge_page_reports_one_page)
{
	struct tracked r = make_rig(GR_RAM_ANONYMOUS);

	make_huge(&r);
	start(r.track);
	look(&r);
	*at(&r, 600) = 2;
	EXPECT(&r, 600);
	free_tracked(&r);
}

TEST(pages_of_hugetlb_are_tracked_whole)
{
	struct tracked r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_block *huge = plug_huge(r.ram);

	start(r.track);
	expect_huge_pages_whole(&r, huge);
	free_tracked(&r);
}

/* Whether the kernel may merge pages there. */
static bool mergeable(const void *host)
{
	return strstr(smaps(host, "VmFlags:"), " mg") != NULL;
}

/* A page that was merged takes stores without a fault. */
TEST(pages_are_not_merged_while_they_are_tracked)
{
	struct tracked r = make_rig(GR_RAM_ANONYMOUS);
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "merge",
					  .used_bytes = 16 * PAGE,
					  .backing = GR_RAM_ANONYMOUS,
					  .flags = GR_RAM_MERGE,
					  .fd = -1 };
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(r.ram, &desc, &block, &err) < 0) {
		SKIP("%s", err.msg);
	}
	ASSERT(mergeable(block->host));
	start(r.track);
	ASSERT(!mergeable(block->host));
	/* Locked, as this is, it can only be mapped anew, and gets the block's wishes again. */
	if (mlock(block->host + 3 * PAGE, PAGE) == 0) {
		ASSERT_EQ(gr_ram_remap(block, 3 * PAGE, PAGE, NULL), 0);
		ASSERT(!mergeable(block->host + 3 * PAGE));
	}
	gr_track_stop(r.track);
	ASSERT(mergeable(block->host + 3 * PAGE));
	ASSERT(mergeable(block->host));
	free_tracked(&r);
}

TEST(a_file_on_a_disk_is_refused_by_name)
{
	struct tracked r = make_rig(GR_RAM_MEMFD);
	char path[] = "/var/tmp/guestram-test-XXXXXX";
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "theirs",
					  .used_bytes = 16 * PAGE,
					  .backing = GR_RAM_CALLER,
					  .fd = mkostemp(path, O_CLOEXEC),
					  .release = no_release };
	struct gr_error err;

	ASSERT_GE(desc.fd, 0);
	unlink(path);
	ASSERT_EQ(ftruncate(desc.fd, 16 * PAGE), 0);
	desc.host = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, desc.fd, 0);
	ASSERT(desc.host != MAP_FAILED);
	start(r.track);
	if (gr_ram_block_add(r.ram, &desc, NULL, &err) == 0) {
		SKIP("/var/tmp is in memory");
	}
	ASSERT_HAS(err.msg, "block 'theirs' cannot be tracked by uffd-sync");
	ASSERT_HAS(err.msg, "a file on a disk");
	*at(&r, 1) = 1;
	look(&r);
	ASSERT(r.page[1]);
	free_tracked(&r);
}

ON_BOTH(memory_in_the_hands_of_another_userfaultfd_is_refused)
{
	struct tracked r = make_rig(backing);
	struct uffdio_register reg = { .range = { (uintptr_t)r.block->host, PAGES * PAGE },
				       .mode = UFFDIO_REGISTER_MODE_WP };
	int other = gr_uffd_open(
		GR_UFFD_FEATURE_PAGEFAULT_FLAG_WP | GR_UFFD_FEATURE_WP_HUGETLBFS_SHMEM, NULL);
	struct gr_error err;

	ASSERT_EQ(ioctl(other, UFFDIO_REGISTER, &reg), 0);
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_STORES, &err), -EBUSY);
	ASSERT_HAS(err.msg, "block 'ram' cannot be tracked by uffd-sync");
	ASSERT_HAS(err.msg, "another userfaultfd has this memory");
	close(other);
	start(r.track);
	look(&r);
	*at(&r, 3) = 6;
	EXPECT(&r, 3);
	free_tracked(&r);
}

/* ---- who may --------------------------------------------------------------------------- */

static void drop_privileges(void)
{
	if (geteuid() == 0) {
		ASSERT_EQ(setgid(65534) | setuid(65534), 0);
		ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
	}
}

ON_BOTH(without_privilege_stores_are_tracked_and_system_calls_refused)
{
	static const unsigned int refused[] = { GR_WRITERS_MAPPING, GR_WRITERS_KVM_VCPUS,
						GR_WRITERS_MARKED };
	struct tracked r;
	struct gr_error err;
	uint64_t value = 7;
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);

	drop_privileges();
	r = make_rig(backing);
	if (gr_track_start(r.track, GR_WRITERS_MAPPING, &err) == 0) {
		SKIP("userfaultfd may be used by everybody here");
	}
	for (unsigned int i = 0; i < 3; i++) {
		ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_STORES | refused[i], &err), -EINVAL);
		ASSERT_HAS(err.msg, "cannot go on under uffd-sync");
		ASSERT_HAS(err.msg, "EFAULT");
	}
	start(r.track);
	look(&r);
	*at(&r, 3) = 1;
	ASSERT_EQ(gr_ram_write(r.ram, gr_gpa(4 * PAGE), &value, sizeof(value), NULL), 0);
	/* What the refusal is for. */
	ASSERT(read(zero, r.block->host + 5 * PAGE, PAGE) < 0 && errno == EFAULT);
	EXPECT(&r, 3, 4);
	close(zero);
	free_tracked(&r);
}

/* ---- fork ------------------------------------------------------------------------------ */

ON_BOTH(a_child_stores_freely_and_takes_nothing_from_its_parent)
{
	struct tracked r = make_rig(backing);
	pid_t child;
	int status;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	start(r.track);
	look(&r);
	child = fork();
	ASSERT_GE(child, 0);
	if (child == 0) {
		struct gr_error err;

		*at(&r, 1) = 1;
		if (gr_track_rearm(r.track, r.block, 0, PAGE, NULL) != 0) {
			_exit(2);
		}
		gr_track_stop(r.track);
		/* Its own thread would take its parent's faults. */
		if (gr_track_start(r.track, GR_WRITERS_STORES, &err) != -ENOTSUP) {
			_exit(3);
		}
		gr_track_free(r.track);
		_exit(0);
	}
	ASSERT_EQ(waitpid(child, &status, 0), child);
	ASSERT_EQ(status, 0);
	*at(&r, 1) = 2;
	*at(&r, 2) = 2;
	EXPECT(&r, 1, 2);
	free_tracked(&r);
}

/* ---- the server by itself -------------------------------------------------------------- */

static void *store_once(void *opaque)
{
	struct writer *w = opaque;

	__atomic_store_n(w->block->host + 5 * PAGE, 1, __ATOMIC_RELAXED);
	ADD(&w->stores, 1);
	return NULL;
}

static void serve_nothing(void *opaque, uint64_t address)
{
	(void)opaque;
	(void)address;
}

/* Unregistering takes the protection away; who sleeps for it sleeps on. */
ON_BOTH(who_waits_for_a_range_goes_on_when_it_is_disarmed)
{
	struct tracked r = make_rig(backing);
	struct gr_uffd_range range = gr_uffd_range_of(r.block, r.block->max_bytes);
	struct writer w = { .block = r.block };
	struct pollfd p = { .events = POLLIN };
	struct gr_uffd_server s;
	pthread_t t;

	ASSERT_EQ(gr_uffd_server_open(&s, serve_nothing, NULL, NULL), 0);
	ASSERT_EQ(gr_uffd_arm(&s, &range, NULL), 0);
	p.fd = s.uffd;
	t = spawn(store_once, &w);
	ASSERT_EQ(poll(&p, 1, 30000), 1); /* it sleeps */
	ASSERT_EQ(gr_uffd_server_serve(&s), 1u);
	gr_uffd_disarm(&s, &range);
	wait_for_more(&w.stores, 1 - LOAD(&w.stores));
	ASSERT_EQ(pthread_join(t, NULL), 0);
	gr_uffd_server_close(&s);
	free_tracked(&r);
}

/* ---- kernels that protect only what is there ------------------------------------------- */

static void open_fault(void *opaque, uint64_t address)
{
	struct gr_uffd_server *s = opaque;

	gr_uffd_open_range(s, address / PAGE * PAGE, PAGE);
}

TEST(pages_that_are_not_there_are_made_to_be_where_only_those_can_be_protected)
{
	struct tracked r = make_rig(GR_RAM_ANONYMOUS);
	struct gr_uffd_server s = { 0 };
	struct gr_uffd_range range = gr_uffd_range_of(r.block, r.block->max_bytes);
	uint64_t entry = 0;
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	ASSERT_EQ(gr_uffd_server_open(&s, open_fault, &s, NULL), 0);
	/* As Linux 6.3 would. */
	close(s.uffd);
	s.uffd = gr_uffd_open(
		GR_UFFD_FEATURE_PAGEFAULT_FLAG_WP | GR_UFFD_FEATURE_WP_HUGETLBFS_SHMEM, NULL);
	ASSERT_GE(s.uffd, 0);
	s.unpopulated = false;
	ASSERT_EQ(gr_uffd_server_run(&s, NULL), 0);
	ASSERT_EQ(gr_uffd_arm(&s, &range, NULL), 0);
	ASSERT_GE(pagemap, 0);
	ASSERT_EQ(pread(pagemap, &entry, 8, (off_t)((uintptr_t)at(&r, 9) / PAGE * 8)), (ssize_t)8);
	ASSERT_EQ(entry >> 57 & 1, 1u); /* write-protected by userfaultfd */
	*at(&r, 9) = 1;
	ASSERT_EQ(*at(&r, 9), 1);
	gr_uffd_disarm(&s, &range);
	gr_uffd_server_stop(&s);
	gr_uffd_server_close(&s);
	close(pagemap);
	free_tracked(&r);
}

TEST_MAIN()

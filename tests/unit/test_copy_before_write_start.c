/* SPDX-License-Identifier: MIT */
/*
 * Copy before write, from its start to its end: what comes in between without a store (discards,
 * broken memory, blocks that come and go), handlers on whatever thread, and who is refused.
 */
#include "cbw_rig.h"
#include <guestram/ram_change.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* ---- memory that changes without a store ----------------------------------------------- */

ON_BOTH(memory_that_is_given_back_is_shown_before)
{
	struct rig *r = make_rig(backing);
	struct gr_cbw_piece piece;
	struct gr_error err;

	start(r);
	ASSERT_EQ(gr_ram_discard(r->block, 10 * PAGE, 3 * PAGE, NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 3u);
	ASSERT_EQ(*at(r, 11), 0);
	ASSERT_EQ(gr_ram_depopulate(r->block, 20 * PAGE, PAGE, NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 4u);
	*at(r, 11) = 0xee;
	/* In the owner's hands, or kept by it: not now. */
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 1);
	ASSERT_EQ(piece.offset, 0u);
	ASSERT_EQ(gr_ram_discard(r->block, 0, PAGE, &err), -EBUSY);
	ASSERT_HAS(err.msg, "block 'ram': a snapshot has not saved the page at 0 yet");
	show(r, &piece);
	gr_cbw_release(r->cbw, &piece);
	ASSERT_EQ(gr_ram_discard(r->block, 0, PAGE, &err), 0);
	STORE(&r->verdict, GR_CBW_KEEP);
	ASSERT_EQ(gr_ram_discard(r->block, 30 * PAGE, PAGE, &err), -EBUSY);
	ASSERT_EQ(*at(r, 30), content(30));
	gr_cbw_release(r->cbw, &r->last);
	ASSERT_EQ(gr_ram_discard(r->block, 30 * PAGE, PAGE, &err), 0);
	walk(r, 1 << 20);
	ASSERT_EQ(LOAD(&r->asked), 5u);
	expect_whole(r);
	ASSERT_EQ(*at(r, 30), 0);
	free_rig(r);
}

/* Whoever reads broken memory is killed; so the owner does not get to. */
ON_BOTH(broken_memory_that_is_replaced_is_told_without_content)
{
	struct rig *r = make_rig(backing);
	struct gr_cbw_stats stats;
	struct gr_cbw_piece piece;
	struct gr_error err;

	start(r);
	*at(r, 12) = 0xee; /* saved before: nothing is lost */
	wait_until_asked(r, 1);
	ASSERT(r->last.host == r->block->host + 12 * PAGE);
	ASSERT_EQ(gr_ram_remap(r->block, 12 * PAGE, 2 * PAGE, NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 2u);
	ASSERT_EQ(r->last.offset, (uint64_t)13 * PAGE);
	ASSERT_EQ(r->last.bytes, (uint64_t)PAGE);
	ASSERT(!r->last.host);
	*at(r, 13) = 0xee; /* new memory, which nobody has to be asked about */
	ASSERT_EQ(LOAD(&r->asked), 2u);
	/* In the owner's hands: it may be reading. */
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 1);
	ASSERT_EQ(gr_ram_remap(r->block, 0, PAGE, &err), -EBUSY);
	show(r, &piece);
	gr_cbw_release(r->cbw, &piece);
	/* Kept: not now. */
	STORE(&r->verdict, GR_CBW_KEEP);
	ASSERT_EQ(gr_ram_remap(r->block, 30 * PAGE, PAGE, &err), -EBUSY);
	ASSERT_EQ(*at(r, 30), content(30));
	ASSERT(!r->last.host);
	gr_cbw_release(r->cbw, &r->last);
	ASSERT_EQ(gr_ram_remap(r->block, 30 * PAGE, PAGE, &err), 0);
	walk(r, 1 << 20);
	gr_cbw_stats(r->cbw, &stats);
	ASSERT_EQ(stats.lost_bytes, (uint64_t)2 * PAGE);
	r->first_byte[13] = content(13);
	r->first_byte[30] = content(30);
	expect_whole(r);
	free_rig(r);
}

/* For real, where the kernel may be told that a page failed (GR_TEST_HWPOISON=1). */
TEST(a_page_that_the_kernel_gave_up_does_not_kill_the_owner)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);

	if (!getenv("GR_TEST_HWPOISON")) {
		SKIP("takes a page from the machine until it boots: GR_TEST_HWPOISON=1");
	}
	start(r);
	if (madvise(r->block->host + 9 * PAGE, PAGE, MADV_HWPOISON) < 0) {
		SKIP("MADV_HWPOISON: %s", strerror(errno));
	}
	ASSERT_EQ(gr_ram_remap(r->block, 9 * PAGE, PAGE, NULL), 0);
	ASSERT(!r->last.host);
	r->first_byte[9] = content(9);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

/* ---- in the middle of a start, and of what has the lock -------------------------------- */

static void (*hook)(const char *place); /* (a) */
static struct rig *hooked;
static uint32_t hits; /* (a) */

void gr_test_hook(const char *place);
void gr_test_hook(const char *place)
{
	void (*fn)(const char *) = __atomic_load_n(&hook, __ATOMIC_ACQUIRE);

	if (fn) {
		fn(place);
	}
}

static void discard_when_armed(const char *place)
{
	if (strcmp(place, "cbw start: armed") == 0) {
		ASSERT_EQ(gr_ram_discard(hooked->block, 10 * PAGE, PAGE, NULL), 0);
		ADD(&hits, 1);
	}
}

ON_BOTH(what_is_given_back_while_it_starts_is_shown_before)
{
	struct rig *r = make_rig(backing);

	hooked = r;
	__atomic_store_n(&hook, discard_when_armed, __ATOMIC_RELEASE);
	start(r);
	__atomic_store_n(&hook, NULL, __ATOMIC_RELEASE);
	ASSERT_EQ(LOAD(&hits), 1u);
	ASSERT_EQ(LOAD(&r->asked), 1u);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

static __thread bool has_lock;

/* A handler of the application's. */
static void store_to_guest(int signal)
{
	(void)signal;
	if (has_lock) {
		FAIL("a handler runs on a thread that holds what its fault needs");
	}
	*at(hooked, 40 + ADD(&hits, 1)) = 0xee;
}

static void interrupt_who_has_the_lock(const char *place)
{
	if (strcmp(place, "uffd lock: held") == 0 && LOAD(&hits) < 5) {
		has_lock = true;
		ASSERT_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
		has_lock = false;
	}
}

static void store_when_armed(const char *place)
{
	if (strcmp(place, "cbw start: armed") == 0) {
		*at(hooked, 50) = 0xee;
	}
}

ON_BOTH(a_handler_may_store_to_guest_memory_whatever_it_interrupts)
{
	struct rig *r = make_rig(backing);
	struct sigaction action = { .sa_handler = store_to_guest };
	struct gr_cbw_piece piece;

	ASSERT_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	hooked = r;
	/* Before the start returns: there is somebody who serves. */
	__atomic_store_n(&hook, store_when_armed, __ATOMIC_RELEASE);
	start(r);
	ASSERT_EQ(LOAD(&r->asked), 1u);
	__atomic_store_n(&hook, interrupt_who_has_the_lock, __ATOMIC_RELEASE);
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 1);
	ASSERT_EQ(LOAD(&hits), 1u);
	show(r, &piece);
	gr_cbw_release(r->cbw, &piece);
	ASSERT_GE(LOAD(&hits), 2u);
	ASSERT_EQ(gr_ram_discard(r->block, 10 * PAGE, PAGE, NULL), 0);
	ASSERT_GE(LOAD(&hits), 3u);
	__atomic_store_n(&hook, NULL, __ATOMIC_RELEASE);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

ON_BOTH(blocks_that_come_grow_and_go_leave_the_copy_as_it_is)
{
	struct rig *r = make_rig(backing);
	struct gr_ram_block *goes =
		plug(r->ram, (struct gr_ram_block_desc){
				     .id = "goes", .used_bytes = 16 * PAGE, .backing = backing });
	struct gr_ram_block *comes;
	struct gr_cbw_stats stats;
	struct gr_cbw_piece piece;
	unsigned int pages = 0;
	int ret;

	memset(goes->host, 0x55, 16 * PAGE);
	start(r);
	gr_cbw_stats(r->cbw, &stats);
	ASSERT_EQ(stats.bytes, (uint64_t)(PAGES + 16) * PAGE);
	comes = plug(r->ram, (struct gr_ram_block_desc){
				     .id = "comes", .used_bytes = 16 * PAGE, .backing = backing });
	memset(comes->host, 1, 16 * PAGE);
	ASSERT_EQ(gr_ram_block_resize(r->block, 2 * PAGES * PAGE, NULL), 0);
	*at(r, PAGES + 1) = 1;
	ASSERT_EQ(gr_ram_block_del(goes, NULL), 0);
	ASSERT_EQ(LOAD(&r->asked), 0u);
	while ((ret = gr_cbw_next(r->cbw, PAGE, &piece, NULL)) > 0) {
		if (piece.block == goes) {
			uint8_t byte;

			gr_copy_from_guest(&byte, piece.host, 1);
			ASSERT_EQ(byte, 0x55);
			pages++;
		}
		show(r, &piece);
		gr_cbw_release(r->cbw, &piece);
	}
	ASSERT_EQ(ret, 0);
	ASSERT_EQ(pages, 16u);
	expect_whole(r);
	free_rig(r);
}

/* ---- who may, and where ---------------------------------------------------------------- */

ON_BOTH(without_a_thread_the_owner_serves)
{
	struct rig *r = make_rig(backing);
	struct store s = { .r = r, .page = 5 };
	struct pollfd p = { .events = POLLIN };
	struct gr_error err;
	pthread_t t;

	if (try_start(r, GR_WRITERS_STORES, true, &err) < 0) {
		FAIL("%s", err.msg);
	}
	p.fd = gr_cbw_fd(r->cbw);
	ASSERT_EQ(poll(&p, 1, 0), 0);
	ASSERT_EQ(gr_cbw_serve(r->cbw), 0u);
	t = spawn(store, &s);
	ASSERT_EQ(poll(&p, 1, 30000), 1);
	ASSERT_EQ(LOAD(&r->asked), 0u);
	ASSERT_EQ(gr_cbw_serve(r->cbw), 1u);
	ASSERT_EQ(LOAD(&r->asked), 1u);
	join_store(t, &s);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

TEST(only_blocks_that_take_part_in_migrations_are_covered)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_block *apart =
		plug(r->ram, (struct gr_ram_block_desc){ .id = "apart",
							 .used_bytes = 16 * PAGE,
							 .flags = GR_RAM_NO_MIGRATE });

	start(r);
	*(volatile uint8_t *)apart->host = 1;
	ASSERT_EQ(LOAD(&r->asked), 0u);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

TEST(huge_pages_are_shown_whole)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_block *huge = plug_huge(r->ram);
	uint8_t byte;

	memset(huge->host, 0x55, 2 * HUGE_BYTES);
	start(r);
	((volatile uint8_t *)huge->host)[HUGE_BYTES + 5] = 1;
	wait_until_asked(r, 1);
	ASSERT(r->last.block == huge);
	ASSERT_EQ(r->last.offset, HUGE_BYTES);
	ASSERT_EQ(r->last.bytes, HUGE_BYTES);
	((volatile uint8_t *)huge->host)[2 * HUGE_BYTES - 1] = 1;
	ASSERT_EQ(LOAD(&r->asked), 1u);
	gr_copy_from_guest(&byte, huge->host, 1);
	ASSERT_EQ(byte, 0x55);
	walk(r, HUGE_BYTES);
	expect_whole(r);
	free_rig(r);
}

TEST(a_machine_without_memory_is_saved_at_once)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct gr_cbw_piece piece;

	ASSERT(r);
	ASSERT_EQ(gr_ram_create(NULL, &r->ram, NULL), 0);
	start(r);
	ASSERT_EQ(gr_cbw_next(r->cbw, PAGE, &piece, NULL), 0);
	ASSERT_EQ(gr_cbw_end(r->cbw, NULL), 0);
	free_rig(r);
}

ON_BOTH(memory_that_is_tracked_by_userfaultfd_is_refused)
{
	struct rig *r = make_rig(backing);
	struct gr_track *track;
	struct gr_error err;

	ASSERT_EQ(gr_track_create(r->ram, &track, NULL), 0);
	if (gr_track_use(track, GR_TRACKER_UFFD_SYNC, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	ASSERT_EQ(gr_track_start(track, GR_WRITERS_STORES, NULL), 0);
	ASSERT_EQ(try_start(r, GR_WRITERS_STORES, false, &err), -EBUSY);
	ASSERT_HAS(err.msg, "another userfaultfd has this memory");
	gr_track_stop(track);
	start(r);
	walk(r, 1 << 20);
	expect_whole(r);
	gr_track_free(track);
	free_rig(r);
}

ON_BOTH(writers_that_cannot_be_stopped_are_refused)
{
	struct rig *r = make_rig(backing);
	struct gr_error err;

	ASSERT_EQ(try_start(r, GR_WRITERS_OUTSIDE | GR_WRITERS_STORES, false, &err), -EINVAL);
	ASSERT_HAS(err.msg, "another mapping");
	ASSERT_EQ(try_start(r, GR_WRITERS_REPORTING, false, &err), -EINVAL);
	ASSERT_HAS(err.msg, "another process");
	ASSERT_EQ(try_start(r, 1u << 20, false, &err), -EINVAL);
	ASSERT_HAS(err.msg, "unknown writers");
	if (geteuid() == 0) {
		ASSERT_EQ(setgid(65534) | setuid(65534), 0);
		ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
	}
	if (try_start(r, GR_WRITERS_KVM_VCPUS, false, &err) == 0) {
		SKIP("userfaultfd may be used by everybody here");
	}
	ASSERT_HAS(err.msg, "EFAULT");
	ASSERT_EQ(try_start(r, GR_WRITERS_MAPPING, false, &err), -EINVAL);
	ASSERT_EQ(try_start(r, GR_WRITERS_MARKED, false, &err), -EINVAL);
	start(r);
	*at(r, 3) = 0xee;
	ASSERT_EQ(LOAD(&r->asked), 1u);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

/* What is stored through it would change the other without a fault. */
TEST(a_second_mapping_is_refused_from_the_start_to_the_end)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "again",
					  .used_bytes = 8 * PAGE,
					  .backing = GR_RAM_FD,
					  .flags = GR_RAM_NO_MIGRATE,
					  .fd_offset = 4 * PAGE,
					  .fd = r->block->fd };
	int fd = dup(r->block->fd);
	struct gr_ram_block *again;
	struct gr_error err;

	for (unsigned int i = 0; i < 2; i++) {
		ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &again, NULL), 0);
		ASSERT_EQ(try_start(r, GR_WRITERS_STORES, false, &err), -EINVAL);
		ASSERT_HAS(err.msg, "no copy before write: block 'again'");
		ASSERT_HAS(err.msg, "beside 'ram'");
		ASSERT_EQ(gr_ram_block_del(again, NULL), 0);
		desc.backing = GR_RAM_ON_DEMAND; /* its windows would be such mappings */
	}
	start(r);
	for (unsigned int i = 0; i < 2; i++) {
		desc.backing = i == 0 ? GR_RAM_FD : GR_RAM_ON_DEMAND;
		ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &again, &err), -EINVAL);
		ASSERT_HAS(err.msg, "a copy before write goes on: block 'again'");
	}
	/* The copy goes on with a block that was removed. */
	ASSERT_EQ(gr_ram_block_del(r->block, NULL), 0);
	desc.fd = fd;
	ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &again, &err), -EBUSY);
	ASSERT_HAS(err.msg, "a block that was removed");
	walk(r, 1 << 20);
	expect_whole(r);
	ASSERT_EQ(gr_ram_block_add(r->ram, &desc, &again, NULL), 0);
	close(fd);
	free_rig(r);
}

TEST(memory_tables_are_refused_from_the_start_to_the_end)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_ram_table_entry entry[4];
	struct gr_error err;
	unsigned int n;

	ASSERT_EQ(gr_ram_table_get(r->ram, entry, 4, &n, NULL), 0);
	ASSERT_EQ(try_start(r, GR_WRITERS_STORES, false, &err), -EINVAL);
	ASSERT_HAS(err.msg, "no copy before write: ");
	ASSERT_HAS(err.msg, "table");
	gr_ram_table_put(entry, n);
	start(r);
	ASSERT_EQ(gr_ram_table_get(r->ram, entry, 4, &n, NULL), -EBUSY);
	walk(r, 1 << 20);
	expect_whole(r);
	ASSERT_EQ(gr_ram_table_get(r->ram, entry, 4, &n, NULL), 0);
	gr_ram_table_put(entry, n);
	free_rig(r);
}

ON_BOTH(a_child_is_not_stopped_and_stops_nobody)
{
	struct rig *r = make_rig(backing);
	pid_t child;
	int status;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	start(r);
	child = fork();
	ASSERT_GE(child, 0);
	if (child == 0) {
		struct gr_cbw_piece piece;

		if (backing == GR_RAM_ANONYMOUS) {
			*at(r, 1) = 1; /* its own copy */
		}
		if (gr_cbw_next(r->cbw, PAGE, &piece, NULL) != -ECANCELED ||
		    gr_cbw_end(r->cbw, NULL) != -ECANCELED) {
			_exit(1);
		}
		_exit(0);
	}
	ASSERT_EQ(waitpid(child, &status, 0), child);
	ASSERT_EQ(status, 0);
	*at(r, 3) = 0xee;
	ASSERT_EQ(LOAD(&r->asked), 1u);
	walk(r, 1 << 20);
	expect_whole(r);
	free_rig(r);
}

TEST_MAIN()

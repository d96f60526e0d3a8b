/* SPDX-License-Identifier: MIT */
/*
 * What may happen to guest memory after it was chosen to be read into and before the read: a tracker begins to
 * protect it, its file is truncated. In ranges and in packets of further channels.
 */
#include "move.h"
#include "ram/ram.h"
#include <guestram/multifd.h>
#include <guestram/track.h>
#include <sys/mman.h>
#include <sys/prctl.h>

enum { BYTES = 512 * MOVE_PAGE };

static struct rig {
	struct move move;
	struct gr_ram_block *block; /* the destination's */
	struct gr_track *track;
	int fd;
	struct gr_multifd from, to;
	struct gr_channel *further[2];
	void (*happens)(void);
	bool happened; /* (atomic) */
} rig;

void gr_test_hook(const char *place);
void gr_test_hook(const char *place)
{
	bool chosen = strcmp(place, "range: target chosen") == 0 ||
		      strcmp(place, "packet: targets chosen") == 0;

	if (chosen && !__atomic_exchange_n(&rig.happened, true, __ATOMIC_ACQ_REL) && rig.happens) {
		rig.happens();
	}
}

/* All pages are there, so what comes is read where it belongs. */
static void make_rig(bool packets)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "ram",
					  .used_bytes = BYTES,
					  .backing = GR_RAM_FD,
					  .mapped = true };

	rig.move = (struct move){ .from = move_ram(), .to = move_ram() };
	move_fill(move_add(rig.move.from, "ram", BYTES, 0, GR_RAM_MEMFD), 1, 0);
	rig.fd = desc.fd = memfd_create("ram", MFD_CLOEXEC);
	ASSERT_EQ(ftruncate(rig.fd, BYTES), 0);
	ASSERT_EQ(gr_ram_block_add(rig.move.to, &desc, &rig.block, NULL), 0);
	memset(rig.block->host, 0xee, BYTES);
	if (packets) {
		move_channels(rig.further);
		rig.from = (struct gr_multifd){ .channels = &rig.further[0], .count = 1 };
		rig.to = (struct gr_multifd){ .channels = &rig.further[1], .count = 1 };
		rig.move.params.multifd = &rig.from;
		rig.move.to_params.multifd = &rig.to;
	}
}

static void free_rig(void)
{
	if (rig.further[0]) {
		(void)gr_channel_close(rig.further[0], NULL);
		(void)gr_channel_close(rig.further[1], NULL);
	}
	gr_ram_free(rig.move.from);
	gr_ram_free(rig.move.to);
	close(rig.fd);
}

static void protect(void)
{
	struct gr_error err;

	if (gr_track_start(rig.track, GR_WRITERS_STORES, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void make_tracked_rig(bool packets)
{
	struct gr_error err;

	if (geteuid() == 0) { /* for whom the tracker could serve system calls */
		ASSERT_EQ(setgid(65534) | setuid(65534), 0);
		ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
	}
	make_rig(packets);
	ASSERT_EQ(gr_track_create(rig.move.to, &rig.track, &err), 0);
	if (gr_track_use(rig.track, GR_TRACKER_UFFD_SYNC, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
}

static void moves_into_protected_memory(void)
{
	bool stores_only;

	move_must_succeed(&rig.move);
	ASSERT_EQ(move_compare(rig.move.from, rig.move.to), 0u);
	stores_only = gr_block(rig.block)->stores_only != 0;
	gr_track_stop(rig.track);
	gr_track_free(rig.track);
	free_rig();
	if (!stores_only) {
		SKIP("the tracker serves system calls here, too");
	}
	ASSERT_EQ(rig.happened, rig.happens != NULL);
}

static void comes_into_protected_memory(bool packets)
{
	make_tracked_rig(packets);
	rig.happens = protect;
	moves_into_protected_memory();
}

TEST(ranges_come_into_memory_that_has_just_become_protected)
{
	comes_into_protected_memory(false);
}

TEST(packets_come_into_memory_that_has_just_become_protected)
{
	comes_into_protected_memory(true);
}

/* Nothing is read where a system call would get EFAULT at once. */
TEST(a_machine_moves_into_memory_that_only_stores_may_change)
{
	make_tracked_rig(false);
	protect();
	moves_into_protected_memory();
}

static void truncate_file(void)
{
	ASSERT_EQ(ftruncate(rig.fd, 0), 0);
}

/* A store there would end the process. */
static void fails_where_the_file_is_truncated(bool packets)
{
	make_rig(packets);
	rig.happens = truncate_file;
	move_run(&rig.move);
	ASSERT(rig.happened);
	ASSERT_EQ(rig.move.to_rc, -EFAULT);
	ASSERT_LT(rig.move.rc, 0);
	ASSERT(strstr(rig.move.to_err.msg, "block 'ram': its memory cannot be written"));
	free_rig();
}

TEST(ranges_for_a_file_that_was_truncated_fail)
{
	fails_where_the_file_is_truncated(false);
}

TEST(packets_for_a_file_that_was_truncated_fail)
{
	fails_where_the_file_is_truncated(true);
}

TEST_MAIN()

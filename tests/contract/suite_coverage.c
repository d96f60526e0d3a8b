/* SPDX-License-Identifier: MIT */
/* What no tracker sees is refused, by each of them, with the reason. */
#include "suite.h"
#include <errno.h>
#include <guestram/ram_change.h>
#include <sys/mman.h>

enum { PAGES = 64 };

static int memfd(void)
{
	int fd = memfd_create("suite", MFD_CLOEXEC);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(ftruncate(fd, 4 * PAGES * ORACLE_PAGE), 0);
	return fd;
}

/* A block of PAGES from a page of the file on. */
static int map_file(struct suite *s, const char *id, int fd, uint64_t page, unsigned int flags,
		    struct gr_error *err)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = PAGES * ORACLE_PAGE,
					  .backing = GR_RAM_FD,
					  .flags = flags,
					  .fd = fd,
					  .fd_offset = page * ORACLE_PAGE };

	return gr_ram_block_add(s->ram, &desc, NULL, err);
}

static void assert_refused(struct suite *s, unsigned int writers, const char *why)
{
	struct gr_error err;

	ASSERT_EQ(gr_track_start(s->track, writers, &err), -EINVAL);
	ASSERT_HAS(err.msg, why);
}

static void start_stop(struct suite *s)
{
	struct gr_error err;

	if (gr_track_start(s->track, s->row->writers, &err) < 0) {
		FAIL("%s", err.msg);
	}
	gr_track_stop(s->track);
}

static void del(struct suite *s, const char *id)
{
	ASSERT_EQ(gr_ram_block_del_by_id(s->ram, id, NULL), 0);
}

/* The same bytes of one file under two numbers, whichever of the two comes first. */
static void refuses_a_second_mapping(struct suite *s)
{
	int fd = memfd(), same = dup(fd);
	const unsigned int readonly = GR_RAM_HOST_READONLY | GR_RAM_READONLY | GR_RAM_NO_MIGRATE;
	struct gr_error err;

	ASSERT_EQ(map_file(s, "first", fd, 0, 0, NULL), 0);
	ASSERT_EQ(map_file(s, "second", same, PAGES - 1, 0, NULL), 0);
	assert_refused(s, s->row->writers, "both map the same bytes");
	assert_refused(s, s->row->writers, "'first'");
	del(s, "second");

	/* Beside each other, or without stores of its own, or in another file: no second mapping.
	 */
	ASSERT_EQ(map_file(s, "second", same, PAGES, 0, NULL), 0);
	ASSERT_EQ(map_file(s, "third", same, 0, readonly, NULL), 0);
	start_stop(s);
	del(s, "third");

	ASSERT_EQ(gr_track_start(s->track, s->row->writers, NULL), 0);
	for (uint64_t page = 0; page < 2 * PAGES; page += PAGES - 1) {
		ASSERT_EQ(map_file(s, "late", same, page, 0, &err), -EINVAL);
		ASSERT_HAS(err.msg, "'late' cannot be tracked beside");
		ASSERT_EQ(map_file(s, "late", same, page, GR_RAM_PRIVATE, &err), -EINVAL);
	}
	/* Private pages of one file are nobody else's, but show what is stored to the file. */
	ASSERT_EQ(map_file(s, "late", same, 2 * PAGES, GR_RAM_PRIVATE, NULL), 0);
	ASSERT_EQ(map_file(s, "later", same, 2 * PAGES, GR_RAM_PRIVATE, NULL), 0);
	ASSERT_EQ(map_file(s, "shared", same, 3 * PAGES - 1, 0, &err), -EINVAL);
	gr_track_stop(s->track);
	del(s, "later");
	del(s, "late");
	del(s, "second");
	del(s, "first");
	close(same);
	close(fd);
}

static struct gr_ram_block *find(struct suite *s, const char *id)
{
	struct gr_ram_block *block;

	gr_rcu_read_lock();
	block = gr_ram_block_by_id_rcu(s->ram, id);
	ASSERT(block);
	gr_ram_block_get(block);
	gr_rcu_read_unlock();
	return block;
}

/* Who has an iovec of a block may still store to it, whether it is on the list or not. */
static void refuses_what_a_removed_block_still_maps(struct suite *s)
{
	struct gr_ram_block *block;
	struct gr_error err;
	int fd = memfd();

	ASSERT_EQ(map_file(s, "first", fd, 0, 0, NULL), 0);
	block = find(s, "first");
	del(s, "first");
	ASSERT_EQ(map_file(s, "second", fd, 1, 0, NULL), 0);
	ASSERT_EQ(gr_track_start(s->track, s->row->writers, &err), -EBUSY);
	ASSERT_HAS(err.msg, "'second' cannot be tracked yet: a block that was removed");
	gr_ram_block_put(block);
	start_stop(s);

	ASSERT_EQ(gr_track_start(s->track, s->row->writers, NULL), 0);
	block = find(s, "second");
	del(s, "second");
	ASSERT_EQ(map_file(s, "third", fd, 2, 0, &err), -EBUSY);
	ASSERT_EQ(map_file(s, "beside", fd, PAGES + 1, 0, NULL), 0);
	del(s, "beside");
	gr_rcu_barrier(NULL); /* the list's own reference is back, this one is not */
	ASSERT_EQ(map_file(s, "third", fd, 2, 0, &err), -EBUSY);
	gr_ram_block_put(block);
	ASSERT_EQ(map_file(s, "third", fd, 2, 0, NULL), 0);
	/* One that nobody uses is no obstacle, whether its grace period is over or not. */
	del(s, "third");
	ASSERT_EQ(map_file(s, "fourth", fd, 2, 0, NULL), 0);
	gr_track_stop(s->track);
	del(s, "fourth");
	close(fd);
}

/* Another process has the memory, by a table as vhost-user sends it. */
static void refuses_an_exported_fd(struct suite *s)
{
	struct gr_ram_table_entry table[8];
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "exported",
					  .used_bytes = PAGES * ORACLE_PAGE,
					  .mapped = true,
					  .fd = -1 };
	struct gr_error err;
	unsigned int n;

	ASSERT_EQ(gr_ram_block_add(s->ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(gr_ram_table_get(s->ram, table, 8, &n, NULL), 0);
	assert_refused(s, s->row->writers, "another process has a memory table");
	/* One that tells what it wrote is as good as code that marks. */
	ASSERT_EQ(gr_track_start(s->track, s->row->writers | GR_WRITERS_REPORTING, NULL), 0);
	assert_refused(s, s->row->writers, "another process has a memory table");
	gr_ram_table_put(table, n);
	ASSERT_EQ(gr_track_start(s->track, s->row->writers, NULL), 0);
	gr_track_stop(s->track);
	gr_track_stop(s->track);

	ASSERT_EQ(gr_track_start(s->track, s->row->writers, NULL), 0);
	ASSERT_EQ(gr_ram_table_get(s->ram, table, 8, &n, &err), -EBUSY);
	ASSERT_HAS(err.msg, "seen by no tracker");
	gr_track_stop(s->track);
	ASSERT_EQ(gr_ram_table_get(s->ram, table, 8, &n, NULL), 0);
	gr_ram_table_put(table, n);
	del(s, "exported");
}

void suite_coverage(const struct suite_row *row)
{
	struct suite *s = suite_create(row, SUITE_PLUG);

	assert_refused(s, row->writers | GR_WRITERS_OUTSIDE, "no tracker of this version");
	refuses_a_second_mapping(s);
	refuses_what_a_removed_block_still_maps(s);
	refuses_an_exported_fd(s);
	start_stop(s);
	suite_free(s);
}

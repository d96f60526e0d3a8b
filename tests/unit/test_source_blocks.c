/* SPDX-License-Identifier: MIT */
/* Blocks that change while a source sends them: pieces plugged, unplugged, thrown away; lengths;
 * long lists. */
#include "huge_pool.h"
#include "migrate/source_blocks.h"
#include "move.h"
#include "stream/channel.h"
#include <guestram/ram_change.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MIB = 1 << 20, RAM_BYTES = 8 * MIB };

/* How many bytes of a piece of a block have memory, as this process has it mapped. */
static uint64_t there(const struct gr_ram_block *b, uint64_t offset, uint64_t bytes)
{
	unsigned char map[RAM_BYTES / MOVE_PAGE] = { 0 };
	uint64_t pages = 0;

	ASSERT_EQ(mincore(b->host + offset, bytes, map), 0);
	for (uint64_t i = 0; i < bytes / MOVE_PAGE; i++) {
		pages += map[i] & 1;
	}
	return pages * MOVE_PAGE;
}

static struct gr_ram_block *block_of(struct gr_ram *ram, const char *id)
{
	struct gr_ram_block *b;

	gr_rcu_read_lock();
	b = gr_ram_block_by_id_rcu(ram, id);
	gr_rcu_read_unlock();
	ASSERT(b);
	return b;
}

static void move_with_unplugged_pieces(enum gr_ram_backing backing, unsigned int flags)
{
	struct move m = { .from = move_ram(), .to = move_ram() };
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "dimm",
					  .used_bytes = RAM_BYTES,
					  .backing = backing,
					  .flags = flags,
					  .fd = -1,
					  .granule_bytes = MIB };
	struct gr_ram_block *b, *arrived;

	ASSERT_EQ(gr_ram_block_add(m.from, &desc, &b, NULL), 0);
	(void)madvise(b->host, RAM_BYTES, MADV_NOHUGEPAGE);
	move_fill(b, 1, 0);
	ASSERT_EQ(gr_ram_depopulate(b, 2 * MIB, 3 * MIB, NULL), 0);
	ASSERT_EQ(gr_ram_depopulate(b, 7 * MIB, MIB, NULL), 0);
	move_must_succeed(&m);
	ASSERT_EQ(m.stats.normal_pages, 4u * MIB / MOVE_PAGE);
	ASSERT_EQ(m.stats.untouched_pages, 4u * MIB / MOVE_PAGE);
	arrived = block_of(m.to, "dimm");
	ASSERT_EQ(there(b, 2 * MIB, 3 * MIB), 0u);
	ASSERT_EQ(there(b, 7 * MIB, MIB), 0u);
	ASSERT_EQ(there(arrived, 2 * MIB, 3 * MIB), 0u);
	ASSERT_EQ(there(arrived, 7 * MIB, MIB), 0u);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(pieces_that_are_unplugged_are_not_read_and_stay_without_memory)
{
	move_with_unplugged_pieces(GR_RAM_MEMFD, 0);
	move_with_unplugged_pieces(GR_RAM_ANONYMOUS, 0);
	/* Of this memory nobody can say where its holes are. */
	move_with_unplugged_pieces(GR_RAM_ANONYMOUS, GR_RAM_SHARED);
}

/* A balloon, in the middle: they have arrived, they go, they are zero on both sides. */
TEST(pages_that_are_thrown_away_between_rounds_do_not_come_back)
{
	struct move_guest g = { .writers = 0, .seed = 1 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };
	struct gr_ram_block *b = move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), *arrived;
	pthread_t thread;
	int rc;

	move_fill(b, 1, 0);
	g.ram = m.from;
	move_guest_start(&g);
	move_prepare(&m);
	ASSERT_EQ(pthread_create(&thread, NULL, move_receive, &m), 0);
	do {
		rc = gr_source_step(m.source, &m.err);
		gr_source_stats(m.source, &m.stats);
	} while (rc > 0 && m.stats.normal_pages < RAM_BYTES / MOVE_PAGE);
	ASSERT_EQ(rc, 1);
	ASSERT_EQ(gr_ram_discard(b, MIB, MIB, NULL), 0);
	ASSERT_EQ(gr_ram_depopulate(b, 4 * MIB, MIB, NULL), 0);
	ASSERT_EQ(gr_source_run(m.source, &m.err), 0);
	pthread_join(thread, NULL);
	ASSERT_EQ(m.to_rc, 0);
	move_finish(&m);
	arrived = block_of(m.to, "ram");
	ASSERT_EQ(there(b, MIB, MIB), 0u);
	ASSERT_EQ(there(b, 4 * MIB, MIB), 0u);
	ASSERT_EQ(there(arrived, MIB, MIB), 0u);
	ASSERT_EQ(there(arrived, 4 * MIB, MIB), 0u);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/* To a migration what is unplugged is zeroes, whatever it holds. So what is plugged again is news.
 */
TEST(a_piece_that_is_plugged_between_rounds_arrives)
{
	struct move_guest g = { .writers = 0, .seed = 1 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "dimm",
					  .used_bytes = RAM_BYTES,
					  .backing = GR_RAM_FD,
					  .flags = GR_RAM_PRIVATE,
					  .fd = memfd_create("test", MFD_CLOEXEC),
					  .granule_bytes = MIB };
	struct gr_ram_block *b, *filler = move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD);
	char page[MOVE_PAGE] = "of the file";
	pthread_t thread;
	int rc;

	move_fill(filler, 1, 0);
	ASSERT_EQ(ftruncate(desc.fd, RAM_BYTES), 0);
	for (uint64_t at = 0; at < RAM_BYTES; at += MOVE_PAGE) {
		ASSERT_EQ(pwrite(desc.fd, page, sizeof(page), (off_t)at), (ssize_t)sizeof(page));
	}
	ASSERT_EQ(gr_ram_block_add(m.from, &desc, &b, NULL), 0);
	ASSERT_EQ(gr_ram_depopulate(b, 4 * MIB, MIB, NULL), 0);
	g.ram = m.from;
	move_guest_start(&g);
	move_prepare(&m);
	ASSERT_EQ(pthread_create(&thread, NULL, move_receive, &m), 0);
	do {
		rc = gr_source_step(m.source, &m.err);
		gr_source_stats(m.source, &m.stats);
	} while (rc > 0 && m.stats.normal_pages < (2 * RAM_BYTES - MIB) / MOVE_PAGE);
	ASSERT_EQ(rc, 1);
	ASSERT_EQ(gr_ram_populate(b, 4 * MIB, MIB, NULL), 0);
	ASSERT_EQ(memcmp(b->host + 4 * MIB, page, sizeof(page)), 0);
	ASSERT_EQ(gr_source_run(m.source, &m.err), 0);
	pthread_join(thread, NULL);
	ASSERT_EQ(m.to_rc, 0);
	move_finish(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	move_guest_stop(&g);
	close(desc.fd);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/* Where a look at an unplugged page would end the process: no huge page is left to be had. */
TEST(huge_pages_that_were_unplugged_or_thrown_away_are_not_asked_for_again)
{
	struct move m = { .from = move_ram(), .to = move_ram() };
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "dimm",
					  .backing = GR_RAM_MEMFD,
					  .used_bytes = 4 * HUGE_BYTES,
					  .page_bytes = HUGE_BYTES,
					  .fd = -1 };
	struct gr_ram_block *b;
	uint8_t byte = 1;

	lock_pool();
	reserve_huge(4);
	ASSERT_EQ(gr_ram_block_add(m.from, &desc, &b, NULL), 0);
	move_fill(b, 1, 3);
	ASSERT_EQ(gr_ram_depopulate(b, HUGE_BYTES, HUGE_BYTES, NULL), 0);
	ASSERT_EQ(gr_ram_discard(b, 3 * HUGE_BYTES, HUGE_BYTES, NULL), 0);
	ASSERT(set_number(pool, number_in(pool) - 2));
	move_must_succeed(&m);
	/* Read by the kernel, which raises no signal. */
	for (uint64_t at = 0; at < 4 * HUGE_BYTES; at += MOVE_PAGE) {
		ASSERT_EQ(pread(b->fd, &byte, 1, (off_t)at), (ssize_t)1);
		ASSERT_EQ(byte, block_of(m.to, "dimm")->host[at]);
	}
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/* Comes and goes, and is sometimes the largest and sometimes the smallest of all. */
struct churn {
	struct gr_ram *ram;
	unsigned int times; /* (atomic) */
	bool stop;	    /* (atomic) */
};

static void *churn(void *opaque)
{
	struct churn *c = opaque;
	uint64_t seed = 1;

	while (!__atomic_load_n(&c->stop, __ATOMIC_ACQUIRE)) {
		struct gr_ram_block_desc desc = {
			.size = sizeof(desc), .id = "churn", .fd = -1, .backing = GR_RAM_ANONYMOUS
		};

		desc.used_bytes = test_rand(&seed) % 2 ? 64 * MOVE_PAGE : MOVE_PAGE;
		ASSERT_EQ(gr_ram_block_add(c->ram, &desc, NULL, NULL), 0);
		usleep((useconds_t)(test_rand(&seed) % 200));
		ASSERT_EQ(gr_ram_block_del_by_id(c->ram, "churn", NULL), 0);
		__atomic_add_fetch(&c->times, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* However long the list, whoever waits for readers waits for a few blocks of it. */
TEST(a_long_list_is_copied_in_short_sections_and_whole_beside_a_writer)
{
	enum { BLOCKS = 1000, TIMES = 2000 };
	struct churn c = { .ram = move_ram() };
	struct gr_source_blocks table = { 0 };
	struct gr_section_watch watch = { 0 };
	pthread_t thread;
	char id[16];

	for (int i = 0; i < BLOCKS; i++) {
		(void)snprintf(id, sizeof(id), "block%d", i);
		(void)move_add(c.ram, id, 2 * MOVE_PAGE, (uint64_t)i * MIB, GR_RAM_ANONYMOUS);
	}
	ASSERT_EQ(gr_source_blocks_fill(&table, c.ram, &watch, NULL), 0);
	ASSERT_EQ(table.count, (uint32_t)BLOCKS);
	ASSERT_EQ(table.entries[7].gpa, 7u * (uint64_t)MIB);
	ASSERT_GE(watch.steps_max, 1u);
	ASSERT_LE(watch.steps_max, (uint32_t)GR_SECTION_STEPS);
	ASSERT_EQ(pthread_create(&thread, NULL, churn, &c), 0);
	while (__atomic_load_n(&c.times, __ATOMIC_RELAXED) < TIMES) {
		unsigned int others = 0;

		ASSERT_EQ(gr_source_blocks_fill(&table, c.ram, &watch, NULL), 0);
		for (uint32_t j = 0; j < table.count; j++) {
			const struct gr_source_block *e = &table.entries[j];
			bool other = strcmp(e->id, "churn") == 0;

			others += other;
			/* Biggest first on the wire. */
			ASSERT(!other ||
			       e->wire_index == (e->max_bytes > 2 * MOVE_PAGE ? 0 : BLOCKS));
		}
		ASSERT_LE(others, 1u);
		ASSERT_EQ(table.count, BLOCKS + others);
	}
	/* Also when the list never stood still for as long as a walk takes. */
	ASSERT_LE(watch.steps_max, (uint32_t)GR_SECTION_STEPS);
	__atomic_store_n(&c.stop, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	gr_source_blocks_destroy(&table);
	gr_ram_free(c.ram);
}

/* End to end: the guest goes on where it is, whole, and moves with its new length the next time. */
TEST(a_guest_whose_block_is_resized_during_the_move_goes_on_and_moves_later)
{
	struct move_guest g = {
		.gpa = 0, .bytes = RAM_BYTES, .writers = 2, .pause_us = 20, .seed = 3
	};
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };
	struct gr_ram_block_desc rom = {
		.size = sizeof(rom), .id = "rom", .used_bytes = MIB, .max_bytes = 2 * MIB, .fd = -1
	};
	struct gr_ram_block *b;
	pthread_t thread;
	uint64_t writes;

	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 3);
	ASSERT_EQ(gr_ram_block_add(m.from, &rom, &b, NULL), 0);
	move_fill(b, 2, 0);
	g.ram = m.from;
	move_guest_start(&g);
	move_prepare(&m);
	ASSERT_EQ(pthread_create(&thread, NULL, move_receive, &m), 0);
	do {
		ASSERT_EQ(gr_source_step(m.source, &m.err), 1);
		gr_source_stats(m.source, &m.stats);
	} while (m.stats.normal_pages == 0);
	ASSERT(m.stats.peer_is_guestram);
	ASSERT_EQ(gr_ram_block_resize(b, 2 * MIB, NULL), 0);
	ASSERT_EQ(gr_source_run(m.source, &m.err), -EBUSY);
	ASSERT_HAS(m.err.msg, "block 'rom' was resized during the move");
	gr_channel_shutdown(m.ch[0]);
	pthread_join(thread, NULL);
	ASSERT_LT(m.to_rc, 0); /* it must not start a guest */
	move_finish(&m);
	gr_ram_free(m.to);
	/* The guest runs. */
	ASSERT_EQ(g.pauses, g.resumes);
	writes = __atomic_load_n(&g.writes, __ATOMIC_RELAXED);
	while (__atomic_load_n(&g.writes, __ATOMIC_RELAXED) == writes) {
		usleep(1000);
	}
	move_fill(b, 4, 0);
	m = (struct move){ .from = m.from, .to = move_ram(), .ops = &ops };
	move_must_succeed(&m);
	ASSERT_EQ(gr_ram_block_used_bytes(block_of(m.to, "rom")), 2u * MIB);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/* The destination made it with the length that it was told. */
TEST(a_block_that_is_resized_during_the_move_ends_it)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "ram",
					  .used_bytes = 2 * MIB };
	struct gr_ram_block *block;
	struct gr_source_blocks table = { 0 };
	struct gr_section_watch watch = { 0 };
	struct gr_error err;

	ASSERT_EQ(gr_ram_block_add(ram, &desc, &block, NULL), 0);
	ASSERT_EQ(gr_source_blocks_fill(&table, ram, &watch, NULL), 0);
	ASSERT_EQ(gr_source_blocks_fill(&table, ram, &watch, NULL), 0);
	ASSERT_EQ(gr_ram_block_resize(block, MIB, NULL), 0);
	ASSERT_EQ(gr_source_blocks_fill(&table, ram, &watch, &err), -EBUSY);
	ASSERT_HAS(err.msg, "block 'ram' was resized during the move");
	ASSERT_EQ(table.entries[0].used_bytes, 2 * MIB);
	/* Another block of that name and place is no matter. */
	ASSERT_EQ(gr_ram_block_del(block, NULL), 0);
	(void)move_add(ram, "ram", MIB, 0, GR_RAM_MEMFD);
	ASSERT_EQ(gr_source_blocks_fill(&table, ram, &watch, NULL), 0);
	gr_source_blocks_destroy(&table);
	gr_ram_free(ram);
}

TEST_MAIN()

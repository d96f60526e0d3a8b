/* SPDX-License-Identifier: MIT */
/* Both ends of a move in one process: what must hold however it goes. */
#include "migrate/source.h"
#include "move.h"
#include "stream/channel.h"
#include "track/tracker.h"
#include <guestram/track.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1 << 20, RAM_BYTES = 8 * MIB };

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static uint64_t filled_bytes(const struct gr_ram_block *b)
{
	uint64_t bytes = 0;
	off_t at = 0, end;

	while ((at = lseek(b->fd, at, SEEK_DATA)) >= 0) {
		end = lseek(b->fd, at, SEEK_HOLE);
		bytes += (uint64_t)(end - at);
		at = end;
	}
	return bytes;
}

TEST(a_stopped_machine_moves_in_one_pass)
{
	struct move m = { .from = move_ram(), .to = move_ram() };

	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 3);
	move_fill(move_add(m.from, "rom", 16 * MOVE_PAGE, 1ull << 32, GR_RAM_ANONYMOUS), 2, 0);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	ASSERT(m.stats.peer_is_guestram);
	ASSERT_EQ(m.stats.rounds, 1u);
	ASSERT_EQ(m.stats.normal_pages, m.to_stats.normal_pages);
	ASSERT_EQ(m.stats.zero_pages, m.to_stats.zero_pages);
	ASSERT_EQ(m.stats.normal_pages + m.stats.zero_pages, RAM_BYTES / MOVE_PAGE + 16u);
	ASSERT_EQ(m.stats.final_pages, RAM_BYTES / MOVE_PAGE + 16u);
	ASSERT_EQ(m.stats.total_bytes, RAM_BYTES + 16u * MOVE_PAGE);
	ASSERT_EQ(m.stats.transferred_bytes, m.to_stats.transferred_bytes);
	ASSERT_LE(m.stats.section_ns_max, 1000000000u);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/* Where the guest sees it travels too. */
TEST(blocks_arrive_where_the_guest_sees_them)
{
	struct move m = { .from = move_ram(), .to = move_ram() };
	uint64_t value = 0x1122334455667788, got = 0;
	struct gr_error err;

	move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD);
	move_add(m.from, "high", MIB, 5ull << 32, GR_RAM_MEMFD);
	ASSERT_EQ(gr_ram_write(m.from, gr_gpa((5ull << 32) + 4088), &value, 8, &err), 0);
	move_must_succeed(&m);
	ASSERT_EQ(gr_ram_read(m.to, gr_gpa((5ull << 32) + 4088), &got, 8, &err), 0);
	ASSERT_EQ(got, value);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(a_running_machine_moves_with_its_devices)
{
	struct move_guest g = {
		.bytes = RAM_BYTES, .writers = 2, .seed = test_seed(), .pause_us = 20
	};
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops to_ops = { .load = move_load, .opaque = &loaded };
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops, .to_ops = &to_ops };

	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	ASSERT_EQ(g.pauses, 1u);
	ASSERT_EQ(g.resumes, 0u); /* it runs over there now */
	ASSERT_STR_EQ(loaded.order, "firstsecond");
	ASSERT_EQ(loaded.first, g.writes);
	ASSERT_GE(m.stats.rounds, 2u);
	ASSERT_NE(m.stats.downtime_ns, 0u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

static void moves_in_ranges(bool present, uint64_t holes)
{
	struct move_guest g = {
		.bytes = RAM_BYTES, .writers = 2, .seed = test_seed(), .pause_us = 20
	};
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };

	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, holes);
	if (present) {
		struct gr_ram_block *b = move_add(m.to, "ram", RAM_BYTES, 0, GR_RAM_MEMFD);

		memset(b->host, 0xee, RAM_BYTES);
	}
	m.params.rounds_max = 4;
	move_guest_start(&g);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	ASSERT_EQ(m.to_stats.normal_pages, m.stats.normal_pages);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/* Ranges by reference and copied, into memory and through the stage, with pages between them. */
TEST(a_running_machine_moves_in_ranges_of_pages)
{
	moves_in_ranges(true, 0);
	moves_in_ranges(false, 0);
	moves_in_ranges(true, 7);
	moves_in_ranges(false, 7);
}

/* The file behind it has other bytes: it is not referred to. */
TEST(what_a_private_mapping_has_changed_arrives)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "ram",
					  .used_bytes = RAM_BYTES,
					  .backing = GR_RAM_FD,
					  .flags = GR_RAM_PRIVATE,
					  .mapped = true };
	struct move m = { .from = move_ram(), .to = move_ram() };
	struct gr_ram_block *b;

	desc.fd = memfd_create("private", MFD_CLOEXEC);
	ASSERT_EQ(ftruncate(desc.fd, RAM_BYTES), 0);
	ASSERT_EQ(gr_ram_block_add(m.from, &desc, &b, NULL), 0);
	move_fill(b, 1, 0);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
	close(desc.fd);
}

struct all_bytes {
	struct gr_channel *ch;
	uint8_t data[1 << 20];
	size_t bytes;
};

static void *read_all(void *opaque)
{
	struct all_bytes *all = opaque;
	ssize_t got;

	do {
		struct iovec iov = { all->data + all->bytes, sizeof(all->data) - all->bytes };

		got = gr_channel_readv(all->ch, &iov, 1, NULL);
		all->bytes += got > 0 ? (size_t)got : 0;
	} while (got > 0);
	return NULL;
}

/* Memory that the caller promises to share. */
static void add_shared(struct gr_ram *ram)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = "shared",
		.used_bytes = MOVE_PAGE,
		.backing = GR_RAM_FD,
		.fd = memfd_create("shared", MFD_CLOEXEC),
		.flags = GR_RAM_SHARED,
	};
	struct gr_error err;

	ASSERT_EQ(ftruncate(desc.fd, MOVE_PAGE), 0);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), 0);
	(void)close(desc.fd);
}

/* Towards a peer of ours that says these FEATURES: whether these bytes are in what it is sent. */
static bool sends(uint8_t flags, bool shares, const void *bytes, size_t n)
{
	uint8_t answers[] = {
		0x47, 0x52, 0, 8, 0,	0,    0, 1, 0, 0, 0, flags, /* FEATURES */
		0,    2,    0, 4, 0x47, 0x52, 0, 1,		    /* PONG */
		0,    7,    0, 0,				    /* SWITCHOVER_ACK */
		0,    1,    0, 4, 0,	0,    0, 1,		    /* SHUT 1 */
	};
	static struct all_bytes all;
	struct gr_source_params params = { .size = sizeof(params), .ignore_shared = shares };
	struct gr_ram *ram = move_ram();
	struct gr_source *source;
	struct gr_channel *ch[2];
	struct gr_error err;
	pthread_t thread;
	int rc;

	if (shares) {
		add_shared(ram);
	}
	move_channels(ch);
	move_fill(move_add(ram, "ram", 8 * MOVE_PAGE, 0, GR_RAM_MEMFD), 1, 0);
	all.ch = ch[1];
	all.bytes = 0;
	ASSERT_EQ(pthread_create(&thread, NULL, read_all, &all), 0);
	ASSERT_EQ(gr_channel_write_all(ch[1], answers, sizeof(answers) - 8, NULL), 0);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, NULL, &source, &err), 0);
	do {
		struct gr_migrate_stats stats;

		rc = gr_source_step(source, &err);
		gr_source_stats(source, &stats);
		if (stats.normal_pages == 8 && answers[0]) {
			answers[0] = 0;
			ASSERT_EQ(gr_channel_write_all(ch[1], answers + sizeof(answers) - 8, 8,
						       NULL),
				  0);
		}
	} while (rc > 0);
	ASSERT_EQ(rc, -EREMOTEIO);
	gr_source_free(source);
	gr_channel_end_writing(ch[0]);
	pthread_join(thread, NULL);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
	return memmem(all.data, all.bytes, bytes, n) != NULL;
}

TEST(ranges_are_for_those_who_have_said_that_they_take_them)
{
	ASSERT(sends(1, false, "\0\0\0\0\0\0\x0c\0\3ram", 12));
	ASSERT(!sends(0, false, "\0\0\0\0\0\0\x0c\0\3ram", 12));
}

/* Nor is any other told which file a block is. */
TEST(identities_of_files_are_for_those_who_have_said_that_they_take_them)
{
	uint8_t entry[8];

	gr_put_be32(entry, MOVE_PAGE); /* of the backing; its flags */
	gr_put_be32(entry + 4, UINT32_C(1) << 31 | GR_RAM_SHARED);
	ASSERT(sends(2, true, entry, sizeof(entry)));
	ASSERT(!sends(1, true, entry, sizeof(entry)));
	gr_put_be32(entry + 4, GR_RAM_SHARED);
	ASSERT(sends(1, true, entry, sizeof(entry)));
}

/* A move whose downtime is out of reach: the devices alone are expected to take longer. */
static uint64_t rounds_with_at_most_four(void)
{
	struct move_guest g = { .bytes = RAM_BYTES, .writers = 2, .seed = test_seed() };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = {
		.from = move_ram(),
		.to = move_ram(),
		.ops = &ops,
		.params = { .downtime_ns_max = 1, .rounds_max = 4 },
	};

	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
	return m.stats.rounds;
}

/*
 * Four, the one that decides, and the last one. On a busy machine a round may pass in which no
 * writer had its turn: with nothing left to send the source need not be forced.
 */
TEST(rounds_max_forces_the_switch_over)
{
	uint64_t rounds = 0;

	for (int i = 0; i < 50 && rounds != 6; i++) {
		rounds = rounds_with_at_most_four();
		ASSERT_LE(rounds, 6u);
	}
	ASSERT_EQ(rounds, 6u);
}

TEST(untouched_memory_stays_untouched_on_both_sides)
{
	const uint64_t bytes = 256 * MIB;
	struct move m = { .from = move_ram(), .to = move_ram() };
	struct gr_ram_block *a = move_add(m.from, "ram", bytes, 0, GR_RAM_MEMFD);
	struct gr_ram_block *n = move_add(m.from, "anonymous", bytes, 1ull << 40, GR_RAM_ANONYMOUS);
	struct gr_ram_block *b = move_add(m.to, "ram", bytes, 0, GR_RAM_MEMFD);
	unsigned char *map = malloc(bytes / MOVE_PAGE);
	struct gr_ram_block *c;

	a->host[5 * MIB] = 1;
	n->host[7 * MIB] = 1;
	move_must_succeed(&m);
	ASSERT_EQ(filled_bytes(a), (uint64_t)MOVE_PAGE);
	ASSERT_EQ(filled_bytes(b), (uint64_t)MOVE_PAGE);
	ASSERT_EQ(b->host[5 * MIB], 1);
	gr_rcu_read_lock();
	c = gr_ram_block_by_id_rcu(m.to, "anonymous");
	ASSERT(c);
	ASSERT_EQ(filled_bytes(c), (uint64_t)MOVE_PAGE);
	ASSERT_EQ(c->host[7 * MIB], 1);
	gr_rcu_read_unlock();
	ASSERT_EQ(mincore(n->host, bytes, map), 0);
	for (uint64_t i = 0; i < bytes / MOVE_PAGE; i++) {
		ASSERT_EQ(map[i] & 1, i == 7 * MIB / MOVE_PAGE);
	}
	ASSERT_EQ(m.stats.untouched_pages, 2 * bytes / MOVE_PAGE - 2);
	ASSERT_EQ(m.stats.normal_pages, 2u);
	/* Ranges, not a record for each page. */
	ASSERT_LE(m.stats.transferred_bytes, 4u * MOVE_PAGE);
	free(map);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(what_a_destination_had_before_is_gone_where_the_source_has_zeros)
{
	struct move m = { .from = move_ram(), .to = move_ram() };

	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_fill(move_add(m.to, "ram", RAM_BYTES, 0, GR_RAM_ANONYMOUS), 2, 3);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/* A peer that does not know us: no extension in the stream, hotplug refused meanwhile. */
static int plug_is_refused(void *opaque, struct gr_error *err)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "late", .used_bytes = MIB, .fd = -1
	};
	struct move_guest *g = opaque;
	struct gr_error refused = { 0 };

	ASSERT_EQ(gr_ram_block_add(g->ram, &desc, NULL, &refused), -EBUSY);
	ASSERT_HAS(refused.msg, "migration");
	return move_guest_pause(opaque, err);
}

static void plain_move(bool source_plain, bool destination_plain)
{
	struct move_guest g = {
		.bytes = RAM_BYTES, .writers = 1, .seed = test_seed(), .pause_us = 20
	};
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = {
		.from = move_ram(),
		.to = move_ram(),
		.ops = &ops,
		.params = { .plain = source_plain },
		.to_params = { .plain = destination_plain },
	};
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "after", .used_bytes = MIB, .fd = -1
	};

	ops.pause = plug_is_refused;
	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_must_succeed(&m);
	ASSERT(!m.stats.peer_is_guestram);
	ASSERT_EQ(m.stats.blocks_announced, 0u);
	/* Every page named at least once, holes as ZERO. */
	ASSERT_GE(m.to_stats.normal_pages + m.to_stats.zero_pages, RAM_BYTES / MOVE_PAGE + 0u);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	ASSERT_EQ(gr_ram_block_add(m.from, &desc, NULL, NULL), 0); /* thawed */
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(a_plain_destination_is_served_as_a_qemu)
{
	plain_move(false, true);
}

TEST(a_plain_source_is_received)
{
	plain_move(true, false);
}

/* The guest's last stores come while it is being stopped. */
static int pause_with_last_stores(void *opaque, struct gr_error *err)
{
	struct move_guest *g = opaque;
	uint64_t value = 0x5a5a5a5a5a5a5a5a;

	for (uint64_t page = 0; page < 16; page++) {
		gr_gpa_t gpa = gr_gpa(page * 100 * MOVE_PAGE + 8);

		ASSERT_EQ(gr_ram_write(g->ram, gpa, &value, sizeof(value), NULL), 0);
	}
	return move_guest_pause(opaque, err);
}

TEST(stores_made_while_the_machine_stops_arrive)
{
	struct move_guest g = { .bytes = 2 * MIB, .writers = 1, .seed = 1, .pause_us = 100 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };

	ops.pause = pause_with_last_stores;
	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(lost_pages_early_reads_and_skipped_syncs_do_damage)
{
	static const enum gr_source_fault faults[] = { GR_FAULT_LOSE_PAGE, GR_FAULT_EARLY_READ,
						       GR_FAULT_SKIP_FINAL_SYNC };

	for (size_t i = 0; i < 3; i++) {
		struct move_guest g = { .bytes = RAM_BYTES, .writers = 2, .seed = test_seed() };
		struct gr_source_ops ops = move_guest_ops(&g);
		struct move m = {
			.from = move_ram(),
			.to = move_ram(),
			.ops = &ops,
			.params = { .fault = faults[i], .rounds_max = 2 },
		};

		ops.pause = pause_with_last_stores;
		g.ram = m.from;
		move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
		move_guest_start(&g);
		move_must_succeed(&m);
		if (move_compare(m.from, m.to) == 0) {
			FAIL("fault %d does no damage", (int)faults[i]);
		}
		move_guest_stop(&g);
		gr_ram_free(m.from);
		gr_ram_free(m.to);
	}
}

TEST(bandwidth_limit_is_kept)
{
	struct move m = {
		.from = move_ram(),
		.to = move_ram(),
		.params = { .bandwidth_bytes_per_s_max = 20 * MIB },
	};
	double begin = now_s(), took;

	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 0);
	begin = now_s();
	move_must_succeed(&m);
	took = now_s() - begin;
	/* 8 MiB at 20 MiB/s: 0.4 s. Only "not faster" is the machine's to promise. */
	if (took < 0.38) {
		FAIL("8 MiB at 20 MiB/s took %.3f s", took);
	}
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/*
 * A tracker with a guest inside: it stores into pages that are zero just before they are
 * re-armed, when a store leaves no trace. Whoever has looked before has not seen it (O4).
 */
struct last_moment {
	struct gr_tracker base;
	unsigned int stores;
};

static int store_and_rearm(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
			   uint64_t bytes, struct gr_error *err)
{
	struct last_moment *l = (struct last_moment *)(void *)t;

	(void)err;
	for (uint64_t at = offset; at < offset + bytes; at += MOVE_PAGE) {
		if (block->host[at + 8] == 0 && l->stores < 50) {
			block->host[at + 8] = 1;
			l->stores++;
		}
	}
	return 0;
}

static void last_moment_destroy(struct gr_tracker *t)
{
	free(t);
}

TEST(a_store_just_before_the_rearm_arrives)
{
	static const struct gr_tracker_ops tracker_ops = {
		.name = "last moment",
		.covers = GR_WRITERS_MAPPING,
		.destroy = last_moment_destroy,
		.rearm = store_and_rearm,
	};
	struct move_guest g = { .bytes = MIB, .writers = 1, .seed = 1, .pause_us = 100 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };
	struct last_moment *tracker = calloc(1, sizeof(*tracker));

	tracker->base.ops = &tracker_ops;
	m.params.writers = GR_WRITERS_MAPPING | GR_WRITERS_MARKED;
	ASSERT_EQ(gr_track_create(m.from, &m.track, NULL), 0);
	ASSERT_EQ(gr_track_use_tracker(m.track, &tracker->base, NULL), 0);
	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	g.bytes = MOVE_PAGE; /* it must not heal what is lost elsewhere */
	move_guest_start(&g);
	move_must_succeed(&m);
	ASSERT_EQ(tracker->stores, 50u);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	move_guest_stop(&g);
	gr_track_free(m.track);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST_MAIN()

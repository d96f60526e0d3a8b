/* SPDX-License-Identifier: MIT */
/* Both ends of a move in one process: what must hold however it goes. */
#include "huge_pool.h"
#include "migrate/source.h"
#include "migrate/source_blocks.h"
#include "move.h"
#include "stream/channel.h"
#include "track/tracker.h"
#include <guestram/ram_change.h>
#include <guestram/track.h>
#include <sys/mman.h>
#include <sys/prctl.h>
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

/* A system call that reads into it gets EFAULT. */
TEST(a_machine_moves_into_memory_that_only_stores_may_change)
{
	struct move m = { .from = move_ram(), .to = move_ram() };
	struct gr_ram_block *b = move_add(m.to, "ram", RAM_BYTES, 0, GR_RAM_MEMFD);
	struct gr_track *track;
	struct gr_error err;

	if (geteuid() == 0) {
		ASSERT_EQ(setgid(65534) | setuid(65534), 0);
		ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
	}
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 0);
	memset(b->host, 0xee, RAM_BYTES);
	ASSERT_EQ(gr_track_create(m.to, &track, &err), 0);
	if (gr_track_use(track, GR_TRACKER_UFFD_SYNC, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	ASSERT_EQ(gr_track_start(track, GR_WRITERS_STORES, &err), 0);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	gr_track_stop(track);
	gr_track_free(track);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
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

/* Cancels when a state is seen, from another thread. */
struct canceller {
	struct move *m;
	enum gr_migrate_state when;
};

static void *cancel_when(void *opaque)
{
	struct canceller *c = opaque;
	struct gr_migrate_stats stats;

	do {
		gr_source_stats(c->m->source, &stats);
	} while (stats.state < c->when);
	gr_source_cancel(c->m->source);
	return NULL;
}

static void cancel_in(enum gr_migrate_state when, bool destination_reads)
{
	struct move_guest g = {
		.bytes = RAM_BYTES, .writers = 1, .seed = test_seed(), .pause_us = 20
	};
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = {
		.from = move_ram(),
		.to = move_ram(),
		.ops = &ops,
		.params = { .bandwidth_bytes_per_s_max = when == GR_MIGRATE_DEVICE ? 0 : 4 * MIB },
	};
	struct canceller c = { &m, when };
	pthread_t receiver = 0, canceller;

	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_prepare(&m);
	ASSERT_EQ(pthread_create(&canceller, NULL, cancel_when, &c), 0);
	if (destination_reads) {
		ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &m), 0);
	}
	m.rc = gr_source_run(m.source, &m.err);
	pthread_join(canceller, NULL);
	if (destination_reads) {
		pthread_join(receiver, NULL);
	}
	move_finish(&m);
	if (m.rc == 0) {
		/* The cancel was late. Then both sides must say so. */
		ASSERT(m.stats.state == GR_MIGRATE_COMPLETED);
		ASSERT_EQ(m.to_rc, 0);
		move_guest_resume(&g);
	} else {
		ASSERT_EQ(m.rc, -ECANCELED);
		ASSERT(m.stats.state == GR_MIGRATE_CANCELLED);
		ASSERT(!destination_reads || m.to_rc < 0);
		ASSERT_EQ(g.pauses, g.resumes);
	}
	/* The guest goes on, and a next migration works. */
	m.params.bandwidth_bytes_per_s_max = 0;
	gr_ram_free(m.to);
	m.to = move_ram();
	memset(&m.err, 0, sizeof(m.err));
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(cancel_before_it_began)
{
	cancel_in(GR_MIGRATE_NONE, true);
}

TEST(without_an_answer_the_move_fails_and_the_guest_stays)
{
	struct move m = { .from = move_ram(), .to = move_ram() };
	int rc;

	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_prepare(&m);
	do {
		rc = gr_source_step(m.source, &m.err);
	} while (rc == 1 && m.source->phase != GR_SOURCE_PEER);
	ASSERT_EQ(rc, 1);
	m.source->ping_ns -= GR_SOURCE_PEER_NS; /* as if the time had passed */
	do {
		rc = gr_source_step(m.source, &m.err);
	} while (rc == 1);
	ASSERT_EQ(rc, -ETIMEDOUT);
	ASSERT_HAS(m.err.msg, "has not answered");
	move_finish(&m);
	ASSERT(m.stats.state == GR_MIGRATE_FAILED);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(cancel_while_the_peer_does_not_answer)
{
	cancel_in(GR_MIGRATE_SETUP, false);
}

TEST(cancel_during_setup)
{
	cancel_in(GR_MIGRATE_SETUP, true);
}

TEST(cancel_during_the_rounds)
{
	cancel_in(GR_MIGRATE_ACTIVE, true);
}

TEST(cancel_when_the_guest_is_stopped)
{
	for (int i = 0; i < 5; i++) {
		cancel_in(GR_MIGRATE_DEVICE, true);
	}
}

/* A destination that has everything and takes its time to load it. */
struct slow_load {
	struct move *m;
	bool loading, go_on; /* (atomic) */
	int fail;	     /* what it says in the end, or 0 */
};

static int load_slowly(void *opaque, const char *id, uint32_t instance, uint32_t version,
		       const void *data, size_t bytes, struct gr_error *err)
{
	struct slow_load *l = opaque;

	(void)id, (void)instance, (void)version, (void)data, (void)bytes;
	__atomic_store_n(&l->loading, true, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&l->go_on, __ATOMIC_ACQUIRE)) {
		usleep(100);
	}
	return l->fail == 0 ? 0 : gr_error_set(err, l->fail, "told to fail");
}

static void *cancel_when_loading(void *opaque)
{
	struct slow_load *l = opaque;

	while (!__atomic_load_n(&l->loading, __ATOMIC_ACQUIRE)) {
		usleep(100);
	}
	gr_source_cancel(l->m->source);
	usleep(100000); /* time for the source to draw the wrong conclusion */
	__atomic_store_n(&l->go_on, true, __ATOMIC_RELEASE);
	return NULL;
}

static void tcp_channels(struct gr_channel *ch[2])
{
	struct gr_channel_listener *l;

	ASSERT_EQ(gr_channel_listen("tcp:127.0.0.1:0", &l, NULL), 0);
	ASSERT_EQ(gr_channel_connect(gr_channel_listener_uri(l), &ch[0], NULL), 0);
	ASSERT_EQ(gr_channel_accept(l, &ch[1], NULL), 0);
	gr_channel_listener_close(l);
}

/* The destination decides: whatever it does, exactly one guest runs. */
static void cancel_while_loading(bool tcp, int fail)
{
	struct move_guest g = { .bytes = RAM_BYTES, .writers = 1, .seed = 1, .pause_us = 20 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };
	struct slow_load slow = { .m = &m, .fail = fail };
	struct gr_destination_ops to_ops = { .load = load_slowly, .opaque = &slow };
	pthread_t receiver, canceller;

	m.to_ops = &to_ops;
	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	if (tcp) {
		tcp_channels(m.ch);
	}
	move_prepare(&m);
	ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &m), 0);
	ASSERT_EQ(pthread_create(&canceller, NULL, cancel_when_loading, &slow), 0);
	m.rc = gr_source_run(m.source, &m.err);
	pthread_join(canceller, NULL);
	pthread_join(receiver, NULL);
	move_finish(&m);
	ASSERT_EQ(m.to_rc, fail);
	ASSERT_EQ(m.rc, fail == 0 ? 0 : -ECANCELED);
	ASSERT(m.stats.state == (fail == 0 ? GR_MIGRATE_COMPLETED : GR_MIGRATE_CANCELLED));
	ASSERT(m.to_stats.state == (fail == 0 ? GR_MIGRATE_COMPLETED : GR_MIGRATE_FAILED));
	ASSERT_EQ(g.pauses, 1u);
	ASSERT_EQ(g.resumes, fail == 0 ? 0u : 1u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(cancel_while_the_answer_is_awaited_leaves_the_decision_to_the_destination)
{
	cancel_while_loading(false, 0);
	cancel_while_loading(true, 0);
	cancel_while_loading(false, -ENODEV);
	cancel_while_loading(true, -ENODEV);
}

static int save_and_note(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	int *steps = opaque;

	*steps = 0;
	return gr_state_put(writer, "test/first", 0, 1, "abc", 3, err);
}

static int pause_silently(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static void resume_silently(void *opaque)
{
	(void)opaque;
}

static int load_anything(void *opaque, const char *id, uint32_t instance, uint32_t version,
			 const void *data, size_t bytes, struct gr_error *err)
{
	(void)opaque, (void)id, (void)instance, (void)version, (void)data, (void)bytes, (void)err;
	return 0;
}

/* Without an answer the end of the stream is the word: no cancel takes it back. */
TEST(a_plain_move_cancelled_after_any_step_leaves_one_guest)
{
	bool completed = false;

	for (int after = 0; after < 10 && !completed; after++) {
		int steps = -1000000;
		struct gr_source_ops ops = { .pause = pause_silently,
					     .resume = resume_silently,
					     .save = save_and_note,
					     .opaque = &steps };
		struct gr_destination_ops to_ops = { .load = load_anything };
		struct move m = { .from = move_ram(),
				  .to = move_ram(),
				  .ops = &ops,
				  .to_ops = &to_ops,
				  .params = { .plain = true } };
		pthread_t receiver;

		move_fill(move_add(m.from, "ram", 16 * MOVE_PAGE, 0, GR_RAM_MEMFD), 1, 2);
		move_prepare(&m);
		ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &m), 0);
		do {
			m.rc = gr_source_step(m.source, &m.err);
			if (steps++ == after) {
				gr_source_cancel(m.source);
			}
			/* Until the one that was cancelled after had been the last one anyway. */
			completed = m.rc == 0 && steps <= after + 1;
		} while (m.rc > 0);
		gr_channel_end_writing(m.ch[0]);
		pthread_join(receiver, NULL);
		move_finish(&m);
		if ((m.rc == 0) != (m.to_rc == 0)) {
			FAIL("cancelled after %d steps: source %d, destination %d", after, m.rc,
			     m.to_rc);
		}
		ASSERT(m.rc == 0 || m.rc == -ECANCELED);
		ASSERT_EQ(m.rc, after == 0 ? -ECANCELED : 0);
		gr_ram_free(m.from);
		gr_ram_free(m.to);
	}
	ASSERT(completed);
}

struct big_state {
	struct gr_source *source;
	unsigned int resumes;
	bool saved; /* (atomic) */
};

static int save_much(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	static const uint8_t data[4 * MIB];
	struct big_state *b = opaque;
	int rc = gr_state_put(writer, "test/big", 0, 1, data, sizeof(data), err);

	__atomic_store_n(&b->saved, true, __ATOMIC_RELEASE);
	return rc;
}

static void count_resume(void *opaque)
{
	struct big_state *b = opaque;

	b->resumes++;
}

static void *cancel_when_saved(void *opaque)
{
	struct big_state *b = opaque;

	while (!__atomic_load_n(&b->saved, __ATOMIC_ACQUIRE)) {
		usleep(100);
	}
	usleep(50000);
	gr_source_cancel(b->source);
	return NULL;
}

/* It answers, but then it reads no more: the guest must not wait for it for ever. */
TEST(cancel_while_a_stopped_destination_does_not_take_the_device_state)
{
	static const uint8_t answers[] = {
		0x47, 0x52, 0, 8, 0,	0,    0, 1, 0, 0, 0, 0, /* FEATURES */
		0,    2,    0, 4, 0x47, 0x52, 0, 1,		/* PONG */
	};
	struct big_state b = { 0 };
	struct gr_source_ops ops = {
		.pause = pause_silently, .resume = count_resume, .save = save_much, .opaque = &b
	};
	struct gr_ram *ram = move_ram();
	struct gr_migrate_stats stats;
	struct gr_channel *ch[2];
	struct gr_error err;
	pthread_t canceller;

	move_channels(ch);
	move_fill(move_add(ram, "ram", 4 * MOVE_PAGE, 0, GR_RAM_MEMFD), 1, 2);
	ASSERT_EQ(gr_channel_write_all(ch[1], answers, sizeof(answers), NULL), 0);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], NULL, &ops, &b.source, &err), 0);
	ASSERT_EQ(pthread_create(&canceller, NULL, cancel_when_saved, &b), 0);
	ASSERT_EQ(gr_source_run(b.source, &err), -ECANCELED);
	pthread_join(canceller, NULL);
	gr_source_stats(b.source, &stats);
	ASSERT(stats.state == GR_MIGRATE_CANCELLED);
	ASSERT_EQ(b.resumes, 1u);
	gr_source_free(b.source);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

TEST(a_destination_that_cannot_load_leaves_the_guest_at_the_source)
{
	struct move_guest g = { .bytes = RAM_BYTES, .writers = 1, .seed = 1, .pause_us = 20 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move_loaded loaded = { .fail = -ENODEV };
	struct gr_destination_ops to_ops = { .load = move_load, .opaque = &loaded };
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops, .to_ops = &to_ops };

	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_run(&m);
	ASSERT_EQ(m.to_rc, -ENODEV);
	ASSERT_HAS(m.to_err.msg, "test/first");
	ASSERT_EQ(m.rc, -EREMOTEIO);
	ASSERT_HAS(m.err.msg, "destination has failed");
	ASSERT(m.stats.state == GR_MIGRATE_FAILED);
	ASSERT_EQ(g.resumes, 1u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

static int pause_fails(void *opaque, struct gr_error *err)
{
	(void)opaque;
	return gr_error_set(err, -EAGAIN, "a vCPU does not listen");
}

TEST(a_machine_that_cannot_be_stopped_goes_on)
{
	struct move_guest g = { .bytes = RAM_BYTES, .writers = 1, .seed = 1, .pause_us = 20 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };

	ops.pause = pause_fails;
	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_prepare(&m);
	pthread_t receiver;

	ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &m), 0);
	m.rc = gr_source_run(m.source, &m.err);
	gr_channel_end_writing(m.ch[0]);
	pthread_join(receiver, NULL);
	move_finish(&m);
	ASSERT_EQ(m.rc, -EAGAIN);
	ASSERT_HAS(m.err.msg, "a vCPU does not listen");
	ASSERT_EQ(g.resumes, 0u);
	ASSERT_LT(m.to_rc, 0);
	ASSERT(m.to_stats.state == GR_MIGRATE_FAILED);
	move_guest_stop(&g);
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

/* One source over a channel that fails as scripted; returns what it sent. */
static size_t broken_run(struct gr_ram *ram, struct move_guest *g, size_t fail_at, size_t write_max,
			 uint8_t *copy, size_t copy_bytes)
{
	static const uint8_t answers[] = {
		0x47, 0x52, 0, 8, 0,	0,    0, 1, 0, 0, 0, 0, /* FEATURES */
		0,    2,    0, 4, 0x47, 0x52, 0, 1,		/* PONG */
		0,    1,    0, 4, 0,	0,    0, 0,		/* SHUT 0 */
	};
	struct gr_memory_script script = {
		.data = answers,
		.bytes = sizeof(answers),
		.write_max = write_max,
		.eintr_every = write_max ? 3 : 0,
		.write_fail_at = fail_at,
		.write_error = fail_at == SIZE_MAX ? 0 : -ENOSPC,
	};
	struct gr_source_ops ops = move_guest_ops(g);
	unsigned int pauses = g->pauses, resumes = g->resumes;
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "plug", .fd = -1, .used_bytes = MOVE_PAGE
	};
	struct gr_migrate_stats stats;
	struct gr_channel *ch;
	struct gr_source *s;
	struct gr_error err = { 0 };
	size_t bytes;
	int rc;

	ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
	ASSERT_EQ(gr_source_create(ram, NULL, ch, NULL, &ops, &s, &err), 0);
	rc = gr_source_run(s, &err);
	gr_source_stats(s, &stats);
	gr_source_free(s);
	ASSERT(rc == 0 || fail_at != SIZE_MAX);
	if (rc != 0 || fail_at < MOVE_PAGE) { /* any move writes more than that, and then more */
		ASSERT_EQ(rc, -ENOSPC);
		ASSERT(stats.state == GR_MIGRATE_FAILED);
		ASSERT_EQ(g->pauses - pauses, g->resumes - resumes);
		ASSERT_EQ(err.code, -ENOSPC);
	} else {
		move_guest_resume(g);
	}
	/* Nothing is left frozen. */
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "plug", NULL), 0);
	if (copy) {
		const uint8_t *written = gr_channel_memory_written(ch, &bytes);

		ASSERT_LE(bytes, copy_bytes);
		memcpy(copy, written, bytes);
	}
	(void)gr_channel_memory_written(ch, &bytes);
	gr_channel_close(ch, NULL);
	return bytes;
}

TEST(wherever_the_channel_breaks_the_guest_goes_on)
{
	struct move_guest g = { .bytes = 64 * MOVE_PAGE, .writers = 1, .seed = 1, .pause_us = 50 };
	uint64_t seed = test_seed();
	size_t whole;

	g.ram = move_ram();
	move_fill(move_add(g.ram, "ram", g.bytes, 0, GR_RAM_MEMFD), 1, 3);
	move_guest_start(&g);
	whole = broken_run(g.ram, &g, SIZE_MAX, 0, NULL, 0);
	for (size_t n = 0; n < 300; n += 1 + n / 8) {
		broken_run(g.ram, &g, n, 0, NULL, 0);
		broken_run(g.ram, &g, test_rand(&seed) % (whole * 3 / 4), 0, NULL, 0);
	}
	move_guest_stop(&g);
	gr_ram_free(g.ram);
}

TEST(short_writes_and_interruptions_change_no_byte)
{
	struct move_guest g = { .writers = 0, .seed = 1 };
	size_t room = 2 * MIB, a_bytes, b_bytes;
	uint8_t *a = malloc(room), *b = malloc(room);

	ASSERT(a && b);
	g.ram = move_ram();
	move_fill(move_add(g.ram, "ram", MIB, 0, GR_RAM_MEMFD), 1, 3);
	move_guest_start(&g);
	a_bytes = broken_run(g.ram, &g, SIZE_MAX, 0, a, room);
	b_bytes = broken_run(g.ram, &g, SIZE_MAX, 1000, b, room);
	ASSERT_EQ(a_bytes, b_bytes);
	ASSERT_MEM_EQ(a, b, a_bytes);
	move_guest_stop(&g);
	free(a);
	free(b);
	gr_ram_free(g.ram);
}

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
	struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "dimm", .used_bytes = RAM_BYTES,
					  .backing = backing, .flags = flags, .fd = -1,
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

/* To a migration what is unplugged is zeroes, whatever it holds. So what is plugged again is news. */
TEST(a_piece_that_is_plugged_between_rounds_arrives)
{
	struct move_guest g = { .writers = 0, .seed = 1 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };
	struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "dimm", .used_bytes = RAM_BYTES,
					  .backing = GR_RAM_FD, .flags = GR_RAM_PRIVATE,
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
	struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "dimm", .backing = GR_RAM_MEMFD,
					  .used_bytes = 4 * HUGE_BYTES, .page_bytes = HUGE_BYTES,
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
		struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "churn", .fd = -1,
						  .backing = GR_RAM_ANONYMOUS };

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
			ASSERT(!other || e->wire_index == (e->max_bytes > 2 * MOVE_PAGE ? 0 : BLOCKS));
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
	struct move_guest g = { .gpa = 0, .bytes = RAM_BYTES, .writers = 2, .pause_us = 20, .seed = 3 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };
	struct gr_ram_block_desc rom = { .size = sizeof(rom), .id = "rom", .used_bytes = MIB,
					 .max_bytes = 2 * MIB, .fd = -1 };
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
	struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = "ram", .used_bytes = 2 * MIB };
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

TEST(wrong_parameters_are_refused)
{
	struct gr_ram *ram = move_ram();
	struct gr_source_params params = { .size = 1 };
	struct gr_source_ops ops = { .pause = pause_fails };
	struct gr_channel *ch[2];
	struct gr_source *source;
	struct gr_error err;

	move_channels(ch);
	ASSERT_EQ(gr_source_create(NULL, NULL, ch[0], NULL, NULL, &source, &err), -EINVAL);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, NULL, &source, &err), -EINVAL);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], NULL, &ops, &source, &err), -EINVAL);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

/* A source that was never run leaves nothing behind: all consumers are free again. */
TEST(sources_that_are_freed_unrun_give_their_consumer_back)
{
	struct gr_ram *ram = move_ram();
	struct gr_channel *ch[2];
	struct gr_source *source;
	struct gr_error err;

	move_channels(ch);
	for (int i = 0; i < 2 * GR_DIRTY_CONSUMERS_MAX; i++) {
		ASSERT_EQ(gr_source_create(ram, NULL, ch[0], NULL, NULL, &source, &err), 0);
		gr_source_free(source);
	}
	gr_source_free(NULL);
	gr_destination_free(NULL);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

static int pause_at_once(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static void cancel_on_resume(void *opaque)
{
	gr_source_cancel(*(struct gr_source **)opaque);
}

static int save_fails(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque, (void)writer;
	return gr_error_set(err, -ENODEV, "a device does not answer");
}

/* While the guest is resumed after a failure somebody cancels: it has to end somehow. */
TEST(a_cancel_beside_a_failure_ends_as_cancelled)
{
	struct gr_source *source = NULL;
	struct gr_source_ops ops = { .pause = pause_at_once,
				     .resume = cancel_on_resume,
				     .save = save_fails,
				     .opaque = &source };
	struct gr_source_params params = { .size = sizeof(params), .plain = true };
	struct gr_ram *ram = move_ram();
	struct gr_migrate_stats stats;
	struct gr_channel *ch[2];
	struct gr_error err;

	move_channels(ch);
	move_fill(move_add(ram, "ram", 4 * MOVE_PAGE, 0, GR_RAM_MEMFD), 1, 2);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, &ops, &source, &err), 0);
	ASSERT_EQ(gr_source_run(source, &err), -ECANCELED);
	gr_source_stats(source, &stats);
	ASSERT(stats.state == GR_MIGRATE_CANCELLED);
	gr_source_free(source);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

TEST_MAIN()

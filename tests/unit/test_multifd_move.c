/* SPDX-License-Identifier: MIT */
/* Whole moves with further channels, and what a source says on them. */
#include "migrate/multifd_send.h"
#include "move.h"
#include "stream/multifd.h"
#include "stream/wire.h"

enum { CHANNELS_MAX = 8, BLOCK_BYTES = 512 * MOVE_PAGE };

/* A move with further channels between two machines of this process. */
struct wide {
	struct move move;
	struct gr_multifd from, to;
	struct gr_channel *ours[CHANNELS_MAX], *theirs[CHANNELS_MAX];
};

static void widen(struct wide *w, unsigned int count, enum gr_multifd_compression compression,
		  enum gr_multifd_dialect dialect)
{
	for (unsigned int i = 0; i < count; i++) {
		struct gr_channel *ch[2];

		move_channels(ch);
		w->ours[i] = ch[0];
		w->theirs[i] = ch[1];
	}
	w->from = (struct gr_multifd){
		.channels = w->ours, .count = count, .compression = compression, .dialect = dialect
	};
	w->to = w->from;
	w->to.channels = w->theirs;
	w->move.params.multifd = &w->from;
	w->move.to_params.multifd = &w->to;
}

static void narrow(struct wide *w)
{
	for (unsigned int i = 0; i < w->from.count; i++) {
		(void)gr_channel_close(w->ours[i], NULL);
		(void)gr_channel_close(w->theirs[i], NULL);
	}
}

static struct gr_ram *filled(void)
{
	struct gr_ram *ram = move_ram();

	move_fill(move_add(ram, "ram", BLOCK_BYTES, 0, GR_RAM_MEMFD), 1, 3);
	move_fill(move_add(ram, "other", 70 * MOVE_PAGE, 1ull << 32, GR_RAM_ANONYMOUS), 2, 5);
	return ram;
}

static void moves(unsigned int count, enum gr_multifd_compression compression,
		  enum gr_multifd_dialect dialect, bool plain, bool present)
{
	struct move_guest guest = {
		.bytes = BLOCK_BYTES, .writers = 2, .pause_us = 20, .seed = test_seed()
	};
	struct gr_source_ops ops = move_guest_ops(&guest);
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops to_ops = { .load = move_load, .opaque = &loaded };
	struct wide w = {
		.move = { .from = filled(), .to = move_ram(), .ops = &ops, .to_ops = &to_ops }
	};

	guest.ram = w.move.from;
	if (present) {
		struct gr_ram_block *block =
			move_add(w.move.to, "ram", BLOCK_BYTES, 0, GR_RAM_MEMFD);

		memset(block->host, 0xee, BLOCK_BYTES);
	}
	widen(&w, count, compression, dialect);
	w.move.params.plain = plain;
	w.move.params.rounds_max = 3;
	w.move.params.bandwidth_bytes_per_s_max = 40 << 20;
	move_guest_start(&guest);
	move_must_succeed(&w.move);
	ASSERT_EQ(w.move.stats.peer_is_guestram, !plain);
	ASSERT_EQ(move_compare(w.move.from, w.move.to), 0u);
	ASSERT_EQ(loaded.calls, 2u);
	ASSERT_EQ(w.move.to_stats.normal_pages, w.move.stats.normal_pages);
	ASSERT_GT(w.move.stats.transferred_bytes, 0u);
	move_guest_stop(&guest);
	narrow(&w);
	gr_ram_free(w.move.from);
	gr_ram_free(w.move.to);
}

TEST(a_running_machine_moves_over_one_to_eight_channels)
{
	static const unsigned int counts[] = { 1, 2, 3, 8 };

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		moves(counts[i], GR_MULTIFD_NONE, GR_MULTIFD_BY_MACHINE, false, i % 2 == 0);
	}
}

TEST(a_running_machine_moves_in_every_dialect)
{
	moves(2, GR_MULTIFD_NONE, GR_MULTIFD_7_2, true, false);
	moves(2, GR_MULTIFD_NONE, GR_MULTIFD_7_2, false, true);
	moves(2, GR_MULTIFD_NONE, GR_MULTIFD_8_1, true, true);
	moves(2, GR_MULTIFD_NONE, GR_MULTIFD_9_0, true, true);
	moves(2, GR_MULTIFD_NONE, GR_MULTIFD_9_0, true, false);
}

/* ---- pages that go out by reference ---------------------------------------------------- */

static struct gr_ram *filled_without_holes(void)
{
	struct gr_ram *ram = move_ram();

	move_fill(move_add(ram, "ram", BLOCK_BYTES, 0, GR_RAM_MEMFD), 1, 0);
	return ram;
}

TEST(a_running_machine_moves_with_its_pages_by_reference)
{
	struct move_guest guest = {
		.bytes = BLOCK_BYTES, .writers = 2, .pause_us = 20, .seed = test_seed()
	};
	struct gr_source_ops ops = move_guest_ops(&guest);

	for (unsigned int count = 1; count <= 3; count++) {
		struct wide w = { .move = { .from = filled_without_holes(),
					    .to = move_ram(),
					    .ops = &ops } };

		guest.ram = w.move.from;
		widen(&w, count, GR_MULTIFD_NONE, GR_MULTIFD_BY_MACHINE);
		w.move.params.rounds_max = 4;
		move_guest_start(&guest);
		move_must_succeed(&w.move);
		ASSERT_EQ(move_compare(w.move.from, w.move.to), 0u);
		move_guest_stop(&guest);
		guest.stop = guest.paused = false;
		narrow(&w);
		gr_ram_free(w.move.from);
		gr_ram_free(w.move.to);
	}
}

/* A file that holds other bytes than memory does: then it shows where the packet's come from. */
TEST(long_runs_come_from_the_file_the_rest_from_memory)
{
	enum { LONG = 16, SHORT = 2, FIRST = 3, LEAD = 5 };
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *memory = move_add(ram, "a", 64 * MOVE_PAGE, 0, GR_RAM_MEMFD);
	struct gr_ram_block *file = move_add(ram, "b", 64 * MOVE_PAGE, 1 << 30, GR_RAM_MEMFD);
	size_t header_bytes = gr_multifd_header_bytes(MOVE_PAGE), at = 0;
	uint8_t raw[GR_MULTIFD_GREETING_BYTES + GR_MULTIFD_HEADER_BYTES_MAX];
	static uint8_t got[(LONG + SHORT) * MOVE_PAGE];
	struct gr_multifd params = { .count = 1 };
	struct gr_multifd_send *m;
	struct gr_multifd_job *job;
	struct gr_channel *ch[2];

	move_fill(memory, 1, 0);
	move_fill(file, 2, 0);
	move_channels(ch);
	params.channels = &ch[0];
	ASSERT_EQ(gr_multifd_send_create(&params, MOVE_PAGE, &m, NULL), 0);
	ASSERT_EQ(gr_multifd_send_start(m, NULL), 0);
	ASSERT_EQ(gr_multifd_send_job(m, &job, NULL), 0);
	strcpy(job->header.block, "a");
	for (uint32_t i = 0; i < LONG + SHORT; i++) {
		uint64_t page = i < LONG ? FIRST + i : FIRST + i + 1;

		job->header.offsets[i] = page * MOVE_PAGE;
		job->pages[i] = memory->host + page * MOVE_PAGE;
	}
	job->header.pages = LONG + SHORT;
	job->file = (struct gr_channel_file){ .fd = file->fd,
					      .offset = file->fd_offset + LEAD * MOVE_PAGE,
					      .host = memory->host,
					      .bytes = 64 * MOVE_PAGE };
	gr_multifd_send_give(m, job);
	for (size_t want = GR_MULTIFD_GREETING_BYTES + header_bytes, n = 0; n < want;) {
		struct iovec iov = { raw, want - n };
		ssize_t part = gr_channel_readv(ch[1], &iov, 1, NULL);

		ASSERT_GT(part, 0);
		n += (size_t)part;
	}
	while (at < sizeof(got)) {
		struct iovec iov = { got + at, sizeof(got) - at };
		ssize_t part = gr_channel_readv(ch[1], &iov, 1, NULL);

		ASSERT_GT(part, 0);
		at += (size_t)part;
	}
	ASSERT(memcmp(got, file->host + (LEAD + FIRST) * MOVE_PAGE, LONG * MOVE_PAGE) == 0);
	ASSERT(memcmp(got + LONG * MOVE_PAGE, job->pages[LONG], SHORT * MOVE_PAGE) == 0);
	gr_multifd_send_free(m);
	(void)gr_channel_close(ch[0], NULL);
	(void)gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

/*
 * A source that nobody answers is done when all is written: what its machine does then is
 * nothing that a peer may see, which reads it only now.
 */
TEST(a_peer_that_does_not_answer_has_the_bytes_and_no_references)
{
	enum { BYTES = 16 * MOVE_PAGE };
	struct gr_ram *from = move_ram();
	struct gr_ram_block *block = move_add(from, "ram", BYTES, 0, GR_RAM_MEMFD);
	struct wide w = { .move = { .from = from, .to = move_ram() } };
	static uint8_t then[BYTES];

	move_fill(block, 1, 0);
	memcpy(then, block->host, BYTES);
	widen(&w, 1, GR_MULTIFD_NONE, GR_MULTIFD_9_0);
	w.move.params.plain = true;
	move_prepare(&w.move);
	ASSERT_EQ(gr_source_run(w.move.source, &w.move.err), 0); /* there is room in the sockets */
	memset(block->host, 0xee, BYTES);
	gr_channel_end_writing(w.move.ch[0]);
	gr_channel_end_writing(w.ours[0]);
	if (gr_destination_run(w.move.destination, &w.move.to_err) < 0) {
		FAIL("%s", w.move.to_err.msg);
	}
	memcpy(block->host, then, BYTES);
	ASSERT_EQ(move_compare(from, w.move.to), 0u);
	move_finish(&w.move);
	narrow(&w);
	gr_ram_free(from);
	gr_ram_free(w.move.to);
}

/* ---- compression ----------------------------------------------------------------------- */

static void compressed(enum gr_multifd_compression compression)
{
	struct gr_error err;

	if (gr_multifd_supports(compression, &err) < 0) {
		SKIP("%s", err.msg);
	}
	moves(2, compression, GR_MULTIFD_7_2, true, true);
	moves(3, compression, GR_MULTIFD_9_0, true, false);
	moves(2, compression, GR_MULTIFD_BY_MACHINE, false, true);
}

TEST(a_running_machine_moves_compressed_by_zlib)
{
	compressed(GR_MULTIFD_ZLIB);
}

TEST(a_running_machine_moves_compressed_by_zstd)
{
	compressed(GR_MULTIFD_ZSTD);
}

TEST(blocks_come_and_go_between_two_rounds)
{
	struct gr_ram *from = filled(), *to = move_ram();
	struct wide w = { .move = { .from = from, .to = to } };
	struct move_guest guest = { .ram = from, .bytes = BLOCK_BYTES };
	struct gr_source_ops ops = move_guest_ops(&guest);
	struct gr_ram_block *block;
	pthread_t thread;
	int rc = 1;

	pthread_mutex_init(&guest.lock, NULL);
	pthread_cond_init(&guest.changed, NULL);
	w.move.ops = &ops;
	widen(&w, 2, GR_MULTIFD_NONE, GR_MULTIFD_BY_MACHINE);
	w.move.params.bandwidth_bytes_per_s_max = 8 << 20;
	move_prepare(&w.move);
	ASSERT_EQ(pthread_create(&thread, NULL, move_receive, &w.move), 0);
	for (int i = 0; rc > 0; i++) {
		struct gr_migrate_stats stats;

		rc = gr_source_step(w.move.source, &w.move.err);
		gr_source_stats(w.move.source, &stats);
		if (stats.state == GR_MIGRATE_ACTIVE && i % 9 == 0 && i < 400) {
			block = move_add(from, "dimm", 8 * MOVE_PAGE, 1ull << 33, GR_RAM_MEMFD);
			move_fill(block, (uint64_t)i, 0);
		} else if (stats.state == GR_MIGRATE_ACTIVE && i % 9 == 5 && i < 400) {
			gr_rcu_read_lock();
			block = gr_ram_block_by_id_rcu(from, "dimm");
			gr_rcu_read_unlock();
			ASSERT(!block || gr_ram_block_del(block, NULL) == 0);
		}
	}
	pthread_join(thread, NULL);
	if (rc < 0 || w.move.to_rc < 0) {
		FAIL("source '%s', destination '%s'", rc ? w.move.err.msg : "", w.move.to_err.msg);
	}
	ASSERT_EQ(move_compare(from, to), 0u);
	move_finish(&w.move);
	ASSERT_GT(w.move.stats.blocks_announced, 2u);
	narrow(&w);
	gr_ram_free(from);
	gr_ram_free(to);
}

/* ---- what a source says ---------------------------------------------------------------- */

/* Everything that comes out of a channel. */
struct drain {
	struct gr_channel *ch;
	pthread_t thread;
	uint8_t *data;
	size_t bytes;
};

static void *drain_main(void *opaque)
{
	struct drain *d = opaque;
	ssize_t got;

	do {
		struct iovec iov = { d->data + d->bytes, (8u << 20) - d->bytes };

		got = gr_channel_readv(d->ch, &iov, 1, NULL);
		d->bytes += got > 0 ? (size_t)got : 0;
	} while (got > 0);
	return NULL;
}

static void drain_start(struct drain *d, struct gr_channel *ch)
{
	*d = (struct drain){ .ch = ch, .data = malloc(8u << 20) };
	ASSERT(d->data);
	ASSERT_EQ(pthread_create(&d->thread, NULL, drain_main, d), 0);
}

static unsigned int count_words(const struct drain *d, uint64_t word)
{
	unsigned int n = 0;

	for (size_t i = 0; i + 8 <= d->bytes; i++) {
		n += gr_get_be64(d->data + i) == word;
	}
	return n;
}

static int no_pause(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static void no_resume(void *opaque)
{
	(void)opaque;
}

static int save_nothing(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque, (void)writer, (void)err;
	return 0;
}

/* Runs a source into drains: 0 the main channel, then the further ones. */
static void listen_to(enum gr_multifd_dialect dialect, struct drain d[3], uint64_t *ret_rounds)
{
	struct gr_source_ops ops = { .pause = no_pause, .resume = no_resume, .save = save_nothing };
	struct gr_source_params params = { .size = sizeof(params), .plain = true, .look_ns = UINT64_MAX };
	struct gr_channel *ch[3][2], *further[2];
	struct gr_multifd multifd = { .channels = further, .count = 2, .dialect = dialect };
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *block = move_add(ram, "ram", 300 * MOVE_PAGE, 0, GR_RAM_MEMFD);
	struct gr_migrate_stats stats;
	struct gr_source *source;
	struct gr_error err;
	int rc;

	for (uint64_t page = 0; page < 300; page++) {
		block->host[page * MOVE_PAGE + 8] = page % 10 != 0;
	}
	for (int i = 0; i < 3; i++) {
		move_channels(ch[i]);
		drain_start(&d[i], ch[i][1]);
	}
	further[0] = ch[1][0];
	further[1] = ch[2][0];
	params.multifd = &multifd;
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0][0], &params, &ops, &source, &err), 0);
	do {
		rc = gr_source_step(source, &err);
		gr_source_stats(source, &stats);
		if (stats.rounds == 1) {
			gr_ram_mark(block, 7 * MOVE_PAGE, MOVE_PAGE);
		}
	} while (rc > 0);
	if (rc < 0) {
		FAIL("%s", err.msg);
	}
	*ret_rounds = stats.rounds;
	gr_source_free(source);
	for (int i = 0; i < 3; i++) {
		gr_channel_end_writing(ch[i][0]);
		pthread_join(d[i].thread, NULL);
		(void)gr_channel_close(ch[i][0], NULL);
		(void)gr_channel_close(ch[i][1], NULL);
	}
	gr_ram_free(ram);
}

/* SYNCs, pages and zero pages of a further channel. */
static void take_apart(const struct drain *d, uint8_t id, unsigned int counts[3])
{
	struct gr_multifd_greeting g;
	struct gr_multifd_header h;
	size_t at = GR_MULTIFD_GREETING_BYTES;

	ASSERT_GE(d->bytes, at);
	ASSERT_EQ(gr_multifd_greeting_parse(d->data, &g, NULL), 0);
	ASSERT_EQ(g.id, id);
	memset(counts, 0, 3 * sizeof(counts[0]));
	while (at < d->bytes) {
		ASSERT_GE(d->bytes - at, gr_multifd_header_bytes(MOVE_PAGE));
		ASSERT_EQ(gr_multifd_header_parse(d->data + at, MOVE_PAGE, &h, NULL), 0);
		at += gr_multifd_header_bytes(MOVE_PAGE) + h.payload_bytes;
		ASSERT_LE(at, d->bytes);
		if (counts[0] == 0) {
			ASSERT(h.sync); /* the set-up's, before any page */
		}
		counts[0] += h.sync;
		counts[1] += h.pages;
		counts[2] += h.zero_pages;
	}
}

static void says(enum gr_multifd_dialect dialect)
{
	unsigned int one[3], two[3], flushes, zeros;
	struct drain d[3];
	uint64_t rounds;

	listen_to(dialect, d, &rounds);
	take_apart(&d[1], 0, one);
	take_apart(&d[2], 1, two);
	flushes = count_words(&d[0], 0x200);
	zeros = count_words(&d[0], 10 * MOVE_PAGE | 0x22); /* page 10, the same block */
	ASSERT_GE(rounds, 2u);
	ASSERT_EQ(one[0], two[0]);
	ASSERT_EQ(one[1] + two[1], 270u + 1);
	if (dialect == GR_MULTIFD_7_2) {
		ASSERT_EQ(flushes, 0u);
		ASSERT_EQ(one[0], count_words(&d[0], 0x10)); /* each end of a section */
	} else {
		ASSERT_EQ(flushes, one[0]);
		ASSERT_EQ(flushes,
			  rounds); /* the set-up and each round; the last but one was not sent */
	}
	ASSERT_EQ(one[2] + two[2], dialect == GR_MULTIFD_9_0 ? 30u : 0u);
	ASSERT_EQ(zeros, dialect == GR_MULTIFD_9_0 ? 0u : 1u);
	for (int i = 0; i < 3; i++) {
		free(d[i].data);
	}
}

TEST(each_dialect_meets_where_qemu_does_and_has_its_zero_pages_there)
{
	says(GR_MULTIFD_7_2);
	says(GR_MULTIFD_8_1);
	says(GR_MULTIFD_9_0);
}

/* ---- what goes wrong ------------------------------------------------------------------- */

TEST(a_further_channel_that_breaks_ends_both_sides)
{
	for (unsigned int which = 0; which < 2; which++) {
		struct wide w = { .move = { .from = filled(), .to = move_ram() } };

		widen(&w, 2, GR_MULTIFD_NONE, GR_MULTIFD_BY_MACHINE);
		gr_channel_end_writing(w.ours[which]);
		move_run(&w.move);
		ASSERT_LT(w.move.rc, 0);
		ASSERT_LT(w.move.to_rc, 0);
		/* Who sees it first says which; to the other one the peer is gone. */
		ASSERT(strstr(w.move.to_err.msg, "multifd channel") ||
		       strstr(w.move.err.msg, "multifd channel"));
		narrow(&w);
		gr_ram_free(w.move.from);
		gr_ram_free(w.move.to);
	}
}

static void count_done(struct gr_multifd_job *job)
{
	(*(unsigned int *)job->opaque)++;
}

/* The peer goes after the greeting: nobody may believe that a SYNC, or what was before it, is out. */
TEST(a_sync_that_could_not_be_written_is_no_sync)
{
	for (int i = 0; i < 1000; i++) {
		struct gr_channel *ch[2];
		struct gr_multifd params = { .channels = &ch[0], .count = 1 };
		uint8_t greeting[GR_MULTIFD_GREETING_BYTES];
		struct iovec iov = { greeting, sizeof(greeting) };
		struct gr_multifd_send *m;
		struct gr_multifd_job *job;
		unsigned int done = 0;

		move_channels(ch);
		ASSERT_EQ(gr_multifd_send_create(&params, MOVE_PAGE, &m, NULL), 0);
		ASSERT_EQ(gr_multifd_send_start(m, NULL), 0);
		ASSERT_EQ(gr_channel_readv(ch[1], &iov, 1, NULL), (ssize_t)sizeof(greeting));
		(void)gr_channel_close(ch[1], NULL);
		if (i % 2 != 0) {
			ASSERT_EQ(gr_multifd_send_job(m, &job, NULL), 0);
			job->opaque = &done;
			job->done = count_done;
			gr_multifd_send_give(m, job);
		}
		ASSERT_LT(gr_multifd_send_sync(m, NULL), 0);
		gr_multifd_send_stop(m);
		ASSERT_EQ(done, i % 2 != 0 ? 1u : 0u);
		gr_multifd_send_free(m);
		(void)gr_channel_close(ch[0], NULL);
	}
}

static void *cancel_source(void *opaque)
{
	gr_source_cancel(opaque);
	return NULL;
}

TEST(cancelling_a_source_wakes_all_its_threads)
{
	struct wide w = { .move = { .from = filled(), .to = move_ram() } };
	pthread_t thread;

	widen(&w, 2, GR_MULTIFD_NONE, GR_MULTIFD_9_0);
	w.move.params.plain = true;
	move_prepare(&w.move); /* nobody reads: the channels fill up */
	ASSERT_EQ(pthread_create(&thread, NULL, cancel_source, w.move.source), 0);
	w.move.rc = gr_source_run(w.move.source, &w.move.err);
	pthread_join(thread, NULL);
	ASSERT_EQ(w.move.rc, -ECANCELED);
	move_finish(&w.move);
	ASSERT(w.move.stats.state == GR_MIGRATE_CANCELLED);
	narrow(&w);
	gr_ram_free(w.move.from);
	gr_ram_free(w.move.to);
}

TEST(parameters_that_cannot_be_are_refused)
{
	struct gr_channel *ch[2], *one[1];
	struct gr_multifd multifd = { .channels = one, .count = 1, .compression = 17 };
	struct gr_source_params params = { .size = sizeof(params), .multifd = &multifd };
	struct gr_destination_params to_params = { .size = sizeof(to_params), .multifd = &multifd };
	struct gr_destination *destination;
	struct gr_ram *ram = move_ram();
	struct gr_source *source;
	struct gr_error err;

	move_channels(ch);
	one[0] = ch[0];
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, NULL, &source, &err), -ENOTSUP);
	ASSERT_EQ(gr_destination_create(ram, ch[1], &to_params, NULL, &destination, &err),
		  -ENOTSUP);
	multifd.compression = GR_MULTIFD_NONE;
	multifd.count = 0;
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, NULL, &source, &err), -EINVAL);
	ASSERT_EQ(gr_destination_create(ram, ch[1], &to_params, NULL, &destination, &err), -EINVAL);
	ASSERT_HAS(err.msg, "further channels");
	multifd.count = 1;
	params.xbzrle_cache_bytes = 1 << 20;
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, NULL, &source, &err), -EINVAL);
	ASSERT_HAS(err.msg, "XBZRLE");
	(void)gr_channel_close(ch[0], NULL);
	(void)gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

TEST_MAIN()

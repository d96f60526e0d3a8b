/* SPDX-License-Identifier: MIT */
/* A relay of all channels of a migration: between two of our own, and with peers made by hand. */
#include "migrate/relay.h"
#include "move.h"
#include "stream/channel.h"
#include "stream/multifd.h"
#include "stream_kit.h"
#include <guestram/log.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/un.h>

enum { CHANNELS_MAX = 8, PAGES = 512, BLOCK_BYTES = PAGES * MOVE_PAGE, WAIT_MS = 20000 };

static const uint64_t long_ns = 60ull * 1000 * 1000 * 1000;

/* A relay between two unix sockets in a folder of its own. */
struct rig {
	char folder[40], from_uri[64], to_uri[64];
	struct gr_channel_listener *in, *out; /* the relay's, the destination's */
	uint64_t limit_ns;
	struct gr_relay_params params;
	struct gr_migrate_stats stats;
	struct gr_error err;
	int rc;
	pthread_t thread;
};

static void *relay_main(void *opaque)
{
	struct rig *r = opaque;

	r->rc = gr_relay_serve_within(r->in, r->to_uri, r->limit_ns, &r->params, &r->stats,
				      &r->err);
	return NULL;
}

static void open_rig(struct rig *r, uint64_t limit_ns)
{
	*r = (struct rig){ .limit_ns = limit_ns, .params = { .size = sizeof(r->params) } };
	strcpy(r->folder, "/tmp/guestram-relay-XXXXXX");
	ASSERT(mkdtemp(r->folder));
	(void)snprintf(r->from_uri, sizeof(r->from_uri), "unix:%s/from", r->folder);
	(void)snprintf(r->to_uri, sizeof(r->to_uri), "unix:%s/to", r->folder);
	ASSERT_EQ(gr_channel_listen(r->from_uri, &r->in, NULL), 0);
	ASSERT_EQ(gr_channel_listen(r->to_uri, &r->out, NULL), 0);
	ASSERT_EQ(pthread_create(&r->thread, NULL, relay_main, r), 0);
}

static int close_rig(struct rig *r)
{
	pthread_join(r->thread, NULL);
	gr_channel_listener_close(r->in);
	gr_channel_listener_close(r->out);
	ASSERT_EQ(rmdir(r->folder), 0);
	return r->rc;
}

/* ---- between two of our own ------------------------------------------------------------ */

struct arrival {
	struct rig *rig;
	struct gr_ram *to;
	struct gr_multifd multifd;
	struct gr_channel *main, *further[CHANNELS_MAX];
	struct gr_destination_ops ops;
	struct gr_migrate_stats stats;
	struct gr_error err;
	int rc;
};

static void *arrive(void *opaque)
{
	struct arrival *a = opaque;
	struct gr_destination_params params = { .size = sizeof(params), .multifd = &a->multifd };
	struct gr_destination *destination;

	ASSERT_EQ(gr_multifd_accept(a->rig->out, a->multifd.count, &a->main, a->further, &a->err),
		  0);
	a->multifd.channels = a->further;
	ASSERT_EQ(gr_destination_create(a->to, a->main, &params, &a->ops, &destination, &a->err),
		  0);
	a->rc = gr_destination_run(destination, &a->err);
	gr_destination_stats(destination, &a->stats);
	gr_destination_free(destination);
	(void)gr_channel_close(a->main, NULL);
	for (unsigned int i = 0; i < a->multifd.count; i++) {
		(void)gr_channel_close(a->further[i], NULL);
	}
	return NULL;
}

/* A guest that writes goes through the relay; how its source, the destination and the relay ended.
 */
struct passage {
	unsigned int count;
	enum gr_multifd_compression compression;
	enum gr_multifd_dialect dialect;
	bool plain;
	struct gr_destination_ops to_ops;
	struct rig rig;
	struct arrival arrival;
	struct gr_ram *from;
	struct gr_migrate_stats stats;
	int rc;
};

static void pass(struct passage *p)
{
	struct move_guest guest = {
		.bytes = BLOCK_BYTES, .writers = 2, .pause_us = 20, .seed = test_seed()
	};
	struct gr_source_ops ops = move_guest_ops(&guest);
	struct gr_channel *main_channel, *further[CHANNELS_MAX];
	struct gr_multifd multifd = { .channels = further,
				      .count = p->count,
				      .compression = p->compression,
				      .dialect = p->dialect };
	struct gr_source_params params = {
		.size = sizeof(params), .multifd = &multifd, .plain = p->plain, .rounds_max = 3
	};
	struct gr_source *source;
	struct gr_error err = { 0 };
	pthread_t thread;

	p->from = guest.ram = move_ram();
	move_fill(move_add(p->from, "ram", BLOCK_BYTES, 0, GR_RAM_MEMFD), 1, 3);
	open_rig(&p->rig, long_ns);
	p->arrival = (struct arrival){
		.rig = &p->rig, .to = move_ram(), .multifd = multifd, .ops = p->to_ops
	};
	ASSERT_EQ(pthread_create(&thread, NULL, arrive, &p->arrival), 0);
	move_guest_start(&guest);
	ASSERT_EQ(gr_multifd_connect(p->rig.from_uri, p->count, &main_channel, further, &err), 0);
	ASSERT_EQ(gr_source_create(p->from, NULL, main_channel, &params, &ops, &source, &err), 0);
	p->rc = gr_source_run(source, &err);
	gr_source_stats(source, &p->stats);
	gr_source_free(source);
	(void)gr_channel_close(main_channel, NULL);
	for (unsigned int i = 0; i < p->count; i++) {
		(void)gr_channel_close(further[i], NULL);
	}
	pthread_join(thread, NULL);
	(void)close_rig(&p->rig);
	move_guest_stop(&guest);
}

static void end_passage(struct passage *p)
{
	gr_ram_free(p->from);
	gr_ram_free(p->arrival.to);
}

static void passes(unsigned int count, enum gr_multifd_compression compression,
		   enum gr_multifd_dialect dialect, bool plain)
{
	struct passage p = {
		.count = count, .compression = compression, .dialect = dialect, .plain = plain
	};

	pass(&p);
	if (p.rc != 0 || p.rig.rc != 0 || p.arrival.rc != 0) {
		FAIL("source %d, relay %d '%s', destination %d '%s'", p.rc, p.rig.rc, p.rig.err.msg,
		     p.arrival.rc, p.arrival.err.msg);
	}
	ASSERT_EQ(move_compare(p.from, p.arrival.to), 0u);
	ASSERT(!p.stats.peer_is_guestram);
	ASSERT(p.rig.stats.state == GR_MIGRATE_COMPLETED);
	ASSERT_EQ(p.rig.stats.rounds, p.arrival.stats.rounds);
	ASSERT_EQ(p.rig.stats.normal_pages, p.stats.normal_pages);
	ASSERT_EQ(p.rig.stats.zero_pages, p.stats.zero_pages);
	ASSERT_EQ(p.rig.stats.total_bytes, (uint64_t)BLOCK_BYTES);
	ASSERT_EQ(p.rig.stats.transferred_bytes, p.stats.transferred_bytes);
	end_passage(&p);
}

TEST(a_running_machine_passes_over_one_to_eight_channels)
{
	passes(1, GR_MULTIFD_NONE, GR_MULTIFD_BY_MACHINE, false);
	passes(2, GR_MULTIFD_NONE, GR_MULTIFD_BY_MACHINE, true);
	passes(8, GR_MULTIFD_NONE, GR_MULTIFD_BY_MACHINE, false);
}

TEST(a_running_machine_passes_in_every_dialect)
{
	for (int plain = 0; plain < 2; plain++) {
		passes(2, GR_MULTIFD_NONE, GR_MULTIFD_7_2, plain);
		passes(3, GR_MULTIFD_NONE, GR_MULTIFD_8_1, plain);
		passes(2, GR_MULTIFD_NONE, GR_MULTIFD_9_0, plain);
	}
}

TEST(compressed_packets_pass_as_they_are)
{
	if (gr_multifd_supports(GR_MULTIFD_ZLIB, NULL) == 0) {
		passes(2, GR_MULTIFD_ZLIB, GR_MULTIFD_BY_MACHINE, false);
	}
	if (gr_multifd_supports(GR_MULTIFD_ZSTD, NULL) == 0) {
		passes(2, GR_MULTIFD_ZSTD, GR_MULTIFD_BY_MACHINE, true);
	}
}

static int refuse(void *opaque, struct gr_error *err)
{
	(void)opaque;
	return gr_error_set(err, -EBADMSG, "not this one");
}

TEST(a_refusal_reaches_a_source_with_further_channels)
{
	struct passage p = { .count = 2, .to_ops = { .complete = refuse } };

	pass(&p);
	ASSERT_LT(p.rc, 0);
	ASSERT(p.stats.state == GR_MIGRATE_FAILED);
	ASSERT_EQ(p.arrival.rc, -EBADMSG);
	ASSERT_EQ(p.rig.rc, -EREMOTEIO);
	end_passage(&p);
}

/* ---- peers made by hand ---------------------------------------------------------------- */

static struct gr_channel *knock(struct rig *r, const void *words, size_t n)
{
	struct gr_channel *ch;

	ASSERT_EQ(gr_channel_connect(r->from_uri, &ch, NULL), 0);
	(void)!gr_channel_write_all(ch, words, n, NULL);
	return ch;
}

static void say(struct gr_channel *ch, struct kit_bytes *b)
{
	(void)!gr_channel_write_all(ch, b->p, b->n, NULL);
	b->n = 0;
}

static void put_greeting(struct kit_bytes *b, unsigned int id)
{
	struct gr_multifd_greeting g = { .id = (uint8_t)id, .uuid = { 7 } };
	uint8_t raw[GR_MULTIFD_GREETING_BYTES];

	gr_multifd_greeting_put(&g, raw);
	kit_raw(b, raw, sizeof(raw));
}

/* A packet of at most one page. -1: none. */
static void put_packet(struct kit_bytes *b, int64_t page, bool sync)
{
	struct gr_multifd_header h = { .sync = sync };
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	static const uint8_t bytes[MOVE_PAGE] = { 1, 2, 3 };

	if (page >= 0) {
		strcpy(h.block, "ram");
		h.offsets[0] = (uint64_t)page * MOVE_PAGE;
		h.pages = 1;
		h.payload_bytes = MOVE_PAGE;
	}
	gr_multifd_header_put(&h, MOVE_PAGE, raw);
	kit_raw(b, raw, gr_multifd_header_bytes(MOVE_PAGE));
	kit_raw(b, bytes, h.payload_bytes);
}

static struct gr_channel *knock_further(struct rig *r, unsigned int id)
{
	struct kit_bytes b = { 0 };
	struct gr_channel *ch;

	put_greeting(&b, id);
	ch = knock(r, b.p, b.n);
	kit_free(&b);
	return ch;
}

/* Up to where a section's records begin. No machine's name with a version: pages of 4096 bytes. */
static void put_start(struct kit_bytes *b)
{
	kit_config(b);
	kit_start(b);
	kit_be64(b, BLOCK_BYTES | 4);
	kit_str8(b, "ram");
	kit_be64(b, BLOCK_BYTES);
}

static void put_rest(struct kit_bytes *b)
{
	static const char tail[] = "\0\6\0\0\0\017{\"devices\": []}";

	kit_part(b, 3);
	kit_eos(b);
	kit_raw(b, tail, sizeof(tail) - 1);
}

static struct gr_channel *accept_one(struct rig *r)
{
	struct gr_channel *ch;

	ASSERT_EQ(gr_channel_accept(r->out, &ch, NULL), 0);
	return ch;
}

static int kind_of(struct rig *r, struct gr_channel *ch)
{
	return gr_multifd_tell(ch, gr_channel_listener_wake_fd(r->out), WAIT_MS, NULL);
}

/* What comes is this, and it comes although nothing follows. */
static void hear(struct gr_channel *ch, const struct kit_bytes *b)
{
	uint8_t *got = malloc(b->n);
	size_t at = 0;

	ASSERT(got);
	while (at < b->n) {
		struct iovec iov = { got + at, b->n - at };
		ssize_t n;

		ASSERT(gr_channel_is_readable(ch, WAIT_MS));
		n = gr_channel_readv(ch, &iov, 1, NULL);
		ASSERT_GT(n, 0);
		at += (size_t)n;
	}
	ASSERT_MEM_EQ(got, b->p, b->n);
	free(got);
}

/* Until the end, or a break. */
static void read_to_end(struct gr_channel *ch)
{
	uint8_t byte[4096];
	struct iovec iov = { byte, sizeof(byte) };

	do {
		ASSERT(gr_channel_is_readable(ch, WAIT_MS));
	} while (gr_channel_readv(ch, &iov, 1, NULL) > 0);
}

static void hear_end(struct gr_channel *ch)
{
	read_to_end(ch);
	(void)gr_channel_close(ch, NULL);
}

static void close_all(struct gr_channel **ch, int n)
{
	for (int i = 0; i < n; i++) {
		(void)gr_channel_close(ch[i], NULL);
	}
}

/* One main channel and one further one through the relay, as far as their first bytes. */
struct pair {
	struct rig rig;
	struct gr_channel *main[2], *further[2]; /* the source's, the destination's */
};

static void open_pair_within(struct pair *p, uint64_t limit_ns)
{
	struct kit_bytes b = { 0 };

	open_rig(&p->rig, limit_ns);
	put_start(&b);
	p->main[0] = knock(&p->rig, b.p, b.n);
	p->main[1] = accept_one(&p->rig);
	p->further[0] = knock_further(&p->rig, 3);
	p->further[1] = accept_one(&p->rig);
	kit_free(&b);
	put_greeting(&b, 3);
	hear(p->further[1], &b);
	kit_free(&b);
}

static void open_pair(struct pair *p)
{
	open_pair_within(p, long_ns);
}

/* The relay ends by itself, and breaks all that is left. */
static void fails(struct pair *p, int rc, const char *words)
{
	pthread_join(p->rig.thread, NULL);
	if (p->rig.rc != rc) {
		FAIL("%d '%s', not %d", p->rig.rc, p->rig.err.msg, rc);
	}
	ASSERT_HAS(p->rig.err.msg, words);
	for (int side = 0; side < 2; side++) {
		if (p->main[side]) {
			hear_end(p->main[side]);
		}
		if (p->further[side]) {
			hear_end(p->further[side]);
		}
	}
	ASSERT_EQ(pthread_create(&p->rig.thread, NULL, relay_main, &p->rig), 0); /* shut down: */
	ASSERT_EQ(close_rig(&p->rig), -ECANCELED);
}

TEST(the_main_channel_is_the_first_at_the_destination_and_a_late_one_comes_too)
{
	enum { EARLY = 8 };
	struct gr_channel *early[EARLY], *arrived[EARLY], *main_channel, *to, *late, *late_to;
	struct kit_bytes b = { 0 };
	struct pollfd accepted;
	struct rig r;

	open_rig(&r, long_ns);
	accepted = (struct pollfd){ gr_channel_listener_fd(r.in), POLLIN, 0 };
	for (unsigned int i = 0; i < EARLY; i++) {
		early[i] = knock_further(&r, i);
	}
	while (poll(&accepted, 1, 0) > 0) {
		usleep(1000);
	}
	put_start(&b);
	kit_eos(&b);
	main_channel = knock(&r, b.p, b.n);
	to = accept_one(&r);
	ASSERT_EQ(kind_of(&r, to), GR_MULTIFD_MAIN);
	hear(to, &b);
	for (int i = 0; i < EARLY; i++) {
		arrived[i] = accept_one(&r);
		ASSERT_EQ(kind_of(&r, arrived[i]), GR_MULTIFD_FURTHER);
	}
	late = knock_further(&r, EARLY);
	late_to = accept_one(&r);
	b.n = 0;
	put_greeting(&b, EARLY);
	hear(late_to, &b);
	(void)gr_channel_close(main_channel, NULL);
	hear_end(to);
	ASSERT_EQ(close_rig(&r), -EPIPE);
	close_all(early, EARLY);
	close_all(arrived, EARLY);
	close_all(&late, 1);
	close_all(&late_to, 1);
	kit_free(&b);
}

/* The source's footer may come only when its channels have gone on, for which the destination must
 * see EOS. */
TEST(where_channels_meet_nothing_is_held_back)
{
	struct kit_bytes b = { 0 }, seen = { 0 };
	struct pair p;

	open_pair(&p);
	put_start(&seen);
	kit_be64(&b, 0x10);
	kit_be64(&seen, 0x10);
	say(p.main[0], &b);
	hear(p.main[1], &seen);
	seen.n = 0;
	for (int i = 0; i < 2; i++) {
		struct kit_bytes *to = i ? &seen : &b;

		kit_u8(to, 0x7e);
		kit_be32(to, 2);
		kit_part(to, 2);
		kit_be64(to, 0x200); /* MULTIFD_FLUSH of a newer one */
	}
	say(p.main[0], &b);
	hear(p.main[1], &seen);
	gr_channel_shutdown(p.further[0]);
	kit_free(&b);
	kit_free(&seen);
	fails(&p, -EPIPE, "multifd channel 3: byte 64: the source has closed it before the end");
}

/* Its end is a good one as long as the main channel does not want it again. */
TEST(a_channel_that_ended_well_is_missed_where_all_meet_again)
{
	struct kit_bytes b = { 0 }, seen = { 0 };
	struct pair p;

	open_pair(&p);
	put_packet(&b, -1, true);
	put_packet(&seen, -1, true);
	say(p.further[0], &b);
	hear(p.further[1], &seen);
	seen.n = 0;
	put_start(&seen);
	kit_eos(&b);
	kit_eos(&seen);
	say(p.main[0], &b);
	hear(p.main[1], &seen);
	gr_channel_end_writing(p.further[0]);
	hear_end(p.further[1]);
	p.further[1] = NULL;
	put_rest(&b);
	say(p.main[0], &b);
	gr_channel_end_writing(p.main[0]);
	kit_free(&b);
	kit_free(&seen);
	fails(&p, -EPIPE, "multifd channel 3: byte 1408: the source has closed it before the end");
}

TEST(a_sync_that_is_missing_at_the_end_is_an_error)
{
	struct kit_bytes b = { 0 }, seen = { 0 };
	struct pair p;

	open_pair(&p);
	kit_eos(&b);
	put_rest(&b);
	put_start(&seen);
	kit_raw(&seen, b.p, b.n);
	say(p.main[0], &b);
	gr_channel_end_writing(p.main[0]);
	hear(p.main[1], &seen);
	put_packet(&b, 1, true);
	say(p.further[0], &b);
	gr_channel_end_writing(p.further[0]);
	kit_free(&b);
	kit_free(&seen);
	fails(&p, -EPIPE, "the source has closed it before the end");
}

TEST(a_packet_that_is_wrong_ends_all_channels_and_says_which_and_where)
{
	struct kit_bytes b = { 0 };
	struct pair p;

	open_pair(&p);
	put_packet(&b, 5, true);
	put_packet(&b, -1, true);
	b.p[1344 + MOVE_PAGE + 3]++;
	say(p.further[0], &b);
	kit_free(&b);
	fails(&p, -EBADMSG, "multifd channel 3: byte 5504: a packet that begins with 0x11223345");
}

TEST(a_channel_that_breaks_off_ends_all_and_says_where)
{
	static const struct {
		size_t bytes;
		const char *words;
	} cuts[] = {
		{ 100, "multifd channel 3: byte 164: it ends inside of a header" },
		{ 2000, "multifd channel 3: byte 2064: it ends inside of a packet's pages" },
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(cuts); i++) {
		struct kit_bytes b = { 0 };
		struct pair p;

		open_pair(&p);
		put_packet(&b, 5, true);
		b.n = cuts[i].bytes;
		say(p.further[0], &b);
		gr_channel_end_writing(p.further[0]);
		kit_free(&b);
		fails(&p, -EPIPE, cuts[i].words);
	}
}

TEST(a_destination_that_closes_a_channel_ends_all)
{
	struct kit_bytes b = { 0 };
	struct pair p;

	open_pair(&p);
	(void)gr_channel_close(p.further[1], NULL);
	p.further[1] = NULL;
	put_packet(&b, 5, true);
	say(p.further[0], &b);
	kit_free(&b);
	fails(&p, -EPIPE, "multifd channel 3: to the destination: ");
}

TEST(a_listener_that_is_shut_down_cancels_what_is_under_way)
{
	struct pair p;

	open_pair(&p);
	gr_channel_listener_shutdown(p.rig.in);
	fails(&p, -ECANCELED, "listening was ended");
}

/* A pair whose source asks for answers, as far as the end of its list of blocks. */
static void open_answering_pair(struct pair *p)
{
	struct kit_bytes b = { 0 }, seen = { 0 };

	open_pair(p);
	put_start(&seen);
	for (int i = 0; i < 2; i++) {
		struct kit_bytes *to = i ? &seen : &b;

		kit_eos(to);
		kit_raw(to, "\10\0\1\0\0", 5); /* OPEN_RETURN_PATH */
	}
	say(p->main[0], &b);
	hear(p->main[1], &seen);
	kit_free(&b);
	kit_free(&seen);
}

/* As a destination does that notices. */
static void say_failed(struct pair *p)
{
	(void)!gr_channel_write_all(p->main[1], "\0\1\0\4\0\0\0\1", 8, NULL);
}

static void hear_end_of_further(struct pair *p)
{
	hear_end(p->further[1]);
	p->further[1] = NULL;
}

TEST(what_the_destination_says_of_an_end_that_it_was_given_is_not_the_reason)
{
	struct kit_bytes b = { 0 };
	struct pair p;

	open_answering_pair(&p);
	put_packet(&b, -1, true);
	b.p[3]++;
	say(p.further[0], &b);
	hear_end_of_further(&p);
	say_failed(&p);
	fails(&p, -EBADMSG, "multifd channel 3: byte 64: ");

	open_answering_pair(&p);
	gr_channel_listener_shutdown(p.rig.in);
	hear_end_of_further(&p);
	say_failed(&p);
	fails(&p, -ECANCELED, "listening was ended");

	/* a channel that ended well is missed where all meet again */
	open_answering_pair(&p);
	put_packet(&b, -1, true);
	say(p.further[0], &b);
	gr_channel_end_writing(p.further[0]);
	hear_end_of_further(&p);
	kit_part(&b, 2);
	kit_eos(&b);
	say(p.main[0], &b);
	read_to_end(p.main[1]);
	say_failed(&p);
	fails(&p, -EPIPE, "multifd channel 3: byte 1408: ");
	kit_free(&b);
}

TEST(what_the_destination_says_is_the_reason_why_it_cannot_be_written_to)
{
	struct kit_bytes b = { 0 };
	struct pair p;

	open_answering_pair(&p);
	say_failed(&p);
	read_to_end(p.main[0]);
	(void)gr_channel_close(p.further[1], NULL);
	p.further[1] = NULL;
	put_packet(&b, 5, true);
	say(p.further[0], &b);
	kit_free(&b);
	fails(&p, -EREMOTEIO, "it says 1");
}

/* The main channel has ended well; the others have as long as they need. */
TEST(what_comes_on_a_further_channel_after_the_end_of_the_main_one_arrives)
{
	struct kit_bytes b = { 0 }, seen = { 0 };
	struct pair p;

	open_pair(&p);
	kit_eos(&b);
	put_rest(&b);
	put_start(&seen);
	kit_raw(&seen, b.p, b.n);
	say(p.main[0], &b);
	gr_channel_end_writing(p.main[0]);
	hear(p.main[1], &seen);
	for (int i = 0; i < 1000; i++) {
		seen.n = 0;
		put_packet(&b, i % PAGES, i >= 998); /* a SYNC for each EOS */
		put_packet(&seen, i % PAGES, i >= 998);
		say(p.further[0], &b);
		hear(p.further[1], &seen);
	}
	gr_channel_end_writing(p.further[0]);
	hear_end(p.further[1]);
	hear_end(p.main[1]);
	ASSERT_EQ(close_rig(&p.rig), 0);
	ASSERT_EQ(p.rig.stats.normal_pages, 1000u);
	close_all(&p.main[0], 1);
	close_all(&p.further[0], 1);
	kit_free(&b);
	kit_free(&seen);
}

/* The main channel has said all. */
static void end_main(struct gr_channel *from, struct gr_channel *to)
{
	struct kit_bytes b = { 0 }, seen = { 0 };

	put_start(&seen);
	kit_eos(&b);
	put_rest(&b);
	kit_raw(&seen, b.p, b.n);
	say(from, &b);
	gr_channel_end_writing(from);
	hear(to, &seen);
	kit_free(&b);
	kit_free(&seen);
}

TEST(who_has_come_and_not_spoken_may_be_a_further_channel)
{
	struct gr_channel *main_channel, *to, *late, *late_to;
	struct kit_bytes b = { 0 };
	struct rig r;

	open_rig(&r, long_ns);
	put_start(&b);
	main_channel = knock(&r, b.p, b.n);
	to = accept_one(&r);
	late = knock(&r, "", 0);
	end_main(main_channel, to);
	ASSERT(!gr_channel_is_readable(to, 300)); /* else it is over */
	b.n = 0;
	put_greeting(&b, 0);
	put_packet(&b, 1, true);
	put_packet(&b, 2, true);
	(void)!gr_channel_write_all(late, b.p, b.n, NULL);
	late_to = accept_one(&r);
	hear(late_to, &b);
	close_all(&late, 1);
	hear_end(to);
	if (close_rig(&r) != 0) {
		FAIL("%s", r.err.msg);
	}
	ASSERT_EQ(r.stats.normal_pages, 2u);
	close_all(&late_to, 1);
	close_all(&main_channel, 1);
	kit_free(&b);
}

/* Fills what is on the way to who does not read; how much it was. */
static size_t stuff(struct gr_channel *ch, const struct kit_bytes *b)
{
	struct pollfd writable = { gr_channel_fd(ch), POLLOUT, 0 };
	size_t sent = 0;

	while (sent < b->n && poll(&writable, 1, 300) > 0) {
		ssize_t n = send(writable.fd, b->p + sent, b->n - sent, MSG_DONTWAIT);

		sent += n > 0 ? (size_t)n : 0;
	}
	return sent;
}

TEST(a_slow_destination_has_its_time_and_a_silent_source_has_not)
{
	enum { PACKETS = 4096, LIMIT_MS = 1500 };
	struct kit_bytes all = { 0 };
	struct pair p;
	size_t sent;

	open_pair_within(&p, LIMIT_MS * 1000000ull);
	for (int i = 0; i < PACKETS; i++) {
		put_packet(&all, i % PAGES, i < 2);
	}
	end_main(p.main[0], p.main[1]);
	sent = stuff(p.further[0], &all);
	ASSERT_LT(sent, all.n);
	ASSERT(!gr_channel_is_readable(p.main[1], 5 * LIMIT_MS / 2)); /* it waits */
	all.n = sent;
	hear(p.further[1], &all);
	kit_free(&all);
	fails(&p, -ETIMEDOUT,
	      "multifd channel 3: the source has closed the main channel and not this");
}

/* The destination has all of RAM and of the devices, and closes a further channel. */
static void closes_at_the_end(struct pair *p)
{
	struct kit_bytes b = { 0 }, seen = { 0 };

	open_pair(p);
	for (int i = 0; i < 2; i++) { /* a SYNC for each EOS */
		put_packet(&b, i, true);
		put_packet(&seen, i, true);
	}
	say(p->further[0], &b);
	hear(p->further[1], &seen);
	seen.n = 0;
	kit_eos(&b);
	put_rest(&b);
	put_start(&seen);
	kit_raw(&seen, b.p, b.n);
	say(p->main[0], &b);
	hear(p->main[1], &seen);
	(void)gr_channel_close(p->further[1], NULL);
	p->further[1] = NULL;
	kit_free(&b);
	kit_free(&seen);
}

TEST(an_empty_packet_behind_the_last_one_may_be_lost)
{
	struct kit_bytes b = { 0 };
	struct pair p;

	closes_at_the_end(&p);
	put_packet(&b, -1, false);
	say(p.further[0], &b);
	put_packet(&b, -1, false);
	say(p.further[0], &b);
	kit_free(&b);
	close_all(&p.further[0], 1);
	close_all(&p.main[0], 1);
	hear_end(p.main[1]);
	if (close_rig(&p.rig) != 0) {
		FAIL("%s", p.rig.err.msg);
	}
}

TEST(a_page_that_the_destination_did_not_take_is_an_error_however_late)
{
	struct kit_bytes b = { 0 };
	struct pair p;

	closes_at_the_end(&p);
	put_packet(&b, -1, false);
	put_packet(&b, 2, false);
	say(p.further[0], &b);
	kit_free(&b);
	gr_channel_end_writing(p.further[0]);
	gr_channel_end_writing(p.main[0]);
	fails(&p, -EPIPE, "multifd channel 3: to the destination: ");
}

/* Nothing is kept but a chunk: who does not read makes the source wait. */
TEST(a_slow_destination_makes_the_source_wait)
{
	enum { PACKETS = 4096, BOUND = 8 << 20 };
	struct kit_bytes b = { 0 }, all = { 0 };
	struct pair p;
	size_t sent;

	open_pair(&p);
	for (int i = 0; i < PACKETS; i++) {
		put_packet(&all, i % PAGES, false);
	}
	kit_eos(&b);
	say(p.main[0], &b);
	kit_free(&b);
	sent = stuff(p.further[0], &all);
	ASSERT_LT(sent, (size_t)BOUND);
	all.n = sent;
	hear(p.further[1], &all); /* and what was sent is all there */
	kit_free(&all);
	gr_channel_shutdown(p.main[0]);
	pthread_join(p.rig.thread, NULL);
	ASSERT_LT(p.rig.rc, 0);
	ASSERT_EQ(pthread_create(&p.rig.thread, NULL, relay_main, &p.rig), 0);
	(void)close_rig(&p.rig);
	close_all(p.main, 2);
	close_all(p.further, 2);
}

/* ---- who comes ------------------------------------------------------------------------- */

TEST(strangers_are_turned_away_and_the_migration_goes_on)
{
	struct gr_channel *stranger;
	struct pair p;

	open_pair(&p);
	stranger = knock(&p.rig, "GET / HTTP/1.0", 14);
	hear_end(stranger);
	stranger = knock(&p.rig, "QEVM\0\0\0\3", 8);
	hear_end(stranger);
	(void)gr_channel_close(knock(&p.rig, "", 0), NULL);
	gr_channel_shutdown(p.main[0]);
	fails(&p, -EPIPE, "byte ");
}

static void count_remark(enum gr_log_level level, const char *msg, void *opaque)
{
	(void)msg;
	if (level == GR_LOG_WARN) {
		__atomic_add_fetch((int *)opaque, 1, __ATOMIC_SEQ_CST);
	}
}

static void await_remarks(const int *remarks, int n)
{
	while (__atomic_load_n(remarks, __ATOMIC_SEQ_CST) < n) {
		usleep(1000);
	}
}

/* The main channel's bytes still arrive. */
static void still_passes(struct pair *p)
{
	struct kit_bytes b = { 0 }, seen = { 0 };

	put_start(&seen);
	kit_eos(&b);
	kit_eos(&seen);
	say(p->main[0], &b);
	hear(p->main[1], &seen);
	kit_free(&b);
	kit_free(&seen);
}

/* A socket that only has to be connected. */
static int open_knocker(struct rig *r, struct sockaddr_un *sa)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	(void)snprintf(sa->sun_path, sizeof(sa->sun_path), "%s", r->from_uri + strlen("unix:"));
	ASSERT_GE(fd, 0);
	return fd;
}

TEST(who_cannot_be_served_is_turned_away_and_the_migration_goes_on)
{
	struct rlimit all, none;
	struct sockaddr_un sa;
	int remarks = 0, fd;
	struct pair p;

	open_pair(&p);
	gr_log_set_handler(count_remark, &remarks);
	fd = open_knocker(&p.rig, &sa);
	ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &all), 0);
	none = (struct rlimit){ .rlim_cur = 3, .rlim_max = all.rlim_max };
	ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
	ASSERT_EQ(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	await_remarks(&remarks, 2);
	still_passes(&p);
	ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &all), 0);
	ASSERT_EQ(send(fd, "GET", 3, MSG_NOSIGNAL), 3);
	ASSERT(recv(fd, &sa, sizeof(sa), 0) <= 0); /* its turn has come */
	close(fd);
	gr_channel_shutdown(p.main[0]);
	fails(&p, -EPIPE, "byte ");
	gr_log_set_handler(NULL, NULL);
}

TEST(a_greeting_that_does_not_fit_is_turned_away)
{
	struct kit_bytes b = { 0 };
	struct gr_channel *other;
	struct pair p;

	open_pair(&p);
	hear_end(knock_further(&p.rig, 3)); /* the number is taken */
	put_greeting(&b, 4);
	b.p[8]++; /* of another machine */
	other = knock(&p.rig, b.p, b.n);
	hear_end(other);
	b.p[8]--;
	b.p[7]++; /* of another version */
	other = knock(&p.rig, b.p, b.n);
	hear_end(other);
	other = knock(&p.rig, b.p, 63);
	gr_channel_end_writing(other);
	hear_end(other);
	kit_free(&b);
	still_passes(&p);
	ASSERT_EQ(gr_channel_listener_wait(p.rig.out, 0, NULL),
		  -ETIMEDOUT); /* nobody was led there */
	gr_channel_shutdown(p.main[0]);
	fails(&p, -EPIPE, "byte ");
}

/* A source that was cancelled early: its main channel said nothing, the others wait for it. */
TEST(channels_of_an_attempt_that_came_to_nothing_are_not_in_the_next_ones_way)
{
	struct gr_channel *dead[3], *to, *main_channel, *further, *further_to;
	struct kit_bytes b = { 0 };
	struct pollfd accepted;
	struct rig r;

	open_rig(&r, long_ns);
	accepted = (struct pollfd){ gr_channel_listener_fd(r.in), POLLIN, 0 };
	for (unsigned int i = 0; i < GR_ARRAY_SIZE(dead); i++) {
		dead[i] = knock_further(&r, i);
	}
	(void)gr_channel_close(knock(&r, "", 0), NULL);
	while (poll(&accepted, 1, 0) > 0) {
		usleep(1000);
	}
	close_all(dead, GR_ARRAY_SIZE(dead));
	further = knock_further(&r, 1);
	put_start(&b);
	kit_eos(&b);
	main_channel = knock(&r, b.p, b.n);
	to = accept_one(&r);
	hear(to, &b);
	ASSERT_EQ(gr_channel_listener_wait(r.out, WAIT_MS, NULL), 0);
	further_to = accept_one(&r);
	b.n = 0;
	put_greeting(&b, 1);
	hear(further_to, &b);
	b.n = 0;
	put_packet(&b, 1, true);
	say(further, &b);
	put_packet(&b, 1, true);
	hear(further_to, &b);
	ASSERT_EQ(gr_channel_listener_wait(r.out, 0, NULL), -ETIMEDOUT);
	kit_free(&b);
	gr_channel_shutdown(main_channel);
	hear_end(to);
	ASSERT_EQ(close_rig(&r), -EPIPE);
	close_all(&main_channel, 1);
	close_all(&further, 1);
	close_all(&further_to, 1);
}

TEST(tls_is_named)
{
	struct gr_channel *ch;
	struct pair p;
	struct rig r;

	open_rig(&r, long_ns);
	ch = knock(&r, "\x16\3\1", 3);
	hear_end(ch);
	ASSERT_EQ(close_rig(&r), -EOPNOTSUPP);
	ASSERT_HAS(r.err.msg, "TLS");

	open_pair(&p);
	hear_end(knock(&p.rig, "\x16\3\1", 3)); /* a stranger by now */
	still_passes(&p);
	gr_channel_shutdown(p.main[0]);
	fails(&p, -EPIPE, "byte ");
}

TEST(who_says_nothing_is_turned_away)
{
	struct gr_channel *silent;
	struct rig r;

	open_rig(&r, 1000000);
	silent = knock(&r, "", 0);
	hear_end(silent);
	gr_channel_listener_shutdown(r.in);
	ASSERT_EQ(close_rig(&r), -ECANCELED);
}

TEST(a_main_channel_that_does_not_come_is_told_of)
{
	struct gr_channel *further;
	struct rig r;

	open_rig(&r, 2ull * 1000 * 1000 * 1000);
	further = knock_further(&r, 0);
	ASSERT_EQ(close_rig(&r), -ETIMEDOUT);
	ASSERT_HAS(r.err.msg, "no main channel");
	hear_end(further);
}

TEST(more_channels_than_a_qemu_has_are_refused)
{
	struct kit_bytes b = { 0 };
	int fd[GR_MULTIFD_CHANNELS_MAX + 1];
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct rig r;

	open_rig(&r, long_ns);
	(void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/from", r.folder);
	for (size_t i = 0; i < GR_ARRAY_SIZE(fd); i++) {
		fd[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		ASSERT_GE(fd[i], 0);
		ASSERT_EQ(connect(fd[i], (struct sockaddr *)&sa, sizeof(sa)), 0);
		put_greeting(&b, (unsigned int)i & 255);
		(void)!send(fd[i], b.p, b.n, MSG_NOSIGNAL);
		b.n = 0;
	}
	pthread_join(r.thread, NULL);
	ASSERT_EQ(r.rc, -E2BIG);
	ASSERT_HAS(r.err.msg, "more than 255 further channels");
	for (size_t i = 0; i < GR_ARRAY_SIZE(fd); i++) {
		(void)close(fd[i]);
	}
	kit_free(&b);
	ASSERT_EQ(pthread_create(&r.thread, NULL, relay_main, &r), 0);
	ASSERT_EQ(close_rig(&r), -ECANCELED);
}

TEST(a_relay_full_of_strangers_can_be_cancelled)
{
	enum { STRANGERS = GR_MULTIFD_CHANNELS_MAX + 9 }; /* one more than it has places */
	struct pollfd accepted;
	struct sockaddr_un sa;
	int fd[STRANGERS];
	struct rig r;

	open_rig(&r, 60 * long_ns);
	accepted = (struct pollfd){ gr_channel_listener_fd(r.in), POLLIN, 0 };
	for (int i = 0; i < STRANGERS; i++) {
		fd[i] = open_knocker(&r, &sa);
		ASSERT_EQ(connect(fd[i], (struct sockaddr *)&sa, sizeof(sa)), 0);
	}
	while (poll(&accepted, 1, 0) > 0) {
		usleep(1000);
	}
	gr_channel_listener_shutdown(r.in);
	ASSERT_EQ(close_rig(&r), -ECANCELED);
	for (int i = 0; i < STRANGERS; i++) {
		(void)close(fd[i]);
	}
}

/* A relay to somewhere else than its rig's socket. */
static void open_rig_to(struct rig *r, const char *kind, const char *name)
{
	open_rig(r, long_ns);
	gr_channel_listener_shutdown(r->in);
	pthread_join(r->thread, NULL);
	gr_channel_listener_close(r->in);
	(void)snprintf(r->to_uri, sizeof(r->to_uri), "%s:%s/%s", kind, r->folder, name);
	ASSERT_EQ(gr_channel_listen(r->from_uri, &r->in, NULL), 0);
	ASSERT_EQ(pthread_create(&r->thread, NULL, relay_main, r), 0);
}

TEST(a_destination_that_is_not_there_is_told_to_the_source)
{
	struct gr_channel *main_channel, *further;
	struct rig r;

	open_rig_to(&r, "unix", "nobody");
	further = knock_further(&r, 0);
	main_channel = knock(&r, "QEVM", 4);
	hear_end(main_channel);
	hear_end(further);
	ASSERT_EQ(close_rig(&r), -ENOENT);
	ASSERT_HAS(r.err.msg, "/nobody");
}

/* The file is not begun again. */
TEST(further_channels_do_not_go_into_a_file)
{
	struct kit_bytes b = { 0 };
	struct gr_channel *main_channel, *further;
	struct rig r;

	open_rig_to(&r, "file", "file");
	put_start(&b);
	kit_eos(&b);
	main_channel = knock(&r, b.p, b.n);
	further = knock_further(&r, 0);
	hear_end(main_channel);
	hear_end(further);
	pthread_join(r.thread, NULL);
	ASSERT_EQ(r.rc, -EINVAL);
	ASSERT_HAS(r.err.msg, "need a socket");
	ASSERT_EQ(unlink(r.to_uri + strlen("file:")), 0);
	kit_free(&b);
	ASSERT_EQ(pthread_create(&r.thread, NULL, relay_main, &r), 0);
	ASSERT_EQ(close_rig(&r), -ECANCELED);
}

TEST(what_cannot_be_served_is_refused_at_once)
{
	struct gr_relay_params params = { .size = 3 };
	struct gr_channel_listener *listener;
	struct gr_error err;

	ASSERT_EQ(gr_channel_listen("exec:cat", &listener, NULL), 0);
	ASSERT_EQ(gr_relay_serve(listener, "tcp:127.0.0.1:1", NULL, NULL, &err), -EINVAL);
	gr_channel_listener_close(listener);
	ASSERT_EQ(gr_channel_listen("tcp:127.0.0.1:0", &listener, NULL), 0);
	ASSERT_EQ(gr_relay_serve(listener, "tcp:nowhere", NULL, NULL, &err), -EINVAL);
	ASSERT_EQ(gr_relay_serve(listener, "tcp:127.0.0.1:1", &params, NULL, &err), -EINVAL);
	ASSERT_EQ(gr_relay_serve(NULL, "tcp:127.0.0.1:1", NULL, NULL, &err), -EINVAL);
	gr_channel_listener_close(listener);
}

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
/* A destination with further channels, fed with streams and packets made by hand. */
#include "migrate/multifd_receive.h"
#include "migrate/ram_sink.h"
#include "migrate/receive.h"
#include "move.h"
#include "stream/multifd.h"
#include "stream/return_path.h"
#include "stream/writer.h"
#include "stream_kit.h"
#include <sys/syscall.h>
#include <sys/uio.h>

enum { CHANNELS = 2, PAGES = 16, BLOCK_BYTES = PAGES * MOVE_PAGE };

/* A source in the test's hands: ch[0] is its end of each, ch[1] the destination's. */
struct rig {
	struct gr_channel *main[2], *further[CHANNELS][2], *theirs[CHANNELS];
	struct gr_multifd multifd;
	struct gr_ram *ram;
	struct gr_destination *destination;
	pthread_t thread;
	int rc;
	struct gr_error err;
	struct gr_migrate_stats stats;
};

static void *run(void *opaque)
{
	struct rig *r = opaque;

	r->rc = gr_destination_run(r->destination, &r->err);
	return NULL;
}

static void rig_channels(struct rig *r)
{
	move_channels(r->main);
	for (int i = 0; i < CHANNELS; i++) {
		move_channels(r->further[i]);
		r->theirs[i] = r->further[i][1];
	}
	r->multifd.channels = r->theirs;
	r->multifd.count = CHANNELS;
}

static void rig_prepare(struct rig *r, struct gr_ram *ram)
{
	struct gr_destination_params params = { .size = sizeof(params) };

	r->ram = ram;
	rig_channels(r);
	params.multifd = &r->multifd;
	ASSERT_EQ(gr_destination_create(ram, r->main[1], &params, NULL, &r->destination, NULL), 0);
}

static void rig_open(struct rig *r, struct gr_ram *ram)
{
	rig_prepare(r, ram);
	ASSERT_EQ(pthread_create(&r->thread, NULL, run, r), 0);
}

static void rig_close(struct rig *r)
{
	for (int side = 0; side < 2; side++) {
		(void)gr_channel_close(r->main[side], NULL);
		for (int i = 0; i < CHANNELS; i++) {
			(void)gr_channel_close(r->further[i][side], NULL);
		}
	}
}

/* The source has closed everything; how the destination ended. */
static int rig_end(struct rig *r)
{
	gr_channel_end_writing(r->main[0]);
	for (int i = 0; i < CHANNELS; i++) {
		gr_channel_end_writing(r->further[i][0]);
	}
	pthread_join(r->thread, NULL);
	gr_destination_stats(r->destination, &r->stats);
	gr_destination_free(r->destination);
	rig_close(r);
	return r->rc;
}

/* The same of one that ends by itself, whatever its source still has open. */
static int rig_fails(struct rig *r)
{
	pthread_join(r->thread, NULL);
	ASSERT_EQ(pthread_create(&r->thread, NULL, run, r), 0); /* it stays the same error */
	return rig_end(r);
}

static void say(struct gr_channel *ch, struct kit_bytes *b)
{
	/* A destination that has failed already does not read it. */
	(void)!gr_channel_write_all(ch, b->p, b->n, NULL);
	kit_free(b);
}

static void greet(struct rig *r, int i)
{
	struct gr_multifd_greeting g = { .id = (uint8_t)i };
	uint8_t raw[GR_MULTIFD_GREETING_BYTES];

	gr_multifd_greeting_put(&g, raw);
	(void)!gr_channel_write_all(r->further[i][0], raw, sizeof(raw), NULL);
}

/* A packet of at most one page, filled with one byte. -1: none. */
static void packet(struct rig *r, int i, int64_t page, int fill, bool sync)
{
	struct gr_multifd_header h = { .sync = sync };
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX], bytes[MOVE_PAGE];

	if (page >= 0) {
		memcpy(h.block, "ram", 4);
		h.offsets[0] = (uint64_t)page * MOVE_PAGE;
		h.pages = fill != 0;
		h.zero_pages = fill == 0;
		h.payload_bytes = h.pages * MOVE_PAGE;
	}
	gr_multifd_header_put(&h, MOVE_PAGE, raw);
	(void)!gr_channel_write_all(r->further[i][0], raw, gr_multifd_header_bytes(MOVE_PAGE),
				    NULL);
	memset(bytes, fill, sizeof(bytes));
	if (h.pages) {
		(void)!gr_channel_write_all(r->further[i][0], bytes, sizeof(bytes), NULL);
	}
}

static void flush(struct kit_bytes *b)
{
	kit_be64(b, 0x200);
}

static void main_start(struct kit_bytes *b, bool flushes)
{
	kit_config(b);
	kit_start(b);
	kit_be64(b, BLOCK_BYTES | 4);
	kit_str8(b, "ram");
	kit_be64(b, BLOCK_BYTES);
	if (flushes) {
		flush(b);
	}
	kit_eos(b);
}

/* What follows the records of the last section. */
static void main_rest(struct kit_bytes *b, bool flushes)
{
	static const char tail[] = "\0\6\0\0\0\017{\"devices\": []}";

	if (flushes) {
		flush(b);
	}
	kit_eos(b);
	kit_raw(b, tail, sizeof(tail) - 1);
}

static void main_end(struct kit_bytes *b, bool flushes)
{
	kit_part(b, 3);
	main_rest(b, flushes);
}

static uint8_t *host_of(struct gr_ram *ram)
{
	uint8_t *host = NULL;
	struct gr_ram_block *block;

	gr_rcu_read_lock();
	block = gr_ram_block_by_id_rcu(ram, "ram");
	host = block ? block->host : NULL;
	gr_rcu_read_unlock();
	return host;
}

static struct gr_ram *ram_with(bool present)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *block = move_add(ram, "ram", BLOCK_BYTES, 0, GR_RAM_MEMFD);

	if (present) {
		memset(block->host, 0xee, BLOCK_BYTES);
	}
	return ram;
}

/* Two rounds over changing channels, zero pages on channels and on the main one. */
static void whole_move(bool flushes, bool present)
{
	struct gr_ram *ram = ram_with(present);
	struct kit_bytes b = { 0 };
	struct rig r = { 0 };

	rig_open(&r, ram);
	main_start(&b, flushes);
	kit_part(&b, 2);
	if (flushes) {
		flush(&b);
	}
	kit_eos(&b);
	kit_part(&b, 2);
	kit_be64(&b, 3 * MOVE_PAGE | 2);
	kit_str8(&b, "ram");
	kit_u8(&b, 0);
	if (flushes) {
		flush(&b);
	}
	kit_eos(&b);
	main_end(&b, flushes);
	say(r.main[0], &b);
	for (int i = CHANNELS; i-- > 0;) {
		greet(&r, i);
		packet(&r, i, -1, 0, true);
		for (int page = i; page < PAGES; page += 2) {
			packet(&r, i, page, 10 + page, false);
		}
		packet(&r, i, -1, 0, true);
		packet(&r, i, i == 0 ? 5 : 4, i == 0 ? 100 : 0, true); /* SYNC rides on data */
		packet(&r, i, -1, 0, false);			       /* and what follows that */
		packet(&r, i, -1, 0, true);
	}
	if (rig_end(&r) != 0) {
		FAIL("%s", r.err.msg);
	}
	for (int page = 0; page < PAGES; page++) {
		uint8_t want = page == 3 || page == 4 ? 0 : page == 5 ? 100 : (uint8_t)(10 + page);

		ASSERT_EQ(host_of(ram)[page * MOVE_PAGE], want);
		ASSERT_EQ(host_of(ram)[(page + 1) * MOVE_PAGE - 1], want);
	}
	ASSERT_EQ(r.stats.normal_pages, PAGES + 1u);
	ASSERT_EQ(r.stats.zero_pages, 2u);
	gr_ram_free(ram);
}

TEST(pages_of_several_channels_and_rounds_come_together)
{
	for (int i = 0; i < 4; i++) {
		whole_move((i & 1) != 0, (i & 2) != 0);
	}
}

/* Until the destination says that it has everything. */
static void hear_success(struct rig *r)
{
	struct gr_return_path_reader reader = { 0 };
	struct gr_return_path_message msg = { 0 };
	struct gr_error err;

	while (msg.type != GR_RETURN_SHUT) {
		if (gr_return_path_next(&reader, r->main[0], &msg, &err) <= 0) {
			FAIL("%s", err.msg);
		}
	}
	ASSERT_EQ(msg.value, 0u);
}

/* A QEMU 7.2 whose last SYNC rides on pages has an empty packet to write yet. */
TEST(what_a_source_still_says_after_the_end_is_accepted)
{
	struct gr_multifd_header h = { .number = 3 };
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	struct gr_ram *ram = ram_with(true);
	struct kit_bytes b = { 0 };
	struct rig r = { 0 };

	rig_open(&r, ram);
	main_start(&b, false);
	kit_u8(&b, 8); /* a command: the return path */
	kit_be16(&b, GR_COMMAND_OPEN_RETURN_PATH);
	kit_be16(&b, 0);
	main_end(&b, false);
	say(r.main[0], &b);
	for (int i = 0; i < CHANNELS; i++) {
		greet(&r, i);
		packet(&r, i, -1, 0, true);
		packet(&r, i, i, 9, true);
	}
	hear_success(&r);
	gr_multifd_header_put(&h, MOVE_PAGE, raw);
	for (int i = 0; i < CHANNELS; i++) {
		ASSERT_EQ(gr_channel_write_all(r.further[i][0], raw, 1344, NULL), 0);
	}
	pthread_join(r.thread, NULL);
	ASSERT_EQ(r.rc, 0);
	gr_destination_free(r.destination);
	for (int i = 0; i < CHANNELS; i++) { /* it is for their owner to close them */
		ASSERT_EQ(gr_channel_write_all(r.further[i][0], raw, 1344, NULL), 0);
	}
	rig_close(&r);
	gr_ram_free(ram);
}

/* ---- order ----------------------------------------------------------------------------- */

/* The channels alone, with the test as the main thread. */
struct meeting {
	struct rig rig;
	struct gr_progress progress;
	struct gr_ram_sink *sink_ram;
	struct gr_sink sink;
	struct gr_multifd_receive *m;
	struct gr_stream_reader *reader;
};

static ssize_t from_bytes(void *opaque, const struct iovec *iov, int n, struct gr_error *err)
{
	struct kit_bytes *b = opaque;
	size_t some = b->n < iov->iov_len ? b->n : iov->iov_len;

	(void)n, (void)err;
	memcpy(iov->iov_base, b->p, some);
	memmove(b->p, b->p + some, b->n - some);
	b->n -= some;
	return (ssize_t)some;
}

static void meeting_open(struct meeting *t, struct kit_bytes *b)
{
	struct gr_stream_source source = { from_bytes, b };
	struct gr_stream_record rec;
	struct rig *r = &t->rig;

	memset(t, 0, sizeof(*t));
	r->ram = ram_with(true);
	rig_channels(r);
	gr_progress_init(&t->progress);
	ASSERT_EQ(gr_ram_sink_create(r->ram, NULL, &t->sink_ram, NULL), 0);
	t->sink = (struct gr_sink){ &gr_ram_sink_ops, t->sink_ram };
	ASSERT_EQ(gr_multifd_receive_create(&r->multifd, &t->sink, r->main[1], &t->progress, &t->m,
					    NULL),
		  0);
	main_start(b, false);
	ASSERT_EQ(gr_stream_reader_create(&source, &t->reader, NULL), 0);
	do {
		ASSERT_EQ(gr_stream_next(t->reader, &rec, NULL), 1);
	} while (rec.kind != GR_STREAM_BLOCKS);
	ASSERT_EQ(gr_ram_sink_ops.blocks(t->sink_ram, t->reader, NULL), 0);
	ASSERT_EQ(gr_multifd_receive_blocks(t->m, t->reader, NULL), 0);
	ASSERT_EQ(gr_multifd_receive_start(t->m, MOVE_PAGE, NULL), 0);
}

static void meeting_close(struct meeting *t, struct kit_bytes *b)
{
	gr_multifd_receive_free(t->m);
	gr_stream_reader_free(t->reader);
	gr_ram_sink_free(t->sink_ram);
	gr_progress_destroy(&t->progress);
	rig_close(&t->rig);
	gr_ram_free(t->rig.ram);
	kit_free(b);
}

TEST(a_page_of_the_next_round_waits_for_the_other_channels)
{
	struct kit_bytes b = { 0 };
	struct meeting t;
	struct gr_error err;
	uint8_t *page;

	meeting_open(&t, &b);
	page = host_of(t.rig.ram) + 7 * MOVE_PAGE;
	for (int i = 0; i < CHANNELS; i++) {
		greet(&t.rig, i);
		packet(&t.rig, i, -1, 0, true);
	}
	ASSERT_EQ(gr_multifd_receive_sync(t.m, &err), 0);
	gr_multifd_receive_release(t.m);
	/* Channel 1 is ahead: it has the page's newer bytes, channel 0 not even the older ones. */
	packet(&t.rig, 1, -1, 0, true);
	packet(&t.rig, 1, 7, 2, false);
	while (gr_multifd_receive_parked(t.m) == 0 &&
	       __atomic_load_n(page, __ATOMIC_RELAXED) != 2) {
		usleep(1000);
	}
	packet(&t.rig, 0, 7, 1, true);
	ASSERT_EQ(gr_multifd_receive_sync(t.m, &err), 0);
	ASSERT_EQ(*page, 1);
	gr_multifd_receive_release(t.m);
	packet(&t.rig, 0, -1, 0, true);
	packet(&t.rig, 1, -1, 0, true);
	ASSERT_EQ(gr_multifd_receive_sync(t.m, &err), 0);
	ASSERT_EQ(*page, 2);
	gr_multifd_receive_release(t.m);
	meeting_close(&t, &b);
}

/* As a QEMU 7.2 does between two meetings: fresh pages first, then pages that are there. */
TEST(a_page_on_two_channels_at_once_is_there_in_the_end)
{
	struct kit_bytes b = { 0 };
	struct meeting t;
	struct gr_error err;

	if (test_under_tsan()) {
		SKIP("two threads receive into the same page, and that is what is tested");
	}
	meeting_open(&t, &b);
	for (int i = 0; i < CHANNELS; i++) {
		greet(&t.rig, i);
		packet(&t.rig, i, -1, 0, true);
	}
	for (uint8_t value = 1; value < 20; value++) {
		ASSERT_EQ(gr_multifd_receive_sync(t.m, &err), 0);
		gr_multifd_receive_release(t.m);
		for (int page = 0; page < PAGES; page++) {
			packet(&t.rig, 0, page, value, page == PAGES - 1);
			packet(&t.rig, 1, page, value, page == PAGES - 1);
		}
		ASSERT_EQ(gr_multifd_receive_sync(t.m, &err), 0);
		for (size_t at = 0; at < BLOCK_BYTES; at++) {
			ASSERT_EQ(host_of(t.rig.ram)[at], value);
		}
	}
	gr_multifd_receive_release(t.m);
	meeting_close(&t, &b);
}

TEST(the_main_channel_waits_for_every_further_one)
{
	struct kit_bytes b = { 0 };
	struct gr_error err = { 0 };
	struct meeting t;

	meeting_open(&t, &b);
	greet(&t.rig, 0);
	greet(&t.rig, 1);
	packet(&t.rig, 0, -1, 0, true);
	gr_channel_end_writing(t.rig.further[1][0]); /* it will never say SYNC */
	ASSERT_EQ(gr_multifd_receive_sync(t.m, &err), -EPIPE);
	ASSERT_HAS(err.msg, "multifd channel 1");
	meeting_close(&t, &b);
}

static void *abort_it(void *opaque)
{
	gr_multifd_receive_abort(opaque);
	return NULL;
}

TEST(a_cancel_wakes_who_waits_for_a_channel)
{
	struct kit_bytes b = { 0 };
	struct gr_error err = { 0 };
	struct meeting t;
	pthread_t thread;

	meeting_open(&t, &b);
	ASSERT_EQ(pthread_create(&thread, NULL, abort_it, t.m), 0);
	ASSERT_EQ(gr_multifd_receive_sync(t.m, &err), -ECANCELED);
	pthread_join(thread, NULL);
	meeting_close(&t, &b);
}

/* A sink for one thread at a time, which looks whether it is. */
struct lone_sink {
	unsigned int inside, entered, overlaps, zeros; /* (a) */
};

static int lone_blocks(void *opaque, struct gr_stream_reader *reader, struct gr_error *err)
{
	(void)err;
	gr_stream_reader_block(reader, 0)->user = opaque;
	return 0;
}

static void lone_enter(struct lone_sink *s)
{
	if (__atomic_add_fetch(&s->inside, 1, __ATOMIC_SEQ_CST) > 1) {
		(void)__atomic_add_fetch(&s->overlaps, 1, __ATOMIC_SEQ_CST);
	}
}

static void lone_leave(struct lone_sink *s)
{
	(void)__atomic_sub_fetch(&s->inside, 1, __ATOMIC_SEQ_CST);
}

/* Stays for a while, so that others may come in if nothing keeps them out. */
static int lone_pages(void *opaque, struct gr_stream_block *block, uint32_t count,
		      const uint64_t *offsets, const uint8_t *data, uint32_t *ret_bad,
		      struct gr_error *err)
{
	struct lone_sink *s = opaque;

	(void)block, (void)count, (void)offsets, (void)data, (void)ret_bad, (void)err;
	lone_enter(s);
	__atomic_store_n(&s->entered, 1, __ATOMIC_SEQ_CST);
	for (int ms = 0; ms < 300 && __atomic_load_n(&s->overlaps, __ATOMIC_SEQ_CST) == 0; ms++) {
		usleep(1000);
	}
	lone_leave(s);
	return 0;
}

static int lone_zero(void *opaque, struct gr_stream_block *block, uint64_t offset, uint64_t bytes,
		     struct gr_error *err)
{
	struct lone_sink *s = opaque;

	(void)block, (void)offset, (void)bytes, (void)err;
	lone_enter(s);
	(void)__atomic_add_fetch(&s->zeros, 1, __ATOMIC_SEQ_CST);
	lone_leave(s);
	return 0;
}

static int lone_finish(void *opaque, struct gr_tail *tail, struct gr_error *err)
{
	(void)opaque, (void)tail, (void)err;
	return 0;
}

struct lone {
	struct rig rig;
	struct gr_receive *receive;
};

static void *run_lone(void *opaque)
{
	struct lone *l = opaque;

	do {
		l->rig.rc = gr_receive_step(l->receive, &l->rig.err);
	} while (l->rig.rc > 0);
	return NULL;
}

TEST(a_sink_that_is_not_parallel_is_called_by_one_thread_at_a_time)
{
	static const struct gr_sink_ops ops = { .blocks = lone_blocks,
						.pages = lone_pages,
						.zero = lone_zero,
						.finish = lone_finish };
	struct lone_sink s = { 0 };
	struct gr_sink sink = { &ops, &s };
	struct gr_receive_params params = { 0 };
	struct kit_bytes b = { 0 };
	struct lone l = { 0 };
	struct rig *r = &l.rig;

	rig_channels(r);
	params.multifd = &r->multifd;
	ASSERT_EQ(gr_receive_create(r->main[1], &sink, &params, &l.receive, NULL), 0);
	ASSERT_EQ(pthread_create(&r->thread, NULL, run_lone, &l), 0);
	main_start(&b, true);
	say(r->main[0], &b);
	for (int i = 0; i < CHANNELS; i++) {
		greet(r, i);
		packet(r, i, -1, 0, true);
	}
	packet(r, 0, 3, 7, true);
	packet(r, 1, -1, 0, true);
	while (__atomic_load_n(&s.entered, __ATOMIC_SEQ_CST) == 0) {
		usleep(1000);
	}
	kit_part(&b, 3);
	kit_be64(&b, 5 * MOVE_PAGE | 2);
	kit_str8(&b, "ram");
	kit_u8(&b, 0);
	main_rest(&b, true);
	say(r->main[0], &b);
	gr_channel_end_writing(r->main[0]);
	pthread_join(r->thread, NULL);
	if (r->rc < 0) {
		FAIL("%s", r->err.msg);
	}
	ASSERT_EQ(s.zeros, 1u);
	ASSERT_EQ(s.overlaps, 0u);
	gr_receive_free(l.receive);
	rig_close(r);
}

/* ---- hostile sources ------------------------------------------------------------------- */

struct evil {
	const char *words;
	int code;
	size_t at; /* in the header of channel 1's first packet with a page */
	uint32_t value;
};

static void try_evil(const struct evil *e)
{
	struct gr_multifd_header h = { .pages = 1, .block = "ram", .payload_bytes = MOVE_PAGE };
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	struct gr_ram *ram = ram_with(true);
	struct kit_bytes b = { 0 };
	struct rig r = { 0 };

	rig_open(&r, ram);
	main_start(&b, true);
	say(r.main[0], &b); /* and nothing more: it is the further channel that must end it */
	for (int i = 0; i < CHANNELS; i++) {
		greet(&r, i);
		packet(&r, i, -1, 0, true);
	}
	gr_multifd_header_put(&h, MOVE_PAGE, raw);
	gr_put_be32(raw + e->at, e->value);
	(void)!gr_channel_write_all(r.further[1][0], raw, gr_multifd_header_bytes(MOVE_PAGE), NULL);
	ASSERT_EQ(rig_fails(&r), e->code);
	ASSERT_HAS(r.err.msg, "multifd channel 1");
	ASSERT_HAS(r.err.msg, e->words);
	ASSERT(r.stats.state == GR_MIGRATE_FAILED);
	for (size_t i = 0; i < BLOCK_BYTES; i++) {
		ASSERT_EQ(host_of(ram)[i], 0xee);
	}
	gr_ram_free(ram);
}

TEST(a_hostile_packet_ends_the_move_with_its_channel_named_and_places_nothing)
{
	static const struct evil all[] = {
		{ "0x51", -EBADMSG, 0, 0x51515151 },
		{ "200 pages", -EBADMSG, 16, 200 },
		{ "not a page", -EBADMSG, 324, BLOCK_BYTES },
		{ "not a page", -EBADMSG, 324, 8 },
		{ "not a page", -EBADMSG, 320, UINT32_MAX },
		{ "'ramp', which was not announced", -EBADMSG, 64, 0x72616d70 },
		{ "compression zlib", -EBADMSG, 8, 1 << 1 },
		{ "device", -EOPNOTSUPP, 8, 1 << 6 },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		try_evil(&all[i]);
	}
}

TEST(pages_before_the_first_meeting_are_refused)
{
	struct gr_ram *ram = ram_with(true);
	struct rig r = { 0 };
	struct kit_bytes b = { 0 };

	rig_open(&r, ram);
	main_start(&b, true);
	say(r.main[0], &b);
	greet(&r, 0);
	packet(&r, 0, 3, 7, false);
	ASSERT_EQ(rig_fails(&r), -EBADMSG);
	ASSERT_HAS(r.err.msg, "before the first SYNC");
	ASSERT_EQ(host_of(ram)[3 * MOVE_PAGE], 0xee);
	gr_ram_free(ram);
}

/* A source of ours may announce a block again; what is placed in it must not be beyond its end. */
TEST(a_block_that_is_announced_again_with_another_length_is_refused)
{
	struct gr_stream_block_desc d = { .id = "ram",
					  .used_bytes = BLOCK_BYTES,
					  .max_bytes = GR_STREAM_BLOCK_BYTES_MAX,
					  .incarnation = 5,
					  .page_bytes = MOVE_PAGE };
	struct gr_ram *ram = ram_with(true);
	struct gr_stream_writer *w;
	struct rig r = { 0 };

	rig_open(&r, ram);
	ASSERT_EQ(gr_stream_writer_create(r.main[0], &w, NULL), 0);
	ASSERT_EQ(gr_stream_write_config(w, "machine", MOVE_PAGE, NULL), 0);
	ASSERT_EQ(gr_stream_write_command(w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(w, GR_PING_FEATURES, NULL), 0);
	ASSERT_EQ(gr_stream_write_start(w, 2, &d, 1, NULL), 0);
	ASSERT_EQ(gr_stream_write_announce(w, &d, 1, NULL), 0);
	d.used_bytes = d.max_bytes;
	ASSERT_EQ(gr_stream_write_announce(w, &d, 1, NULL), 0);
	ASSERT_EQ(gr_stream_flush(w, NULL), 0);
	for (int i = 0; i < CHANNELS; i++) {
		greet(&r, i);
		packet(&r, i, -1, 0, true);
		packet(&r, i, -1, 0, true);
		packet(&r, i, INT64_C(1) << 32, 7, false);
	}
	ASSERT_EQ(rig_fails(&r), -EINVAL);
	ASSERT_HAS(r.err.msg, "block 'ram' changed its length during the move");
	gr_stream_writer_free(w);
	gr_ram_free(ram);
}

TEST(no_memory_is_given_for_pages_beyond_a_blocks_end)
{
	struct gr_stream_block entry;
	struct kit_bytes b = { 0 };
	struct meeting t;

	meeting_open(&t, &b);
	entry = *gr_stream_reader_block(t.reader, 0);
	entry.used_bytes = GR_STREAM_BLOCK_BYTES_MAX; /* what the source says is not believed */
	ASSERT_EQ(gr_ram_sink_ops.page_memory(t.sink_ram, &entry, BLOCK_BYTES - MOVE_PAGE),
		  host_of(t.rig.ram) + BLOCK_BYTES - MOVE_PAGE);
	ASSERT(!gr_ram_sink_ops.page_memory(t.sink_ram, &entry, BLOCK_BYTES - MOVE_PAGE / 2));
	ASSERT(!gr_ram_sink_ops.page_memory(t.sink_ram, &entry, BLOCK_BYTES));
	ASSERT(!gr_ram_sink_ops.page_memory(t.sink_ram, &entry, UINT64_C(1) << 46));
	meeting_close(&t, &b);
}

static void greet_as(struct rig *r, int i, unsigned int id, unsigned int uuid)
{
	struct gr_multifd_greeting g = { .id = (uint8_t)id, .uuid = { (uint8_t)uuid } };
	uint8_t raw[GR_MULTIFD_GREETING_BYTES];

	gr_multifd_greeting_put(&g, raw);
	(void)!gr_channel_write_all(r->further[i][0], raw, sizeof(raw), NULL);
}

static void bad_greetings(unsigned int id, unsigned int uuid, const char *words)
{
	struct gr_ram *ram = ram_with(false);
	struct kit_bytes b = { 0 };
	struct rig r = { 0 };

	rig_open(&r, ram);
	main_start(&b, true);
	say(r.main[0], &b);
	greet_as(&r, 0, 0, 1);
	greet_as(&r, 1, id, uuid);
	ASSERT_EQ(rig_fails(&r), -EBADMSG);
	ASSERT_HAS(r.err.msg, words);
	gr_ram_free(ram);
}

TEST(channels_are_of_one_machine_and_have_each_its_number)
{
	bad_greetings(2, 1, "number 2 of 2");
	bad_greetings(0, 1, "twice");
	bad_greetings(1, 2, "UUID");
}

TEST(ram_that_ends_without_a_last_meeting_is_refused)
{
	struct gr_ram *ram = ram_with(false);
	struct kit_bytes b = { 0 };
	struct rig r = { 0 };

	rig_open(&r, ram);
	main_start(&b, true);
	main_end(&b, false);
	say(r.main[0], &b);
	for (int i = 0; i < CHANNELS; i++) {
		greet(&r, i);
		packet(&r, i, -1, 0, true);
	}
	ASSERT_EQ(rig_end(&r), -EBADMSG);
	ASSERT_HAS(r.err.msg, "without MULTIFD_FLUSH");
	gr_ram_free(ram);
}

/* Read by the kernel: a load beside a thread that receives there would be a data race. */
static uint8_t peek(void *at)
{
	uint8_t byte = 0;
	struct iovec to = { &byte, 1 }, from = { at, 1 };

	ASSERT_EQ(syscall(SYS_process_vm_readv, getpid(), &to, 1ul, &from, 1ul, 0ul), 1);
	return byte;
}

/* What has come of a page is in memory: consumers here have to look at it. */
TEST(a_channel_that_breaks_off_ends_the_move)
{
	for (size_t cut = 0; cut < 1344 + MOVE_PAGE; cut += 331) {
		struct gr_multifd_header h = { .pages = 1, .block = "ram" };
		uint8_t raw[1344 + MOVE_PAGE] = { 0 };
		struct gr_ram *ram = ram_with(true);
		struct gr_dirty_consumer *c;
		struct kit_bytes b = { 0 };
		struct rig r = { 0 };
		uint64_t pages;

		ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "backup", GR_DIRTY_START_CLEAN,
						&c, NULL),
			  0);
		rig_open(&r, ram);
		main_start(&b, true);
		main_end(&b, true);
		say(r.main[0], &b);
		for (int i = 0; i < CHANNELS; i++) {
			greet(&r, i);
			packet(&r, i, -1, 0, true);
		}
		gr_multifd_header_put(&h, MOVE_PAGE, raw);
		(void)!gr_channel_write_all(r.further[1][0], raw, cut, NULL);
		while (cut > 1344 && peek(host_of(ram)) == 0xee) {
			usleep(1000);
		}
		ASSERT_EQ(rig_end(&r), -EPIPE);
		ASSERT_HAS(r.err.msg, "multifd channel");
		ASSERT_EQ(gr_dirty_epoch_begin(c, &pages, NULL), 0);
		ASSERT_EQ(pages, cut > 1344 ? 1u : 0u);
		gr_dirty_consumer_del(c);
		gr_ram_free(ram);
	}
}

TEST(cancelling_a_destination_wakes_all_its_threads)
{
	struct gr_ram *ram = ram_with(false);
	struct kit_bytes b = { 0 };
	struct rig r = { 0 };

	rig_open(&r, ram);
	main_start(&b, true);
	say(r.main[0], &b);
	greet(&r, 0);
	packet(&r, 0, -1, 0, true);
	gr_destination_cancel(r.destination);
	ASSERT_EQ(rig_fails(&r), -ECANCELED);
	ASSERT(r.stats.state == GR_MIGRATE_CANCELLED);
	gr_ram_free(ram);
}

struct pourer {
	struct gr_channel *ch;
	uint64_t offset;
	pthread_t thread;
};

/* The same page again and again, until the destination has closed the channel. */
static void *pour(void *opaque)
{
	struct gr_multifd_header h = { .pages = 1, .payload_bytes = MOVE_PAGE, .block = "ram" };
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	size_t header_bytes = gr_multifd_header_bytes(MOVE_PAGE);
	uint8_t data[sizeof(raw) + MOVE_PAGE] = { 0 };
	struct pourer *p = opaque;

	h.offsets[0] = p->offset;
	gr_multifd_header_put(&h, MOVE_PAGE, raw);
	memcpy(data, raw, header_bytes);
	while (gr_channel_write_all(p->ch, data, header_bytes + MOVE_PAGE, NULL) == 0) {
	}
	return NULL;
}

TEST(a_destination_may_be_freed_while_pages_come)
{
	for (int i = 0; i < 20; i++) {
		struct gr_ram *ram = ram_with(i % 2 != 0);
		struct pourer pourers[CHANNELS];
		struct kit_bytes b = { 0 };
		struct rig r = { 0 };

		rig_prepare(&r, ram);
		main_start(&b, true);
		for (int part = 0; part < 20; part++) { /* enough for one step */
			kit_part(&b, 2);
			kit_eos(&b);
		}
		say(r.main[0], &b);
		for (int k = 0; k < CHANNELS; k++) {
			greet(&r, k);
			packet(&r, k, -1, 0, true);
		}
		ASSERT_EQ(gr_destination_step(r.destination, &r.err), 1);
		for (int k = 0; k < CHANNELS; k++) {
			pourers[k].ch = r.further[k][0];
			pourers[k].offset = (uint64_t)k * MOVE_PAGE;
			ASSERT_EQ(pthread_create(&pourers[k].thread, NULL, pour, &pourers[k]), 0);
		}
		do {
			gr_destination_stats(r.destination, &r.stats);
		} while (r.stats.normal_pages < 10);
		gr_destination_free(r.destination);
		for (int k = 0; k < CHANNELS; k++) {
			pthread_join(pourers[k].thread, NULL);
		}
		rig_close(&r);
		gr_ram_free(ram);
	}
}

TEST_MAIN()

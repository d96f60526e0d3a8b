/* SPDX-License-Identifier: MIT */
/* Streams made by hand or taken from a source, fed to a destination from memory. */
#include "migrate/receive.h"
#include "move.h"
#include "stream/channel.h"
#include "stream/return_path.h"
#include "stream/writer.h"
#include <linux/sockios.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RAM_PAGES = 64, RAM_BYTES = RAM_PAGES * MOVE_PAGE };

/* One stream, and what the destination answered to it. */
struct feed {
	const uint8_t *data;
	size_t bytes;
	size_t read_max;
	struct gr_destination_params params;
	const struct gr_destination_ops *ops;
	int rc;
	struct gr_error err;
	struct gr_migrate_stats stats;
	uint8_t answers[256];
	size_t answer_bytes;
};

static void feed(struct feed *f, struct gr_ram *to)
{
	struct gr_memory_script script = { .data = f->data,
					   .bytes = f->bytes,
					   .read_max = f->read_max };
	struct gr_destination *d;
	struct gr_channel *ch;
	const uint8_t *written;

	f->params.size = sizeof(f->params);
	memset(&f->err, 0, sizeof(f->err));
	ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
	ASSERT_EQ(gr_destination_create(to, ch, &f->params, f->ops, &d, &f->err), 0);
	f->rc = gr_destination_run(d, &f->err);
	ASSERT_EQ(gr_rcu_self.ctr & GR_RCU_DEPTH, 0u);
	gr_destination_stats(d, &f->stats);
	written = gr_channel_memory_written(ch, &f->answer_bytes);
	ASSERT_LE(f->answer_bytes, sizeof(f->answers));
	if (f->answer_bytes) {
		memcpy(f->answers, written, f->answer_bytes);
	}
	/* An error stays what it was. */
	if (f->rc < 0) {
		struct gr_error again = { 0 };

		ASSERT_EQ(gr_destination_step(d, &again), f->rc);
		ASSERT_STR_EQ(again.msg, f->err.msg);
	}
	gr_destination_free(d);
	gr_channel_close(ch, NULL);
}

/* The last answer: value of a SHUT, or -1. */
static int64_t shut_of(const struct feed *f)
{
	int64_t value = -1;
	size_t at = 0;

	while (at < f->answer_bytes) {
		struct gr_return_path_message msg;
		ssize_t n = gr_return_path_parse(f->answers + at, f->answer_bytes - at, &msg, NULL);

		ASSERT_GT(n, 0);
		at += (size_t)n;
		value = msg.type == GR_RETURN_SHUT ? (int64_t)msg.value : -1;
	}
	return value;
}

static const char name[] = "ram";

static struct gr_ram *some_ram(void)
{
	struct gr_ram *ram = move_ram();

	move_fill(move_add(ram, name, RAM_BYTES, 0, GR_RAM_MEMFD), 1, 3);
	move_fill(move_add(ram, "rom", 2 * MOVE_PAGE, 1ull << 32, GR_RAM_MEMFD), 2, 0);
	return ram;
}

static int save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	uint64_t value = 42;
	int rc = gr_state_put(writer, "test/first", 0, 1, &value, sizeof(value), err);

	(void)opaque;
	return rc < 0 ? rc : gr_state_put(writer, "test/second", 7, 2, "abc", 3, err);
}

static int nothing(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static void no_resume(void *opaque)
{
	(void)opaque;
}

/* What a source sends to a peer that answers as scripted. To be freed. */
static uint8_t *capture(struct gr_ram *from, bool ours, size_t *ret_bytes)
{
	static const uint8_t answers[] = {
		0x47, 0x52, 0, 8, 0,	0,    0, 1, 0, 0, 0, 0,		    /* FEATURES */
		0,    2,    0, 4, 0x47, 0x52, 0, 1, 0, 1, 0, 4, 0, 0, 0, 0, /* PONG, SHUT 0 */
	};
	struct gr_memory_script script = { .data = answers + (ours ? 0 : 12),
					   .bytes = sizeof(answers) - (ours ? 0 : 12) };
	struct gr_source_ops ops = { .pause = nothing, .resume = no_resume, .save = save };
	struct gr_source_params params = { .size = sizeof(params), .plain = false };
	struct gr_source *source;
	struct gr_channel *ch;
	struct gr_error err;
	uint8_t *copy;

	ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
	ASSERT_EQ(gr_source_create(from, NULL, ch, &params, &ops, &source, &err), 0);
	if (gr_source_run(source, &err) < 0) {
		FAIL("source: %s", err.msg);
	}
	gr_source_free(source);
	copy = malloc(1 << 20);
	ASSERT(copy);
	memcpy(copy, gr_channel_memory_written(ch, ret_bytes), 0);
	ASSERT_LE(*ret_bytes, (size_t)1 << 20);
	memcpy(copy, gr_channel_memory_written(ch, ret_bytes), *ret_bytes);
	gr_channel_close(ch, NULL);
	return copy;
}

static void both_dialects(void (*fn)(struct gr_ram *from, const uint8_t *data, size_t bytes,
				     bool ours))
{
	for (int ours = 0; ours < 2; ours++) {
		struct gr_ram *from = some_ram();
		size_t bytes;
		uint8_t *data = capture(from, ours != 0, &bytes);

		fn(from, data, bytes, ours != 0);
		free(data);
		gr_ram_free(from);
	}
}

static void whole(struct gr_ram *from, const uint8_t *data, size_t bytes, bool ours)
{
	static const size_t pieces[] = { 0, 1, 7, 4096, 5000 };

	for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
		struct move_loaded loaded = { 0 };
		struct gr_destination_ops ops = { .load = move_load, .opaque = &loaded };
		struct feed f = {
			.data = data, .bytes = bytes, .read_max = pieces[i], .ops = &ops
		};
		struct gr_ram *to = move_ram();

		feed(&f, to);
		if (f.rc != 0) {
			FAIL("in pieces of %zu: %s", pieces[i], f.err.msg);
		}
		ASSERT_EQ(move_compare(from, to), 0u);
		ASSERT_STR_EQ(loaded.order, "firstsecond");
		ASSERT_EQ(loaded.first, 42u);
		ASSERT_EQ(shut_of(&f), 0);
		(void)ours;
		ASSERT(f.stats.state == GR_MIGRATE_COMPLETED);
		gr_ram_free(to);
	}
}

TEST(whole_streams_are_taken_in_any_pieces)
{
	both_dialects(whole);
}

static void prefix(const uint8_t *data, size_t bytes)
{
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops ops = { .load = move_load, .opaque = &loaded };
	struct feed f = { .data = data, .bytes = bytes, .ops = &ops };
	struct gr_ram *to = move_ram();

	feed(&f, to);
	if (f.rc >= 0) {
		FAIL("a stream cut at byte %zu is accepted", bytes);
	}
	ASSERT_EQ(loaded.calls, 0u);
	ASSERT(f.stats.state == GR_MIGRATE_FAILED);
	ASSERT_NE(shut_of(&f), 0);
	ASSERT_HAS(f.err.msg, "byte");
	gr_ram_free(to);
}

static void prefixes(struct gr_ram *from, const uint8_t *data, size_t bytes, bool ours)
{
	uint64_t seed = test_seed();

	(void)from, (void)ours;
	for (size_t n = 0; n < 200; n++) {
		prefix(data, n);
		prefix(data, bytes - 1 - n);
		prefix(data, test_rand(&seed) % bytes);
	}
}

TEST(every_proper_prefix_is_refused_and_the_source_hears_no_success)
{
	both_dialects(prefixes);
}

static void flips(struct gr_ram *from, const uint8_t *data, size_t bytes, bool ours)
{
	uint64_t seed = test_seed();
	uint8_t *copy = malloc(bytes);

	(void)from, (void)ours;
	ASSERT(copy);
	for (int i = 0; i < 400; i++) {
		struct feed f = { .data = copy, .bytes = bytes };
		struct gr_ram *to = move_ram();
		/* Half of them in the first bytes, where the structure is. */
		size_t at = test_rand(&seed) % (i % 2 ? bytes : 300);

		memcpy(copy, data, bytes);
		copy[at] ^= (uint8_t)(1u << test_rand(&seed) % 8);
		feed(&f, to);
		ASSERT_EQ(f.rc < 0, f.stats.state == GR_MIGRATE_FAILED);
		gr_ram_free(to);
	}
	free(copy);
}

TEST(flipped_bits_are_an_error_or_other_bytes_never_a_crash)
{
	both_dialects(flips);
}

/* A stream of our own making. */
struct made {
	struct gr_channel *ch;
	struct gr_stream_writer *w;
};

static void make(struct made *s)
{
	ASSERT_EQ(gr_channel_memory(NULL, &s->ch, NULL), 0);
	ASSERT_EQ(gr_stream_writer_create(s->ch, &s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_config(s->w, "machine", MOVE_PAGE, NULL), 0);
}

static void make_start(struct made *s, const char *id, uint64_t bytes)
{
	struct gr_stream_block_desc desc = { .id = id, .used_bytes = bytes, .max_bytes = bytes };

	ASSERT_EQ(gr_stream_write_start(s->w, 2, &desc, 1, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s->w, GR_SECTION_END, NULL), 0);
}

/* Ends it with a tail that has no devices. */
static void make_end(struct made *s, struct feed *f)
{
	struct gr_tail_builder b;
	const uint8_t *tail;
	size_t bytes;

	gr_tail_builder_init(&b, MOVE_PAGE);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_tail_builder_finish(&b, &tail, &bytes, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s->w, tail, bytes, NULL), 0);
	ASSERT_EQ(gr_stream_flush(s->w, NULL), 0);
	gr_tail_builder_destroy(&b);
	f->data = gr_channel_memory_written(s->ch, &f->bytes);
}

static void unmake(struct made *s)
{
	gr_stream_writer_free(s->w);
	gr_channel_close(s->ch, NULL);
}

static void write_page(struct made *s, const char *id, uint64_t page, uint8_t byte)
{
	uint8_t data[MOVE_PAGE];
	const void *pages[] = { data };
	uint64_t offset = page * MOVE_PAGE;

	memset(data, byte, sizeof(data));
	ASSERT_EQ(gr_stream_write_pages(s->w, id, &offset, pages, 1, NULL), 0);
}

TEST(an_error_says_what_was_placed)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	for (unsigned int i = 0; i < 5; i++) {
		write_page(&s, name, i, 1);
	}
	/* Beyond the end: the writer does not know the lengths. */
	write_page(&s, name, RAM_PAGES, 1);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EBADMSG);
	ASSERT_HAS(f.err.msg, "byte ");
	ASSERT_HAS(f.err.msg, "'ram'");
	ASSERT_HAS(f.err.msg, "RAM is incomplete, pages placed: ram 5 of 64");
	unmake(&s);
	gr_ram_free(to);
}

TEST(a_block_of_another_size_is_refused)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	move_add(to, name, 2 * RAM_BYTES, 0, GR_RAM_MEMFD);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "block 'ram' has 262144 bytes at the source, 524288 here");
	unmake(&s);
	gr_ram_free(to);
}

TEST(a_block_that_stays_at_home_is_not_filled)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = name,
					  .fd = -1,
					  .used_bytes = RAM_BYTES,
					  .flags = GR_RAM_NO_MIGRATE };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	ASSERT_EQ(gr_ram_block_add(to, &desc, NULL, NULL), 0);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "no part");
	unmake(&s);
	gr_ram_free(to);
}

TEST(another_machine_is_refused)
{
	struct made s;
	struct feed f = { .params = { .machine = "other" } };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "machine 'machine'");
	f.params.machine = "machine";
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	unmake(&s);
	gr_ram_free(to);
}

TEST(pages_of_another_size_are_refused)
{
	struct gr_ram_params params = { .size = sizeof(params), .page_bytes = 16384 };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to;

	ASSERT_EQ(gr_ram_create(&params, &to, NULL), 0);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "4096");
	unmake(&s);
	gr_ram_free(to);
}

TEST(a_stranger_cannot_make_us_map_the_world)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, UINT64_C(1) << 46);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EFBIG);
	unmake(&s);
	gr_ram_free(to);
}

TEST(the_second_content_of_a_page_wins_and_zeros_clear)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_ram_block *b;

	b = move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);
	memset(b->host + 9 * MOVE_PAGE, 7, MOVE_PAGE);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 3, 1);
	write_page(&s, name, 3, 2);
	write_page(&s, name, 4, 1);
	ASSERT_EQ(gr_stream_write_zero(s.w, name, 4 * MOVE_PAGE, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero(s.w, name, 9 * MOVE_PAGE, NULL), 0);
	ASSERT_EQ(gr_stream_write_zero(s.w, name, 10 * MOVE_PAGE, NULL), 0);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	ASSERT_EQ(b->host[3 * MOVE_PAGE], 2);
	ASSERT_EQ(b->host[4 * MOVE_PAGE], 0);
	ASSERT_EQ(b->host[9 * MOVE_PAGE + 4095], 0);
	/* Page 10 was never there, and is not now. */
	ASSERT_EQ(lseek(b->fd, (off_t)b->fd_offset + 10 * MOVE_PAGE, SEEK_DATA), -1);
	unmake(&s);
	gr_ram_free(to);
}

TEST(differences_apply_to_what_is_there)
{
	/* skip 2, 3 bytes */
	static const uint8_t delta[] = { 2, 3, 'a', 'b', 'c' };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_ram_block *b = move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);

	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 3, 1);
	ASSERT_EQ(gr_stream_write_xbzrle(s.w, name, 3 * MOVE_PAGE, delta, sizeof(delta), NULL), 0);
	ASSERT_EQ(gr_stream_write_xbzrle(s.w, name, 5 * MOVE_PAGE, delta, sizeof(delta), NULL), 0);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	ASSERT_EQ(f.stats.xbzrle_pages, 2u);
	ASSERT_MEM_EQ(b->host + 3 * MOVE_PAGE, "\1\1abc\1", 6);
	ASSERT_MEM_EQ(b->host + 5 * MOVE_PAGE, "\0\0abc\0", 6);
	unmake(&s);
	gr_ram_free(to);
}

TEST(what_arrives_is_dirty_for_consumers_here)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_dirty_consumer *c;
	uint64_t pages, first, n;

	move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(to), "backup", GR_DIRTY_START_CLEAN, &c, NULL),
		  0);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 3, 1);
	write_page(&s, name, 4, 1);
	ASSERT_EQ(gr_stream_write_zero(s.w, name, 4 * MOVE_PAGE, NULL), 0);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	ASSERT_EQ(gr_dirty_epoch_begin(c, &pages, NULL), 0);
	ASSERT_EQ(pages, 2u);
	ASSERT(gr_dirty_epoch_next(c, 0, &first, &n));
	ASSERT_EQ(first, 3u);
	ASSERT_EQ(n, 2u);
	gr_dirty_consumer_del(c);
	unmake(&s);
	gr_ram_free(to);
}

/* What came of it is in memory already, and no record tells of it. */
TEST(the_pages_of_a_range_that_breaks_off_are_dirty_for_consumers_here)
{
	enum { FIRST = 16, RANGE_PAGES = 8 };
	static uint8_t data[RANGE_PAGES * MOVE_PAGE];
	struct gr_stream_block_desc d = { .id = name,
					  .used_bytes = RAM_BYTES,
					  .max_bytes = RAM_BYTES,
					  .incarnation = 5,
					  .page_bytes = MOVE_PAGE };
	struct gr_channel_file no_file = { .fd = -1 };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_ram_block *b = move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);
	struct gr_dirty_consumer *c;
	uint64_t pages, first, n;

	memset(data, 0x11, sizeof(data));
	memset(b->host, 0xee, RAM_BYTES);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(to), "backup", GR_DIRTY_START_CLEAN, &c, NULL),
		  0);
	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
	make_start(&s, name, RAM_BYTES);
	ASSERT_EQ(gr_stream_write_announce(s.w, &d, 1, NULL), 0);
	ASSERT_EQ(gr_stream_write_page_range(s.w, name, FIRST * MOVE_PAGE, data, sizeof(data),
					     &no_file, NULL),
		  0);
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	f.data = gr_channel_memory_written(s.ch, &f.bytes);
	f.bytes -= 3 * MOVE_PAGE + 7;
	feed(&f, to);
	ASSERT_EQ(f.rc, -EPIPE);
	ASSERT_EQ(b->host[(FIRST + 3) * MOVE_PAGE], 0x11);
	ASSERT_EQ(gr_dirty_epoch_begin(c, &pages, NULL), 0);
	ASSERT_EQ(pages, (uint64_t)RANGE_PAGES);
	ASSERT(gr_dirty_epoch_next(c, 0, &first, &n));
	ASSERT_EQ(first, (uint64_t)FIRST);
	ASSERT_EQ(n, (uint64_t)RANGE_PAGES);
	gr_dirty_consumer_del(c);
	unmake(&s);
	gr_ram_free(to);
}

static int refuse(void *opaque, const struct gr_block_announcement *what, struct gr_error *err)
{
	unsigned int *calls = opaque;

	(*calls)++;
	ASSERT_EQ(what->used_bytes, (uint64_t)RAM_BYTES);
	return gr_error_set(err, -EPERM, "no room for '%s'", what->id);
}

TEST(the_machine_may_refuse_a_block)
{
	unsigned int calls = 0;
	struct gr_destination_ops ops = { .block_add = refuse, .opaque = &calls };
	struct made s;
	struct feed f = { .ops = &ops };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EPERM);
	ASSERT_HAS(f.err.msg, "no room for 'ram'");
	ASSERT_EQ(calls, 1u);
	unmake(&s);
	gr_ram_free(to);
}

/* Announces a list between records, after FEATURES was asked for. */
static void announce(struct made *s, const struct gr_stream_block_desc *descs, size_t n)
{
	ASSERT_EQ(gr_stream_write_announce(s->w, descs, n, NULL), 0);
}

TEST(replugged_blocks_are_new_blocks_and_absent_ones_go)
{
	struct gr_stream_block_desc d[] = {
		{ .id = "a",
		  .used_bytes = RAM_BYTES,
		  .max_bytes = RAM_BYTES,
		  .incarnation = 1,
		  .gpa = 0,
		  .page_bytes = MOVE_PAGE },
		{ .id = "b",
		  .used_bytes = RAM_BYTES,
		  .max_bytes = RAM_BYTES,
		  .incarnation = 2,
		  .gpa = 1 << 30,
		  .page_bytes = MOVE_PAGE },
	};
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_ram_block *b;
	uint64_t offset;

	move_add(to, "bystander", MOVE_PAGE, 1ull << 40, GR_RAM_MEMFD);
	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
	ASSERT_EQ(gr_stream_write_start(s.w, 2, d, 2, NULL), 0);
	announce(&s, d, 2);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s.w, GR_SECTION_PART, NULL), 0);
	write_page(&s, "a", 1, 1);
	write_page(&s, "b", 1, 1);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s.w, GR_SECTION_END, NULL), 0);
	/* 'a' again, empty, elsewhere and shorter; 'b' is gone. */
	d[0].incarnation = 3;
	d[0].used_bytes = d[0].max_bytes = 2 * MOVE_PAGE;
	d[0].gpa = 1 << 30;
	announce(&s, d, 1);
	write_page(&s, "a", 0, 9);
	make_end(&s, &f);
	feed(&f, to);
	if (f.rc != 0) {
		FAIL("%s", f.err.msg);
	}
	gr_rcu_read_lock();
	ASSERT(!gr_ram_block_by_id_rcu(to, "b"));
	ASSERT(gr_ram_block_by_id_rcu(to, "bystander"));
	b = gr_ram_block_by_gpa_rcu(to, gr_gpa(1 << 30), &offset, NULL);
	ASSERT(b);
	ASSERT_STR_EQ(b->id, "a");
	ASSERT_EQ(gr_ram_block_used_bytes(b), 2u * MOVE_PAGE);
	ASSERT_EQ(b->host[0], 9);
	ASSERT_EQ(b->host[MOVE_PAGE], 0);
	ASSERT(!gr_ram_block_by_gpa_rcu(to, gr_gpa(0), &offset, NULL));
	gr_rcu_read_unlock();
	ASSERT_EQ(shut_of(&f), 0);
	unmake(&s);
	gr_ram_free(to);
}

static void announced_again(uint64_t used_bytes, uint64_t page)
{
	struct gr_stream_block_desc d = { .id = name,
					  .used_bytes = RAM_BYTES,
					  .max_bytes = 2 * RAM_BYTES,
					  .incarnation = 5,
					  .page_bytes = MOVE_PAGE };
	struct gr_ram *to = move_ram();
	struct feed f = { 0 };
	struct made s;

	move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);
	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
	ASSERT_EQ(gr_stream_write_start(s.w, 2, &d, 1, NULL), 0);
	announce(&s, &d, 1);
	d.used_bytes = used_bytes;
	announce(&s, &d, 1);
	write_page(&s, name, page, 7);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "block 'ram' changed its length during the move, from 262144 to");
	ASSERT_EQ(shut_of(&f), 1);
	unmake(&s);
	gr_ram_free(to);
}

TEST(a_block_that_is_announced_again_with_another_length_is_refused)
{
	announced_again(2 * RAM_BYTES, RAM_PAGES + 3);
	announced_again(RAM_BYTES / 2, 3);
}

/* A peer that said it is one of ours owes the announcement before anything else. */
TEST(pages_before_the_announcement_are_refused)
{
	struct gr_stream_block_desc d = { .id = name,
					  .used_bytes = RAM_BYTES,
					  .max_bytes = RAM_BYTES };

	for (int kind = 0; kind < 3; kind++) {
		struct made s;
		struct feed f = { 0 };
		struct gr_ram *to = move_ram();

		make(&s);
		ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL),
			  0);
		ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
		ASSERT_EQ(gr_stream_write_start(s.w, 2, &d, 1, NULL), 0);
		if (kind == 0) {
			write_page(&s, name, 0, 1);
		} else if (kind == 1) {
			ASSERT_EQ(gr_stream_write_zero(s.w, name, 0, NULL), 0);
		} else {
			ASSERT_EQ(gr_stream_write_xbzrle(s.w, name, 0, "\1\1x", 3, NULL), 0);
		}
		make_end(&s, &f);
		feed(&f, to);
		ASSERT_EQ(f.rc, -EBADMSG);
		ASSERT_HAS(f.err.msg, "byte ");
		ASSERT_HAS(f.err.msg, "'ram'");
		ASSERT_EQ(shut_of(&f), 1);
		unmake(&s);
		gr_ram_free(to);
	}
}

TEST(extensions_are_refused_from_a_peer_that_was_not_told_of_them)
{
	struct gr_stream_block_desc d = { .id = name,
					  .used_bytes = RAM_BYTES,
					  .max_bytes = RAM_BYTES,
					  .incarnation = 1,
					  .gpa = 0,
					  .page_bytes = MOVE_PAGE };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	announce(&s, &d, 1);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_LT(f.rc, 0);
	ASSERT_HAS(f.err.msg, "byte ");
	unmake(&s);
	gr_ram_free(to);
}

/* A QEMU's tail: FULL sections without lengths, a description that names devices. */
static void make_foreign_end(struct made *s, struct feed *f)
{
	static const char json[] = "{\"page_size\": 4096, \"devices\": [{\"name\": \"timer\", "
				   "\"instance_id\": 0, \"version\": 2, \"fields\": []}]}";
	uint8_t tail[256] = { 4,    0, 0, 0, 0, 5, 't', 'i', 'm', 'e', 'r',
			      0,    0, 0, 0, 0, 0, 0,	2,   1,	  2,   3,
			      0x7e, 0, 0, 0, 0, 0, 6,	0,   0,	  0,   sizeof(json) - 1 };

	memcpy(tail + 33, json, sizeof(json) - 1);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s->w, tail, 33 + sizeof(json) - 1, NULL), 0);
	ASSERT_EQ(gr_stream_flush(s->w, NULL), 0);
	f->data = gr_channel_memory_written(s->ch, &f->bytes);
}

TEST(devices_of_another_monitor_are_refused_by_name_unless_nobody_loads)
{
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops ops = { .load = move_load, .opaque = &loaded };
	struct made s;
	struct feed f = { .ops = &ops };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 0, 1);
	make_foreign_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EOPNOTSUPP);
	ASSERT_HAS(f.err.msg, "'timer'");
	ASSERT_EQ(loaded.calls, 0u);
	f.ops = NULL;
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	unmake(&s);
	gr_ram_free(to);
}

static int lacks_something(void *opaque, struct gr_error *err)
{
	const struct move_loaded *loaded = opaque;

	ASSERT_EQ(loaded->calls, 2u);
	return gr_error_set(err, -EBADMSG, "no 'test/third' has come");
}

static void incomplete(struct gr_ram *from, const uint8_t *data, size_t bytes, bool ours)
{
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops ops = { .load = move_load,
					  .complete = lacks_something,
					  .opaque = &loaded };
	struct feed f = { .data = data, .bytes = bytes, .ops = &ops };
	struct gr_ram *to = move_ram();

	(void)from, (void)ours;
	feed(&f, to);
	ASSERT_EQ(f.rc, -EBADMSG);
	ASSERT_HAS(f.err.msg, "test/third");
	ASSERT_EQ(shut_of(&f), 1);
	ASSERT(f.stats.state == GR_MIGRATE_FAILED);
	gr_ram_free(to);
}

TEST(the_source_hears_no_success_of_a_machine_that_lacks_a_device)
{
	both_dialects(incomplete);
}

TEST(an_unterminated_stream_needs_leave)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 0, 1);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s.w, "", 1, NULL), 0); /* EOF, no description */
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	f.data = gr_channel_memory_written(s.ch, &f.bytes);
	feed(&f, to);
	ASSERT_LT(f.rc, 0);
	f.params.allow_unterminated = true;
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	unmake(&s);
	gr_ram_free(to);
}

TEST(pings_are_answered_in_order_and_features_only_to_our_own)
{
	static const uint8_t want[] = {
		0,    2,    0, 4, 0,	0,    0, 1,		/* PONG 1 */
		0x47, 0x52, 0, 8, 0,	0,    0, 1, 0, 0, 0, 1, /* FEATURES: takes PAGE_RANGE */
		0,    7,    0, 0,				/* SWITCHOVER_ACK */
		0,    2,    0, 4, 0x47, 0x52, 0, 1,		/* its PONG */
		0,    1,    0, 4, 0,	0,    0, 0,		/* SHUT 0 */
	};
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	ASSERT_EQ(gr_stream_write_ping(s.w, 99, NULL), 0); /* nobody opened the return path */
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, 1, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	if (f.rc != 0) {
		FAIL("%s", f.err.msg);
	}
	ASSERT_EQ(f.answer_bytes, sizeof(want));
	ASSERT_MEM_EQ(f.answers, want, sizeof(want));
	f.params.plain = true;
	feed(&f, to);
	ASSERT_EQ(f.answer_bytes, sizeof(want) - 16);
	unmake(&s);
	gr_ram_free(to);
}

static void *run_destination(void *arg)
{
	struct gr_error err = { 0 };
	int rc = gr_destination_run(arg, &err);

	ASSERT_HAS(err.msg, "cancelled");
	return (void *)(intptr_t)rc;
}

/*
 * Plays a peer that sends this, and then neither writes nor reads any more (full: there is
 * no room for an answer from the start); a cancel must end the wait.
 */
static void cancel_after(const uint8_t *data, size_t bytes, bool full)
{
	struct gr_ram *to = move_ram();
	struct gr_migrate_stats stats;
	struct gr_destination *d;
	struct gr_channel *ch;
	pthread_t thread;
	size_t done = 0;
	void *rc;
	int fds[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	while (full && send(fds[0], "", 1, MSG_DONTWAIT) == 1) {
	}
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_destination_create(to, ch, NULL, NULL, &d, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, run_destination, d), 0);
	for (int idle = 0; done < bytes && idle < 50;) {
		ssize_t n = send(fds[1], data + done, bytes - done, MSG_DONTWAIT | MSG_NOSIGNAL);

		done += n > 0 ? (size_t)n : 0;
		idle = n > 0 ? 0 : idle + 1;
		(void)usleep(n > 0 ? 0 : 2000);
	}
	(void)usleep(20000);
	gr_destination_cancel(d);
	ASSERT_EQ(pthread_join(thread, &rc), 0);
	ASSERT_EQ((intptr_t)rc, -ECANCELED);
	gr_destination_stats(d, &stats);
	ASSERT(stats.state == GR_MIGRATE_CANCELLED);
	gr_destination_free(d);
	gr_channel_close(ch, NULL);
	close(fds[1]);
	gr_ram_free(to);
}

TEST(a_cancel_ends_the_wait_for_a_peer_that_stalls)
{
	struct made s;
	struct feed f = { 0 };

	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 0, 1);
	write_page(&s, name, 1, 1);
	make_end(&s, &f);
	cancel_after(f.data, 0, false);
	cancel_after(f.data, 30, false);	     /* inside the list of blocks */
	cancel_after(f.data, f.bytes - 3000, false); /* inside a page */
	cancel_after(f.data, f.bytes - 5, false);    /* inside the description */
	unmake(&s);
	/* questions without end, and nobody who reads the answers */
	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	for (uint32_t i = 0; i < 200000; i++) {
		ASSERT_EQ(gr_stream_write_ping(s.w, i, NULL), 0);
	}
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	f.data = gr_channel_memory_written(s.ch, &f.bytes);
	cancel_after(f.data, f.bytes, false);
	unmake(&s);
}

TEST(a_cancel_ends_the_wait_to_tell_of_a_failure)
{
	struct made s;
	struct feed f = { 0 };

	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s.w, "\x99", 1, NULL), 0); /* no section */
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	f.data = gr_channel_memory_written(s.ch, &f.bytes);
	cancel_after(f.data, f.bytes, true);
	unmake(&s);
}

static void *run_to_success(void *arg)
{
	struct gr_error err = { 0 };

	if (gr_destination_run(arg, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return NULL;
}

/* Returns when the other end of a socket pair has read everything. */
static void wait_until_read(int fd)
{
	for (int unread = 1; unread > 0;) {
		ASSERT_EQ(ioctl(fd, SIOCOUTQ, &unread), 0);
		(void)sched_yield();
	}
}

/* A description behind the end of all sections, and more of the device's data. */
static const uint8_t forged[] = { 0, 6, 0, 0, 0, 2, '{', '}', 'm', 'o', 'r', 'e' };

static int load_forged(void *opaque, const char *id, uint32_t instance, uint32_t version,
		       const void *data, size_t bytes, struct gr_error *err)
{
	unsigned int *calls = opaque;

	(void)id, (void)instance, (void)version, (void)err;
	ASSERT_EQ(bytes, sizeof(forged));
	ASSERT_MEM_EQ(data, forged, bytes);
	++*calls;
	return 0;
}

TEST(an_end_that_a_guest_has_forged_in_a_devices_state_is_not_the_end)
{
	unsigned int calls = 0;
	struct gr_destination_ops ops = { .load = load_forged, .opaque = &calls };
	struct gr_ram *to = move_ram();
	struct gr_tail_builder b;
	struct gr_destination *d;
	struct gr_channel *ch;
	struct made s;
	const uint8_t *tail, *data;
	const uint8_t *end;
	size_t bytes;
	pthread_t thread;
	int fds[2];

	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	make_start(&s, name, RAM_BYTES);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	gr_tail_builder_init(&b, MOVE_PAGE);
	gr_tail_builder_add(&b, 0, "test/first", 0, 1, forged, sizeof(forged));
	ASSERT_EQ(gr_tail_builder_finish(&b, &tail, &bytes, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s.w, tail, bytes, NULL), 0);
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	data = gr_channel_memory_written(s.ch, &bytes);
	end = memmem(data, bytes, forged, sizeof(forged));
	ASSERT(end);
	end += sizeof(forged) - strlen("more");

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_destination_create(to, ch, NULL, &ops, &d, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, run_to_success, d), 0);
	ASSERT_EQ(send(fds[1], data, (size_t)(end - data), MSG_NOSIGNAL), end - data);
	wait_until_read(fds[1]);
	ASSERT_EQ(send(fds[1], end, bytes - (size_t)(end - data), MSG_NOSIGNAL),
		  (ssize_t)bytes - (end - data));
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_EQ(calls, 1u);
	gr_destination_free(d);
	gr_channel_close(ch, NULL);
	close(fds[1]);
	gr_tail_builder_destroy(&b);
	unmake(&s);
	gr_ram_free(to);
}

TEST_MAIN()

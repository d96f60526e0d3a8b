/* SPDX-License-Identifier: MIT */
/* For tests of a destination: streams made by hand or taken from a source, fed to it from memory.
 */
#ifndef DESTINATION_KIT_H
#define DESTINATION_KIT_H

#include "move.h"
#include "stream/channel.h"
#include "stream/return_path.h"
#include "stream/tail.h"
#include "stream/writer.h"

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

static inline void feed(struct feed *f, struct gr_ram *to)
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
static inline int64_t shut_of(const struct feed *f)
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

static inline struct gr_ram *some_ram(void)
{
	struct gr_ram *ram = move_ram();

	move_fill(move_add(ram, name, RAM_BYTES, 0, GR_RAM_MEMFD), 1, 3);
	move_fill(move_add(ram, "rom", 2 * MOVE_PAGE, 1ull << 32, GR_RAM_MEMFD), 2, 0);
	return ram;
}

static inline int save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	uint64_t value = 42;
	int rc = gr_state_put(writer, "test/first", 0, 1, &value, sizeof(value), err);

	(void)opaque;
	return rc < 0 ? rc : gr_state_put(writer, "test/second", 7, 2, "abc", 3, err);
}

static inline int nothing(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static inline void no_resume(void *opaque)
{
	(void)opaque;
}

/* What a source sends to a peer that answers as scripted. To be freed. */
static inline uint8_t *capture(struct gr_ram *from, bool ours, size_t *ret_bytes)
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

static inline void both_dialects(void (*fn)(struct gr_ram *from, const uint8_t *data, size_t bytes,
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

/* A stream of our own making. */
struct made {
	struct gr_channel *ch;
	struct gr_stream_writer *w;
};

static inline void make(struct made *s)
{
	ASSERT_EQ(gr_channel_memory(NULL, &s->ch, NULL), 0);
	ASSERT_EQ(gr_stream_writer_create(s->ch, &s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_config(s->w, "machine", MOVE_PAGE, NULL), 0);
}

static inline void make_start(struct made *s, const char *id, uint64_t bytes)
{
	struct gr_stream_block_desc desc = { .id = id, .used_bytes = bytes, .max_bytes = bytes };

	ASSERT_EQ(gr_stream_write_start(s->w, 2, &desc, 1, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s->w, GR_SECTION_END, NULL), 0);
}

/* Ends it with a tail that has no devices. */
static inline void make_end(struct made *s, struct feed *f)
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

static inline void unmake(struct made *s)
{
	gr_stream_writer_free(s->w);
	gr_channel_close(s->ch, NULL);
}

static inline void write_page(struct made *s, const char *id, uint64_t page, uint8_t byte)
{
	uint8_t data[MOVE_PAGE];
	const void *pages[] = { data };
	uint64_t offset = page * MOVE_PAGE;

	memset(data, byte, sizeof(data));
	ASSERT_EQ(gr_stream_write_pages(s->w, id, &offset, pages, 1, NULL), 0);
}

#endif

/* SPDX-License-Identifier: MIT */
/* For tests of images: streams that are received into one, and what must be in it then. */
#ifndef IMAGE_KIT_H
#define IMAGE_KIT_H

#include "harness.h"
#include "stream/tail.h"
#include "stream/writer.h"
#include <fcntl.h>
#include <guestram/image.h>
#include <stdlib.h>
#include <unistd.h>

enum { PAGE = 4096, RAM_PAGES = 300, ROM_PAGES = 3, SECTION_ID = 2 };

static char folder[64];

static inline const char *in_folder(const char *name)
{
	static char paths[8][128];
	static unsigned next;
	char *path = paths[next++ % 8];

	if (!folder[0]) {
		(void)snprintf(folder, sizeof(folder), "/tmp/gr-image-XXXXXX");
		ASSERT(mkdtemp(folder));
	}
	(void)snprintf(path, 128, "%s/%s", folder, name);
	return path;
}

static inline void remove_folder(void)
{
	char command[128];

	(void)snprintf(command, sizeof(command), "rm -rf %s", folder);
	ASSERT_EQ(system(command), 0);
}

static inline bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

/* A stream being written to a channel, and what the blocks must contain in the end. */
struct stream {
	struct gr_channel *ch;
	struct gr_stream_writer *w;
	uint8_t *ram; /* RAM_PAGES */
	uint8_t *rom; /* ROM_PAGES */
};

static const struct gr_stream_block_desc blocks[] = {
	{ .id = "pc.ram", .used_bytes = RAM_PAGES * PAGE, .max_bytes = RAM_PAGES * PAGE },
	{ .id = "pc.rom", .used_bytes = ROM_PAGES * PAGE, .max_bytes = ROM_PAGES * PAGE },
};

static inline struct gr_channel *connect_to(const char *uri)
{
	struct gr_channel *ch;
	struct gr_error err;

	if (gr_channel_connect(uri, &ch, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return ch;
}

static inline void stream_begin(struct stream *s, struct gr_channel *ch, bool return_path)
{
	s->ch = ch;
	s->ram = calloc(RAM_PAGES, PAGE);
	s->rom = calloc(ROM_PAGES, PAGE);
	ASSERT(s->ram && s->rom);
	ASSERT_EQ(gr_stream_writer_create(s->ch, &s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_config(s->w, "pc-i440fx-7.2", PAGE, NULL), 0);
	if (return_path) {
		ASSERT_EQ(gr_stream_write_command(s->w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL),
			  0);
	}
	ASSERT_EQ(gr_stream_write_start(s->w, SECTION_ID, blocks, 2, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s->w, GR_SECTION_PART, NULL), 0);
}

static inline void stream_page(struct stream *s, unsigned block, uint64_t page, const uint8_t *data)
{
	uint64_t offset = page * PAGE;
	const void *pages[1] = { data };

	memcpy((block ? s->rom : s->ram) + offset, data, PAGE);
	ASSERT_EQ(gr_stream_write_pages(s->w, blocks[block].id, &offset, pages, 1, NULL), 0);
}

static inline void stream_zero(struct stream *s, unsigned block, uint64_t page)
{
	memset((block ? s->rom : s->ram) + page * PAGE, 0, PAGE);
	ASSERT_EQ(gr_stream_write_zero(s->w, blocks[block].id, page * PAGE, NULL), 0);
}

/* Everything behind the pages; the tail has one device. */
static inline void stream_end(struct stream *s)
{
	struct gr_tail_builder b;
	const uint8_t *tail;
	size_t n;

	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s->w, GR_SECTION_END, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	gr_tail_builder_init(&b, PAGE);
	gr_tail_builder_add(&b, 7, "clock", 0, 3, "tick tock", 9);
	ASSERT_EQ(gr_tail_builder_finish(&b, &tail, &n, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s->w, tail, n, NULL), 0);
	gr_tail_builder_destroy(&b);
	ASSERT_EQ(gr_stream_flush(s->w, NULL), 0);
}

static inline void stream_free(struct stream *s)
{
	gr_stream_writer_free(s->w);
	free(s->ram);
	free(s->rom);
}

static inline int receive_file_with(const char *capture, const char *path,
				    const struct gr_image_params *params, struct gr_error *err)
{
	struct gr_channel_listener *listener;
	struct gr_channel *ch;
	int rc;

	ASSERT_EQ(gr_channel_listen(capture, &listener, NULL), 0);
	ASSERT_EQ(gr_channel_accept(listener, &ch, NULL), 0);
	gr_channel_listener_close(listener);
	rc = gr_image_receive(ch, path, params, NULL, err);
	ASSERT_EQ(gr_channel_close(ch, NULL), 0);
	return rc;
}

static inline int receive_file(const char *capture, const char *path, struct gr_error *err)
{
	return receive_file_with(capture, path, NULL, err);
}

static inline void receive_well(const char *capture, const char *path)
{
	struct gr_error err;

	if (receive_file(capture, path, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static inline struct gr_image *open_well(const char *path)
{
	struct gr_image *image;
	struct gr_error err;

	if (gr_image_open(path, &image, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return image;
}

/* A small good image, for tests that damage it. */
static inline const char *small_image(void)
{
	struct stream s;
	uint8_t data[PAGE];

	stream_begin(&s, connect_to(in_folder("capture")), false);
	for (uint64_t page = 0; page < 20; page++) {
		memset(data, (int)page + 1, sizeof(data));
		stream_page(&s, 0, page * 7, data);
	}
	stream_page(&s, 1, 1, data);
	stream_end(&s);
	ASSERT_EQ(gr_channel_close(s.ch, NULL), 0);
	stream_free(&s);
	receive_well(in_folder("capture"), in_folder("vm.ram"));
	return in_folder("vm.ram");
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * stream_rewrite FROM TO: parses a stream and writes every record again with our writer.
 * If reader and writer understand the layout as QEMU does, the two files are the same.
 * Prints what was found, one "key value" a line.
 */
#include "stream/reader.h"
#include "stream/tail.h"
#include "stream/writer.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static struct gr_error err;

static void check(int rc, const char *what)
{
	if (rc < 0) {
		(void)fprintf(stderr, "%s: %s\n", what, err.msg);
		exit(1);
	}
}

static struct {
	uint64_t pages, zeros, deltas, commands;
	uint32_t section_id;
} seen;

static void blocks(struct gr_stream_writer *w, struct gr_stream_reader *r)
{
	uint32_t n = gr_stream_reader_block_count(r);
	struct gr_stream_block_desc *list = calloc(n + 1u, sizeof(*list));

	if (!list) {
		exit(1);
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct gr_stream_block *b = gr_stream_reader_block(r, i);

		list[i] = (struct gr_stream_block_desc){ .id = b->id, .used_bytes = b->used_bytes };
		printf("block %s %" PRIu64 "\n", b->id, b->used_bytes);
	}
	check(gr_stream_write_start(w, seen.section_id, list, n, &err), "start");
	free(list);
}

static void pages(struct gr_stream_writer *w, struct gr_stream_reader *r,
		  const struct gr_stream_record *rec)
{
	const void *page[GR_STREAM_RUN_PAGES_MAX];
	const char *id = gr_stream_reader_block(r, rec->pages.block)->id;

	for (uint32_t i = 0; i < rec->pages.count; i++) {
		page[i] = rec->pages.data + (size_t)i * gr_stream_reader_page_bytes(r);
	}
	check(gr_stream_write_pages(w, id, rec->pages.offsets, page, rec->pages.count, &err),
	      "pages");
	seen.pages += rec->pages.count;
}

static void zeros(struct gr_stream_writer *w, struct gr_stream_reader *r,
		  const struct gr_stream_record *rec)
{
	const char *id = gr_stream_reader_block(r, rec->zero.block)->id;

	for (uint64_t o = 0; o < rec->zero.bytes; o += gr_stream_reader_page_bytes(r)) {
		check(gr_stream_write_zero(w, id, rec->zero.offset + o, &err), "zero");
		seen.zeros++;
	}
}

/* in_ram: a section of 'ram' has been begun in the output. */
static void rewrite(struct gr_stream_writer *w, struct gr_stream_reader *r,
		    const struct gr_stream_record *rec, struct gr_tail *tail, bool *in_ram)
{
	bool page_record = rec->kind == GR_STREAM_PAGES || rec->kind == GR_STREAM_ZERO ||
			   rec->kind == GR_STREAM_XBZRLE;
	bool eos = rec->kind == GR_STREAM_EOS;

	if ((page_record || eos) && !*in_ram) {
		check(gr_stream_write_section(w, gr_stream_reader_section(r), &err), "part");
		*in_ram = true;
	}
	switch (rec->kind) {
	case GR_STREAM_CONFIG:
		printf("machine %s\n", rec->config.machine);
		check(gr_stream_write_raw(w, rec->config.raw, rec->config.raw_bytes, &err),
		      "config");
		break;
	case GR_STREAM_COMMAND:
		seen.commands++;
		check(gr_stream_write_command(w, rec->command.command, rec->command.data,
					      rec->command.data_bytes, &err),
		      "command");
		break;
	case GR_STREAM_RAM_START:
		seen.section_id = rec->ram_start.section_id;
		break;
	case GR_STREAM_BLOCKS:
		blocks(w, r);
		*in_ram = true;
		break;
	case GR_STREAM_PAGES:
		pages(w, r, rec);
		break;
	case GR_STREAM_ZERO:
		zeros(w, r, rec);
		break;
	case GR_STREAM_XBZRLE:
		check(gr_stream_write_xbzrle(w, gr_stream_reader_block(r, rec->xbzrle.block)->id,
					     rec->xbzrle.offset, rec->xbzrle.payload,
					     rec->xbzrle.payload_bytes, &err),
		      "xbzrle");
		seen.deltas++;
		break;
	case GR_STREAM_EOS:
		check(gr_stream_write_eos(w, &err), "eos");
		*in_ram = false;
		break;
	case GR_STREAM_TAIL:
		check(gr_stream_write_raw(w, rec->tail.data, rec->tail.bytes, &err), "tail");
		check(gr_tail_append(tail, rec->tail.data, rec->tail.bytes, &err), "tail");
		break;
	case GR_STREAM_ANNOUNCE:
	default:
		exit(1);
	}
}

static void report(struct gr_tail *tail)
{
	struct gr_tail_device *d;
	size_t n, located = 0, bytes = 0;

	check(gr_tail_finish(tail, false, &err), "tail");
	check(gr_tail_devices(tail, &d, &n, &err), "devices");
	for (size_t i = 0; i < n; i++) {
		located += d[i].located;
		bytes += d[i].data_bytes;
	}
	free(d);
	printf("pages %" PRIu64 "\nzeros %" PRIu64 "\ndeltas %" PRIu64 "\ncommands %" PRIu64 "\n",
	       seen.pages, seen.zeros, seen.deltas, seen.commands);
	printf("devices %zu\nlocated %zu\ndevice_bytes %zu\ntail_bytes %zu\n", n, located, bytes,
	       tail->bytes);
}

int main(int argc, char **argv)
{
	struct gr_channel_listener *l;
	struct gr_channel *in, *out;
	struct gr_stream_source source;
	struct gr_stream_reader *r;
	struct gr_stream_writer *w;
	struct gr_stream_record rec;
	struct gr_tail tail;
	bool in_ram = false;
	int rc;

	if (argc != 3) {
		(void)fprintf(stderr, "usage: stream_rewrite FROM TO\n");
		return 2;
	}
	check(gr_channel_listen(argv[1], &l, &err), "listen");
	check(gr_channel_accept(l, &in, &err), "open");
	check(gr_channel_connect(argv[2], &out, &err), "create");
	source = gr_stream_source_channel(in);
	check(gr_stream_reader_create(&source, &r, &err), "reader");
	check(gr_stream_writer_create(out, &w, &err), "writer");
	gr_tail_init(&tail, 0);
	while ((rc = gr_stream_next(r, &rec, &err)) > 0) {
		rewrite(w, r, &rec, &tail, &in_ram);
	}
	check(rc, "read");
	check(gr_stream_flush(w, &err), "flush");
	report(&tail);
	gr_tail_destroy(&tail);
	gr_stream_writer_free(w);
	gr_stream_reader_free(r);
	check(gr_channel_close(out, &err), "close");
	check(gr_channel_close(in, &err), "close");
	gr_channel_listener_close(l);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * stream_rewrite FROM TO: parses a stream and writes every record again with our writer.
 * If reader and writer understand the layout as QEMU does, the two files are the same.
 * Prints what was found, one "key value" a line.
 */
#include "stream/copy.h"
#include "stream/tail.h"
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

static void look(const struct gr_stream_copy *c, const struct gr_stream_record *rec)
{
	if (rec->kind == GR_STREAM_CONFIG) {
		printf("machine %s\n", rec->config.machine);
	}
	for (uint32_t i = 0; rec->kind == GR_STREAM_BLOCKS && i < rec->blocks.count; i++) {
		const struct gr_stream_block *b = gr_stream_reader_block(c->reader, i);

		printf("block %s %" PRIu64 "\n", b->id, b->used_bytes);
	}
}

static void report(const struct gr_stream_copy *c, uint64_t commands, struct gr_tail *tail)
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
	       c->normal_pages, c->zero_pages, c->xbzrle_pages, commands);
	printf("devices %zu\nlocated %zu\ndevice_bytes %zu\ntail_bytes %zu\n", n, located, bytes,
	       tail->bytes);
}

int main(int argc, char **argv)
{
	struct gr_channel_listener *l;
	struct gr_channel *in, *out;
	struct gr_stream_source source;
	struct gr_stream_copy copy = { 0 };
	struct gr_stream_record rec;
	struct gr_tail tail;
	uint64_t commands = 0;
	int rc;

	if (argc != 3) {
		(void)fprintf(stderr, "usage: stream_rewrite FROM TO\n");
		return 2;
	}
	check(gr_channel_listen(argv[1], &l, &err), "listen");
	check(gr_channel_accept(l, &in, &err), "open");
	check(gr_channel_connect(argv[2], &out, &err), "create");
	source = gr_stream_source_channel(in);
	check(gr_stream_reader_create(&source, &copy.reader, &err), "reader");
	gr_stream_reader_allow_ignore_shared(copy.reader);
	check(gr_stream_writer_create(out, &copy.writer, &err), "writer");
	gr_tail_init(&tail, 0);
	while ((rc = gr_stream_next(copy.reader, &rec, &err)) > 0) {
		check(gr_stream_copy_record(&copy, &rec, &err), "write");
		look(&copy, &rec);
		commands += rec.kind == GR_STREAM_COMMAND;
		if (rec.kind == GR_STREAM_TAIL) {
			check(gr_tail_append(&tail, rec.tail.data, rec.tail.bytes, &err), "tail");
		}
	}
	check(rc, "read");
	check(gr_stream_flush(copy.writer, &err), "flush");
	report(&copy, commands, &tail);
	gr_tail_destroy(&tail);
	gr_stream_writer_free(copy.writer);
	gr_stream_reader_free(copy.reader);
	check(gr_channel_close(out, &err), "close");
	check(gr_channel_close(in, &err), "close");
	gr_channel_listener_close(l);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/* The list as text, for people. */
#include "base/atomic.h"
#include "ram/ram.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

/* As snprintf() does it: what does not fit is counted all the same. */
struct text {
	char *buf;
	size_t room, need;
};

static void put(struct text *t, const char *fmt, ...) GR_PRINTF(2, 3);
static void put(struct text *t, const char *fmt, ...)
{
	size_t at = GR_MIN(t->need, t->room);
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->buf ? t->buf + at : NULL, t->room - at, fmt, ap);
	va_end(ap);
	t->need += n > 0 ? (size_t)n : 0;
}

/* An id may come from a stream: it must not get hold of a terminal. */
static const char *printable(const char *id, char shown[GR_RAM_ID_BYTES_MAX + 1])
{
	size_t n;

	for (n = 0; id[n]; n++) {
		shown[n] = (char)(id[n] >= 0x20 && id[n] < 0x7f ? id[n] : '?');
	}
	shown[n] = '\0';
	return shown;
}

static void put_page_size(struct text *t, uint64_t bytes)
{
	static const char *const unit[] = { "B", "KiB", "MiB", "GiB" };
	unsigned int u = 0;

	for (; bytes >= 1024 && u + 1 < GR_ARRAY_SIZE(unit); u++) {
		bytes /= 1024;
	}
	put(t, "  %6" PRIu64 " %-3s", bytes, unit[u]);
}

static void put_blocks(struct text *t, const struct gr_ram_index *index)
{
	char id[GR_RAM_ID_BYTES_MAX + 1];

	put(t, "%24s  %10s  %18s %18s %18s %18s %3s\n", "Block Name", "PSize", "Offset", "Used",
	    "Total", "HVA", "RO");
	for (unsigned int i = 0; i < index->blocks; i++) {
		struct gr_ram_block *b = index->by_offset[i].block;

		put(t, "%24s", printable(gr_load_acquire(&b->id), id));
		put_page_size(t, b->page_bytes);
		put(t,
		    "  0x%016" PRIx64 " 0x%016" PRIx64 " 0x%016" PRIx64 " 0x%016" PRIx64 " %3s\n",
		    b->offset.v, gr_ram_block_used_bytes(b), b->max_bytes,
		    (uint64_t)(uintptr_t)b->host,
		    gr_ram_block_flags(b) & GR_RAM_READONLY ? "ro" : "rw");
	}
}

static void put_regions(struct text *t, const struct gr_ram_index *index)
{
	char id[GR_RAM_ID_BYTES_MAX + 1];

	put(t, "address-space: memory\n");
	for (unsigned int i = 0; i < index->regions; i++) {
		const struct gr_ram_region *r = &index->region[i];
		bool rom = r->readonly || (gr_ram_block_flags(r->block) & GR_RAM_READONLY);

		put(t, "  %016" PRIx64 "-%016" PRIx64 " (prio 0, %s): %s", r->gpa.v,
		    r->gpa.v + (r->bytes - 1), rom ? "rom" : "ram",
		    printable(gr_load_acquire(&r->block->id), id));
		if (r->block_offset != 0) {
			put(t, " @%016" PRIx64, r->block_offset);
		}
		put(t, "\n");
	}
}

size_t gr_ram_format(struct gr_ram *ram, enum gr_ram_view view, char *buf, size_t bytes)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	struct text t = { .buf = bytes > 0 ? buf : NULL, .room = bytes };

	if (t.buf) {
		t.buf[0] = '\0';
	}
	if (view == GR_RAM_VIEW_BLOCKS) {
		put_blocks(&t, index);
	} else {
		put_regions(&t, index);
	}
	return t.need;
}

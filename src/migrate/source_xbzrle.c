/* SPDX-License-Identifier: MIT */
/*
 * Differences instead of pages (XBZRLE), from the second round on. The cache holds what was *sent*,
 * which is not what the page holds: the guest goes on writing. So a page is copied first
 * (source_send.c); the copy is compared, sent, and kept.
 *
 * A page that is not in the cache, or whose difference would be longer than itself, goes whole.
 * What is sent as zero is zero in the cache too. In the last round nothing is taken in any more:
 * there is no later one.
 */
#include "migrate/source.h"
#include <errno.h>
#include <guestram/codec.h>
#include <stdlib.h>
#include <string.h>

enum { DELTA_HEADER_BYTES = 3 }; /* more than a whole page has */

int gr_source_xbzrle_init(struct gr_source *s, struct gr_error *err)
{
	if (s->params.xbzrle_cache_bytes == 0) {
		return 0;
	}
	s->delta = malloc(s->page_bytes);
	if (!s->delta) {
		return gr_error_set(err, -ENOMEM, "no memory for differences");
	}
	return gr_page_cache_init(&s->cache, s->params.xbzrle_cache_bytes, s->page_bytes, err);
}

void gr_source_xbzrle_end(struct gr_source *s)
{
	gr_page_cache_destroy(&s->cache);
	free(s->delta);
	s->delta = NULL;
}

static uint64_t block_key(const struct gr_source *s)
{
	return s->batch.entry->incarnation;
}

void gr_source_xbzrle_zero(struct gr_source *s, uint64_t offset, uint64_t bytes)
{
	if (gr_source_uses_xbzrle(s)) {
		gr_page_cache_zero(&s->cache, block_key(s), offset, bytes);
	}
}

static void remember(struct gr_source *s, uint8_t *cached, uint64_t offset, const uint8_t *page)
{
#ifdef GR_MUTANT_XBZRLE_KEEPS_THE_PAGE
	/* What it holds now instead of what was sent. */
	page = s->batch.block->host + offset;
#endif
	(void)offset;
	memcpy(cached, page, s->page_bytes);
}

/* 1: the page goes whole; 0: it was sent, or need not be; or a negative errno. */
static int send_delta(struct gr_source *s, uint64_t offset, const uint8_t *page,
		      struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	size_t room = GR_MIN(s->page_bytes - DELTA_HEADER_BYTES, (uint64_t)UINT16_MAX);
	uint8_t *cached = gr_page_cache_find(&s->cache, block_key(s), offset, s->rounds);
	ssize_t n;

	if (!cached) {
		b->xbzrle_misses++;
		cached = s->final ? NULL
				  : gr_page_cache_add(&s->cache, block_key(s), offset, s->rounds);
		if (cached) {
			remember(s, cached, offset, page);
		}
		return 1;
	}
	n = gr_xbzrle_encode(cached, page, s->page_bytes, s->delta, room);
	if (n == 0) {
		b->xbzrle_unchanged++;
		return 0;
	}
	remember(s, cached, offset, page);
	if (n < 0) {
		b->xbzrle_overflows++;
		return 1;
	}
	b->xbzrle_pages++;
	b->xbzrle_bytes += (uint64_t)n;
	return gr_stream_write_xbzrle(s->writer, b->entry->id, offset, s->delta, (size_t)n, err);
}

int gr_source_xbzrle_send(struct gr_source *s, struct gr_error *err)
{
	struct gr_source_batch *b = &s->batch;
	uint32_t whole = 0;

	for (uint32_t i = 0; i < b->count; i++) {
		int rc = send_delta(s, b->offsets[i], b->pages[i], err);

		if (rc < 0) {
			return rc;
		}
		if (rc > 0) {
			b->offsets[whole] = b->offsets[i];
			b->pages[whole++] = b->pages[i];
		}
	}
	b->count = whole;
	return 0;
}

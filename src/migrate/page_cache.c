/* SPDX-License-Identifier: MIT */
#include "migrate/page_cache.h"
#include "base/compiler.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Used in this round or the one before: it stays. */
enum { ROUNDS_KEPT = 2 };

struct gr_page_cache_tag {
	uint64_t incarnation; /* 0: nothing here */
	uint64_t offset;
	uint64_t round; /* that used it last */
};

uint64_t gr_page_cache_bytes(const struct gr_page_cache *c)
{
	return c->sets * GR_PAGE_CACHE_WAYS * c->page_bytes;
}

int gr_page_cache_init(struct gr_page_cache *c, uint64_t bytes, uint64_t page_bytes,
		       struct gr_error *err)
{
	uint64_t sets = bytes / (GR_PAGE_CACHE_WAYS * page_bytes);

	*c = (struct gr_page_cache){ .sets = GR_MAX(sets, (uint64_t)1), .page_bytes = page_bytes };
	/* Untouched until it is used, however large. */
	c->pages = mmap(NULL, gr_page_cache_bytes(c), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (c->pages == MAP_FAILED) {
		c->pages = NULL;
	} else {
		c->tags = calloc(c->sets * GR_PAGE_CACHE_WAYS, sizeof(*c->tags));
	}
	if (!c->tags || !c->pages) {
		gr_page_cache_destroy(c);
		return gr_error_set(err, -ENOMEM, "no memory for an XBZRLE cache of %llu bytes",
				    (unsigned long long)bytes);
	}
	return 0;
}

void gr_page_cache_destroy(struct gr_page_cache *c)
{
	if (c->pages) {
		(void)munmap(c->pages, gr_page_cache_bytes(c));
	}
	free(c->tags);
	*c = (struct gr_page_cache){ 0 };
}

/* Pages that follow each other are in sets that do; blocks begin anywhere. */
static struct gr_page_cache_tag *set_of(const struct gr_page_cache *c, uint64_t incarnation,
					uint64_t offset)
{
	uint64_t set = offset / c->page_bytes + incarnation * UINT64_C(0x9e3779b97f4a7c15);

	return &c->tags[set % c->sets * GR_PAGE_CACHE_WAYS];
}

static uint8_t *page_of(const struct gr_page_cache *c, const struct gr_page_cache_tag *tag)
{
	return c->pages + (uint64_t)(tag - c->tags) * c->page_bytes;
}

static struct gr_page_cache_tag *find(const struct gr_page_cache *c, uint64_t incarnation,
				      uint64_t offset)
{
	struct gr_page_cache_tag *tag = set_of(c, incarnation, offset);

	for (int way = 0; way < GR_PAGE_CACHE_WAYS; way++, tag++) {
		if (tag->offset == offset && tag->incarnation == incarnation) {
			return tag;
		}
	}
	return NULL;
}

uint8_t *gr_page_cache_find(struct gr_page_cache *c, uint64_t incarnation, uint64_t offset,
			    uint64_t round)
{
	struct gr_page_cache_tag *tag = find(c, incarnation, offset);

	if (!tag) {
		return NULL;
	}
	tag->round = round;
	return page_of(c, tag);
}

uint8_t *gr_page_cache_add(struct gr_page_cache *c, uint64_t incarnation, uint64_t offset,
			   uint64_t round)
{
	struct gr_page_cache_tag *tag = set_of(c, incarnation, offset), *oldest = tag;

	for (int way = 1; way < GR_PAGE_CACHE_WAYS; way++) {
		if (tag[way].round < oldest->round) {
			oldest = &tag[way];
		}
	}
	if (oldest->incarnation != 0 && oldest->round + ROUNDS_KEPT > round) {
		return NULL;
	}
	*oldest = (struct gr_page_cache_tag){ incarnation, offset, round };
	return page_of(c, oldest);
}

void gr_page_cache_clear(struct gr_page_cache *c)
{
	if (c->tags) {
		memset(c->tags, 0, c->sets * GR_PAGE_CACHE_WAYS * sizeof(*c->tags));
	}
}

static void zero_tag(const struct gr_page_cache *c, const struct gr_page_cache_tag *tag)
{
#ifndef GR_MUTANT_PAGE_CACHE_KEEPS_ZEROED
	memset(page_of(c, tag), 0, c->page_bytes);
#else
	(void)c, (void)tag;
#endif
}

void gr_page_cache_zero(struct gr_page_cache *c, uint64_t incarnation, uint64_t offset,
			uint64_t bytes)
{
	uint64_t tags = c->sets * GR_PAGE_CACHE_WAYS;
	const struct gr_page_cache_tag *tag;

	if (bytes / c->page_bytes <= c->sets) {
		for (uint64_t at = offset; at < offset + bytes; at += c->page_bytes) {
			tag = find(c, incarnation, at);
			if (tag) {
				zero_tag(c, tag);
			}
		}
		return;
	}
	/* A hole can be much larger than the cache. */
	for (tag = c->tags; tag < c->tags + tags; tag++) {
		if (tag->incarnation == incarnation && tag->offset - offset < bytes) {
			zero_tag(c, tag);
		}
	}
}

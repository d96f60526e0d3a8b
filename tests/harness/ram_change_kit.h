/* SPDX-License-Identifier: MIT */
/* For tests of RAM that changes: a list with a consumer who is told what is dirty. */
#ifndef RAM_CHANGE_KIT_H
#define RAM_CHANGE_KIT_H

#include "harness.h"
#include "ram/ram.h"
#include <errno.h>

#define PAGE ((uint64_t)65536) /* whole pages on every host */

static struct gr_dirty_consumer *consumer;

static inline struct gr_ram *make(void)
{
	struct gr_ram *ram;

	if (gr_ram_create(NULL, &ram, NULL) < 0) {
		FAIL("no memory");
	}
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "test", GR_DIRTY_START_CLEAN, &consumer,
					NULL),
		  0);
	return ram;
}

static inline void end(struct gr_ram *ram)
{
	gr_dirty_consumer_del(consumer);
	gr_ram_free(ram);
}

static inline struct gr_ram_block_desc describe(const char *id, uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = id,
		.used_bytes = bytes,
		.fd = -1,
		.backing = TEST_BACKING,
	};

	return desc;
}

static inline struct gr_ram_block *add_desc(struct gr_ram *ram,
					    const struct gr_ram_block_desc *desc)
{
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

/* How many bytes are dirty since the last call, and where the first ones are. */
static inline uint64_t dirty(uint64_t *ret_first)
{
	uint64_t first = 0, pages, n = 0;

	ASSERT_EQ(gr_dirty_epoch_begin(consumer, &n, NULL), 0);
	if (n != 0) {
		ASSERT(gr_dirty_epoch_next(consumer, 0, &first, &pages));
	}
	ASSERT_EQ(gr_dirty_epoch_commit(consumer), 0);
	if (ret_first) {
		*ret_first = first * 4096;
	}
	return n * 4096;
}

/* A listener that writes down what it hears, and refuses when told to. */
struct ear {
	char text[512];
	int refuse; /* the call that refuses, counted down; 0: none */
};

static inline int hear(struct ear *e, bool may_refuse, const char *what, uint64_t a, uint64_t b)
{
	size_t n = strlen(e->text);

	(void)snprintf(e->text + n, sizeof(e->text) - n, "%s%llu,%llu ", what,
		       (unsigned long long)(a / PAGE), (unsigned long long)(b / PAGE));
	return may_refuse && e->refuse != 0 && --e->refuse == 0 ? -EBADMSG : 0;
}

#endif

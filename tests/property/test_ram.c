/* SPDX-License-Identifier: MIT */
/*
 * Random changes of a RAM list against a plain array of what should be there, looked up by
 * walking the array. After each change every key is asked at the borders of every block and
 * region; what must be refused is.
 */
#include "harness.h"
#include "ram/ram.h"
#include <errno.h>
#include <guestram/ram.h>
#include <stdlib.h>

enum { BLOCKS = 12, REGIONS = 16, PAGE = 4096 };

struct model_block {
	struct gr_ram_block *block; /* NULL: not there */
	char id[8];
	uint64_t offset, bytes;
	void *host;
};

struct model_region {
	uint64_t gpa, bytes, offset; /* bytes 0: not there */
	struct model_block *block;
};

static struct gr_ram *ram;
static struct model_block blocks[BLOCKS];
static struct model_region regions[REGIONS];
static uint64_t rng, version;

static uint64_t roll(uint64_t n)
{
	return test_rand(&rng) % n;
}

static struct model_region *region_at(uint64_t gpa)
{
	for (unsigned int i = 0; i < REGIONS; i++) {
		if (gpa - regions[i].gpa < regions[i].bytes) {
			return &regions[i];
		}
	}
	return NULL;
}

static bool overlaps(uint64_t gpa, uint64_t bytes)
{
	for (unsigned int i = 0; i < REGIONS; i++) {
		const struct model_region *r = &regions[i];

		if (r->bytes && r->gpa < gpa + bytes && gpa < r->gpa + r->bytes) {
			return true;
		}
	}
	return false;
}

/* The smallest gap, found by trying every candidate against every block. */
static uint64_t best_place(uint64_t bytes)
{
	uint64_t best = 0, best_gap = UINT64_MAX;

	for (int i = -1; i < BLOCKS; i++) {
		uint64_t start = 0, end = gr_ram_addr_max(ram);
		bool taken = false;

		if (i >= 0) {
			if (!blocks[i].block) {
				continue;
			}
			start = GR_ROUND_UP(blocks[i].offset + blocks[i].bytes, (uint64_t)64 * PAGE);
		}
		for (unsigned int j = 0; j < BLOCKS; j++) {
			const struct model_block *b = &blocks[j];

			if (!b->block) {
				continue;
			}
			taken = taken || (start >= b->offset && start < b->offset + b->bytes);
			if (b->offset >= start && b->offset < end) {
				end = b->offset;
			}
		}
		if (!taken && end - start >= bytes &&
		    (end - start < best_gap || (end - start == best_gap && start < best))) {
			best = start;
			best_gap = end - start;
		}
	}
	return best;
}

static struct model_region *free_region(void)
{
	for (unsigned int i = 0; i < REGIONS; i++) {
		if (!regions[i].bytes) {
			return &regions[i];
		}
	}
	return NULL;
}

static void add_block(struct model_block *m)
{
	uint64_t bytes = (1 + roll(200)) * PAGE, place = best_place(bytes), gpa = roll(600) * PAGE;
	struct model_region *r = free_region();
	enum gr_ram_backing best = TEST_BACKING;
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = m->id, .used_bytes = bytes,
		.backing = roll(2) ? best : GR_RAM_ANONYMOUS,
		.mapped = r && roll(2), .gpa = gr_gpa(gpa),
	};
	struct gr_ram_block *block;
	int want = m->block ? -EEXIST : desc.mapped && overlaps(gpa, bytes) ? -EEXIST : 0;

	ASSERT_EQ(gr_ram_block_add(ram, &desc, &block, NULL), want);
	if (want != 0) {
		return;
	}
	version++;
	m->block = block;
	m->offset = place;
	m->bytes = bytes;
	m->host = block->host;
	ASSERT_EQ(block->offset.v, place);
	if (desc.mapped) {
		*r = (struct model_region){ gpa, bytes, 0, m };
	}
}

static void del_block(struct model_block *m)
{
	ASSERT_EQ(gr_ram_block_del_by_id(ram, m->id, NULL), m->block ? 0 : -ENOENT);
	version += m->block != NULL;
	m->block = NULL;
	for (unsigned int i = 0; i < REGIONS; i++) {
		if (regions[i].block == m) {
			regions[i].bytes = 0;
		}
	}
}

static void add_region(struct model_block *m)
{
	struct model_region *r = free_region(), new;
	int want = 0;

	if (!m->block || !r) {
		return;
	}
	new = (struct model_region){ roll(600) * PAGE, (1 + roll(60)) * PAGE, roll(60) * PAGE, m };
	if (new.offset + new.bytes > m->bytes) {
		want = -EINVAL;
	} else if (overlaps(new.gpa, new.bytes)) {
		want = -EEXIST;
	}
	ASSERT_EQ(gr_ram_region_add(ram,
				    &(struct gr_ram_region){ .gpa = gr_gpa(new.gpa),
							     .bytes = new.bytes,
							     .block = m->block,
							     .block_offset = new.offset },
				    NULL), want);
	if (want == 0) {
		*r = new;
	}
}

static void del_region(void)
{
	struct model_region *r = &regions[roll(REGIONS)];
	uint64_t gpa = roll(4) ? r->gpa : roll(600) * PAGE;
	struct model_region *there = region_at(gpa);

	if (!there || there->gpa != gpa) {
		ASSERT_EQ(gr_ram_region_del(ram, gr_gpa(gpa), NULL), -ENOENT);
		return;
	}
	ASSERT_EQ(gr_ram_region_del(ram, gr_gpa(gpa), NULL), 0);
	there->bytes = 0;
}

static void check_gpa(uint64_t gpa) GR_REQUIRES_SHARED(gr_rcu_section)
{
	const struct model_region *r = region_at(gpa);
	uint64_t offset = 0, bytes = 0;
	struct gr_ram_block *b = gr_ram_block_by_gpa_rcu(ram, gr_gpa(gpa), &offset, &bytes);

	ASSERT_PTR_EQ(b, r ? r->block->block : NULL);
	if (r) {
		ASSERT_EQ(offset, r->offset + (gpa - r->gpa));
		ASSERT_EQ(bytes, r->bytes - (gpa - r->gpa));
	}
}

static void check_block(const struct model_block *m) GR_REQUIRES_SHARED(gr_rcu_section)
{
	uint64_t offset = 0;

	ASSERT_PTR_EQ(gr_ram_block_by_id_rcu(ram, m->id), m->block);
	if (!m->block) {
		return;
	}
	ASSERT_PTR_EQ(gr_ram_block_find_rcu(ram, gr_ram_addr(m->offset)), m->block);
	ASSERT_PTR_EQ(gr_ram_block_find_rcu(ram, gr_ram_addr(m->offset + m->bytes - 1)), m->block);
	ASSERT(gr_ram_block_find_rcu(ram, gr_ram_addr(m->offset + m->bytes)) != m->block);
	ASSERT(gr_ram_block_find_rcu(ram, gr_ram_addr(m->offset - 1)) != m->block);
	ASSERT_PTR_EQ(gr_ram_block_by_host_rcu(ram, (char *)m->host + m->bytes - 1, &offset),
		      m->block);
	ASSERT_EQ(offset, m->bytes - 1);
}

static void check_everything(void)
{
	uint64_t last = UINT64_MAX, walked = 0, there = 0, at = 0, found = 0, mapped = 0;
	struct gr_ram_region r;
	struct gr_ram_block *b;
	GR_RCU_READ_GUARD();

	ASSERT_EQ(gr_ram_version(ram), version);
	for (unsigned int i = 0; i < BLOCKS; i++) {
		check_block(&blocks[i]);
		there += blocks[i].block != NULL;
	}
	gr_ram_for_each_block_rcu(b, ram) {
		ASSERT_LE(b->max_bytes, last);
		last = b->max_bytes;
		walked++;
	}
	ASSERT_EQ(walked, there);
	for (unsigned int i = 0; i < REGIONS; i++) {
		if (regions[i].bytes) {
			check_gpa(regions[i].gpa);
			check_gpa(regions[i].gpa - 1);
			check_gpa(regions[i].gpa + regions[i].bytes - 1);
			check_gpa(regions[i].gpa + regions[i].bytes);
			mapped++;
		}
	}
	check_gpa(roll(700 * PAGE));
	for (; gr_ram_region_next_rcu(ram, gr_gpa(at), &r); at = r.gpa.v + 1) {
		ASSERT(region_at(r.gpa.v) && region_at(r.gpa.v)->gpa == r.gpa.v);
		ASSERT_GE(r.gpa.v, at);
		found++;
	}
	ASSERT_EQ(found, mapped);
}

TEST(random_changes_agree_with_a_plain_array)
{
	unsigned int steps = test_under_tsan() || test_under_asan() ? 1000 : 6000;

	rng = test_seed();
	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	for (unsigned int i = 0; i < BLOCKS; i++) {
		(void)snprintf(blocks[i].id, sizeof(blocks[i].id), "b%u", i * 7 % BLOCKS);
	}
	for (unsigned int i = 0; i < steps; i++) {
		struct model_block *m = &blocks[roll(BLOCKS)];

		switch (roll(6)) {
		case 0:
		case 1:
			add_block(m);
			break;
		case 2:
			del_block(m);
			break;
		case 3:
		case 4:
			add_region(m);
			break;
		default:
			del_region();
		}
		check_everything();
	}
	gr_ram_free(ram);
}

TEST_MAIN()

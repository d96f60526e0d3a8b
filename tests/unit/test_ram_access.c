/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "ram/copy.h"
#include <errno.h>
#include <guestram/ram.h>
#include <stdlib.h>

#define MIB ((uint64_t)1 << 20)

static struct gr_dirty_consumer *consumer;

static struct gr_ram_block *add(struct gr_ram *ram, const char *id, uint64_t bytes,
				unsigned int flags)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = id, .used_bytes = bytes, .flags = flags,
		.backing = TEST_BACKING,
	};
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

static void map(struct gr_ram *ram, uint64_t gpa, uint64_t bytes, struct gr_ram_block *block,
		uint64_t offset)
{
	struct gr_ram_region r = {
		.gpa = gr_gpa(gpa), .bytes = bytes, .block = block, .block_offset = offset,
	};
	struct gr_error err;

	if (gr_ram_region_add(ram, &r, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

/*
 * 0x10000: the last 2 pages of a, 0x12000: the first 2 pages of b, 0x14000: hole,
 * 0x15000: page 0 of a once more, 0x16000: rom. Nothing dirty.
 */
static struct gr_ram *machine(struct gr_ram_block **a, struct gr_ram_block **b)
{
	struct gr_ram *ram;
	struct gr_ram_block *rom;

	if (gr_ram_create(NULL, &ram, NULL) < 0) {
		FAIL("no memory");
	}
	*a = add(ram, "a", MIB, 0);
	*b = add(ram, "b", MIB, 0);
	rom = add(ram, "rom", 4096, GR_RAM_READONLY);
	map(ram, 0x10000, 0x2000, *a, MIB - 0x2000);
	map(ram, 0x12000, 0x2000, *b, 0);
	map(ram, 0x15000, 0x1000, *a, 0);
	map(ram, 0x16000, 0x1000, rom, 0);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "test", GR_DIRTY_START_CLEAN, &consumer,
					NULL), 0);
	return ram;
}

static void end(struct gr_ram *ram)
{
	gr_dirty_consumer_del(consumer);
	gr_ram_free(ram);
}

/* The dirty pages since the last call, as "first+pages first+pages". */
static const char *dirty(void)
{
	static char text[256];
	uint64_t first, pages;
	size_t n = 0;

	text[0] = '\0';
	ASSERT_EQ(gr_dirty_epoch_begin(consumer, NULL, NULL), 0);
	for (uint64_t at = 0; gr_dirty_epoch_next(consumer, at, &first, &pages); at = first + pages) {
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%llu+%llu", n ? " " : "",
					(unsigned long long)first, (unsigned long long)pages);
	}
	ASSERT_EQ(gr_dirty_epoch_commit(consumer), 0);
	return text;
}

TEST(write_crosses_regions_and_blocks_and_marks_what_it_wrote)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	uint8_t bytes[0x1100], back[0x1100];

	for (size_t i = 0; i < sizeof(bytes); i++) {
		bytes[i] = (uint8_t)(i * 7 + 1);
	}
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(0x11f80), bytes, sizeof(bytes), NULL), 0);
	ASSERT_MEM_EQ(a->host + MIB - 0x80, bytes, (size_t)0x80);
	ASSERT_MEM_EQ(b->host, bytes + 0x80, (size_t)0x1080);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x11f80), back, sizeof(back), NULL), 0);
	ASSERT_MEM_EQ(back, bytes, sizeof(bytes));
	ASSERT_STR_EQ(dirty(), "255+3"); /* the last page of a, two of b: offsets are adjacent */
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x10000), back, sizeof(back), NULL), 0);
	ASSERT_STR_EQ(dirty(), "");
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(0x15fff), bytes, 1, NULL), 0);
	ASSERT_STR_EQ(dirty(), "0+1");
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(0x99999), bytes, 0, NULL), 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x99999), back, 0, NULL), 0);
	ASSERT_STR_EQ(dirty(), "");
	end(ram);
}

TEST(access_to_nothing_says_where_and_a_write_then_changes_nothing)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	uint8_t bytes[0x3000], zeroes[0x2000] = { 0 };
	struct gr_error err;

	memset(bytes, 0xee, sizeof(bytes));
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(0x12000), bytes, 0x2001, &err), -EFAULT);
	ASSERT_HAS(err.msg, "0x14000");
	ASSERT_MEM_EQ(b->host, zeroes, sizeof(zeroes));
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(0x15000), bytes, 0x1001, &err), -EROFS);
	ASSERT_HAS(err.msg, "0x16000");
	ASSERT_MEM_EQ(a->host, zeroes, (size_t)0x1000);
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(UINT64_MAX), bytes, 2, &err), -EFAULT);
	ASSERT_STR_EQ(dirty(), "");
	b->host[0x1fff] = 0x55;
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x13ffe), bytes, 4, &err), -EFAULT);
	ASSERT_HAS(err.msg, "0x14000");
	ASSERT_EQ(bytes[1], 0x55);
	ASSERT_EQ(bytes[2], 0xee);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x16000), bytes, 0x1000, &err), 0);
	end(ram);
}

TEST(hostile_regions_are_refused)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	struct gr_error err;
	struct {
		struct gr_ram_region r;
		int code;
		const char *words;
	} bad[] = {
		{ { gr_gpa(0x20000), 0, a, 0, false }, -EINVAL, "empty" },
		{ { gr_gpa(0x20001), 4096, a, 0, false }, -EINVAL, "multiples" },
		{ { gr_gpa(0x20000), 4097, a, 0, false }, -EINVAL, "multiples" },
		{ { gr_gpa(0x20000), 4096, a, 1, false }, -EINVAL, "multiples" },
		{ { gr_gpa(0x20000), MIB + 4096, a, 0, false }, -EINVAL, "beyond" },
		{ { gr_gpa(0x20000), 4096, a, MIB, false }, -EINVAL, "beyond" },
		{ { gr_gpa(0x20000), 8192, a, UINT64_MAX - 4095, false }, -EINVAL, "beyond" },
		{ { gr_gpa(UINT64_MAX - 4095), 4096, a, 0, false }, -EINVAL, "address space" },
		{ { gr_gpa(0xf000), 0x2000, a, 0, false }, -EEXIST, "'a' at 0x10000" },
		{ { gr_gpa(0x13000), 0x1000, a, 0, false }, -EEXIST, "'b' at 0x12000" },
		{ { gr_gpa(0), MIB, a, 0, false }, -EEXIST, "overlap" },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ASSERT_EQ(gr_ram_region_add(ram, &bad[i].r, &err), bad[i].code);
		ASSERT_HAS(err.msg, bad[i].words);
	}
	ASSERT_EQ(gr_ram_region_del(ram, gr_gpa(0x11000), &err), -ENOENT);
	ASSERT_HAS(err.msg, "0x11000");
	ASSERT_EQ(gr_ram_region_del(ram, gr_gpa(0x10000), &err), 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x10000), &err, 1, NULL), -EFAULT);
	/* What fits exactly between neighbours is not an overlap. */
	map(ram, 0x14000, 0x1000, b, 0);
	end(ram);
}

TEST(regions_are_walked_in_address_order)
{
	static const uint64_t want[] = { 0x10000, 0x12000, 0x15000, 0x16000 };
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	struct gr_ram_region r;
	uint64_t at = 0;

	gr_rcu_read_lock();
	for (size_t i = 0; i < 4; i++) {
		ASSERT(gr_ram_region_next_rcu(ram, gr_gpa(at), &r));
		ASSERT_EQ(r.gpa.v, want[i]);
		at = r.gpa.v + 1; /* inside it: the next one is meant */
	}
	ASSERT(!gr_ram_region_next_rcu(ram, gr_gpa(at), &r));
	ASSERT(r.readonly);
	gr_rcu_read_unlock();
	end(ram);
}

TEST(block_and_its_regions_go_together)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	struct gr_ram_region r = { gr_gpa(0x30000), 4096, a, 0, false };
	struct gr_error err;
	char byte;

	gr_rcu_read_lock();
	gr_ram_block_get(a);
	gr_rcu_read_unlock();
	ASSERT_EQ(gr_ram_block_del(a, &err), 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x10000), &byte, 1, NULL), -EFAULT);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x15000), &byte, 1, NULL), -EFAULT);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0x12000), &byte, 1, NULL), 0);
	ASSERT_EQ(gr_ram_region_add(ram, &r, &err), -ENOENT);
	ASSERT_HAS(err.msg, "'a'");
	gr_ram_block_put(a);
	end(ram);
}

TEST(iovecs_are_marked_when_put_back_with_the_bytes_done)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	struct gr_ram_iov iov[4];
	unsigned int n = 9;

	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(0x11000), 0x3000, true, iov, 4, &n, NULL), 0);
	ASSERT_EQ(n, 2u);
	ASSERT_PTR_EQ(iov[0].iov.iov_base, a->host + MIB - 0x1000);
	ASSERT_EQ(iov[0].iov.iov_len, (size_t)0x1000);
	ASSERT_PTR_EQ(iov[1].iov.iov_base, b->host);
	ASSERT_EQ(iov[1].iov.iov_len, (size_t)0x2000);
	ASSERT_STR_EQ(dirty(), ""); /* a copy made now, before the device wrote... */
	memset(iov[0].iov.iov_base, 1, 0x1000);
	memset(iov[1].iov.iov_base, 1, 0x1);
	gr_ram_iov_put(iov, n, 0x1001);
	ASSERT_STR_EQ(dirty(), "255+2"); /* ...is made again */
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(0x16000), 8, false, iov, 4, &n, NULL), 0);
	gr_ram_iov_put(iov, n, 8);
	ASSERT_STR_EQ(dirty(), "");
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(0x16000), 0, true, iov, 4, &n, NULL), 0);
	ASSERT_EQ(n, 0u);
	gr_ram_iov_put(iov, n, 0);
	end(ram);
}

TEST(iovecs_that_cannot_be_taken_take_nothing)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	struct gr_ram_iov iov[1];
	unsigned int n = 9;
	struct gr_error err;

	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(0x11000), 0x2000, true, iov, 1, &n, &err), -ENOSPC);
	ASSERT_HAS(err.msg, "more than 1 pieces");
	/* It looks no further than it has room. */
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(0x11000), UINT64_MAX / 2, true, iov, 1, &n, &err), -ENOSPC);
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(0x16000), 1, true, iov, 1, &n, &err), -EROFS);
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(0x13fff), 2, false, iov, 1, &n, &err), -EFAULT);
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(0), UINT64_MAX, false, iov, 1, &n, &err), -EFAULT);
	ASSERT_EQ(n, 9u);
	end(ram); /* would wait for ever for a reference that was taken */
}

static void count_release(void *host, uint64_t max_bytes, void *opaque)
{
	(void)host;
	(void)max_bytes;
	__atomic_add_fetch((int *)opaque, 1, __ATOMIC_ACQ_REL);
}

TEST(iovec_outlives_the_unplug_of_its_block)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	void *memory = test_pages(MIB);
	int releases = 0;
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "dimm", .used_bytes = MIB, .backing = GR_RAM_CALLER,
		.host = memory, .fd = -1, .release = count_release, .opaque = &releases,
		.mapped = true, .gpa = gr_gpa(16 * MIB),
	};
	struct gr_ram_iov iov[1];
	unsigned int n;

	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(16 * MIB), 4096, true, iov, 1, &n, NULL), 0);
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "dimm", NULL), 0);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(__atomic_load_n(&releases, __ATOMIC_ACQUIRE), 0);
	memset(iov[0].iov.iov_base, 7, 4096); /* the device is slow */
	gr_ram_iov_put(iov, n, 4096);
	ASSERT_EQ(__atomic_load_n(&releases, __ATOMIC_ACQUIRE), 1);
	test_pages_free(memory, MIB);
	end(ram);
}

static void mark_outside(void *arg)
{
	gr_ram_mark(arg, MIB - 1, 2);
}

TEST(mark_covers_every_page_it_touches_and_dies_outside_the_block)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	char text[256] = "";

	gr_rcu_read_lock();
	gr_ram_mark(b, 4095, 2);
	gr_ram_mark(b, 0x5000, 0);
	gr_ram_mark(b, MIB - 1, 1);
	gr_rcu_read_unlock();
	ASSERT_STR_EQ(dirty(), "256+2 511+1");
	ASSERT_NE(test_in_child(mark_outside, b, text, sizeof(text)), 0);
	ASSERT_HAS(text, "'b'");
	end(ram);
}

TEST(copies_are_exact_at_every_alignment)
{
	uint8_t guest[64], out[64], want[64];

	for (size_t at = 0; at < 16; at++) {
		for (size_t n = 0; n <= 40; n++) {
			for (size_t i = 0; i < 64; i++) {
				guest[i] = (uint8_t)(i + 1);
				out[i] = want[i] = 0xaa;
			}
			memcpy(want + 3, guest + at, n);
			gr_copy_from_guest(out + 3, guest + at, n);
			ASSERT_MEM_EQ(out, want, sizeof(want));
			memcpy(want, guest, sizeof(want));
			memset(want + at, 0xaa, n);
			memset(out, 0xaa, sizeof(out));
			gr_copy_to_guest(guest + at, out + 1, n);
			ASSERT_MEM_EQ(guest, want, sizeof(want));
		}
	}
}

/* A listener that writes down what it is told and refuses one name. */
struct scribe {
	struct gr_ram_listener l;
	char text[1024];
	const char *refuse_block;
	uint64_t refuse_gpa;
};

static void note_block(struct scribe *s, char sign, const struct gr_ram_block *block)
{
	size_t n = strlen(s->text);

	(void)snprintf(s->text + n, sizeof(s->text) - n, "%c%s ", sign, block->id);
}

static void note_region(struct scribe *s, char sign, const struct gr_ram_region *region)
{
	size_t n = strlen(s->text);

	(void)snprintf(s->text + n, sizeof(s->text) - n, "%c%s@%llx ", sign, region->block->id,
		       (unsigned long long)region->gpa.v);
}

static int scribe_block_add(void *opaque, struct gr_ram_block *block, struct gr_error *err)
{
	struct scribe *s = opaque;

	if (s->refuse_block && strcmp(s->refuse_block, block->id) == 0) {
		return gr_error_set(err, -EPERM, "no '%s' here", block->id);
	}
	note_block(s, '+', block);
	return 0;
}

static void scribe_block_del(void *opaque, struct gr_ram_block *block)
{
	note_block(opaque, '-', block);
}

static int scribe_region_add(void *opaque, const struct gr_ram_region *region,
			     struct gr_error *err)
{
	struct scribe *s = opaque;

	if (s->refuse_gpa && s->refuse_gpa == region->gpa.v) {
		return gr_error_set(err, -EPERM, "no region here");
	}
	note_region(s, '+', region);
	return 0;
}

static void scribe_region_del(void *opaque, const struct gr_ram_region *region)
{
	note_region(opaque, '-', region);
}

static void scribe_init(struct scribe *s)
{
	memset(s, 0, sizeof(*s));
	s->l.block_add = scribe_block_add;
	s->l.block_del = scribe_block_del;
	s->l.region_add = scribe_region_add;
	s->l.region_del = scribe_region_del;
	s->l.opaque = s;
}

TEST(listener_hears_what_exists_what_comes_and_what_goes)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	struct gr_ram_listener deaf = { .block_add = NULL };
	struct scribe s;

	scribe_init(&s);
	ASSERT_EQ(gr_ram_listener_add(ram, &deaf, NULL), 0);
	ASSERT_EQ(gr_ram_listener_add(ram, &s.l, NULL), 0);
	ASSERT_STR_EQ(s.text, "+a +b +rom +a@10000 +b@12000 +a@15000 +rom@16000 ");
	s.text[0] = '\0';
	add(ram, "c", MIB, 0);
	ASSERT_EQ(gr_ram_region_del(ram, gr_gpa(0x12000), NULL), 0);
	ASSERT_EQ(gr_ram_block_del(a, NULL), 0);
	ASSERT_STR_EQ(s.text, "+c -b@12000 -a@15000 -a@10000 -a ");
	s.text[0] = '\0';
	gr_ram_listener_del(ram, &s.l);
	ASSERT_STR_EQ(s.text, "-rom@16000 -c -rom -b ");
	s.text[0] = '\0';
	add(ram, "d", MIB, 0);
	ASSERT_STR_EQ(s.text, "");
	gr_ram_listener_del(ram, &deaf);
	end(ram);
}

TEST(veto_takes_the_change_back_everywhere)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .backing = TEST_BACKING, .id = "c", .used_bytes = MIB, .mapped = true,
		.gpa = gr_gpa(16 * MIB),
	};
	struct gr_ram_region r = { gr_gpa(32 * MIB), 4096, NULL, 0, false };
	uint64_t version = gr_ram_version(ram);
	struct scribe yes, no, after;
	struct gr_error err;

	scribe_init(&yes);
	scribe_init(&no);
	scribe_init(&after);
	ASSERT_EQ(gr_ram_listener_add(ram, &yes.l, NULL), 0);
	ASSERT_EQ(gr_ram_listener_add(ram, &no.l, NULL), 0);
	ASSERT_EQ(gr_ram_listener_add(ram, &after.l, NULL), 0);
	yes.text[0] = no.text[0] = after.text[0] = '\0';
	no.refuse_block = "c";
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EPERM);
	ASSERT_HAS(err.msg, "no 'c' here");
	ASSERT_STR_EQ(yes.text, "+c +c@1000000 -c@1000000 -c ");
	ASSERT_STR_EQ(no.text, "");
	no.refuse_block = NULL;
	no.refuse_gpa = 16 * MIB;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EPERM);
	ASSERT_STR_EQ(no.text, "+c -c ");
	no.refuse_gpa = 32 * MIB;
	r.block = b;
	ASSERT_EQ(gr_ram_region_add(ram, &r, &err), -EPERM);
	ASSERT_STR_EQ(after.text, "");
	ASSERT_EQ(gr_ram_version(ram), version);
	gr_rcu_read_lock();
	ASSERT_PTR_EQ(gr_ram_block_by_id_rcu(ram, "c"), NULL);
	ASSERT_PTR_EQ(gr_ram_block_by_gpa_rcu(ram, gr_gpa(32 * MIB), NULL, NULL), NULL);
	gr_rcu_read_unlock();
	gr_ram_listener_del(ram, &yes.l);
	gr_ram_listener_del(ram, &no.l);
	gr_ram_listener_del(ram, &after.l);
	end(ram);
}

TEST(replay_that_is_refused_is_taken_back)
{
	struct gr_ram_block *a, *b;
	struct gr_ram *ram = machine(&a, &b);
	struct gr_error err;
	struct scribe s;

	scribe_init(&s);
	s.refuse_gpa = 0x15000;
	ASSERT_EQ(gr_ram_listener_add(ram, &s.l, &err), -EPERM);
	ASSERT_STR_EQ(s.text, "+a +b +rom +a@10000 +b@12000 -b@12000 -a@10000 -rom -b -a ");
	scribe_init(&s);
	s.refuse_block = "b";
	ASSERT_EQ(gr_ram_listener_add(ram, &s.l, &err), -EPERM);
	ASSERT_STR_EQ(s.text, "+a -a ");
	add(ram, "unheard", MIB, 0);
	ASSERT_STR_EQ(s.text, "+a -a ");
	end(ram);
}

TEST_MAIN()

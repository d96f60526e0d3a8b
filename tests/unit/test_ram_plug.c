/* SPDX-License-Identifier: MIT */
/* Pieces of a block that are plugged and unplugged, and who listens. */
#include "ram_change_kit.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/ram_change.h>
#include <unistd.h>

static int hear_populate(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			 struct gr_error *err)
{
	int ret = hear(opaque, true, "+", offset, bytes);

	return ret < 0 ? gr_error_set(err, ret, "'%s': no room to map it", block->id) : 0;
}

static void hear_depopulate(void *opaque, struct gr_ram_block *block, uint64_t offset,
			    uint64_t bytes)
{
	ASSERT_EQ(block->host[offset], 9); /* before it goes */
	(void)hear(opaque, false, "-", offset, bytes);
}

struct plug {
	struct gr_ram *ram;
	struct gr_ram_block *b;
	struct ear ear[2];
	struct gr_ram_populate_listener l[2];
};

/* 8 granules, all there and full of nines; two that listen. */
static void plug_make(struct plug *p)
{
	struct gr_ram_block_desc desc = describe("dimm", 8 * PAGE);

	memset(p, 0, sizeof(*p));
	p->ram = make();
	desc.granule_bytes = PAGE;
	p->b = add_desc(p->ram, &desc);
	memset(p->b->host, 9, 8 * PAGE);
	for (unsigned int i = 0; i < 2; i++) {
		p->l[i] = (struct gr_ram_populate_listener){ .populate = hear_populate,
							     .depopulate = hear_depopulate,
							     .opaque = &p->ear[i] };
		ASSERT_EQ(gr_ram_populate_listener_add(p->b, &p->l[i], NULL), 0);
		ASSERT_STR_EQ(p->ear[i].text, "+0,8 ");
		p->ear[i].text[0] = '\0';
	}
	(void)dirty(NULL);
}

static void plug_end(struct plug *p)
{
	memset(p->b->host, 9, 8 * PAGE);
	for (unsigned int i = 0; i < 2; i++) {
		gr_ram_populate_listener_del(p->b, &p->l[i]);
	}
	end(p->ram);
}

TEST(listeners_hear_of_what_is_plugged_and_unplugged_once)
{
	struct plug p;
	struct ear late = { .text = "" };
	struct gr_ram_populate_listener l = { .populate = hear_populate, .opaque = &late };
	uint64_t first;

	plug_make(&p);
	ASSERT(gr_ram_populated(p.b, 0, 8 * PAGE));
	ASSERT_EQ(gr_ram_depopulate(p.b, 2 * PAGE, 2 * PAGE, NULL), 0);
	ASSERT_EQ(dirty(&first), 2 * PAGE);
	ASSERT_EQ(first, p.b->offset.v + 2 * PAGE);
	ASSERT_EQ(p.b->host[3 * PAGE], 0);
	ASSERT(!gr_ram_populated(p.b, 3 * PAGE, 5 * PAGE));
	ASSERT(gr_ram_populated(p.b, 4 * PAGE, 4 * PAGE));
	ASSERT(!gr_ram_populated(p.b, 0, 9 * PAGE));
	ASSERT_EQ(gr_ram_depopulate(p.b, PAGE, 4 * PAGE, NULL), 0);
	ASSERT_STR_EQ(p.ear[0].text, "-2,2 -1,1 -4,1 ");
	ASSERT_STR_EQ(p.ear[1].text, p.ear[0].text);
	/* Who comes now hears of the rest. */
	ASSERT_EQ(gr_ram_populate_listener_add(p.b, &l, NULL), 0);
	ASSERT_STR_EQ(late.text, "+0,1 +5,3 ");
	gr_ram_populate_listener_del(p.b, &l);
	p.ear[0].text[0] = '\0';
	ASSERT_EQ(gr_ram_populate(p.b, 0, 3 * PAGE, NULL), 0);
	ASSERT_EQ(gr_ram_populate(p.b, 0, 3 * PAGE, NULL), 0);
	ASSERT_STR_EQ(p.ear[0].text, "+1,2 ");
	ASSERT_EQ(gr_ram_populate(p.b, 0, 100, NULL), -EINVAL);
	ASSERT_EQ(gr_ram_depopulate(p.b, PAGE, 8 * PAGE, NULL), -EINVAL);
	plug_end(&p);
}

TEST(a_listener_that_refuses_makes_all_forget_the_piece)
{
	struct plug p;
	struct gr_error err;
	struct ear late = { .text = "", .refuse = 2 };
	struct gr_ram_populate_listener l = { .populate = hear_populate,
					      .depopulate = hear_depopulate,
					      .opaque = &late };

	plug_make(&p);
	ASSERT_EQ(gr_ram_depopulate(p.b, PAGE, PAGE, NULL), 0);
	ASSERT_EQ(gr_ram_depopulate(p.b, 3 * PAGE, PAGE, NULL), 0);
	p.ear[0].text[0] = p.ear[1].text[0] = '\0';
	memset(p.b->host, 9, 8 * PAGE);
	/* The second of two runs, by the second of two. */
	p.ear[1].refuse = 2;
	ASSERT_EQ(gr_ram_populate(p.b, 0, 8 * PAGE, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "no room");
	ASSERT_STR_EQ(p.ear[0].text, "+1,1 +3,1 -3,1 -1,1 ");
	ASSERT_STR_EQ(p.ear[1].text, "+1,1 +3,1 -1,1 ");
	ASSERT(!gr_ram_populated(p.b, PAGE, PAGE));
	ASSERT(!gr_ram_populated(p.b, 3 * PAGE, PAGE));
	/* One that refuses when it comes, at the second of three runs. */
	ASSERT_EQ(gr_ram_populate_listener_add(p.b, &l, &err), -EBADMSG);
	ASSERT_STR_EQ(late.text, "+0,1 +2,1 -0,1 ");
	plug_end(&p);
}

TEST(unplugging_that_is_forbidden_or_fails_leaves_it_plugged)
{
	struct plug p;
	struct gr_error err;

	plug_make(&p);
	ASSERT_EQ(gr_ram_discard_hold(p.ram, GR_RAM_NO_DISCARDS, NULL), 0);
	ASSERT_EQ(gr_ram_depopulate(p.b, 0, PAGE, &err), -EBUSY);
	ASSERT_HAS(err.msg, "pinned");
	gr_ram_discard_release(p.ram, GR_RAM_NO_DISCARDS);
	ASSERT_STR_EQ(p.ear[0].text, "");
	ASSERT_EQ(gr_ram_discard_hold(p.ram, GR_RAM_NO_SIMPLE_DISCARDS, NULL), 0);
	ASSERT_EQ(gr_ram_depopulate(p.b, 0, PAGE, &err), 0);
	gr_ram_discard_release(p.ram, GR_RAM_NO_SIMPLE_DISCARDS);
	p.ear[0].text[0] = p.ear[1].text[0] = '\0';
	/* A file that nobody may write to has no holes made. */
	ASSERT_EQ(fcntl(p.b->fd, F_ADD_SEALS, F_SEAL_WRITE), -1); /* sealed against seals */
	gr_block(p.b)->memory.fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	ASSERT_LT(gr_ram_depopulate(p.b, PAGE, PAGE, &err), 0);
	ASSERT_HAS(err.msg, "discarding");
	ASSERT_STR_EQ(p.ear[0].text, "-1,1 +1,1 ");
	ASSERT(gr_ram_populated(p.b, PAGE, PAGE));
	close(gr_block(p.b)->memory.fd);
	gr_block(p.b)->memory.fd = p.b->fd;
	plug_end(&p);
}

static int hear_bytes(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
		      struct gr_error *err)
{
	uint64_t *heard = opaque;

	(void)block;
	(void)err;
	heard[0] = offset;
	heard[1] += bytes;
	return 0;
}

static void hear_no_bytes(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	uint64_t *heard = opaque;

	(void)block;
	(void)offset;
	heard[1] -= bytes;
}

/* Behind the last whole page of a file's piece or of the caller's memory is somebody else's. */
TEST(a_replay_names_no_byte_behind_memory_that_is_not_ours)
{
	uint64_t small = gr_page_bytes() / 4, bytes = 5 * small;
	struct gr_ram_params params = { .size = sizeof(params), .page_bytes = (uint32_t)small };
	struct gr_ram_block_desc desc = describe("ram", bytes);
	uint64_t heard[2] = { 1, 0 };
	struct gr_ram_populate_listener l = { .populate = hear_bytes,
					      .depopulate = hear_no_bytes,
					      .opaque = heard };
	struct gr_ram_block *b;
	struct gr_ram *ram;

	ASSERT_EQ(gr_ram_create(&params, &ram, NULL), 0);
	desc.backing = GR_RAM_CALLER;
	desc.host = test_pages(2 * PAGE);
	b = add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_populate_listener_add(b, &l, NULL), 0);
	ASSERT_EQ(heard[0], (uint64_t)0);
	ASSERT_EQ(heard[1], bytes);
	gr_ram_populate_listener_del(b, &l);
	ASSERT_EQ(heard[1], (uint64_t)0);
	gr_ram_free(ram);
	test_pages_free(desc.host, 2 * PAGE);
}

/* Like a discard and what is plugged again after it, for whoever has the old memory. */
TEST(new_memory_is_refused_under_pins_and_told_to_listeners)
{
	struct plug p;
	struct gr_error err;
	uint64_t first;

	plug_make(&p);
	ASSERT_EQ(gr_ram_discard_hold(p.ram, GR_RAM_NO_DISCARDS, NULL), 0);
	ASSERT_EQ(gr_ram_remap(p.b, 2 * PAGE, 1, &err), -EBUSY);
	ASSERT_HAS(err.msg, "pinned");
	ASSERT_EQ(p.b->host[2 * PAGE], 9);
	ASSERT_EQ(dirty(NULL), (uint64_t)0);
	gr_ram_discard_release(p.ram, GR_RAM_NO_DISCARDS);
	/* Who only must hear of it does; whole granules, since who maps those can let go of no
	 * less. */
	ASSERT_EQ(gr_ram_discard_hold(p.ram, GR_RAM_NO_SIMPLE_DISCARDS, NULL), 0);
	ASSERT_EQ(gr_ram_remap(p.b, 2 * PAGE, 1, &err), 0);
	gr_ram_discard_release(p.ram, GR_RAM_NO_SIMPLE_DISCARDS);
	ASSERT_STR_EQ(p.ear[0].text, "-2,1 +2,1 ");
	ASSERT_STR_EQ(p.ear[1].text, p.ear[0].text);
	ASSERT_EQ(p.b->host[2 * PAGE], 0);
	ASSERT_EQ(dirty(&first), (uint64_t)gr_page_bytes());
	ASSERT_EQ(first, p.b->offset.v + 2 * PAGE);
	/* Of what is unplugged nobody has anything. */
	memset(p.b->host, 9, 8 * PAGE);
	ASSERT_EQ(gr_ram_depopulate(p.b, 4 * PAGE, PAGE, NULL), 0);
	p.ear[0].text[0] = p.ear[1].text[0] = '\0';
	ASSERT_EQ(gr_ram_remap(p.b, 3 * PAGE, 3 * PAGE, &err), 0);
	ASSERT_STR_EQ(p.ear[0].text, "-3,1 -5,1 +3,1 +5,1 ");
	/* One that refuses does without; the memory is new and the others have it. */
	memset(p.b->host, 9, 8 * PAGE);
	p.ear[0].text[0] = p.ear[1].text[0] = '\0';
	p.ear[0].refuse = 1;
	ASSERT_EQ(gr_ram_remap(p.b, 0, 1, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "no room");
	ASSERT_STR_EQ(p.ear[1].text, "-0,1 +0,1 ");
	ASSERT_EQ(p.b->host[0], 0);
	plug_end(&p);
}

/* What the headers say that a listener may call, called: it would die or hang. */
static unsigned int calls_back;

static struct gr_ram_populate_listener populate_l;

static void call_what_both_may(struct gr_ram_block *block)
{
	uint64_t word = 1;

	gr_rcu_read_lock();
	(void)gr_ram_block_by_id_rcu(block->ram, "ram");
	gr_rcu_read_unlock();
	gr_ram_block_get(block);
	gr_ram_mark(block, 0, 1);
	gr_ram_block_put(block);
	if (gr_ram_read(block->ram, gr_gpa(0), &word, sizeof(word), NULL) == 0) {
		ASSERT_EQ(gr_ram_write(block->ram, gr_gpa(0), &word, sizeof(word), NULL), 0);
	}
	(void)gr_ram_format(block->ram, GR_RAM_VIEW_BLOCKS, NULL, 0);
	gr_rcu_synchronize();
	calls_back++;
}

static int call_in_populate(void *opaque, struct gr_ram_block *block, uint64_t offset,
			    uint64_t bytes, struct gr_error *err)
{
	(void)opaque;
	(void)offset;
	(void)bytes;
	(void)err;
	call_what_both_may(block);
	return 0;
}

static void call_in_depopulate(void *opaque, struct gr_ram_block *block, uint64_t offset,
			       uint64_t bytes)
{
	(void)call_in_populate(opaque, block, offset, bytes, NULL);
}

static int call_in_add(void *opaque, struct gr_ram_block *block, struct gr_error *err)
{
	(void)opaque;
	call_what_both_may(block);
	ASSERT_EQ(gr_ram_populate_listener_add(block, &populate_l, err), 0);
	ASSERT_EQ(gr_ram_discard_hold(block->ram, GR_RAM_NO_SIMPLE_DISCARDS, err), 0);
	ASSERT_EQ(gr_ram_depopulate(block, 0, block->granule_bytes, err), 0);
	ASSERT_EQ(gr_ram_populate(block, 0, block->granule_bytes, err), 0);
	gr_ram_discard_release(block->ram, GR_RAM_NO_SIMPLE_DISCARDS);
	ASSERT_EQ(gr_ram_discard(block, 0, block->granule_bytes, err), 0);
	ASSERT_EQ(gr_ram_remap(block, 0, 1, err), 0);
	(void)dirty(NULL);
	return 0;
}

static void call_in_del(void *opaque, struct gr_ram_block *block)
{
	(void)opaque;
	call_what_both_may(block);
	gr_ram_populate_listener_del(block, &populate_l);
}

static int call_in_resize(void *opaque, struct gr_ram_block *block, uint64_t old_bytes,
			  uint64_t new_bytes, struct gr_error *err)
{
	(void)opaque;
	(void)err;
	call_what_both_may(block);
	ASSERT_NE(old_bytes, new_bytes);
	return 0;
}

TEST(listeners_may_call_what_is_promised_to_them)
{
	struct gr_ram_listener l = { .block_add = call_in_add,
				     .block_del = call_in_del,
				     .block_resize = call_in_resize };
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 2 * PAGE);
	struct gr_ram_block *b;

	populate_l = (struct gr_ram_populate_listener){ .populate = call_in_populate,
							.depopulate = call_in_depopulate };
	ASSERT_EQ(gr_ram_listener_add(ram, &l, NULL), 0);
	desc.max_bytes = 4 * PAGE;
	desc.mapped = true;
	b = add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_block_resize(b, 3 * PAGE, NULL), 0);
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	ASSERT_GE(calls_back, 8u);
	gr_ram_listener_del(ram, &l);
	end(ram);
}

TEST_MAIN()

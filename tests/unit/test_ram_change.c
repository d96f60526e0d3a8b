/* SPDX-License-Identifier: MIT */
/* What blocks go through while they are there: lengths, ids, discards, plugging, new memory. */
#include "harness.h"
#include "ram/ram.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/ram_change.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef GR_PLATFORM_LINUX
#include "huge_pool.h"
#include <sys/mman.h>
#endif

#define MIB ((uint64_t)1 << 20)
#define PAGE ((uint64_t)65536) /* whole pages on every host */

static struct gr_dirty_consumer *consumer;

static struct gr_ram *make(void)
{
	struct gr_ram *ram;

	if (gr_ram_create(NULL, &ram, NULL) < 0) {
		FAIL("no memory");
	}
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "test", GR_DIRTY_START_CLEAN, &consumer,
					NULL), 0);
	return ram;
}

static void end(struct gr_ram *ram)
{
	gr_dirty_consumer_del(consumer);
	gr_ram_free(ram);
}

static struct gr_ram_block_desc describe(const char *id, uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = id, .used_bytes = bytes, .fd = -1,
		.backing = TEST_BACKING,
	};

	return desc;
}

static struct gr_ram_block *add_desc(struct gr_ram *ram, const struct gr_ram_block_desc *desc)
{
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

/* How many bytes are dirty since the last call, and where the first ones are. */
static uint64_t dirty(uint64_t *ret_first)
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

static int hear(struct ear *e, bool may_refuse, const char *what, uint64_t a, uint64_t b)
{
	size_t n = strlen(e->text);

	(void)snprintf(e->text + n, sizeof(e->text) - n, "%s%llu,%llu ", what,
		       (unsigned long long)(a / PAGE), (unsigned long long)(b / PAGE));
	return may_refuse && e->refuse != 0 && --e->refuse == 0 ? -EBADMSG : 0;
}

static int hear_resize(void *opaque, struct gr_ram_block *block, uint64_t old_bytes,
		       uint64_t new_bytes, struct gr_error *err)
{
	int ret = hear(opaque, true, "", old_bytes, new_bytes);

	return ret < 0 ? gr_error_set(err, ret, "'%s': not me", block->id) : 0;
}

TEST(a_resize_is_told_before_and_changes_no_byte)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("rom", 2 * PAGE);
	struct ear ear = { .text = "" };
	struct gr_ram_listener l = { .block_resize = hear_resize, .opaque = &ear };
	struct gr_ram_block *b;
	uint64_t version, first;

	desc.max_bytes = 4 * PAGE;
	b = add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_listener_add(ram, &l, NULL), 0);
	memset(b->host, 5, 4 * PAGE);
	(void)dirty(NULL);
	version = gr_ram_version(ram);
	ASSERT_EQ(gr_ram_block_resize(b, 4 * PAGE, NULL), 0);
	ASSERT_EQ(gr_ram_block_used_bytes(b), 4 * PAGE);
	ASSERT_NE(gr_ram_version(ram), version);
	ASSERT_EQ(dirty(&first), 2 * PAGE);
	ASSERT_EQ(first, b->offset.v + 2 * PAGE);
	version = gr_ram_version(ram);
	ASSERT_EQ(gr_ram_block_resize(b, 4 * PAGE, NULL), 0);
	ASSERT_EQ(gr_ram_version(ram), version);
	ASSERT_EQ(gr_ram_block_resize(b, PAGE, NULL), 0);
	ASSERT_EQ(dirty(NULL), (uint64_t)0);
	ASSERT_EQ(b->host[3 * PAGE], 5);
	ASSERT_STR_EQ(ear.text, "2,4 4,1 ");
	gr_ram_listener_del(ram, &l);
	end(ram);
}

TEST(a_resize_that_cannot_be_changes_nothing)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("rom", 2 * PAGE);
	struct gr_ram_block *b;
	struct gr_error err;

	desc.max_bytes = 4 * PAGE;
	desc.mapped = true;
	b = add_desc(ram, &desc);
	(void)dirty(NULL);
	ASSERT_EQ(gr_ram_block_resize(b, 0, &err), -EINVAL);
	ASSERT_EQ(gr_ram_block_resize(b, 100, &err), -EINVAL);
	ASSERT_EQ(gr_ram_block_resize(b, 5 * PAGE, &err), -EINVAL);
	ASSERT_HAS(err.msg, "'rom'");
	ASSERT_EQ(gr_ram_block_resize(b, PAGE, &err), -EBUSY);
	ASSERT_HAS(err.msg, "region");
	gr_ram_freeze(ram, "a migration runs");
	ASSERT_EQ(gr_ram_block_resize(b, 3 * PAGE, &err), -EBUSY);
	ASSERT_HAS(err.msg, "a migration runs");
	gr_ram_thaw(ram);
	ASSERT_EQ(gr_ram_block_used_bytes(b), 2 * PAGE);
	ASSERT_EQ(dirty(NULL), (uint64_t)0);
	gr_rcu_read_lock();
	gr_ram_block_get(b);
	gr_rcu_read_unlock();
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	ASSERT_EQ(gr_ram_block_resize(b, 3 * PAGE, &err), -ENOENT);
	gr_ram_block_put(b);
	end(ram);
}

TEST(a_listener_that_refuses_a_resize_makes_the_others_go_back)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("rom", 2 * PAGE);
	struct ear first = { .text = "" }, second = { .text = "", .refuse = 1 }, third = { .text = "" };
	struct gr_ram_listener l[] = { { .block_resize = hear_resize, .opaque = &first },
				       { .opaque = NULL },
				       { .block_resize = hear_resize, .opaque = &second },
				       { .block_resize = hear_resize, .opaque = &third } };
	struct gr_ram_block *b;
	struct gr_error err;

	desc.max_bytes = 4 * PAGE;
	b = add_desc(ram, &desc);
	for (size_t i = 0; i < GR_ARRAY_SIZE(l); i++) {
		ASSERT_EQ(gr_ram_listener_add(ram, &l[i], NULL), 0);
	}
	ASSERT_EQ(gr_ram_block_resize(b, 3 * PAGE, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "not me");
	ASSERT_STR_EQ(first.text, "2,3 3,2 ");
	ASSERT_STR_EQ(second.text, "2,3 ");
	ASSERT_STR_EQ(third.text, "");
	ASSERT_EQ(gr_ram_block_used_bytes(b), 2 * PAGE);
	for (size_t i = 0; i < GR_ARRAY_SIZE(l); i++) {
		gr_ram_listener_del(ram, &l[i]);
	}
	end(ram);
}

TEST(ids_come_and_go_and_are_never_there_twice)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(NULL, PAGE), named = describe("ram", PAGE);
	char long_id[GR_RAM_ID_BYTES_MAX + 2];
	struct gr_ram_block *a, *b;
	struct gr_error err;
	const char *kept;

	memset(long_id, 'a', sizeof(long_id) - 1);
	long_id[sizeof(long_id) - 1] = '\0';
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "id");
	desc.flags = GR_RAM_NO_MIGRATE;
	a = add_desc(ram, &desc);
	desc.id = "";
	b = add_desc(ram, &desc); /* none twice is fine */
	add_desc(ram, &named);
	ASSERT_STR_EQ(a->id, "");
	gr_rcu_read_lock();
	ASSERT_PTR_EQ(gr_ram_block_by_id_rcu(ram, ""), NULL);
	gr_rcu_read_unlock();
	ASSERT_EQ(gr_ram_block_set_id(a, "", &err), -EINVAL);
	ASSERT_EQ(gr_ram_block_set_id(a, long_id, &err), -EINVAL);
	ASSERT_EQ(gr_ram_block_set_id(a, "ram", &err), -EEXIST);
	ASSERT_EQ(gr_ram_block_set_migratable(a, true, &err), -EINVAL);
	ASSERT_HAS(err.msg, "no id");
	ASSERT_EQ(gr_ram_block_set_id(a, "zzz", &err), 0);
	ASSERT_EQ(gr_ram_block_set_id(a, "yyy", &err), -EEXIST);
	ASSERT_EQ(gr_ram_block_set_id(b, "zzz", &err), -EEXIST);
	ASSERT_EQ(gr_ram_block_set_id(b, "aaa", &err), 0);
	gr_rcu_read_lock();
	ASSERT_PTR_EQ(gr_ram_block_by_id_rcu(ram, "zzz"), a);
	ASSERT_PTR_EQ(gr_ram_block_by_id_rcu(ram, "aaa"), b);
	ASSERT_STR_EQ(gr_ram_block_by_id_rcu(ram, "ram")->id, "ram");
	gr_rcu_read_unlock();
	kept = a->id;
	ASSERT_EQ(gr_ram_block_set_migratable(a, true, &err), 0);
	ASSERT_EQ(gr_ram_block_flags(a) & GR_RAM_NO_MIGRATE, 0u);
	ASSERT_EQ(gr_ram_block_unset_id(a, &err), -EINVAL);
	ASSERT_EQ(gr_ram_block_set_migratable(a, false, &err), 0);
	gr_ram_freeze(ram, "busy");
	ASSERT_EQ(gr_ram_block_unset_id(a, &err), -EBUSY);
	ASSERT_EQ(gr_ram_block_set_migratable(a, true, &err), -EBUSY);
	gr_ram_thaw(ram);
	ASSERT_EQ(gr_ram_block_unset_id(a, &err), 0);
	ASSERT_EQ(gr_ram_block_unset_id(a, &err), -ENOENT);
	ASSERT_STR_EQ(kept, "zzz"); /* who read it may go on reading it */
	ASSERT_EQ(gr_ram_block_set_id(b, "other", &err), -EEXIST);
	named.id = "zzz";
	add_desc(ram, &named);
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "aaa", NULL), 0);
	end(ram);
}

/* What a migration that runs was told of its pages before, it has thrown away. */
TEST(a_block_that_joins_migrations_is_dirty)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 2 * PAGE);
	struct gr_ram_block *b;
	uint64_t first;

	desc.max_bytes = 4 * PAGE;
	desc.flags = GR_RAM_NO_MIGRATE;
	b = add_desc(ram, &desc);
	(void)dirty(NULL);
	ASSERT_EQ(gr_ram_block_set_migratable(b, true, NULL), 0);
	ASSERT_EQ(dirty(&first), 2 * PAGE);
	ASSERT_EQ(first, b->offset.v);
	ASSERT_EQ(gr_ram_block_set_migratable(b, true, NULL), 0);
	ASSERT_EQ(gr_ram_block_set_migratable(b, false, NULL), 0);
	ASSERT_EQ(dirty(NULL), (uint64_t)0);
	end(ram);
}

static void *rename_often(void *arg)
{
	struct gr_ram_block *b = arg;

	for (int i = 0; i < 2000; i++) {
		ASSERT_EQ(gr_ram_block_set_id(b, i % 2 ? "odd" : "an even longer id", NULL), 0);
		ASSERT_EQ(gr_ram_block_unset_id(b, NULL), 0);
	}
	return NULL;
}

TEST(readers_of_an_id_never_see_a_half_of_it)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(NULL, PAGE);
	struct gr_ram_block *b, *found;
	pthread_t thread;
	const char *id;

	desc.flags = GR_RAM_NO_MIGRATE;
	b = add_desc(ram, &desc);
	ASSERT_EQ(pthread_create(&thread, NULL, rename_often, b), 0);
	for (int i = 0; i < 20000; i++) {
		gr_rcu_read_lock();
		found = gr_ram_block_by_id_rcu(ram, "odd");
		ASSERT(!found || found == b);
		gr_rcu_read_unlock();
		id = __atomic_load_n(&b->id, __ATOMIC_ACQUIRE);
		ASSERT(!*id || strcmp(id, "odd") == 0 || strcmp(id, "an even longer id") == 0);
	}
	pthread_join(thread, NULL);
	end(ram);
}

TEST(holds_on_discards_exclude_each_other_and_say_why)
{
	/* Which may be taken while which is held. */
	static const bool together[GR_RAM_DISCARD_HOLDS][GR_RAM_DISCARD_HOLDS] = {
		{ true, true, false, false },
		{ true, true, false, true },
		{ false, false, true, true },
		{ false, true, true, true },
	};
	struct gr_ram *ram = make();
	struct gr_error err;

	for (unsigned int i = 0; i < GR_RAM_DISCARD_HOLDS; i++) {
		ASSERT_EQ(gr_ram_discard_hold(ram, (enum gr_ram_discard_hold)i, &err), 0);
		ASSERT(gr_ram_discard_held(ram, (enum gr_ram_discard_hold)i));
		for (unsigned int j = 0; j < GR_RAM_DISCARD_HOLDS; j++) {
			int ret = gr_ram_discard_hold(ram, (enum gr_ram_discard_hold)j, &err);

			ASSERT_EQ(ret, together[i][j] ? 0 : -EBUSY);
			if (ret == 0) {
				gr_ram_discard_release(ram, (enum gr_ram_discard_hold)j);
			} else {
				ASSERT_HAS(err.msg, "while");
			}
		}
		gr_ram_discard_release(ram, (enum gr_ram_discard_hold)i);
		ASSERT(!gr_ram_discard_held(ram, (enum gr_ram_discard_hold)i));
	}
	ASSERT_EQ(gr_ram_discard_hold(ram, GR_RAM_DISCARD_HOLDS, &err), -EINVAL);
	end(ram);
}

#ifdef GR_PLATFORM_LINUX
static void discard_one(const struct gr_ram_block_desc *desc)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *b = add_desc(ram, desc);
	struct gr_error err;
	uint64_t first;

	memset(b->host, 9, 4 * PAGE);
	(void)dirty(NULL);
	ASSERT_EQ(gr_ram_discard(b, PAGE, 2 * PAGE, &err), 0);
	ASSERT_EQ(dirty(&first), 2 * PAGE);
	ASSERT_EQ(first, b->offset.v + PAGE);
	for (uint64_t at = 0; at < 4 * PAGE; at += 512) {
		ASSERT_EQ(b->host[at], at / PAGE == 1 || at / PAGE == 2 ? 0 : 9);
	}
	ASSERT_EQ(gr_ram_discard(b, 100, PAGE, &err), -EINVAL);
	ASSERT_EQ(gr_ram_discard(b, PAGE, 4 * PAGE, &err), -EINVAL);
	ASSERT_EQ(gr_ram_discard(b, UINT64_MAX - PAGE + 1, PAGE, &err), -EINVAL);
	ASSERT_EQ(gr_ram_discard(b, 4 * PAGE, 0, &err), 0);
	for (unsigned int i = 0; i < 2; i++) {
		ASSERT_EQ(gr_ram_discard_hold(ram, (enum gr_ram_discard_hold)i, &err), 0);
		ASSERT_EQ(gr_ram_discard(b, 0, PAGE, &err), -EBUSY);
		gr_ram_discard_release(ram, (enum gr_ram_discard_hold)i);
	}
	ASSERT_EQ(b->host[0], 9);
	ASSERT_EQ(dirty(NULL), (uint64_t)0);
	end(ram);
}

TEST(discarded_memory_reads_as_zeroes_and_is_dirty)
{
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	int fd = memfd_create("test", MFD_CLOEXEC);

	discard_one(&desc);
	desc.backing = GR_RAM_ANONYMOUS;
	discard_one(&desc);
	desc.flags = GR_RAM_SHARED;
	discard_one(&desc);
	desc = describe("ram", 4 * PAGE);
	ASSERT_EQ(ftruncate(fd, 5 * (off_t)PAGE), 0);
	desc.backing = GR_RAM_FD;
	desc.fd = fd;
	desc.fd_offset = PAGE;
	discard_one(&desc);
	ASSERT_EQ(lseek(fd, 0, SEEK_DATA), (off_t)PAGE); /* nothing but its own piece was touched */
	desc = describe("ram", 4 * PAGE);
	desc.backing = GR_RAM_CALLER;
	desc.host = test_pages(4 * PAGE);
	desc.flags = GR_RAM_PRIVATE;
	discard_one(&desc);
	test_pages_free(desc.host, 4 * PAGE);
}

TEST(memory_that_may_not_be_thrown_away_stays)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	struct gr_ram_block *b;
	struct gr_error err;

	desc.backing = GR_RAM_CALLER;
	desc.host = test_pages(4 * PAGE);
	b = add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_discard(b, 0, PAGE, &err), -ENOTSUP);
	ASSERT_HAS(err.msg, "GR_RAM_PRIVATE");
	ASSERT_EQ(gr_ram_remap(b, 0, PAGE, &err), -ENOTSUP);
	end(ram);
	test_pages_free(desc.host, 4 * PAGE);
}

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
					      .depopulate = hear_depopulate, .opaque = &late };

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
	struct gr_ram_populate_listener l = { .populate = hear_bytes, .depopulate = hear_no_bytes,
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

/* What the caller has locked can be thrown away by nobody who does not know of it. */
TEST(locked_memory_that_stays_is_not_supported_rather_than_invalid)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	struct gr_ram_block *b;
	struct gr_error err;

	if (test_under_asan() || test_under_tsan()) {
		SKIP("the sanitizer ignores mlock()");
	}
	desc.backing = GR_RAM_CALLER;
	desc.flags = GR_RAM_PRIVATE;
	desc.host = test_pages(4 * PAGE);
	b = add_desc(ram, &desc);
	memset(b->host, 9, 4 * PAGE);
	if (mlock(b->host + PAGE, gr_page_bytes()) != 0) {
		SKIP("mlock: %s", strerror(errno));
	}
	ASSERT_EQ(gr_ram_discard(b, PAGE, gr_page_bytes(), &err), -ENOTSUP);
	ASSERT_HAS(err.msg, "'ram'");
	ASSERT_EQ(b->host[PAGE], 9);
	end(ram);
	(void)munlock(desc.host, 4 * PAGE);
	test_pages_free(desc.host, 4 * PAGE);
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
	/* Who only must hear of it does; whole granules, since who maps those can let go of no less. */
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

static int call_in_populate(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			    struct gr_error *err)
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
	struct gr_ram_listener l = { .block_add = call_in_add, .block_del = call_in_del,
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

TEST(remapped_memory_is_new_and_dirty)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	struct gr_ram_block *b;
	struct gr_error err;
	uint64_t first;

	for (unsigned int i = 0; i < 2; i++) {
		desc.id = i == 0 ? "memfd" : "anonymous";
		desc.backing = i == 0 ? GR_RAM_MEMFD : GR_RAM_ANONYMOUS;
		b = add_desc(ram, &desc);
		memset(b->host, 9, 4 * PAGE);
		(void)dirty(NULL);
		ASSERT_EQ(gr_ram_remap(b, PAGE + 5, 1, &err), 0);
		ASSERT_EQ(b->host[PAGE], 0);
		ASSERT_EQ(b->host[PAGE - 1], 9);
		ASSERT_EQ(b->host[PAGE + gr_page_bytes()], 9);
		ASSERT_EQ(dirty(&first), (uint64_t)gr_page_bytes());
		ASSERT_EQ(first, b->offset.v + PAGE);
		ASSERT_EQ(gr_ram_remap(b, 4 * PAGE, 1, &err), -EINVAL);
		ASSERT_EQ(gr_ram_remap(b, UINT64_MAX, 2, &err), -EINVAL);
		ASSERT_EQ(gr_ram_remap(b, 4 * PAGE, 0, &err), 0);
	}
	end(ram);
}

TEST(pages_of_the_guest_are_remapped_whole)
{
	uint32_t page = (uint32_t)gr_page_bytes() * 4;
	struct gr_ram_params params = { .size = sizeof(params), .page_bytes = page };
	struct gr_ram_block_desc desc = describe("ram", 3 * page);
	struct gr_ram *ram;
	struct gr_ram_block *b;

	ASSERT_EQ(gr_ram_create(&params, &ram, NULL), 0);
	desc.backing = GR_RAM_MEMFD;
	b = add_desc(ram, &desc);
	memset(b->host, 9, 3 * page);
	ASSERT_EQ(gr_ram_remap(b, 2 * page - 1, 1, NULL), 0);
	for (uint32_t i = 0; i < 3 * page; i++) {
		ASSERT_EQ(b->host[i], i / page == 1 ? 0 : 9);
	}
	gr_ram_free(ram);
}

TEST(what_is_mapped_again_is_the_same_place_of_the_file)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct gr_ram_block *b;
	struct gr_error err;

	ASSERT_EQ(ftruncate(fd, 8 * (off_t)PAGE), 0);
	for (int i = 0; i < 8; i++) {
		char page = (char)('0' + i);

		ASSERT_EQ(pwrite(fd, &page, 1, i * (off_t)PAGE), (ssize_t)1);
	}
	desc.backing = GR_RAM_FD;
	desc.fd = fd;
	desc.fd_offset = 3 * PAGE;
	desc.flags = GR_RAM_NO_DUMP;
	b = add_desc(ram, &desc);
	ASSERT_EQ(b->host[PAGE], '4');
	/* As where no holes can be made. */
	ASSERT_EQ(gr_memory_map_again(&gr_block(b)->memory, PAGE, PAGE), 0);
	ASSERT_EQ(b->host[0], '3');
	ASSERT_EQ(b->host[PAGE], '4');
	ASSERT_EQ(b->host[2 * PAGE], '5');
	/* And when it cannot be mapped either, that is said. */
	gr_block(b)->memory.fd = 123456; /* nothing is open by this number */
	ASSERT_LT(gr_ram_remap(b, PAGE, 1, &err), 0);
	gr_block(b)->memory.fd = b->fd;
	end(ram);
	close(fd);
}

TEST(what_was_written_back_is_in_the_file)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	char path[] = "/tmp/guestram-test.XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);
	struct gr_ram_block *b;
	struct gr_error err;
	uint8_t byte = 0;

	desc.backing = GR_RAM_FILE;
	desc.path = path;
	b = add_desc(ram, &desc);
	b->host[PAGE + 3] = 77;
	ASSERT_EQ(gr_ram_sync(b, PAGE + 3, 1, &err), 0);
	ASSERT_EQ(pread(fd, &byte, 1, (off_t)PAGE + 3), (ssize_t)1);
	ASSERT_EQ(byte, 77);
	ASSERT_EQ(gr_ram_sync(b, PAGE, 4 * PAGE, &err), -EINVAL);
	desc = describe("anonymous", PAGE);
	desc.backing = GR_RAM_ANONYMOUS;
	ASSERT_EQ(gr_ram_sync(add_desc(ram, &desc), 0, PAGE, &err), 0);
	end(ram);
	close(fd);
	(void)unlink(path);
}

TEST(the_memory_table_is_what_another_process_can_map)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	struct gr_ram_table_entry e[3];
	struct gr_ram_block *b;
	struct gr_error err;
	unsigned int n = 0;
	uint8_t *other;

	desc.mapped = true;
	desc.gpa = gr_gpa(MIB);
	b = add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_region_add(ram, &(struct gr_ram_region){ .gpa = gr_gpa(0), .bytes = PAGE,
			.block = b, .block_offset = 2 * PAGE, .readonly = true }, NULL), 0);
	ASSERT_EQ(gr_ram_table_get(ram, e, 1, &n, &err), -ENOSPC);
	ASSERT_EQ(gr_ram_table_get(ram, e, 3, &n, &err), 0);
	ASSERT_EQ(n, 2u);
	ASSERT_EQ(e[0].gpa.v, (uint64_t)0);
	ASSERT_EQ(e[0].fd_offset, 2 * PAGE);
	ASSERT(e[0].readonly);
	ASSERT_EQ(e[1].gpa.v, MIB);
	ASSERT_EQ(e[1].bytes, 4 * PAGE);
	ASSERT_PTR_EQ(e[1].host, b->host);
	/* Usable although the block goes. */
	b->host[2 * PAGE] = 3;
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	gr_rcu_barrier(NULL);
	other = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, e[0].fd, (off_t)e[0].fd_offset);
	ASSERT(other != MAP_FAILED);
	ASSERT_EQ(other[0], 3);
	(void)munmap(other, PAGE);
	gr_ram_table_put(e, n);
	/* One without an fd spoils it. */
	desc.gpa = gr_gpa(0);
	add_desc(ram, &desc);
	desc.id = "anonymous";
	desc.gpa = gr_gpa(MIB);
	desc.backing = GR_RAM_ANONYMOUS;
	add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_table_get(ram, e, 3, &n, &err), -ENOTSUP);
	ASSERT_HAS(err.msg, "'anonymous'");
	end(ram);
}

#ifdef GR_PLATFORM_LINUX
/* A huge page whole, with as many in the pool as the block has: the new one is that which went. */
TEST(huge_pages_are_replaced_whole)
{
	static const enum gr_ram_backing backings[] = { GR_RAM_ANONYMOUS, GR_RAM_MEMFD };

	lock_pool();
	reserve_huge(3);
	for (size_t i = 0; i < 2; i++) {
		struct gr_ram *ram = make();
		struct gr_ram_block_desc desc = describe("ram", 3 * HUGE_BYTES);
		struct gr_ram_block *b;
		uint64_t first;

		desc.backing = backings[i];
		desc.page_bytes = HUGE_BYTES;
		b = add_desc(ram, &desc);
		memset(b->host, 9, 3 * HUGE_BYTES);
		(void)dirty(NULL);
		ASSERT_EQ(gr_ram_remap(b, HUGE_BYTES + 5 * PAGE, 1, NULL), 0);
		ASSERT_EQ(dirty(&first), HUGE_BYTES);
		ASSERT_EQ(first, b->offset.v + HUGE_BYTES);
		ASSERT_EQ(b->host[HUGE_BYTES - 1], 9);
		ASSERT_EQ(b->host[HUGE_BYTES], 0);
		ASSERT_EQ(b->host[2 * HUGE_BYTES - 1], 0);
		ASSERT_EQ(b->host[2 * HUGE_BYTES], 9);
		/* As where it cannot be given back: mapped again, which is huge too. */
		ASSERT_EQ(gr_memory_map_again(&gr_block(b)->memory, HUGE_BYTES, HUGE_BYTES), 0);
		ASSERT_EQ(b->host[HUGE_BYTES - 1], 9);
		ASSERT_EQ(b->host[HUGE_BYTES], 0);
		b->host[2 * HUGE_BYTES - 1] = 7;
		ASSERT_EQ(b->host[2 * HUGE_BYTES], 9);
		end(ram);
	}
}

TEST(a_page_that_the_kernel_gave_up_is_replaced)
{
	static const enum gr_ram_backing backings[] = { GR_RAM_ANONYMOUS, GR_RAM_MEMFD };

	if (!getenv("GR_TEST_HWPOISON")) {
		SKIP("takes a page of memory from the machine each time: set GR_TEST_HWPOISON=1");
	}
	for (size_t i = 0; i < 2; i++) {
		struct gr_ram *ram = make();
		struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
		struct gr_ram_block *b;
		struct gr_error err;
		char byte = 1;
		int fds[2];

		desc.backing = backings[i];
		b = add_desc(ram, &desc);
		memset(b->host, 9, 4 * PAGE);
		ASSERT_EQ(pipe(fds), 0);
		if (madvise(b->host + PAGE, gr_page_bytes(), MADV_HWPOISON) != 0) {
			SKIP("MADV_HWPOISON: %s", strerror(errno));
		}
		ASSERT_EQ(write(fds[1], b->host + PAGE, 1), (ssize_t)-1); /* no SIGBUS this way */
		ASSERT_EQ(gr_ram_remap(b, PAGE, 1, &err), 0);
		ASSERT_EQ(write(fds[1], b->host + PAGE, 1), (ssize_t)1);
		ASSERT_EQ(read(fds[0], &byte, 1), (ssize_t)1);
		ASSERT_EQ(byte, 0);
		b->host[PAGE] = 7;
		ASSERT_EQ(b->host[PAGE - 1], 9);
		end(ram);
	}
}
#endif
#endif

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
/* Blocks that change while they are in use: length, name, part in migrations, holds on discards. */
#include "ram_change_kit.h"
#include <errno.h>
#include <guestram/ram_change.h>
#include <pthread.h>

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
	struct ear first = { .text = "" }, second = { .text = "", .refuse = 1 },
		   third = { .text = "" };
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

TEST_MAIN()

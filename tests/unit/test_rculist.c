/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include <guestram/rculist.h>

struct item {
	char name;
	struct gr_rcu_list_node node;
};

static struct gr_rcu_list list = GR_RCU_LIST_INIT;

/* The names in order, as a writer and as a reader see them. */
static void list_is(const char *names)
{
	struct item *it;
	size_t n = 0;

	gr_rcu_list_for_each(it, &list, struct item, node) {
		ASSERT_EQ(it->name, names[n]);
		n++;
	}
	ASSERT_EQ(names[n], '\0');
	ASSERT(it == NULL);
	n = 0;
	gr_rcu_read_lock();
	gr_rcu_list_for_each_rcu(it, &list, struct item, node) {
		ASSERT_EQ(it->name, names[n]);
		n++;
	}
	gr_rcu_read_unlock();
	ASSERT_EQ(names[n], '\0');
	ASSERT_EQ(gr_rcu_list_empty(&list), n == 0);
}

TEST(insertions_go_where_they_say)
{
	struct item a = { .name = 'a' }, b = { .name = 'b' }, c = { .name = 'c' },
		    d = { .name = 'd' }, e = { .name = 'e' };

	list_is("");
	gr_rcu_list_insert_tail(&list, &c.node);
	list_is("c");
	gr_rcu_list_insert_head(&list, &a.node);
	list_is("ac");
	gr_rcu_list_insert_before(&c.node, &b.node);
	list_is("abc");
	gr_rcu_list_insert_after(&c.node, &d.node);
	list_is("abcd");
	gr_rcu_list_insert_tail(&list, &e.node);
	list_is("abcde");
	gr_rcu_list_init(&list);
	list_is("");
}

TEST(deletions_at_either_end_and_in_the_middle)
{
	struct item it[5];

	for (int i = 0; i < 5; i++) {
		it[i].name = (char)('a' + i);
		gr_rcu_list_node_init(&it[i].node);
		ASSERT(!gr_rcu_list_node_is_listed(&it[i].node));
		gr_rcu_list_insert_tail(&list, &it[i].node);
		ASSERT(gr_rcu_list_node_is_listed(&it[i].node));
	}
	gr_rcu_list_del(&it[2].node);
	ASSERT(!gr_rcu_list_node_is_listed(&it[2].node));
	list_is("abde");
	gr_rcu_list_del(&it[0].node);
	list_is("bde");
	gr_rcu_list_del(&it[4].node);
	list_is("bd");
	gr_rcu_synchronize();
	gr_rcu_list_insert_head(&list, &it[4].node);
	list_is("ebd");
	gr_rcu_list_del(&it[3].node);
	gr_rcu_list_del(&it[1].node);
	gr_rcu_list_del(&it[4].node);
	list_is("");
}

TEST(a_reader_on_a_deleted_node_goes_on_to_what_followed)
{
	struct item a = { .name = 'a' }, b = { .name = 'b' }, c = { .name = 'c' };
	struct gr_rcu_list_node *at;

	gr_rcu_list_insert_head(&list, &c.node);
	gr_rcu_list_insert_head(&list, &b.node);
	gr_rcu_list_insert_head(&list, &a.node);
	gr_rcu_read_lock();
	at = gr_rcu_list_next_rcu(gr_rcu_list_first_rcu(&list));
	ASSERT_PTR_EQ(at, &b.node);
	gr_rcu_list_del(&b.node);
	ASSERT_PTR_EQ(gr_rcu_list_next_rcu(at), &c.node);
	gr_rcu_list_del(&c.node); /* both gone: the way on still leads to c, valid in here */
	ASSERT_PTR_EQ(gr_rcu_list_next_rcu(at), &c.node);
	ASSERT(gr_rcu_list_next_rcu(&c.node) == NULL);
	gr_rcu_read_unlock();
	list_is("a");
	gr_rcu_list_del(&a.node);
}

TEST_MAIN()

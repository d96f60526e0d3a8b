/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include <guestram/rculist.h>

struct item {
	int v;
	struct gr_rcu_list_node node;
};

TEST(empty_list_is_empty)
{
	struct gr_rcu_list list = GR_RCU_LIST_INIT;

	ASSERT(gr_rcu_list_empty(&list));
}

TEST_MAIN()

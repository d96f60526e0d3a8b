/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include <guestram/rcu.h>

static int ran;

static void bump(struct gr_rcu_head *head)
{
	(void)head;
	ran++;
}

TEST(barrier_waits_for_earlier_callbacks)
{
	struct gr_rcu_head h[100];

	for (int i = 0; i < 100; i++) {
		gr_rcu_call(NULL, &h[i], bump);
	}
	gr_rcu_barrier(NULL);
	ASSERT_EQ(ran, 100);
}

TEST_MAIN()

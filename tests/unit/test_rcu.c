/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include <guestram/rcu.h>
#include <pthread.h>

static void lock_twice(void) GR_NO_TSA
{
	gr_rcu_read_lock();
	ASSERT(gr_rcu_read_ongoing());
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	ASSERT(gr_rcu_read_ongoing());
	gr_rcu_read_unlock();
	ASSERT(!gr_rcu_read_ongoing());
}

TEST(sections_nest_and_synchronize_returns_without_readers)
{
	lock_twice();
	for (int i = 0; i < 100; i++) {
		gr_rcu_synchronize();
	}
}

TEST_MAIN()

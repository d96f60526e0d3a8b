/* SPDX-License-Identifier: MIT */
/* A module that uses the library's inline readers; test_rcu_load.c loads and unloads it. */
#include <guestram/rcu.h>
#include <stdlib.h>

int plugin_use(void);
int plugin_use(void)
{
	static int value = 42;
	static int *published;
	int got;

	gr_rcu_assign_pointer(published, &value);
	gr_rcu_read_lock();
	got = *gr_rcu_dereference(published);
	gr_rcu_read_unlock();
	gr_rcu_synchronize();
	return (uintptr_t)&gr_rcu_self % 128 == 0 ? got : -1;
}

/* SPDX-License-Identifier: MIT */
/* What valgrind must find: an object that a section reads after it was freed. */
#include <guestram/rcu.h>
#include <stdlib.h>

int main(void)
{
	int *volatile object = malloc(sizeof(int));
	int seen;

	*object = 42;
	gr_rcu_read_lock();
	free(object); /* without a grace period */
	seen = *object;
	gr_rcu_read_unlock();
	return seen == 43;
}

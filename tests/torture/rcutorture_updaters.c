/* SPDX-License-Identifier: MIT */
#include "rcutorture.h"
#include <stdlib.h>

enum { OLD_ONES = 8, CALLS_OPEN_MAX = 2000, COOKIES = 8, FLOOD_CALLS = 2000 };

static void rest_while_paused(void)
{
	while (LOAD(&torture.pause) && !LOAD(&torture.stop_updaters)) {
		sleep_ms(1);
	}
}

/* ---- things and their age ---------------------------------------------------------------------
 */

static struct thing *make_thing(uint64_t *rnd)
{
	struct thing *t = calloc(1, sizeof(*t));

	t->a = test_rand(rnd);
	t->not_a = ~t->a;
	return t;
}

/* Its grace period is over: nobody may see it. */
static void retire(struct thing *t)
{
	STORE(&t->age, 2);
	t->a = 0;
	t->not_a = 0;
}

static void retire_by_callback(struct gr_rcu_head *head)
{
	struct thing *t = (struct thing *)(void *)((char *)head - offsetof(struct thing, head));

	retire(t);
	free(t);
	ADD(&torture.calls_open, -1u);
}

static struct thing *replace(int i, uint64_t *rnd)
{
	struct thing *old = torture.slot[i];

	gr_rcu_assign_pointer(torture.slot[i], make_thing(rnd));
	if (old) {
		STORE(&old->age, 1);
	}
	return old;
}

/* Keeps a few generations to see higher ages, then frees. */
static void keep_old(struct thing **old, struct thing *t)
{
	free(old[OLD_ONES - 1]);
	for (int i = OLD_ONES - 1; i > 0; i--) {
		old[i] = old[i - 1];
		if (old[i]) {
			ADD(&old[i]->age, 1);
		}
	}
	old[0] = t;
}

/* ---- updaters
 * ------------------------------------------------------------------------------------ */

void lock_callbacks(void *mutex)
{
	pthread_mutex_lock(mutex);
}

void unlock_callbacks(void *mutex)
{
	pthread_mutex_unlock(mutex);
}

static void poll_a_while(struct gr_rcu_domain *d, uint64_t cookie)
{
	for (int i = 0; i < 50 && !gr_rcu_domain_poll_state(d, cookie); i++) {
		sched_yield();
	}
}

static void wait_for_readers(struct gr_rcu_domain *d, enum update_way way)
{
	uint64_t cookie;

	if (way == SYNCHRONIZE) {
		gr_rcu_domain_synchronize(d);
	} else if (way == EXPEDITED) {
		gr_rcu_domain_synchronize_expedited(d);
	} else {
		cookie = way == POLLED ? gr_rcu_domain_start_poll(d) : gr_rcu_domain_get_state(d);
		poll_a_while(d, cookie);
		gr_rcu_domain_cond_synchronize(d, cookie);
	}
}

static void have_it_retired(int slot, struct thing *t, uint64_t dice)
{
	struct gr_rcu_queue *q = is_of_other(slot) ? torture.others_queue
				 : dice % 2	   ? torture.locked
						   : NULL;

	if (ADD(&torture.calls_open, 1) > CALLS_OPEN_MAX) {
		gr_rcu_barrier(q);
	}
	gr_rcu_call(q, &t->head, retire_by_callback);
	spin_ns(dice % 4096);
}

void *updater(void *arg)
{
	int me = (int)(uintptr_t)arg;
	struct gr_rcu_domain *d = is_of_other(me) ? torture.other : NULL;
	struct thing *old[OLD_ONES] = { NULL };
	uint64_t rnd = test_seed() + 1000 + (uint64_t)me;

	while (!LOAD(&torture.stop_updaters)) {
		enum update_way way = (enum update_way)(test_rand(&rnd) % UPDATE_WAYS);
		struct thing *t = replace(me, &rnd);

		ADD(&torture.updates[way], 1);
		if (!t) {
			continue;
		}
		if (way == CALL) {
			have_it_retired(me, t, test_rand(&rnd));
			continue;
		}
		wait_for_readers(d, way);
		retire(t);
		keep_old(old, t);
		rest_while_paused();
	}
	for (int i = 0; i < OLD_ONES; i++) {
		free(old[i]);
	}
	return NULL;
}

/* ---- those who only disturb
 * ------------------------------------------------------------------------ */

static void fake_write(uint64_t *rnd)
{
	uint64_t dice = test_rand(rnd);

	spin_ns(dice % 20000);
	wait_for_readers(dice % 4 == 0 ? torture.other : NULL, (enum update_way)(dice / 4 % CALL));
}

/* Once passed, passed for ever; and whoever is passed, those before it are. */
static void poll_cookies(uint64_t *rnd)
{
	struct gr_rcu_domain *d = test_rand(rnd) % 2 ? torture.other : NULL;
	uint64_t cookie[COOKIES];
	bool newer_passed = false;

	for (int i = 0; i < COOKIES; i++) {
		cookie[i] = test_rand(rnd) % 2 ? gr_rcu_domain_start_poll(d)
					       : gr_rcu_domain_get_state(d);
		spin_ns(test_rand(rnd) % 8192);
	}
	for (int i = COOKIES - 1; i >= 0; i--) {
		bool passed = gr_rcu_domain_poll_state(d, cookie[i]);

		if (newer_passed && !passed) {
			ADD(&torture.cookie_errors, 1);
		}
		newer_passed |= passed;
	}
}

struct junk {
	struct gr_rcu_head head;
	char more[240];
};

static void free_junk(struct gr_rcu_head *head)
{
	free(head); /* it comes first */
}

static void flood(uint64_t *rnd)
{
	uint64_t n = test_rand(rnd) % FLOOD_CALLS;

	for (uint64_t i = 0; i < n; i++) {
		struct junk *j = malloc(sizeof(*j));

		if (i % 2) {
			gr_rcu_call_sized(torture.locked, &j->head, free_junk, sizeof(*j));
		} else {
			gr_rcu_free(j, head);
		}
	}
	if (n % 4 == 0) {
		gr_rcu_barrier(n % 8 == 0 ? torture.locked : NULL);
	}
	sleep_ms(2);
}

static void have_quiet_time(uint64_t *rnd)
{
	gr_rcu_quiet_begin();
	spin_ns(test_rand(rnd) % 200000);
	gr_rcu_quiet_end();
	sleep_ms((long)(test_rand(rnd) % 8));
}

void *disturb(void *arg)
{
	static void (*const how[DISTURBERS])(uint64_t *) = {
		[FAKE_WRITER] = fake_write,
		[POLLER] = poll_cookies,
		[FLOOD] = flood,
		[QUIET_TIMES] = have_quiet_time,
	};
	enum disturber kind = (enum disturber)(uintptr_t)arg;
	uint64_t rnd = test_seed() + 2000 + kind;

	while (!LOAD(&torture.stop_updaters)) {
		how[kind](&rnd);
		ADD(&torture.disturbed[kind], 1);
		rest_while_paused();
	}
	return NULL;
}

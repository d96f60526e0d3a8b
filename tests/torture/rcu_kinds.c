/* SPDX-License-Identifier: MIT */
/*
 * Readers of all kinds against grace periods of all kinds, in two domains, while quiet times
 * begin and end: threads' own readers, quiescent-state threads, explicit readers that go from
 * thread to thread. An object that was replaced is poisoned after a grace period of its domain; a
 * section that sees poison has outlived one.
 */
#include "rcu_kit.h"
#include <guestram/rcu_control.h>
#include <guestram/rcu_domain.h>
#include <guestram/rcu_qs.h>
#include <stdlib.h>

enum { DOMAINS = 2, CELLS = 64, GOOD = 0x600d, POISON = 0xdead, HANDLES = 4 };

static struct world {
	struct gr_rcu_domain *domain;
	uint32_t cell[CELLS]; /* (a) plain memory that is never freed */
	uint32_t *current;
	uint64_t replaced; /* (a) */
	struct gr_rcu_reader handle[HANDLES];
	uint32_t taken[HANDLES]; /* (a) by a thread, for some sections */
} world[DOMAINS];

static bool stop;
static uint64_t sections[4], seen_poison;

static void look(struct world *w, uint64_t *rnd)
{
	const uint32_t *p = gr_rcu_dereference(w->current);
	uint64_t dice = test_rand(rnd) % 512;

	for (uint64_t i = dice < 4 ? 20000 : dice % 16; i > 0; i--) {
		if (LOAD(p) != GOOD) {
			ADD(&seen_poison, 1);
			return;
		}
	}
	if (dice == 5) {
		sched_yield();
	}
	if (LOAD(p) != GOOD) {
		ADD(&seen_poison, 1);
	}
}

static void *ordinary(void *arg)
{
	uint64_t rnd = test_seed() + (uintptr_t)arg, n;

	for (n = 0; !LOAD(&stop); n++) {
		struct world *w = &world[test_rand(&rnd) % DOMAINS];

		gr_rcu_domain_read_lock(w->domain);
		look(w, &rnd);
		gr_rcu_domain_read_unlock(w->domain);
		if (n % 5000 == 0) {
			gr_rcu_park();
		} else if (n % 700 == 0) {
			gr_rcu_make_eager_for_test(&gr_rcu_self);
		}
	}
	ADD(&sections[0], n);
	return NULL;
}

static void *quiescent_state(void *arg) GR_NO_TSA
{
	uint64_t rnd = test_seed() + 7 * (uintptr_t)arg, n;

	gr_rcu_qs_register_thread();
	for (n = 0; !LOAD(&stop); n++) {
		uint64_t dice = test_rand(&rnd) % 64;

		gr_rcu_qs_read_lock();
		look(&world[0], &rnd);
		gr_rcu_qs_read_unlock();
		if (dice < 2) {
			gr_rcu_thread_offline();
			gr_rcu_read_lock();
			look(&world[0], &rnd);
			gr_rcu_read_unlock();
			gr_rcu_thread_online();
		} else if (dice == 2) {
			gr_rcu_synchronize();
		} else if (dice < 20) {
			gr_rcu_read_lock();
			look(&world[0], &rnd);
			gr_rcu_read_unlock();
			gr_rcu_quiescent_state();
		} else {
			gr_rcu_quiescent_state();
		}
	}
	ADD(&sections[1], n);
	return NULL; /* online: its end takes it out */
}

static void *with_handles(void *arg)
{
	uint64_t rnd = test_seed() + 13 * (uintptr_t)arg, n = 0;

	while (!LOAD(&stop)) {
		struct world *w = &world[test_rand(&rnd) % DOMAINS];
		uint64_t i = test_rand(&rnd) % HANDLES;

		if (__atomic_exchange_n(&w->taken[i], 1u, __ATOMIC_ACQUIRE) != 0) {
			sched_yield();
			continue;
		}
		for (uint64_t k = test_rand(&rnd) % 600; k > 0; k--, n++) {
			GR_RCU_READ_GUARD_ON(&w->handle[i]);
			look(w, &rnd);
		}
		if (test_rand(&rnd) % 16 == 0) {
			gr_rcu_park_on(&w->handle[i]);
		}
		__atomic_store_n(&w->taken[i], 0u, __ATOMIC_RELEASE);
	}
	ADD(&sections[2], n);
	return NULL;
}

static void *short_lived(void *arg) GR_NO_TSA
{
	uint64_t rnd = test_seed() + 17 * (uintptr_t)arg;

	for (int i = 0; i < DOMAINS; i++) {
		gr_rcu_domain_read_lock(world[i].domain);
		look(&world[i], &rnd);
		gr_rcu_domain_read_unlock(world[i].domain);
	}
	if ((uintptr_t)arg % 2 != 0) {
		gr_rcu_qs_register_thread();
		look(&world[0], &rnd);
	}
	return NULL;
}

static void *keeper(void *arg)
{
	uintptr_t n = (uintptr_t)arg;

	for (; !LOAD(&stop); n++) {
		pthread_join(spawn(short_lived, (void *)n), NULL);
	}
	ADD(&sections[3], n);
	return NULL;
}

static void wait_somehow(struct gr_rcu_domain *d, uint64_t dice)
{
	uint64_t cookie;

	switch (dice % 4) {
	case 0:
		gr_rcu_domain_synchronize_expedited(d);
		break;
	case 1:
		cookie = gr_rcu_domain_start_poll(d);
		while (!gr_rcu_domain_poll_state(d, cookie)) {
			sched_yield();
		}
		break;
	default:
		gr_rcu_domain_synchronize(d);
		break;
	}
}

static void *updater(void *arg)
{
	struct world *w = arg;
	uint64_t rnd = test_seed() + (uintptr_t)w->domain, n;

	for (n = 1; !LOAD(&stop); n++) {
		uint32_t *old = w->current, *new = &w->cell[n % CELLS];

		STORE(new, (uint32_t)GOOD);
		gr_rcu_assign_pointer(w->current, new);
		wait_somehow(w->domain, test_rand(&rnd));
		STORE(old, (uint32_t)POISON);
		ADD(&w->replaced, 1);
	}
	return NULL;
}

static void *calmer(void *arg)
{
	uint64_t rnd = test_seed();

	(void)arg;
	while (!LOAD(&stop)) {
		gr_rcu_quiet_begin();
		spin_ns(test_rand(&rnd) % 200000);
		gr_rcu_quiet_end();
		spin_ns(test_rand(&rnd) % 50000);
		sched_yield();
	}
	return NULL;
}

static void make_world(struct world *w, struct gr_rcu_domain *d)
{
	w->domain = d;
	w->current = &w->cell[0];
	w->cell[0] = GOOD;
	for (int i = 0; i < HANDLES; i++) {
		gr_rcu_reader_init(&w->handle[i], d, "torture");
	}
}

TEST(readers_of_no_kind_see_an_object_after_its_grace_period)
{
	void *(*const readers[])(void *) = { ordinary, quiescent_state, with_handles, keeper };
	double seconds = test_seconds(2.0);
	struct gr_rcu_domain *d = NULL;
	pthread_t t[2 * 4 + DOMAINS + 1];
	uintptr_t n = 0;

	ASSERT_EQ(gr_rcu_domain_create(NULL, &d, NULL), 0);
	make_world(&world[0], NULL);
	make_world(&world[1], d);
	for (int i = 0; i < 8; i++) {
		t[n] = spawn(readers[i % 4], (void *)(n + 1));
		n++;
	}
	for (int i = 0; i < DOMAINS; i++) {
		t[n++] = spawn(updater, &world[i]);
	}
	t[n++] = spawn(calmer, NULL);
	for (uint64_t end = now_ns() + (uint64_t)(seconds * 1e9); now_ns() < end;) {
		sleep_ms(10);
		if (LOAD(&seen_poison) != 0) {
			FAIL("a section saw an object after its grace period");
		}
	}
	STORE(&stop, true);
	while (n > 0) {
		pthread_join(t[--n], NULL);
	}
	test_diag("sections: %" PRIu64 " of threads, %" PRIu64 " quiescent-state, %" PRIu64
		  " with handles; %" PRIu64 " short lives; replaced %" PRIu64 " and %" PRIu64,
		  sections[0], sections[1], sections[2], sections[3], world[0].replaced,
		  world[1].replaced);
	ASSERT_EQ(seen_poison, 0u);
	for (int i = 0; i < DOMAINS; i++) {
		ASSERT_GT(world[i].replaced, 0u);
		for (int k = 0; k < HANDLES; k++) {
			gr_rcu_reader_destroy(&world[i].handle[k]);
		}
	}
	gr_rcu_domain_free(d);
}

TEST_MAIN()

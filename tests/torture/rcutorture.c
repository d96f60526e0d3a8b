/* SPDX-License-Identifier: MIT */
/*
 * rcutorture: readers and updaters against each other. It passes on the library; tests/mutants
 * shows that it can fail.
 *
 * The age histogram is McKenney's: an object has age 0 while it is published, 1 once it
 * is replaced, and one more after each grace period since. A section may see ages 0 and
 * 1, never 2.
 */
#include "rcu_kit.h"
#include <stdlib.h>

enum { SLOTS = 4, AGES = 11, OLD_ONES = 8, CALLS_OPEN_MAX = 2000 };

struct thing {
	uint32_t age; /* (a) */
	uint64_t a;   /* plain on purpose: ThreadSanitizer checks the grace period too */
	uint64_t not_a;
	struct gr_rcu_head head;
};

static struct thing *slot[SLOTS];
static bool stop_readers, stop_updaters;
static uint64_t ages[AGES], sections, reader_lives, updates[3], torn;
static uint32_t calls_open;

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
	ADD(&calls_open, -1u);
}

static struct thing *replace(int i, uint64_t *rnd)
{
	struct thing *old = slot[i];

	gr_rcu_assign_pointer(slot[i], make_thing(rnd));
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

static void wait_by_polling(uint64_t *rnd)
{
	uint64_t cookie = test_rand(rnd) % 2 ? gr_rcu_start_poll() : gr_rcu_get_state();

	for (int i = 0; i < 50; i++) {
		if (gr_rcu_poll_state(cookie)) {
			return;
		}
		sched_yield();
	}
	gr_rcu_cond_synchronize(cookie);
}

static void *updater(void *arg)
{
	int me = (int)(uintptr_t)arg, kind = me % 3;
	struct thing *old[OLD_ONES] = { NULL };
	uint64_t rnd = test_seed() + 1000 + (uint64_t)me;

	while (!LOAD(&stop_updaters)) {
		struct thing *t = replace(me, &rnd);

		ADD(&updates[kind], 1);
		if (kind == 1 && t) {
			if (ADD(&calls_open, 1) > CALLS_OPEN_MAX) {
				gr_rcu_barrier(NULL);
			}
			gr_rcu_call(NULL, &t->head, retire_by_callback);
			spin_ns(test_rand(&rnd) % 4096);
			continue;
		}
		if (kind == 0) {
			gr_rcu_synchronize();
		} else {
			wait_by_polling(&rnd);
		}
		if (t) {
			retire(t);
		}
		keep_old(old, t);
	}
	for (int i = 0; i < OLD_ONES; i++) {
		free(old[i]);
	}
	return NULL;
}

static void look(const struct thing *t)
{
	if (t) {
		uint32_t age = LOAD(&t->age);

		if (t->a != ~t->not_a) {
			ADD(&torn, 1);
		}
		ADD(&ages[age < AGES ? age : AGES - 1], 1);
	}
}

static void one_section(uint64_t *rnd) GR_NO_TSA
{
	uint64_t dice = test_rand(rnd) % 1024;
	const struct thing *t;

	gr_rcu_read_lock();
	t = gr_rcu_dereference(slot[dice % SLOTS]);
	if (dice < 256) {
		gr_rcu_read_lock(); /* the inner unlock ends nothing */
		gr_rcu_read_unlock();
	}
	if (dice >= 1022) {
		spin_ns(100000);
	} else if (dice > 900) {
		spin_ns(dice * 4);
	} else if (dice == 1) {
		sched_yield();
	}
	look(t);
	gr_rcu_read_unlock();
	if (dice > 1010) {
		gr_rcu_park();
	}
}

static void *reader(void *arg)
{
	uint64_t rnd = test_seed() + (uintptr_t)arg;
	uint64_t n, life = 200 + test_rand(&rnd) % 20000;

	for (n = 0; n < life && !LOAD(&stop_readers); n++) {
		one_section(&rnd);
	}
	ADD(&sections, n);
	ADD(&reader_lives, 1);
	return NULL;
}

/* Gives readers new threads whenever they end: registration races with grace periods. */
static void *reader_keeper(void *arg)
{
	uintptr_t lives = (uintptr_t)arg * 1000003;
	pthread_t t;

	while (!LOAD(&stop_readers)) {
		pthread_create(&t, NULL, reader, (void *)lives++);
		pthread_join(t, NULL);
	}
	return NULL;
}

static void print_figures(double seconds)
{
	struct gr_rcu_stats s;
	char line[200];
	int n = 0;

	for (int i = 0; i < AGES; i++) {
		n += snprintf(line + n, sizeof(line) - (size_t)n, " %" PRIu64, ages[i]);
	}
	gr_rcu_stats_get(NULL, &s);
	test_diag("ages:%s", line);
	test_diag("%.1f s: %" PRIu64 " sections in %" PRIu64 " reader threads; updates: %" PRIu64
		  " synchronize, %" PRIu64 " call, %" PRIu64 " polled",
		  seconds, sections, reader_lives, updates[0], updates[1], updates[2]);
	test_diag("grace periods %" PRIu64 ", shared %" PRIu64 "; process-wide fences %" PRIu64
		  "; requests %" PRIu64 " = reports %" PRIu64 " + claims %" PRIu64
		  "; reader wakes %" PRIu64,
		  s.grace_periods, s.merged, gr_heavy_fence_count(), s.requests, s.reports,
		  s.claims, s.reader_wakes);
}

TEST(readers_never_see_an_object_after_its_grace_period)
{
	enum { READERS = 4 };
	double seconds = test_seconds(1.5);
	pthread_t r[READERS], u[SLOTS];
	struct gr_rcu_stats s;

	for (uintptr_t i = 0; i < SLOTS; i++) {
		pthread_create(&u[i], NULL, updater, (void *)i);
	}
	for (uintptr_t i = 0; i < READERS; i++) {
		pthread_create(&r[i], NULL, reader_keeper, (void *)(i + 1));
	}
	for (uint64_t end = now_ns() + (uint64_t)(seconds * 1e9); now_ns() < end;) {
		nanosleep(&(struct timespec){ 0, 10000000 }, NULL);
		for (int i = 2; i < AGES; i++) {
			if (LOAD(&ages[i]) != 0) {
				print_figures(seconds);
				FAIL("a section saw an object %d grace periods old", i - 1);
			}
		}
	}
	STORE(&stop_updaters, true);
	for (int i = 0; i < SLOTS; i++) {
		pthread_join(u[i], NULL);
	}
	gr_rcu_barrier(NULL);
	STORE(&stop_readers, true);
	for (int i = 0; i < READERS; i++) {
		pthread_join(r[i], NULL);
	}
	print_figures(seconds);
	for (int i = 2; i < AGES; i++) {
		ASSERT_EQ(ages[i], 0u);
	}
	ASSERT_EQ(torn, 0u);
	ASSERT_EQ(calls_open, 0u);
	ASSERT_GT(ages[0], 0u);
	ASSERT_GT(updates[0], 0u);
	ASSERT_GT(updates[1], 0u);
	ASSERT_GT(updates[2], 0u);
	gr_rcu_stats_get(NULL, &s);
	ASSERT_EQ(s.requests, s.reports + s.claims); /* each taken back once */
	for (int i = 0; i < SLOTS; i++) {
		free(slot[i]);
	}
}

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
/*
 * rcutorture: readers and updaters against each other, and three narrow tests that aim at
 * single steps of the grace period (src/rcu/grace_period.c), where chance alone would need
 * hours. All pass on the library; tests/mutants shows that each can fail.
 *
 * The age histogram is McKenney's: an object has age 0 while it is published, 1 once it
 * is replaced, and one more after each grace period since. A section may see ages 0 and
 * 1, never 2.
 */
#include "harness.h"
#include <stdint.h>

/* The reader's window between the load and the store of its state (see below). */
static void at_yield_point(void);
#define GR_RCU_YIELD_POINT() at_yield_point()

#include "base/atomic.h"
#include "base/heavy_fence.h"
#include "rcu/rcu_internal.h"
#include <guestram/event.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

static __thread void (*yield_hook)(void);

static void at_yield_point(void)
{
	if (yield_hook) {
		yield_hook();
	}
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void spin_ns(uint64_t ns)
{
	uint64_t end = now_ns() + ns;

	while (now_ns() < end) {
	}
}

/* ---- ages ---------------------------------------------------------------------------- */

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
	gr_rcu_stats_get(&s);
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
	gr_rcu_stats_get(&s);
	ASSERT_EQ(s.requests, s.reports + s.claims); /* each taken back once */
	for (int i = 0; i < SLOTS; i++) {
		free(slot[i]);
	}
}

/* ---- the store buffer ---------------------------------------------------------------- */

/*
 * A store waits behind the stores before it, and one to a cache line that is just being
 * flushed takes more than 100 ns, while loads go on. That makes visible on x86 what a
 * missing process-wide fence allows: a section runs while its "inside" has not left the CPU.
 */
enum { SLOW_LINES = 12, LONG_LOOK = 10000 };
static __thread unsigned char slow_line[SLOW_LINES][64] __attribute__((aligned(64)));

static void prepare_slow_stores(void)
{
	for (int i = 0; i < SLOW_LINES; i++) {
		*(volatile unsigned char *)slow_line[i] = 1;
	}
}

static void make_stores_slow(void)
{
	for (int i = 0; i < SLOW_LINES; i++) {
#if defined(__x86_64__) || defined(__i386__)
		__builtin_ia32_clflush(slow_line[i]);
#endif
		*(volatile unsigned char *)slow_line[i] = 2;
	}
}

/*
 * Both on one CPU would show nothing. Where there is only one, that is how it is. Others' load
 * takes shots away: ask for more than our share, where we may (of this thread alone).
 */
static void stay_on_cpu(int wanted)
{
	cpu_set_t allowed, one;

	(void)setpriority(PRIO_PROCESS, 0, -20);
	CPU_ZERO(&one);
	if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
		return;
	}
	for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &allowed) && wanted-- == 0) {
			CPU_SET(cpu, &one);
			(void)sched_setaffinity(0, sizeof(one), &one);
			return;
		}
	}
}

/* Plain memory that is never freed: a wrong reader is to report, not to crash. */
struct flagged {
	uint32_t dead; /* (a) */
};
enum { FLAGGED = 64 };
static struct flagged flagged[FLAGGED], *current_flagged = &flagged[0];
static uint64_t seen_dead;

/* Reader and updater meet before each shot, so that each is at the critical place. */
static struct {
	uint32_t ready; /* (a) the reader's round */
	uint32_t go;	/* (a) the updater's */
	bool stop;
} shot;
static __thread uint32_t my_round;

static void wait_for_round(uint32_t *word, uint32_t round)
{
	for (unsigned n = 0; __atomic_load_n(word, __ATOMIC_ACQUIRE) != round; n++) {
		if (n > 2000) {
			sched_yield();
		}
		if (LOAD(&shot.stop)) {
			return;
		}
	}
}

static void aim(void)
{
	yield_hook = NULL;
	my_round++;
	prepare_slow_stores();
	__atomic_store_n(&shot.ready, my_round, __ATOMIC_RELEASE);
	wait_for_round(&shot.go, my_round);
	make_stores_slow();
}

static void litmus_section(void) GR_NO_TSA
{
	struct flagged *f;
	uint32_t dead = 0;

	gr_rcu_read_lock();
	f = gr_rcu_dereference(current_flagged);
	for (int i = 0; i < LONG_LOOK; i++) {
		dead |= LOAD(&f->dead);
	}
	gr_rcu_read_unlock();
	if (dead) {
		STORE(&seen_dead, seen_dead + 1);
	}
}

enum shot_kind { HOT_READER, BETWEEN_LOAD_AND_STORE, BECOMING_HOT };

static void *litmus_reader(void *arg)
{
	enum shot_kind kind = *(enum shot_kind *)arg;

	stay_on_cpu(1);
	for (unsigned i = 0; i < 2 * GR_RCU_COLD_SECTIONS; i++) { /* become HOT */
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
	while (!LOAD(&shot.stop)) {
		if (kind == BETWEEN_LOAD_AND_STORE) {
			yield_hook = aim; /* inside gr_rcu_read_lock() */
		} else if (kind == BECOMING_HOT) {
			gr_rcu_park();
			gr_rcu_self.cold_left = 0; /* time to become HOT again */
			aim();
		} else {
			aim();
		}
		litmus_section();
	}
	return NULL;
}

static void run_litmus(enum shot_kind kind)
{
	double seconds = test_seconds(1.0);
	uint64_t end = now_ns() + (uint64_t)(seconds * 1e9), rnd = test_seed();
	uint32_t round = 0;
	pthread_t t;

	pthread_create(&t, NULL, litmus_reader, &kind);
	stay_on_cpu(0);
	gr_rcu_register_thread(); /* a quicker driver: no signals to block */
	while (now_ns() < end && !LOAD(&seen_dead)) {
		struct flagged *old = current_flagged, *new = &flagged[++round % FLAGGED];
		uint64_t delay = test_rand(&rnd) % 40;

		wait_for_round(&shot.ready, round);
		if (kind == BETWEEN_LOAD_AND_STORE) {
			gr_rcu_synchronize(); /* passes while the reader stands there */
		}
		STORE(&new->dead, 0);
		__atomic_store_n(&shot.go, round, __ATOMIC_RELEASE);
		while (delay-- > 0) {
			gr_cpu_relax();
		}
		gr_rcu_assign_pointer(current_flagged, new);
		gr_rcu_synchronize();
		STORE(&old->dead, 1);
	}
	STORE(&shot.stop, true);
	pthread_join(t, NULL);
	test_diag("%u shots", round);
	ASSERT_EQ(seen_dead, 0u);
}

TEST(a_hot_section_is_seen_although_its_store_is_still_buffered)
{
	run_litmus(HOT_READER);
}

TEST(a_reader_between_load_and_store_of_its_state_is_not_overtaken)
{
	run_litmus(BETWEEN_LOAD_AND_STORE);
}

TEST(a_reader_that_is_just_becoming_hot_is_seen)
{
	run_litmus(BECOMING_HOT);
}

/* ---- requests ------------------------------------------------------------------------ */

/*
 * A reader leaves its section at about the moment in which the driver gives up spinning and
 * sets the request; then it does nothing more, so that a request that both sides missed
 * is never noticed later.
 */
static struct {
	uint32_t round;	 /* (a) the driver's: a section of this round is wanted */
	uint32_t inside; /* (a) the reader's */
	uint32_t done;	 /* (a) the driver's: synchronize returned */
	uint64_t ended;	 /* (a) as done, for the watch */
	bool stop;
} leave;

/* The driver has asked for our report, this moment. As below, a glance at what is private. */
static void wait_until_asked(void)
{
	for (unsigned n = 0; LOAD(&gr_rcu_self.need_qs) == 0; n++) {
		if (n > 2000) {
			sched_yield();
		}
	}
}

/* The driver has found us inside. A glance at its private mark: only to aim better. */
static void wait_until_awaited(void)
{
	if (test_under_tsan()) {
		spin_ns(20000);
		return;
	}
	for (unsigned n = 0; LOAD(&gr_rcu_self.awaited) == 0; n++) {
		if (n > 2000) {
			sched_yield();
		}
	}
}

static void wait_until_done(uint32_t round)
{
	while (LOAD(&leave.done) != round) {
		sched_yield();
	}
}

static void *leaving_reader(void *arg)
{
	uint64_t rnd = test_seed() + (uintptr_t)arg;
	uint32_t mine = 0;

	stay_on_cpu(1);
	for (int i = 0; i < 600; i++) { /* become HOT */
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
	for (;;) {
		while (LOAD(&leave.round) == mine) {
			if (LOAD(&leave.stop)) {
				return NULL;
			}
			sched_yield();
		}
		mine++;
		gr_rcu_read_lock();
		__atomic_store_n(&leave.inside, mine, __ATOMIC_RELEASE);
		if (mine % 4 == 0) {
			wait_until_asked();
			gr_rcu_read_unlock();
			wait_until_done(mine);
			continue;
		}
		prepare_slow_stores();
		wait_until_awaited();
		for (uint64_t n = 200 + test_rand(&rnd) % 800; n > 0; n--) {
			gr_cpu_relax(); /* it spins for some microseconds, then requests */
		}
		make_stores_slow();
		gr_rcu_read_unlock();
		wait_until_done(mine);
	}
}

TEST(a_request_is_not_missed_by_a_reader_that_is_just_leaving)
{
	double seconds = test_seconds(1.0);
	uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
	struct gr_rcu_stats s;
	uint32_t n = 0;
	pthread_t t;

	test_watch_progress(&leave.ended, 4);
	pthread_create(&t, NULL, leaving_reader, NULL);
	stay_on_cpu(0);
	gr_rcu_register_thread();
	do {
		n++;
		STORE(&leave.round, n);
		while (__atomic_load_n(&leave.inside, __ATOMIC_ACQUIRE) != n) {
			sched_yield();
		}
		gr_rcu_synchronize();
		STORE(&leave.done, n);
		STORE(&leave.ended, (uint64_t)n);
		gr_rcu_stats_get(&s);
	} while (now_ns() < end || s.requests == 0); /* a busy machine needs longer */
	STORE(&leave.stop, true);
	pthread_join(t, NULL);
	gr_rcu_stats_get(&s);
	test_diag("%u grace periods; %" PRIu64 " requests, %" PRIu64 " reported, %" PRIu64
		  " claimed, %" PRIu64 " sleeps, %" PRIu64 " wakes",
		  n, s.requests, s.reports, s.claims, s.sleeps, s.reader_wakes);
	ASSERT_EQ(s.requests, s.reports + s.claims);
}

/* ---- the fences, counted ---------------------------------------------------------------- */

/*
 * What the shots above show only when they hit: that the driver runs each process-wide fence.
 * These do not depend on who runs when.
 */
static struct gr_event standing = GR_EVENT_INIT(false), walk_on = GR_EVENT_INIT(false);

static void become_hot(void)
{
	for (unsigned i = 0; i < 2 * GR_RCU_COLD_SECTIONS; i++) {
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
}

static void stand_still(void)
{
	yield_hook = NULL;
	gr_event_set(&standing);
	gr_event_wait(&walk_on);
}

static void *standing_reader(void *arg)
{
	(void)arg;
	become_hot();
	yield_hook = stand_still; /* inside gr_rcu_read_lock() */
	gr_rcu_read_lock();
	gr_rcu_read_unlock();
	return NULL;
}

TEST(each_grace_period_fences_for_a_hot_reader_between_load_and_store_of_its_state)
{
	struct gr_rcu_stats before, after;
	pthread_t t;

	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here: no reader is hot");
	}
	pthread_create(&t, NULL, standing_reader, NULL);
	gr_event_wait(&standing);
	gr_rcu_stats_get(&before);
	for (int i = 0; i < 3; i++) {
		gr_rcu_synchronize();
	}
	gr_rcu_stats_get(&after);
	gr_event_set(&walk_on);
	pthread_join(t, NULL);
	ASSERT_EQ(after.grace_periods - before.grace_periods, 3u);
	ASSERT_EQ(after.entry_fences - before.entry_fences, 3u);
}

static void *asked_reader(void *arg)
{
	(void)arg;
	become_hot();
	gr_rcu_read_lock();
	gr_event_set(&standing);
	wait_until_asked();
	gr_rcu_read_unlock();
	return NULL;
}

TEST(a_hot_reader_that_must_report_is_fenced_with_the_request)
{
	struct gr_rcu_stats s;
	pthread_t t;

	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here: no reader is hot");
	}
	pthread_create(&t, NULL, asked_reader, NULL);
	gr_event_wait(&standing);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	gr_rcu_stats_get(&s);
	ASSERT_EQ(s.grace_periods, 1u);
	ASSERT_EQ(s.requests, 1u);
	ASSERT_EQ(s.flag_fences, 1u);
}

TEST_MAIN()

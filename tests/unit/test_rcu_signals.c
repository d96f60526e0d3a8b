/* SPDX-License-Identifier: MIT */
/*
 * Signals, everywhere: at those who wait (system calls come back early, with EINTR), at those
 * who read, in handlers that are themselves interrupted, on stacks of their own. Handlers are
 * installed without SA_RESTART.
 */
#include "base/heavy_fence.h"
#include "concurrent.h"
#include <guestram/event.h>
#include <guestram/rcu.h>
#include <guestram/rcu_domain.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>

enum { WAITERS = 3, READERS = 2, BOMBED = WAITERS + READERS };

struct cell {
	unsigned good; /* (a) */
};

static struct cell cells[256], *published = &cells[0];
static uint64_t handled, waits, seen_bad, ran;
static bool stop, stop_bombs;
static pthread_t bombed[BOMBED];

static void look(void)
{
	const struct cell *c;

	gr_rcu_read_lock();
	c = gr_rcu_dereference(published);
	for (int i = 0; i < 20; i++) {
		if (!LOAD(&c->good)) {
			ADD(&seen_bad, 1);
		}
	}
	gr_rcu_read_unlock();
}

static void section_in_handler(int sig) GR_NO_TSA
{
	(void)sig;
	gr_rcu_read_lock();
	look();
	gr_rcu_read_unlock();
	ADD(&handled, 1);
}

static void handle(int sig, int flags)
{
	struct sigaction sa = { .sa_handler = section_in_handler, .sa_flags = flags };

	sigemptyset(&sa.sa_mask);
	ASSERT_EQ(sigaction(sig, &sa, NULL), 0);
}

static void *throw_bombs(void *arg)
{
	(void)arg;
	for (unsigned n = 0; !LOAD(&stop_bombs); n++) {
		(void)pthread_kill(bombed[n % BOMBED], n & 1 ? SIGUSR1 : SIGUSR2);
		if (n % BOMBED == 0) {
			(void)nanosleep(&(struct timespec){ 0, 50000 }, NULL);
		}
	}
	return NULL;
}

/* Sections longer than a driver spins: it sleeps, and is woken by signals that mean nothing. */
static void *read_at_length(void *arg) GR_NO_TSA
{
	(void)arg;
	while (!LOAD(&stop)) {
		const struct cell *c;

		gr_rcu_read_lock();
		c = gr_rcu_dereference(published);
		spin_ns(100000);
		if (!LOAD(&c->good)) {
			ADD(&seen_bad, 1);
		}
		gr_rcu_read_unlock();
	}
	return NULL;
}

static void count_run(struct gr_rcu_head *head)
{
	free(head);
	ADD(&ran, 1);
}

static void replace_published(unsigned n)
{
	struct cell *old = published, *new = &cells[n % 256];

	STORE(&new->good, 1u);
	gr_rcu_assign_pointer(published, new);
	gr_rcu_synchronize();
	STORE(&old->good, 0u);
}

static void *wait_under_fire(void *arg)
{
	unsigned kind = (unsigned)(uintptr_t)arg;
	struct gr_event never = GR_EVENT_INIT(false);

	for (unsigned n = 1; !LOAD(&stop); n++) {
		if (kind == 0) {
			replace_published(n);
		} else if (kind == 1) {
			uint64_t before = LOAD(&ran);

			gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), count_run);
			gr_rcu_barrier(NULL);
			ASSERT_GT(LOAD(&ran), before);
		} else {
			uint64_t since = now_ns();

			ASSERT(!gr_event_wait_timeout(&never, 2000000));
			ASSERT_GE(now_ns() - since, 2000000u);
		}
		ADD(&waits, 1);
	}
	return NULL;
}

TEST(whoever_waits_waits_for_what_it_asked_whatever_signals_come)
{
	uint64_t end = now_ns() + (uint64_t)(test_seconds(1.5) * 1e9);
	pthread_t bomber;

	handle(SIGUSR1, 0);
	handle(SIGUSR2, 0);
	cells[0].good = 1;
	for (uintptr_t i = 0; i < BOMBED; i++) {
		bombed[i] = i < WAITERS ? spawn(wait_under_fire, (void *)i)
					: spawn(read_at_length, NULL);
	}
	bomber = spawn(throw_bombs, NULL);
	test_watch_progress(&waits, 20);
	while (now_ns() < end || LOAD(&handled) < 1000 || LOAD(&waits) < 100) {
		sleep_ms(10);
	}
	STORE(&stop_bombs, true);
	pthread_join(bomber, NULL);
	STORE(&stop, true);
	for (int i = 0; i < BOMBED; i++) {
		pthread_join(bombed[i], NULL);
	}
	test_diag("%" PRIu64 " handlers, %" PRIu64 " waits", LOAD(&handled), LOAD(&waits));
	ASSERT_EQ(LOAD(&seen_bad), 0u);
}

/* ---- on other stacks ---------------------------------------------------------------------- */

static void *interrupted_idler(void *arg)
{
	stack_t own = { .ss_sp = malloc(65536), .ss_size = 65536 },
		off = { .ss_flags = SS_DISABLE };

	(void)arg;
	ASSERT_EQ(sigaltstack(&own, NULL), 0);
	while (!LOAD(&stop)) {
		if (arg) {
			look();
		} else {
			usleep(100); /* its first section is in a handler */
		}
	}
	ASSERT_EQ(sigaltstack(&off, NULL), 0);
	free(own.ss_sp);
	return NULL;
}

/* Both signals may interrupt the other's handler: sections in a handler in a handler. */
TEST(handlers_on_their_own_stack_interrupt_each_other_inside_sections)
{
	uint64_t end = now_ns() + (uint64_t)(test_seconds(1.0) * 1e9);
	struct itimerval tick = { { 0, 50 }, { 0, 50 } }, off = { { 0, 0 }, { 0, 0 } };
	pthread_t bomber;
	unsigned n = 0;

	handle(SIGUSR1, SA_ONSTACK);
	handle(SIGUSR2, SA_ONSTACK);
	handle(SIGALRM, SA_ONSTACK);
	cells[0].good = 1;
	for (uintptr_t i = 0; i < BOMBED; i++) {
		bombed[i] = spawn(interrupted_idler, (void *)(i % 2));
	}
	bomber = spawn(throw_bombs, NULL);
	setitimer(ITIMER_REAL, &tick, NULL);
	test_watch_progress(&handled, 20);
	while (now_ns() < end || LOAD(&handled) < 1000) {
		replace_published(++n);
	}
	setitimer(ITIMER_REAL, &off, NULL);
	STORE(&stop_bombs, true);
	pthread_join(bomber, NULL);
	STORE(&stop, true);
	for (int i = 0; i < BOMBED; i++) {
		pthread_join(bombed[i], NULL);
	}
	test_diag("%" PRIu64 " handlers, %u grace periods", LOAD(&handled), n);
	ASSERT_EQ(LOAD(&seen_bad), 0u);
}

/* ---- between a store and its fence ------------------------------------------------------------
 */

TEST(a_handler_before_the_fence_of_the_code_below_nests_and_leaves_its_mark)
{
	static const uint32_t grades[] = { GR_RCU_COLD, GR_RCU_WARM, GR_RCU_QS };
	struct gr_rcu_reader r;

	gr_rcu_reader_init(&r, NULL, "interrupted");
	for (size_t i = 0; i < sizeof(grades) / sizeof(grades[0]); i++) {
		uint32_t entering = (grades[i] + 1) | GR_RCU_ENTERING;

		r.ctr = entering;
		for (unsigned depth = 1; depth < 4; depth++) {
			gr_rcu_read_lock_on(&r);
			ASSERT_EQ(r.ctr, entering + depth);
		}
		for (unsigned depth = 3; depth > 0; depth--) {
			gr_rcu_read_unlock_on(&r);
		}
		ASSERT_EQ(r.ctr, entering);
	}
	r.ctr = GR_RCU_COLD | GR_RCU_ENTERING; /* going offline: outside */
	gr_rcu_read_lock_on(&r);
	ASSERT_EQ(r.ctr, GR_RCU_COLD + 1);
	gr_rcu_read_unlock_on(&r);
	gr_rcu_reader_destroy(&r);
}

TEST_MAIN()

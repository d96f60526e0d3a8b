/* SPDX-License-Identifier: MIT */
#include "base/memory.h"
#include "rcutorture.h"

/* How a kind of reader enters and leaves its sections. */
struct way {
	void (*enter)(struct gr_rcu_reader *r);
	void (*leave)(struct gr_rcu_reader *r);
	int first_slot, slots;
};

static void enter_ordinary(struct gr_rcu_reader *r) GR_NO_TSA
{
	(void)r;
	gr_rcu_read_lock();
}

static void leave_ordinary(struct gr_rcu_reader *r) GR_NO_TSA
{
	(void)r;
	gr_rcu_read_unlock();
}

static void enter_explicit(struct gr_rcu_reader *r)
{
	gr_rcu_read_lock_on(r);
}

static void leave_explicit(struct gr_rcu_reader *r)
{
	gr_rcu_read_unlock_on(r);
}

static void enter_quiescent(struct gr_rcu_reader *r) GR_NO_TSA
{
	(void)r;
	gr_rcu_qs_read_lock();
}

static void leave_quiescent(struct gr_rcu_reader *r) GR_NO_TSA
{
	(void)r;
	gr_rcu_qs_read_unlock();
}

static void enter_domain(struct gr_rcu_reader *r)
{
	(void)r;
	gr_rcu_domain_read_lock(torture.other);
}

static void leave_domain(struct gr_rcu_reader *r)
{
	(void)r;
	gr_rcu_domain_read_unlock(torture.other);
}

static const struct way ways[READER_KINDS] = {
	[ORDINARY] = { enter_ordinary, leave_ordinary, 0, FIRST_OF_OTHER },
	[EXPLICIT] = { enter_explicit, leave_explicit, 0, FIRST_OF_OTHER },
	[QUIESCENT] = { enter_quiescent, leave_quiescent, 0, FIRST_OF_OTHER },
	[IN_DOMAIN] = { enter_domain, leave_domain, FIRST_OF_OTHER, SLOTS - FIRST_OF_OTHER },
	[EXPLICIT_IN_DOMAIN] = { enter_explicit, leave_explicit, FIRST_OF_OTHER,
				 SLOTS - FIRST_OF_OTHER },
};

static void look(const struct thing *t)
{
	if (t) {
		uint32_t age = LOAD(&t->age);

		if (t->a != ~t->not_a) {
			ADD(&torture.torn, 1);
		}
		ADD(&torture.ages[age < AGES ? age : AGES - 1], 1);
	}
}

static void delay(uint64_t dice)
{
	if (dice >= 1022) {
		spin_ns(100000);
	} else if (dice > 900) {
		spin_ns(dice * 4);
	} else if (dice == 1) {
		sched_yield();
	} else if (dice == 2) {
		sleep_ms(1);
	}
}

static void one_section(const struct way *w, struct gr_rcu_reader *r, uint64_t dice)
{
	const struct thing *t;

	w->enter(r);
	t = gr_rcu_dereference(torture.slot[w->first_slot + (int)dice % w->slots]);
	if (dice < 256) {
		w->enter(r); /* the inner end ends nothing */
		w->leave(r);
	}
	delay(dice);
	look(t);
	w->leave(r);
}

/* What a reader does between sections, now and then. */
static void between(enum reader_kind kind, struct gr_rcu_reader *r, uint64_t dice)
{
	if (kind == QUIESCENT) {
		if (dice % 8 == 0) {
			gr_rcu_quiescent_state();
		} else if (dice == 1001) {
			gr_rcu_thread_offline();
			sleep_ms(1);
			gr_rcu_thread_online();
		}
	} else if (dice > 1010 && kind == ORDINARY) {
		gr_rcu_park();
	} else if (dice > 1010 && kind != IN_DOMAIN) {
		gr_rcu_park_on(r);
	}
}

static void take_ticks(bool here);

static void *reader(void *arg)
{
	uint64_t rnd = test_seed() + (uintptr_t)arg, n;
	uint64_t life = 200 + test_rand(&rnd) % 20000;
	enum reader_kind kind = (enum reader_kind)(test_rand(&rnd) % READER_KINDS);
	bool has_own = kind == EXPLICIT || kind == EXPLICIT_IN_DOMAIN;
	struct gr_rcu_reader *own = NULL;

	if (has_own) {
		/* Not on the stack: a child of a fork has no such thread, and reuses its stack. */
		own = gr_aligned_alloc(_Alignof(struct gr_rcu_reader), sizeof(*own));
		gr_rcu_reader_init(own, kind == EXPLICIT ? NULL : torture.other, "torture");
	} else if (kind == QUIESCENT) {
		gr_rcu_qs_register_thread();
	}
	take_ticks(true);
	for (n = 0; n < life && !LOAD(&torture.stop_readers); n++) {
		uint64_t dice = test_rand(&rnd) % 1024;

		one_section(&ways[kind], own, dice);
		between(kind, own, dice);
		if (n % 256 == 0) {
			ADD(&torture.sections[kind], 256);
		}
	}
	if (has_own) {
		gr_rcu_reader_destroy(own);
		gr_aligned_free(own);
	}
	ADD(&torture.reader_lives, 1);
	return NULL; /* a quiescent-state thread leaves by itself, too */
}

void *reader_keeper(void *arg)
{
	uintptr_t lives = (uintptr_t)arg * 1000003;

	while (!LOAD(&torture.stop_readers)) {
		pthread_join(spawn(reader, (void *)lives++), NULL);
	}
	return NULL;
}

/* ---- handlers ------------------------------------------------------------------------------ */

#ifndef _WIN32
#	include <signal.h>
#	include <sys/time.h>

static void section_in_handler(int sig)
{
	static __thread uint64_t rnd;
	uint64_t dice = test_rand(&rnd) % 900;

	(void)sig;
	one_section(&ways[ORDINARY], NULL, dice == 2 ? 3 : dice);
	ADD(&torture.in_handlers, 1);
}

static void set_ticks(long us)
{
	struct itimerval tick = { { 0, us }, { 0, us } };

	setitimer(ITIMER_REAL, &tick, NULL);
}

static void take_ticks(bool here)
{
	sigset_t ticks;

	sigemptyset(&ticks);
	sigaddset(&ticks, SIGALRM);
	pthread_sigmask(here ? SIG_UNBLOCK : SIG_BLOCK, &ticks, NULL);
}

/* Only readers have the signal unblocked: from here on it is blocked in who is started. */
void start_handlers(void)
{
	struct sigaction sa = { .sa_handler = section_in_handler };

	take_ticks(false);
	sigaction(SIGALRM, &sa, NULL);
	set_ticks(500);
}

void stop_handlers(void)
{
	set_ticks(0);
}

#else /* no signals there */

static void take_ticks(bool here)
{
	(void)here;
}

void start_handlers(void)
{
	torture.in_handlers = 1;
}

void stop_handlers(void)
{
}

#endif

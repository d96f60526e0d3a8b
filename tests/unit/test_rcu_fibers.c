/* SPDX-License-Identifier: MIT */
/*
 * Coroutines that go on in another thread after each switch, as a VMM's do. Built as usual and
 * with -O3 and link-time optimisation, where a compiler would keep the address of a
 * thread-local variable over a switch if it could see one.
 */
#include "concurrent.h"
#include <guestram/rcu.h>
#include <stdlib.h>
#include <ucontext.h>

enum { THREADS = 3, FIBERS = 12, CELLS = 256, STACK_BYTES = 128 * 1024 };

struct fiber {
	ucontext_t here;
	ucontext_t *back; /* of the thread that runs it now */
	pthread_t ran_on;
	struct fiber *next;
	char stack[STACK_BYTES];
};

static struct {
	pthread_mutex_t lock;
	struct fiber *first; /* (l) */
	struct fiber **end;  /* (l) */
} ready = { .lock = PTHREAD_MUTEX_INITIALIZER, .end = &ready.first };

static unsigned good[CELLS], *published = &good[0];
static uint64_t sections, moves, seen_bad;
static bool stop;

static void push(struct fiber *f)
{
	pthread_mutex_lock(&ready.lock);
	f->next = NULL;
	*ready.end = f;
	ready.end = &f->next;
	pthread_mutex_unlock(&ready.lock);
}

static struct fiber *pop(void)
{
	struct fiber *f;

	pthread_mutex_lock(&ready.lock);
	f = ready.first;
	if (f) {
		ready.first = f->next;
		if (!ready.first) {
			ready.end = &ready.first;
		}
	}
	pthread_mutex_unlock(&ready.lock);
	return f;
}

/* What rcu.h asks of code that changes threads: sections in functions that do not switch. */
__attribute__((noinline)) static void one_section(void)
{
	const unsigned *p;

	gr_rcu_read_lock();
	p = gr_rcu_dereference(published);
	for (int i = 0; i < 50; i++) {
		if (!LOAD(p)) {
			ADD(&seen_bad, 1);
		}
	}
	gr_rcu_read_unlock();
}

static void fiber_main(unsigned high, unsigned low)
{
	struct fiber *f = (struct fiber *)(((uintptr_t)high << 16 << 16) | low);

	for (;;) {
		one_section();
		ADD(&sections, 1);
		swapcontext(&f->here, f->back); /* returns on whatever thread */
		one_section();
		ADD(&sections, 1);
	}
}

__attribute__((noinline)) static bool in_section_here(void)
{
	return gr_rcu_read_ongoing();
}

static void *run_fibers(void *arg)
{
	ucontext_t here;

	(void)arg;
	while (!LOAD(&stop)) {
		struct fiber *f = pop();

		if (!f) {
			sched_yield();
			continue;
		}
		if (!pthread_equal(f->ran_on, pthread_self())) {
			ADD(&moves, 1);
		}
		f->ran_on = pthread_self();
		f->back = &here;
		swapcontext(&here, &f->here);
		ASSERT(!in_section_here());
		push(f);
	}
	return NULL;
}

TEST(coroutines_that_change_threads_between_sections_are_waited_for)
{
	uint64_t end = now_ns() + (uint64_t)(test_seconds(1.0) * 1e9);
	static struct fiber fibers[FIBERS];
	pthread_t t[THREADS];
	unsigned n = 0;

	if (test_under_tsan()) {
		SKIP("ThreadSanitizer follows threads, not contexts");
	}
	good[0] = 1;
	for (int i = 0; i < FIBERS; i++) {
		uintptr_t self = (uintptr_t)&fibers[i];

		getcontext(&fibers[i].here);
		fibers[i].here.uc_stack.ss_sp = fibers[i].stack;
		fibers[i].here.uc_stack.ss_size = STACK_BYTES;
		makecontext(&fibers[i].here, (void (*)(void))fiber_main, 2,
			    (unsigned)(self >> 16 >> 16), (unsigned)self);
		push(&fibers[i]);
	}
	for (int i = 0; i < THREADS; i++) {
		t[i] = spawn(run_fibers, NULL);
	}
	test_watch_progress(&sections, 20);
	while (now_ns() < end || LOAD(&moves) < 100) {
		unsigned *old = published, *new = &good[++n % CELLS];

		STORE(new, 1u);
		gr_rcu_assign_pointer(published, new);
		gr_rcu_synchronize();
		STORE(old, 0u);
	}
	STORE(&stop, true);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
	}
	test_diag("%" PRIu64 " sections, %" PRIu64 " changes of thread, %u grace periods", sections,
		  moves, n);
	ASSERT_EQ(seen_bad, 0u);
}

TEST_MAIN()

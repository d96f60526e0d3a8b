/* SPDX-License-Identifier: MIT */
/*
 * Interleavings of markers, harvests and growth, replayed one by one: threads stop at the
 * places that GR_HOOK() names (base/hook.h; the bitmap layer is compiled with them for this
 * program) and go on when told.
 */
#include "base/heavy_fence.h"
#include "bitmap/dirty.h"
#include "harness.h"
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK ((uint64_t)GR_BITS_CHUNK_PAGES)
#define GROUP ((uint64_t)GR_BITS_GROUP_PAGES)

void gr_test_hook(const char *place);

/* A thread that runs fn and stops once, at a place. */
struct stopped {
	pthread_t thread;
	const char *place;
	sem_t arrived, go;
	void (*fn)(struct stopped *);
	struct gr_dirty *dirty;
	struct gr_dirty_consumer *consumer;
	uint64_t page, pages;
};

static __thread struct stopped *me;
static uint64_t fences_when_all_taken;

#ifndef _WIN32
static const char *interrupted_at; /* a signal comes when the thread gets there, once */
#endif

void gr_test_hook(const char *place)
{
	if (strcmp(place, "harvest: all taken") == 0) {
		fences_when_all_taken = gr_heavy_fence_count();
	}
#ifndef _WIN32
	if (interrupted_at && strcmp(place, interrupted_at) == 0) {
		interrupted_at = NULL;
		(void)raise(SIGUSR1);
	}
#endif
	if (me && me->place && strcmp(place, me->place) == 0) {
		me->place = NULL;
		sem_post(&me->arrived);
		sem_wait(&me->go);
	}
}

static void *run(void *arg)
{
	me = arg;
	me->fn(me);
	sem_post(&me->arrived); /* should it never have come to the place */
	return NULL;
}

static void run_to(struct stopped *s, const char *place, void (*fn)(struct stopped *))
{
	s->place = place;
	s->fn = fn;
	sem_init(&s->arrived, 0, 0);
	sem_init(&s->go, 0, 0);
	ASSERT_EQ(pthread_create(&s->thread, NULL, run, s), 0);
	sem_wait(&s->arrived);
}

static void finish(struct stopped *s)
{
	sem_post(&s->go);
	ASSERT_EQ(pthread_join(s->thread, NULL), 0);
	ASSERT(s->place == NULL); /* it did stop there */
}

static void do_mark(struct stopped *s)
{
	gr_rcu_read_lock();
	gr_dirty_mark(s->dirty, s->page);
	gr_rcu_read_unlock();
}

static void do_mark_range(struct stopped *s)
{
	gr_rcu_read_lock();
	gr_dirty_mark_range(s->dirty, s->page, s->pages);
	gr_rcu_read_unlock();
}

static void do_begin(struct stopped *s)
{
	ASSERT_EQ(gr_dirty_epoch_begin(s->consumer, NULL, NULL), 0);
}

static void mark(struct gr_dirty *d, uint64_t page)
{
	struct stopped s = { .dirty = d, .page = page };

	do_mark(&s);
}

static struct gr_dirty *make(uint64_t pages, struct gr_dirty_consumer **ret_c)
{
	struct gr_dirty *d;

	if (gr_dirty_create(pages, &d, NULL) < 0 ||
	    gr_dirty_consumer_add(d, "test", GR_DIRTY_START_CLEAN, ret_c, NULL) < 0) {
		FAIL("no memory");
	}
	return d;
}

static bool in_epoch(struct gr_dirty_consumer *c, uint64_t page)
{
	uint64_t first, pages;

	return gr_dirty_epoch_next(c, page, &first, &pages) && first == page;
}

static bool next_epoch_has(struct gr_dirty_consumer *c, uint64_t page)
{
	bool has;

	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	has = in_epoch(c, page);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	return has;
}

static void end(struct gr_dirty *d, struct gr_dirty_consumer *c)
{
	gr_dirty_consumer_del(c);
	gr_dirty_free(d);
}

/* The other marker's page: the same, in the same leaf word, in the same sum word. */
static const uint64_t others[] = { 130, 131, 130 + 640 };

static void finished_mark_beside_stopped_one(const char *place, uint64_t other)
{
	struct gr_dirty_consumer *c;
	struct gr_dirty *d = make(CHUNK, &c);
	struct stopped m1 = { .dirty = d, .page = 130 };
	bool has;

	run_to(&m1, place, do_mark);
	mark(d, other);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	ASSERT(in_epoch(c, other));
	has = in_epoch(c, m1.page); /* the stopped one's own page may have come along */
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	finish(&m1);
	ASSERT(has || next_epoch_has(c, m1.page));
	end(d, c);
}

TEST(mark_that_returned_is_in_the_next_epoch_though_another_stands_after_the_leaf)
{
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		finished_mark_beside_stopped_one("mark: half way", others[i]);
	}
}

TEST(mark_that_returned_is_in_the_next_epoch_though_another_stands_after_the_sum)
{
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		finished_mark_beside_stopped_one("mark: sum set", others[i]);
	}
}

TEST(mark_half_way_during_a_harvest_is_in_this_epoch_or_the_next)
{
	static const char *const places[] = { "mark: map loaded", "mark: half way",
					      "mark: sum set" };

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		struct gr_dirty_consumer *c;
		struct gr_dirty *d = make(CHUNK, &c);
		struct stopped m = { .dirty = d, .page = 5000 };
		bool has;

		run_to(&m, places[i], do_mark);
		has = next_epoch_has(c, 5000);
		finish(&m);
		ASSERT(has || next_epoch_has(c, 5000));
		end(d, c);
	}
}

TEST(mark_in_the_middle_of_a_harvest_is_in_this_epoch_or_the_next)
{
	static const char *const places[] = { "harvest: top taken", "harvest: sum taken",
					      "harvest: leaf taken", "harvest: all taken" };

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		for (size_t j = 0; j < sizeof(others) / sizeof(others[0]); j++) {
			struct gr_dirty_consumer *c;
			struct gr_dirty *d = make(CHUNK, &c);
			struct stopped h = { .consumer = c };
			bool has;

			mark(d, 130); /* leads the harvest down this path */
			run_to(&h, places[i], do_begin);
			mark(d, others[j]);
			finish(&h);
			has = in_epoch(c, others[j]);
			ASSERT(in_epoch(c, 130));
			ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
			/* From the third place on, 130 is in this epoch for its first mark only. */
			ASSERT((has && (others[j] != 130 || i < 2)) ||
			       next_epoch_has(c, others[j]));
			end(d, c);
		}
	}
}

TEST(range_mark_half_way_during_a_harvest_loses_no_page)
{
	struct gr_dirty_consumer *c;
	struct gr_dirty *d = make(CHUNK, &c);
	struct stopped m = { .dirty = d, .page = 64, .pages = 128 };

	run_to(&m, "mark range: before leaf", do_mark_range);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	finish(&m);
	ASSERT_EQ(gr_dirty_epoch_abort(c), 0);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	ASSERT_EQ(gr_dirty_epoch_pages(c), (uint64_t)128);
	end(d, c);
}

TEST(range_marked_as_a_whole_half_way_during_a_harvest_loses_no_page)
{
	struct gr_dirty_consumer *c;
	struct gr_dirty *d = make(CHUNK, &c);
	struct stopped m = { .dirty = d, .page = GROUP, .pages = 3 * GROUP };

	run_to(&m, "mark: half way", do_mark_range);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	finish(&m);
	ASSERT_EQ(gr_dirty_epoch_abort(c), 0);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	ASSERT_EQ(gr_dirty_epoch_pages(c), 3 * GROUP);
	end(d, c);
}

static void *others_memory[64];

TEST(marker_that_loaded_the_map_before_growth_marks_what_the_harvest_after_it_reads)
{
	struct gr_dirty_consumer *c;
	struct gr_dirty *d;
	struct stopped m = { .page = CHUNK / 2 };

	d = make(CHUNK, &c);
	m.dirty = d;
	run_to(&m, "mark: map loaded", do_mark);
	ASSERT_EQ(gr_dirty_grow(d, 3 * CHUNK, NULL), 0);
	/* Were the old map freed already, somebody else would write there now. */
	for (int i = 0; i < 64; i++) {
		size_t bytes = sizeof(struct gr_dirty_map) + sizeof(struct gr_dirty_chunk);

		others_memory[i] = malloc(bytes);
		ASSERT(others_memory[i] != NULL);
		memset(others_memory[i], 0x5a, bytes);
	}
	mark(d, 3 * CHUNK - 1);
	finish(&m);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	ASSERT(in_epoch(c, CHUNK / 2));
	ASSERT(in_epoch(c, 3 * CHUNK - 1));
	for (int i = 0; i < 64; i++) {
		free(others_memory[i]);
	}
	end(d, c);
}

TEST(the_fence_of_a_harvest_comes_after_the_last_clear)
{
	struct gr_dirty_consumer *c;
	struct gr_dirty *d = make(CHUNK, &c);
	uint64_t before = gr_heavy_fence_count();

	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide fence here: the markers have theirs");
	}
	mark(d, 1);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	ASSERT_EQ(fences_when_all_taken, before);
	ASSERT_EQ(gr_heavy_fence_count(), before + 1);
	end(d, c);
}

#ifndef _WIN32
/* ---- handlers that fork ---------------------------------------------------------------- */

static pid_t forked = -1; /* by the handler */

static void fork_in_handler(int sig)
{
	(void)sig;
	forked = fork();
}

static void interrupt_at(const char *place)
{
	struct sigaction sa = { .sa_handler = fork_in_handler };

	ASSERT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
	interrupted_at = place;
}

static void wait_for_child(pid_t pid)
{
	int status;

	ASSERT_GT(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

/* Each process has all of the pages, whatever it was in the middle of. */
static void has_all(struct gr_dirty *d, struct gr_dirty_consumer *c)
{
	ASSERT_EQ(gr_dirty_epoch_pages(c), 3 * GROUP);
	ASSERT_EQ(gr_dirty_epoch_abort(c), 0);
	mark(d, 5 * GROUP);
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	ASSERT_EQ(gr_dirty_epoch_pages(c), 3 * GROUP + 1);
	ASSERT_EQ(gr_dirty_epoch_commit(c), 0);
	end(d, c);
}

TEST(a_handler_may_fork_in_the_middle_of_its_threads_harvest)
{
	struct gr_dirty_consumer *c;
	struct gr_dirty *d = make(CHUNK, &c);

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	do_mark_range(&(struct stopped){ .dirty = d, .page = GROUP, .pages = 3 * GROUP });
	interrupt_at("harvest: top taken");
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	has_all(d, c);
	if (forked == 0) {
		_exit(0);
	}
	wait_for_child(forked);
}

TEST(a_handler_that_interrupts_a_fork_may_fork_the_dirty_memory)
{
	struct gr_dirty_consumer *c;
	struct gr_dirty *d = make(CHUNK, &c);
	pid_t pid;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	do_mark_range(&(struct stopped){ .dirty = d, .page = GROUP, .pages = 3 * GROUP });
	interrupt_at("dirty fork: locked");
	pid = fork();
	ASSERT_EQ(gr_dirty_epoch_begin(c, NULL, NULL), 0);
	has_all(d, c);
	if (pid == 0 || forked == 0) {
		_exit(0);
	}
	wait_for_child(pid);
	wait_for_child(forked);
}
#endif

TEST_MAIN()

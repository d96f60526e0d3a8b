/* SPDX-License-Identifier: MIT */
/*
 * Readers walk while writers insert and delete everywhere in the list. What must hold: a walk
 * ends, finds every node that is never deleted, in order, and no node whose grace period has
 * passed.
 */
#include "harness.h"
#include <guestram/rculist.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define ADD(p, v)   __atomic_fetch_add(p, v, __ATOMIC_RELAXED)

enum { FIXED = 16, GUESTS_MAX = 48, ALIVE = 0x600d };

struct item {
	unsigned alive; /* plain: written before insertion and after the grace period */
	int fixed;	/* its place among the fixed ones, or -1 */
	struct gr_rcu_list_node node;
	struct gr_rcu_head head;
};

static struct gr_rcu_list list = GR_RCU_LIST_INIT;
static pthread_mutex_t writers = PTHREAD_MUTEX_INITIALIZER;
static unsigned guests;
static bool stop;
static uint64_t walks, steps, inserted, deleted, freed;

static struct item *make_item(int fixed)
{
	struct item *it = malloc(sizeof(*it));

	it->alive = ALIVE;
	it->fixed = fixed;
	gr_rcu_list_node_init(&it->node);
	return it;
}

static void free_item(struct gr_rcu_head *head)
{
	struct item *it = (struct item *)(void *)((char *)head - offsetof(struct item, head));

	it->alive = 0;
	free(it);
	ADD(&freed, 1);
}

static void walk(void)
{
	struct item *it;
	int next_fixed = 0;
	uint64_t n = 0;

	gr_rcu_read_lock();
	gr_rcu_list_for_each_rcu(it, &list, struct item, node) {
		ASSERT_EQ(it->alive, (unsigned)ALIVE);
		if (it->fixed >= 0) {
			ASSERT_EQ(it->fixed, next_fixed);
			next_fixed++;
		}
		n++;
	}
	gr_rcu_read_unlock();
	ASSERT_EQ(next_fixed, FIXED);
	ADD(&steps, n);
	ADD(&walks, 1);
}

static void *walker(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		walk();
	}
	return NULL;
}

static struct item *pick(uint64_t *rnd, bool guest)
{
	uint64_t skip = test_rand(rnd) % (FIXED + GUESTS_MAX);
	struct item *it, *last = NULL;

	gr_rcu_list_for_each(it, &list, struct item, node) {
		if (!guest || it->fixed < 0) {
			last = it;
			if (skip-- == 0) {
				break;
			}
		}
	}
	return last;
}

static void insert_somewhere(uint64_t *rnd)
{
	struct item *it = make_item(-1), *at = pick(rnd, false);

	switch (test_rand(rnd) % 4) {
	case 0:
		gr_rcu_list_insert_head(&list, &it->node);
		break;
	case 1:
		gr_rcu_list_insert_tail(&list, &it->node);
		break;
	case 2:
		gr_rcu_list_insert_before(&at->node, &it->node);
		break;
	default:
		gr_rcu_list_insert_after(&at->node, &it->node);
		break;
	}
	guests++;
	ADD(&inserted, 1);
}

static void *writer(void *arg)
{
	uint64_t rnd = test_seed() + (uintptr_t)arg;

	while (!LOAD(&stop)) {
		struct item *gone = NULL;

		pthread_mutex_lock(&writers);
		if (guests == 0 || (guests < GUESTS_MAX && test_rand(&rnd) % 2)) {
			insert_somewhere(&rnd);
		} else {
			gone = pick(&rnd, true);
			gr_rcu_list_del(&gone->node);
			guests--;
			ADD(&deleted, 1);
		}
		pthread_mutex_unlock(&writers);
		if (gone && test_rand(&rnd) % 4 == 0) {
			gr_rcu_synchronize();
			free_item(&gone->head);
		} else if (gone) {
			gr_rcu_call(NULL, &gone->head, free_item);
		}
	}
	return NULL;
}

TEST(readers_walk_a_changing_list_and_miss_nothing_that_stays)
{
	double seconds = test_seconds(1.0);
	struct timespec ts = { (time_t)seconds, (long)((seconds - (double)(long)seconds) * 1e9) };
	struct item *it;
	pthread_t t[4];

	for (int i = 0; i < FIXED; i++) {
		gr_rcu_list_insert_tail(&list, &make_item(i)->node);
	}
	for (uintptr_t i = 0; i < 4; i++) {
		pthread_create(&t[i], NULL, i < 2 ? walker : writer, (void *)i);
	}
	nanosleep(&ts, NULL);
	STORE(&stop, true);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
	}
	gr_rcu_barrier(NULL);
	walk();
	test_diag("%" PRIu64 " walks, %" PRIu64 " steps, %" PRIu64 " inserted, %" PRIu64 " deleted",
		  walks, steps, inserted, deleted);
	ASSERT_GT(walks, 1u);
	ASSERT_GT(deleted, 0u);
	ASSERT_EQ(freed, deleted);
	ASSERT_EQ(inserted - deleted, (uint64_t)guests);
	while ((it = gr_rcu_list_entry(list.first, struct item, node))) {
		gr_rcu_list_del(&it->node);
		free(it);
	}
}

TEST_MAIN()

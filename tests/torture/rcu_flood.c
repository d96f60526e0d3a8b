/* SPDX-License-Identifier: MIT */
/* Callbacks faster than grace periods: what is queued is bounded, and nobody waits for itself. */
#include "rcu_kit.h"
#include <stdlib.h>

enum { LIMIT = 1000, SLACK = 500, PRODUCERS = 2 };

static struct gr_rcu_queue *queue;
static uint64_t produced, freed;
static bool stop;

static void free_it(struct gr_rcu_head *head)
{
	free(head);
	ADD(&freed, 1);
}

static void produce_one(void)
{
	gr_rcu_call(queue, malloc(sizeof(struct gr_rcu_head)), free_it);
	ADD(&produced, 1);
}

static void *produce(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		produce_one();
	}
	return NULL;
}

static void make_queue(size_t hard)
{
	struct gr_rcu_queue_params params = { .size = sizeof(params), .name = "flood" };
	struct gr_error err;

	params.soft_count = hard / 2;
	params.hard_count = hard;
	ASSERT_EQ(gr_rcu_queue_create(&params, &queue, &err), 0);
}

/* Each call waits GR_RCU_LIMIT_WAIT_NS at most, so a few may pass while the section is open. */
TEST(a_flood_against_an_open_section_stops_at_the_hard_limit)
{
	uint64_t since = now_ns(), open_ns, waiting;
	pthread_t t[PRODUCERS];

	make_queue(LIMIT);
	gr_rcu_read_lock();
	for (int i = 0; i < PRODUCERS; i++) {
		t[i] = spawn(produce, NULL);
	}
	while (LOAD(&produced) < LIMIT) {
		sleep_ms(1);
	}
	sleep_ms(60);
	waiting = LOAD(&produced) - LOAD(&freed);
	open_ns = now_ns() - since;
	gr_rcu_read_unlock();
	STORE(&stop, true);
	for (int i = 0; i < PRODUCERS; i++) {
		pthread_join(t[i], NULL);
	}
	gr_rcu_queue_free(queue);
	test_diag("%" PRIu64 " waited after %" PRIu64 " ms", waiting, open_ns / 1000000);
	ASSERT_LE(waiting, LIMIT + SLACK + PRODUCERS * (open_ns / GR_RCU_LIMIT_WAIT_NS + 1));
	ASSERT_EQ(freed, produced);
}

static void produce_ten_more(struct gr_rcu_head *head)
{
	for (int i = 0; i < 10 && !LOAD(&stop); i++) {
		produce_one();
	}
	free_it(head);
}

TEST(floods_from_inside_sections_and_callbacks_do_not_wait_for_themselves)
{
	make_queue(16);
	test_watch_progress(&produced, 20);
	for (int round = 0; round < 20; round++) {
		gr_rcu_read_lock();
		for (int i = 0; i < 200; i++) {
			produce_one();
		}
		gr_rcu_read_unlock();
		ADD(&produced, 1);
		gr_rcu_call(queue, malloc(sizeof(struct gr_rcu_head)), produce_ten_more);
	}
	gr_rcu_barrier(queue);
	STORE(&stop, true);
	gr_rcu_queue_free(queue);
	ASSERT_EQ(freed, produced);
}

TEST_MAIN()

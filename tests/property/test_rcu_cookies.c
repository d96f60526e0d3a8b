/* SPDX-License-Identifier: MIT */
/*
 * Cookies against a model that counts whole grace periods: taken at rest, a cookie is passed after
 * the next one; taken while one runs, only after the next after that. Also near 2^31, 2^32, 2^63
 * and 2^64 of the sequence.
 */
#include "rcu_kit.h"

enum { COOKIES = 16, STEPS = 3000 };

static struct gr_rcu_domain *d;
static struct gr_rcu_reader r;

/* The model: how many grace periods have ended, and which each cookie needs. */
static uint64_t ended;
static struct {
	uint64_t cookie, needs;
} taken[COOKIES];
static unsigned n_taken;

static void take(bool one_runs)
{
	unsigned i = n_taken < COOKIES ? n_taken++ : n_taken - 1;

	taken[i].cookie = gr_rcu_domain_get_state(d);
	taken[i].needs = ended + (one_runs ? 2 : 1);
}

static void compare(void)
{
	for (unsigned i = 0; i < n_taken; i++) {
		ASSERT_EQ(gr_rcu_domain_poll_state(d, taken[i].cookie), ended >= taken[i].needs);
	}
}

static void *synchronize(void *arg)
{
	(void)arg;
	gr_rcu_domain_synchronize(d);
	return NULL;
}

/* One that runs for as long as we like: our own section holds it up. */
static void run_one_slowly(uint64_t *rnd)
{
	uint64_t at_rest = gr_rcu_domain_get_state(d);
	pthread_t t;

	gr_rcu_read_lock_on(&r);
	t = spawn(synchronize, NULL);
	while (gr_rcu_domain_get_state(d) == at_rest) {
		sched_yield();
	}
	for (uint64_t i = test_rand(rnd) % 3; i > 0; i--) {
		take(true);
		compare();
	}
	gr_rcu_read_unlock_on(&r);
	pthread_join(t, NULL);
	ended++;
}

static void wait_for_one_of_them(uint64_t *rnd)
{
	unsigned i = (unsigned)(test_rand(rnd) % n_taken);

	gr_rcu_domain_cond_synchronize(d, taken[i].cookie);
	if (taken[i].needs > ended) {
		ASSERT_EQ(taken[i].needs, ended + 1); /* at rest one is always enough */
		ended++;
	}
}

static void start_near_an_edge(uint64_t *rnd)
{
	static const uint64_t edges[] = { 1ull << 31, 1ull << 32, 1ull << 63, 0 };

	gr_rcu_seq_set_for_test(d, edges[test_rand(rnd) % 4] - 2 * (test_rand(rnd) % 20));
	n_taken = 0; /* what was taken before means nothing now */
}

TEST(a_cookie_is_passed_after_the_first_whole_grace_period_from_then_on_as_in_the_model)
{
	struct gr_rcu_domain_params params = { .size = sizeof(params), .name = "cookies" };
	uint64_t rnd = test_seed();
	struct gr_error err;

	ASSERT_EQ(gr_rcu_domain_create(&params, &d, &err), 0);
	gr_rcu_reader_init(&r, d, "holds it up");
	for (int i = 0; i < STEPS; i++) {
		uint64_t dice = test_rand(&rnd) % 100;

		if (dice < 40) {
			take(false);
		} else if (dice < 60) {
			gr_rcu_domain_synchronize(d);
			ended++;
		} else if (dice < 70) {
			run_one_slowly(&rnd);
		} else if (dice < 90 && n_taken > 0) {
			wait_for_one_of_them(&rnd);
		} else if (dice >= 98) {
			start_near_an_edge(&rnd);
		} else if (n_taken > 0) {
			taken[test_rand(&rnd) % n_taken] = taken[n_taken - 1];
			n_taken--;
		}
		compare();
	}
	gr_rcu_reader_destroy(&r);
	gr_rcu_domain_free(d);
}

TEST_MAIN()

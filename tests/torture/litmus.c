/* SPDX-License-Identifier: MIT */
/*
 * Litmus tests of RCU (docs/rcu.md, "Which outcomes are forbidden").
 *
 * A ring of members, each a grace period (G) or a section (S). Member i accesses variable i, its
 * `in`, and variable i + 1, its `out`, which is the `in` of the next member. A grace period comes
 * after its `in` and before its `out`; a section may have the two in either order. If, at every
 * variable, the member before came first, then each member passed something on to the next, all the
 * way round. That is forbidden where the ring has at least as many grace periods as sections.
 *
 * What "came first" means depends on who reads and who writes there: three kinds of edge. For one G
 * and one S the nine pairs of edges are all that have names (MP, SB, LB, R, S, 2+2W, and the
 * section's part exchanged for the writer's): each round takes edges, orders and delays by chance.
 */
#include "base/atomic.h"
#include "rcu_kit.h"
#include <guestram/rcu_control.h>
#include <guestram/rcu_domain.h>
#include <guestram/rcu_qs.h>

enum { MEMBERS_MAX = 4, OUT = 1, IN = 2, ROUNDS_MIN = 200 };

enum edge {
	READ_FROM,
	FROM_READ,
	COHERENCE,
	EDGES
}; /* out writes, in reads; the reverse; both write */

struct member;

/* A kind of reader. All but enter and leave may be missing. */
struct kind {
	void (*start)(struct member *m), (*stop)(struct member *m);
	void (*enter)(struct member *m), (*middle)(struct member *m), (*leave)(struct member *m);
	void (*rest)(struct member *m); /* while it waits for the others */
	bool in_first;			/* orders nothing but in, then out */
};

/* A grace period, by whatever means, with make_out() after it. */
typedef void wait_fn(struct member *m);

static struct {
	const char *members; /* "GS" and the like */
	unsigned n;
	bool stop;
	uint32_t met; /* (a) */
	enum edge edge[MEMBERS_MAX];
	bool in_first[MEMBERS_MAX], slow_stores[MEMBERS_MAX];
	struct {
		uint32_t value; /* (a) */
	} __attribute__((aligned(64))) var[MEMBERS_MAX];
} ring;

static struct member {
	unsigned i;
	uint32_t met;
	uint64_t rnd;
	uint32_t in, out; /* what it read there */
	const struct kind *kind;
	wait_fn *wait;
	struct gr_rcu_reader reader;
	struct gr_rcu_head head;
	struct gr_event called;
	uint32_t calls, calls_run;
} __attribute__((aligned(128))) member[MEMBERS_MAX];

/* ---- accesses -------------------------------------------------------------------------- */

static void make_in(struct member *m)
{
	uint32_t *v = &ring.var[m->i].value;

	if (ring.edge[m->i] == READ_FROM) {
		m->in = LOAD(v);
	} else {
		STORE(v, (uint32_t)IN);
	}
}

static void make_out(struct member *m)
{
	unsigned next = (m->i + 1) % ring.n;
	uint32_t *v = &ring.var[next].value;

	if (ring.edge[next] == FROM_READ) {
		m->out = LOAD(v);
	} else {
		STORE(v, (uint32_t)OUT);
	}
}

/* At variable i: the member before, with its out. */
static bool came_first(unsigned i)
{
	if (ring.edge[i] == READ_FROM) {
		return member[i].in == OUT;
	}
	if (ring.edge[i] == FROM_READ) {
		return member[(i + ring.n - 1) % ring.n].out == 0;
	}
	return LOAD(&ring.var[i].value) == IN;
}

/* Mostly short; now and then longer than a driver spins or a callback takes. */
static void pause_a_while(struct member *m)
{
	uint64_t dice = test_rand(&m->rnd);
	uint64_t n = dice % 64 == 0 ? 5000 : dice % ((uint64_t)1 << (dice >> 32) % 9);

	while (n-- > 0) {
		gr_cpu_relax();
	}
	if (ring.n > 2 && (dice >> 40) % 2 == 0) {
		sched_yield(); /* to those on the same CPU */
	}
}

/* ---- readers --------------------------------------------------------------------------- */

static void start_hot(struct member *m)
{
	(void)m;
	become_hot();
}

static void enter(struct member *m) GR_NO_TSA
{
	(void)m;
	gr_rcu_read_lock();
}

static void leave(struct member *m) GR_NO_TSA
{
	(void)m;
	gr_rcu_read_unlock();
}

static void enter_cold(struct member *m)
{
	gr_rcu_park();
	enter(m);
}

static void start_warm(struct member *m)
{
	gr_rcu_quiet_begin(); /* from now on readers are WARM, and no grace period fences for them
			       */
	start_hot(m);
}

static void stop_warm(struct member *m)
{
	(void)m;
	gr_rcu_quiet_end();
}

static void enter_twice(struct member *m)
{
	enter(m);
	enter(m);
}

static void leave_and_enter_inner(struct member *m)
{
	leave(m);
	pause_a_while(m);
	enter(m);
}

static void leave_twice(struct member *m)
{
	leave(m);
	leave(m);
}

static void start_handle(struct member *m)
{
	gr_rcu_reader_init(&m->reader, NULL, "litmus");
	become_hot_on(&m->reader);
}

static void enter_handle(struct member *m)
{
	gr_rcu_read_lock_on(&m->reader);
}

static void leave_handle(struct member *m)
{
	gr_rcu_read_unlock_on(&m->reader);
}

static void stop_handle(struct member *m)
{
	gr_rcu_reader_destroy(&m->reader);
}

static void start_qs(struct member *m)
{
	(void)m;
	gr_rcu_qs_register_thread();
}

static void enter_qs(struct member *m) GR_NO_TSA
{
	(void)m;
	gr_rcu_qs_read_lock();
}

static void leave_qs(struct member *m) GR_NO_TSA
{
	(void)m;
	gr_rcu_qs_read_unlock();
	gr_rcu_quiescent_state();
}

static void rest_qs(struct member *m)
{
	(void)m;
	gr_rcu_quiescent_state();
}

static void stop_qs(struct member *m)
{
	(void)m;
	gr_rcu_qs_unregister_thread();
}

static void start_offline(struct member *m)
{
	start_qs(m);
	gr_rcu_thread_offline();
}

static void go_online(struct member *m)
{
	(void)m;
	gr_rcu_thread_online();
}

static void go_offline(struct member *m)
{
	(void)m;
	gr_rcu_thread_offline();
}

static void do_nothing(struct member *m)
{
	(void)m;
}

static const struct kind HOT = { .start = start_hot, .enter = enter, .leave = leave };
static const struct kind COLD = { .enter = enter_cold, .leave = leave };
static const struct kind WARM = {
	.start = start_warm, .stop = stop_warm, .enter = enter, .leave = leave
};
static const struct kind NESTED = { .start = start_hot,
				    .enter = enter_twice,
				    .middle = leave_and_enter_inner,
				    .leave = leave_twice };
static const struct kind HANDLE = {
	.start = start_handle, .stop = stop_handle, .enter = enter_handle, .leave = leave_handle
};
static const struct kind QS = {
	.start = start_qs, .stop = stop_qs, .enter = enter_qs, .leave = leave_qs, .rest = rest_qs
};
static const struct kind ONLINE = {
	.start = start_offline, .stop = stop_qs, .enter = go_online, .leave = go_offline
};
/* The first access is outside, but coming online orders it before the section. */
static const struct kind PLAIN_THEN_ONLINE = { .start = start_offline,
					       .stop = stop_qs,
					       .enter = do_nothing,
					       .middle = go_online,
					       .leave = go_offline,
					       .in_first = true };

/* ---- grace periods --------------------------------------------------------------------- */

static void synchronize(struct member *m)
{
	if (test_rand(&m->rnd) % 4 == 0) {
		gr_rcu_synchronize_expedited();
	} else {
		gr_rcu_synchronize();
	}
	make_out(m);
}

static void polled(struct member *m)
{
	uint64_t cookie = gr_rcu_start_poll();

	while (!gr_rcu_poll_state(cookie)) {
		sched_yield();
	}
	make_out(m);
}

static void make_out_in_callback(struct gr_rcu_head *head)
{
	struct member *m = (struct member *)(void *)((char *)head - offsetof(struct member, head));

	make_out(m);
	gr_event_set(&m->called);
}

static void callback(struct member *m)
{
	gr_event_reset(&m->called);
	gr_rcu_call(NULL, &m->head, make_out_in_callback);
	gr_event_wait(&m->called);
}

static void count_call(struct gr_rcu_head *head)
{
	struct member *m = (struct member *)(void *)((char *)head - offsetof(struct member, head));

	m->calls_run++; /* plain: the barrier orders it */
}

static void barrier(struct member *m)
{
	m->calls++;
	gr_rcu_call(NULL, &m->head, count_call);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(m->calls_run, m->calls);
	make_out(m);
}

static void by_any_means(struct member *m)
{
	static wait_fn *const means[] = { synchronize, synchronize, synchronize,
					  polled,      callback,    barrier };

	means[test_rand(&m->rnd) % GR_ARRAY_SIZE(means)](m);
}

/* ---- rounds ---------------------------------------------------------------------------- */

static void meet(struct member *m)
{
	uint32_t all = ++m->met * ring.n;

	__atomic_fetch_add(&ring.met, 1u, __ATOMIC_ACQ_REL);
	for (unsigned n = 0; (int32_t)(__atomic_load_n(&ring.met, __ATOMIC_ACQUIRE) - all) < 0;
	     n++) {
		if (m->kind && m->kind->rest) {
			m->kind->rest(m);
		}
		if (n > 2000) {
			sched_yield();
		}
	}
}

static void run_section(struct member *m)
{
	bool in_first = ring.in_first[m->i] || m->kind->in_first;

	if (ring.slow_stores[m->i]) {
		make_stores_slow();
	}
	m->kind->enter(m);
	in_first ? make_in(m) : make_out(m);
	pause_a_while(m);
	if (m->kind->middle) {
		m->kind->middle(m);
	}
	in_first ? make_out(m) : make_in(m);
	m->kind->leave(m);
}

static void run_grace_period(struct member *m)
{
	make_in(m);
	m->wait(m);
}

/* False: it is over. */
static bool take_part(struct member *m)
{
	prepare_slow_stores();
	meet(m);
	if (ring.stop) {
		return false;
	}
	pause_a_while(m);
	(m->kind ? run_section : run_grace_period)(m);
	meet(m);
	return true;
}

static void *other_member(void *arg)
{
	struct member *m = arg;

	stay_on_cpu(m->kind != NULL);
	gr_rcu_register_thread(); /* a quicker driver: no signals to block */
	if (m->kind && m->kind->start) {
		m->kind->start(m);
	}
	while (take_part(m)) {
	}
	if (m->kind && m->kind->stop) {
		m->kind->stop(m);
	}
	return NULL;
}

static void set_out_the_round(uint64_t *rnd)
{
	for (unsigned i = 0; i < ring.n; i++) {
		uint64_t dice = test_rand(rnd);

		ring.edge[i] = dice % EDGES;
		ring.in_first[i] = dice >> 8 & 1;
		ring.slow_stores[i] = dice >> 9 & 1;
		STORE(&ring.var[i].value, 0u);
	}
}

static void fail_round(uint32_t round)
{
	static const char *const name[EDGES] = { "written, read", "read, written",
						 "written twice" };

	for (unsigned i = 0; i < ring.n; i++) {
		test_diag("variable %u: %s; then %c%s", i, name[ring.edge[i]], ring.members[i],
			  ring.members[i] == 'S' && !ring.in_first[i] ? ", out first" : "");
	}
	FAIL("round %u: %s passed something on all the way round", round, ring.members);
}

static unsigned count(const char *members, char c)
{
	return *members ? (*members == c) + count(members + 1, c) : 0;
}

/* The sections are of the two kinds in turn. The first member is a G, and this thread. */
static void run_litmus(const char *members, const struct kind *k0, const struct kind *k1,
		       wait_fn *wait)
{
	bool allowed = count(members, 'G') < count(members, 'S');
	uint64_t rnd = test_seed(), end = now_ns() + (uint64_t)(test_seconds(0.4) * 1e9);
	uint32_t round = 0, near = 0, seen = 0;
	pthread_t t[MEMBERS_MAX];

	ring.members = members;
	ring.n = (unsigned)strlen(members);
	for (unsigned i = 0; i < ring.n; i++) {
		member[i].i = i;
		member[i].rnd = test_rand(&rnd);
		member[i].wait = wait;
		member[i].kind = members[i] == 'G' ? NULL : i == ring.n - 1 ? k1 : k0;
		gr_event_init(&member[i].called, false);
		if (i > 0) {
			t[i] = spawn(other_member, &member[i]);
		}
	}
	stay_on_cpu(0);
	gr_rcu_register_thread();
	while (round < ROUNDS_MIN || now_ns() < end) {
		unsigned first = 0;

		set_out_the_round(&rnd);
		(void)take_part(&member[0]);
		round++;
		for (unsigned i = 0; i < ring.n; i++) {
			first += came_first(i);
		}
		near += first == ring.n - 1;
		seen += first == ring.n;
		if (seen != 0 && !allowed) {
			fail_round(round);
		}
	}
	ring.stop = true;
	meet(&member[0]);
	for (unsigned i = 1; i < ring.n; i++) {
		pthread_join(t[i], NULL);
	}
	test_diag("%s: %u rounds, all but one in %u; all the way round in %u (%s)", members, round,
		  near, seen, allowed ? "allowed" : "forbidden");
	if (ring.n == 2) {
		ASSERT_GT(near, 0u);
	}
}

#define LITMUS(name, members, kind0, kind1, wait)          \
	TEST(name)                                         \
	{                                                  \
		run_litmus(members, &kind0, &kind1, wait); \
	}

LITMUS(hot_sections, "GS", HOT, HOT, synchronize)
LITMUS(cold_sections, "GS", COLD, COLD, synchronize)
LITMUS(warm_sections_in_quiet_times, "GS", WARM, WARM, synchronize)
LITMUS(nested_sections_end_with_the_outer_one, "GS", NESTED, NESTED, synchronize)
LITMUS(sections_of_explicit_readers, "GS", HANDLE, HANDLE, synchronize)
LITMUS(sections_between_quiescent_states, "GS", QS, QS, synchronize)
LITMUS(sections_from_online_to_offline, "GS", ONLINE, ONLINE, synchronize)
LITMUS(coming_online_orders_what_was_before, "GS", PLAIN_THEN_ONLINE, PLAIN_THEN_ONLINE,
       synchronize)
LITMUS(a_cookie_that_polls_true_is_a_whole_grace_period, "GS", HOT, HOT, polled)
LITMUS(a_callback_comes_after_the_sections_that_were_open, "GS", COLD, COLD, callback)
LITMUS(a_barrier_orders_the_callbacks_before_it, "GS", QS, QS, barrier)
LITMUS(two_grace_periods_and_two_sections_in_turn, "GSGS", HOT, QS, by_any_means)
LITMUS(two_grace_periods_then_two_sections, "GGSS", COLD, HANDLE, by_any_means)
LITMUS(one_grace_period_and_two_sections_may_pass_it_on, "GSS", HOT, HOT, synchronize)

TEST_MAIN()

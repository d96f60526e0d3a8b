/* SPDX-License-Identifier: MIT */
/* Grace periods that do not end are reported; see rcu_stall.h. */
#include "rcu_kit.h"
#include <guestram/log.h>
#include <guestram/rcu_stall.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KEPT = 64, SOON_MS = 20 };

struct kept {
	struct gr_rcu_stall_report report;
	char domain[32], thread[32], reader[32], kind[64], site_name[128], text[512];
};

static struct kept kept[KEPT];
static uint64_t reports; /* (a) how many of kept are there */

static void copy(char *to, size_t bytes, const char *from)
{
	(void)snprintf(to, bytes, "%s", from ? from : "(null)");
}

static void keep(const struct gr_rcu_stall_report *r, void *opaque)
{
	uint64_t n = LOAD(&reports);
	struct kept *k = &kept[n < KEPT ? n : KEPT - 1];

	ASSERT_PTR_EQ(opaque, &kept);
	k->report = *r;
	copy(k->domain, sizeof(k->domain), r->domain);
	copy(k->thread, sizeof(k->thread), r->thread);
	copy(k->reader, sizeof(k->reader), r->reader);
	copy(k->kind, sizeof(k->kind), r->kind);
	copy(k->site_name, sizeof(k->site_name), r->site_name);
	copy(k->text, sizeof(k->text), r->text);
	__atomic_store_n(&reports, n + 1, __ATOMIC_RELEASE);
}

static void wait_for_reports(uint64_t n)
{
	while (__atomic_load_n(&reports, __ATOMIC_ACQUIRE) < n) {
		sleep_ms(1);
	}
}

/* The last that says the event, or NULL. */
static const struct kept *last_of(enum gr_rcu_stall_event event)
{
	for (uint64_t n = LOAD(&reports); n > 0; n--) {
		if (kept[n - 1].report.event == event) {
			return &kept[n - 1];
		}
	}
	return NULL;
}

/* The first that counted so many callbacks, or NULL. */
static const struct kept *first_with(uint64_t callbacks)
{
	uint64_t n = __atomic_load_n(&reports, __ATOMIC_ACQUIRE);

	for (uint64_t i = 0; i < n && i < KEPT; i++) {
		if (kept[i].report.callbacks == callbacks) {
			return &kept[i];
		}
	}
	return NULL;
}

static void report_soon(void)
{
	gr_rcu_set_stall_ns(SOON_MS * 1000000ull);
	gr_rcu_set_stall_handler(keep, &kept);
}

/* ---- who holds up ------------------------------------------------------------------------ */

static struct gr_event inside = GR_EVENT_INIT(false);
static uint32_t tid;

/* Its end is where the report must point. */
__attribute__((noinline)) static void end_the_section(void) GR_NO_TSA
{
	gr_rcu_read_unlock();
	__asm__ volatile("" ::: "memory"); /* not a jump: the return address lies here */
}

static void *slow_reader(void *wanted) GR_NO_TSA
{
	prctl(PR_SET_NAME, "slow-reader");
	tid = (uint32_t)syscall(SYS_gettid);
	gr_rcu_read_lock();
	gr_event_set(&inside);
	wait_for_reports((uintptr_t)wanted);
	end_the_section();
	return NULL;
}

/* The first warning may come before all of them are queued. */
static void *reader_until_they_are_counted(void *callbacks) GR_NO_TSA
{
	prctl(PR_SET_NAME, "slow-reader");
	tid = (uint32_t)syscall(SYS_gettid);
	gr_rcu_read_lock();
	gr_event_set(&inside);
	while (!first_with((uintptr_t)callbacks)) {
		sleep_ms(1);
	}
	wait_for_reports(2);
	end_the_section();
	return NULL;
}

static void free_it(struct gr_rcu_head *head)
{
	free(head);
}

TEST(a_stalled_grace_period_names_thread_age_and_callbacks_and_then_where_it_ended)
{
	const struct kept *k;
	pthread_t t;

	report_soon();
	t = spawn(reader_until_they_are_counted, (void *)10);
	gr_event_wait(&inside);
	for (int i = 0; i < 10; i++) {
		gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), free_it);
	}
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	k = first_with(10);
	test_diag("%s", k->text);
	ASSERT_EQ(k->report.event, GR_RCU_STALL_WAITS);
	ASSERT_EQ(k->report.tid, tid);
	ASSERT_STR_EQ(k->thread, "slow-reader");
	ASSERT_STR_EQ(k->domain, "default");
	ASSERT_STR_EQ(k->kind, "section");
	ASSERT_PTR_EQ(k->report.reader, NULL);
	ASSERT_GE(k->report.age_ns, SOON_MS * 1000000ull);
	ASSERT_HAS(k->text, "(slow-reader)");
	ASSERT_HAS(k->text, "10 callbacks wait");
	k = last_of(GR_RCU_STALL_ENDED);
	ASSERT(k != NULL);
	test_diag("%s", k->text);
	ASSERT_EQ(k->report.tid, tid);
	ASSERT_GE(k->report.age_ns, 2 * SOON_MS * 1000000ull);
	ASSERT_STR_EQ(k->thread, "slow-reader"); /* though the thread may be gone */
	ASSERT_HAS(k->text, "ended its section after");
	ASSERT_HAS(k->site_name, "test_rcu_stall");
	ASSERT_LT((uintptr_t)k->report.site - test_code_of(end_the_section), 1024u);
	ASSERT_GE(stats().stalls, 2u);
	gr_rcu_barrier(NULL);
}

TEST(warnings_come_at_twice_the_interval_each_time)
{
	pthread_t t;

	report_soon();
	t = spawn(slow_reader, (void *)4);
	gr_event_wait(&inside);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	for (int i = 0; i < 3; i++) {
		ASSERT_GE(kept[i + 1].report.age_ns - kept[i].report.age_ns,
			  (SOON_MS * 1000000ull) << (i + 1));
	}
	ASSERT(last_of(GR_RCU_STALL_ENDED) != NULL); /* the fifth, unless the reader overslept */
}

TEST(grace_periods_that_end_in_time_are_not_reported)
{
	gr_rcu_set_stall_handler(keep, &kept);
	for (int i = 0; i < 1000; i++) {
		gr_rcu_synchronize();
	}
	ASSERT_EQ(reports, 0u);
	ASSERT_EQ(stats().stalls, 0u);
}

static void *reader_for_a_while(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	gr_event_set(&inside);
	sleep_ms(5 * SOON_MS);
	gr_rcu_read_unlock();
	return NULL;
}

TEST(zero_switches_the_warnings_off)
{
	pthread_t t;

	report_soon();
	gr_rcu_set_stall_ns(0);
	t = spawn(reader_for_a_while, NULL);
	gr_event_wait(&inside);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	ASSERT_EQ(reports, 0u);
}

/* ---- kinds of readers ---------------------------------------------------------------------- */

static void *online_thread(void *arg)
{
	(void)arg;
	gr_rcu_qs_register_thread();
	gr_event_set(&inside);
	wait_for_reports(1);
	gr_rcu_quiescent_state();
	gr_rcu_qs_unregister_thread();
	return NULL;
}

TEST(a_quiescent_state_thread_that_says_nothing_is_named_as_such)
{
	pthread_t t;

	report_soon();
	t = spawn(online_thread, NULL);
	gr_event_wait(&inside);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	ASSERT_STR_EQ(kept[0].kind, "quiescent-state thread");
	ASSERT(last_of(GR_RCU_STALL_ENDED) != NULL);
}

static struct gr_rcu_domain *other;

static void *named_reader(void *arg)
{
	struct gr_rcu_reader r;

	(void)arg;
	gr_rcu_reader_init(&r, other, "disk-coroutine");
	gr_rcu_read_lock_on(&r);
	gr_event_set(&inside);
	wait_for_reports(1);
	gr_rcu_read_unlock_on(&r);
	gr_rcu_reader_destroy(&r);
	return NULL;
}

TEST(an_explicit_reader_in_another_domain_is_named_with_it)
{
	struct gr_rcu_domain_params params = { .size = sizeof(params), .name = "machine-2" };
	struct gr_error err;
	pthread_t t;

	ASSERT_EQ(gr_rcu_domain_create(&params, &other, &err), 0);
	report_soon();
	t = spawn(named_reader, NULL);
	gr_event_wait(&inside);
	gr_rcu_domain_synchronize(other);
	pthread_join(t, NULL);
	gr_rcu_domain_free(other);
	ASSERT_STR_EQ(kept[0].domain, "machine-2");
	ASSERT_STR_EQ(kept[0].reader, "disk-coroutine");
	ASSERT_HAS(kept[0].text, "disk-coroutine");
	ASSERT_HAS(kept[0].text, "machine-2");
}

static uint32_t many_inside;

static void *one_of_many(void *arg) GR_NO_TSA
{
	(void)arg;
	gr_rcu_read_lock();
	ADD(&many_inside, 1u);
	wait_for_reports(GR_RCU_STALL_NOTES);
	gr_rcu_read_unlock();
	return NULL;
}

TEST(more_readers_than_a_warning_has_room_for_are_counted)
{
	enum { MANY = GR_RCU_STALL_NOTES + 3 };
	pthread_t t[MANY];

	report_soon();
	for (int i = 0; i < MANY; i++) {
		t[i] = spawn(one_of_many, NULL);
	}
	while (LOAD(&many_inside) < MANY) {
		sched_yield();
	}
	gr_rcu_synchronize();
	for (int i = 0; i < MANY; i++) {
		pthread_join(t[i], NULL);
	}
	ASSERT_HAS(kept[0].text, "and for 3 readers more");
}

/* ---- where reports go ------------------------------------------------------------------------ */

static char logged[512];

static void keep_line(enum gr_log_level level, const char *msg, void *opaque)
{
	(void)opaque;
	ASSERT_EQ(level, GR_LOG_WARN);
	if (LOAD(&reports) == 0) {
		copy(logged, sizeof(logged), msg);
	}
	ADD(&reports, 1);
}

TEST(without_a_handler_warnings_go_to_the_log)
{
	pthread_t t;

	report_soon();
	gr_rcu_set_stall_handler(NULL, NULL);
	gr_log_set_handler(keep_line, NULL);
	t = spawn(slow_reader, (void *)1);
	gr_event_wait(&inside);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	ASSERT_HAS(logged, "slow-reader");
}

static void wait_in_handler(const struct gr_rcu_stall_report *r, void *opaque)
{
	(void)r;
	(void)opaque;
	gr_rcu_synchronize();
}

static void stall_and_wait_in_handler(void *arg)
{
	(void)arg;
	gr_rcu_set_stall_ns(1000000);
	gr_rcu_set_stall_handler(wait_in_handler, NULL);
	spawn(slow_reader, (void *)1);
	gr_event_wait(&inside);
	gr_rcu_synchronize();
}

TEST(waiting_for_a_grace_period_in_the_handler_dies)
{
	dies_saying(stall_and_wait_in_handler, "in a stall handler");
}

/* ---- what a handler may do ---------------------------------------------------------------- */

static struct gr_rcu_queue *small_queue;
static uint64_t ran;

static void count_it(struct gr_rcu_head *head)
{
	free(head);
	ADD(&ran, 1);
}

static void call_much(const struct gr_rcu_stall_report *r, void *opaque)
{
	(void)r;
	(void)opaque;
	for (int i = 0; i < 8; i++) {
		gr_rcu_call(small_queue, malloc(sizeof(struct gr_rcu_head)), count_it);
	}
	ADD(&reports, 1);
}

TEST(a_handler_may_queue_callbacks_though_their_queue_is_full)
{
	struct gr_rcu_queue_params params = { .size = sizeof(params), .hard_count = 2 };
	struct gr_error err;
	pthread_t t;

	ASSERT_EQ(gr_rcu_queue_create(&params, &small_queue, &err), 0);
	gr_rcu_set_stall_ns(SOON_MS * 1000000ull);
	gr_rcu_set_stall_handler(call_much, NULL);
	t = spawn(slow_reader, (void *)1);
	gr_event_wait(&inside);
	gr_rcu_synchronize();
	pthread_join(t, NULL);
	gr_rcu_set_stall_ns(0);
	gr_rcu_queue_free(small_queue);
	ASSERT_EQ(ran, 8 * LOAD(&reports));
}

static pid_t child = -1;

static void fork_once(const struct gr_rcu_stall_report *r, void *opaque)
{
	(void)r;
	(void)opaque;
	if (child < 0) {
		child = fork();
	}
	ADD(&reports, 1);
}

static uint64_t grace_periods(void)
{
	struct gr_rcu_stats s;

	gr_rcu_stats_get(NULL, &s);
	return s.grace_periods;
}

static void *synchronize(void *arg)
{
	gr_rcu_synchronize();
	return arg;
}

/* One whose grace period has begun, and waits. */
static pthread_t start_grace_period(void)
{
	uint64_t before = grace_periods();
	pthread_t t = spawn(synchronize, NULL);

	while (grace_periods() == before) {
		sleep_ms(1);
	}
	return t;
}

/* A cookie is not served by the grace period that runs when it is taken. */
static void check_cookies(void)
{
	struct gr_rcu_reader early, late;
	pthread_t first, second;
	uint64_t cookie;

	gr_rcu_reader_init(&early, NULL, "early");
	gr_rcu_reader_init(&late, NULL, "late");
	gr_rcu_read_lock_on(&early);
	first = start_grace_period();
	gr_rcu_read_lock_on(&late);
	cookie = gr_rcu_get_state();
	gr_rcu_read_unlock_on(&early);
	pthread_join(first, NULL);
	second = start_grace_period();
	ASSERT(!gr_rcu_poll_state(cookie));
	gr_rcu_read_unlock_on(&late);
	pthread_join(second, NULL);
	ASSERT(gr_rcu_poll_state(cookie));
	gr_rcu_reader_destroy(&early);
	gr_rcu_reader_destroy(&late);
}

TEST(a_handler_may_fork_and_the_child_goes_on_with_its_grace_periods)
{
	int status;
	pthread_t t;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	gr_rcu_set_stall_ns(SOON_MS * 1000000ull);
	gr_rcu_set_stall_handler(fork_once, NULL);
	t = spawn(slow_reader, (void *)1);
	gr_event_wait(&inside);
	gr_rcu_synchronize_expedited();
	gr_rcu_set_stall_ns(0);
	check_cookies();
	if (child == 0) {
		_exit(0);
	}
	pthread_join(t, NULL);
	ASSERT_EQ(waitpid(child, &status, 0), child);
	ASSERT_EQ(status, 0);
}

TEST(a_child_of_a_fork_is_reported_with_its_own_number)
{
	int status;
	pid_t pid;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	gr_rcu_register_thread();
	pid = fork();
	if (pid == 0) {
		ASSERT_EQ(gr_rcu_self.tid, (uint32_t)syscall(SYS_gettid));
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

TEST_MAIN()

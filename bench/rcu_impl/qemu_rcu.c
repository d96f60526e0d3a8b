/* SPDX-License-Identifier: MIT */
#include "bench/rcu_impl/qemu_rcu.h"
#include "bench/rcu_impl/kit.h"
#include <pthread.h>
#include <stddef.h>

enum { GATHER_US = 10000, GATHER_TIMES = 5, GATHER_ENOUGH = 30 };

uint64_t qemu_rcu_ctr = 1;
struct gr_event qemu_rcu_gp_event = GR_EVENT_INIT(false);

static __thread struct qemu_rcu_reader self;
static pthread_mutex_t sync_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct qemu_rcu_reader *registry;

__attribute__((noinline)) struct qemu_rcu_reader *qemu_rcu_self(void)
{
	struct qemu_rcu_reader *r = &self;

	__asm__ volatile("" : "+r"(r));
	return r;
}

void qemu_rcu_register(void)
{
	struct qemu_rcu_reader *r = qemu_rcu_self();

	pthread_mutex_lock(&registry_lock);
	r->next = registry;
	r->pprev = &registry;
	if (r->next) {
		r->next->pprev = &r->next;
	}
	registry = r;
	pthread_mutex_unlock(&registry_lock);
}

void qemu_rcu_unregister(void)
{
	struct qemu_rcu_reader *r = qemu_rcu_self();

	pthread_mutex_lock(&registry_lock);
	*r->pprev = r->next;
	if (r->next) {
		r->next->pprev = r->pprev;
	}
	pthread_mutex_unlock(&registry_lock);
}

/* Under registry_lock. Asks those not yet quiescent to wake us, then looks whether any is left. */
static bool somebody_left(void)
{
	bool any = false;

	for (struct qemu_rcu_reader *r = registry; r; r = r->next) {
		if (!r->quiescent) {
			__atomic_store_n(&r->waiting, 1, __ATOMIC_RELAXED);
		}
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* waiting, before ctr: pairs with unlock */
	for (struct qemu_rcu_reader *r = registry; r; r = r->next) {
		uint64_t ctr = __atomic_load_n(&r->ctr, __ATOMIC_ACQUIRE);

		if (!r->quiescent && (ctr == 0 || ctr == qemu_rcu_ctr)) {
			r->quiescent = true;
			__atomic_store_n(&r->waiting, 0, __ATOMIC_RELAXED);
		}
		any |= !r->quiescent;
	}
	return any;
}

void qemu_rcu_synchronize(void)
{
	pthread_mutex_lock(&sync_lock);
	pthread_mutex_lock(&registry_lock);
	for (struct qemu_rcu_reader *r = registry; r; r = r->next) {
		r->quiescent = false;
	}
	__atomic_store_n(&qemu_rcu_ctr, qemu_rcu_ctr + 2, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* the removal and the counter, before ctr */
	for (;;) {
		gr_event_reset(&qemu_rcu_gp_event);
		if (!somebody_left()) {
			break;
		}
		pthread_mutex_unlock(&registry_lock);
		gr_event_wait(&qemu_rcu_gp_event);
		pthread_mutex_lock(&registry_lock);
	}
	pthread_mutex_unlock(&registry_lock);
	pthread_mutex_unlock(&sync_lock);
}

/* Callbacks: any number of producers, one consumer, one dummy node so that it is never empty. */
static struct qemu_rcu_head dummy;
static struct qemu_rcu_head *head = &dummy;
static struct qemu_rcu_head **tail = &dummy.next;
static uint32_t count; /* (a) queued and not yet taken by the thread */
static struct gr_event ready = GR_EVENT_INIT(false);
static pthread_mutex_t big_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void enqueue(struct qemu_rcu_head *h)
{
	struct qemu_rcu_head **old;

	h->next = NULL;
	old = __atomic_exchange_n(&tail, &h->next, __ATOMIC_ACQ_REL);
	__atomic_store_n(old, h, __ATOMIC_RELEASE);
}

/* NULL while a producer is between its two steps. The node may be reused afterwards. */
static struct qemu_rcu_head *dequeue(void)
{
	for (;;) {
		struct qemu_rcu_head *h = head;
		struct qemu_rcu_head *next = __atomic_load_n(&h->next, __ATOMIC_ACQUIRE);

		if (!next) {
			return NULL;
		}
		head = next;
		if (h != &dummy) {
			return h;
		}
		enqueue(&dummy);
	}
}

static uint32_t gather(void)
{
	uint32_t n = __atomic_load_n(&count, __ATOMIC_ACQUIRE);
	int times = 0;

	while (n == 0 || (n < GATHER_ENOUGH && ++times <= GATHER_TIMES)) {
		bench_sleep_us(GATHER_US);
		if (n == 0) {
			gr_event_reset(&ready);
			n = __atomic_load_n(&count, __ATOMIC_ACQUIRE);
			if (n == 0) {
				gr_event_wait(&ready);
			}
		}
		n = __atomic_load_n(&count, __ATOMIC_ACQUIRE);
	}
	return n;
}

static struct qemu_rcu_head *dequeue_waiting(void)
{
	struct qemu_rcu_head *h = dequeue();

	while (!h) {
		pthread_mutex_unlock(&big_lock);
		gr_event_reset(&ready);
		h = dequeue();
		if (!h) {
			gr_event_wait(&ready);
			h = dequeue();
		}
		pthread_mutex_lock(&big_lock);
	}
	return h;
}

static void *worker(void *arg)
{
	qemu_rcu_register();
	for (;;) {
		uint32_t n = gather();

		__atomic_fetch_sub(&count, n, __ATOMIC_ACQ_REL);
		qemu_rcu_synchronize();
		pthread_mutex_lock(&big_lock);
		for (; n > 0; n--) {
			struct qemu_rcu_head *h = dequeue_waiting();

			h->func(h);
		}
		pthread_mutex_unlock(&big_lock);
	}
	return arg;
}

static void start_worker(void)
{
	pthread_t thread;

	bench_thread(&thread, BENCH_ANY_CPU, worker, NULL);
	pthread_detach(thread);
}

void qemu_rcu_call(struct qemu_rcu_head *h, void (*func)(struct qemu_rcu_head *head))
{
	pthread_once(&once, start_worker);
	h->func = func;
	enqueue(h);
	__atomic_fetch_add(&count, 1, __ATOMIC_ACQ_REL);
	gr_event_set(&ready);
}

struct drain {
	struct qemu_rcu_head head;
	struct gr_event done;
};

static void drained(struct qemu_rcu_head *h)
{
	gr_event_set(&((struct drain *)(void *)h)->done);
}

void qemu_rcu_drain(void)
{
	struct drain d = { .done = GR_EVENT_INIT(false) };

	qemu_rcu_call(&d.head, drained);
	gr_event_wait(&d.done);
}

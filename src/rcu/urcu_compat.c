/* SPDX-License-Identifier: MIT */
/*
 * What the names of liburcu (guestram/urcu.h) need beyond inline functions: workers that are
 * handed about as call_rcu_data, deferred calls, the flavour objects. urcu_fork.c: forks.
 */
#include "rcu/urcu_compat.h"
#include <errno.h>
#include <sched.h>
#include <unistd.h>

/* As many deferred calls wait at most, roughly, before defer_rcu() does. */
enum { DEFERRED_MAX = 4096 };

static struct call_rcu_data default_data = {
	.users = 1,
	.is_held = GR_EVENT_INIT(false),
	.let_go = GR_EVENT_INIT(false),
};
struct gr_urcu_workers gr_urcu_workers = {
	.lock = GR_MUTEX_INIT(GR_RANK_URCU),
	.first = &default_data,
};
static struct gr_once fork_once = GR_ONCE_INIT;

/* (a) Made when the first CPU gets a worker, and never freed. */
static struct cpu_table {
	long cpus;		    /* (c) */
	struct call_rcu_data *of[]; /* (a) each */
} * cpu_table;
static __thread struct call_rcu_data *thread_data;

/* With signals blocked: a handler that forks needs the lock. */
static void lock_workers(struct gr_signals *saved) GR_ACQUIRE(gr_urcu_workers.lock) GR_NO_TSA
{
	gr_once(&fork_once, gr_urcu_fork_install);
	gr_signals_block(saved);
	gr_mutex_lock(&gr_urcu_workers.lock);
}

static void unlock_workers(const struct gr_signals *saved)
	GR_RELEASE(gr_urcu_workers.lock) GR_NO_TSA
{
	gr_mutex_unlock(&gr_urcu_workers.lock);
	gr_signals_restore(saved);
}

void gr_urcu_get(struct call_rcu_data *d)
{
	struct gr_signals saved;

	lock_workers(&saved);
	d->users++;
	unlock_workers(&saved);
}

void gr_urcu_put(struct call_rcu_data *d)
{
	struct call_rcu_data **where = &gr_urcu_workers.first;
	struct gr_signals saved;
	bool last;

	lock_workers(&saved);
	last = --d->users == 0;
	if (last) {
		while (*where != d) {
			where = &(*where)->next;
		}
		*where = d->next;
	}
	unlock_workers(&saved);
	if (last) {
		gr_rcu_queue_free(d->queue);
		free(d);
	}
}

struct call_rcu_data *gr_urcu_next(struct call_rcu_data *d)
{
	struct call_rcu_data *next;
	struct gr_signals saved;

	lock_workers(&saved);
	next = d ? d->next : gr_urcu_workers.first;
	if (next) {
		next->users++;
	}
	unlock_workers(&saved);
	if (d) {
		gr_urcu_put(d);
	}
	return next;
}

static int this_cpu(void)
{
#if defined(__linux__) || defined(__FreeBSD__)
	return sched_getcpu();
#else
	return -1; /* the default worker serves all */
#endif
}

static struct cpu_table *make_cpu_table(void)
{
	struct cpu_table *table = gr_load_acquire(&cpu_table), *none = NULL;
	long cpus = table ? table->cpus : sysconf(_SC_NPROCESSORS_CONF);

	if (table) {
		return table;
	}
	table = calloc(1, sizeof(*table) + (size_t)cpus * sizeof(table->of[0]));
	if (!table) {
		return NULL;
	}
	table->cpus = cpus;
	if (!gr_cas_acq_rel(&cpu_table, &none, table)) {
		free(table); /* somebody else was faster */
		return none;
	}
	return table;
}

static struct call_rcu_data **find_cpu(int cpu)
{
	/* Acquire: the empty table. Pairs with make_cpu_table(). */
	struct cpu_table *table = gr_load_acquire(&cpu_table);

	return table && cpu >= 0 && cpu < table->cpus ? &table->of[cpu] : NULL;
}

/* In a section, if CPUs' workers may be freed. */
static struct call_rcu_data *find_worker(void)
{
	struct call_rcu_data *d = thread_data, **slot = d ? NULL : find_cpu(this_cpu());

	if (slot) {
		d = gr_load_acquire(slot); /* pairs with gr_urcu_set_cpu_call_rcu_data() */
	}
	return d ? d : &default_data;
}

static void call_on(struct call_rcu_data *d, struct gr_rcu_head *head,
		    void (*func)(struct gr_rcu_head *head))
{
	if (gr_load_relaxed(&d->used) == 0) {
		gr_store_relaxed(&d->used, 1u);
	}
	gr_rcu_call(d->queue, head, func);
}

void gr_urcu_call(struct gr_rcu_head *head, void (*func)(struct gr_rcu_head *head)) GR_NO_TSA
{
	if (thread_data || !gr_load_relaxed(&cpu_table)) {
		call_on(thread_data ? thread_data : &default_data, head, func);
		return;
	}
	gr_rcu_read_lock(); /* a CPU's worker stays until a grace period has passed */
	call_on(find_worker(), head, func);
	gr_rcu_read_unlock();
}

void gr_urcu_qsbr_register_thread(void)
{
	if (gr_load_relaxed(&gr_rcu_callbacks_are_qs) == 0) {
		gr_store_relaxed(&gr_rcu_callbacks_are_qs, 1u); /* seen by whoever runs our calls */
	}
	gr_rcu_qs_register_thread();
}

void gr_urcu_barrier(void)
{
	for (struct call_rcu_data *d = gr_urcu_next(NULL); d; d = gr_urcu_next(d)) {
#ifdef GR_MUTANT_URCU_BARRIER_OF_DEFAULT
		if (d != &default_data) {
			continue;
		}
#endif
		gr_rcu_barrier(d->queue);
	}
}

/* A CPU that this process may not use would leave the worker without a thread. */
static bool may_pin(int cpu)
{
#ifdef __linux__
	cpu_set_t allowed;

	return cpu >= 0 && cpu < CPU_SETSIZE &&
	       sched_getaffinity(0, sizeof(allowed), &allowed) == 0 &&
	       CPU_ISSET((size_t)cpu, &allowed);
#else
	return false && cpu;
#endif
}

struct call_rcu_data *gr_urcu_create_call_rcu_data(unsigned long flags, int cpu)
{
	struct gr_rcu_queue_params params = {
		.size = sizeof(params),
		.name = "gr-call-rcu",
		.flags = may_pin(cpu) ? GR_RCU_QUEUE_PIN : 0,
		.cpu = cpu,
	};
	struct call_rcu_data *d;
	struct gr_signals saved;
	int ret = 0;

	if ((flags & ~(unsigned long)URCU_CALL_RCU_RT) != 0) {
		errno = EINVAL;
		return NULL;
	}
	d = calloc(1, sizeof(*d));
	if (!d || (ret = gr_rcu_queue_create(&params, &d->queue, NULL)) < 0) {
		free(d);
		errno = ret < 0 ? -ret : ENOMEM;
		return NULL;
	}
	d->users = 1;
	gr_event_init(&d->is_held, false);
	gr_event_init(&d->let_go, false);
	lock_workers(&saved);
	d->next = gr_urcu_workers.first;
	gr_urcu_workers.first = d;
	unlock_workers(&saved);
	return d;
}

void gr_urcu_call_rcu_data_free(struct call_rcu_data *data)
{
	if (data && data != &default_data) {
		gr_rcu_barrier(data->queue); /* also if a barrier of somebody else frees it */
		gr_urcu_put(data);
	}
}

struct call_rcu_data *gr_urcu_get_default_call_rcu_data(void)
{
	return &default_data;
}

struct call_rcu_data *gr_urcu_get_cpu_call_rcu_data(int cpu)
{
	struct call_rcu_data **slot = find_cpu(cpu);

	return slot ? gr_load_acquire(slot) : NULL;
}

struct call_rcu_data *gr_urcu_get_thread_call_rcu_data(void)
{
	return thread_data;
}

struct call_rcu_data *gr_urcu_get_call_rcu_data(void)
{
	return find_worker();
}

void gr_urcu_set_thread_call_rcu_data(struct call_rcu_data *data)
{
	thread_data = data;
}

static int with_errno(int ret)
{
	errno = -ret;
	return ret;
}

int gr_urcu_set_cpu_call_rcu_data(int cpu, struct call_rcu_data *data)
{
	struct call_rcu_data *none = NULL;

	if (!make_cpu_table()) {
		return with_errno(-ENOMEM);
	}
	if (!find_cpu(cpu)) {
		return with_errno(-EINVAL);
	}
	if (!data) {
		gr_store_release(find_cpu(cpu), (struct call_rcu_data *)NULL);
	} else if (!gr_cas_acq_rel(find_cpu(cpu), &none, data)) { /* release: what data points to */
		return with_errno(-EEXIST);
	}
	return 0;
}

int gr_urcu_create_all_cpu_call_rcu_data(unsigned long flags)
{
	struct cpu_table *table = make_cpu_table();

	for (int cpu = 0; table && cpu < table->cpus; cpu++) {
		struct call_rcu_data *d;
		int ret;

		if (gr_urcu_get_cpu_call_rcu_data(cpu)) {
			continue;
		}
		d = gr_urcu_create_call_rcu_data(flags, cpu);
		if (!d) {
			return -errno;
		}
		ret = gr_urcu_set_cpu_call_rcu_data(cpu, d);
		if (ret < 0) {
			gr_urcu_call_rcu_data_free(d);
		}
		if (ret < 0 && ret != -EEXIST) { /* EEXIST: somebody else was faster */
			return with_errno(ret);
		}
	}
	return table ? 0 : with_errno(-ENOMEM);
}

void gr_urcu_free_all_cpu_call_rcu_data(void)
{
	struct cpu_table *table = gr_load_acquire(&cpu_table);
	long cpus = table ? table->cpus : 0;
	struct call_rcu_data **former;

	if (cpus == 0) {
		return;
	}
	former = calloc((size_t)cpus, sizeof(struct call_rcu_data *));
	/* No memory: the workers stay. */
	for (int cpu = 0; former && cpu < cpus; cpu++) {
		former[cpu] = gr_xchg_acq_rel(find_cpu(cpu), (struct call_rcu_data *)NULL);
	}
	gr_rcu_synchronize(); /* whoever found one of them has queued its callback */
	for (int cpu = 0; former && cpu < cpus; cpu++) {
		gr_urcu_call_rcu_data_free(former[cpu]);
	}
	free(former);
}

struct thread_question {
	struct gr_rcu_head head;
	pthread_t answer;
};

static void answer_thread(struct gr_rcu_head *head)
{
	gr_container_of(head, struct thread_question, head)->answer = pthread_self();
}

pthread_t gr_urcu_get_call_rcu_thread(struct call_rcu_data *data)
{
	struct thread_question q;

	if (gr_rcu_caller.callback_of == gr_rcu_queue_or_default(data->queue)) {
		return pthread_self();
	}
	call_on(data, &q.head, answer_thread);
	gr_rcu_barrier(data->queue);
	return q.answer;
}

struct deferred {
	struct gr_rcu_head head;
	void (*fct)(void *p);
	void *p;
};

/* NULL, the default queue, where there is no memory for one of its own. */
static struct gr_rcu_queue *deferred_queue;
static struct gr_once deferred_once = GR_ONCE_INIT;

static void make_deferred_queue(void)
{
	struct gr_rcu_queue_params params = {
		.size = sizeof(params),
		.name = "gr-defer-rcu",
		.hard_count = DEFERRED_MAX,
	};

	(void)!gr_rcu_queue_create(&params, &deferred_queue, NULL);
}

static void run_deferred(struct gr_rcu_head *head)
{
	struct deferred *d = gr_container_of(head, struct deferred, head);

	d->fct(d->p);
	free(d);
}

void gr_urcu_defer(void (*fct)(void *p), void *p) GR_NO_TSA
{
	/* It may wait for room, which nobody does online. */
	bool online = gr_load_relaxed(&gr_rcu_self.ctr) == (GR_RCU_QS | 1);
	struct deferred *d = malloc(sizeof(*d));

	if (!d) {
		gr_rcu_synchronize();
		fct(p);
		return;
	}
	d->fct = fct;
	d->p = p;
	gr_once(&deferred_once, make_deferred_queue);
	if (online) {
		gr_rcu_thread_offline();
	}
	gr_rcu_call(deferred_queue, &d->head, run_deferred);
	if (online) {
		gr_rcu_thread_online();
	}
}

void gr_urcu_defer_barrier(void)
{
	gr_once(&deferred_once, make_deferred_queue);
	gr_rcu_barrier(deferred_queue);
}

const struct rcu_flavor_struct gr_urcu_flavor = GR_URCU_OBJECT_(GR_URCU_OBJECT_FLAVOR_, memb);
const struct rcu_flavor_struct gr_urcu_qsbr_flavor = GR_URCU_OBJECT_(GR_URCU_OBJECT_FLAVOR_, qsbr);

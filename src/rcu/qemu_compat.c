/* SPDX-License-Identifier: MIT */
/*
 * What QEMU's names (guestram/qemu-rcu.h) need beyond inline functions: the queue whose
 * callbacks run under the big lock, and notifiers that have no room for ours.
 */
#include "base/atomic.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "base/signals.h"
#include "rcu/rcu_internal.h"
#include <guestram/event.h>
#include <guestram/qemu-rcu.h>

static struct {
	void (*lock)(void); /* (c) once set */
	void (*unlock)(void);
	bool (*is_locked)(void);
	struct gr_rcu_queue *queue; /* (a) NULL: the default queue, without a lock */
} bql;

struct forcer {
	struct gr_rcu_notifier ours;
	void *theirs; /* (c) */
	void (*call)(void *theirs);
	struct forcer *next; /* (l) */
};

static struct {
	/* Protects the list. Not held while anything is called. */
	struct gr_mutex lock;
	struct forcer *first;	 /* (l) */
	struct gr_signals saved; /* (l) of who holds it: a handler that forks needs it */
} forcers = { .lock = GR_MUTEX_INIT(GR_RANK_QEMU_NOTIFIERS) };
static struct gr_once forcers_once = GR_ONCE_INIT;

static void lock_bql(void *unused)
{
	(void)unused;
	bql.lock();
}

static void unlock_bql(void *unused)
{
	(void)unused;
	bql.unlock();
}

static bool is_bql_locked(void *unused)
{
	(void)unused;
	return bql.is_locked();
}

void gr_qemu_rcu_set_lock(void (*lock)(void), void (*unlock)(void), bool (*is_locked)(void))
{
	struct gr_rcu_queue_params params = {
		.size = sizeof(params),
		.name = "call_rcu",
		.lock = lock_bql,
		.unlock = unlock_bql,
		.is_locked = is_bql_locked,
	};
	struct gr_rcu_queue *queue;
	struct gr_error err;

	if (!lock || !unlock || !is_locked) {
		gr_die("gr_qemu_rcu_set_lock() needs all three functions");
	}
	if (gr_load_acquire(&bql.queue)) {
		gr_die("gr_qemu_rcu_set_lock() a second time");
	}
	bql.lock = lock;
	bql.unlock = unlock;
	bql.is_locked = is_locked;
	if (gr_rcu_queue_create(&params, &queue, &err) < 0) {
		gr_die("gr_qemu_rcu_set_lock(): %s", err.msg);
	}
	gr_store_release(&bql.queue, queue); /* pairs with the acquires below */
}

void gr_qemu_call_rcu1(struct gr_rcu_head *head, RCUCBFunc *func)
{
#ifdef GR_MUTANT_QEMU_CALLBACKS_UNLOCKED
	gr_rcu_call_nolock(gr_load_acquire(&bql.queue), head, func);
#else
	gr_rcu_call(gr_load_acquire(&bql.queue), head, func);
#endif
}

void gr_qemu_free_rcu(struct gr_rcu_head *head, RCUCBFunc *func)
{
	gr_rcu_call_nolock(gr_load_acquire(&bql.queue), head, func);
}

void gr_qemu_drain_call_rcu(void)
{
	struct gr_rcu_queue *queue = gr_load_acquire(&bql.queue);

	if (queue && bql.is_locked()) {
		gr_rcu_drain(queue);
	} else {
		gr_rcu_barrier(queue);
	}
}

static void lock_forcers(void) GR_ACQUIRE(forcers.lock) GR_NO_TSA
{
	struct gr_signals saved;

	gr_signals_block(&saved);
	gr_mutex_lock(&forcers.lock);
	forcers.saved = saved;
}

static void unlock_forcers(void) GR_RELEASE(forcers.lock) GR_NO_TSA
{
	struct gr_signals saved = forcers.saved;

	gr_mutex_unlock(&forcers.lock);
	gr_signals_restore(&saved);
}

static void install_fork_handlers(void)
{
	int ret = gr_atfork(lock_forcers, unlock_forcers, unlock_forcers);

	if (ret != 0) {
		gr_die("no fork handlers for RCU notifiers: errno %d", -ret);
	}
}

void gr_qemu_fork_install(void)
{
	gr_once(&forcers_once, install_fork_handlers);
}

static void force(struct gr_rcu_notifier *ours)
{
	struct forcer *f = gr_container_of(ours, struct forcer, ours);

	f->call(f->theirs);
}

void gr_qemu_add_notifier(void *notifier, void (*call)(void *notifier))
{
	struct forcer *f = calloc(1, sizeof(*f));

	if (!f) {
		gr_die("no memory for an RCU notifier");
	}
	f->ours.func = force;
	f->theirs = notifier;
	f->call = call;
	gr_qemu_fork_install();
	lock_forcers();
	f->next = forcers.first;
	forcers.first = f;
	unlock_forcers();
	gr_rcu_add_notifier(&f->ours);
}

static struct forcer *take_out(void *notifier)
{
	struct forcer **where, *f;

	gr_qemu_fork_install();
	lock_forcers();
	for (where = &forcers.first; *where && (*where)->theirs != notifier;) {
		where = &(*where)->next;
	}
	f = *where;
	if (f) {
		*where = f->next;
	}
	unlock_forcers();
	return f;
}

void gr_qemu_remove_notifier(void *notifier)
{
	struct forcer *f = take_out(notifier);

	if (f) {
		gr_rcu_remove_notifier(&f->ours);
		free(f);
	}
}

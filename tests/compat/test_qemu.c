/* SPDX-License-Identifier: MIT */
/*
 * A program in QEMU's style: lists of each kind walked while they change, callbacks under a
 * big lock, guards, notifiers.
 */
#define COMPAT_FIRST <guestram/qemu-rcu.h>
#include "program.h"

enum { ALIVE = 0x600d, DEAD = 0xdead };

typedef struct Item {
	struct rcu_head rcu;
	int magic;
	int value;
	QLIST_ENTRY(Item) in_list;
	QSLIST_ENTRY(Item) in_slist;
	QSIMPLEQ_ENTRY(Item) in_simpleq;
	QTAILQ_ENTRY(Item) in_tailq;
} Item;

static QLIST_HEAD(, Item) list;
static QSLIST_HEAD(, Item) slist;
static QSIMPLEQ_HEAD(, Item) simpleq;
static QTAILQ_HEAD(, Item) tailq;
static unsigned long walks, reclaimed, stop;

static Item *new_item(int value)
{
	Item *it = NEW(Item);

	it->magic = ALIVE;
	it->value = value;
	return it;
}

static void reclaim(Item *it)
{
	ASSERT_EQ(it->magic, ALIVE);
	it->magic = DEAD;
	free(it);
	count(&reclaimed);
}

/* What a list says, as a decimal number. */
#define DIGITS(FOREACH, head, field)                            \
	__extension__({                                         \
		Item *digit_;                                   \
		int digits_ = 0;                                \
		FOREACH(digit_, head, field)                    \
		{                                               \
			digits_ = digits_ * 10 + digit_->value; \
		}                                               \
		digits_;                                        \
	})

TEST(each_kind_of_list_inserts_and_removes_anywhere)
{
	Item it[6];
	Item *p, *next;
	int seen = 0;

	for (int i = 0; i < 6; i++) {
		it[i].value = i;
	}
	rcu_register_thread();
	RCU_READ_LOCK_GUARD();

	QLIST_INIT(&list);
	ASSERT(QLIST_EMPTY_RCU(&list));
	QLIST_INSERT_HEAD_RCU(&list, &it[3], in_list);
	QLIST_INSERT_HEAD_RCU(&list, &it[1], in_list);
	QLIST_INSERT_AFTER_RCU(&it[3], &it[4], in_list);
	QLIST_INSERT_BEFORE_RCU(&it[3], &it[2], in_list);
	ASSERT_EQ(DIGITS(QLIST_FOREACH_RCU, &list, in_list), 1234);
	QLIST_REMOVE_RCU(&it[3], in_list);
	ASSERT_PTR_EQ(QLIST_NEXT_RCU(&it[3], in_list), &it[4]); /* who stands there goes on */
	QLIST_REMOVE_RCU(&it[1], in_list);
	QLIST_REMOVE_RCU(&it[4], in_list);
	ASSERT_EQ(DIGITS(QLIST_FOREACH_RCU, &list, in_list), 2);
	ASSERT_PTR_EQ(QLIST_FIRST_RCU(&list), &it[2]);

	QSLIST_INIT(&slist);
	ASSERT(QSLIST_EMPTY_RCU(&slist));
	QSLIST_INSERT_HEAD_RCU(&slist, &it[3], in_slist);
	QSLIST_INSERT_HEAD_RCU(&slist, &it[1], in_slist);
	QSLIST_INSERT_AFTER_RCU(&slist, &it[1], &it[2], in_slist);
	ASSERT_EQ(DIGITS(QSLIST_FOREACH_RCU, &slist, in_slist), 123);
	QSLIST_REMOVE_RCU(&slist, &it[2], Item, in_slist);
	ASSERT_EQ(DIGITS(QSLIST_FOREACH_RCU, &slist, in_slist), 13);
	QSLIST_REMOVE_HEAD_RCU(&slist, in_slist);
	QSLIST_REMOVE_RCU(&slist, &it[3], Item, in_slist);
	ASSERT(QSLIST_EMPTY_RCU(&slist));

	QSIMPLEQ_INIT(&simpleq);
	ASSERT(QSIMPLEQ_EMPTY_RCU(&simpleq));
	QSIMPLEQ_INSERT_TAIL_RCU(&simpleq, &it[2], in_simpleq);
	QSIMPLEQ_INSERT_TAIL_RCU(&simpleq, &it[4], in_simpleq);
	QSIMPLEQ_INSERT_HEAD_RCU(&simpleq, &it[1], in_simpleq);
	QSIMPLEQ_INSERT_AFTER_RCU(&simpleq, &it[2], &it[3], in_simpleq);
	QSIMPLEQ_INSERT_AFTER_RCU(&simpleq, &it[4], &it[5], in_simpleq);
	ASSERT_EQ(DIGITS(QSIMPLEQ_FOREACH_RCU, &simpleq, in_simpleq), 12345);
	QSIMPLEQ_REMOVE_RCU(&simpleq, &it[5], Item, in_simpleq);
	QSIMPLEQ_REMOVE_RCU(&simpleq, &it[2], Item, in_simpleq);
	QSIMPLEQ_REMOVE_HEAD_RCU(&simpleq, in_simpleq);
	QSIMPLEQ_INSERT_TAIL_RCU(&simpleq, &it[5], in_simpleq);
	ASSERT_EQ(DIGITS(QSIMPLEQ_FOREACH_RCU, &simpleq, in_simpleq), 345);
	QSIMPLEQ_FOREACH_SAFE_RCU(p, &simpleq, in_simpleq, next)
	{
		QSIMPLEQ_REMOVE_HEAD_RCU(&simpleq, in_simpleq);
	}
	QSIMPLEQ_INSERT_TAIL_RCU(&simpleq, &it[1], in_simpleq);
	ASSERT_PTR_EQ(QSIMPLEQ_FIRST_RCU(&simpleq), &it[1]);

	QTAILQ_INIT(&tailq);
	ASSERT(QTAILQ_EMPTY_RCU(&tailq));
	QTAILQ_INSERT_TAIL_RCU(&tailq, &it[2], in_tailq);
	QTAILQ_INSERT_TAIL_RCU(&tailq, &it[5], in_tailq);
	QTAILQ_INSERT_HEAD_RCU(&tailq, &it[1], in_tailq);
	QTAILQ_INSERT_AFTER_RCU(&tailq, &it[2], &it[3], in_tailq);
	QTAILQ_INSERT_BEFORE_RCU(&it[5], &it[4], in_tailq);
	ASSERT_EQ(DIGITS(QTAILQ_FOREACH_RCU, &tailq, in_tailq), 12345);
	for (QTailQLink *l = tailq.tqh_circ.tql_prev; l != &tailq.tqh_circ; l = l->tql_prev) {
		seen++; /* and back */
	}
	ASSERT_EQ(seen, 5);
	QTAILQ_REMOVE_RCU(&tailq, &it[5], in_tailq);
	QTAILQ_REMOVE_RCU(&tailq, &it[1], in_tailq);
	QTAILQ_REMOVE_RCU(&tailq, &it[3], in_tailq);
	QTAILQ_INSERT_TAIL_RCU(&tailq, &it[1], in_tailq);
	ASSERT_EQ(DIGITS(QTAILQ_FOREACH_RCU, &tailq, in_tailq), 241);
	QTAILQ_FOREACH_SAFE_RCU(p, &tailq, in_tailq, next)
	{
		QTAILQ_REMOVE_RCU(&tailq, p, in_tailq);
	}
	ASSERT(QTAILQ_EMPTY_RCU(&tailq));
	ASSERT_PTR_EQ(tailq.tqh_circ.tql_prev, &tailq.tqh_circ);
}

#define WALK(FOREACH, head, field)                                \
	do {                                                      \
		Item *walked_;                                    \
		WITH_RCU_READ_LOCK_GUARD()                        \
		{                                                 \
			FOREACH(walked_, head, field)             \
			{                                         \
				ASSERT_EQ(walked_->magic, ALIVE); \
			}                                         \
		}                                                 \
	} while (0)

static void *walk(void *arg)
{
	(void)arg;
	rcu_register_thread();
	while (!peek(&stop)) {
		WALK(QLIST_FOREACH_RCU, &list, in_list);
		WALK(QSLIST_FOREACH_RCU, &slist, in_slist);
		WALK(QSIMPLEQ_FOREACH_RCU, &simpleq, in_simpleq);
		WALK(QTAILQ_FOREACH_RCU, &tailq, in_tailq);
		count(&walks);
	}
	rcu_unregister_thread();
	return NULL;
}

static void insert(Item *it, bool first)
{
	QLIST_INSERT_HEAD_RCU(&list, it, in_list);
	QSLIST_INSERT_HEAD_RCU(&slist, it, in_slist);
	if (first) {
		QSIMPLEQ_INSERT_HEAD_RCU(&simpleq, it, in_simpleq);
		QTAILQ_INSERT_TAIL_RCU(&tailq, it, in_tailq);
	} else {
		QSIMPLEQ_INSERT_TAIL_RCU(&simpleq, it, in_simpleq);
		QTAILQ_INSERT_HEAD_RCU(&tailq, it, in_tailq);
	}
}

static void take_out(Item *it)
{
	QLIST_REMOVE_RCU(it, in_list);
	QSLIST_REMOVE_RCU(&slist, it, Item, in_slist);
	QSIMPLEQ_REMOVE_RCU(&simpleq, it, Item, in_simpleq);
	QTAILQ_REMOVE_RCU(&tailq, it, in_tailq);
}

TEST(readers_walk_all_lists_while_they_change)
{
	enum { ITEMS = 8, READERS = 2, CHANGES = 2000 };
	Item *at[ITEMS] = { NULL };
	unsigned long changes = 0, freed_otherwise = 0;
	pthread_t t[READERS];

	QSIMPLEQ_INIT(&simpleq);
	QTAILQ_INIT(&tailq);
	for (int i = 0; i < READERS; i++) {
		t[i] = start(walk, NULL);
	}
	for (; changes < CHANGES || peek(&walks) < 100; changes++) {
		Item **slot = &at[changes * 5 % ITEMS], *old = *slot;

		*slot = new_item((int)changes);
		insert(*slot, changes % 3 == 0);
		if (!old) {
			freed_otherwise++; /* nothing yet */
			continue;
		}
		take_out(old);
		if (changes % 64 == 0) {
			synchronize_rcu();
			reclaim(old);
		} else if (changes % 2 == 0) {
			g_free_rcu(old, rcu);
			freed_otherwise++;
		} else {
			call_rcu(old, reclaim, rcu);
		}
	}
	__atomic_store_n(&stop, 1UL, __ATOMIC_RELEASE);
	for (int i = 0; i < READERS; i++) {
		join(t[i]);
	}
	drain_call_rcu();
	ASSERT_EQ(peek(&reclaimed) + freed_otherwise, changes);
	for (int i = 0; i < ITEMS; i++) {
		free(at[i]);
	}
}

static int leave_by(int way)
{
	for (int i = 0; i < 2; i++) {
		WITH_RCU_READ_LOCK_GUARD()
		{
			WITH_RCU_READ_LOCK_GUARD()
			{
				ASSERT(gr_rcu_read_ongoing());
				if (way == 0) {
					break;
				}
				if (way == 1) {
					return 1;
				}
			}
			if (way == 2) {
				goto out;
			}
		}
		ASSERT(!gr_rcu_read_ongoing());
	}
out:
	ASSERT(!gr_rcu_read_ongoing());
	RCU_READ_LOCK_GUARD();
	ASSERT(gr_rcu_read_ongoing());
	return 0;
}

TEST(guards_end_their_section_by_whatever_way_it_is_left)
{
	for (int way = 0; way < 4; way++) {
		ASSERT_EQ(leave_by(way), way == 1);
		ASSERT(!gr_rcu_read_ongoing());
	}
}

/* ---- The big lock ------------------------------------------------------------------------------
 */

static pthread_mutex_t bql_mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread bool bql_held;
static unsigned long under_lock;

static void bql_lock(void)
{
	(void)pthread_mutex_lock(&bql_mutex);
	bql_held = true;
}

static void bql_unlock(void)
{
	bql_held = false;
	(void)pthread_mutex_unlock(&bql_mutex);
}

static bool bql_locked(void)
{
	return bql_held;
}

static void count_lock(Item *it)
{
	ASSERT(bql_held);
	count(&under_lock);
	free(it);
}

/* A reader that wants the lock inside its section, as device emulation does. */
static void *read_and_lock(void *arg)
{
	sem_t *in = (sem_t *)arg;

	rcu_read_lock();
	(void)sem_post(in);
	bql_lock();
	bql_unlock();
	rcu_read_unlock();
	return NULL;
}

TEST(callbacks_run_under_the_lock_and_drain_lets_readers_have_it)
{
	Item *plain = new_item(0);
	pthread_t t;
	sem_t in;

	gr_qemu_rcu_set_lock(bql_lock, bql_unlock, bql_locked);
	(void)sem_init(&in, 0, 0);
	bql_lock();
	t = start(read_and_lock, &in);
	await(&in);
	call_rcu(new_item(1), count_lock, rcu);
	g_free_rcu(plain, rcu);
	a_while();
	ASSERT_EQ(peek(&under_lock), 0); /* the lock is ours, the reader inside */
	drain_call_rcu();
	ASSERT(bql_held);
	ASSERT_EQ(peek(&under_lock), 1);
	bql_unlock();
	join(t);

	call_rcu(new_item(2), count_lock, rcu);
	drain_call_rcu(); /* without the lock */
	ASSERT(!bql_held);
	ASSERT_EQ(peek(&under_lock), 2);
}

static Notifier kick;
static unsigned long kicks;

static void end_loop(Notifier *n, void *data)
{
	ASSERT_PTR_EQ(n, &kick);
	ASSERT(!data);
	count(&kicks);
}

static void *loop_until_kicked(void *arg)
{
	sem_t *in = (sem_t *)arg;

	kick.notify = end_loop;
	rcu_register_thread();
	rcu_add_force_rcu_notifier(&kick);
	rcu_read_lock();
	(void)sem_post(in);
	await_count(&kicks, 1);
	rcu_read_unlock();
	rcu_remove_force_rcu_notifier(&kick);
	rcu_remove_force_rcu_notifier(&kick); /* not there: nothing happens */
	rcu_unregister_thread();
	return NULL;
}

TEST(a_reader_that_lingers_is_notified)
{
	pthread_t t;
	sem_t in;

	(void)sem_init(&in, 0, 0);
	t = start(loop_until_kicked, &in);
	await(&in);
	synchronize_rcu(); /* ends only because the reader hears of it */
	ASSERT_GE(peek(&kicks), 1);
	join(t);
}

TEST(fork_handlers_may_be_switched_and_pointers_published)
{
	Item it, *p = NULL;

	rcu_enable_atfork();
	rcu_disable_atfork();
	qatomic_rcu_set(&p, &it);
	ASSERT_PTR_EQ(qatomic_rcu_read(&p), &it);
	atomic_rcu_set(&p, NULL);
	ASSERT(!atomic_rcu_read(&p));
}

TEST_MAIN()

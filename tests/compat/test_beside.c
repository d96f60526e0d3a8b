/* SPDX-License-Identifier: MIT */
/*
 * The rest of liburcu beside our RCU: its atomics, its queue, and its hash table, whose library
 * works with any flavour object and gets ours.
 */
#include "program.h"
#include <urcu.h>
#include <urcu/arch.h>
#include <urcu/rculfhash.h>
#include <urcu/rculfqueue.h>
#include <urcu/uatomic.h>
#include <urcu/urcu-qsbr.h>
#include <urcu/wfcqueue.h>

enum { ALIVE = 0x600d, DEAD = 0xdead };

struct work {
	struct cds_wfcq_node node;
	long n;
};

TEST(atomics_and_queues_of_liburcu_work_beside)
{
	struct __cds_wfcq_head head;
	struct cds_wfcq_tail tail;
	struct cds_wfcq_node *node, *next;
	struct work work[3];
	long sum = 0, seen = 0;

	__cds_wfcq_init(&head, &tail);
	for (long i = 0; i < 3; i++) {
		cds_wfcq_node_init(&work[i].node);
		work[i].n = i + 1;
		(void)cds_wfcq_enqueue(&head, &tail, &work[i].node);
	}
	__cds_wfcq_for_each_blocking_safe(&head, &tail, node, next)
	{
		uatomic_add(&sum, caa_container_of(node, struct work, node)->n);
		seen++;
	}
	cmm_smp_mb();
	ASSERT_EQ(uatomic_read(&sum), 6);
	ASSERT_EQ(uatomic_xchg(&sum, 0), 6);
	ASSERT_EQ(seen, 3);
}

struct entry {
	struct cds_lfht_node node;
	unsigned long key;
	int magic;
	struct rcu_head rcu_head;
};

static struct cds_lfht *table;
static const struct rcu_flavor_struct *flavor;
static unsigned long lookups, freed, stop;

static int has_key(struct cds_lfht_node *node, const void *key)
{
	return caa_container_of(node, struct entry, node)->key == *(const unsigned long *)key;
}

static unsigned long hash_of(unsigned long key)
{
	return key * 0x9e3779b97f4a7c15ul;
}

static void free_entry(struct rcu_head *head)
{
	struct entry *e = caa_container_of(head, struct entry, rcu_head);

	e->magic = DEAD;
	free(e);
	count(&freed);
}

static struct entry *look_up(unsigned long key)
{
	struct cds_lfht_iter iter;
	struct cds_lfht_node *node;

	cds_lfht_lookup(table, hash_of(key), has_key, &key, &iter);
	node = cds_lfht_iter_get_node(&iter);
	return node ? caa_container_of(node, struct entry, node) : NULL;
}

enum { KEYS = 512, ROUNDS = 20 };

static void *look_all_up(void *arg)
{
	(void)arg;
	flavor->register_thread();
	while (!peek(&stop)) {
		for (unsigned long key = 0; key < KEYS; key++) {
			struct entry *e;

			flavor->read_lock();
			e = look_up(key);
			ASSERT(!e || (e->key == key && e->magic == ALIVE));
			flavor->read_unlock();
			flavor->read_quiescent_state();
		}
		count(&lookups);
	}
	flavor->unregister_thread();
	return NULL;
}

static void add(unsigned long key)
{
	struct entry *e = NEW(struct entry);

	e->key = key;
	e->magic = ALIVE;
	cds_lfht_node_init(&e->node);
	flavor->read_lock();
	ASSERT_PTR_EQ(cds_lfht_add_unique(table, hash_of(key), has_key, &key, &e->node), &e->node);
	flavor->read_unlock();
}

static void del(unsigned long key)
{
	struct entry *e;

	flavor->read_lock();
	e = look_up(key);
	ASSERT(e);
	ASSERT_EQ(cds_lfht_del(table, &e->node), 0);
	flavor->update_call_rcu(&e->rcu_head, free_entry);
	flavor->read_unlock();
}

/* Grows and shrinks while others look up: resizing waits for grace periods of our flavour. */
static void use_table(const struct rcu_flavor_struct *f, int flags)
{
	pthread_t t;

	flavor = f;
	flavor->register_thread();
	table = cds_lfht_new_flavor(1, 1, 0, flags, flavor, NULL);
	ASSERT(table);
	t = start(look_all_up, NULL);
	for (int round = 0; round < ROUNDS || peek(&lookups) < 10; round++) {
		for (unsigned long key = 0; key < KEYS; key++) {
			add(key);
		}
		flavor->read_quiescent_state();
		cds_lfht_resize(table, round % 2 ? 1 : KEYS); /* online: it has sections */
		for (unsigned long key = 0; key < KEYS; key++) {
			del(key);
		}
		flavor->read_quiescent_state();
	}
	__atomic_store_n(&stop, 1UL, __ATOMIC_RELEASE);
	flavor->thread_offline();
	join(t);
	flavor->barrier();
	ASSERT_EQ(peek(&freed) % KEYS, 0);
	ASSERT_GE(peek(&freed), KEYS * ROUNDS);
	ASSERT_EQ(cds_lfht_destroy(table, NULL), 0);
	flavor->thread_online();
	flavor->unregister_thread();
}

/* liburcu-cds is not built with the sanitizer, which so cannot see how it orders. */
#define SKIP_UNDER_TSAN()                                        \
	do {                                                     \
		if (test_under_tsan()) {                         \
			SKIP("liburcu-cds is not instrumented"); \
		}                                                \
	} while (0)

TEST(liburcus_hash_table_works_with_ordinary_readers)
{
	SKIP_UNDER_TSAN();
	use_table(&urcu_memb_flavor, CDS_LFHT_AUTO_RESIZE | CDS_LFHT_ACCOUNTING);
}

TEST(liburcus_hash_table_works_with_quiescent_states)
{
	SKIP_UNDER_TSAN();
	/* Not resized by a thread of its own as well: that one takes a mutex while it is online. */
	use_table(&urcu_qsbr_flavor, 0);
}

struct queued {
	struct cds_lfq_node_rcu node;
	int n;
};

TEST(liburcus_queue_frees_its_dummies_with_our_call_rcu)
{
	struct cds_lfq_queue_rcu queue;
	struct queued q[100];

	urcu_memb_register_thread();
	cds_lfq_init_rcu(&queue, urcu_memb_call_rcu);
	for (int i = 0; i < 100; i++) {
		cds_lfq_node_init_rcu(&q[i].node);
		q[i].n = i;
		urcu_memb_read_lock();
		cds_lfq_enqueue_rcu(&queue, &q[i].node);
		urcu_memb_read_unlock();
	}
	for (int i = 0; i < 100; i++) {
		struct cds_lfq_node_rcu *node;

		urcu_memb_read_lock();
		node = cds_lfq_dequeue_rcu(&queue);
		urcu_memb_read_unlock();
		ASSERT(node);
		ASSERT_EQ(caa_container_of(node, struct queued, node)->n, i);
	}
	urcu_memb_barrier();
	ASSERT_EQ(cds_lfq_destroy_rcu(&queue), 0);
	urcu_memb_unregister_thread();
}

TEST_MAIN()

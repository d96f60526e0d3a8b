/* SPDX-License-Identifier: MIT */
/*
 * A program as liburcu's users write them, with names without a flavour: built many times,
 * once for each way to choose one (meson.build here), in C and C++. COMPAT_QSBR says which kind
 * of readers it must have got.
 */
#include "program.h"

#ifdef COMPAT_WRONG
/* The wrong mapping that a test must notice: ordinary readers for those of qsbr. */
#	define rcu_register_thread   urcu_memb_register_thread
#	define rcu_unregister_thread urcu_memb_unregister_thread
#	define rcu_quiescent_state   urcu_memb_quiescent_state
#	define rcu_thread_offline    urcu_memb_thread_offline
#	define rcu_thread_online     urcu_memb_thread_online
#endif

enum { ALIVE = 0x600d, DEAD = 0xdead };

struct item {
	int magic;
	int value;
	struct cds_list_head node;
	struct rcu_head rcu_head;
};

static CDS_LIST_HEAD(items);
static unsigned long walks, freed, stop;

static void free_item(struct rcu_head *head)
{
	struct item *it = caa_container_of(head, struct item, rcu_head);

	it->magic = DEAD;
	free(it);
	count(&freed);
}

static struct item *new_item(int value)
{
	struct item *it = NEW(struct item);

	it->magic = ALIVE;
	it->value = value;
	return it;
}

static void *walk(void *arg)
{
	(void)arg;
	rcu_register_thread();
	while (!peek(&stop)) {
		struct item *it;
		int last = -1;

		rcu_read_lock();
		cds_list_for_each_entry_rcu(it, &items, node)
		{
			ASSERT_EQ(it->magic, ALIVE);
			ASSERT_LT(last, it->value);
			last = it->value;
		}
		rcu_read_unlock();
		rcu_quiescent_state();
		count(&walks);
	}
	rcu_unregister_thread();
	return NULL;
}

TEST(readers_walk_a_list_while_it_changes)
{
	enum { ITEMS = 8, READERS = 2, CHANGES = 2000 };
	struct item *at[ITEMS];
	unsigned long changes = 0;
	pthread_t t[READERS];

#ifndef COMPAT_QSBR /* which has none */
	rcu_init();
#endif
	for (int i = 0; i < ITEMS; i++) {
		at[i] = new_item(i);
		cds_list_add_tail_rcu(&at[i]->node, &items);
	}
	for (int i = 0; i < READERS; i++) {
		t[i] = start(walk, NULL);
	}
	while (changes < CHANGES || peek(&walks) < 100) {
		struct item *old = at[changes % ITEMS], *it = new_item(old->value);

		if (old->value == 0 && changes % 3 == 0) {
			cds_list_del_rcu(&old->node);
			cds_list_add_rcu(&it->node, &items);
		} else {
			cds_list_replace_rcu(&old->node, &it->node);
		}
		at[changes % ITEMS] = it;
		if (changes++ % 64 == 0) {
			synchronize_rcu();
			free_item(&old->rcu_head);
		} else {
			call_rcu(&old->rcu_head, free_item);
		}
	}
	__atomic_store_n(&stop, 1UL, __ATOMIC_RELEASE);
	for (int i = 0; i < READERS; i++) {
		join(t[i]);
	}
	rcu_barrier();
	ASSERT_EQ(peek(&freed), changes);
}

/* A reader that stops at places. */
struct reader {
	sem_t is_there, go_on;
};

static void stop_here(struct reader *r)
{
	(void)sem_post(&r->is_there);
	await(&r->go_on);
}

static void *read_twice(void *arg)
{
	struct reader *r = (struct reader *)arg;

	rcu_register_thread();
	rcu_read_lock();
	rcu_read_lock();
	rcu_read_unlock();
	ASSERT(rcu_read_ongoing());
	stop_here(r);
	rcu_read_unlock();
	stop_here(r);
	rcu_quiescent_state();
	rcu_thread_offline();
	stop_here(r);
	rcu_thread_online();
	rcu_unregister_thread();
	ASSERT(!rcu_read_ongoing());
	return NULL;
}

static void set_flag(struct rcu_head *head)
{
	struct item *it = caa_container_of(head, struct item, rcu_head);

	__atomic_store_n(&it->value, 1, __ATOMIC_RELEASE);
}

TEST(a_grace_period_ends_when_its_readers_have_left)
{
	struct urcu_gp_poll_state inside, outside;
	struct item *it = new_item(0);
	struct reader r;
	pthread_t t;

	(void)sem_init(&r.is_there, 0, 0);
	(void)sem_init(&r.go_on, 0, 0);
	t = start(read_twice, &r);

	await(&r.is_there); /* in a section */
	inside = start_poll_synchronize_rcu();
	call_rcu(&it->rcu_head, set_flag);
	a_while();
	ASSERT(!poll_state_synchronize_rcu(inside));
	ASSERT_EQ(__atomic_load_n(&it->value, __ATOMIC_ACQUIRE), 0);

	(void)sem_post(&r.go_on);
	await(&r.is_there); /* behind it, no quiescent state yet */
#ifdef COMPAT_QSBR
	a_while();
	ASSERT(!poll_state_synchronize_rcu(inside));
	ASSERT_EQ(__atomic_load_n(&it->value, __ATOMIC_ACQUIRE), 0);
#else
	synchronize_rcu();
	ASSERT(poll_state_synchronize_rcu(inside));
#endif

	(void)sem_post(&r.go_on);
	await(&r.is_there); /* offline, blocked */
	synchronize_rcu();
	ASSERT(poll_state_synchronize_rcu(inside));
	rcu_barrier();
	ASSERT_EQ(__atomic_load_n(&it->value, __ATOMIC_ACQUIRE), 1);
	outside = start_poll_synchronize_rcu();
	while (!poll_state_synchronize_rcu(outside)) {
		(void)usleep(100);
	}
	(void)sem_post(&r.go_on);
	join(t);
	free(it);
}

struct call {
	struct rcu_head head;
	pthread_t on;
	unsigned long done;
	int naps;
};

static void note_thread(struct rcu_head *head)
{
	struct call *c = caa_container_of(head, struct call, head);

	for (int i = 0; i < c->naps; i++) {
		a_while();
	}
	c->on = pthread_self();
	__atomic_store_n(&c->done, 1UL, __ATOMIC_RELEASE);
}

TEST(callbacks_go_to_the_threads_worker_and_barrier_waits_for_all)
{
	struct call_rcu_data *mine = create_call_rcu_data(URCU_CALL_RCU_RT, -1);
	struct call_rcu_data *other = create_call_rcu_data(0, 0);
	struct call a, b, c;

	ASSERT(mine && other);
	a.done = b.done = c.done = 0;
	a.naps = 0;
	b.naps = c.naps = 10;
	call_rcu(&a.head, note_thread);
	ASSERT(!get_thread_call_rcu_data());
	ASSERT_PTR_EQ(get_call_rcu_data(), get_default_call_rcu_data());
	set_thread_call_rcu_data(mine);
	ASSERT_PTR_EQ(get_thread_call_rcu_data(), mine);
	ASSERT_PTR_EQ(get_call_rcu_data(), mine);
	call_rcu(&b.head, note_thread);
	set_thread_call_rcu_data(other);
	call_rcu(&c.head, note_thread);
	set_thread_call_rcu_data(NULL);
	rcu_barrier();
	ASSERT_EQ(a.done + b.done + c.done, 3);
	ASSERT(pthread_equal(a.on, get_call_rcu_thread(get_default_call_rcu_data())));
	ASSERT(pthread_equal(b.on, get_call_rcu_thread(mine)));
	ASSERT(pthread_equal(c.on, get_call_rcu_thread(other)));
	ASSERT(!pthread_equal(a.on, b.on) && !pthread_equal(b.on, c.on));

	b.done = 0;
	set_thread_call_rcu_data(mine);
	call_rcu(&b.head, note_thread);
	set_thread_call_rcu_data(NULL);
	call_rcu_data_free(mine);
	ASSERT_EQ(b.done, 1);
	call_rcu_data_free(other);
	call_rcu_data_free(NULL);
	call_rcu_data_free(get_default_call_rcu_data());
	ASSERT(!create_call_rcu_data(1UL << 20, -1));
}

TEST(each_cpu_can_have_a_worker)
{
	enum { CALLS = 10 };
	long cpus = sysconf(_SC_NPROCESSORS_CONF);
	struct call_rcu_data *d = create_call_rcu_data(0, -1);
	struct call calls[CALLS];

	ASSERT_EQ(set_cpu_call_rcu_data((int)cpus, d), -EINVAL);
	ASSERT_EQ(set_cpu_call_rcu_data(-1, d), -EINVAL);
	ASSERT(!get_cpu_call_rcu_data(0));
	ASSERT_EQ(set_cpu_call_rcu_data(0, d), 0);
	errno = 0;
	ASSERT_EQ(set_cpu_call_rcu_data(0, d), -EEXIST);
	ASSERT_EQ(errno, EEXIST);
	ASSERT_EQ(create_all_cpu_call_rcu_data(0), 0);
	ASSERT_PTR_EQ(get_cpu_call_rcu_data(0), d);
	for (int cpu = 0; cpu < cpus; cpu++) {
		ASSERT(get_cpu_call_rcu_data(cpu));
	}
	ASSERT(!get_cpu_call_rcu_data((int)cpus));
	for (int i = 0; i < CALLS; i++) {
		calls[i].naps = 1;
		calls[i].done = 0;
		call_rcu(&calls[i].head, note_thread);
	}
	ASSERT(get_call_rcu_data() != get_default_call_rcu_data());
	rcu_barrier();
	for (int i = 0; i < CALLS; i++) {
		ASSERT_EQ(calls[i].done, 1);
		calls[i].done = 0;
		call_rcu(&calls[i].head, note_thread);
	}
	free_all_cpu_call_rcu_data();
	for (int i = 0; i < CALLS; i++) {
		ASSERT_EQ(calls[i].done, 1);
	}
	ASSERT(!get_cpu_call_rcu_data(0));
	ASSERT_PTR_EQ(get_call_rcu_data(), get_default_call_rcu_data());
}

enum { DEFERRED = 5000 };
static unsigned long deferred_seen;

static void see_number(void *p)
{
	ASSERT_EQ((unsigned long)(uintptr_t)p, peek(&deferred_seen));
	count(&deferred_seen);
}

TEST(deferred_calls_run_in_order_and_the_barriers_wait_for_them)
{
	unsigned long n = 0;

	rcu_register_thread();
	ASSERT_EQ(rcu_defer_register_thread(), 0);
	while (n < DEFERRED) {
		defer_rcu(see_number, (void *)(uintptr_t)n++);
	}
	rcu_defer_barrier();
	ASSERT_EQ(peek(&deferred_seen), n);
	defer_rcu(see_number, (void *)(uintptr_t)n++);
	rcu_defer_barrier_thread();
	ASSERT_EQ(peek(&deferred_seen), n);
	defer_rcu(see_number, (void *)(uintptr_t)n++);
	rcu_defer_unregister_thread();
	ASSERT_EQ(peek(&deferred_seen), n);
	rcu_unregister_thread();
}

static struct reader in_callback;

static void stop_in_section(struct rcu_head *head)
{
	(void)head;
	rcu_read_lock();
	stop_here(&in_callback);
	rcu_read_unlock();
}

TEST(a_callback_is_a_reader_too)
{
	struct urcu_gp_poll_state state;
	struct rcu_head head;

	(void)sem_init(&in_callback.is_there, 0, 0);
	(void)sem_init(&in_callback.go_on, 0, 0);
	rcu_register_thread();
	rcu_thread_offline();
	call_rcu(&head, stop_in_section);
	await(&in_callback.is_there);
	state = start_poll_synchronize_rcu();
	a_while();
	ASSERT(!poll_state_synchronize_rcu(state));
	(void)sem_post(&in_callback.go_on);
	rcu_barrier();
	synchronize_rcu();
	ASSERT(poll_state_synchronize_rcu(state));
	rcu_unregister_thread();
}

TEST(pointers_are_published_exchanged_and_compared)
{
	struct item *a = new_item(1), *b = new_item(2), *p = NULL;
	struct item *const fixed = a;
	const struct item *view = NULL;
	void *any = NULL;

	rcu_register_thread();
	rcu_read_lock();
	rcu_assign_pointer(p, a);
	ASSERT_EQ(rcu_dereference(p)->value, 1);
	rcu_set_pointer(&p, b);
	ASSERT_PTR_EQ(rcu_dereference(p), b);
	ASSERT_PTR_EQ(rcu_xchg_pointer(&p, a), b);
	ASSERT_PTR_EQ(rcu_cmpxchg_pointer(&p, b, NULL), a);
	ASSERT_PTR_EQ(p, a);
	ASSERT_PTR_EQ(rcu_cmpxchg_pointer(&p, a, b), a);
	ASSERT_PTR_EQ(p, b);
	ASSERT_PTR_EQ(rcu_dereference(fixed), a);
	rcu_assign_pointer(view, rcu_dereference(p));
	ASSERT_PTR_EQ(view, b);
	rcu_assign_pointer(p, NULL);
	ASSERT(!rcu_dereference(p));
	ASSERT_PTR_EQ(rcu_set_pointer_sym(&any, a), a);
	ASSERT_PTR_EQ(rcu_dereference(any), a);
	ASSERT_PTR_EQ(rcu_xchg_pointer_sym(&any, b), a);
	ASSERT_PTR_EQ(rcu_cmpxchg_pointer_sym(&any, b, NULL), b);
	ASSERT_PTR_EQ(rcu_dereference_sym(a), a);
	rcu_read_unlock();
	rcu_unregister_thread();
	free(a);
	free(b);
}

struct leaf {
	int value;
	struct cds_hlist_node node;
};

TEST(hash_bucket_lists_are_walked_in_every_way)
{
	struct leaf leaves[3], *l;
	struct cds_hlist_node *n;
	CDS_HLIST_HEAD(bucket);
	int seen = 0;

	rcu_register_thread();
	for (int i = 0; i < 3; i++) {
		leaves[i].value = 1 << i;
		cds_hlist_add_head_rcu(&leaves[i].node, &bucket);
	}
	rcu_read_lock();
	cds_hlist_for_each_rcu(n, &bucket)
	{
		seen += caa_container_of(n, struct leaf, node)->value;
	}
	ASSERT_EQ(seen, 7);
	cds_hlist_del_rcu(&leaves[1].node);
	ASSERT_PTR_EQ(leaves[1].node.next, &leaves[0].node); /* who stands there goes on */
	cds_hlist_for_each_entry_rcu(l, n, &bucket, node)
	{
		seen = seen * 10 + l->value;
	}
	ASSERT_EQ(seen, 741);
	cds_hlist_del_rcu(&leaves[2].node);
	seen = 0;
	cds_hlist_for_each_entry_rcu_2(l, &bucket, node)
	{
		seen = seen * 10 + l->value;
	}
	ASSERT_EQ(seen, 1);
	cds_hlist_del_rcu(&leaves[0].node);
	cds_hlist_for_each_entry_rcu_2(l, &bucket, node)
	{
		FAIL("an empty bucket has an entry");
	}
	rcu_read_unlock();
	rcu_unregister_thread();
}

TEST(plain_lists_share_their_type)
{
	struct item its[4], *it, *next;
	CDS_LIST_HEAD(one);
	CDS_LIST_HEAD(two);
	int seen = 0;

	for (int i = 0; i < 4; i++) {
		its[i].value = i + 1;
		cds_list_add_tail(&its[i].node, i < 2 ? &one : &two);
	}
	cds_list_splice(&one, &two);
	CDS_INIT_LIST_HEAD(&one);
	cds_list_move(&its[3].node, &two); /* 4 1 2 3 */
	cds_list_replace(&its[1].node, &one);
	cds_list_replace(&one, &its[1].node);
	cds_list_for_each_entry(it, &two, node)
	{
		seen = seen * 10 + it->value;
	}
	ASSERT_EQ(seen, 4123);
	cds_list_for_each_entry_reverse(it, &two, node)
	{
		seen = seen * 10 + it->value;
	}
	ASSERT_EQ(seen, 41233214);
	ASSERT_PTR_EQ(cds_list_first_entry(&two, struct item, node), &its[3]);
	cds_list_for_each_entry_safe(it, next, &two, node)
	{
		cds_list_del_rcu(&it->node);
	}
	ASSERT(cds_list_empty(&two));
}

TEST(a_flavour_object_does_what_the_functions_do)
{
	const struct rcu_flavor_struct *f = &rcu_flavor;
	struct item *it = new_item(0);
	struct urcu_gp_poll_state state;

	f->register_thread();
	f->read_lock();
	ASSERT(f->read_ongoing());
	f->update_call_rcu(&it->rcu_head, free_item);
	f->read_unlock();
	f->read_quiescent_state();
	f->thread_offline();
	ASSERT(!f->read_ongoing());
	f->thread_online();
	f->update_synchronize_rcu();
	f->barrier();
	ASSERT_EQ(peek(&freed), 1);
	f->update_defer_rcu(see_number, NULL);
	rcu_defer_barrier();
	ASSERT_EQ(peek(&deferred_seen), 1);
	state = f->update_start_poll_synchronize_rcu();
	f->update_synchronize_rcu();
	ASSERT(f->update_poll_state_synchronize_rcu(state));
	f->unregister_thread();
}

TEST_MAIN()

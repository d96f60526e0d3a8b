/* SPDX-License-Identifier: MIT */
/*
 * Interleavings of readers and writers of the RAM list, replayed one by one (GR_HOOK() in
 * base/hook.h). The lookup cache is put beside the usual design, one shared pointer to the
 * most recently used block, which exists only here: the interleaving that breaks it must
 * not break ours.
 */
#include "harness.h"
#include "ram/ram.h"
#include <guestram/ram.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

void gr_test_hook(const char *place);

static void (*on_hook)(const char *place); /* (a) callbacks' thread looks at it too */

void gr_test_hook(const char *place)
{
	void (*fn)(const char *place) = __atomic_load_n(&on_hook, __ATOMIC_ACQUIRE);

	if (fn) {
		fn(place);
	}
}

static struct gr_ram *make(void)
{
	struct gr_ram *ram;

	if (gr_ram_create(NULL, &ram, NULL) < 0) {
		FAIL("no memory");
	}
	return ram;
}

static struct gr_ram_block *add(struct gr_ram *ram, const char *id, uint64_t gpa, uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = id, .used_bytes = bytes, .mapped = true,
		.gpa = gr_gpa(gpa), .backing = GR_RAM_ANONYMOUS,
	};
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

/*
 * The interleaving, told once for both protocols:
 *   reader 1: in a section, finds X ........ stops
 *   writer:   takes X off the list, clears shared caches, has X freed after a grace period
 *   reader 1: stores X where it remembers it, leaves its section
 *   (the grace period ends, X is freed)
 *   reader 2 or 1: in a new section, looks the same address up
 */
struct protocol {
	struct gr_ram_block *(*lookup)(struct gr_ram *ram, gr_ram_addr_t addr);
	void (*forget)(void); /* what the writer does to the cache */
};

static struct gr_ram *the_ram;
static gr_ram_addr_t the_addr;
static sem_t found, removed, stored, freed;
static __thread bool stop_when_found;
static struct gr_ram_block *second_answer;

static void stop_at_found(const char *place)
{
	if (stop_when_found && strcmp(place, "lookup: found") == 0) {
		stop_when_found = false;
		sem_post(&found);
		sem_wait(&removed);
	}
}

static void *reader(void *arg)
{
	const struct protocol *p = arg;

	stop_when_found = true;
	gr_rcu_read_lock();
	ASSERT(p->lookup(the_ram, the_addr) != NULL);
	gr_rcu_read_unlock();
	sem_post(&stored);
	sem_wait(&freed);
	gr_rcu_read_lock();
	second_answer = p->lookup(the_ram, the_addr);
	gr_rcu_read_unlock();
	return NULL;
}

/* What the second lookup answers where nothing is any more. */
static struct gr_ram_block *replay(const struct protocol *p)
{
	struct gr_ram_block *x;
	pthread_t thread;

	the_ram = make();
	add(the_ram, "other", 0, 1 << 20);
	x = add(the_ram, "x", 1 << 20, 1 << 20);
	the_addr = x->offset;
	sem_init(&found, 0, 0);
	sem_init(&removed, 0, 0);
	sem_init(&stored, 0, 0);
	sem_init(&freed, 0, 0);
	__atomic_store_n(&on_hook, stop_at_found, __ATOMIC_RELEASE);
	ASSERT_EQ(pthread_create(&thread, NULL, reader, (void *)(uintptr_t)p), 0);
	sem_wait(&found);
	ASSERT_EQ(gr_ram_block_del(x, NULL), 0);
	p->forget();
	sem_post(&removed);
	sem_wait(&stored);
	gr_rcu_barrier(NULL); /* x and its index are freed */
	sem_post(&freed);
	pthread_join(thread, NULL);
	__atomic_store_n(&on_hook, NULL, __ATOMIC_RELEASE);
	gr_ram_free(the_ram);
	return second_answer;
}

static void forget_nothing(void)
{
}

static struct gr_ram_block *our_lookup(struct gr_ram *ram, gr_ram_addr_t addr)
	GR_REQUIRES_SHARED(gr_rcu_section);
static struct gr_ram_block *our_lookup(struct gr_ram *ram, gr_ram_addr_t addr)
{
	return gr_ram_block_find_rcu(ram, addr);
}

TEST(cached_lookup_never_answers_with_a_block_that_was_freed)
{
	static const struct protocol ours = { our_lookup, forget_nothing };

	ASSERT_PTR_EQ(replay(&ours), NULL);
}

static struct gr_ram_block *shared_mru;

GR_NO_TSA static struct gr_ram_block *lookup_by_shared_mru(struct gr_ram *ram, gr_ram_addr_t addr)
{
	struct gr_ram_block *b = __atomic_load_n(&shared_mru, __ATOMIC_ACQUIRE);

	if (b) {
		return b; /* its range is not asked for: it may be freed, and reading it would crash */
	}
	gr_ram_for_each_block_rcu(b, ram) {
		if (addr.v - b->offset.v < b->max_bytes) {
			break;
		}
	}
	if (b) {
		stop_at_found("lookup: found");
		__atomic_store_n(&shared_mru, b, __ATOMIC_RELEASE);
	}
	return b;
}

static void forget_shared_mru(void)
{
	__atomic_store_n(&shared_mru, NULL, __ATOMIC_RELEASE);
}

TEST(this_interleaving_breaks_the_shared_pointer)
{
	static const struct protocol shared = { lookup_by_shared_mru, forget_shared_mru };

	/* Were this to answer NULL, the test above would prove nothing. */
	ASSERT(replay(&shared) != NULL);
}

/* A signal handler's lookups in another machine, in the middle of a thread's own. */
static struct gr_ram *handlers_ram;

GR_NO_TSA static void look_up_in_a_handler(const char *place)
{
	if (strcmp(place, "lookup: found") == 0) {
		__atomic_store_n(&on_hook, NULL, __ATOMIC_RELEASE);
		ASSERT(gr_ram_block_find_rcu(handlers_ram, gr_ram_addr(0)) != NULL);
		ASSERT(gr_ram_block_by_gpa_rcu(handlers_ram, gr_gpa(0), NULL, NULL) != NULL);
	}
}

TEST(lookups_of_a_signal_handler_do_not_mix_with_those_it_interrupts)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *a = add(ram, "a", 0, 1 << 20);

	handlers_ram = make();
	add(handlers_ram, "b", 0, 1 << 20);
	gr_rcu_read_lock();
	for (int i = 0; i < 2; i++) {
		__atomic_store_n(&on_hook, i == 0 ? look_up_in_a_handler : NULL, __ATOMIC_RELEASE);
		ASSERT_PTR_EQ(gr_ram_block_find_rcu(ram, a->offset), a);
	}
	for (int i = 0; i < 2; i++) {
		__atomic_store_n(&on_hook, i == 0 ? look_up_in_a_handler : NULL, __ATOMIC_RELEASE);
		ASSERT_PTR_EQ(gr_ram_block_by_gpa_rcu(ram, gr_gpa(0), NULL, NULL), a);
	}
	gr_rcu_read_unlock();
	gr_ram_free(ram);
	gr_ram_free(handlers_ram);
}

static struct gr_ram *hook_ram;
static bool hook_marked;

static void mark_what_is_found(const char *place)
{
	struct gr_ram_block *b;

	if (strcmp(place, "block add: published") != 0) {
		return;
	}
	gr_rcu_read_lock();
	b = gr_ram_block_by_id_rcu(hook_ram, "late");
	if (b) {
		gr_ram_mark(b, b->max_bytes - 1, 1);
		hook_marked = true;
	}
	gr_rcu_read_unlock();
}

TEST(block_that_can_be_found_can_be_marked)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "late", .used_bytes = 4096, .backing = TEST_BACKING,
		.max_bytes = (uint64_t)9 << 30, /* more than one chunk of dirty memory */
	};

	if (sizeof(void *) < 8) {
		SKIP("more than one chunk does not fit in 32 bits of address space");
	}
	hook_ram = make();
	__atomic_store_n(&on_hook, mark_what_is_found, __ATOMIC_RELEASE);
	ASSERT_EQ(gr_ram_block_add(hook_ram, &desc, NULL, NULL), 0);
	ASSERT(hook_marked);
	__atomic_store_n(&on_hook, NULL, __ATOMIC_RELEASE);
	gr_ram_free(hook_ram);
}

static struct gr_dirty_consumer *hook_consumer;

/* A whole copy of the page between the device's bytes and its mark. */
static char copied[16];

static void copy_between(const char *place)
{
	if (strcmp(place, "write: between") == 0) {
		ASSERT_EQ(gr_dirty_epoch_begin(hook_consumer, NULL, NULL), 0);
		ASSERT_EQ(gr_ram_read(hook_ram, gr_gpa(0), copied, sizeof(copied), NULL), 0);
		ASSERT_EQ(gr_dirty_epoch_commit(hook_consumer), 0);
	}
}

TEST(device_write_is_never_lost_to_a_copy_made_in_its_middle)
{
	static const char bytes[16] = "the new content";
	uint64_t pages;

	hook_ram = make();
	add(hook_ram, "ram", 0, 1 << 20);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(hook_ram), "copy", GR_DIRTY_START_CLEAN,
					&hook_consumer, NULL), 0);
	__atomic_store_n(&on_hook, copy_between, __ATOMIC_RELEASE);
	ASSERT_EQ(gr_ram_write(hook_ram, gr_gpa(0), bytes, sizeof(bytes), NULL), 0);
	__atomic_store_n(&on_hook, NULL, __ATOMIC_RELEASE);
	ASSERT_EQ(gr_dirty_epoch_begin(hook_consumer, &pages, NULL), 0);
	/* Either the copy has it, or the page comes again. */
	ASSERT(memcmp(copied, bytes, sizeof(bytes)) == 0 || pages == 1);
	gr_dirty_consumer_del(hook_consumer);
	gr_ram_free(hook_ram);
}

static unsigned int pieces;

static void wait_for_readers(const char *place)
{
	if (strcmp(place, "access: piece") == 0) {
		ASSERT_EQ(gr_rcu_self.ctr & GR_RCU_DEPTH, 0u);
		gr_rcu_synchronize(); /* would never end within a section */
		pieces++;
	}
}

/* Nobody who waits for readers waits for a gibibyte to be filled. */
TEST(long_accesses_are_done_by_pieces_outside_of_sections)
{
	enum { BYTES = 4 << 20 };
	struct gr_ram *ram = make();
	uint8_t *bytes = malloc(BYTES);
	struct gr_dirty_consumer *c;
	uint64_t pages = 0;
	struct gr_error err;

	(void)add(ram, "low", 0, BYTES);
	(void)add(ram, "high", BYTES, BYTES);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "test", GR_DIRTY_START_CLEAN, &c, NULL), 0);
	__atomic_store_n(&on_hook, wait_for_readers, __ATOMIC_RELEASE);
	ASSERT_EQ(gr_ram_fill(ram, gr_gpa(BYTES / 2), 7, BYTES, &err), 0);
	ASSERT_GE(pieces, 4u);
	pieces = 0;
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(BYTES / 2), bytes, BYTES, &err), 0);
	ASSERT_GE(pieces, 4u);
	for (size_t i = 0; i < BYTES; i++) {
		ASSERT_EQ(bytes[i], 7);
	}
	pieces = 0;
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(BYTES / 2), bytes, BYTES, &err), 0);
	ASSERT_GE(pieces, 4u);
	ASSERT_EQ(gr_dirty_epoch_begin(c, &pages, NULL), 0);
	ASSERT_EQ(pages, (uint64_t)BYTES / 4096);
	/* Refused before the first piece, and short ones are not worth it. */
	pieces = 0;
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(BYTES + 1), bytes, BYTES, &err), -EFAULT);
	ASSERT_HAS(err.msg, "0x800000");
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(0), bytes, 4096, &err), 0);
	ASSERT_EQ(pieces, 0u);
	__atomic_store_n(&on_hook, NULL, __ATOMIC_RELEASE);
	gr_dirty_consumer_del(c);
	free(bytes);
	gr_ram_free(ram);
}

TEST_MAIN()

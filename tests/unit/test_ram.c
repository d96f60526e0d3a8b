/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "ram/ram.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/ram.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

static struct gr_ram *make(void)
{
	struct gr_ram *ram;

	if (gr_ram_create(NULL, &ram, NULL) < 0) {
		FAIL("no memory");
	}
	return ram;
}

static struct gr_ram_block_desc describe(const char *id, uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = id, .used_bytes = bytes, .fd = -1,
		.backing = TEST_BACKING,
	};

	return desc;
}

static struct gr_ram_block *add_desc(struct gr_ram *ram, const struct gr_ram_block_desc *desc)
{
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

static struct gr_ram_block *add(struct gr_ram *ram, const char *id, uint64_t bytes)
{
	struct gr_ram_block_desc desc = describe(id, bytes);

	return add_desc(ram, &desc);
}

/* What another thread does while the caller's section is open. */
GR_NO_TSA static int del_meanwhile(struct gr_ram_block *block)
{
	return gr_ram_block_del(block, NULL);
}

/* Everything that can be seen of a machine, as text. */
static void picture(struct gr_ram *ram, char *text, size_t bytes)
{
	struct gr_ram_block *b;
	struct gr_ram_region r;
	size_t n;

	n = (size_t)snprintf(text, bytes, "version %llu\n", (unsigned long long)gr_ram_version(ram));
	gr_rcu_read_lock();
	gr_ram_for_each_block_rcu(b, ram) {
		n += (size_t)snprintf(text + n, bytes - n, "%s %#llx %#llx %#llx %p\n", b->id,
				      (unsigned long long)b->offset.v,
				      (unsigned long long)gr_ram_block_used_bytes(b),
				      (unsigned long long)b->max_bytes, (void *)b->host);
	}
	for (uint64_t at = 0; gr_ram_region_next_rcu(ram, gr_gpa(at), &r); at = r.gpa.v + 1) {
		n += (size_t)snprintf(text + n, bytes - n, "%#llx %#llx %s %#llx %d\n",
				      (unsigned long long)r.gpa.v, (unsigned long long)r.bytes,
				      r.block->id, (unsigned long long)r.block_offset, r.readonly);
	}
	gr_rcu_read_unlock();
	ASSERT_LT(n, bytes);
}

TEST(page_sizes_that_cannot_be_are_refused)
{
	static const uint32_t bad[] = { 1, 512, 3000, 4097, 4u << 20, 1u << 31 };
	static const uint32_t good[] = { 1024, 4096, 65536, 2u << 20 };
	struct gr_ram_params params = { .size = sizeof(params) };
	struct gr_ram *ram = NULL;
	struct gr_error err;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		params.page_bytes = bad[i];
		ASSERT_EQ(gr_ram_create(&params, &ram, &err), -EINVAL);
		ASSERT_HAS(err.msg, "page size");
	}
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		params.page_bytes = good[i];
		ASSERT_EQ(gr_ram_create(&params, &ram, &err), 0);
		ASSERT_EQ(gr_ram_page_bytes(ram), good[i]);
		add(ram, "a", (uint64_t)good[i] * 3);
		gr_ram_free(ram);
	}
	params.size = 1;
	ASSERT_EQ(gr_ram_create(&params, &ram, &err), -EINVAL);
	gr_ram_free(NULL);
}

TEST(added_block_is_found_by_every_key)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 3 * MIB);
	struct gr_ram_block *b;
	uint64_t at = 0, left = 0;

	desc.mapped = true;
	desc.gpa = gr_gpa(0x10000);
	b = add_desc(ram, &desc);
	gr_rcu_read_lock();
	ASSERT_PTR_EQ(gr_ram_block_find_rcu(ram, b->offset), b);
	ASSERT_PTR_EQ(gr_ram_block_find_rcu(ram, gr_ram_addr(b->offset.v + 3 * MIB - 1)), b);
	ASSERT_PTR_EQ(gr_ram_block_find_rcu(ram, gr_ram_addr(b->offset.v + 3 * MIB)), NULL);
	ASSERT_PTR_EQ(gr_ram_block_by_gpa_rcu(ram, gr_gpa(0x10005), &at, &left), b);
	ASSERT_EQ(at, (uint64_t)5);
	ASSERT_EQ(left, 3 * MIB - 5);
	ASSERT_PTR_EQ(gr_ram_block_by_gpa_rcu(ram, gr_gpa(0xffff), NULL, NULL), NULL);
	ASSERT_PTR_EQ(gr_ram_block_by_gpa_rcu(ram, gr_gpa(0x10000 + 3 * MIB), NULL, NULL), NULL);
	ASSERT_PTR_EQ(gr_ram_block_by_host_rcu(ram, b->host + 77, &at), b);
	ASSERT_EQ(at, (uint64_t)77);
	ASSERT_PTR_EQ(gr_ram_block_by_host_rcu(ram, &at, NULL), NULL);
	ASSERT_PTR_EQ(gr_ram_block_by_id_rcu(ram, "ram"), b);
	ASSERT_PTR_EQ(gr_ram_block_by_id_rcu(ram, "ra"), NULL);
	gr_rcu_read_unlock();
	ASSERT(gr_ram_block_listed(b));
	gr_ram_free(ram);
}

TEST(lookups_of_two_machines_do_not_mix)
{
	struct gr_ram *a = make(), *b = make();
	struct gr_ram_block *in_a = add(a, "x", MIB), *in_b = add(b, "x", MIB);

	ASSERT_EQ(in_a->offset.v, in_b->offset.v);
	gr_rcu_read_lock();
	for (int i = 0; i < 3; i++) {
		ASSERT_PTR_EQ(gr_ram_block_find_rcu(a, in_a->offset), in_a);
		ASSERT_PTR_EQ(gr_ram_block_find_rcu(b, in_b->offset), in_b);
	}
	gr_rcu_read_unlock();
	gr_ram_free(a);
	gr_ram_free(b);
}

TEST(hints_of_other_addresses_and_machines_do_not_mislead)
{
	struct gr_ram *ram[2] = { make(), make() };
	struct gr_ram_block *b[2][3];

	for (unsigned int i = 0; i < 2; i++) {
		for (unsigned int k = 0; k < 3; k++) {
			char id[] = { (char)('a' + k), 0 };
			struct gr_ram_block_desc desc = describe(id, MIB);

			desc.mapped = true;
			desc.gpa = gr_gpa((uint64_t)(3 - k) << 30);
			b[i][k] = add_desc(ram[i], &desc);
		}
	}
	ASSERT_EQ(gr_ram_block_del(b[1][2], NULL), 0); /* the last place is not in every index */
	gr_rcu_read_lock();
	for (unsigned int n = 0; n < 60; n++) {
		unsigned int i = n % 2, k = n * 7 % 3;
		struct gr_ram_block *want = i == 1 && k == 2 ? NULL : b[i][k];

		ASSERT_PTR_EQ(gr_ram_block_find_rcu(ram[i], b[0][k]->offset), want);
		ASSERT_PTR_EQ(gr_ram_block_by_gpa_rcu(ram[i], gr_gpa((uint64_t)(3 - k) << 30), NULL,
						      NULL),
			      want);
	}
	gr_rcu_read_unlock();
	gr_ram_free(ram[0]);
	gr_ram_free(ram[1]);
}

TEST(walk_goes_from_the_biggest_to_the_smallest)
{
	static const struct {
		const char *id;
		uint64_t bytes;
	} blocks[] = { { "a", MIB }, { "b", 4 * MIB }, { "c", MIB }, { "d", 2 * MIB } };
	static const char *const order[] = { "b", "d", "a", "c" };
	struct gr_ram *ram = make();
	struct gr_ram_block *b;
	size_t n = 0;

	for (size_t i = 0; i < 4; i++) {
		add(ram, blocks[i].id, blocks[i].bytes);
	}
	gr_rcu_read_lock();
	gr_ram_for_each_block_rcu(b, ram) {
		ASSERT_LT(n, (size_t)4);
		ASSERT_STR_EQ(b->id, order[n++]);
	}
	gr_rcu_read_unlock();
	ASSERT_EQ(n, (size_t)4);
	gr_ram_free(ram);
}

TEST(walk_goes_on_from_a_block_that_was_removed_meanwhile)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *big = add(ram, "big", 2 * MIB), *small = add(ram, "small", MIB);

	gr_rcu_read_lock();
	ASSERT_PTR_EQ(gr_ram_block_next_rcu(ram, NULL), big);
	ASSERT_EQ(del_meanwhile(big), 0);
	ASSERT_PTR_EQ(gr_ram_block_next_rcu(ram, big), small);
	ASSERT_PTR_EQ(gr_ram_block_next_rcu(ram, small), NULL);
	gr_rcu_read_unlock();
	gr_ram_free(ram);
}

TEST(hostile_descriptions_are_refused_and_change_nothing)
{
	char long_id[GR_RAM_ID_BYTES_MAX + 2], before[4096], after[4096];
	struct gr_ram *ram = make();
	struct gr_ram_block_desc ok = describe("there", MIB), bad[18];
	const char *words[18];
	int codes[18];
	unsigned int n = 0;
	struct gr_error err;

	memset(long_id, 'a', sizeof(long_id) - 1);
	long_id[sizeof(long_id) - 1] = '\0';
	ok.mapped = true;
	ok.gpa = gr_gpa(16 * MIB);
	add_desc(ram, &ok);
#define BAD(code, text, ...)                                                                       \
	do {                                                                                       \
		bad[n] = describe("new", MIB);                                                     \
		codes[n] = (code);                                                                 \
		words[n] = (text);                                                                 \
		__VA_ARGS__;                                                                       \
		n++;                                                                               \
	} while (0)
	BAD(-EINVAL, "description", bad[n].size = 8);
	BAD(-EINVAL, "id", bad[n].id = NULL);
	BAD(-EINVAL, "id", bad[n].id = "");
	BAD(-EINVAL, "id", bad[n].id = long_id);
	BAD(-EINVAL, "zero", bad[n].used_bytes = 0);
	BAD(-EINVAL, "maximum", bad[n].max_bytes = MIB / 2);
	BAD(-EINVAL, "multiples", bad[n].used_bytes = MIB + 1);
	BAD(-EINVAL, "multiples", bad[n].max_bytes = MIB + 100);
	BAD(-EINVAL, "more than", bad[n].max_bytes = UINT64_MAX - 4095);
	BAD(-EINVAL, "flags", bad[n].flags = 1u << 30);
	BAD(-EINVAL, "backing", bad[n].backing = (enum gr_ram_backing)9);
	BAD(-EEXIST, "id already", bad[n].id = "there");
	BAD(-EEXIST, "overlap", bad[n].mapped = true, bad[n].gpa = gr_gpa(17 * MIB - 4096));
	BAD(-EEXIST, "overlap", bad[n].mapped = true, bad[n].gpa = gr_gpa(15 * MIB + 4096));
	BAD(-EINVAL, "multiples", bad[n].mapped = true, bad[n].gpa = gr_gpa(1));
	BAD(-EINVAL, "address space", bad[n].mapped = true, bad[n].gpa = gr_gpa(UINT64_MAX - 4095));
	BAD(-EINVAL, "null", bad[n].backing = GR_RAM_CALLER);
	BAD(-EINVAL, "multiple", bad[n].backing = GR_RAM_CALLER, bad[n].host = (void *)(uintptr_t)77);
	ASSERT_EQ(n, 18u);
	picture(ram, before, sizeof(before));
	for (unsigned int i = 0; i < n; i++) {
		struct gr_ram_block *none = NULL;

		ASSERT_EQ(gr_ram_block_add(ram, &bad[i], &none, &err), codes[i]);
		ASSERT_EQ(err.code, codes[i]);
		ASSERT_HAS(err.msg, words[i]);
		ASSERT_PTR_EQ(none, NULL);
		picture(ram, after, sizeof(after));
		ASSERT_STR_EQ(after, before);
	}
	gr_ram_free(ram);
}

TEST(offsets_are_the_smallest_gap_that_fits_at_64_pages)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *big, *mid, *b;
	gr_ram_addr_t at;

	add(ram, "a", MIB);
	big = add(ram, "big", 8 * MIB);
	add(ram, "b", MIB);
	mid = add(ram, "mid", 3 * MIB);
	b = add(ram, "odd", 4096 * 65); /* takes 128 pages of address space */
	ASSERT_EQ(add(ram, "last", 4096)->offset.v, b->offset.v + (uint64_t)4096 * 128);
	ASSERT_EQ(gr_ram_block_del(big, NULL), 0);
	ASSERT_EQ(gr_ram_block_del(mid, NULL), 0);
	ASSERT_EQ(gr_ram_find_offset(ram, 2 * MIB, &at, NULL), 0);
	ASSERT_EQ(at.v, 10 * MIB);
	ASSERT_EQ(gr_ram_find_offset(ram, 4 * MIB, &at, NULL), 0);
	ASSERT_EQ(at.v, MIB);
	ASSERT_EQ(gr_ram_find_offset(ram, 9 * MIB, &at, NULL), 0);
	ASSERT_EQ(at.v, b->offset.v + (uint64_t)4096 * 192);
	ASSERT_EQ(gr_ram_find_offset(ram, 0, &at, NULL), -EINVAL);
	ASSERT_EQ(gr_ram_find_offset(ram, UINT64_MAX, &at, NULL), -ENOSPC);
	ASSERT_EQ(add(ram, "new", 3 * MIB)->offset.v, 10 * MIB);
	gr_ram_free(ram);
}

TEST(second_removal_of_a_block_says_enoent)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *b = add(ram, "b", MIB);
	struct gr_error err;

	gr_rcu_read_lock();
	gr_ram_block_get(b);
	gr_rcu_read_unlock();
	ASSERT_EQ(gr_ram_block_del(b, &err), 0);
	ASSERT(!gr_ram_block_listed(b));
	ASSERT_EQ(gr_ram_block_del(b, &err), -ENOENT);
	ASSERT_HAS(err.msg, "'b'");
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "b", &err), -ENOENT);
	add(ram, "b", MIB);
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "b", &err), 0);
	gr_ram_block_put(b);
	gr_ram_free(ram);
}

TEST(version_changes_with_every_change_and_with_none_that_failed)
{
	struct gr_ram *ram = make();
	uint64_t v = gr_ram_version(ram);
	struct gr_ram_block_desc desc = describe("a", 0);

	add(ram, "a", MIB);
	ASSERT_EQ(gr_ram_version(ram), v + 1);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), -EINVAL);
	ASSERT_EQ(gr_ram_version(ram), v + 1);
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "a", NULL), 0);
	ASSERT_EQ(gr_ram_version(ram), v + 2);
	gr_ram_free(ram);
}

TEST(frozen_list_refuses_with_the_reason)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *b = add(ram, "b", MIB);
	struct gr_ram_block_desc desc = describe("new", MIB);
	struct gr_error err;

	gr_ram_freeze(ram, "a migration runs");
	gr_ram_freeze(ram, "a snapshot runs");
	ASSERT_EQ(gr_ram_block_del(b, &err), -EBUSY);
	ASSERT_HAS(err.msg, "a snapshot runs");
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "b", &err), -EBUSY);
	gr_ram_thaw(ram);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EBUSY);
	ASSERT_HAS(err.msg, "'new'");
	gr_ram_thaw(ram);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), 0);
	ASSERT_EQ(gr_ram_block_del(b, &err), 0);
	gr_ram_free(ram);
}

TEST(incarnations_differ_and_are_never_zero)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("given", MIB);
	uint64_t first = add(ram, "a", MIB)->incarnation;

	ASSERT_NE(first, (uint64_t)0);
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "a", NULL), 0);
	ASSERT_NE(add(ram, "a", MIB)->incarnation, first);
	desc.incarnation = 1234;
	ASSERT_EQ(add_desc(ram, &desc)->incarnation, (uint64_t)1234);
	gr_ram_free(ram);
}

TEST(new_block_is_dirty_for_every_consumer)
{
	if (sizeof(void *) < 8) {
		SKIP("20 GiB do not fit in 32 bits of address space");
	}
	struct gr_ram *ram = make();
	struct gr_dirty_consumer *a, *b;
	struct gr_ram_block_desc desc = describe("ram", MIB);
	uint64_t pages, first;
	struct gr_ram_block *block;

	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "a", GR_DIRTY_START_CLEAN, &a, NULL), 0);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "b", GR_DIRTY_START_CLEAN, &b, NULL), 0);
	desc.max_bytes = 20 * GIB; /* three chunks; only what is used is dirty */
	block = add_desc(ram, &desc);
	ASSERT_GE(gr_dirty_pages(gr_ram_dirty(ram)), (block->offset.v + 20 * GIB) / 4096);
	ASSERT_EQ(gr_dirty_epoch_begin(a, &pages, NULL), 0);
	ASSERT_EQ(pages, MIB / 4096);
	ASSERT(gr_dirty_epoch_next(a, 0, &first, &pages));
	ASSERT_EQ(first, block->offset.v / 4096);
	ASSERT_EQ(pages, MIB / 4096);
	ASSERT_EQ(gr_dirty_epoch_begin(b, &pages, NULL), 0);
	ASSERT_EQ(pages, MIB / 4096);
	gr_dirty_consumer_del(a);
	gr_dirty_consumer_del(b);
	gr_ram_free(ram);
}

#ifdef GR_PLATFORM_LINUX
TEST(memfd_block_is_sealed_shared_and_closed_on_exec)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *b = add(ram, "ram", 4 * MIB);
	struct stat st;
	char *other;

	ASSERT_EQ(fcntl(b->fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	ASSERT_EQ(fcntl(b->fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	ASSERT_EQ(ftruncate(b->fd, 0), -1);
	ASSERT_EQ(fstat(b->fd, &st), 0);
	ASSERT_EQ((uint64_t)st.st_size, 4 * MIB);
	other = mmap(NULL, 4 * MIB, PROT_READ, MAP_SHARED, b->fd, (off_t)b->fd_offset);
	ASSERT(other != MAP_FAILED);
	b->host[MIB] = 42;
	ASSERT_EQ(other[MIB], 42);
	ASSERT_EQ((uintptr_t)b->host % (2 * MIB), (uintptr_t)0);
	(void)munmap(other, 4 * MIB);
	gr_ram_free(ram);
}
#else
TEST(memfd_block_is_refused_where_there_are_none)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", MIB);
	struct gr_error err;

	desc.backing = GR_RAM_MEMFD;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -ENOTSUP);
	ASSERT_HAS(err.msg, "memfd");
	gr_ram_free(ram);
}
#endif

static void touch_behind(void *arg)
{
	struct gr_ram_block *b = arg;

	((volatile uint8_t *)b->host)[b->max_bytes] = 1;
}

TEST(store_behind_the_end_of_a_block_faults)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("anon", MIB);
	struct gr_ram_block *b;

	desc.backing = GR_RAM_ANONYMOUS;
	ASSERT_NE(test_in_child(touch_behind, add(ram, "memfd", 3 * MIB), NULL, 0), 0);
	b = add_desc(ram, &desc);
	ASSERT_EQ(b->fd, -1);
	ASSERT_NE(test_in_child(touch_behind, b, NULL, 0), 0);
	gr_ram_free(ram);
}

struct given {
	void *host;
	int released; /* (a) */
};

static void release(void *host, uint64_t max_bytes, void *opaque)
{
	struct given *g = opaque;

	ASSERT_PTR_EQ(host, g->host);
	ASSERT_EQ(max_bytes, MIB);
	__atomic_add_fetch(&g->released, 1, __ATOMIC_ACQ_REL);
}

static int released(struct given *g)
{
	return __atomic_load_n(&g->released, __ATOMIC_ACQUIRE);
}

static struct gr_ram_block_desc callers(struct given *g)
{
	struct gr_ram_block_desc desc = describe("callers", MIB);

	if (!g->host) {
		g->host = test_pages(MIB);
	}
	desc.backing = GR_RAM_CALLER;
	desc.host = g->host;
	desc.release = release;
	desc.opaque = g;
	return desc;
}

TEST(callers_memory_is_released_once_after_the_grace_period)
{
	struct gr_ram *ram = make();
	struct given g = { NULL, 0 };
	struct gr_ram_block_desc desc = callers(&g);
	struct gr_ram_block *b = add_desc(ram, &desc);

	ASSERT_PTR_EQ(b->host, g.host);
	gr_rcu_read_lock();
	ASSERT_EQ(del_meanwhile(b), 0);
	usleep(50000);
	ASSERT_EQ(released(&g), 0); /* this section may still use it */
	gr_rcu_read_unlock();
	gr_rcu_barrier(NULL);
	ASSERT_EQ(released(&g), 1);
	gr_ram_free(ram);
	ASSERT_EQ(released(&g), 1);
	test_pages_free(g.host, MIB);
}

TEST(callers_memory_is_released_only_after_the_last_reference)
{
	struct gr_ram *ram = make();
	struct given g = { NULL, 0 };
	struct gr_ram_block_desc desc = callers(&g);
	struct gr_ram_block *b = add_desc(ram, &desc);

	gr_rcu_read_lock();
	gr_ram_block_get(b);
	gr_rcu_read_unlock();
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(released(&g), 0);
	gr_ram_block_put(b);
	ASSERT_EQ(released(&g), 1);
	gr_ram_free(ram);
	test_pages_free(g.host, MIB);
}

TEST(callers_memory_that_was_refused_is_not_released)
{
	struct gr_ram *ram = make();
	struct given g = { NULL, 0 };
	struct gr_ram_block_desc desc = callers(&g);
	struct gr_error err;
	int pipe_fds[2];

	ASSERT_EQ(pipe(pipe_fds), 0);
	desc.fd = pipe_fds[0];
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "-1 means none");
	desc.fd = -1;
	add_desc(ram, &desc);
	desc.id = "twice";
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EEXIST);
	ASSERT_HAS(err.msg, "'callers'");
	gr_rcu_barrier(NULL);
	ASSERT_EQ(released(&g), 0);
	gr_ram_free(ram);
	ASSERT_EQ(released(&g), 1);
	test_pages_free(g.host, MIB);
}

static void *put_later(void *arg)
{
	usleep(30000);
	gr_ram_block_put(arg);
	return NULL;
}

TEST(free_waits_for_references_of_other_threads)
{
	struct gr_ram *ram = make();
	struct given g = { NULL, 0 };
	struct gr_ram_block_desc desc = callers(&g);
	struct gr_ram_block *b = add_desc(ram, &desc);
	pthread_t thread;

	gr_rcu_read_lock();
	gr_ram_block_get(b);
	gr_rcu_read_unlock();
	ASSERT_EQ(pthread_create(&thread, NULL, put_later, b), 0);
	gr_ram_free(ram);
	ASSERT_EQ(released(&g), 1);
	pthread_join(thread, NULL);
	test_pages_free(g.host, MIB);
}

static char *format(struct gr_ram *ram, enum gr_ram_view view)
{
	size_t need = gr_ram_format(ram, view, NULL, 0);
	char *text = malloc(need + 1);

	ASSERT(text);
	ASSERT_EQ(gr_ram_format(ram, view, text, need + 1), need);
	ASSERT_EQ(strlen(text), need);
	return text;
}

TEST(the_list_is_shown_as_qemu_shows_its_own)
{
	struct gr_ram_block_desc rom = describe("pc.\x1b[m", 64 << 10);
	struct gr_ram *ram = make();
	struct gr_ram_block *low = add(ram, "low", 2 * MIB), *b;
	struct gr_ram_region high = { .gpa = gr_gpa(4 * GIB), .bytes = MIB, .block = low,
				      .block_offset = MIB };
	char *text, *want, cut[40];

	rom.flags = GR_RAM_READONLY;
	rom.max_bytes = 128 << 10;
	rom.mapped = true;
	rom.gpa = gr_gpa(0xf0000);
	b = add_desc(ram, &rom);
	ASSERT_EQ(gr_ram_region_add(ram, &high, NULL), 0);

	text = format(ram, GR_RAM_VIEW_BLOCKS);
	ASSERT(asprintf(&want,
			"%24s  %10s  %18s %18s %18s %18s  RO\n"
			"                     low  %6u %-3s  0x%016llx 0x0000000000200000 "
			"0x0000000000200000 0x%016llx  rw\n"
			"                  pc.?[m  %6u %-3s  0x%016llx 0x0000000000010000 "
			"0x0000000000020000 0x%016llx  ro\n",
			"Block Name", "PSize", "Offset", "Used", "Total", "HVA",
			(unsigned)(low->page_bytes >> 10), "KiB", (unsigned long long)low->offset.v,
			(unsigned long long)(uintptr_t)low->host, (unsigned)(b->page_bytes >> 10),
			"KiB", (unsigned long long)b->offset.v,
			(unsigned long long)(uintptr_t)b->host) > 0);
	ASSERT_STR_EQ(text, want);
	free(want);
	/* What does not fit is cut off, and counted. */
	ASSERT_EQ(gr_ram_format(ram, GR_RAM_VIEW_BLOCKS, cut, sizeof(cut)), strlen(text));
	ASSERT_EQ(strlen(cut), sizeof(cut) - 1);
	ASSERT_EQ(strncmp(cut, text, sizeof(cut) - 1), 0);
	free(text);

	text = format(ram, GR_RAM_VIEW_REGIONS);
	ASSERT_STR_EQ(text, "address-space: memory\n"
			    "  00000000000f0000-00000000000fffff (prio 0, rom): pc.?[m\n"
			    "  0000000100000000-00000001000fffff (prio 0, ram): low "
			    "@0000000000100000\n");
	free(text);
	gr_ram_free(ram);
}

#ifdef GR_PLATFORM_LINUX
TEST(out_of_descriptors_is_an_error_and_changes_nothing)
{
	char before[4096], after[4096];
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("new", MIB);
	struct gr_error err;
	int last = -1;

	add(ram, "there", MIB);
	picture(ram, before, sizeof(before));
	for (int fd; (fd = dup(0)) >= 0; last = fd) {
	}
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EMFILE);
	ASSERT_HAS(err.msg, "'new'");
	picture(ram, after, sizeof(after));
	ASSERT_STR_EQ(after, before);
	(void)close(last);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), 0);
	gr_ram_free(ram);
}
#endif

TEST_MAIN()

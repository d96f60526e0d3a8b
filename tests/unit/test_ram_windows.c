/* SPDX-License-Identifier: MIT */
/* Blocks that are mapped on demand, and access by pieces. */
#include "base/atomic.h"
#include "harness.h"
#include "ram/ram.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/ram_change.h>
#include <pthread.h>
#include <stdlib.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#define W ((uint64_t)131072) /* a window: whole pages on every host */

static struct gr_dirty_consumer *consumer;
static int fd;

static struct gr_ram_block_desc describe(uint64_t bytes, unsigned int windows)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "far", .used_bytes = bytes, .fd = fd,
		.backing = GR_RAM_ON_DEMAND, .flags = GR_RAM_NO_MIGRATE, .mapped = true,
		.window_bytes = W, .windows_max = windows,
	};

	return desc;
}

/* At guest address 0; the file is empty. */
static struct gr_ram *make(uint64_t bytes, unsigned int windows, struct gr_ram_block **b)
{
	struct gr_ram_block_desc desc;
	struct gr_error err;
	struct gr_ram *ram;

	fd = memfd_create("test", MFD_CLOEXEC);
	desc = describe(bytes, windows);
	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	if (gr_ram_block_add(ram, &desc, b, &err) < 0) {
		FAIL("%s", err.msg);
	}
	ASSERT_PTR_EQ((*b)->host, NULL);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "test", GR_DIRTY_START_CLEAN, &consumer,
					NULL), 0);
	return ram;
}

static void end(struct gr_ram *ram)
{
	gr_dirty_consumer_del(consumer);
	gr_ram_free(ram);
	close(fd);
}

static struct gr_ram_window_stats stats_of(struct gr_ram_block *b)
{
	struct gr_ram_window_stats s;

	gr_ram_window_stats(b, &s);
	return s;
}

TEST(a_guest_larger_than_its_windows_is_written_and_read_across_them)
{
	struct gr_ram_block *b;
	struct gr_ram *ram = make(16 * W, 2, &b);
	uint8_t *bytes = malloc(5 * W), *back = malloc(5 * W);
	uint64_t pages = 0;

	for (size_t i = 0; i < 5 * W; i++) {
		bytes[i] = (uint8_t)(i * 7 / 5);
	}
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(3 * W - 5), bytes, 5 * W, NULL), 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(3 * W - 5), back, 5 * W, NULL), 0);
	ASSERT_MEM_EQ(back, bytes, 5 * W);
	ASSERT_EQ(pread(fd, back, 5 * W, (off_t)(3 * W - 5)), (ssize_t)(5 * W));
	ASSERT_MEM_EQ(back, bytes, 5 * W);
	ASSERT_EQ(stats_of(b).mapped, 2u);
	ASSERT_EQ(stats_of(b).pinned, 0u);
	ASSERT_GT(stats_of(b).evictions, (uint64_t)5);
	ASSERT_EQ(gr_dirty_epoch_begin(consumer, &pages, NULL), 0);
	ASSERT_EQ(pages, 5 * W / 4096 + 1);
	/* A host pointer belongs to no block here. */
	gr_rcu_read_lock();
	ASSERT_PTR_EQ(gr_ram_block_by_host_rcu(ram, bytes, NULL), NULL);
	ASSERT_PTR_EQ(gr_ram_block_by_host_rcu(ram, NULL, NULL), NULL);
	ASSERT_PTR_EQ(gr_ram_block_by_id_rcu(ram, "far"), b);
	gr_rcu_read_unlock();
	free(bytes);
	free(back);
	end(ram);
}

TEST(the_window_that_was_used_longest_ago_makes_room)
{
	struct gr_ram_block *b;
	struct gr_ram *ram = make(8 * W, 3, &b);
	static const struct {
		unsigned int window;
		uint64_t misses;
	} uses[] = { { 0, 1 }, { 1, 2 }, { 2, 3 }, { 0, 3 }, { 3, 4 }, { 0, 4 }, { 2, 4 }, { 1, 5 }, { 3, 6 } };
	uint8_t byte;

	for (size_t i = 0; i < GR_ARRAY_SIZE(uses); i++) {
		ASSERT_EQ(gr_ram_read(ram, gr_gpa(uses[i].window * W), &byte, 1, NULL), 0);
		ASSERT_EQ(stats_of(b).misses, uses[i].misses);
	}
	ASSERT_EQ(stats_of(b).mapped, 3u);
	end(ram);
}

TEST(a_pinned_window_stays_and_a_bound_of_pinned_ones_is_an_error)
{
	struct gr_ram_block *b;
	struct gr_ram *ram = make(8 * W, 2, &b);
	struct gr_ram_iov one, two, more[2];
	uint64_t pages = 0;
	struct gr_error err;
	unsigned int n;
	uint8_t byte = 1;

	ASSERT_EQ(gr_ram_translate(ram, gr_gpa(W - 3), 10, true, &one, NULL), 0);
	ASSERT_EQ(one.iov.iov_len, (size_t)3);
	ASSERT_EQ(one.offset, W - 3);
	((volatile uint8_t *)one.iov.iov_base)[0] = 77;
	for (unsigned int i = 1; i < 8; i++) {
		ASSERT_EQ(gr_ram_read(ram, gr_gpa(i * W), &byte, 1, NULL), 0);
	}
	ASSERT_EQ(((volatile uint8_t *)one.iov.iov_base)[0], 77); /* mapped still */
	ASSERT_EQ(gr_ram_translate(ram, gr_gpa(5 * W), 8, false, &two, NULL), 0);
	ASSERT_EQ(stats_of(b).pinned, 2u);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(2 * W), &byte, 1, &err), -EBUSY);
	ASSERT_HAS(err.msg, "'far'");
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(6 * W - 1), "xy", 2, &err), -EBUSY);
	ASSERT_HAS(err.msg, "0xc0000");
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(6 * W - 1), 2, true, more, 1, &n, &err), -ENOSPC);
	ASSERT_EQ(gr_ram_iov_get(ram, gr_gpa(6 * W - 1), 2, true, more, 2, &n, &err), -EBUSY);
	gr_ram_iov_put(&two, 1, 0);
	ASSERT_EQ(stats_of(b).pinned, 1u); /* nothing was left by those that failed */
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(2 * W), &byte, 1, &err), 0);
	/* Marked when put back, with the bytes done; and it outlives its block. */
	ASSERT_EQ(gr_dirty_epoch_begin(consumer, &pages, NULL), 0);
	ASSERT_EQ(pages, (uint64_t)1); /* of the write that was half done */
	ASSERT_EQ(gr_dirty_epoch_commit(consumer), 0);
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	gr_rcu_barrier(NULL);
	((volatile uint8_t *)one.iov.iov_base)[2] = 78;
	gr_ram_iov_put(&one, 1, 3);
	ASSERT_EQ(gr_dirty_epoch_begin(consumer, &pages, NULL), 0);
	ASSERT_EQ(pages, (uint64_t)1);
	ASSERT_EQ(pread(fd, &byte, 1, (off_t)W - 1), (ssize_t)1);
	ASSERT_EQ(byte, 78);
	end(ram);
}

static struct gr_ram *the_ram;

/* Each thread has bytes of its own in every window. */
static void *user(void *arg)
{
	uint64_t rng = test_seed() + (uintptr_t)arg, at = (uintptr_t)arg * 4;
	uint32_t mine[16] = { 0 }, seen;

	for (unsigned int i = 0; i < (test_under_tsan() ? 500 : 4000); i++) {
		unsigned int w = (unsigned int)(test_rand(&rng) % 16);
		struct gr_ram_iov iov;

		if (i % 2) {
			mine[w]++;
			ASSERT_EQ(gr_ram_write(the_ram, gr_gpa(w * W + at), &mine[w], 4, NULL), 0);
		} else {
			ASSERT_EQ(gr_ram_translate(the_ram, gr_gpa(w * W + at), 4, true, &iov, NULL), 0);
			ASSERT_EQ(gr_load_relaxed((uint32_t *)iov.iov.iov_base), mine[w]);
			gr_store_relaxed((uint32_t *)iov.iov.iov_base, ++mine[w]);
			gr_ram_iov_put(&iov, 1, 4);
		}
		ASSERT_EQ(gr_ram_read(the_ram, gr_gpa(w * W + at), &seen, 4, NULL), 0);
		ASSERT_EQ(seen, mine[w]);
	}
	return NULL;
}

TEST(threads_that_share_windows_keep_their_bytes)
{
	struct gr_ram_block *b;
	pthread_t threads[4];

	the_ram = make(16 * W, 4, &b); /* one for each thread: nobody is refused */
	for (uintptr_t i = 0; i < 4; i++) {
		ASSERT_EQ(pthread_create(&threads[i], NULL, user, (void *)i), 0);
	}
	for (unsigned int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
	}
	ASSERT_EQ(stats_of(b).pinned, 0u);
	ASSERT_LE(stats_of(b).mapped, 4u);
	end(the_ram);
}

TEST(a_block_without_a_host_address_changes_like_others)
{
	struct gr_ram_block *b;
	struct gr_ram *ram = make(8 * W, 2, &b);
	struct gr_ram_table_entry e;
	struct gr_ram_totals t;
	struct gr_error err;
	unsigned int n;
	uint8_t byte = 1;

	ASSERT_EQ(gr_ram_fill(ram, gr_gpa(100), 9, 3 * W, NULL), 0);
	ASSERT_EQ(gr_ram_discard(b, W, W, &err), 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(W + 7), &byte, 1, NULL), 0);
	ASSERT_EQ(byte, 0);
	ASSERT_EQ(gr_ram_remap(b, 2 * W, 1, &err), 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(2 * W), &byte, 1, NULL), 0);
	ASSERT_EQ(byte, 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(3 * W + 99), &byte, 1, NULL), 0);
	ASSERT_EQ(byte, 9);
	ASSERT_EQ(gr_ram_sync(b, 0, 8 * W, &err), 0);
	ASSERT_EQ(gr_ram_table_get(ram, &e, 1, &n, &err), 0);
	ASSERT_PTR_EQ(e.host, NULL);
	gr_ram_table_put(&e, n);
	ASSERT_EQ(gr_ram_block_set_migratable(b, true, &err), -EINVAL);
	gr_rcu_read_lock();
	gr_ram_totals_rcu(ram, &t);
	gr_rcu_read_unlock();
	ASSERT_EQ(t.used_bytes, 8 * W);
	ASSERT_EQ(t.migratable_bytes, (uint64_t)0);
	ASSERT_EQ(t.end, b->offset.v + 8 * W);
	end(ram);
}

/* A file system of 1 MiB of its own for this process, and a file of 4 MiB without holes filled. */
static int file_without_room(void)
{
	static char dir[] = "/tmp/guestram-test.XXXXXX";
	char path[128];
	int file;

	if (!mkdtemp(dir) || unshare(CLONE_NEWNS) != 0 ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
	    mount("none", dir, "tmpfs", 0, "size=1m") != 0) {
		SKIP("cannot mount a small file system: %s", strerror(errno));
	}
	(void)snprintf(path, sizeof(path), "%s/ram", dir);
	file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ASSERT_GE(file, 0);
	ASSERT_EQ(ftruncate(file, 4 << 20), 0);
	return file;
}

TEST(a_full_file_system_refuses_a_store_and_kills_nobody)
{
	struct gr_ram_block_desc desc;
	struct gr_ram_block *b;
	struct gr_ram_iov iov;
	struct gr_error err;
	struct gr_ram *ram;
	uint64_t at, word = 7, back = 0;
	bool swapped;

	fd = file_without_room();
	desc = describe(4 << 20, 4);
	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, &b, &err), 0);
	for (at = 0; gr_ram_fill(ram, gr_gpa(at), 7, W / 2, &err) == 0; at += W / 2) {
	}
	ASSERT_EQ(err.code, -ENOSPC);
	ASSERT_HAS(err.msg, "'far'");
	ASSERT_GE(at, W);
	/* Single pages fill the rest. */
	for (at = 0; gr_ram_write(ram, gr_gpa(at), &word, sizeof(word), &err) == 0; at += 4096) {
	}
	ASSERT_EQ(gr_ram_translate(ram, gr_gpa(at), 8, true, &iov, &err), -ENOSPC);
	ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(at), &back, &word, 8, &swapped, &err), -ENOSPC);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(at), &back, 8, &err), -ENOSPC);
	/* What has its space has it, and what is given back is there to be had. */
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(0), &word, sizeof(word), &err), 0);
	ASSERT_EQ(gr_ram_discard(b, 0, W, &err), 0);
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(at), &word, sizeof(word), &err), 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(at), &back, 8, &err), 0);
	ASSERT_EQ(back, word);
	for (at = 0; gr_ram_write(ram, gr_gpa(at), &word, sizeof(word), &err) == 0; at += 4096) {
	}
	ASSERT_EQ(err.code, -ENOSPC); /* the discarded ones have to ask again */
	gr_ram_free(ram);
	close(fd);
}

TEST(a_window_that_is_lent_for_writing_has_its_space_before_the_first_store)
{
	struct gr_ram_block *b;
	struct gr_ram *ram = make(8 * W, 2, &b);
	struct gr_ram_iov iov;
	struct gr_error err;

	for (unsigned int i = 0; i < 3; i++) { /* the second and third time after a discard */
		ASSERT_EQ(lseek(fd, 0, SEEK_DATA), (off_t)-1);
		ASSERT_EQ(gr_ram_translate(ram, gr_gpa(2 * W), W, true, &iov, &err), 0);
		ASSERT_EQ(lseek(fd, 0, SEEK_DATA), (off_t)(2 * W));
		ASSERT_EQ(lseek(fd, 2 * (off_t)W, SEEK_HOLE), (off_t)(2 * W + iov.iov.iov_len));
		gr_ram_iov_put(&iov, 1, 0);
		ASSERT_EQ(gr_ram_discard(b, 0, 8 * W, &err), 0);
	}
	end(ram);
}

TEST(windows_that_make_no_sense_are_refused)
{
	struct gr_ram_block_desc desc;
	struct gr_ram_block *b;
	struct gr_ram *ram = make(W, 1, &b);
	struct gr_error err;

	desc = describe(W, 1);
	desc.id = "other";
	desc.window_bytes = 3 * 65536;
	desc.gpa = gr_gpa(16 * W);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "power of two");
	desc.window_bytes = 1024;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EINVAL);
	desc = describe(W, 1u << 30);
	desc.id = "other";
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EINVAL);
	desc = describe(W, 1);
	desc.id = "other";
	desc.flags = 0;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "GR_RAM_NO_MIGRATE");
	desc.backing = GR_RAM_MEMFD;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "windows");
	end(ram);
}

static void exchange(struct gr_ram *ram, uint64_t gpa, size_t bytes)
{
	static const uint8_t desired[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	uint8_t expected[8] = { 0 }, there[8];
	struct gr_error err;
	bool swapped = false;

	ASSERT_EQ(gr_ram_fill(ram, gr_gpa(gpa), 0, 8, NULL), 0);
	ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(gpa), expected, desired, bytes, &swapped, &err), 0);
	ASSERT(swapped);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(gpa), there, 8, NULL), 0);
	ASSERT_MEM_EQ(there, desired, bytes);
	for (size_t i = bytes; i < 8; i++) {
		ASSERT_EQ(there[i], 0);
	}
	ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(gpa), expected, expected, bytes, &swapped, &err), 0);
	ASSERT(!swapped);
	ASSERT_MEM_EQ(expected, desired, bytes);
	if (bytes > 1) {
		ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(gpa + 1), expected, desired, bytes, &swapped,
					 &err), -EINVAL);
	}
}

TEST(compare_and_exchange_is_of_one_aligned_word)
{
	struct gr_ram_block *b;
	struct gr_ram *ram = make(4 * W, 2, &b);
	uint64_t pages = 0, word = 0, other = 1;
	struct gr_error err;
	bool swapped;

	for (size_t bytes = 1; bytes <= 8; bytes *= 2) {
		exchange(ram, 2 * W - 8, bytes);
	}
	ASSERT_EQ(gr_dirty_epoch_begin(consumer, &pages, NULL), 0);
	ASSERT_EQ(pages, (uint64_t)1);
	ASSERT_EQ(gr_dirty_epoch_commit(consumer), 0);
	ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(W), &other, &word, 8, &swapped, &err), 0);
	ASSERT(!swapped);
	ASSERT_EQ(gr_dirty_epoch_begin(consumer, &pages, NULL), 0);
	ASSERT_EQ(pages, (uint64_t)0); /* nothing changed */
	ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(0), &word, &word, 3, &swapped, &err), -EINVAL);
	ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(0), &word, &word, 0, &swapped, &err), -EINVAL);
	ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(4 * W), &word, &word, 8, &swapped, &err), -EFAULT);
	end(ram);
}

TEST(filling_crosses_borders_and_is_refused_whole)
{
	struct gr_ram_block *b;
	struct gr_ram *ram = make(4 * W, 2, &b);
	uint8_t *bytes = malloc(3 * W);
	struct gr_error err;

	ASSERT_EQ(gr_ram_fill(ram, gr_gpa(W - 3), 0xa5, W + 9, NULL), 0);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(0), bytes, 3 * W, NULL), 0);
	for (size_t i = 0; i < 3 * W; i++) {
		ASSERT_EQ(bytes[i], i >= W - 3 && i < 2 * W + 6 ? 0xa5 : 0);
	}
	ASSERT_EQ(gr_ram_fill(ram, gr_gpa(4 * W - 1), 1, 2, &err), -EFAULT);
	ASSERT_EQ(gr_ram_read(ram, gr_gpa(4 * W - 1), bytes, 1, NULL), 0);
	ASSERT_EQ(bytes[0], 0);
	ASSERT_EQ(gr_ram_translate(ram, gr_gpa(0), 0, false, &(struct gr_ram_iov){ .offset = 0 }, &err),
		  -EINVAL);
	free(bytes);
	end(ram);
}

TEST_MAIN()

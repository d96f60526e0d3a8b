/* SPDX-License-Identifier: MIT */
/*
 * Huge pages of 2 MiB for a test, from a pool that all of the machine shares: take the lock, then
 * reserve. Where that is not allowed the test is skipped.
 */
#ifndef HUGE_POOL_H
#define HUGE_POOL_H

#include "harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned long number_in(const char *path)
{
	FILE *f = fopen(path, "re");
	unsigned long n = 0;

	if (f) {
		if (fscanf(f, "%lu", &n) != 1) {
			n = 0;
		}
		fclose(f);
	}
	return n;
}

static bool set_number(const char *path, unsigned long n)
{
	FILE *f = fopen(path, "we");
	bool ok = f && fprintf(f, "%lu\n", n) > 0;

	return f && fclose(f) == 0 && ok;
}

#define HUGE_BYTES ((uint64_t)2 << 20)
#define HUGE_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB/"
static const char pool[] = "/proc/sys/vm/nr_hugepages";
static unsigned long pool_before;

static void give_back(void)
{
	(void)set_number(pool, pool_before);
}

/* Programs that are emulated may not get any, whatever is free. */
static bool can_map_huge(void)
{
	size_t bytes = 2 * HUGE_BYTES;
	uint8_t *room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t at = ((uintptr_t)room + HUGE_BYTES - 1) & ~((uintptr_t)HUGE_BYTES - 1);
	int error;
	bool can;

	ASSERT(room != MAP_FAILED);
	can = mmap((void *)at, HUGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_HUGETLB | MAP_HUGE_2MB, -1,
		   0) != MAP_FAILED;
	error = errno;
	if (can) {
		(void)munmap((void *)at, HUGE_BYTES);
	}
	(void)munmap(room, bytes);
	errno = error;
	return can;
}

/* So many free huge pages of 2 MiB, and no more: what else is free is put aside meanwhile. */
static void reserve_huge(unsigned long pages)
{
	unsigned long used = number_in(pool) - number_in(HUGE_DIR "free_hugepages") +
			     number_in(HUGE_DIR "resv_hugepages");

	pool_before = number_in(pool);
	if (access(HUGE_DIR, F_OK) != 0) {
		SKIP("no huge pages of 2 MiB here");
	}
	if (!set_number(pool, used + pages)) {
		SKIP("may not reserve huge pages: %s", strerror(errno));
	}
	(void)atexit(give_back);
	if (number_in(pool) != used + pages) {
		give_back();
		SKIP("memory is too fragmented for %lu huge pages", pages);
	}
	if (!can_map_huge()) {
		SKIP("huge pages cannot be mapped: %s", strerror(errno));
	}
}

/* Tests run beside each other, and there is one pool: each takes its turn. */
static void lock_pool(void)
{
	int fd = open("/tmp/.guestram-test-hugepages", O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	ASSERT(fd >= 0);
	ASSERT_EQ(lockf(fd, F_LOCK, 0), 0);
}

#endif

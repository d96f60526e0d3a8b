/* SPDX-License-Identifier: MIT */
/* Where blocks have their memory from, and what they ask for it. Huge pages are reserved for the
 * tests that want them and given back; where that is not allowed, those are skipped. */
#include "base/memory.h"
#include "harness.h"
#include "smaps.h"
#include "huge_pool.h"
#include "ram/ram.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <guestram/ram.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)

static struct gr_ram *make(void)
{
	struct gr_ram *ram;

	if (gr_ram_create(NULL, &ram, NULL) < 0) {
		FAIL("no memory");
	}
	return ram;
}

static struct gr_ram_block_desc describe(enum gr_ram_backing backing, uint64_t bytes)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "ram", .used_bytes = bytes, .fd = -1,
		.backing = backing,
	};

	return desc;
}

static struct gr_ram_block *add(struct gr_ram *ram, const struct gr_ram_block_desc *desc)
{
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

static void refused(const struct gr_ram_block_desc *desc, int code, const char *words)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *none = NULL;
	struct gr_error err;

	ASSERT_EQ(gr_ram_block_add(ram, desc, &none, &err), code);
	ASSERT_EQ(err.code, code);
	ASSERT_HAS(err.msg, words);
	ASSERT_HAS(err.msg, "'ram'");
	ASSERT_PTR_EQ(none, NULL);
	ASSERT_EQ(gr_ram_version(ram), (uint64_t)0);
	gr_ram_free(ram);
}

static char *directory(void)
{
	static char path[] = "/tmp/guestram-test.XXXXXX";

	if (!mkdtemp(path)) {
		FAIL("mkdtemp: %s", strerror(errno));
	}
	return path;
}

static unsigned int names_in(const char *path)
{
	DIR *d = opendir(path);
	unsigned int n = 0;

	ASSERT(d);
	while (readdir(d)) {
		n++;
	}
	closedir(d);
	return n - 2;
}

TEST(anonymous_memory_is_private_or_shared_with_children)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, MIB);
	struct gr_ram_block *own = add(ram, &desc), *shared;
	int status;

	desc.id = "shared";
	desc.flags = GR_RAM_SHARED;
	shared = add(ram, &desc);
	ASSERT_EQ(shared->fd, -1);
	fflush(NULL);
	if (fork() == 0) {
		own->host[5] = shared->host[5] = 1;
		_exit(0);
	}
	ASSERT_GT(wait(&status), 0);
	ASSERT_EQ(own->host[5], 0);
	ASSERT_EQ(shared->host[5], 1);
	gr_ram_free(ram);
}

TEST(huge_pages_without_a_file)
{
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, 3 * MIB);
	struct gr_ram *ram = make();
	struct gr_ram_block *b;
	struct gr_error err;

	lock_pool();
	reserve_huge(3);
	desc.page_bytes = HUGE_BYTES;
	desc.flags = GR_RAM_PREALLOC;
	b = add(ram, &desc);
	ASSERT_EQ(b->page_bytes, HUGE_BYTES);
	ASSERT_EQ((uintptr_t)b->host % HUGE_BYTES, (uintptr_t)0);
	ASSERT_HAS(smaps(b->host, "KernelPageSize:"), " 2048 kB");
	memset(b->host, 7, 3 * MIB);
	/* Reserved when mapped: too many are an error at once. */
	desc.id = "more";
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -ENOMEM);
	ASSERT_HAS(err.msg, "huge pages free");
	/* Not reserved: found when they are wanted, without a signal. */
	desc.flags |= GR_RAM_NO_RESERVE;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -ENOMEM);
	ASSERT_HAS(err.msg, "after");
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	gr_rcu_barrier(NULL);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), 0);
	gr_ram_free(ram);
}

TEST(huge_pages_of_a_memfd)
{
	struct gr_ram_block_desc desc = describe(GR_RAM_MEMFD, 4 * MIB);
	struct gr_ram *ram = make();
	struct gr_ram_block *b;
	struct gr_error err;
	uint8_t *other;

	lock_pool();
	reserve_huge(3);
	desc.page_bytes = HUGE_BYTES;
	desc.flags = GR_RAM_PREALLOC;
	b = add(ram, &desc);
	ASSERT_EQ(b->page_bytes, HUGE_BYTES);
	ASSERT_EQ(fcntl(b->fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	b->host[3 * MIB] = 9;
	other = mmap(NULL, 4 * MIB, PROT_READ, MAP_SHARED, b->fd, 0);
	ASSERT(other != MAP_FAILED);
	ASSERT_EQ(other[3 * MIB], 9);
	(void)munmap(other, 4 * MIB);
	desc.id = "more";
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -ENOMEM);
	/* By themselves: filling it by copies, as on kernels that cannot populate. */
	desc.flags = GR_RAM_NO_RESERVE;
	b = add(ram, &desc);
	ASSERT_EQ(gr_memory_populate_by_copy(&gr_block(b)->memory, 0, 4 * MIB), -ENOSPC);
	gr_ram_free(ram);
}

TEST(page_sizes_that_the_system_lacks_are_refused)
{
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, MIB);
	struct gr_ram *ram = make();
	struct gr_error err;

	desc.page_bytes = 3 * 4096;
	refused(&desc, -EINVAL, "not possible");
	desc.page_bytes = 512;
	refused(&desc, -EINVAL, "not possible");
	desc.page_bytes = 1 << 17;
	ASSERT_LT(gr_ram_block_add(ram, &desc, NULL, &err), 0);
	desc.backing = GR_RAM_MEMFD;
	ASSERT_LT(gr_ram_block_add(ram, &desc, NULL, &err), 0);
	desc.backing = GR_RAM_FD;
	refused(&desc, -EINVAL, "not possible");
	gr_ram_free(ram);
}

TEST(a_file_is_made_as_long_as_the_block_and_stays)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);
	char path[128];
	struct stat st;
	uint8_t byte;
	int fd;

	(void)snprintf(path, sizeof(path), "%s/ram", directory());
	desc.path = path;
	desc.max_bytes = 2 * MIB;
	desc.fd_offset = 2 * gr_page_bytes();
	add(ram, &desc)->host[1] = 55;
	ASSERT_EQ(stat(path, &st), 0);
	ASSERT_EQ((uint64_t)st.st_size, 2 * MIB + 2 * gr_page_bytes());
	ASSERT_EQ(st.st_mode & 0777, 0600u);
	gr_ram_free(ram);
	fd = open(path, O_RDONLY);
	ASSERT_EQ(pread(fd, &byte, 1, 2 * (off_t)gr_page_bytes() + 1), (ssize_t)1);
	ASSERT_EQ(byte, 55);
	close(fd);
	/* A second one finds what the first one left. */
	ram = make();
	ASSERT_EQ(add(ram, &desc)->host[1], 55);
	gr_ram_free(ram);
	(void)unlink(path);
}

TEST(a_private_file_never_changes)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);
	char path[128];
	uint8_t byte = 1;
	int fd;

	(void)snprintf(path, sizeof(path), "%s/ram", directory());
	fd = open(path, O_RDWR | O_CREAT, 0600);
	ASSERT_EQ(ftruncate(fd, (off_t)MIB), 0);
	ASSERT_EQ(pwrite(fd, "\x21", 1, 77), (ssize_t)1);
	desc.path = path;
	desc.flags = GR_RAM_PRIVATE | GR_RAM_PREALLOC;
	desc.prealloc.threads = 2;
	add(ram, &desc);
	gr_rcu_read_lock();
	struct gr_ram_block *b = gr_ram_block_by_id_rcu(ram, "ram");

	ASSERT_EQ(b->host[77], 0x21);
	b->host[77] = 3;
	gr_rcu_read_unlock();
	ASSERT_EQ(pread(fd, &byte, 1, 77), (ssize_t)1);
	ASSERT_EQ(byte, 0x21);
	gr_ram_free(ram);
	close(fd);
	(void)unlink(path);
}

TEST(a_directory_holds_a_file_without_a_name)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);
	struct gr_ram_block *b;
	char *path = directory();
	struct stat st;

	desc.id = "/machine/ram";
	desc.path = path;
	b = add(ram, &desc);
	ASSERT_EQ(names_in(path), 0u);
	ASSERT_EQ(fstat(b->fd, &st), 0);
	ASSERT_EQ(st.st_nlink, (nlink_t)0);
	ASSERT_EQ((uint64_t)st.st_size, MIB);
	ASSERT_EQ(fcntl(b->fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	desc.id = "ram";
	desc.flags = GR_RAM_HOST_READONLY | GR_RAM_NO_MIGRATE;
	refused(&desc, -EISDIR, path);
	gr_ram_free(ram);
	(void)rmdir(path);
}

TEST(a_block_that_is_not_to_be_leaves_files_as_they_were)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc there = describe(GR_RAM_ANONYMOUS, MIB);
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);
	char *dir = directory(), path[128];
	struct gr_error err;
	struct stat st;

	add(ram, &there);
	(void)snprintf(path, sizeof(path), "%s/ram", dir);
	desc.path = path;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EEXIST); /* the id, found last */
	ASSERT_EQ(names_in(dir), 0u);
	close(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EEXIST);
	ASSERT_EQ(stat(path, &st), 0);
	ASSERT_EQ(st.st_size, (off_t)0);
	ASSERT_EQ(truncate(path, 4096), 0);
	refused(&desc, -EINVAL, "less than");
	ASSERT_EQ(stat(path, &st), 0);
	ASSERT_EQ(st.st_size, (off_t)4096);
	desc.fd_offset = 1;
	refused(&desc, -EINVAL, "offset 1");
	desc.fd_offset = UINT64_MAX - 4095;
	refused(&desc, -EINVAL, "too high");
	gr_ram_free(ram);
	(void)unlink(path);
	(void)rmdir(dir);
}

struct second_add {
	struct gr_ram *ram;
	const struct gr_ram_block_desc *desc;
	int ret;
};

/* While the first add is at work: the second one; then the first one fails. */
static int add_beside(uint64_t done, uint64_t total, void *opaque)
{
	struct second_add *s = opaque;
	struct gr_ram_block_desc desc = *s->desc;

	(void)done;
	(void)total;
	desc.id = "second";
	desc.flags = 0;
	s->ret = gr_ram_block_add(s->ram, &desc, NULL, NULL);
	return -ECANCELED;
}

TEST(a_file_that_is_being_made_is_nobody_elses)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);
	struct second_add s = { .ram = ram, .desc = &desc };
	char *dir = directory(), path[128];
	struct stat st;

	(void)snprintf(path, sizeof(path), "%s/ram", dir);
	desc.path = path;
	desc.flags = GR_RAM_PREALLOC;
	desc.prealloc.progress = add_beside;
	desc.prealloc.opaque = &s;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), -ECANCELED);
	ASSERT_EQ(s.ret, -EBUSY);
	ASSERT_EQ(names_in(dir), 0u);
	close(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), -ECANCELED);
	ASSERT_EQ(s.ret, -EBUSY);
	ASSERT_EQ(stat(path, &st), 0);
	ASSERT_EQ(st.st_size, (off_t)0);
	/* The lock ends with the making: one file, two blocks. */
	desc.flags = 0;
	add(ram, &desc);
	desc.id = "second";
	add(ram, &desc);
	gr_ram_free(ram);
	(void)unlink(path);
	(void)rmdir(dir);
}

/* The same of a file that the caller has open, whose locks are not ours. */
TEST(an_empty_file_of_the_callers_is_empty_again_if_the_block_is_not_to_be)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_FD, MIB);
	struct second_add s = { .ram = ram, .desc = &desc };
	struct stat st;

	desc.fd = memfd_create("test", MFD_CLOEXEC);
	desc.flags = GR_RAM_PREALLOC;
	desc.prealloc.progress = add_beside;
	desc.prealloc.opaque = &s;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), -ECANCELED);
	ASSERT_EQ(s.ret, -EBUSY); /* while it may still be cut again */
	ASSERT_EQ(fstat(desc.fd, &st), 0);
	ASSERT_EQ(st.st_size, (off_t)0);
	desc.flags = 0;
	add(ram, &desc);
	desc.id = "second";
	desc.granule_bytes = 1;
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), -EINVAL);
	ASSERT_EQ(fstat(desc.fd, &st), 0);
	ASSERT_EQ(st.st_size, (off_t)MIB); /* that of the first */
	gr_ram_free(ram);
	close(desc.fd);
}

TEST(a_fifo_is_refused_at_once)
{
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);
	char path[128];

	(void)snprintf(path, sizeof(path), "%s/fifo", directory());
	ASSERT_EQ(mkfifo(path, 0600), 0);
	desc.path = path;
	desc.flags = GR_RAM_HOST_READONLY | GR_RAM_NO_MIGRATE;
	refused(&desc, -EINVAL, "not a file");
	(void)unlink(path);
}

TEST(pages_larger_than_the_address_space_are_refused)
{
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, MIB);

	desc.page_bytes = UINT64_C(1) << 63; /* bytes and alignment sum to nearly nothing */
	refused(&desc, -EINVAL, "not possible");
	desc.backing = GR_RAM_MEMFD;
	refused(&desc, -EINVAL, "not possible");
}

TEST(paths_that_cannot_be_opened_are_named)
{
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);

	refused(&desc, -EINVAL, "without a path");
	desc.path = "/nowhere/at/all";
	refused(&desc, -ENOENT, "/nowhere/at/all");
	desc.path = "/dev/null";
	refused(&desc, -EINVAL, "not a file");
}

TEST(a_file_for_reading_cannot_be_stored_to_from_here)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);
	struct gr_ram_region region;
	char path[128];
	struct gr_error err;

	(void)snprintf(path, sizeof(path), "%s/rom", directory());
	close(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	ASSERT_EQ(truncate(path, (off_t)MIB), 0);
	desc.path = path;
	desc.mapped = true;
	desc.flags = GR_RAM_HOST_READONLY;
	refused(&desc, -EINVAL, "GR_RAM_NO_MIGRATE");
	desc.flags |= GR_RAM_NO_MIGRATE | GR_RAM_PREALLOC;
	ASSERT_EQ(chmod(path, 0400), 0);
	add(ram, &desc);
	gr_rcu_read_lock();
	ASSERT(gr_ram_region_next_rcu(ram, gr_gpa(0), &region));
	gr_rcu_read_unlock();
	ASSERT(region.readonly);
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(0), "x", 1, &err), -EROFS);
	ASSERT_EQ(fcntl(region.block->fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	ASSERT_EQ(gr_ram_remap(region.block, 0, 4096, &err), -EROFS);
	gr_ram_free(ram);
	(void)unlink(path);
}

TEST(callers_fd_is_duplicated_and_used_from_its_offset)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_FD, MIB);
	struct gr_ram_block *b;
	uint8_t byte = 0;
	int fd = memfd_create("test", MFD_CLOEXEC), copy = dup(fd), pipe_fds[2];

	ASSERT_EQ(ftruncate(fd, 3 * (off_t)MIB), 0);
	desc.fd = fd;
	desc.fd_offset = 2 * MIB;
	b = add(ram, &desc);
	close(fd);
	ASSERT_EQ(b->fd_offset, 2 * MIB);
	b->host[1] = 17;
	ASSERT_EQ(pread(copy, &byte, 1, 2 * (off_t)MIB + 1), (ssize_t)1);
	ASSERT_EQ(byte, 17);
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	desc.fd = copy;
	desc.fd_offset = 2 * MIB + gr_page_bytes();
	refused(&desc, -EINVAL, "less than");
	desc.fd = -1;
	refused(&desc, -EBADF, "fd -1");
	ASSERT_EQ(pipe(pipe_fds), 0);
	desc.fd = pipe_fds[0];
	refused(&desc, -EINVAL, "not a file");
	gr_ram_free(ram);
}

TEST(flags_that_make_no_sense_are_refused)
{
	struct gr_ram_block_desc desc = describe(GR_RAM_MEMFD, MIB);

	desc.flags = GR_RAM_PRIVATE;
	refused(&desc, -EINVAL, "GR_RAM_PRIVATE");
	desc.flags = GR_RAM_PERSISTENT;
	refused(&desc, -EINVAL, "GR_RAM_PERSISTENT");
	desc.flags = 1u << 31;
	refused(&desc, -EINVAL, "unknown flags");
	desc = describe(GR_RAM_ANONYMOUS, MIB);
	desc.flags = GR_RAM_SHARED | GR_RAM_PRIVATE;
	refused(&desc, -EINVAL, "both");
	desc.flags = 0;
	desc.align_bytes = 12288;
	refused(&desc, -EINVAL, "alignment");
	desc.align_bytes = UINT64_C(1) << 63;
	refused(&desc, -EINVAL, "alignment");
	desc.align_bytes = 0;
	desc.numa_policy = GR_RAM_NUMA_BIND;
	refused(&desc, -EINVAL, "NUMA");
	desc.numa_policy = GR_RAM_NUMA_DEFAULT;
	desc.numa_nodes = 1;
	refused(&desc, -EINVAL, "NUMA");
	desc.numa_policy = (enum gr_ram_numa)9;
	refused(&desc, -EINVAL, "NUMA");
}

TEST(alignment_is_what_was_asked_for)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, 8192);

	desc.align_bytes = 64 * MIB;
	ASSERT_EQ((uintptr_t)add(ram, &desc)->host % (64 * MIB), (uintptr_t)0);
	gr_ram_free(ram);
}

static const char *vm_flags(const struct gr_ram_block *b)
{
	return smaps(b->host, "VmFlags:");
}

TEST(wishes_reach_the_kernel)
{
	static const struct {
		unsigned int flag;
		const char *shown;
	} wishes[] = {
		{ GR_RAM_THP, " hg" }, { GR_RAM_NO_DUMP, " dd" }, { GR_RAM_NO_FORK, " dc" },
		{ GR_RAM_MERGE, " mg" }, { GR_RAM_LOCK, " lo" }, { GR_RAM_NO_RESERVE, " nr" },
	};
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, 4 * MIB);
	struct gr_error err;
	char id[32];

	for (size_t i = 0; i < GR_ARRAY_SIZE(wishes); i++) {
		struct gr_ram_block *b;
		int ret;

		(void)snprintf(id, sizeof(id), "ram%zu", i);
		desc.id = id;
		desc.flags = wishes[i].flag;
		ret = gr_ram_block_add(ram, &desc, &b, &err);
		if (ret < 0) { /* a kernel without it, or a limit: then it says so */
			test_diag("%s", err.msg);
			ASSERT_HAS(err.msg, id);
			ASSERT(ret == -ENOTSUP || ret == -EPERM || ret == -ENOMEM);
		} else if (*vm_flags(b) && !(wishes[i].flag == GR_RAM_LOCK && test_under_asan()) &&
			   !(wishes[i].flag == GR_RAM_LOCK && test_under_tsan())) {
			ASSERT_HAS(vm_flags(b), wishes[i].shown); /* sanitizers ignore mlock() */
		}
	}
	gr_ram_free(ram);
}

TEST(numa_nodes_are_bound_or_refused)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, MIB);
	struct gr_error err;
	int ret;

	desc.numa_policy = GR_RAM_NUMA_BIND;
	desc.numa_nodes = 1;
	desc.flags = GR_RAM_PREALLOC;
	ret = gr_ram_block_add(ram, &desc, NULL, &err);
	if (ret == -ENOSYS || ret == -EPERM) {
		SKIP("%s", err.msg);
	}
	ASSERT_EQ(ret, 0);
	desc.numa_nodes = UINT64_C(1) << 62;
	refused(&desc, -EINVAL, "NUMA nodes 0x4000000000000000");
	gr_ram_free(ram);
}

/* The kernel takes these wishes and forgets them. */
TEST(wishes_that_nobody_would_hear_are_refused)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_MEMFD, MIB);
	char *dir = directory();

	desc.flags = GR_RAM_MERGE;
	refused(&desc, -ENOTSUP, "GR_RAM_MERGE");
	desc.backing = GR_RAM_ANONYMOUS;
	desc.flags = GR_RAM_MERGE | GR_RAM_SHARED;
	refused(&desc, -ENOTSUP, "GR_RAM_MERGE");
	desc = describe(GR_RAM_CALLER, MIB);
	desc.host = test_pages(MIB);
	desc.flags = GR_RAM_MERGE;
	refused(&desc, -ENOTSUP, "GR_RAM_MERGE");
	test_pages_free(desc.host, MIB);
	desc = describe(GR_RAM_FILE, MIB);
	desc.path = dir;
	desc.flags = GR_RAM_MERGE;
	refused(&desc, -ENOTSUP, "GR_RAM_MERGE");
	ASSERT_EQ(names_in(dir), 0u);
	desc.flags = 0;
	desc.numa_policy = GR_RAM_NUMA_PREFERRED;
	desc.numa_nodes = 1;
	if (!gr_memory_file_is_memory(open(dir, O_RDONLY | O_CLOEXEC))) {
		refused(&desc, -ENOTSUP, "NUMA");
	} else {
		test_diag("%s is in memory: policies hold there", dir);
	}
	(void)rmdir(dir);
	gr_ram_free(ram);
}

/* A memfd has the policy itself, whoever brings its pages in. */
TEST(a_numa_policy_of_a_memfd_holds_for_all_who_map_it)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_MEMFD, MIB);
	unsigned long nodes[2] = { 0 };
	struct gr_ram_block *b;
	struct gr_error err;
	int mode = -1, ret;
	void *other;

	desc.numa_policy = GR_RAM_NUMA_BIND;
	desc.numa_nodes = 1;
	ret = gr_ram_block_add(ram, &desc, &b, &err);
	if (ret == -ENOSYS || ret == -EPERM) {
		SKIP("%s", err.msg);
	}
	ASSERT_EQ(ret, 0);
	other = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	ASSERT(other != MAP_FAILED);
	ASSERT_EQ(syscall(SYS_get_mempolicy, &mode, nodes, 8 * sizeof(nodes), other, 2 /* of this address */),
		  0L);
	ASSERT_EQ(mode, 2); /* MPOL_BIND */
	ASSERT_EQ(nodes[0], 1ul);
	(void)munmap(other, MIB);
	gr_ram_free(ram);
}

/* NO_RESERVE means something for these; with a private file too. */
TEST(what_a_system_that_reserves_everything_counts)
{
	struct gr_memory m = { .page_bytes = gr_page_bytes(), .fd = -1 };

	ASSERT(gr_memory_is_counted(&m));
	m.flags = GR_MEMORY_SHARED;
	ASSERT(gr_memory_is_counted(&m));
	m.fd = 0;
	ASSERT(!gr_memory_is_counted(&m));
	m.flags = 0;
	ASSERT(gr_memory_is_counted(&m));
	m.page_bytes = HUGE_BYTES;
	ASSERT(!gr_memory_is_counted(&m));
}

TEST(memory_that_is_no_persistent_one_is_refused_as_such)
{
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, MIB);
	char *dir = directory();

	desc.path = dir;
	desc.flags = GR_RAM_PERSISTENT;
	refused(&desc, -EOPNOTSUPP, "persistent memory");
	(void)rmdir(dir);
}

TEST(a_system_that_reserves_everything_is_recognised)
{
	char path[] = "/tmp/guestram-test.XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);

	ASSERT_EQ(write(fd, "2\n", 2), (ssize_t)2);
	ASSERT(!gr_memory_may_overcommit(path));
	ASSERT_EQ(pwrite(fd, "0\n", 2, 0), (ssize_t)2);
	ASSERT(gr_memory_may_overcommit(path));
	close(fd);
	(void)unlink(path);
	ASSERT(gr_memory_may_overcommit(path));
}

struct told {
	uint64_t last, total;
	unsigned int calls;
	uint64_t stop_at; /* 0: never */
};

static int tell(uint64_t done, uint64_t total, void *opaque)
{
	struct told *t = opaque;

	ASSERT_GE(done, t->last);
	ASSERT_LE(done, total);
	t->last = done;
	t->total = total;
	t->calls++;
	return t->stop_at && done >= t->stop_at ? -ECANCELED : 0;
}

static uint64_t present(const struct gr_ram_block *b)
{
	size_t pages = (size_t)(b->max_bytes / gr_page_bytes());
	unsigned char *map = calloc(pages, 1);
	uint64_t n = 0;

	ASSERT_EQ(mincore(b->host, (size_t)b->max_bytes, map), 0);
	for (size_t i = 0; i < pages; i++) {
		n += map[i] & 1;
	}
	free(map);
	return n * gr_page_bytes();
}

TEST(preallocation_by_threads_fills_all_and_tells_how_far_it_is)
{
	static const enum gr_ram_backing backings[] = { GR_RAM_MEMFD, GR_RAM_ANONYMOUS };

	for (size_t i = 0; i < 2; i++) {
		struct gr_ram *ram = make();
		struct gr_ram_block_desc desc = describe(backings[i], 100 * MIB);
		struct told t = { 0 };

		ASSERT_LT(present(add(ram, &desc)), MIB);
		desc.id = "full";
		desc.flags = GR_RAM_PREALLOC;
		desc.prealloc = (struct gr_ram_prealloc){ .threads = 3, .progress = tell,
							  .opaque = &t };
		ASSERT_EQ(present(add(ram, &desc)), 100 * MIB);
		ASSERT_EQ(t.last, 100 * MIB);
		ASSERT_EQ(t.total, 100 * MIB);
		ASSERT_GE(t.calls, 1u);
		gr_ram_free(ram);
	}
}

TEST(preallocation_that_is_stopped_leaves_nothing)
{
	struct told t = { .stop_at = 1 };
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, 64 * MIB);

	desc.flags = GR_RAM_PREALLOC;
	desc.prealloc = (struct gr_ram_prealloc){ .threads = 2, .progress = tell, .opaque = &t };
	refused(&desc, -ECANCELED, "stopped after");
}

/* A file system of 8 MiB of its own for this process. */
static const char *small_file_system(void)
{
	char *dir = directory();

	if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
	    mount("none", dir, "tmpfs", 0, "size=8m") != 0) {
		SKIP("cannot mount a small file system: %s", strerror(errno));
	}
	return dir;
}

TEST(a_full_file_system_is_an_error_and_no_signal)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_FILE, 32 * MIB);
	const char *dir = small_file_system();
	struct gr_ram_block *b;
	char path[128];

	(void)snprintf(path, sizeof(path), "%s/ram", dir);
	desc.path = path;
	desc.flags = GR_RAM_PREALLOC;
	desc.prealloc.threads = 4;
	refused(&desc, -ENOSPC, "no space left");
	ASSERT_EQ(names_in(dir), 0u);
	/* The way of kernels that cannot populate. */
	desc.id = "by copy";
	desc.path = dir;
	desc.flags = 0;
	b = add(ram, &desc);
	ASSERT_EQ(gr_memory_populate_by_copy(&gr_block(b)->memory, 0, 32 * MIB), -ENOSPC);
	ASSERT_EQ(gr_memory_populate_by_copy(&gr_block(b)->memory, 0, 4 * MIB), 0);
	gr_ram_free(ram);
}

TEST(populating_by_copies_keeps_the_bytes)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe(GR_RAM_ANONYMOUS, 8 * MIB);
	struct gr_ram_block *b = add(ram, &desc);
	int ret;

	for (size_t at = 0; at < 8 * MIB; at += 12288) {
		b->host[at] = (uint8_t)(at / 4096);
	}
	ret = gr_memory_populate_by_copy(&gr_block(b)->memory, 0, 8 * MIB);
	if (ret == -ENOSYS || ret == -EPERM) {
		SKIP("no userfaultfd: %s", strerror(-ret));
	}
	ASSERT_EQ(ret, 0);
	ASSERT_EQ(present(b), 8 * MIB);
	for (size_t at = 0; at < 8 * MIB; at += 4096) {
		ASSERT_EQ(b->host[at], at % 12288 == 0 ? (uint8_t)(at / 4096) : 0);
	}
	gr_ram_free(ram);
}

TEST_MAIN()

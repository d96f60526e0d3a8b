/* SPDX-License-Identifier: MIT */
/* Memory that is thrown away, mapped again or written back. */
#include "huge_pool.h"
#include "ram_change_kit.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/ram_change.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)

static void discard_one(const struct gr_ram_block_desc *desc)
{
	struct gr_ram *ram = make();
	struct gr_ram_block *b = add_desc(ram, desc);
	struct gr_error err;
	uint64_t first;

	memset(b->host, 9, 4 * PAGE);
	(void)dirty(NULL);
	ASSERT_EQ(gr_ram_discard(b, PAGE, 2 * PAGE, &err), 0);
	ASSERT_EQ(dirty(&first), 2 * PAGE);
	ASSERT_EQ(first, b->offset.v + PAGE);
	for (uint64_t at = 0; at < 4 * PAGE; at += 512) {
		ASSERT_EQ(b->host[at], at / PAGE == 1 || at / PAGE == 2 ? 0 : 9);
	}
	ASSERT_EQ(gr_ram_discard(b, 100, PAGE, &err), -EINVAL);
	ASSERT_EQ(gr_ram_discard(b, PAGE, 4 * PAGE, &err), -EINVAL);
	ASSERT_EQ(gr_ram_discard(b, UINT64_MAX - PAGE + 1, PAGE, &err), -EINVAL);
	ASSERT_EQ(gr_ram_discard(b, 4 * PAGE, 0, &err), 0);
	for (unsigned int i = 0; i < 2; i++) {
		ASSERT_EQ(gr_ram_discard_hold(ram, (enum gr_ram_discard_hold)i, &err), 0);
		ASSERT_EQ(gr_ram_discard(b, 0, PAGE, &err), -EBUSY);
		gr_ram_discard_release(ram, (enum gr_ram_discard_hold)i);
	}
	ASSERT_EQ(b->host[0], 9);
	ASSERT_EQ(dirty(NULL), (uint64_t)0);
	end(ram);
}

TEST(discarded_memory_reads_as_zeroes_and_is_dirty)
{
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	int fd = memfd_create("test", MFD_CLOEXEC);

	discard_one(&desc);
	desc.backing = GR_RAM_ANONYMOUS;
	discard_one(&desc);
	desc.flags = GR_RAM_SHARED;
	discard_one(&desc);
	desc = describe("ram", 4 * PAGE);
	ASSERT_EQ(ftruncate(fd, 5 * (off_t)PAGE), 0);
	desc.backing = GR_RAM_FD;
	desc.fd = fd;
	desc.fd_offset = PAGE;
	discard_one(&desc);
	ASSERT_EQ(lseek(fd, 0, SEEK_DATA), (off_t)PAGE); /* nothing but its own piece was touched */
	desc = describe("ram", 4 * PAGE);
	desc.backing = GR_RAM_CALLER;
	desc.host = test_pages(4 * PAGE);
	desc.flags = GR_RAM_PRIVATE;
	discard_one(&desc);
	test_pages_free(desc.host, 4 * PAGE);
}

TEST(memory_that_may_not_be_thrown_away_stays)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	struct gr_ram_block *b;
	struct gr_error err;

	desc.backing = GR_RAM_CALLER;
	desc.host = test_pages(4 * PAGE);
	b = add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_discard(b, 0, PAGE, &err), -ENOTSUP);
	ASSERT_HAS(err.msg, "GR_RAM_PRIVATE");
	ASSERT_EQ(gr_ram_remap(b, 0, PAGE, &err), -ENOTSUP);
	end(ram);
	test_pages_free(desc.host, 4 * PAGE);
}

/* What the caller has locked can be thrown away by nobody who does not know of it. */
TEST(locked_memory_that_stays_is_not_supported_rather_than_invalid)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	struct gr_ram_block *b;
	struct gr_error err;

	if (test_under_asan() || test_under_tsan()) {
		SKIP("the sanitizer ignores mlock()");
	}
	desc.backing = GR_RAM_CALLER;
	desc.flags = GR_RAM_PRIVATE;
	desc.host = test_pages(4 * PAGE);
	b = add_desc(ram, &desc);
	memset(b->host, 9, 4 * PAGE);
	if (mlock(b->host + PAGE, gr_page_bytes()) != 0) {
		SKIP("mlock: %s", strerror(errno));
	}
	ASSERT_EQ(gr_ram_discard(b, PAGE, gr_page_bytes(), &err), -ENOTSUP);
	ASSERT_HAS(err.msg, "'ram'");
	ASSERT_EQ(b->host[PAGE], 9);
	end(ram);
	(void)munlock(desc.host, 4 * PAGE);
	test_pages_free(desc.host, 4 * PAGE);
}

TEST(remapped_memory_is_new_and_dirty)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	struct gr_ram_block *b;
	struct gr_error err;
	uint64_t first;

	for (unsigned int i = 0; i < 2; i++) {
		desc.id = i == 0 ? "memfd" : "anonymous";
		desc.backing = i == 0 ? GR_RAM_MEMFD : GR_RAM_ANONYMOUS;
		b = add_desc(ram, &desc);
		memset(b->host, 9, 4 * PAGE);
		(void)dirty(NULL);
		ASSERT_EQ(gr_ram_remap(b, PAGE + 5, 1, &err), 0);
		ASSERT_EQ(b->host[PAGE], 0);
		ASSERT_EQ(b->host[PAGE - 1], 9);
		ASSERT_EQ(b->host[PAGE + gr_page_bytes()], 9);
		ASSERT_EQ(dirty(&first), (uint64_t)gr_page_bytes());
		ASSERT_EQ(first, b->offset.v + PAGE);
		ASSERT_EQ(gr_ram_remap(b, 4 * PAGE, 1, &err), -EINVAL);
		ASSERT_EQ(gr_ram_remap(b, UINT64_MAX, 2, &err), -EINVAL);
		ASSERT_EQ(gr_ram_remap(b, 4 * PAGE, 0, &err), 0);
	}
	end(ram);
}

TEST(pages_of_the_guest_are_remapped_whole)
{
	uint32_t page = (uint32_t)gr_page_bytes() * 4;
	struct gr_ram_params params = { .size = sizeof(params), .page_bytes = page };
	struct gr_ram_block_desc desc = describe("ram", 3 * page);
	struct gr_ram *ram;
	struct gr_ram_block *b;

	ASSERT_EQ(gr_ram_create(&params, &ram, NULL), 0);
	desc.backing = GR_RAM_MEMFD;
	b = add_desc(ram, &desc);
	memset(b->host, 9, 3 * page);
	ASSERT_EQ(gr_ram_remap(b, 2 * page - 1, 1, NULL), 0);
	for (uint32_t i = 0; i < 3 * page; i++) {
		ASSERT_EQ(b->host[i], i / page == 1 ? 0 : 9);
	}
	gr_ram_free(ram);
}

TEST(what_is_mapped_again_is_the_same_place_of_the_file)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct gr_ram_block *b;
	struct gr_error err;

	ASSERT_EQ(ftruncate(fd, 8 * (off_t)PAGE), 0);
	for (int i = 0; i < 8; i++) {
		char page = (char)('0' + i);

		ASSERT_EQ(pwrite(fd, &page, 1, i * (off_t)PAGE), (ssize_t)1);
	}
	desc.backing = GR_RAM_FD;
	desc.fd = fd;
	desc.fd_offset = 3 * PAGE;
	desc.flags = GR_RAM_NO_DUMP;
	b = add_desc(ram, &desc);
	ASSERT_EQ(b->host[PAGE], '4');
	/* As where no holes can be made. */
	ASSERT_EQ(gr_memory_map_again(&gr_block(b)->memory, PAGE, PAGE), 0);
	ASSERT_EQ(b->host[0], '3');
	ASSERT_EQ(b->host[PAGE], '4');
	ASSERT_EQ(b->host[2 * PAGE], '5');
	/* And when it cannot be mapped either, that is said. */
	gr_block(b)->memory.fd = 123456; /* nothing is open by this number */
	ASSERT_LT(gr_ram_remap(b, PAGE, 1, &err), 0);
	gr_block(b)->memory.fd = b->fd;
	end(ram);
	close(fd);
}

TEST(what_was_written_back_is_in_the_file)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	char path[] = "/tmp/guestram-test.XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);
	struct gr_ram_block *b;
	struct gr_error err;
	uint8_t byte = 0;

	desc.backing = GR_RAM_FILE;
	desc.path = path;
	b = add_desc(ram, &desc);
	b->host[PAGE + 3] = 77;
	ASSERT_EQ(gr_ram_sync(b, PAGE + 3, 1, &err), 0);
	ASSERT_EQ(pread(fd, &byte, 1, (off_t)PAGE + 3), (ssize_t)1);
	ASSERT_EQ(byte, 77);
	ASSERT_EQ(gr_ram_sync(b, PAGE, 4 * PAGE, &err), -EINVAL);
	desc = describe("anonymous", PAGE);
	desc.backing = GR_RAM_ANONYMOUS;
	ASSERT_EQ(gr_ram_sync(add_desc(ram, &desc), 0, PAGE, &err), 0);
	end(ram);
	close(fd);
	(void)unlink(path);
}

TEST(the_memory_table_is_what_another_process_can_map)
{
	struct gr_ram *ram = make();
	struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
	struct gr_ram_table_entry e[3];
	struct gr_ram_block *b;
	struct gr_error err;
	unsigned int n = 0;
	uint8_t *other;

	desc.mapped = true;
	desc.gpa = gr_gpa(MIB);
	b = add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_region_add(ram,
				    &(struct gr_ram_region){ .gpa = gr_gpa(0),
							     .bytes = PAGE,
							     .block = b,
							     .block_offset = 2 * PAGE,
							     .readonly = true },
				    NULL),
		  0);
	ASSERT_EQ(gr_ram_table_get(ram, e, 1, &n, &err), -ENOSPC);
	ASSERT_EQ(gr_ram_table_get(ram, e, 3, &n, &err), 0);
	ASSERT_EQ(n, 2u);
	ASSERT_EQ(e[0].gpa.v, (uint64_t)0);
	ASSERT_EQ(e[0].fd_offset, 2 * PAGE);
	ASSERT(e[0].readonly);
	ASSERT_EQ(e[1].gpa.v, MIB);
	ASSERT_EQ(e[1].bytes, 4 * PAGE);
	ASSERT_PTR_EQ(e[1].host, b->host);
	/* Usable although the block goes. */
	b->host[2 * PAGE] = 3;
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	gr_rcu_barrier(NULL);
	other = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, e[0].fd, (off_t)e[0].fd_offset);
	ASSERT(other != MAP_FAILED);
	ASSERT_EQ(other[0], 3);
	(void)munmap(other, PAGE);
	gr_ram_table_put(e, n);
	/* One without an fd spoils it. */
	desc.gpa = gr_gpa(0);
	add_desc(ram, &desc);
	desc.id = "anonymous";
	desc.gpa = gr_gpa(MIB);
	desc.backing = GR_RAM_ANONYMOUS;
	add_desc(ram, &desc);
	ASSERT_EQ(gr_ram_table_get(ram, e, 3, &n, &err), -ENOTSUP);
	ASSERT_HAS(err.msg, "'anonymous'");
	end(ram);
}

/* A huge page whole, with as many in the pool as the block has: the new one is that which went. */
TEST(huge_pages_are_replaced_whole)
{
	static const enum gr_ram_backing backings[] = { GR_RAM_ANONYMOUS, GR_RAM_MEMFD };

	lock_pool();
	reserve_huge(3);
	for (size_t i = 0; i < 2; i++) {
		struct gr_ram *ram = make();
		struct gr_ram_block_desc desc = describe("ram", 3 * HUGE_BYTES);
		struct gr_ram_block *b;
		uint64_t first;

		desc.backing = backings[i];
		desc.page_bytes = HUGE_BYTES;
		b = add_desc(ram, &desc);
		memset(b->host, 9, 3 * HUGE_BYTES);
		(void)dirty(NULL);
		ASSERT_EQ(gr_ram_remap(b, HUGE_BYTES + 5 * PAGE, 1, NULL), 0);
		ASSERT_EQ(dirty(&first), HUGE_BYTES);
		ASSERT_EQ(first, b->offset.v + HUGE_BYTES);
		ASSERT_EQ(b->host[HUGE_BYTES - 1], 9);
		ASSERT_EQ(b->host[HUGE_BYTES], 0);
		ASSERT_EQ(b->host[2 * HUGE_BYTES - 1], 0);
		ASSERT_EQ(b->host[2 * HUGE_BYTES], 9);
		/* As where it cannot be given back: mapped again, which is huge too. */
		ASSERT_EQ(gr_memory_map_again(&gr_block(b)->memory, HUGE_BYTES, HUGE_BYTES), 0);
		ASSERT_EQ(b->host[HUGE_BYTES - 1], 9);
		ASSERT_EQ(b->host[HUGE_BYTES], 0);
		b->host[2 * HUGE_BYTES - 1] = 7;
		ASSERT_EQ(b->host[2 * HUGE_BYTES], 9);
		end(ram);
	}
}

TEST(a_page_that_the_kernel_gave_up_is_replaced)
{
	static const enum gr_ram_backing backings[] = { GR_RAM_ANONYMOUS, GR_RAM_MEMFD };

	if (!getenv("GR_TEST_HWPOISON")) {
		SKIP("takes a page of memory from the machine each time: set GR_TEST_HWPOISON=1");
	}
	for (size_t i = 0; i < 2; i++) {
		struct gr_ram *ram = make();
		struct gr_ram_block_desc desc = describe("ram", 4 * PAGE);
		struct gr_ram_block *b;
		struct gr_error err;
		char byte = 1;
		int fds[2];

		desc.backing = backings[i];
		b = add_desc(ram, &desc);
		memset(b->host, 9, 4 * PAGE);
		ASSERT_EQ(pipe(fds), 0);
		if (madvise(b->host + PAGE, gr_page_bytes(), MADV_HWPOISON) != 0) {
			SKIP("MADV_HWPOISON: %s", strerror(errno));
		}
		ASSERT_EQ(write(fds[1], b->host + PAGE, 1), (ssize_t)-1); /* no SIGBUS this way */
		ASSERT_EQ(gr_ram_remap(b, PAGE, 1, &err), 0);
		ASSERT_EQ(write(fds[1], b->host + PAGE, 1), (ssize_t)1);
		ASSERT_EQ(read(fds[0], &byte, 1), (ssize_t)1);
		ASSERT_EQ(byte, 0);
		b->host[PAGE] = 7;
		ASSERT_EQ(b->host[PAGE - 1], 9);
		end(ram);
	}
}

TEST_MAIN()

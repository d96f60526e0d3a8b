/* SPDX-License-Identifier: MIT */
#include "migrate/place.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than the oldest headers we build with. */
#define UFFD_USER_MODE	      1u
#define UFFD_WP_SHMEM	      (UINT64_C(1) << 12)
#define UFFD_REGISTER_MISSING (UINT64_C(1) << 0)
#define UFFD_REGISTER_WP      (UINT64_C(1) << 1)

static int uffd_open(unsigned int flags, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, (unsigned int)(O_CLOEXEC | O_NONBLOCK) | flags);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Unless the administrator has switched them off. */
static bool has_huge_pages(void)
{
	int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC);
	char modes[64] = "";
	ssize_t n = fd < 0 ? -1 : read(fd, modes, sizeof(modes) - 1);

	if (fd >= 0) {
		close(fd);
	}
	return n > 0 && !strstr(modes, "[never]");
}

void gr_placer_init(struct gr_placer *p)
{
	p->huge = has_huge_pages();
	p->host_page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	/* We wait for no fault, so what an ordinary user may have is as good. */
	p->uffd = uffd_open(UFFD_USER_MODE, UFFD_WP_SHMEM);
	if (p->uffd < 0) {
		p->uffd = uffd_open(0, UFFD_WP_SHMEM);
	}
}

void gr_placer_destroy(struct gr_placer *p)
{
	if (p->uffd >= 0) {
		close(p->uffd);
	}
	p->uffd = -1;
}

static struct uffdio_range range_of(const struct gr_ram_block *block)
{
	struct uffdio_range range = {
		.start = (uint64_t)(uintptr_t)block->host,
		.len = gr_ram_block_used_bytes(block),
	};

	return range;
}

/* Of memory in a file only the kernel knows: by default it has none there, whatever one asks for. */
static bool wants_huge_pages(const struct gr_placer *p, const struct gr_ram_block *block)
{
	unsigned int flags = gr_ram_block_flags(block);

#ifdef GR_MUTANT_PLACE_SMALL_PAGES
	return false;
#endif
	return p->huge && block->backing == GR_RAM_ANONYMOUS && (flags & GR_RAM_THP) &&
	       !(flags & GR_RAM_SHARED);
}

enum gr_place_how gr_placer_begin(struct gr_placer *p, const struct gr_ram_block *block,
				  uint64_t page_bytes)
{
	struct uffdio_register reg = { .range = range_of(block), .mode = UFFD_REGISTER_WP };

	if (wants_huge_pages(p, block)) {
		return GR_PLACE_STORE;
	}
	/* A page of ours must be whole pages of the host (and no huge ones). */
	if (p->uffd >= 0 && block->page_bytes == p->host_page_bytes &&
	    GR_IS_ALIGNED(page_bytes, p->host_page_bytes) &&
	    (block->backing == GR_RAM_MEMFD || block->backing == GR_RAM_ANONYMOUS) &&
	    ioctl(p->uffd, UFFDIO_REGISTER, &reg) == 0) {
		if ((reg.ioctls & UINT64_C(1) << _UFFDIO_COPY) != 0) {
			return GR_PLACE_UFFD;
		}
		(void)ioctl(p->uffd, UFFDIO_UNREGISTER, &reg.range);
	}
	if (block->backing == GR_RAM_MEMFD && block->fd >= 0 &&
	    block->page_bytes == p->host_page_bytes) {
		return GR_PLACE_PWRITE;
	}
	return GR_PLACE_STORE;
}

void gr_placer_end(struct gr_placer *p, const struct gr_ram_block *block, enum gr_place_how how)
{
	struct uffdio_register reg = { .range = range_of(block), .mode = UFFD_REGISTER_MISSING };

	if (how != GR_PLACE_UFFD) {
		return;
	}
	/*
	 * Unregistering from write protection makes all pages of a memfd read-only, and the
	 * guest would pay with a fault for its first store to each (measured: 0.4 s per GiB).
	 * Unregistering from missing pages does not. Who touches a missing page between
	 * these two calls sleeps until the second one.
	 */
	(void)ioctl(p->uffd, UFFDIO_REGISTER, &reg);
	(void)ioctl(p->uffd, UFFDIO_UNREGISTER, &reg.range);
}

/* Returns how many bytes it has placed; less than asked when something is in the way. */
static uint64_t fill_by_uffd(struct gr_placer *p, const struct gr_ram_block *block, uint64_t offset,
			     const uint8_t *data, uint64_t bytes)
{
	uint64_t done = 0;

	while (done < bytes) {
		struct uffdio_copy copy = {
			.dst = (uint64_t)(uintptr_t)(block->host + offset + done),
			.src = (uint64_t)(uintptr_t)(data + done),
			.len = bytes - done,
		};

		if (ioctl(p->uffd, UFFDIO_COPY, &copy) == 0) {
			return bytes;
		}
		/* EAGAIN: a part was done, or the mappings were changing. */
		if (errno != EAGAIN) {
			return done;
		}
		if (copy.copy > 0) {
			done += (uint64_t)copy.copy;
		}
	}
	return done;
}

static uint64_t fill_by_pwrite(const struct gr_ram_block *block, uint64_t offset,
			       const uint8_t *data, uint64_t bytes)
{
	uint64_t done = 0;

	while (done < bytes) {
		ssize_t n = pwrite(block->fd, data + done, bytes - done,
				   (off_t)(block->fd_offset + offset + done));

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			break;
		}
		done += (uint64_t)n;
	}
	return done;
}

void gr_placer_fill(struct gr_placer *p, const struct gr_ram_block *block, enum gr_place_how how,
		    uint64_t offset, const uint8_t *data, uint64_t bytes, uint64_t page_bytes)
{
	uint64_t done = 0;

	while (done < bytes) {
		if (how == GR_PLACE_UFFD) {
			done += fill_by_uffd(p, block, offset + done, data + done, bytes - done);
		} else if (how == GR_PLACE_PWRITE) {
			done += fill_by_pwrite(block, offset + done, data + done, bytes - done);
			page_bytes = bytes;
		} else {
			page_bytes = bytes;
		}
		if (done < bytes) {
			/*
			 * O5. The page that is in the way is there already, which is no failure: the
			 * machine does not run, so what has come last is stored into it.
			 */
			uint64_t n = GR_MIN(page_bytes - done % page_bytes, bytes - done);

#ifndef GR_MUTANT_PLACE_LEAVES_PRESENT
			memcpy(block->host + offset + done, data + done, n);
#endif
			done += n;
		}
	}
}

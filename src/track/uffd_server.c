/* SPDX-License-Identifier: MIT */
#include "track/uffd_server.h"
#include "base/atomic.h"
#include "base/clock.h"
#include "base/hook.h"
#include "base/memory.h"
#include "base/poll.h"
#include "base/uapi.h"
#include "base/wake_fd.h"
#include "ram/ram.h"
#include "track/uffd_wp.h"
#include <errno.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum {
	MESSAGES = 32,		     /* faults read at once */
	PROTECT_BYTES_MAX = 1 << 30, /* one call holds off changes of the address space */
};

/* ---- the calls ------------------------------------------------------------------------- */

static int write_protect(struct gr_uffd_server *s, uint64_t start, uint64_t bytes, uint64_t mode)
{
	while (bytes > 0) {
		uint64_t n = GR_MIN(bytes, (uint64_t)PROTECT_BYTES_MAX);
		struct uffdio_writeprotect wp = { .range = { start, n }, .mode = mode };

		if (ioctl(s->uffd, UFFDIO_WRITEPROTECT, &wp) < 0) {
			if (errno == EAGAIN || errno == EINTR) {
				continue;
			}
			return -errno;
		}
		start += n;
		bytes -= n;
	}
	return 0;
}

/* For kernels that protect only what is there: zeroes are, once somebody has read them. */
static int populate(const struct gr_uffd_server *s, const struct gr_uffd_range *r, uint64_t start,
		    uint64_t bytes)
{
	bool in_a_file = r->block->fd >= 0 || (gr_ram_block_flags(r->block) & GR_RAM_SHARED);

	if (s->unpopulated || in_a_file) {
		return 0;
	}
	while (madvise((void *)(uintptr_t)start, bytes, GR_MADV_POPULATE_READ) < 0) {
		if (errno != EAGAIN && errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

int gr_uffd_protect(struct gr_uffd_server *s, const struct gr_uffd_range *r, uint64_t start,
		    uint64_t bytes, struct gr_error *err)
{
	int ret = populate(s, r, start, bytes);

	if (ret == 0) {
		ret = write_protect(s, start, bytes, UFFDIO_WRITEPROTECT_MODE_WP);
	}
	if (ret < 0) {
		gr_error_set(
			err, ret, "block '%s': %s: %s%s", r->block->id,
			ret == -ENOSYS || s->unpopulated ? "UFFDIO_WRITEPROTECT" : "protecting",
			strerror(-ret), ret == -ENOENT ? " (its memory was mapped anew?)" : "");
	}
	return ret;
}

static void wake(struct gr_uffd_server *s, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = { start, bytes };

	(void)ioctl(s->uffd, UFFDIO_WAKE, &range);
}

void gr_uffd_open_range(struct gr_uffd_server *s, uint64_t start, uint64_t bytes)
{
#ifdef GR_MUTANT_UFFD_OPEN_NO_WAKE
	(void)write_protect(s, start, bytes, UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
#else
	if (write_protect(s, start, bytes, 0) < 0) {
		/* Nothing is registered there: it cannot be protected. Somebody may sleep all the
		 * same. */
		wake(s, start, bytes);
	}
#endif
}

static int register_range(struct gr_uffd_server *s, uint64_t start, uint64_t bytes)
{
	struct uffdio_register reg = { .range = { start, bytes }, .mode = UFFDIO_REGISTER_MODE_WP };

	return ioctl(s->uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

/*
 * Pages of equal content that the kernel makes one (KSM) lose their protection, and the next store
 * copies without a fault. Neither the flag of a block nor the process's own wish may let it happen.
 */
static void unmerge(uint64_t start, uint64_t bytes)
{
#ifndef GR_MUTANT_UFFD_LETS_MERGE
	while (madvise((void *)(uintptr_t)start, bytes, MADV_UNMERGEABLE) < 0 &&
	       (errno == EINTR || errno == EAGAIN)) {
	}
#else
	(void)start;
	(void)bytes;
#endif
}

static void merge_again(const struct gr_uffd_range *r)
{
	if (gr_ram_block_flags(r->block) & GR_RAM_MERGE) {
		(void)madvise((void *)(uintptr_t)r->start, r->bytes, MADV_MERGEABLE);
	}
}

void gr_uffd_register_again(struct gr_uffd_server *s, uint64_t start, uint64_t bytes)
{
#ifndef GR_MUTANT_UFFD_MERGES_AGAIN
	unmerge(start, bytes); /* a new mapping was given the block's wishes */
#endif
	/* If it fails, the next call that protects says why. */
	(void)register_range(s, start, bytes);
}

struct gr_uffd_range gr_uffd_range_of(struct gr_ram_block *block, uint64_t bytes)
{
	/* Blocks are mapped in whole host pages, whatever the guest's page size is. */
	uint64_t unit = GR_MAX((uint64_t)gr_page_bytes(), block->page_bytes);
	struct gr_uffd_range r = { .block = block,
				   .start = (uint64_t)(uintptr_t)block->host,
				   .bytes = GR_ROUND_UP(bytes, unit),
				   .unit = unit };

	return r;
}

static const char *register_hint(int code)
{
	switch (code) {
	case -EBUSY:
		return " (another userfaultfd has this memory)";
	case -EINVAL:
		return " (a file on a disk, or no memory? anonymous memory, memfds and huge pages "
		       "can be protected)";
	default:
		return "";
	}
}

/* Who would read into the block from a file or a socket asks beforehand whether that is possible. */
static void keep_system_calls_off(const struct gr_uffd_server *s, const struct gr_uffd_range *r)
{
	if (!s->kernel_faults) {
		(void)gr_add_acq_rel(&gr_block(r->block)->stores_only, 1u);
	}
}

static void let_system_calls_in(const struct gr_uffd_server *s, const struct gr_uffd_range *r)
{
	if (!s->kernel_faults) {
		(void)gr_sub_acq_rel(&gr_block(r->block)->stores_only, 1u);
	}
}

int gr_uffd_arm(struct gr_uffd_server *s, const struct gr_uffd_range *r, struct gr_error *err)
{
	int ret;

	keep_system_calls_off(s, r);
	unmerge(r->start, r->bytes);
	ret = register_range(s, r->start, r->bytes);
	if (ret < 0) {
		merge_again(r);
		let_system_calls_in(s, r);
		return gr_error_set(err, ret, "block '%s': UFFDIO_REGISTER: %s%s", r->block->id,
				    strerror(-ret), register_hint(ret));
	}
	ret = gr_uffd_protect(s, r, r->start, r->bytes, err);
	if (ret < 0) {
		gr_uffd_disarm(s, r);
	}
	return ret;
}

void gr_uffd_disarm(struct gr_uffd_server *s, const struct gr_uffd_range *r)
{
	struct uffdio_range range = { r->start, r->bytes };

	/*
	 * Unregistering takes protection off and does not wake who waits for it. Woken first,
	 * somebody may come back to a page that is still protected; so last.
	 */
	(void)ioctl(s->uffd, UFFDIO_UNREGISTER, &range);
#ifndef GR_MUTANT_UFFD_DISARM_NO_WAKE
	wake(s, r->start, r->bytes);
#endif
	merge_again(r);
	let_system_calls_in(s, r);
}

/* ---- the descriptor and its thread ----------------------------------------------------- */

unsigned int gr_uffd_server_serve(struct gr_uffd_server *s)
{
	struct uffd_msg message[MESSAGES];
	unsigned int faults = 0;
	ssize_t n = read(s->uffd, message, sizeof(message));

	s->read_ns = gr_clock_ns();
	for (ssize_t i = 0; n > 0 && i < n / (ssize_t)sizeof(message[0]); i++) {
		if (message[i].event == UFFD_EVENT_PAGEFAULT) {
			s->fault(s->opaque, message[i].arg.pagefault.address);
			faults++;
		}
	}
	return faults;
}

void gr_uffd_lock(struct gr_mutex *lock, struct gr_signals *saved)
{
#ifdef GR_MUTANT_UFFD_LOCK_WITH_SIGNALS
	pthread_sigmask(SIG_SETMASK, NULL, &saved->mask);
#else
	gr_signals_block(saved);
#endif
	gr_mutex_lock(lock);
	GR_HOOK("uffd lock: held");
}

void gr_uffd_unlock(struct gr_mutex *lock, const struct gr_signals *saved)
{
	gr_mutex_unlock(lock);
	gr_signals_restore(saved);
}

static void *run(void *opaque)
{
	struct gr_uffd_server *s = opaque;
	struct pollfd fds[2] = { gr_pollfd(s->uffd, POLLIN), gr_pollfd(s->stop_fd, POLLIN) };

	/* Marking a page enters a section. Were the first one to register us, its memory would come
	 * from malloc(), whose lock may be held by the thread that waits. */
	gr_rcu_register_thread();
	gr_event_set(&s->serving);
	while (!(fds[1].revents & POLLIN)) {
		(void)gr_poll(fds, 2, -1);
		(void)gr_uffd_server_serve(s);
	}
	return NULL;
}

int gr_uffd_server_run(struct gr_uffd_server *s, struct gr_error *err)
{
	struct gr_signals saved;
	int ret;

	if (!gr_uffd_server_ours(s)) {
		return gr_error_set(
			err, -ENOTSUP,
			"this userfaultfd is the parent's, from before the fork: a child "
			"needs one of its own");
	}
	/* A handler of the application's that stores to guest memory must not run on the thread
	 * that serves the fault. */
	gr_signals_block(&saved);
	gr_event_reset(&s->serving);
	ret = pthread_create(&s->thread, NULL, run, s);
	gr_signals_restore(&saved);
	if (ret != 0) {
		return gr_error_set(err, -ret, "no thread to serve write faults: %s",
				    strerror(ret));
	}
	s->running = true;
	gr_event_wait(&s->serving);
	return 0;
}

void gr_uffd_server_stop(struct gr_uffd_server *s)
{
	if (!s->running) {
		return;
	}
	s->running = false;
	if (gr_uffd_server_ours(s)) {
		gr_wake_fd_ring(s->stop_write_fd);
		(void)pthread_join(s->thread, NULL);
		(void)gr_wake_fd_silence(s->stop_fd);
	}
}

void gr_uffd_server_close(struct gr_uffd_server *s)
{
	if (s->uffd >= 0) {
		close(s->uffd);
		gr_wake_fd_close(s->stop_fd, s->stop_write_fd);
	}
	s->uffd = -1;
}

/* Whether memory of this kind can be protected. */
static int try_memory(struct gr_uffd_server *s, bool shared, struct gr_error *err)
{
	size_t bytes = gr_page_bytes();
	int ret;
	void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			  MAP_ANONYMOUS | (shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);

	if (page == MAP_FAILED) {
		return gr_error_set(err, -errno, "mmap of one page: %s", strerror(errno));
	}
	ret = register_range(s, (uint64_t)(uintptr_t)page, bytes);
	if (ret == 0 && !s->unpopulated && !shared) {
		ret = madvise(page, bytes, GR_MADV_POPULATE_READ) < 0 ? -errno : 0;
	}
	if (ret == 0) {
		ret = write_protect(s, (uint64_t)(uintptr_t)page, bytes,
				    UFFDIO_WRITEPROTECT_MODE_WP);
	}
	munmap(page, bytes);
	return ret == 0 ? 0
			: gr_error_set(err, ret, "write protection of %s memory: %s",
				       shared ? "shared" : "anonymous", strerror(-ret));
}

static void init(struct gr_uffd_server *s, void (*fault)(void *opaque, uint64_t address),
		 void *opaque)
{
	memset(s, 0, sizeof(*s));
	s->fault = fault;
	s->opaque = opaque;
	s->owner = getpid();
}

static int open_stop(struct gr_uffd_server *s, struct gr_error *err)
{
	int ret = gr_wake_fd_open(&s->stop_fd, &s->stop_write_fd);

	if (ret < 0) {
		close(s->uffd);
		s->uffd = -1;
		return gr_error_set(err, ret, "no descriptor to end a thread with: %s",
				    strerror(-ret));
	}
	return 0;
}

int gr_uffd_server_open_missing(struct gr_uffd_server *s,
				void (*fault)(void *opaque, uint64_t address), void *opaque,
				struct gr_error *err)
{
	init(s, fault, opaque);
	s->uffd = gr_uffd_open_missing(&s->kernel_faults, err);
	return s->uffd < 0 ? s->uffd : open_stop(s, err);
}

int gr_uffd_server_open(struct gr_uffd_server *s, void (*fault)(void *opaque, uint64_t address),
			void *opaque, struct gr_error *err)
{
	int ret;

	init(s, fault, opaque);
	s->uffd = gr_uffd_open_sync(&s->kernel_faults, &s->unpopulated, err);
	ret = s->uffd < 0 ? s->uffd : open_stop(s, err);
	if (ret < 0) {
		return ret;
	}
	ret = try_memory(s, false, err);
	if (ret == 0) {
		ret = try_memory(s, true, err);
	}
	if (ret < 0) {
		gr_uffd_server_close(s);
	}
	return ret;
}

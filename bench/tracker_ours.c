/* SPDX-License-Identifier: MIT */
/* Guests that are threads: software marks and userfaultfd, ours and QEMU's. */
#include "bench/flat.h"
#include "bench/harness.h"
#include "bench/tracker.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- ours ----------------------------------------------------------------------------- */

struct ours *ours_create(struct watched *w, uint64_t gpa)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "ram",
					  .used_bytes = w->pages * PAGE,
					  .backing = GR_RAM_CALLER,
					  .flags = GR_RAM_PRIVATE,
					  .host = w->host,
					  .mapped = true,
					  .gpa = gr_gpa(gpa),
					  .fd = -1 };
	struct ours *o = calloc(1, sizeof(*o));
	struct gr_error err;

	if (!o || gr_ram_create(NULL, &o->ram, &err) < 0 ||
	    gr_ram_block_add(o->ram, &desc, &o->block, &err) < 0 ||
	    gr_track_create(o->ram, &o->track, &err) < 0) {
		bench_die("no machine");
	}
	return o;
}

void ours_start(struct ours *o, unsigned int writers)
{
	struct gr_error err;

	if (gr_track_start(o->track, writers, &err) < 0 ||
	    gr_dirty_consumer_add(gr_ram_dirty(o->ram), "bench", GR_DIRTY_START_CLEAN, &o->consumer,
				  &err) < 0) {
		bench_die("%s", err.msg);
	}
}

void ours_round(struct watched *w)
{
	struct ours *o = w->tracker;
	uint64_t base = o->block->offset.v / PAGE, end = base + w->pages, first, n;
	struct gr_error err;

	if (gr_track_sync(o->track, &err) < 0 ||
	    gr_dirty_epoch_begin(o->consumer, NULL, &err) < 0) {
		bench_die("%s", err.msg);
	}
	for (uint64_t at = base; gr_dirty_epoch_next(o->consumer, at, &first, &n) && first < end;
	     at = first + n) {
		n = n < end - first ? n : end - first;
		if (gr_track_rearm(o->track, o->block, (first - base) * PAGE, n * PAGE, &err) < 0) {
			bench_die("%s", err.msg);
		}
		watched_read(w, first - base, n);
	}
	gr_dirty_epoch_commit(o->consumer);
}

void ours_free(struct ours *o)
{
	gr_dirty_consumer_del(o->consumer);
	gr_track_stop(o->track);
	gr_track_free(o->track);
	gr_ram_free(o->ram);
	free(o);
}

static void ours_destroy(struct watched *w)
{
	ours_free(w->tracker);
}

/* ---- the guest ------------------------------------------------------------------------ */

/* As the guest of KVM does it: word by word. */
void fill_page(uint8_t *host, uint32_t value)
{
	volatile uint64_t *to = (volatile uint64_t *)(void *)host;

	for (unsigned i = 0; i < PAGE / sizeof(*to); i++) {
		to[i] = (uint64_t)value << 32 | value;
	}
}

void thread_burst(struct watched *w, const uint32_t *page, unsigned n, uint32_t value)
{
	for (unsigned i = 0; i < n; i++) {
		fill_page(w->host + (uint64_t)page[i] * PAGE, value + i);
	}
}

static void untracked_create(struct watched *w)
{
	w->burst = thread_burst;
}

static void nothing(struct watched *w)
{
	(void)w;
}

/* ---- software ------------------------------------------------------------------------- */

static void marking_burst(struct watched *w, const uint32_t *page, unsigned n, uint32_t value)
{
	struct ours *o = w->tracker;

	for (unsigned i = 0; i < n; i++) {
		uint64_t offset = (uint64_t)page[i] * PAGE;

		gr_rcu_read_lock();
		fill_page(w->host + offset, value + i);
		gr_ram_mark(o->block, offset, PAGE);
		gr_rcu_read_unlock();
	}
}

static void software_create(struct watched *w)
{
	struct ours *o = ours_create(w, 0);

	ours_start(o, GR_WRITERS_MARKED);
	w->tracker = o;
	w->burst = marking_burst;
}

static void flat_burst(struct watched *w, const uint32_t *page, unsigned n, uint32_t value)
{
	for (unsigned i = 0; i < n; i++) {
		fill_page(w->host + (uint64_t)page[i] * PAGE, value + i);
		flat_mark(w->tracker, page[i]);
	}
}

static void flat_software_create(struct watched *w)
{
	w->tracker = flat_create(w->pages);
	w->burst = flat_burst;
}

static void flat_round(struct watched *w)
{
	struct flat *f = w->tracker;
	uint64_t first, n;

	(void)flat_harvest(f);
	for (uint64_t at = 0; flat_next(f, at, &first, &n); at = first + n) {
		flat_clear(f, first, n);
		watched_read(w, first, n);
	}
}

static void flat_destroy(struct watched *w)
{
	flat_free(w->tracker);
}

const struct comparison compare_software = {
	.name = "software",
	.ours = { "ours", software_create, ours_round, ours_destroy },
	.qemu = { "QEMU's scheme: flat bitmap", flat_software_create, flat_round, flat_destroy },
	.untracked = { "untracked guest", untracked_create, NULL, nothing },
};

/* ---- userfaultfd ---------------------------------------------------------------------- */

static void uffd_create(struct watched *w, enum gr_tracker_kind kind)
{
	struct ours *o = ours_create(w, 0);
	struct gr_error err;

	if (gr_track_use(o->track, kind, NULL, &err) < 0) {
		bench_die("%s", err.msg);
	}
	ours_start(o, GR_WRITERS_STORES);
	w->tracker = o;
	w->burst = thread_burst;
}

static void uffd_wp_create(struct watched *w)
{
	uffd_create(w, GR_TRACKER_UFFD_WP);
}

static void uffd_sync_create(struct watched *w)
{
	uffd_create(w, GR_TRACKER_UFFD_SYNC);
}

/*
 * The only use that QEMU makes of it, in its background snapshots: a thread is told of each fault,
 * notes the page and opens it. Here what was opened is closed again before it is read.
 */
struct handler {
	struct watched *w;
	struct flat *flat;
	int uffd, stop;
	pthread_t thread;
	pthread_mutex_t lock; /* from the mark to the opening: nobody closes in between */
};

static void protect(struct handler *h, uint64_t first, uint64_t n, bool closed)
{
	struct uffdio_writeprotect wp = {
		.range = { (uint64_t)(uintptr_t)h->w->host + first * PAGE, n * PAGE },
		.mode = closed ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	while (ioctl(h->uffd, UFFDIO_WRITEPROTECT, &wp) < 0) {
		if (errno != EAGAIN && errno != EINTR) {
			bench_die("UFFDIO_WRITEPROTECT: %s", strerror(errno));
		}
	}
}

static void *handle(void *opaque)
{
	struct handler *h = opaque;
	struct pollfd p[2] = { { .fd = h->uffd, .events = POLLIN },
			       { .fd = h->stop, .events = POLLIN } };

	while (poll(p, 2, -1) < 0 || !(p[1].revents & POLLIN)) {
		struct uffd_msg msg;

		if (read(h->uffd, &msg, sizeof(msg)) == (ssize_t)sizeof(msg)) {
			uint64_t page =
				(msg.arg.pagefault.address - (uint64_t)(uintptr_t)h->w->host) /
				PAGE;

			pthread_mutex_lock(&h->lock);
			flat_mark(h->flat, page);
			protect(h, page, 1, false);
			pthread_mutex_unlock(&h->lock);
		}
	}
	return NULL;
}

static void handler_create(struct watched *w)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_register reg = { .range = { (uint64_t)(uintptr_t)w->host, w->pages * PAGE },
				       .mode = UFFDIO_REGISTER_MODE_WP };
	struct handler *h = calloc(1, sizeof(*h));

	if (!h) {
		bench_die("no memory");
	}
	h->w = w;
	h->flat = flat_create(w->pages);
	h->stop = eventfd(0, EFD_CLOEXEC);
	h->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (h->uffd < 0 || ioctl(h->uffd, UFFDIO_API, &api) < 0 ||
	    ioctl(h->uffd, UFFDIO_REGISTER, &reg) < 0) {
		bench_die("userfaultfd: %s", strerror(errno));
	}
	protect(h, 0, w->pages, true);
	pthread_mutex_init(&h->lock, NULL);
	if (pthread_create(&h->thread, NULL, handle, h) != 0) {
		bench_die("no thread");
	}
	w->tracker = h;
	w->burst = thread_burst;
}

static void handler_round(struct watched *w)
{
	struct handler *h = w->tracker;
	uint64_t first, n;

	(void)flat_harvest(h->flat);
	for (uint64_t at = 0; flat_next(h->flat, at, &first, &n); at = first + n) {
		flat_clear(h->flat, first, n);
		pthread_mutex_lock(&h->lock);
		protect(h, first, n, true);
		pthread_mutex_unlock(&h->lock);
		watched_read(w, first, n);
	}
}

static void handler_destroy(struct watched *w)
{
	struct handler *h = w->tracker;

	if (eventfd_write(h->stop, 1) < 0) {
		bench_die("eventfd: %s", strerror(errno));
	}
	pthread_join(h->thread, NULL);
	close(h->uffd);
	close(h->stop);
	flat_free(h->flat);
	free(h);
}

const struct comparison compare_uffd_wp = {
	.name = "uffd_wp",
	.ours = { "ours", uffd_wp_create, ours_round, ours_destroy },
	.qemu = { "QEMU's scheme: a thread for faults", handler_create, handler_round,
		  handler_destroy },
	.untracked = { "untracked guest", untracked_create, NULL, nothing },
};
const struct comparison compare_uffd_sync = {
	.name = "uffd_sync",
	.ours = { "ours", uffd_sync_create, ours_round, ours_destroy },
	.qemu = { "QEMU's scheme: a thread for faults", handler_create, handler_round,
		  handler_destroy },
	.untracked = { "untracked guest", untracked_create, NULL, nothing },
};

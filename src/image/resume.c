/* SPDX-License-Identifier: MIT */
/*
 * A machine that starts before its memory has come. Its blocks are registered with userfaultfd for
 * missing pages: who touches a page that has not come sleeps until the server's thread has read and
 * placed it (resume_pages.h); meanwhile threads load ahead, from the beginning of each block. When
 * every page is done the last of them takes the registration off, and the machine is as if it had
 * been loaded at once.
 *
 * Mapping the image privately would be simpler. But a page that cannot be read would be SIGBUS,
 * write protection (and so tracking) wants memory that no file is behind, and other processes could
 * not be given the memory.
 */
#include "base/atomic.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/signals.h"
#include "base/wake_fd.h"
#include "image/load.h"
#include "image/resume_pages.h"
#include "ram/ram.h"
#include <errno.h>
#include <guestram/track.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>

enum { THREADS_MAX = 16 };

struct gr_image_resume {
	struct gr_resume_pages pages;
	struct gr_image_members members; /* (c) */
	struct gr_ram *ram;		 /* (c) */
	uint64_t bytes_per_s_max;	 /* (c) */
	struct gr_ram_discard_watch watch;
	bool serving;			  /* (c) watch and tables are in force until it is over */
	pthread_t threads[THREADS_MAX];	  /* (c) the first is the one that ends it */
	unsigned int thread_count;	  /* (c) */
	uint32_t next_thread;		  /* (a) */
	uint8_t *ahead_buffers;		  /* (c) one for each thread */
	size_t ahead_buffer_bytes;	  /* (c) */
	struct gr_event stop;		  /* for good */
	struct gr_event over;		  /* completed or failed */
	int fd, write_fd;		  /* (c) readable when it is over */
	enum gr_image_resume_state state; /* (pages.lock) */
	uint64_t began_ns;		  /* (c) */
	uint64_t total_bytes;		  /* (c) */
	gr_atomic_u64 ahead_began_ns;	  /* (a) or, after a failure, went on */
	gr_atomic_u64 ahead_bytes;	  /* (a) since then */
	uint64_t start_ns, total_ns;	  /* (c), (pages.lock) */
};

/* ---- ranges ------------------------------------------------------------------------------ */

/* Memory that is ours to serve: ordinary pages that nobody has asked to be there. */
static bool can_serve(const struct gr_ram_block *block, uint64_t page_bytes)
{
	unsigned int flags = gr_ram_block_flags(block);

	return (block->backing == GR_RAM_MEMFD ||
		(block->backing == GR_RAM_ANONYMOUS && !(flags & GR_RAM_SHARED))) &&
	       block->page_bytes == gr_page_bytes() && page_bytes % gr_page_bytes() == 0 &&
	       !(flags & (GR_RAM_PREALLOC | GR_RAM_LOCK | GR_RAM_HOST_READONLY));
}

static struct uffdio_range range_of(const struct gr_resume_pages *p,
				    const struct gr_resume_range *r)
{
	struct uffdio_range range = { r->start, r->pages * p->image->page_bytes };

	return range;
}

static void unregister(struct gr_resume_pages *p)
{
	for (uint32_t i = 0; i < p->ranges; i++) {
		struct uffdio_range range = range_of(p, &p->range[i]);

		if (p->range[i].registered) {
			/* It wakes who sleeps, under the lock that a fault takes. */
			(void)ioctl(p->server.uffd, UFFDIO_UNREGISTER, &range);
		}
	}
}

static int by_address(const void *a, const void *b)
{
	const struct gr_resume_range *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* Nothing is left of what it had, and whoever touches it from now on sleeps. */
static int arm(struct gr_resume_pages *p, struct gr_resume_range *r, struct gr_error *err)
{
	struct uffdio_register reg = { .range = range_of(p, r),
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	const uint64_t needed = UINT64_C(1) << _UFFDIO_COPY | UINT64_C(1) << _UFFDIO_ZEROPAGE;
	uint64_t words = GR_DIV_ROUND_UP(r->pages, 64);

	r->taken = malloc(words * sizeof(*r->taken));
	r->done = malloc(words * sizeof(*r->done));
	if (!r->taken || !r->done) {
		return gr_error_set(err, -ENOMEM, "block '%s': no memory for its page map",
				    r->part->place.id);
	}
	for (uint64_t i = 0; i < words; i++) {
		r->taken[i] = r->done[i] = ~r->part->present[i];
	}
	p->left += r->part->present_pages;
	if (ioctl(p->server.uffd, UFFDIO_REGISTER, &reg) < 0) {
		return gr_error_set(
			err, -errno, "block '%s': UFFDIO_REGISTER: %s%s", r->part->place.id,
			strerror(errno),
			errno == EBUSY ? " (another userfaultfd has this memory: is it tracked?)"
				       : "");
	}
	r->registered = true;
	if ((reg.ioctls & needed) != needed) {
		return gr_error_set(err, -ENOTSUP, "block '%s': userfaultfd cannot fill its pages",
				    r->part->place.id);
	}
	return 0;
}

/*
 * Which blocks are served; what is in them goes, since all of it is to be the image's. The others
 * are loaded now, while it is quiet.
 */
static int split(struct gr_image_resume *r, unsigned int threads, bool direct, struct gr_error *err)
{
	struct gr_resume_pages *p = &r->pages;
	struct gr_image_stats ignored;
	int rc;

	p->range = calloc(r->members.count, sizeof(*p->range));
	if (!p->range) {
		return gr_error_set(err, -ENOMEM, "no memory to resume %u blocks",
				    r->members.count);
	}
	for (uint32_t i = 0; i < r->members.count; i++) {
		struct gr_image_member *m = &r->members.of[i];
		struct gr_resume_range *range = &p->range[p->ranges];

		if (!can_serve(m->block, p->image->page_bytes) ||
		    gr_ram_discard(m->block, 0, m->bytes, NULL) < 0) {
			continue;
		}
		range->block = m->block;
		range->part = &p->image->parts[i];
		range->start = (uint64_t)(uintptr_t)m->block->host;
		range->pages = m->bytes / p->image->page_bytes;
		p->ranges++;
		m->bytes = 0; /* not for gr_image_load_members() */
	}
	qsort(p->range, p->ranges, sizeof(*p->range), by_address);
	rc = gr_image_load_members(p->image, &r->members, threads, direct, &ignored, err);
	for (uint32_t i = 0; rc == 0 && i < p->ranges; i++) {
		rc = arm(p, &p->range[i], err);
	}
	r->total_bytes = p->left * p->image->page_bytes;
	return rc;
}

static int before_discard(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			  bool lost, struct gr_error *err)
{
	struct gr_image_resume *r = opaque;

	(void)lost;
	(void)err;
	if (!gr_uffd_server_ours(&r->pages.server)) {
		return 0; /* a child: nothing comes there, and who had pages is not there either */
	}
#ifndef GR_MUTANT_RESUME_DISCARD_COMES_BACK
	gr_resume_discard(&r->pages, block, offset, bytes);
#endif
	return 0;
}

/* ---- threads ------------------------------------------------------------------------------ */

/* With the lock: who asks finds the state, the event and the descriptor in step. */
static void set_state_locked(struct gr_image_resume *r, enum gr_image_resume_state state)
	GR_REQUIRES(r->pages.lock)
{
	r->state = state;
	r->total_ns = gr_clock_ns() - r->began_ns;
	gr_event_set(&r->over);
	gr_wake_fd_ring(r->write_fd);
}

/* Takes back what served the machine. */
static void stop_serving(struct gr_image_resume *r)
{
	if (r->serving) {
		gr_ram_discard_watch_del(r->ram, &r->watch);
		r->serving = false; /* afterwards: a child that is forked meanwhile has it listed */
		gr_ram_tables_allow(r->ram);
	}
}

/* Something to tell the owner of. */
static bool news(struct gr_resume_pages *p)
{
	struct gr_signals saved;
	bool is;

	gr_uffd_lock(&p->lock, &saved);
	is = p->left == 0 || p->failed;
	gr_uffd_unlock(&p->lock, &saved);
	return is;
}

/*
 * Does not load ahead faster than it may. Sleeps no longer than there is something to wait for: the
 * thread that ends it all hears of the last page and of a failure, whoever brings it.
 */
static void pace(struct gr_image_resume *r, bool finisher, uint64_t bytes)
{
	uint64_t sum = gr_add_relaxed(&r->ahead_bytes, bytes) + bytes, due_ns, now_ns;

	if (r->bytes_per_s_max == 0) {
		return;
	}
	due_ns = gr_load_relaxed(&r->ahead_began_ns) +
		 (uint64_t)((double)sum * 1e9 / (double)r->bytes_per_s_max);
	while ((now_ns = gr_clock_ns()) < due_ns && !gr_event_is_set(&r->stop)) {
		if (!finisher) {
			(void)gr_event_wait_timeout(&r->stop, due_ns - now_ns);
			continue;
		}
		gr_event_reset(&r->pages.finisher);
		if (news(&r->pages) || gr_event_is_set(&r->stop)) {
			return;
		}
		(void)gr_event_wait_timeout(&r->pages.finisher, due_ns - now_ns);
	}
}

/* Nothing is left to take. Whether it is all over. */
static bool look(struct gr_image_resume *r)
{
	struct gr_signals saved;
	struct gr_resume_pages *p = &r->pages;
	bool completed;

	gr_uffd_lock(&r->pages.lock, &saved);
	completed = p->left == 0;
	if (!completed && p->failed && r->state == GR_IMAGE_RESUME_LOADING) {
		set_state_locked(r, GR_IMAGE_RESUME_FAILED);
	}
	gr_uffd_unlock(&r->pages.lock, &saved);
	if (completed) {
		unregister(p);
		stop_serving(r);
		gr_ram_loading_end(r->ram);
		gr_uffd_lock(&r->pages.lock, &saved);
		set_state_locked(r, GR_IMAGE_RESUME_COMPLETED);
		gr_uffd_unlock(&r->pages.lock, &saved);
	}
	return completed;
}

/* The first thread stays until the end; the others while there is something to take. */
static void *ahead(void *opaque)
{
	struct gr_image_resume *r = opaque;
	struct gr_resume_pages *p = &r->pages;
	uint32_t number = gr_add_relaxed(&r->next_thread, 1u);
	uint8_t *buffer = r->ahead_buffers + number * r->ahead_buffer_bytes;
	uint64_t bytes = 0;
	int rc;

	while (!gr_event_is_set(&r->stop)) {
		if (number == 0) {
			gr_event_reset(&p->finisher);
		}
		rc = gr_resume_ahead(p, buffer, &bytes);
		if (rc > 0) {
			pace(r, number == 0, bytes);
		} else if (number == 0 ? look(r) : rc == 0) {
			break;
		} else if (!gr_event_is_set(&r->stop)) {
			/* after the reset, or the failure: who stops us sets stop first */
			gr_event_wait(number == 0 ? &p->finisher : &p->unfailed);
		}
	}
	return NULL;
}

static int start_threads(struct gr_image_resume *r, unsigned int threads, struct gr_error *err)
{
	size_t page = GR_MAX((size_t)r->pages.image->page_bytes, gr_page_bytes());
	struct gr_signals saved;
	int rc = 0;

	threads = GR_MAX(threads, 1u);
	threads = GR_MIN(threads, (unsigned int)THREADS_MAX);
	r->ahead_buffer_bytes = GR_MAX((size_t)GR_RESUME_AHEAD_BYTES, page);
	r->ahead_buffers = gr_aligned_alloc(page, threads * r->ahead_buffer_bytes);
	if (!r->ahead_buffers) {
		return gr_error_set(err, -ENOMEM, "no memory to load ahead");
	}
	gr_store_relaxed(&r->ahead_began_ns, gr_clock_ns());
	/* A handler of the application's that touches guest memory must not run on these. */
	gr_signals_block(&saved);
	while (r->thread_count < threads && rc == 0) {
		rc = pthread_create(&r->threads[r->thread_count], NULL, ahead, r);
		r->thread_count += rc == 0;
	}
	gr_signals_restore(&saved);
	/* One is needed, more are a wish. */
	return r->thread_count > 0
		       ? 0
		       : gr_error_set(err, -rc, "no thread to load ahead: %s", strerror(rc));
}

/* ---- start and end ------------------------------------------------------------------------ */

static int check_writers(const struct gr_image_resume *r, unsigned int writers,
			 struct gr_error *err)
{
	const unsigned int by_kernel =
		GR_WRITERS_KVM_VCPUS | GR_WRITERS_MAPPING | GR_WRITERS_MARKED;

	if (writers & ~(by_kernel | GR_WRITERS_STORES)) {
		return gr_error_set(
			err, -EINVAL,
			"who has another mapping, or is another process, would see zeroes "
			"instead of pages that have not come");
	}
	if ((writers & by_kernel) && !r->pages.server.kernel_faults) {
		return gr_error_set(
			err, -EINVAL,
			"what system calls or KVM touch cannot wait: " GR_UFFD_USER_FAULTS_WHY);
	}
	return 0;
}

static void destroy(struct gr_image_resume *r)
{
	struct gr_resume_pages *p = &r->pages;

	for (uint32_t i = 0; i < p->ranges; i++) {
		free(p->range[i].taken);
		free(p->range[i].done);
	}
	free(p->range);
	gr_aligned_free(p->touch_buffer);
	gr_aligned_free(r->ahead_buffers);
	gr_direct_close(&p->direct);
	gr_uffd_server_close(&p->server);
	gr_wake_fd_close(r->fd, r->write_fd);
	gr_image_members_free(&r->members);
	if (gr_uffd_server_ours(&p->server)) { /* in a child it may be anybody's */
		gr_mutex_destroy(&p->lock);
	}
	free(r);
}

/* From here on the machine's memory may be touched: by its devices when they are loaded, then by
 * all. */
static int serve(struct gr_image_resume *r, const struct gr_image_resume_params *params,
		 struct gr_error *err)
{
	int rc = gr_ram_tables_forbid(r->ram, err);

	if (rc < 0) {
		return rc;
	}
	r->watch = (struct gr_ram_discard_watch){ .before = before_discard, .opaque = r };
	gr_ram_discard_watch_add(r->ram, &r->watch);
	r->serving = true;
	rc = gr_uffd_server_run(&r->pages.server, err);
	return rc < 0 ? rc : start_threads(r, params->threads, err);
}

/* In a child: it has neither the threads nor a say about its parent's memory, but the list. */
static void stop_in_child(struct gr_image_resume *r)
{
	if (r->state != GR_IMAGE_RESUME_COMPLETED) {
		stop_serving(r);
		gr_ram_loading_end(r->ram);
	}
}

/* What has not come reads as zero from here on. */
static void stop(struct gr_image_resume *r)
{
	gr_event_set(&r->stop);
	gr_event_set(&r->pages.finisher);
	gr_event_set(&r->pages.unfailed);
	for (unsigned int i = 0; i < r->thread_count; i++) {
		(void)pthread_join(r->threads[i], NULL);
	}
	gr_uffd_server_stop(&r->pages.server);
	if (r->state != GR_IMAGE_RESUME_COMPLETED) {
		unregister(&r->pages);
		stop_serving(r);
		gr_ram_loading_end(r->ram);
	}
}

/*
 * A device's state may be in guest memory. Who loads it is in our caller's stead, who can try
 * nothing again before we return: a page that it touched and that cannot be read is a failure.
 */
static int load_devices(struct gr_image_resume *r, const struct gr_destination_ops *ops,
			struct gr_error *err)
{
	struct gr_resume_pages *p = &r->pages;
	int rc = gr_image_load_devices(p->image, ops, err);
	struct gr_signals saved;
	struct gr_error why;
	bool lost;

	gr_uffd_lock(&p->lock, &saved);
	p->starting = false;
#ifndef GR_MUTANT_RESUME_STARTS_LOST
	lost = p->lost;
#else
	lost = false;
#endif
	why = p->err;
	gr_uffd_unlock(&p->lock, &saved);
	return lost ? gr_error_set(err, why.code, "%s", why.msg) : rc;
}

static int prepare(struct gr_image_resume *r, struct gr_image *image,
		   const struct gr_image_resume_params *params,
		   const struct gr_destination_ops *ops, struct gr_error *err)
{
	struct gr_resume_pages *p = &r->pages;
	int rc = gr_uffd_server_open_missing(&p->server, gr_resume_touched, p, err);

	if (rc < 0) {
		gr_error_prefix(err, "the machine can only be loaded at once: ");
		return rc;
	}
	rc = check_writers(r, params->writers, err);
	if (rc == 0) {
		rc = gr_wake_fd_open(&r->fd, &r->write_fd);
		rc = rc < 0 ? gr_error_set(err, rc, "no descriptor: %s", strerror(-rc)) : 0;
	}
	gr_direct_open(&p->direct, image->fd, params->direct, false);
	p->touch_buffer = gr_resume_buffer(p, GR_RESUME_TOUCH_BYTES);
	if (rc == 0 && !p->touch_buffer) {
		rc = gr_error_set(err, -ENOMEM, "no memory to resume");
	}
	if (rc == 0) {
		rc = gr_image_check_machine(image, params->machine, err);
	}
	if (rc == 0) {
		rc = gr_image_members_attach(&r->members, image, r->ram, ops, err);
	}
	if (rc == 0) {
		rc = split(r, params->threads, params->direct, err);
	}
	if (rc == 0) {
		rc = serve(r, params, err);
	}
	return rc < 0 ? rc : load_devices(r, ops, err);
}

int gr_image_resume_start(struct gr_image *image, struct gr_ram *ram,
			  const struct gr_image_resume_params *params,
			  const struct gr_destination_ops *ops, struct gr_image_resume **ret_resume,
			  struct gr_error *err)
{
	static const struct gr_destination_ops no_ops = { 0 };
	struct gr_image_resume *r;
	int rc;

	if (params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "parameters of another size");
	}
	rc = gr_ram_loading_begin(ram, err);
	if (rc < 0) {
		return rc;
	}
	r = calloc(1, sizeof(*r));
	if (!r) {
		gr_ram_loading_end(ram);
		return gr_error_set(err, -ENOMEM, "no memory to resume");
	}
	r->began_ns = gr_clock_ns();
	r->ram = ram;
	r->bytes_per_s_max = params->bandwidth_bytes_per_s_max;
	r->fd = r->write_fd = -1;
	r->pages.image = image;
	r->pages.direct.direct_fd = -1;
	r->pages.starting = true;
	gr_mutex_init(&r->pages.lock, GR_RANK_TRACKER);
	gr_event_init(&r->pages.discarder, false);
	gr_event_init(&r->pages.finisher, false);
	gr_event_init(&r->pages.unfailed, true);
	gr_event_init(&r->stop, false);
	gr_event_init(&r->over, false);
	rc = prepare(r, image, params, ops ? ops : &no_ops, err);
	if (rc < 0) {
		stop(r);
		destroy(r);
		return rc;
	}
	r->start_ns = gr_clock_ns() - r->began_ns;
	*ret_resume = r;
	return 0;
}

int gr_image_resume_fd(const struct gr_image_resume *resume)
{
	return resume->fd;
}

int gr_image_resume_wait(struct gr_image_resume *r, uint64_t timeout_ns, struct gr_error *err)
{
	struct gr_signals saved;
	uint64_t began_ns = gr_clock_ns(), waited_ns = 0;
	enum gr_image_resume_state state = GR_IMAGE_RESUME_LOADING;
	struct gr_error why = { 0 };

	/* More than once if somebody has it tried again while we wake. */
	while (state == GR_IMAGE_RESUME_LOADING) {
		if (!gr_event_wait_timeout(&r->over, timeout_ns - GR_MIN(waited_ns, timeout_ns))) {
			return gr_error_set(err, -ETIMEDOUT, "the image has not been loaded yet");
		}
		gr_uffd_lock(&r->pages.lock, &saved);
		state = r->state;
		why = r->pages.err;
		gr_uffd_unlock(&r->pages.lock, &saved);
		waited_ns = gr_clock_ns() - began_ns;
	}
	return state == GR_IMAGE_RESUME_COMPLETED ? 0 : gr_error_set(err, why.code, "%s", why.msg);
}

void gr_image_resume_retry(struct gr_image_resume *r)
{
	struct gr_signals saved;

	gr_uffd_lock(&r->pages.lock, &saved);
	if (r->state == GR_IMAGE_RESUME_FAILED) {
		r->state = GR_IMAGE_RESUME_LOADING;
		r->pages.failed = false;
		/* The time of the failure is not made up for. */
		gr_store_relaxed(&r->ahead_began_ns, gr_clock_ns());
		gr_store_relaxed(&r->ahead_bytes, 0);
		gr_event_set(&r->pages.unfailed);
		gr_event_reset(&r->over);
		(void)gr_wake_fd_silence(r->fd);
	}
	gr_uffd_unlock(&r->pages.lock, &saved);
	gr_resume_try_again(&r->pages);
}

void gr_image_resume_stats(struct gr_image_resume *r, struct gr_image_resume_stats *ret_stats)
{
	struct gr_signals saved;
	struct gr_resume_pages *p = &r->pages;

	gr_uffd_lock(&p->lock, &saved);
	*ret_stats = (struct gr_image_resume_stats){
		.state = r->state,
		.total_bytes = r->total_bytes,
		.left_bytes = p->left * p->image->page_bytes,
		.discarded_bytes = p->discarded * p->image->page_bytes,
		.touches = p->touches,
		.start_ns = r->start_ns,
		.total_ns = r->state == GR_IMAGE_RESUME_LOADING ? gr_clock_ns() - r->began_ns
								: r->total_ns,
		.direct = gr_direct_is_on(&p->direct),
	};
	gr_uffd_unlock(&p->lock, &saved);
	gr_direct_why(&p->direct, ret_stats->why_not_direct, sizeof(ret_stats->why_not_direct));
}

int gr_image_resume_end(struct gr_image_resume *r, struct gr_error *err)
{
	uint64_t left;
	bool ours;

	if (!r) {
		return 0;
	}
	ours = gr_uffd_server_ours(&r->pages.server);
	if (ours) {
		stop(r);
	} else {
		stop_in_child(r);
	}
	left = ours ? r->pages.left * r->pages.image->page_bytes : 0;
	destroy(r);
	if (!ours) {
		return gr_error_set(err, -ECANCELED,
				    "the resume is the parent's, from before the fork");
	}
	if (left > 0) {
		return gr_error_set(
			err, -ECANCELED,
			"ended with %llu bytes not loaded, which read as zero now: the machine "
			"must not go on",
			(unsigned long long)left);
	}
	return 0;
}

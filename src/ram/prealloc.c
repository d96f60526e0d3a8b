/* SPDX-License-Identifier: MIT */
/*
 * Memory for a whole block before anybody knows of it, by several threads: the kernel clears the
 * pages, which is all the time there is to save. Threads take the next piece when they are done
 * with one; the first failure stops all of them. No lack of memory raises a signal.
 */
#include "base/atomic.h"
#include "base/signals.h"
#include "ram/ram.h"
#include <errno.h>
#include <pthread.h>
#include <string.h>

#define PIECE_BYTES	((size_t)16 << 20) /* some milliseconds: how often progress is told */
#define THREAD_BYTES	((size_t)64 << 20) /* less is not worth a thread */
enum { THREADS_BY_DEFAULT = 16, THREADS_MAX = 256 };

struct prealloc {
	const struct gr_memory *memory;
	size_t piece_bytes;
	size_t next; /* (a) the first byte that nobody has taken */
	size_t done; /* (a) bytes that have their memory */
	int code;    /* (a) the first failure */
};

static bool one_piece(struct prealloc *p)
{
	const struct gr_memory *m = p->memory;
	int none = 0, code;
	/* Relaxed, all of them: each byte is taken once; the results are read after the joins. */
	size_t at = gr_load_relaxed(&p->code) == 0 ? gr_add_relaxed(&p->next, p->piece_bytes) :
						      m->bytes;
	size_t bytes;

	if (at >= m->bytes) {
		return false;
	}
	bytes = GR_MIN(p->piece_bytes, m->bytes - at);
	code = gr_memory_populate(m, at, bytes);
	if (code != 0) {
		(void)gr_cas_acq_rel(&p->code, &none, code);
		return false;
	}
	(void)gr_add_relaxed(&p->done, bytes);
	return true;
}

static void *work(void *arg)
{
	while (one_piece(arg)) {
	}
	return NULL;
}

static unsigned int threads_for(const struct gr_ram_prealloc *how, size_t bytes)
{
	size_t n = how->threads;

	if (n == 0) {
		n = GR_MIN((size_t)gr_cpus(), bytes / THREAD_BYTES);
		n = GR_MIN(n, (size_t)THREADS_BY_DEFAULT);
	}
	n = GR_MIN(n, (size_t)THREADS_MAX);
	return n != 0 ? (unsigned int)n : 1;
}

static int lacking(const struct gr_block *block, const struct prealloc *p, struct gr_error *err)
{
	return gr_error_set(err, p->code, "block '%s': after %zu of %zu bytes: %s", block->pub.id,
			    p->done, p->memory->bytes,
			    p->code == -ENOSPC ? "no space left behind it, or no free huge pages" :
						 strerror(-p->code));
}

/* The calling thread works too, and tells of the progress. The callback's own failure, or 0. */
static int work_and_tell(struct prealloc *p, const struct gr_ram_prealloc *how)
{
	size_t total = p->memory->bytes;

	while (one_piece(p)) {
		size_t done = gr_load_relaxed(&p->done);
		int ret = how->progress && done < total ?
				  how->progress(done, total, how->opaque) :
				  0;

		if (ret < 0) {
			gr_store_relaxed(&p->next, total); /* the others end with what they have */
			return ret;
		}
	}
	return 0;
}

int gr_prealloc(struct gr_block *block, const struct gr_ram_prealloc *how, struct gr_error *err)
{
	struct prealloc p = {
		.memory = &block->memory,
		.piece_bytes = GR_MAX(PIECE_BYTES, block->memory.page_bytes),
	};
	unsigned int n = threads_for(how, p.memory->bytes), started = 0;
	pthread_t threads[THREADS_MAX];
	struct gr_signals saved;
	int ret;

	/* They inherit the mask: the caller's signal handlers do not run on threads of ours. */
	gr_signals_block(&saved);
	/* Fewer threads than wished for are slower, and that is all. */
	while (started + 1 < n && pthread_create(&threads[started], NULL, work, &p) == 0) {
		started++;
	}
	gr_signals_restore(&saved);
	ret = work_and_tell(&p, how);
	while (started > 0) {
		pthread_join(threads[--started], NULL);
	}
	if (p.code != 0) {
		return lacking(block, &p, err);
	}
	if (ret == 0 && how->progress) {
		ret = how->progress(p.done, p.memory->bytes, how->opaque);
	}
	return ret < 0 ? gr_error_set(err, ret, "block '%s': stopped after %zu of %zu bytes",
				      block->pub.id, p.done, p.memory->bytes) :
			 0;
}

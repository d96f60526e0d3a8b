/* SPDX-License-Identifier: MIT */
#include "image/parallel.h"
#include "base/atomic.h"
#include "base/signals.h"
#include <pthread.h>

bool gr_parallel_next(struct gr_parallel *p, uint64_t *ret_piece)
{
	uint64_t piece;

	/* Only a hint to stop: the failure itself is read when all threads have been joined. */
	if (gr_load_relaxed(&p->failed) != 0) {
		return false;
	}
	/* Nothing is handed over with a number: what pieces are made of is older than the threads.
	 */
	piece = gr_add_relaxed(&p->next, 1);
	*ret_piece = piece;
	return piece < p->pieces;
}

static void *run(void *opaque)
{
	struct gr_parallel *p = opaque;
	struct gr_error err = { 0 };
	int rc = p->work(p, &err), none = 0;

	if (rc < 0 && gr_cas_acq_rel(&p->failed, &none, rc)) {
		p->err = err; /* read after a join */
	}
	return NULL;
}

int gr_parallel_run(struct gr_parallel *p, unsigned int threads, struct gr_error *err)
{
	pthread_t thread[GR_IMAGE_THREADS_MAX];
	struct gr_signals saved;
	unsigned int more = 0;

	/* No more than there are pieces; the application's handlers stay on its own threads. */
	threads = GR_MIN(threads, (unsigned int)GR_IMAGE_THREADS_MAX);
	threads = (unsigned int)GR_MIN((uint64_t)threads, p->pieces);
	gr_signals_block(&saved);
	while (more + 1 < threads && pthread_create(&thread[more], NULL, run, p) == 0) {
		more++;
	}
	gr_signals_restore(&saved);
	(void)run(p);
	for (unsigned int i = 0; i < more; i++) {
		(void)pthread_join(thread[i], NULL);
	}
	if (p->failed < 0 && err) {
		*err = p->err;
	}
	return p->failed;
}

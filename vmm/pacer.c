/* SPDX-License-Identifier: MIT */
#include "pacer.h"
#include <errno.h>
#include <string.h>
#include <time.h>

enum {
	TAKE_OPS_MAX = 256,
	TAKE_AHEAD_NS = 1000000,     /* sleep so long for a lot, not for each operation */
	SLICE_NS = 10000000,	     /* a throttled writer runs so long, then sleeps */
	CATCH_UP_NS_MAX = 100000000, /* a writer that was held up longer does not catch up */
};
#define NS_PER_S UINT64_C(1000000000)

static uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

int vmm_pacer_init(struct vmm_pacer *pacer, unsigned int writers, struct gr_error *err)
{
	pthread_condattr_t attr;
	int rc;

	memset(pacer, 0, sizeof(*pacer));
	pacer->writers = writers;
	(void)pthread_mutex_init(&pacer->lock, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	rc = pthread_cond_init(&pacer->cond, &attr);
	(void)pthread_condattr_destroy(&attr);
	if (rc != 0) {
		(void)pthread_mutex_destroy(&pacer->lock);
		return gr_error_set(err, -rc, "pacer: %s", strerror(rc));
	}
	return 0;
}

void vmm_pacer_destroy(struct vmm_pacer *pacer)
{
	(void)pthread_cond_destroy(&pacer->cond);
	(void)pthread_mutex_destroy(&pacer->lock);
}

static void restart_counting_locked(struct vmm_pacer_writer *writer)
{
	writer->from_ns = now_ns();
	writer->due = 0;
}

void vmm_pacer_set_rate(struct vmm_pacer *pacer, uint64_t rate_bytes_per_s)
{
	(void)pthread_mutex_lock(&pacer->lock);
	pacer->rate_bytes_per_s = rate_bytes_per_s;
	for (unsigned int w = 0; w < pacer->writers; w++) {
		restart_counting_locked(&pacer->writer[w]);
	}
	(void)pthread_cond_broadcast(&pacer->cond);
	(void)pthread_mutex_unlock(&pacer->lock);
}

uint64_t vmm_pacer_rate(struct vmm_pacer *pacer)
{
	uint64_t rate;

	(void)pthread_mutex_lock(&pacer->lock);
	rate = pacer->rate_bytes_per_s;
	(void)pthread_mutex_unlock(&pacer->lock);
	return rate;
}

static void wait_until_locked(struct vmm_pacer *pacer, uint64_t ns)
{
	struct timespec ts = { .tv_sec = (time_t)(ns / NS_PER_S),
			       .tv_nsec = (long)(ns % NS_PER_S) };

	(void)pthread_cond_timedwait(&pacer->cond, &pacer->lock, &ts);
}

/* How many operations are due for the writer now; if none, when to ask again. */
static uint64_t due_locked(struct vmm_pacer *pacer, struct vmm_pacer_writer *writer,
			   uint64_t *ret_wait_ns)
{
	uint64_t now = now_ns(), elapsed_ns, ns_per_op, ops;

	if (pacer->rate_bytes_per_s == VMM_RATE_UNLIMITED) {
		return TAKE_OPS_MAX;
	}
	*ret_wait_ns = now + NS_PER_S;
	if (pacer->rate_bytes_per_s == 0) {
		return 0;
	}
	elapsed_ns = now - writer->from_ns;
	ns_per_op = VMM_PAGE_BYTES * NS_PER_S / pacer->rate_bytes_per_s * pacer->writers;
	if (ns_per_op == 0) {
		return TAKE_OPS_MAX;
	}
	ops = elapsed_ns / ns_per_op;
	if (ops > writer->due) {
		uint64_t behind = ops - writer->due;

		if (behind * ns_per_op > CATCH_UP_NS_MAX && behind > 1) {
			behind = CATCH_UP_NS_MAX / ns_per_op;
			behind = behind > 0 ? behind : 1;
			writer->due = ops - behind;
		}
		return behind;
	}
	*ret_wait_ns = writer->from_ns + (writer->due + 1) * ns_per_op;
	if (*ret_wait_ns < now + TAKE_AHEAD_NS) {
		*ret_wait_ns = now + TAKE_AHEAD_NS;
	}
	return 0;
}

void vmm_pacer_throttle(struct vmm_pacer *pacer, unsigned int percent, unsigned int writers)
{
	(void)pthread_mutex_lock(&pacer->lock);
	pacer->throttle = percent;
	pacer->throttled = writers;
	for (unsigned int w = 0; w < pacer->writers; w++) {
		pacer->writer[w].slice_end_ns = now_ns() + SLICE_NS;
	}
	(void)pthread_cond_broadcast(&pacer->cond);
	(void)pthread_mutex_unlock(&pacer->lock);
}

/* Whether the writer may not write now: its slice is over, it sleeps, until `end_ns` at most. */
static bool loses_time_locked(struct vmm_pacer *pacer, unsigned int w, uint64_t end_ns)
{
	struct vmm_pacer_writer *writer = &pacer->writer[w];
	uint64_t begin = now_ns(), now = begin;

	if (w >= pacer->throttled || pacer->throttle == 0 || begin < writer->slice_end_ns) {
		return false;
	}
	if (writer->wake_ns < writer->slice_end_ns) {
		writer->wake_ns =
			begin + (uint64_t)SLICE_NS * pacer->throttle / (100 - pacer->throttle);
	}
	while (!writer->stop && pacer->throttle != 0 && now < writer->wake_ns && now < end_ns) {
		wait_until_locked(pacer, writer->wake_ns < end_ns ? writer->wake_ns : end_ns);
		now = now_ns();
	}
	writer->from_ns += now - begin;
	if (now >= writer->wake_ns) {
		writer->slice_end_ns = now + SLICE_NS;
	}
	return pacer->throttle != 0 && now < writer->wake_ns;
}

uint32_t vmm_pacer_take(struct vmm_pacer *pacer, unsigned int w)
{
	return vmm_pacer_take_within(pacer, w, UINT64_MAX);
}

uint32_t vmm_pacer_take_within(struct vmm_pacer *pacer, unsigned int w, uint64_t wait_ns_max)
{
	struct vmm_pacer_writer *writer = &pacer->writer[w];
	uint64_t ops = 0, wait_ns = 0, end_ns;
	bool asleep;

	if (__builtin_add_overflow(now_ns(), wait_ns_max, &end_ns)) {
		end_ns = UINT64_MAX;
	}
	(void)pthread_mutex_lock(&pacer->lock);
	writer->finished = writer->given;
	asleep = loses_time_locked(pacer, w, end_ns);
	while (!asleep && !writer->stop && (ops = due_locked(pacer, writer, &wait_ns)) == 0 &&
	       now_ns() < end_ns) {
		wait_until_locked(pacer, wait_ns < end_ns ? wait_ns : end_ns);
	}
	if (writer->stop) {
		ops = 0;
	}
	ops = ops < TAKE_OPS_MAX ? ops : TAKE_OPS_MAX;
	writer->due += ops;
	writer->given += ops;
	(void)pthread_mutex_unlock(&pacer->lock);
	return (uint32_t)ops;
}

void vmm_pacer_give_back(struct vmm_pacer *pacer, unsigned int w, uint32_t ops)
{
	(void)pthread_mutex_lock(&pacer->lock);
	pacer->writer[w].given -= ops;
	(void)pthread_mutex_unlock(&pacer->lock);
}

void vmm_pacer_stop(struct vmm_pacer *pacer, unsigned int w)
{
	(void)pthread_mutex_lock(&pacer->lock);
	pacer->writer[w].stop = true;
	(void)pthread_cond_broadcast(&pacer->cond);
	(void)pthread_mutex_unlock(&pacer->lock);
}

void vmm_pacer_go(struct vmm_pacer *pacer, unsigned int w)
{
	(void)pthread_mutex_lock(&pacer->lock);
	pacer->writer[w].stop = false;
	restart_counting_locked(&pacer->writer[w]);
	(void)pthread_cond_broadcast(&pacer->cond);
	(void)pthread_mutex_unlock(&pacer->lock);
}

uint64_t vmm_pacer_finished(struct vmm_pacer *pacer, unsigned int w)
{
	uint64_t finished;

	(void)pthread_mutex_lock(&pacer->lock);
	finished = pacer->writer[w].finished;
	(void)pthread_mutex_unlock(&pacer->lock);
	return finished;
}

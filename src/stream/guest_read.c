/* SPDX-License-Identifier: MIT */
/* Reading into guest memory that a tracker may begin to protect meanwhile. */
#include "base/memory.h"
#include "stream/reader.h"
#include <errno.h>

enum { TOUCHES_MAX = 100 };

/* Each page gets a store, of what is in it. */
static void touch(const struct iovec *iov, int n)
{
	size_t page = gr_page_bytes();

	for (int i = 0; i < n; i++) {
		volatile uint8_t *at = iov[i].iov_base;

		for (size_t left = iov[i].iov_len; left > 0;) {
			size_t step = GR_MIN(page - (uintptr_t)at % page, left);

			*at = *at;
			at += step;
			left -= step;
		}
	}
}

ssize_t gr_stream_read_guest(const struct gr_stream_source *source, const struct gr_stream_memory *memory,
			     struct gr_stream_block *block, const struct iovec *iov, int n,
			     struct gr_error *err)
{
	ssize_t got = source->readv(source->opaque, iov, n, err);
	bool again = true;

	/* Again and again if the tracker protects again meanwhile, which it does now and then. */
	for (int tries = 0; got == -EFAULT && again && tries < TOUCHES_MAX; tries++) {
		again = memory->stores_only && memory->stores_only(memory->opaque, block);
#ifdef GR_MUTANT_READ_TOUCHES_ANY
		again = true;
#endif
		if (again) {
			touch(iov, n);
		}
		/* If not, it may just have ended: once more. */
		got = source->readv(source->opaque, iov, n, err);
	}
	if (got == -EFAULT) {
		(void)gr_error_set(err, -EFAULT,
				   "its memory cannot be written: its file has become too short, there is no huge "
				   "page left, or a page is broken");
	}
	return got;
}

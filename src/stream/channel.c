/* SPDX-License-Identifier: MIT */
/* What all channels share. Waiting is in channel_wait.c. */
#include "stream/channel.h"
#include "base/atomic.h"
#include <errno.h>
#include <limits.h>
#include <string.h>

enum {
	WRITE_IOV_MAX = 256,	    /* entries handed to one system call */
	REFER_BYTES_MIN = 32 << 10, /* a shorter run is cheaper to copy */
};

int gr_channel_init(struct gr_channel *ch, const struct gr_channel_ops *ops, const char *name,
		    int fd, struct gr_error *err)
{
	int code;

	memset(ch, 0, sizeof(*ch));
	ch->ops = ops;
	ch->fd = fd;
	ch->name = strdup(name);
	if (!ch->name) {
		return gr_error_set(err, -ENOMEM, "%s: out of memory", name);
	}
	code = gr_channel_wait_init(ch);
	if (code < 0) {
		free(ch->name);
		return gr_error_set(err, code, "%s: cannot be waited for: %s", name,
				    strerror(-code));
	}
	return 0;
}

int gr_channel_fini(struct gr_channel *ch)
{
	int code = gr_channel_wait_fini(ch);

	free(ch->name);
	return code;
}

static int canceled(const struct gr_channel *ch, struct gr_error *err)
{
	return gr_error_set(err, -ECANCELED, "%s: the channel was shut down", ch->name);
}

/* What one attempt is to move. */
struct transfer {
	enum { READ, WRITE, SEND_FILE } how;
	const struct iovec *iov; /* READ, WRITE */
	int n;
	int file; /* SEND_FILE */
	uint64_t offset;
	size_t bytes;
};

static ssize_t once(struct gr_channel *ch, const struct transfer *t)
{
	switch (t->how) {
	case READ:
		return ch->ops->readv(ch, t->iov, t->n);
	case WRITE:
		return ch->ops->writev(ch, t->iov, t->n);
	case SEND_FILE:
	default:
		return ch->ops->send_file(ch, t->file, t->offset, t->bytes);
	}
}

/* One attempt or several: until something moved, or it failed for good. */
static ssize_t attempt(struct gr_channel *ch, const struct transfer *t, struct gr_error *err)
{
	bool writing = t->how != READ;

	for (;;) {
		ssize_t done;
		int rc;

		/* Orders nothing: the cancel wakes whoever comes too late to see it. */
		if (gr_load_relaxed(&ch->shut)) {
			return canceled(ch, err);
		}
		done = once(ch, t);
		/* What was moved was moved: a peer may have acted on it already. */
		if (done > 0 || (done == 0 && !gr_load_relaxed(&ch->shut))) {
			return done;
		}
		if (done == 0) {
			return canceled(ch, err); /* an end that the shutdown made */
		}
		if (done == -EINTR) {
			continue;
		}
		if (done != -EAGAIN) {
			return gr_load_relaxed(&ch->shut)
				       ? canceled(ch, err)
				       : gr_error_set(err, (int)done, "%s: %s: %s", ch->name,
						      writing ? "write" : "read",
						      strerror((int)-done));
		}
		rc = gr_channel_wait(ch, writing);
		if (rc == -ECANCELED) {
			return canceled(ch, err);
		}
		if (rc < 0) {
			return gr_error_set(err, rc, "%s: poll: %s", ch->name, strerror(-rc));
		}
	}
}

ssize_t gr_channel_readv(struct gr_channel *ch, const struct iovec *iov, int n,
			 struct gr_error *err)
{
	struct transfer t = { .how = READ, .iov = iov, .n = n };
	ssize_t got;

	if (!ch->ops->readv) {
		return gr_error_set(err, -EBADF, "%s: cannot be read", ch->name);
	}
	got = attempt(ch, &t, err);
	if (got > 0) {
		gr_store_relaxed(&ch->bytes_read, ch->bytes_read + (uint64_t)got);
	}
	return got;
}

/* Takes done bytes off the front of the vector; returns its new start. */
static struct iovec *advance(struct iovec *iov, struct iovec *end, size_t done)
{
	while (iov < end && done >= iov->iov_len) {
		done -= iov->iov_len;
		iov++;
	}
	if (done) {
		iov->iov_base = (uint8_t *)iov->iov_base + done;
		iov->iov_len -= done;
	}
	return iov;
}

int gr_channel_writev_all(struct gr_channel *ch, const struct iovec *iov, int n,
			  struct gr_error *err)
{
	struct iovec work[WRITE_IOV_MAX];

	if (!ch->ops->writev) {
		return gr_error_set(err, -EBADF, "%s: cannot be written", ch->name);
	}
	while (n > 0) {
		int batch = GR_MIN(n, (int)WRITE_IOV_MAX);
		struct iovec *p = work, *end = work + batch;

		memcpy(work, iov, (size_t)batch * sizeof(*iov));
		p = advance(p, end, 0); /* leaves out empty entries */
		while (p < end) {
			struct transfer t = { .how = WRITE, .iov = p, .n = (int)(end - p) };
			ssize_t done = attempt(ch, &t, err);

			if (done < 0) {
				return (int)done;
			}
			if (done == 0) {
				return gr_error_set(err, -EIO, "%s: nothing could be written",
						    ch->name);
			}
			gr_store_relaxed(&ch->bytes_written, ch->bytes_written + (uint64_t)done);
			p = advance(p, end, (size_t)done);
		}
		iov += batch;
		n -= batch;
	}
	return 0;
}

int gr_channel_write_all(struct gr_channel *ch, const void *data, size_t n, struct gr_error *err)
{
	struct iovec iov = { (void *)(uintptr_t)data, n };

	return gr_channel_writev_all(ch, &iov, 1, err);
}

bool gr_channel_sends_files(const struct gr_channel *ch)
{
	return ch->ops->send_file != NULL && !ch->refused_file;
}

/* Whether a write would fail too: of what else is in the way there may be a copy. */
static bool is_broken(ssize_t code)
{
#ifdef GR_MUTANT_CHANNEL_FILE_OR_NOTHING
	return code < 0 && code != -EINVAL;
#endif
	return code == -ECANCELED || code == -EPIPE || code == -ECONNRESET;
}

ssize_t gr_channel_send_file(struct gr_channel *ch, int file, uint64_t offset, size_t bytes,
			     struct gr_error *err)
{
	size_t sent = 0;

	while (gr_channel_sends_files(ch) && sent < bytes) {
		struct transfer t = { .how = SEND_FILE,
				      .file = file,
				      .offset = offset + sent,
				      .bytes = bytes - sent };
		struct gr_error why = { 0 };
		ssize_t done = attempt(ch, &t, &why);

		if (is_broken(done)) {
			return gr_error_set(err, (int)done, "%s", why.msg);
		}
		if (done <= 0) {
			ch->refused_file = done < 0; /* or the file ends */
			break; /* what is wrong with the channel the write that follows will say */
		}
		gr_store_relaxed(&ch->bytes_written, ch->bytes_written + (uint64_t)done);
		sent += (size_t)done;
	}
	return (ssize_t)sent;
}

/* Where in the mapping a run is. */
static uint64_t place_in(const struct gr_channel_file *file, const struct iovec *run)
{
	return (uint64_t)((uintptr_t)run->iov_base - (uintptr_t)file->host);
}

bool gr_channel_may_refer(const struct gr_channel *ch, const struct gr_channel_file *file,
			  const struct iovec *run)
{
	uint64_t at = place_in(file, run);

	return gr_channel_sends_files(ch) && run->iov_len >= REFER_BYTES_MIN && at < file->bytes &&
	       run->iov_len <= file->bytes - at;
}

int gr_channel_refer(struct gr_channel *ch, const struct gr_channel_file *file, struct iovec *run,
		     struct gr_error *err)
{
	ssize_t done = gr_channel_send_file(ch, file->fd, file->offset + place_in(file, run),
					    run->iov_len, err);

	if (done < 0) {
		return (int)done;
	}
	run->iov_base = (uint8_t *)run->iov_base + done;
	run->iov_len -= (size_t)done;
	return 0;
}

bool gr_channel_is_duplex(const struct gr_channel *ch)
{
	return ch->duplex;
}

int gr_channel_fd(const struct gr_channel *ch)
{
	return ch->fd;
}

const char *gr_channel_name(const struct gr_channel *ch)
{
	return ch->name;
}

uint64_t gr_channel_bytes_read(const struct gr_channel *ch)
{
	return gr_load_relaxed(&ch->bytes_read);
}

uint64_t gr_channel_bytes_written(const struct gr_channel *ch)
{
	return gr_load_relaxed(&ch->bytes_written);
}

void gr_channel_stop_waiting(struct gr_channel *ch)
{
	gr_store_relaxed(&ch->shut, true);
	gr_channel_wait_end(ch);
}

void gr_channel_shutdown(struct gr_channel *ch)
{
	gr_store_relaxed(&ch->shut, true);
	gr_channel_wait_cancel(ch);
}

int gr_channel_close(struct gr_channel *ch, struct gr_error *err)
{
	const struct gr_channel_ops *ops;
	int code, later = 0;
	char *name;

	if (!ch) {
		return 0;
	}
	ops = ch->ops;
	name = ch->name;
	ch->name = NULL;
	if (ops->before_close) {
		ops->before_close(ch);
	}
	code = gr_channel_fini(ch);
	ch->name = name;
	if (code < 0) {
		(void)gr_error_set(err, code, "%s: close: %s", name, strerror(-code));
	}
	if (ops->after_close) {
		later = ops->after_close(ch, code < 0 ? NULL : err);
	}
	free(name);
	free(ch);
	return code < 0 ? code : later;
}

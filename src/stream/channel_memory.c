/* SPDX-License-Identifier: MIT */
/* A channel that is a script: see gr_memory_script. */
#include "stream/channel.h"
#include <assert.h>
#include <errno.h>
#include <string.h>

struct memory_channel {
	struct gr_channel ch;
	struct gr_memory_script script;
	size_t pos; /* of the next byte to read */
	unsigned int attempts;
	uint8_t *written;
	size_t written_bytes, written_capacity;
};

static_assert(offsetof(struct memory_channel, ch) == 0, "freed as a channel");

static bool interrupted(struct memory_channel *m)
{
	return m->script.eintr_every && ++m->attempts % m->script.eintr_every == 0;
}

static ssize_t memory_readv(struct gr_channel *ch, const struct iovec *iov, int n)
{
	struct memory_channel *m = gr_container_of(ch, struct memory_channel, ch);
	size_t left = m->script.bytes - m->pos;
	size_t done = 0;

	if (interrupted(m)) {
		return -EINTR;
	}
	if (left == 0 && m->script.read_error) {
		return m->script.read_error;
	}
	if (m->script.read_max) {
		left = GR_MIN(left, m->script.read_max);
	}
	for (int i = 0; i < n && left; i++) {
		size_t piece = GR_MIN(iov[i].iov_len, left);

		memcpy(iov[i].iov_base, m->script.data + m->pos, piece);
		m->pos += piece;
		left -= piece;
		done += piece;
	}
	return (ssize_t)done;
}

static int keep(struct memory_channel *m, const void *data, size_t n)
{
	if (n > m->written_capacity - m->written_bytes) {
		size_t capacity = GR_MAX(2 * m->written_capacity, m->written_bytes + n + 4096);
		uint8_t *grown = realloc(m->written, capacity);

		if (!grown) {
			return -ENOMEM;
		}
		m->written = grown;
		m->written_capacity = capacity;
	}
	memcpy(m->written + m->written_bytes, data, n);
	m->written_bytes += n;
	return 0;
}

static ssize_t memory_writev(struct gr_channel *ch, const struct iovec *iov, int n)
{
	struct memory_channel *m = gr_container_of(ch, struct memory_channel, ch);
	size_t left = m->script.write_max ? m->script.write_max : SIZE_MAX;
	size_t done = 0;

	if (interrupted(m)) {
		return -EINTR;
	}
	if (m->script.write_error && m->written_bytes >= m->script.write_fail_at) {
		return m->script.write_error;
	}
	for (int i = 0; i < n && left; i++) {
		size_t piece = GR_MIN(iov[i].iov_len, left);
		int rc = piece ? keep(m, iov[i].iov_base, piece) : 0;

		if (rc < 0) {
			return rc;
		}
		left -= piece;
		done += piece;
	}
	return (ssize_t)done;
}

static int memory_after_close(struct gr_channel *ch, struct gr_error *err)
{
	struct memory_channel *m = gr_container_of(ch, struct memory_channel, ch);

	(void)err;
	free(m->written);
	return 0;
}

static const struct gr_channel_ops memory_ops = {
	.readv = memory_readv,
	.writev = memory_writev,
	.after_close = memory_after_close,
};

int gr_channel_memory(const struct gr_memory_script *script, struct gr_channel **ret_ch,
		      struct gr_error *err)
{
	struct memory_channel *m = calloc(1, sizeof(*m));
	int rc;

	if (!m) {
		return gr_error_set(err, -ENOMEM, "memory: out of memory");
	}
	rc = gr_channel_init(&m->ch, &memory_ops, "memory", -1, err);
	if (rc < 0) {
		free(m);
		return rc;
	}
	if (script) {
		m->script = *script;
	}
	m->ch.duplex = true;
	*ret_ch = &m->ch;
	return 0;
}

const uint8_t *gr_channel_memory_written(struct gr_channel *ch, size_t *ret_bytes)
{
	struct memory_channel *m = gr_container_of(ch, struct memory_channel, ch);

	*ret_bytes = m->written_bytes;
	return m->written;
}

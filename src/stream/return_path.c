/* SPDX-License-Identifier: MIT */
#include "stream/return_path.h"
#include <errno.h>

enum { RP_HEADER_BYTES = 4 };

static const struct {
	enum gr_return_path_type type;
	const char *name;
	bool known; /* understood; the others belong to postcopy */
	uint16_t data_bytes;
} messages[] = {
	{ GR_RETURN_SHUT, "SHUT", true, 4 },
	{ GR_RETURN_PONG, "PONG", true, 4 },
	{ GR_RETURN_REQ_PAGES_ID, "REQ_PAGES_ID", false, 0 },
	{ GR_RETURN_REQ_PAGES, "REQ_PAGES", false, 0 },
	{ GR_RETURN_RECV_BITMAP, "RECV_BITMAP", false, 0 },
	{ GR_RETURN_RESUME_ACK, "RESUME_ACK", true, 4 },
	{ GR_RETURN_SWITCHOVER_ACK, "SWITCHOVER_ACK", true, 0 },
	{ GR_RETURN_FEATURES, "FEATURES", true, 8 },
};

static size_t find(unsigned int type)
{
	size_t i = 0;

	while (i < GR_ARRAY_SIZE(messages) && (unsigned int)messages[i].type != type) {
		i++;
	}
	return i;
}

int gr_return_path_write(struct gr_channel *ch, const struct gr_return_path_message *msg,
			 struct gr_error *err)
{
	uint8_t out[RP_HEADER_BYTES + 8];
	size_t i = find(msg->type);

	GR_ASSERT(i < GR_ARRAY_SIZE(messages) && messages[i].known);
	gr_put_be16(out, (uint16_t)msg->type);
	gr_put_be16(out + 2, messages[i].data_bytes);
	gr_put_be32(out + 4, msg->value);
	gr_put_be32(out + 8, msg->flags);
	return gr_channel_write_all(ch, out, RP_HEADER_BYTES + (size_t)messages[i].data_bytes, err);
}

ssize_t gr_return_path_parse(const uint8_t *data, size_t n, struct gr_return_path_message *msg,
			     struct gr_error *err)
{
	unsigned int type, bytes;
	size_t i;

	if (n < RP_HEADER_BYTES) {
		return 0;
	}
	type = gr_get_be16(data);
	bytes = gr_get_be16(data + 2);
	i = find(type);
	if (i == GR_ARRAY_SIZE(messages)) {
		return gr_error_set(err, -EOPNOTSUPP, "return path: a message of unknown type %u",
				    type);
	}
	if (!messages[i].known) {
		return gr_error_set(err, -EOPNOTSUPP,
				    "return path: %s, which only postcopy may send",
				    messages[i].name);
	}
	if (bytes != messages[i].data_bytes) {
		return gr_error_set(err, -EBADMSG, "return path: %s with %u bytes of data, not %u",
				    messages[i].name, bytes, messages[i].data_bytes);
	}
	if (n < RP_HEADER_BYTES + (size_t)bytes) {
		return 0;
	}
	msg->type = messages[i].type;
	msg->value = bytes >= 4 ? gr_get_be32(data + 4) : 0;
	msg->flags = bytes >= 8 ? gr_get_be32(data + 8) : 0;
	return (ssize_t)(RP_HEADER_BYTES + bytes);
}

int gr_return_path_next(struct gr_return_path_reader *r, struct gr_channel *ch,
			struct gr_return_path_message *msg, struct gr_error *err)
{
	for (;;) {
		ssize_t used = gr_return_path_parse(r->buf, r->bytes, msg, err);
		struct iovec iov = { r->buf + r->bytes, sizeof(r->buf) - r->bytes };
		ssize_t got;

		if (used < 0) {
			(void)gr_error_prefix(err, "%s: byte %llu: ", gr_channel_name(ch),
					      (unsigned long long)r->byte_offset);
			return (int)used;
		}
		if (used > 0) {
			r->bytes -= (size_t)used;
			r->byte_offset += (uint64_t)used;
			memmove(r->buf, r->buf + used, r->bytes);
			return 1;
		}
		got = gr_channel_readv(ch, &iov, 1, err);
		if (got < 0) {
			return (int)got;
		}
		if (got == 0) {
			return r->bytes == 0 ? 0
					     : gr_error_set(err, -EPIPE,
							    "%s: the return path ends inside a "
							    "message, byte %llu",
							    gr_channel_name(ch),
							    (unsigned long long)r->byte_offset +
								    r->bytes);
		}
		r->bytes += (size_t)got;
	}
}

/* SPDX-License-Identifier: MIT */
/*
 * File header and configuration section. Kept verbatim for passing on, so all of it has to
 * stand in the buffer together: it is short. A subsection has no length, hence one that is
 * not known cannot be skipped and is refused by name.
 */
#include "stream/multifd.h"
#include "stream/reader_internal.h"

static const char prefix[] = "configuration/";
enum { PREFIX_BYTES = sizeof(prefix) - 1, CAPABILITIES_MAX = 64 };

struct config {
	size_t n; /* bytes looked at, from r->pos on */
	bool has_page_bits, has_capabilities, has_uuid, ignore_shared;
	uint8_t uuid[GR_STREAM_UUID_BYTES];
};

static int target_page_bits(struct gr_stream_reader *r, struct config *c)
{
	uint32_t bits;
	int code = reader_need(r, c->n + 4, "the configuration");

	if (code < 0) {
		return code;
	}
	bits = gr_get_be32(r->buf + r->pos + c->n);
	if (bits < GR_STREAM_PAGE_BITS_MIN || bits > GR_STREAM_PAGE_BITS_MAX) {
		return reader_fail(r, -EBADMSG, r->at + c->n,
				   "a page of 2^%u bytes; possible are 2^%d to 2^%d", bits,
				   GR_STREAM_PAGE_BITS_MIN, GR_STREAM_PAGE_BITS_MAX);
	}
	gr_stream_reader_set_page_bytes(r, 1u << bits);
	c->n += 4;
	return 0;
}

/* Whatever is listed here changes the layout of what follows: no name may be passed over. */
static int capability(struct gr_stream_reader *r, struct config *c)
{
	char name[GR_STREAM_ID_BYTES_MAX + 1];
	size_t n;
	int code = reader_str8(r, c->n, "a capability's name", name, &n);

	if (code < 0) {
		return code;
	}
	if (strcmp(name, GR_CAPABILITY_IGNORE_SHARED) != 0 || !r->ignore_shared_allowed) {
		return reader_fail(r, -EOPNOTSUPP, r->at + c->n,
				   "the sender uses the capability '%s', which is not in use here",
				   reader_printable(name).text);
	}
	if (c->ignore_shared) {
		return reader_fail(r, -EBADMSG, r->at + c->n, "the capability '%s' comes twice", name);
	}
	c->ignore_shared = true;
	c->n += n;
	return 0;
}

static int capabilities(struct gr_stream_reader *r, struct config *c)
{
	uint32_t count;
	int code = reader_need(r, c->n + 4, "the configuration");

	if (code < 0) {
		return code;
	}
	count = gr_get_be32(r->buf + r->pos + c->n);
	if (count > CAPABILITIES_MAX) {
		return reader_fail(r, -EBADMSG, r->at + c->n, "%u capabilities; at most %d", count,
				   CAPABILITIES_MAX);
	}
	c->n += 4;
	while (code == 0 && count--) {
		code = capability(r, c);
	}
	return code;
}

static int uuid(struct gr_stream_reader *r, struct config *c)
{
	int code = reader_need(r, c->n + GR_STREAM_UUID_BYTES, "the configuration");

	if (code < 0) {
		return code;
	}
	memcpy(c->uuid, r->buf + r->pos + c->n, sizeof(c->uuid));
	c->n += sizeof(c->uuid);
	return 0;
}

/* name without the prefix; c->n stands behind the subsection's version. */
static int subsection(struct gr_stream_reader *r, struct config *c, const char *name,
		      uint32_t version, uint64_t byte)
{
	static const struct {
		const char *name;
		size_t seen; /* offset in struct config */
		int (*parse)(struct gr_stream_reader *r, struct config *c);
	} known[] = {
		{ "target-page-bits", offsetof(struct config, has_page_bits), target_page_bits },
		{ "capabilities", offsetof(struct config, has_capabilities), capabilities },
		{ "uuid", offsetof(struct config, has_uuid), uuid },
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(known); i++) {
		bool *seen = (bool *)(void *)((char *)c + known[i].seen);

		if (strcmp(name, known[i].name) != 0) {
			continue;
		}
		if (*seen) {
			return reader_fail(r, -EBADMSG, byte, "subsection '%s%s' comes twice",
					   prefix, name);
		}
		if (version != 1) {
			return reader_fail(r, -EOPNOTSUPP, byte, "subsection '%s%s' has version %u",
					   prefix, name, version);
		}
		*seen = true;
		return known[i].parse(r, c);
	}
	return reader_fail(r, -EOPNOTSUPP, byte, "subsection '%s%s' is not known", prefix,
			   reader_printable(name).text);
}

static int subsections(struct gr_stream_reader *r, struct config *c)
{
	for (;;) {
		char name[GR_STREAM_ID_BYTES_MAX + 1];
		uint64_t byte = r->at + c->n;
		uint32_t version;
		size_t n;
		/* Another section follows for sure: looking at its first byte cannot hang. */
		int code = reader_need(r, c->n + 1, "the stream's first section");

		if (code < 0) {
			return code;
		}
		if (r->buf[r->pos + c->n] != GR_SECTION_SUBSECTION) {
			return 0;
		}
		code = reader_str8(r, c->n + 1, "a subsection's name", name, &n);
		if (code == 0) {
			code = reader_need(r, c->n + 1 + n + 4, "the configuration");
		}
		if (code < 0) {
			return code;
		}
		if (strncmp(name, prefix, PREFIX_BYTES) != 0) {
			return reader_fail(r, -EBADMSG, byte, "subsection '%s' outside of a device",
					   reader_printable(name).text);
		}
		version = gr_get_be32(r->buf + r->pos + c->n + 1 + n);
		c->n += 1 + n + 4;
		code = subsection(r, c, name + PREFIX_BYTES, version, byte);
		if (code < 0) {
			return code;
		}
	}
}

static int machine(struct gr_stream_reader *r, struct config *c, char *ret)
{
	uint32_t n;
	int code = reader_need(r, c->n + 5, "the configuration");

	if (code < 0) {
		return code;
	}
	n = gr_get_be32(r->buf + r->pos + c->n + 1);
	if (n > GR_STREAM_MACHINE_BYTES_MAX) {
		return reader_fail(r, -EBADMSG, r->at + c->n + 1,
				   "a machine name of %u bytes; at most %d", n,
				   GR_STREAM_MACHINE_BYTES_MAX);
	}
	code = reader_need(r, c->n + 5 + n, "the machine's name");
	if (code < 0) {
		return code;
	}
	memcpy(ret, r->buf + r->pos + c->n + 5, n);
	ret[n] = '\0';
	if (strlen(ret) != n) {
		return reader_fail(r, -EBADMSG, r->at + c->n + 5,
				   "the machine's name contains a NUL");
	}
	c->n += 5 + n;
	return 0;
}

int reader_config(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	struct config c = { .n = GR_STREAM_HEADER_BYTES };
	int code = reader_need(r, GR_STREAM_HEADER_BYTES, "the file header");

	if (code < 0) {
		return code;
	}
	if (gr_get_be32(r->buf) == GR_MULTIFD_MAGIC) {
		return reader_fail(r, -EOPNOTSUPP, 0,
				   "a further channel (capability multifd), where a stream was to come: the "
				   "source has multifd on and this side has not");
	}
	if (gr_get_be32(r->buf) != GR_STREAM_MAGIC) {
		return reader_fail(r, -EBADMSG, 0, "not a migration stream: it begins with %08x",
				   gr_get_be32(r->buf));
	}
	if (gr_get_be32(r->buf + 4) != GR_STREAM_VERSION) {
		return reader_fail(r, -EOPNOTSUPP, 4, "stream version %u; expected %u",
				   gr_get_be32(r->buf + 4), GR_STREAM_VERSION);
	}
	code = reader_need(r, c.n + 1, "the stream's first section");
	if (code == 0 && r->buf[r->pos + c.n] == GR_SECTION_CONFIGURATION) {
		code = machine(r, &c, rec->config.machine);
		if (code == 0) {
			code = subsections(r, &c);
		}
	}
	if (code < 0) {
		return code;
	}
	GR_ASSERT(c.n <= GR_STREAM_CONFIG_BYTES_MAX);
	rec->kind = GR_STREAM_CONFIG;
	rec->config.page_bytes = r->page_bytes;
	rec->config.has_uuid = c.has_uuid;
	rec->config.ignore_shared = r->ignore_shared = c.ignore_shared;
	memcpy(rec->config.uuid, c.uuid, sizeof(c.uuid));
	rec->config.raw = r->buf + r->pos;
	rec->config.raw_bytes = c.n;
	reader_consume(r, c.n);
	r->state = READER_AT_SECTION;
	return 1;
}

/* SPDX-License-Identifier: MIT */
/* The reader's buffer, its failures, sections, commands and the tail. */
#include "stream/reader.h"
#include "base/memory.h"
#include "stream/channel.h"
#include "stream/reader_internal.h"
#include <stdarg.h>
#include <stdio.h>

static ssize_t channel_readv(void *opaque, const struct iovec *iov, int n, struct gr_error *err)
{
	return gr_channel_readv(opaque, iov, n, err);
}

struct gr_stream_source gr_stream_source_channel(struct gr_channel *ch)
{
	return (struct gr_stream_source){ channel_readv, ch };
}

int gr_stream_reader_create(const struct gr_stream_source *source,
			    struct gr_stream_reader **ret_reader, struct gr_error *err)
{
	struct gr_stream_reader *r = malloc(sizeof(*r));
	uint8_t *stage = gr_aligned_alloc(GR_STREAM_PAGE_BYTES_DEFAULT, READER_STAGE_BYTES);

	if (!r || !stage) {
		free(r);
		gr_aligned_free(stage);
		return gr_error_set(err, -ENOMEM, "stream reader: out of memory");
	}
	memset(r, 0, offsetof(struct gr_stream_reader, buf));
	r->source = *source;
	r->stage = stage;
	r->staging = true;
	r->last_block = (uint32_t)GR_BLOCK_NONE;
	gr_block_table_init(&r->blocks);
	gr_stream_reader_set_page_bytes(r, GR_STREAM_PAGE_BYTES_DEFAULT);
	*ret_reader = r;
	return 0;
}

void gr_stream_reader_free(struct gr_stream_reader *r)
{
	if (r) {
		gr_block_table_destroy(&r->blocks);
		gr_aligned_free(r->stage);
		gr_inflate_free(r->inflate);
		free(r);
	}
}

void gr_stream_reader_allow_ignore_shared(struct gr_stream_reader *r)
{
	r->ignore_shared_allowed = true;
}

void gr_stream_reader_allow_flush(struct gr_stream_reader *r)
{
	r->flushes = true;
}

void gr_stream_reader_set_memory(struct gr_stream_reader *r, const struct gr_stream_memory *memory)
{
	r->memory = *memory;
}

void gr_stream_reader_allow_extensions(struct gr_stream_reader *r)
{
	r->extensions = true;
}

void gr_stream_reader_disable_staging(struct gr_stream_reader *r)
{
	r->staging = false;
}

void gr_stream_reader_set_page_bytes(struct gr_stream_reader *r, uint32_t page_bytes)
{
	GR_ASSERT(GR_IS_POWER_OF_TWO(page_bytes) && page_bytes >= 1u << GR_STREAM_PAGE_BITS_MIN &&
		  page_bytes <= 1u << GR_STREAM_PAGE_BITS_MAX);
	r->page_bytes = page_bytes;
	r->run_pages_max =
		GR_MIN((uint32_t)GR_STREAM_RUN_PAGES_MAX, READER_STAGE_BYTES / page_bytes);
	GR_ASSERT(r->run_pages_max >= READER_RUN_PAGES_MIN);
}

uint32_t gr_stream_reader_page_bytes(const struct gr_stream_reader *r)
{
	return r->page_bytes;
}

uint32_t gr_stream_reader_section_id(const struct gr_stream_reader *r)
{
	return r->ram_id;
}

uint32_t gr_stream_reader_block_count(const struct gr_stream_reader *r)
{
	return r->blocks.count;
}

struct gr_stream_block *gr_stream_reader_block(struct gr_stream_reader *r, uint32_t index)
{
	GR_ASSERT(index < r->blocks.count);
	return &r->blocks.entries[index];
}

enum gr_section gr_stream_reader_section(const struct gr_stream_reader *r)
{
	return r->section;
}

uint64_t gr_stream_reader_offset(const struct gr_stream_reader *r)
{
	return r->at;
}

int reader_fail(struct gr_stream_reader *r, int code, uint64_t byte, const char *fmt, ...)
{
	char text[GR_ERROR_MSG_BYTES];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	r->failed =
		gr_error_set(&r->failure, code, "byte %llu: %s", (unsigned long long)byte, text);
	return code;
}

struct reader_name reader_printable(const char *s)
{
	struct reader_name name;
	size_t n = 0;

	for (; s[n] && n < sizeof(name.text) - 1; n++) {
		name.text[n] = s[n] >= ' ' && s[n] <= '~' ? s[n] : '?';
	}
	name.text[n] = '\0';
	return name;
}

ssize_t reader_source(struct gr_stream_reader *r, const struct gr_stream_memory *memory,
		      const struct iovec *iov, int n)
{
	ssize_t got = 0;

	if (!r->source_ended) {
		got = memory ? gr_stream_read_guest(&r->source, memory, &r->blocks.entries[r->last_block], iov,
						    n, &r->failure)
			     : r->source.readv(r->source.opaque, iov, n, &r->failure);
		r->source_ended = got == 0;
	}
	if (got == -EFAULT && memory) {
		(void)gr_error_prefix(&r->failure, "block '%s': ",
				      reader_printable(r->blocks.entries[r->last_block].id).text);
	}
	if (got < 0) {
		(void)gr_error_prefix(&r->failure, "byte %llu: ",
				      (unsigned long long)(r->at + reader_buffered(r)));
		r->failed = (int)got;
	}
	return got;
}

int reader_need(struct gr_stream_reader *r, size_t n, const char *what)
{
	GR_ASSERT(n <= READER_BUF_BYTES);
	if (reader_buffered(r) >= n) {
		return 0;
	}
	if (r->pos + GR_MAX(n, (size_t)READER_FILL_BYTES) > READER_BUF_BYTES || r->pos == r->end) {
		memmove(r->buf, r->buf + r->pos, reader_buffered(r));
		r->end -= r->pos;
		r->pos = 0;
	}
	while (reader_buffered(r) < n) {
		size_t want = GR_MAX(n - reader_buffered(r), (size_t)READER_FILL_BYTES);
		struct iovec iov = { r->buf + r->end, GR_MIN(want, READER_BUF_BYTES - r->end) };
		ssize_t got = reader_source(r, NULL, &iov, 1);

		if (got < 0) {
			return (int)got;
		}
		if (got == 0) {
			return reader_fail(r, -EPIPE, r->at + reader_buffered(r),
					   "the stream ends inside %s", what);
		}
		r->end += (size_t)got;
	}
	return 0;
}

int reader_str8(struct gr_stream_reader *r, size_t skip, const char *what,
		char ret[GR_STREAM_ID_BYTES_MAX + 1], size_t *ret_bytes)
{
	int code = reader_need(r, skip + 1, what);
	size_t n;

	if (code < 0) {
		return code;
	}
	n = r->buf[r->pos + skip];
	if (n == 0) {
		return reader_fail(r, -EBADMSG, r->at + skip, "%s is empty", what);
	}
	code = reader_need(r, skip + 1 + n, what);
	if (code < 0) {
		return code;
	}
	memcpy(ret, r->buf + r->pos + skip + 1, n);
	ret[n] = '\0';
	if (strlen(ret) != n) {
		return reader_fail(r, -EBADMSG, r->at + skip, "%s contains a NUL", what);
	}
	*ret_bytes = 1 + n;
	return 0;
}

static const char *command_name(unsigned int command)
{
	switch (command) {
	case GR_COMMAND_OPEN_RETURN_PATH:
		return "OPEN_RETURN_PATH";
	case GR_COMMAND_PING:
		return "PING";
	case GR_COMMAND_POSTCOPY_ADVISE:
		return "POSTCOPY_ADVISE";
	case GR_COMMAND_POSTCOPY_LISTEN:
		return "POSTCOPY_LISTEN";
	case GR_COMMAND_POSTCOPY_RUN:
		return "POSTCOPY_RUN";
	case GR_COMMAND_POSTCOPY_RAM_DISCARD:
		return "POSTCOPY_RAM_DISCARD";
	case GR_COMMAND_PACKAGED:
		return "PACKAGED (postcopy)";
	case GR_COMMAND_ENABLE_COLO:
		return "ENABLE_COLO";
	case GR_COMMAND_POSTCOPY_RESUME:
		return "POSTCOPY_RESUME";
	case GR_COMMAND_RECV_BITMAP:
		return "RECV_BITMAP (postcopy)";
	case GR_COMMAND_SWITCHOVER_START:
		return "SWITCHOVER_START";
	default:
		return "unknown";
	}
}

static int next_command(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	uint16_t command, bytes, expected;
	int code = reader_need(r, 5, "a command");

	if (code < 0) {
		return code;
	}
	command = gr_get_be16(r->buf + r->pos + 1);
	bytes = gr_get_be16(r->buf + r->pos + 3);
	if (command != GR_COMMAND_OPEN_RETURN_PATH && command != GR_COMMAND_PING &&
	    command != GR_COMMAND_SWITCHOVER_START &&
	    !(command == GR_COMMAND_POSTCOPY_ADVISE && bytes == 0)) {
		return reader_fail(r, -EOPNOTSUPP, r->at, "command %u, %s, cannot be followed",
				   command, command_name(command));
	}
	expected = command == GR_COMMAND_PING ? 4 : 0;
	if (bytes != expected) {
		return reader_fail(r, -EBADMSG, r->at, "command %s has %u bytes of data, not %u",
				   command_name(command), bytes, expected);
	}
	code = reader_need(r, 5u + bytes, "a command");
	if (code < 0) {
		return code;
	}
	rec->kind = GR_STREAM_COMMAND;
	rec->command.command = (enum gr_command)command;
	rec->command.data_bytes = bytes;
	rec->command.data = r->buf + r->pos + 5;
	reader_consume(r, 5u + bytes);
	return 1;
}

/* START of an iterable section: ours is 'ram', the others have no length to skip by. */
static int next_start(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	char name[GR_STREAM_ID_BYTES_MAX + 1];
	uint32_t instance, version;
	size_t n;
	int code = reader_str8(r, 5, "a section's name", name, &n);

	if (code == 0) {
		code = reader_need(r, 5 + n + 8, "a section's header");
	}
	if (code < 0) {
		return code;
	}
	instance = gr_get_be32(r->buf + r->pos + 5 + n);
	version = gr_get_be32(r->buf + r->pos + 5 + n + 4);
	if (strcmp(name, GR_RAM_SECTION_NAME) != 0) {
		return reader_fail(
			r, -EOPNOTSUPP, r->at,
			"section '%s' is sent in several parts; only 'ram' can be received "
			"that way",
			reader_printable(name).text);
	}
	if (version != GR_RAM_SECTION_VERSION || instance != 0) {
		return reader_fail(
			r, -EOPNOTSUPP, r->at,
			"section 'ram' has version %u, instance %u; expected version %d, "
			"instance 0",
			version, instance, GR_RAM_SECTION_VERSION);
	}
	if (r->has_start) {
		return reader_fail(r, -EBADMSG, r->at, "section 'ram' starts a second time");
	}
	r->has_start = true;
	r->ram_id = gr_get_be32(r->buf + r->pos + 1);
	r->section = GR_SECTION_START;
	r->state = READER_IN_RAM;
	rec->kind = GR_STREAM_RAM_START;
	rec->ram_start.section_id = r->ram_id;
	reader_consume(r, 5 + n + 8);
	return 1;
}

static int enter_part(struct gr_stream_reader *r, enum gr_section section)
{
	int code = reader_need(r, 5, "a section's header");
	uint32_t id;

	if (code < 0) {
		return code;
	}
	id = gr_get_be32(r->buf + r->pos + 1);
	if (!r->has_start || id != r->ram_id) {
		return reader_fail(r, -EBADMSG, r->at, "a part of section %u, which never started",
				   id);
	}
	if (r->has_end) {
		return reader_fail(r, -EBADMSG, r->at, "section 'ram' goes on after its end");
	}
	r->has_end = section == GR_SECTION_END;
	r->section = section;
	r->state = READER_IN_RAM;
	reader_consume(r, 5);
	return 0;
}

static int early_device(struct gr_stream_reader *r)
{
	char name[GR_STREAM_ID_BYTES_MAX + 1];
	size_t n;
	int code = reader_str8(r, 5, "a section's name", name, &n);

	return code < 0 ? code
			: reader_fail(r, -EOPNOTSUPP, r->at,
				      "device section '%s' comes before section 'ram'; it has no "
				      "length to skip by",
				      reader_printable(name).text);
}

static int next_section(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	int code = reader_need(r, 1,
			       r->has_start ? "the device state (before its first byte)"
					    : "a section's header");
	uint8_t type;

	if (code < 0) {
		return code;
	}
	type = r->buf[r->pos];
	switch (type) {
	case GR_SECTION_COMMAND:
		return next_command(r, rec);
	case GR_SECTION_START:
		return next_start(r, rec);
	case GR_SECTION_PART:
	case GR_SECTION_END:
		return enter_part(r, (enum gr_section)type);
	case GR_SECTION_FULL:
	case GR_SECTION_EOF:
		if (!r->has_start && type == GR_SECTION_FULL) {
			return early_device(r);
		}
		if (!r->has_start) {
			return reader_fail(r, -EBADMSG, r->at, "the stream has no section 'ram'");
		}
		r->state = READER_IN_TAIL;
		return 0;
	default:
		return reader_fail(r, -EBADMSG, r->at, "0x%02x does not begin a section", type);
	}
}

/* The tail is not looked at: see tail.h. */
static int next_tail(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	if (reader_buffered(r) == 0) {
		struct iovec iov = { r->buf, READER_BUF_BYTES };
		ssize_t got;

		r->pos = 0;
		r->end = 0;
		got = reader_source(r, NULL, &iov, 1);
		if (got < 0) {
			return (int)got;
		}
		if (got == 0) {
			r->state = READER_AT_END;
			return 0;
		}
		r->end = (size_t)got;
	}
	rec->kind = GR_STREAM_TAIL;
	rec->tail.data = r->buf + r->pos;
	rec->tail.bytes = reader_buffered(r);
	reader_consume(r, rec->tail.bytes);
	return 1;
}

static int step(struct gr_stream_reader *r, struct gr_stream_record *rec)
{
	switch (r->state) {
	case READER_AT_HEADER:
		return reader_config(r, rec);
	case READER_AT_SECTION:
		return next_section(r, rec);
	case READER_IN_RAM:
		return reader_ram(r, rec);
	case READER_IN_TAIL:
		return next_tail(r, rec);
	case READER_AT_END:
	default:
		return 0;
	}
}

int gr_stream_next(struct gr_stream_reader *r, struct gr_stream_record *rec, struct gr_error *err)
{
	int rc = r->failed;

	memset(rec, 0, sizeof(*rec));
	while (rc == 0 && r->state != READER_AT_END) {
		rec->byte_offset = r->at;
		rc = step(r, rec);
	}
	if (rc < 0) {
		GR_ASSERT(r->failed == rc);
		if (err) {
			*err = r->failure;
		}
	}
	return rc;
}

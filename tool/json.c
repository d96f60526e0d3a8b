/* SPDX-License-Identifier: MIT */
#include "json.h"
#include <assert.h>
#include <inttypes.h>
#include <math.h>

static void put(struct json *j, const char *text)
{
	(void)fputs(text, j->f);
}

static void new_line(struct json *j)
{
	(void)fputc('\n', j->f);
	for (unsigned i = 0; i < j->depth; i++) {
		put(j, "  ");
	}
}

/* Bytes of the UTF-8 character at p beyond ASCII and its control characters; 0: it is none. */
static size_t utf8_bytes(const unsigned char *p)
{
	size_t n = p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
	/* what the second byte must be: no control characters, no overlong forms, no
	 * surrogates, nothing beyond Unicode */
	unsigned char low = p[0] == 0xc2 || p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
	unsigned char high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;

	if (n == 0 || p[1] < low || p[1] > high) {
		return 0;
	}
	for (size_t i = 2; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80) {
			return 0;
		}
	}
	return n;
}

/* UTF-8 stays what it is. Other bytes are written as \u00XX: a name from a foreign stream
 * need not be UTF-8, and the output must always be. */
static void put_quoted(struct json *j, const char *text)
{
	(void)fputc('"', j->f);
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		size_t n = utf8_bytes(p);

		if (n > 0) {
			(void)fwrite(p, 1, n, j->f);
			p += n - 1;
		} else if (*p == '"' || *p == '\\') {
			(void)fputc('\\', j->f);
			(void)fputc(*p, j->f);
		} else if (*p < 0x20 || *p >= 0x7f) {
			(void)fprintf(j->f, "\\u%04x", *p);
		} else {
			(void)fputc(*p, j->f);
		}
	}
	(void)fputc('"', j->f);
}

/* Everything that stands before a value. */
static void begin_value(struct json *j, const char *key)
{
	bool in_array = j->array[j->depth - 1];

	assert(in_array == (key == NULL));
	if (!j->empty[j->depth - 1]) {
		put(j, ",");
	}
	j->empty[j->depth - 1] = false;
	new_line(j);
	if (key) {
		put_quoted(j, key);
		put(j, ": ");
	}
}

static void open_level(struct json *j, bool array)
{
	assert(j->depth < JSON_DEPTH_MAX);
	put(j, array ? "[" : "{");
	j->array[j->depth] = array;
	j->empty[j->depth] = true;
	j->depth++;
}

void json_begin(struct json *j, FILE *f)
{
	j->f = f;
	j->depth = 0;
	open_level(j, false);
}

void json_put_object(struct json *j, const char *key)
{
	begin_value(j, key);
	open_level(j, false);
}

void json_put_array(struct json *j, const char *key)
{
	begin_value(j, key);
	open_level(j, true);
}

void json_end(struct json *j)
{
	assert(j->depth > 0);
	j->depth--;
	if (!j->empty[j->depth]) {
		new_line(j);
	}
	put(j, j->array[j->depth] ? "]" : "}");
	if (j->depth == 0) {
		put(j, "\n");
	}
}

void json_put_string(struct json *j, const char *key, const char *value)
{
	begin_value(j, key);
	if (value) {
		put_quoted(j, value);
	} else {
		put(j, "null");
	}
}

void json_put_uint(struct json *j, const char *key, uint64_t value)
{
	begin_value(j, key);
	(void)fprintf(j->f, "%" PRIu64, value);
}

void json_put_int(struct json *j, const char *key, int64_t value)
{
	begin_value(j, key);
	(void)fprintf(j->f, "%" PRId64, value);
}

void json_put_bool(struct json *j, const char *key, bool value)
{
	begin_value(j, key);
	put(j, value ? "true" : "false");
}

void json_put_double(struct json *j, const char *key, double value)
{
	begin_value(j, key);
	if (isfinite(value)) {
		(void)fprintf(j->f, "%.6g", value);
	} else {
		put(j, "null");
	}
}

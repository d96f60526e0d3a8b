/* SPDX-License-Identifier: MIT */
/*
 * Just enough of JSON to look at the description at the end of a stream: a cursor over a
 * text that somebody else wrote, strict (RFC 8259), with a bounded depth, no allocation.
 * Every function returns false when the text is not JSON; the cursor is useless then.
 */
#ifndef GR_STREAM_JSON_H
#define GR_STREAM_JSON_H

#include "base/compiler.h"

enum { GR_JSON_DEPTH_MAX = 64 };

struct gr_json {
	const char *p, *end;
	unsigned int depth;
};

static inline struct gr_json gr_json(const char *text, size_t n)
{
	return (struct gr_json){ text, text + n, 0 };
}

/* First character of the next value ('{', '[', '"', ...), or 0 at the end. Skips blanks. */
char gr_json_peek(struct gr_json *j);
/* Skips a whole value of any kind. */
bool gr_json_skip(struct gr_json *j);
/* Skips a value, after which nothing may follow. */
bool gr_json_skip_last(struct gr_json *j);

/* '{' or '[' is entered; then, until it is false, *more says whether another member follows. */
bool gr_json_enter(struct gr_json *j, char open);
/* Next member of an object; the key is a part of the text as it stands there, not unescaped. */
bool gr_json_key(struct gr_json *j, bool *first, bool *more, const char **key, size_t *key_bytes);
/* Next element of an array. */
bool gr_json_element(struct gr_json *j, bool *first, bool *more);

/* A string, unescaped into buf with a NUL. False also if it does not fit. */
bool gr_json_string(struct gr_json *j, char *buf, size_t buf_bytes);
/* A non-negative integer. */
bool gr_json_u32(struct gr_json *j, uint32_t *ret);

#endif

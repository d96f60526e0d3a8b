/* SPDX-License-Identifier: MIT */
#include "stream/json.h"
#include <string.h>

char gr_json_peek(struct gr_json *j)
{
	while (j->p < j->end && strchr(" \t\r\n", *j->p) && *j->p) {
		j->p++;
	}
	return j->p < j->end ? *j->p : '\0';
}

static bool accept(struct gr_json *j, char c)
{
	if (gr_json_peek(j) != c || j->p == j->end) {
		return false;
	}
	j->p++;
	return true;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9') {
		return c - '0';
	}
	if (c >= 'a' && c <= 'f') {
		return c - 'a' + 10;
	}
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/*
 * One character of a string, unescaped. Only ASCII comes out of \u, as '?' otherwise: names
 * that we look for have nothing else.
 */
static bool string_char(struct gr_json *j, char *ret)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	const char *known;
	unsigned int code = 0;

	if (j->p == j->end || (unsigned char)*j->p < 0x20) {
		return false;
	}
	*ret = *j->p++;
	if (*ret != '\\') {
		return true;
	}
	if (j->p == j->end || *j->p == '\0') {
		return false;
	}
	known = strchr(from, *j->p);
	if (known) {
		*ret = to[known - from];
		j->p++;
		return true;
	}
	if (*j->p != 'u' || j->end - j->p < 5) {
		return false;
	}
	for (int i = 1; i <= 4; i++) {
		int digit = hex_digit(j->p[i]);

		if (digit < 0) {
			return false;
		}
		code = code * 16 + (unsigned int)digit;
	}
	*ret = code >= ' ' && code <= '~' ? (char)code : '?';
	j->p += 5;
	return true;
}

bool gr_json_string(struct gr_json *j, char *buf, size_t buf_bytes)
{
	size_t n = 0;
	char c;

	if (!accept(j, '"')) {
		return false;
	}
	while (j->p < j->end && *j->p != '"') {
		if (!string_char(j, &c) || (buf && n + 1 >= buf_bytes)) {
			return false;
		}
		if (buf) {
			buf[n++] = c;
		}
	}
	if (buf) {
		buf[n] = '\0';
	}
	return accept(j, '"');
}

static size_t digits(struct gr_json *j)
{
	const char *from = j->p;

	while (j->p < j->end && *j->p >= '0' && *j->p <= '9') {
		j->p++;
	}
	return (size_t)(j->p - from);
}

static bool skip_number(struct gr_json *j)
{
	const char *from;
	size_t n;

	if (j->p < j->end && *j->p == '-') {
		j->p++;
	}
	from = j->p;
	n = digits(j);
	if (n == 0 || (n > 1 && *from == '0')) {
		return false;
	}
	if (j->p < j->end && *j->p == '.') {
		j->p++;
		if (digits(j) == 0) {
			return false;
		}
	}
	if (j->p < j->end && (*j->p == 'e' || *j->p == 'E')) {
		j->p++;
		if (j->p < j->end && (*j->p == '+' || *j->p == '-')) {
			j->p++;
		}
		if (digits(j) == 0) {
			return false;
		}
	}
	return true;
}

static bool skip_word(struct gr_json *j, const char *word)
{
	size_t n = strlen(word);

	if ((size_t)(j->end - j->p) < n || memcmp(j->p, word, n) != 0) {
		return false;
	}
	j->p += n;
	return true;
}

bool gr_json_enter(struct gr_json *j, char open)
{
	return accept(j, open) && j->depth++ < GR_JSON_DEPTH_MAX;
}

/* The comma before, or the end behind, the members of what was entered. */
static bool next_member(struct gr_json *j, char close, bool *first, bool *more)
{
	bool was_first = *first;

	*first = false;
	*more = false;
	if (accept(j, close)) {
		j->depth--;
		return true;
	}
	*more = was_first || accept(j, ',');
	return *more;
}

bool gr_json_key(struct gr_json *j, bool *first, bool *more, const char **key, size_t *key_bytes)
{
	if (!next_member(j, '}', first, more)) {
		return false;
	}
	if (!*more) {
		return true;
	}
	if (gr_json_peek(j) != '"') {
		return false;
	}
	*key = j->p + 1;
	if (!gr_json_string(j, NULL, 0)) {
		return false;
	}
	*key_bytes = (size_t)(j->p - 1 - *key);
	return accept(j, ':');
}

bool gr_json_element(struct gr_json *j, bool *first, bool *more)
{
	return next_member(j, ']', first, more);
}

static bool skip_object(struct gr_json *j)
{
	bool first = true, more = true;
	const char *key;
	size_t n;

	if (!gr_json_enter(j, '{')) {
		return false;
	}
	while (more) {
		if (!gr_json_key(j, &first, &more, &key, &n) || (more && !gr_json_skip(j))) {
			return false;
		}
	}
	return true;
}

static bool skip_array(struct gr_json *j)
{
	bool first = true, more = true;

	if (!gr_json_enter(j, '[')) {
		return false;
	}
	while (more) {
		if (!gr_json_element(j, &first, &more) || (more && !gr_json_skip(j))) {
			return false;
		}
	}
	return true;
}

bool gr_json_skip(struct gr_json *j)
{
	switch (gr_json_peek(j)) {
	case '{':
		return skip_object(j);
	case '[':
		return skip_array(j);
	case '"':
		return gr_json_string(j, NULL, 0);
	case 't':
		return skip_word(j, "true");
	case 'f':
		return skip_word(j, "false");
	case 'n':
		return skip_word(j, "null");
	default:
		return skip_number(j);
	}
}

bool gr_json_skip_last(struct gr_json *j)
{
	return gr_json_skip(j) && gr_json_peek(j) == '\0' && j->p == j->end;
}

bool gr_json_u32(struct gr_json *j, uint32_t *ret)
{
	uint64_t v = 0;
	const char *from;

	(void)gr_json_peek(j);
	from = j->p;
	if (!skip_number(j)) {
		return false;
	}
	for (const char *p = from; p < j->p; p++) {
		if (*p < '0' || *p > '9' || v > UINT32_MAX) {
			return false;
		}
		v = v * 10 + (uint64_t)(*p - '0');
	}
	*ret = (uint32_t)v;
	return v <= UINT32_MAX;
}

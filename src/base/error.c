/* SPDX-License-Identifier: MIT */
#include <guestram/error.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bytes of the printable UTF-8 character at p; 0 if there is none. */
static size_t printable(const unsigned char *p)
{
	size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;

	if (n < 2) {
		return p[0] < ' ' || p[0] == 0x7f ? 0 : n;
	}
	for (size_t i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80) {
			return 0;
		}
	}
	/* control characters again, overlong, surrogates, beyond Unicode */
	if ((p[0] == 0xc2 && p[1] < 0xa0) || (p[0] == 0xe0 && p[1] < 0xa0) ||
	    (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) || p[0] > 0xf4 ||
	    (p[0] == 0xf4 && p[1] > 0x8f)) {
		return 0;
	}
	return n;
}

/*
 * Messages quote names from streams and files of strangers: no such name gets hold of a
 * terminal, begins a line of a log, or makes text that is not UTF-8.
 */
static void clean(char *msg)
{
	unsigned char *p = (unsigned char *)msg;

	while (*p) {
		size_t n = printable(p);

		if (n == 0) {
			*p = '?';
			n = 1;
		}
		p += n;
	}
}

int gr_error_set(struct gr_error *err, int code, const char *fmt, ...)
{
	if (err) {
		va_list ap;

		va_start(ap, fmt);
		err->code = code;
		(void)vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
		va_end(ap);
		clean(err->msg);
	}
	return code;
}

int gr_error_prefix(struct gr_error *err, const char *fmt, ...)
{
	char rest[GR_ERROR_MSG_BYTES];
	va_list ap;
	int n;

	if (!err) {
		return 0;
	}
	memcpy(rest, err->msg, sizeof(rest));
	va_start(ap, fmt);
	n = vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof(err->msg)) {
		(void)snprintf(err->msg + n, sizeof(err->msg) - (size_t)n, "%s", rest);
	}
	clean(err->msg);
	return err->code;
}

/* SPDX-License-Identifier: MIT */
#include <guestram/error.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int gr_error_set(struct gr_error *err, int code, const char *fmt, ...)
{
	if (err) {
		va_list ap;

		va_start(ap, fmt);
		err->code = code;
		(void)vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
		va_end(ap);
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
	return err->code;
}

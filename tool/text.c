/* SPDX-License-Identifier: MIT */
#include "tool.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

GR_PRINTF(2, 0) static void say(const char *who, const char *fmt, va_list ap)
{
	(void)fflush(stdout); /* so that both streams are in order on a terminal */
	(void)fprintf(stderr, "%s: ", who);
	(void)vfprintf(stderr, fmt, ap);
	(void)fputc('\n', stderr);
}

int tool_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("guestram", fmt, ap);
	va_end(ap);
	return TOOL_ERROR;
}

int tool_usage_error(const struct verb *verb, const char *fmt, ...)
{
	if (fmt) {
		char who[64];
		va_list ap;

		(void)snprintf(who, sizeof(who), "guestram %s", verb->name);
		va_start(ap, fmt);
		say(who, fmt, ap);
		va_end(ap);
	}
	(void)fprintf(stderr, "See 'guestram %s --help'.\n", verb->name);
	return TOOL_ERROR;
}

int tool_parse_size(const char *text, uint64_t *ret_bytes)
{
	static const char units[] = "KMGT";
	unsigned long long v;
	uint64_t bytes;
	char *end;

	/* strtoull() would take signs and leading blanks */
	if (text[0] < '0' || text[0] > '9') {
		return -EINVAL;
	}
	errno = 0;
	v = strtoull(text, &end, 0);
	if (errno != 0) {
		return -EINVAL;
	}
	bytes = v;
	if (*end != '\0') {
		/* a lower-case unit is the same */
		char upper = (char)(*end >= 'a' && *end <= 'z' ? *end - 'a' + 'A' : *end);
		const char *unit = strchr(units, upper);

		if (!unit || end[1] != '\0' ||
		    __builtin_mul_overflow(bytes, UINT64_C(1) << (10 * (unit - units + 1)),
					   &bytes)) {
			return -EINVAL;
		}
	}
	*ret_bytes = bytes;
	return 0;
}

const char *tool_format_size(uint64_t bytes, char *buf, size_t n)
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double v = (double)bytes;
	unsigned unit = 0;

	while (v >= 1024) {
		v /= 1024;
		unit++;
	}
	if (unit == 0 || v == (double)(uint64_t)v) {
		(void)snprintf(buf, n, "%llu %s", (unsigned long long)v, units[unit]);
	} else {
		(void)snprintf(buf, n, "%.1f %s", v, units[unit]);
	}
	return buf;
}

static int hex_digit(char c)
{
	return c >= '0' && c <= '9'   ? c - '0'
	       : c >= 'a' && c <= 'f' ? c - 'a' + 10
	       : c >= 'A' && c <= 'F' ? c - 'A' + 10
				      : -1;
}

int tool_parse_uuid(const char *text, uint8_t *ret_uuid)
{
	uint8_t uuid[GR_MULTIFD_UUID_BYTES];

	for (int i = 0; i < GR_MULTIFD_UUID_BYTES; i++) {
		int high, low;

		if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-') {
			return -EINVAL;
		}
		high = hex_digit(text[0]);
		low = high < 0 ? -1 : hex_digit(text[1]);
		if (low < 0) {
			return -EINVAL;
		}
		uuid[i] = (uint8_t)(16 * high + low);
		text += 2;
	}
	if (*text != '\0') {
		return -EINVAL;
	}
	memcpy(ret_uuid, uuid, sizeof(uuid));
	return 0;
}

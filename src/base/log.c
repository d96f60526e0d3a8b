/* SPDX-License-Identifier: MIT */
#include "base/log.h"
#include "base/handler.h"
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define GR_STR_(x) #x
#define GR_STR(x)  GR_STR_(x)

static struct gr_handler handler = GR_HANDLER_INIT; /* gr_log_fn */

const char *gr_version(void)
{
	return GR_STR(GR_VERSION_MAJOR) "." GR_STR(GR_VERSION_MINOR) "." GR_STR(GR_VERSION_PATCH);
}

void gr_log_set_handler(gr_log_fn *fn, void *opaque)
{
	gr_handler_set(&handler, (gr_handler_fn *)fn, opaque);
}

void gr_log(enum gr_log_level level, const char *fmt, ...)
{
	struct gr_handler_slot to = gr_handler_get(&handler);
	gr_log_fn *fn = (gr_log_fn *)to.fn;
	char line[512];
	va_list ap;

	if (!fn) {
		return;
	}
	va_start(ap, fmt);
	(void)vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	fn(level, line, to.opaque);
}

void gr_log_after_fork_in_child(void)
{
	gr_handler_after_fork_in_child(&handler);
}

/* The two exceptions to "the library never prints": it is about to abort. */
static void say(const char *line, int n)
{
	if (n > 0) {
		ssize_t ignored = write(STDERR_FILENO, line, (unsigned int)n);

		(void)ignored;
	}
}

void gr_assert_fail(const char *expr, const char *file, int line, const char *func)
{
	char text[512];

	say(text, snprintf(text, sizeof(text), "guestram: %s:%d: %s: assertion failed: %s\n", file,
			   line, func, expr));
	abort();
}

void gr_die(const char *fmt, ...)
{
	char text[480];
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	say(line, snprintf(line, sizeof(line), "guestram: %s\n", text));
	abort();
}

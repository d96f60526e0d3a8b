/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "base/log.h"
#include <errno.h>
#include <guestram/error.h>

TEST(set_fills_code_and_text_and_returns_the_code)
{
	struct gr_error err;

	ASSERT_EQ(gr_error_set(&err, -EINVAL, "block '%s': size %d", "ram", 7), -EINVAL);
	ASSERT_EQ(err.code, -EINVAL);
	ASSERT_STR_EQ(err.msg, "block 'ram': size 7");
}

TEST(null_error_is_allowed)
{
	ASSERT_EQ(gr_error_set(NULL, -EIO, "x"), -EIO);
	ASSERT_EQ(gr_error_prefix(NULL, "x"), 0);
}

TEST(prefix_goes_in_front)
{
	struct gr_error err;

	gr_error_set(&err, -EIO, "short read");
	ASSERT_EQ(gr_error_prefix(&err, "byte %d: ", 12), -EIO);
	ASSERT_STR_EQ(err.msg, "byte 12: short read");
}

TEST(long_text_is_cut_not_overrun)
{
	struct gr_error err;
	char long_text[2 * GR_ERROR_MSG_BYTES];

	memset(long_text, 'a', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = '\0';
	gr_error_set(&err, -EIO, "%s", long_text);
	ASSERT_EQ(strlen(err.msg), (size_t)GR_ERROR_MSG_BYTES - 1);
	gr_error_prefix(&err, "%s", long_text);
	ASSERT_EQ(strlen(err.msg), (size_t)GR_ERROR_MSG_BYTES - 1);
}

TEST(names_of_strangers_cannot_do_harm_in_a_message)
{
	struct gr_error err;
	char long_text[2 * GR_ERROR_MSG_BYTES];

	gr_error_set(&err, -EIO, "block '%s'", "a\033[2J\r\nb\x7f\x9b\xc2\x9b");
	ASSERT_STR_EQ(err.msg, "block 'a?[2J?\?b?\?\?\?'");
	gr_error_prefix(&err, "%s: ", "\xff\n");
	ASSERT_STR_EQ(err.msg, "?\?: block 'a?[2J?\?b?\?\?\?'");
	/* what people call their files stays */
	gr_error_set(&err, -EIO, "%s", "/srv/\u00fcber/\u20ac/\U0001F600");
	ASSERT_STR_EQ(err.msg, "/srv/\u00fcber/\u20ac/\U0001F600");
	gr_error_set(&err, -EIO, "%s", "\xc0\xaf \xe0\x80\x80 \xed\xa0\x80 \xf4\x90\x80\x80");
	ASSERT_STR_EQ(err.msg, "?? ??? ??? ????");
	/* cut inside a character */
	memset(long_text, 'a', sizeof(long_text));
	(void)snprintf(long_text + GR_ERROR_MSG_BYTES - 2, 8, "\u00fc");
	gr_error_set(&err, -EIO, "%s", long_text);
	ASSERT_STR_EQ(err.msg + GR_ERROR_MSG_BYTES - 3, "a?");
}

static char last_line[64];

static void keep(enum gr_log_level level, const char *msg, void *opaque)
{
	(void)snprintf(last_line, sizeof(last_line), "%d %s %s", (int)level, msg,
		       (const char *)opaque);
}

TEST(log_is_silent_without_a_handler_and_reaches_one)
{
	static char name[] = "me";

	gr_log(GR_LOG_WARN, "nobody hears %d", 1);
	gr_log_set_handler(keep, name);
	gr_log(GR_LOG_WARN, "heard %d", 2);
	ASSERT_STR_EQ(last_line, "2 heard 2 me");
	gr_log_set_handler(NULL, NULL);
	gr_log(GR_LOG_WARN, "nobody hears %d", 3);
	ASSERT_STR_EQ(last_line, "2 heard 2 me");
}

TEST_MAIN()

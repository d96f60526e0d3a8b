/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "stream/channel.h"
#include <errno.h>

static struct gr_uri parsed(const char *text)
{
	struct gr_error err = { 0 };
	struct gr_uri u;

	if (gr_uri_parse(text, &u, &err) != 0) {
		FAIL("%s: %s", text, err.msg);
	}
	return u;
}

TEST(tcp_takes_names_addresses_and_bracketed_ipv6)
{
	static const struct {
		const char *text, *host, *port;
	} cases[] = {
		{ "tcp:localhost:4444", "localhost", "4444" },
		{ "tcp:127.0.0.1:0", "127.0.0.1", "0" },
		{ "tcp:[::1]:65535", "::1", "65535" },
		{ "tcp::5555", "", "5555" },
		{ "tcp:[::]:1", "::", "1" },
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(cases); i++) {
		struct gr_uri u = parsed(cases[i].text);

		ASSERT(u.kind == GR_URI_TCP);
		ASSERT_STR_EQ(u.host, cases[i].host);
		ASSERT_STR_EQ(u.port, cases[i].port);
		gr_uri_destroy(&u);
	}
}

TEST(the_other_kinds_keep_what_follows_the_colon)
{
	struct gr_uri u = parsed("unix:/run/a b.sock");

	ASSERT(u.kind == GR_URI_UNIX);
	ASSERT_STR_EQ(u.path, "/run/a b.sock");
	gr_uri_destroy(&u);
	u = parsed("fd:17");
	ASSERT(u.kind == GR_URI_FD);
	ASSERT_EQ(u.fd, 17);
	gr_uri_destroy(&u);
	u = parsed("exec:gzip -c > /tmp/x:y");
	ASSERT(u.kind == GR_URI_EXEC);
	ASSERT_STR_EQ(u.path, "gzip -c > /tmp/x:y");
	gr_uri_destroy(&u);
}

TEST(files_have_an_offset_and_may_be_bare_paths)
{
	static const struct {
		const char *text, *path;
		uint64_t offset;
	} cases[] = {
		{ "file:vm.ram", "vm.ram", 0 },
		{ "file:/a,b,offset=4096", "/a,b", 4096 },
		{ "file:x,offset=0x1000", "x", 4096 },
		{ "file:x,offset=4k", "x", 4096 },
		{ "file:x,offset=1M", "x", 1 << 20 },
		{ "file:x,offset=2T", "x", UINT64_C(2) << 40 },
		{ "vm.ram", "vm.ram", 0 },
		{ "./odd:name", "./odd:name", 0 },
		{ "/abs", "/abs", 0 },
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(cases); i++) {
		struct gr_uri u = parsed(cases[i].text);

		ASSERT(u.kind == GR_URI_FILE);
		ASSERT_STR_EQ(u.path, cases[i].path);
		ASSERT_EQ(u.offset, cases[i].offset);
		gr_uri_destroy(&u);
	}
}

TEST(what_is_no_channel_is_refused_and_named)
{
	static const char *const bad[] = {
		"",
		"tcp:",
		"tcp:host",
		"tcp:host:",
		"tcp:h:65536",
		"tcp:h:12x",
		"tcp:h:-1",
		"tcp:h: 1",
		"tcp:::1:22",
		"tcp:[::1:22",
		"unix:",
		"fd:",
		"fd:x",
		"fd:-1",
		"fd:99999999999",
		"exec:",
		"file:",
		"file:,offset=1",
		"file:x,offset=",
		"file:x,offset=-1",
		"rdma:host:1",
		"file:x,offset=9T9",
		"file:x,offset=1q",
		"file:x,offset=99999999T",
	};

	for (size_t i = 0; i < GR_ARRAY_SIZE(bad); i++) {
		struct gr_error err = { 0 };
		struct gr_uri u;

		if (gr_uri_parse(bad[i], &u, &err) != -EINVAL) {
			FAIL("'%s' was accepted", bad[i]);
		}
		ASSERT_HAS(err.msg, bad[i]);
	}
}

TEST_MAIN()

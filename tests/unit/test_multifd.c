/* SPDX-License-Identifier: MIT */
/* Further channels of a move: their bytes, their compression, how they are told apart. */
#include "base/clock.h"
#include "harness.h"
#include "stream/channel.h"
#include "stream/multifd_codec.h"
#include "stream/multifd_scan.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCK = 16 * PAGE };

static struct gr_multifd_header some_header(void)
{
	struct gr_multifd_header h = { .pages = 2, .zero_pages = 1, .number = 9, .block = "ram" };

	h.payload_bytes = 2 * PAGE;
	h.offsets[0] = 3 * PAGE;
	h.offsets[1] = 0;
	h.offsets[2] = 15 * PAGE;
	return h;
}

static int parse(const uint8_t *raw, struct gr_multifd_header *h, struct gr_error *err)
{
	int rc = gr_multifd_header_parse(raw, PAGE, h, err);

	return rc < 0 ? rc : gr_multifd_header_check(h, BLOCK, PAGE, err);
}

TEST(a_header_has_the_bytes_that_qemu_writes)
{
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	struct gr_multifd_header h = some_header(), again;
	struct gr_error err;

	ASSERT_EQ(gr_multifd_header_bytes(PAGE), 1344u);
	h.sync = true;
	h.compression = GR_MULTIFD_ZSTD;
	h.payload_bytes = 77;
	gr_multifd_header_put(&h, PAGE, raw);
	ASSERT_EQ(gr_get_be32(raw), 0x11223344u);
	ASSERT_EQ(gr_get_be32(raw + 4), 1u);
	ASSERT_EQ(gr_get_be32(raw + 8), 1u | 2u << 1);
	ASSERT_EQ(gr_get_be32(raw + 12), 128u);
	ASSERT_EQ(gr_get_be32(raw + 16), 2u);
	ASSERT_EQ(gr_get_be32(raw + 20), 77u);
	ASSERT_EQ(gr_get_be64(raw + 24), 9u);
	ASSERT_EQ(gr_get_be32(raw + 32), 1u);
	ASSERT_STR_EQ((const char *)raw + 64, "ram");
	ASSERT_EQ(gr_get_be64(raw + 320 + 16), 15u * PAGE);
	ASSERT_EQ(parse(raw, &again, &err), 0);
	ASSERT(again.sync);
	ASSERT_EQ((int)again.compression, (int)GR_MULTIFD_ZSTD);
	ASSERT_EQ(again.payload_bytes, 77u);
	ASSERT_EQ(again.offsets[1], 0u);
}

TEST(what_is_left_over_in_a_packet_without_pages_is_not_looked_at)
{
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	struct gr_multifd_header h = some_header();
	struct gr_error err;

	gr_multifd_header_put(&h, PAGE, raw);
	memset(raw + 64, 'x', 256);	   /* a name without an end */
	gr_put_be32(raw + 20, 0xffffffff); /* next_packet_size of the packet before */
	gr_put_be64(raw + 320, UINT64_MAX);
	gr_put_be32(raw + 16, 0);
	gr_put_be32(raw + 32, 0);
	ASSERT_EQ(parse(raw, &h, &err), 0);
	ASSERT_EQ(h.payload_bytes, 0u);
	ASSERT_STR_EQ(h.block, "");
}

TEST(without_compression_the_payload_is_the_pages_whatever_is_said)
{
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	struct gr_multifd_header h = some_header();
	struct gr_error err;

	gr_multifd_header_put(&h, PAGE, raw);
	gr_put_be32(raw + 20, 0xffffffff);
	ASSERT_EQ(parse(raw, &h, &err), 0);
	ASSERT_EQ(h.payload_bytes, 2u * PAGE);
}

static void refused(size_t at, uint32_t value, int code, const char *words)
{
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	struct gr_multifd_header h = some_header();
	struct gr_error err = { 0 };

	gr_multifd_header_put(&h, PAGE, raw);
	gr_put_be32(raw + at, value);
	ASSERT_EQ(parse(raw, &h, &err), code);
	ASSERT_HAS(err.msg, words);
}

TEST(who_passes_on_need_not_know_how_pages_were_compressed)
{
	for (uint32_t method = 0; method < 32; method++) {
		bool is_one = (method & (method - 1)) == 0;
		uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
		struct gr_multifd_header h = some_header();
		struct gr_error err = { 0 };

		h.payload_bytes = 77;
		gr_multifd_header_put(&h, PAGE, raw);
		gr_put_be32(raw + 8, method << 1);
		ASSERT_EQ(gr_multifd_header_look(raw, PAGE, &h, &err), is_one ? 0 : -EOPNOTSUPP);
		ASSERT_EQ(parse(raw, &h, &err), method <= GR_MULTIFD_ZSTD ? 0 : -EOPNOTSUPP);
		if (method > 0 && is_one) {
			ASSERT_EQ(h.payload_bytes, 77u);
		}
	}
}

TEST(hostile_headers_are_refused_before_anything_is_read)
{
	refused(0, 0x5145564d, -EBADMSG, "0x5145564d");
	refused(4, 2, -EBADMSG, "version 2");
	refused(8, 1 << 6, -EOPNOTSUPP, "device");
	refused(8, 1u << 31, -EBADMSG, "flags");
	refused(8, 4 << 1, -EOPNOTSUPP, "qpl");
	refused(16, 129, -EBADMSG, "129 pages");
	refused(16, UINT32_MAX, -EBADMSG, "pages");
	refused(32, 127, -EBADMSG, "127 zero pages");
	refused(32, UINT32_MAX, -EBADMSG, "zero pages");
	refused(64, 0, -EBADMSG, "name");
	refused(320, 1, -EBADMSG, "block 'ram', page 0x1");
	refused(324, 1, -EBADMSG, "page 0x1");
	refused(320 + 12, BLOCK, -EBADMSG, "page 0x10000");
	refused(320 + 20, BLOCK, -EBADMSG, "page 0x10000"); /* a zero page */
}

TEST(pages_of_another_size_are_refused_as_such)
{
	refused(12, 32, -EOPNOTSUPP, "16384 bytes");
	refused(12, 512, -EOPNOTSUPP, "1024 bytes");
	refused(12, UINT32_MAX, -EOPNOTSUPP, "room for 4294967295 pages");
}

TEST(a_compressed_packet_says_its_length_within_bounds)
{
	static const uint32_t lengths[] = { 0, GR_MULTIFD_PAYLOAD_BYTES_MAX + 1, UINT32_MAX };
	uint8_t raw[GR_MULTIFD_HEADER_BYTES_MAX];
	struct gr_multifd_header h = some_header();
	struct gr_error err = { 0 };

	h.compression = GR_MULTIFD_ZLIB;
	for (size_t i = 0; i < GR_ARRAY_SIZE(lengths); i++) {
		h = some_header();
		h.compression = GR_MULTIFD_ZLIB;
		h.payload_bytes = lengths[i];
		gr_multifd_header_put(&h, PAGE, raw);
		ASSERT_EQ(parse(raw, &h, &err), -EBADMSG);
		ASSERT_HAS(err.msg, "2 pages in");
	}
}

TEST(the_machine_says_the_dialect)
{
	ASSERT_EQ((int)gr_multifd_dialect_of("pc-i440fx-7.2"), (int)GR_MULTIFD_7_2);
	ASSERT_EQ((int)gr_multifd_dialect_of("pc-q35-8.0"), (int)GR_MULTIFD_7_2);
	ASSERT_EQ((int)gr_multifd_dialect_of("virt-8.1"), (int)GR_MULTIFD_8_1);
	ASSERT_EQ((int)gr_multifd_dialect_of("pc-q35-8.2"), (int)GR_MULTIFD_8_1);
	ASSERT_EQ((int)gr_multifd_dialect_of("pc-i440fx-10.0"), (int)GR_MULTIFD_9_0);
	ASSERT_EQ((int)gr_multifd_dialect_of("guestram"), (int)GR_MULTIFD_9_0);
	ASSERT_EQ((int)gr_multifd_dialect_of("s390-ccw-virtio"), (int)GR_MULTIFD_9_0);
}

/* ---- compression ----------------------------------------------------------------------- */

static void fill(uint8_t *pages, size_t bytes, uint64_t *seed)
{
	uint64_t kind = test_rand(seed) % 3;

	for (size_t i = 0; i < bytes; i++) {
		pages[i] = kind == 0 ? 7 : kind == 1 ? (uint8_t)(i / 5) : (uint8_t)test_rand(seed);
	}
}

static void packets_come_back(enum gr_multifd_compression compression)
{
	static uint8_t in[GR_MULTIFD_DATA_BYTES], out[GR_MULTIFD_DATA_BYTES];
	static uint8_t packed[GR_MULTIFD_PAYLOAD_BYTES_MAX];
	struct gr_multifd_codec packer = { 0 }, unpacker = { 0 };
	uint64_t seed = test_seed();
	struct iovec iov[3];
	struct gr_error err;

	ASSERT_EQ(gr_multifd_codec_open(&packer, compression, true, 0, &err), 0);
	ASSERT_EQ(gr_multifd_codec_open(&unpacker, compression, false, 0, &err), 0);
	for (int i = 0; i < 60; i++) {
		size_t n = (1 + test_rand(&seed) % GR_MULTIFD_PAGES_MAX) * PAGE, bytes;
		size_t a = test_rand(&seed) % n, b = a + test_rand(&seed) % (n - a);

		fill(in, n, &seed);
		ASSERT_EQ(gr_multifd_pack(&packer, in, n, packed, sizeof(packed), &bytes, &err), 0);
		memset(out, 0x55, n);
		iov[0] = (struct iovec){ out, a };
		iov[1] = (struct iovec){ out + a, b - a };
		iov[2] = (struct iovec){ out + b, n - b };
		ASSERT_EQ(gr_multifd_unpack(&unpacker, packed, bytes, iov, 3, &err), 0);
		ASSERT_EQ(memcmp(in, out, n), 0);
	}
	/* Fewer pages than were packed: a bomb, in small. More: it ends too early. */
	ASSERT_EQ(gr_multifd_pack(&packer, in, 2 * PAGE, packed, sizeof(packed), &iov[0].iov_len,
				  &err),
		  0);
	iov[1] = (struct iovec){ out, PAGE };
	ASSERT_EQ(gr_multifd_unpack(&unpacker, packed, iov[0].iov_len, &iov[1], 1, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "more than there are");
	gr_multifd_codec_close(&packer);
	gr_multifd_codec_close(&unpacker);

	ASSERT_EQ(gr_multifd_codec_open(&packer, compression, true, 0, &err), 0);
	ASSERT_EQ(gr_multifd_codec_open(&unpacker, compression, false, 0, &err), 0);
	ASSERT_EQ(gr_multifd_pack(&packer, in, PAGE, packed, sizeof(packed), &iov[0].iov_len, &err),
		  0);
	iov[1] = (struct iovec){ out, 2 * PAGE };
	ASSERT_EQ(gr_multifd_unpack(&unpacker, packed, iov[0].iov_len, &iov[1], 1, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "too early");
	memset(packed, 0xee, PAGE);
	ASSERT_EQ(gr_multifd_unpack(&unpacker, packed, PAGE, &iov[1], 1, &err), -EBADMSG);
	gr_multifd_codec_close(&packer);
	gr_multifd_codec_close(&unpacker);
}

static void has(enum gr_multifd_compression compression)
{
	struct gr_error err = { 0 };

	if (gr_multifd_supports(compression, &err) < 0) {
		ASSERT_HAS(err.msg, gr_multifd_compression_name(compression));
		ASSERT_HAS(err.msg, "-dev");
		SKIP("%s", err.msg);
	}
}

TEST(pages_packed_by_zlib_come_back_and_nothing_else_is_unpacked)
{
	has(GR_MULTIFD_ZLIB);
	packets_come_back(GR_MULTIFD_ZLIB);
}

TEST(pages_packed_by_zstd_come_back_and_nothing_else_is_unpacked)
{
	has(GR_MULTIFD_ZSTD);
	packets_come_back(GR_MULTIFD_ZSTD);
}

/* ---- looked at while it goes by -------------------------------------------------------- */

/* In pieces of so many bytes, as far as n. */
static int scan_pieces(struct gr_multifd_scan *s, const uint8_t *bytes, size_t n, size_t most,
		       struct gr_error *err)
{
	int rc = 0;

	for (size_t at = 0; rc == 0 && at < n;) {
		size_t part = gr_multifd_scan_room(s, most);

		part = GR_MIN(part, most);
		part = GR_MIN(part, n - at);
		rc = gr_multifd_scan(s, bytes + at, part, err);
		s->page_bytes = PAGE;
		at += part;
	}
	return rc;
}

enum { SCANNED_HEADER = 64 + 1344, SCANNED = SCANNED_HEADER + 2 * PAGE + 1344 };

/* A greeting, a packet of two pages and a zero page, and one that is empty. */
static void fill_scanned(uint8_t *bytes)
{
	struct gr_multifd_greeting g = { .id = 5 };
	struct gr_multifd_header h = some_header(), empty = { 0 };

	memset(bytes, 0x11, SCANNED);
	gr_multifd_greeting_put(&g, bytes);
	gr_multifd_header_put(&h, PAGE, bytes + 64);
	gr_multifd_header_put(&empty, PAGE, bytes + SCANNED_HEADER + 2 * PAGE);
}

TEST(a_channel_that_goes_by_is_followed_in_any_pieces)
{
	static const size_t most[] = { 1, 3, 64, 1000, 1344, 1345, 4096, SCANNED };
	static uint8_t bytes[SCANNED];
	struct gr_error err;

	fill_scanned(bytes);
	for (size_t i = 0; i < sizeof(most) / sizeof(most[0]); i++) {
		struct gr_multifd_scan s = { 0 };

		ASSERT_EQ(scan_pieces(&s, bytes, SCANNED, most[i], &err), 0);
		ASSERT_EQ(gr_multifd_scan_end(&s, &err), 0);
		ASSERT_EQ(s.id, 5u);
		ASSERT_EQ(s.bytes, (uint64_t)SCANNED);
		ASSERT_EQ(s.normal_pages, 2u);
		ASSERT_EQ(s.zero_pages, 1u);
		ASSERT_EQ(s.syncs, 0u);
		/* What follows brings nothing. */
		ASSERT_EQ(s.needed, (uint64_t)SCANNED_HEADER + 2 * PAGE);
	}
}

TEST(a_channel_that_goes_by_may_end_between_packets_only)
{
	static uint8_t bytes[SCANNED];
	struct gr_error err;

	fill_scanned(bytes);
	for (size_t n = 0; n <= SCANNED; n++) {
		struct gr_multifd_scan s = { 0 };
		bool between = n == 64 || n == SCANNED_HEADER + 2 * PAGE || n == SCANNED;

		ASSERT_EQ(scan_pieces(&s, bytes, n, 700, &err), 0);
		ASSERT_EQ(gr_multifd_scan_end(&s, &err), between ? 0 : -EPIPE);
		ASSERT(between || strstr(err.msg, n < 64 ? "greeting" : "byte "));
	}
}

TEST(what_is_no_packet_is_not_followed_and_named_by_its_byte)
{
	static uint8_t bytes[SCANNED];

	for (size_t most = 1; most <= SCANNED; most += 617) {
		struct gr_multifd_scan s = { 0 };
		struct gr_error err;

		fill_scanned(bytes);
		bytes[SCANNED_HEADER + 2 * PAGE]++;
		ASSERT_EQ(scan_pieces(&s, bytes, SCANNED, most, &err), -EBADMSG);
		ASSERT_HAS(err.msg, "byte 9600: a packet that begins with 0x12223344");
	}
}

/* ---- which channel is which ------------------------------------------------------------ */

struct door {
	struct gr_channel_listener *listener;
	struct gr_channel *main, *further[30];
	unsigned int count;
	uint64_t limit_ns; /* 0: as gr_multifd_accept() has it */
	uint64_t (*clock_ns)(void);
	pthread_t thread;
	bool ended; /* (atomic) */
	int rc;
	struct gr_error err;
};

static uint64_t real_ns(void)
{
	return gr_clock_ns();
}

static void *accept_all(void *opaque)
{
	struct door *d = opaque;

	d->rc = d->limit_ns == 0
			? gr_multifd_accept(d->listener, d->count, &d->main, d->further, &d->err)
			: gr_multifd_accept_within(d->listener, d->count, d->limit_ns,
						   d->clock_ns ? d->clock_ns : real_ns, &d->main,
						   d->further, &d->err);
	__atomic_store_n(&d->ended, true, __ATOMIC_SEQ_CST);
	return NULL;
}

static void make_door(struct door *d, const char *uri, unsigned int count)
{
	*d = (struct door){ .count = count };
	ASSERT_EQ(gr_channel_listen(uri, &d->listener, NULL), 0);
}

static void open_door(struct door *d, const char *uri, unsigned int count)
{
	make_door(d, uri, count);
	ASSERT_EQ(pthread_create(&d->thread, NULL, accept_all, d), 0);
}

static void close_door(struct door *d)
{
	(void)gr_channel_close(d->main, NULL);
	for (unsigned int i = 0; i < d->count; i++) {
		(void)gr_channel_close(d->further[i], NULL);
	}
	gr_channel_listener_close(d->listener);
}

static struct gr_channel *knock(struct door *d, const char *words)
{
	struct gr_channel *ch;

	ASSERT_EQ(gr_channel_connect(gr_channel_listener_uri(d->listener), &ch, NULL), 0);
	ASSERT_EQ(gr_channel_write_all(ch, words, strlen(words), NULL), 0);
	return ch;
}

TEST(the_main_channel_is_known_by_its_first_byte_in_whatever_place_it_comes)
{
	for (int place = 0; place < 3; place++) {
		struct gr_channel *ch[4];
		struct door d;
		char bytes[8];
		struct iovec iov = { bytes, sizeof(bytes) };

		open_door(&d, "tcp:127.0.0.1:0", 2);
		ch[3] = knock(&d, ""); /* somebody who looks whether the port is open */
		(void)gr_channel_close(ch[3], NULL);
		for (int i = 0; i < 3; i++) {
			ch[i] = knock(&d, i == place ? "QEVM" : "\x11\x22\x33\x44");
		}
		pthread_join(d.thread, NULL);
		if (d.rc < 0) {
			FAIL("%s", d.err.msg);
		}
		ASSERT_EQ(gr_channel_readv(d.main, &iov, 1, NULL), 4);
		ASSERT_EQ(memcmp(bytes, "QEVM", 4), 0);
		ASSERT_EQ(gr_channel_readv(d.further[0], &iov, 1, NULL), 4);
		ASSERT_EQ(memcmp(bytes, "\x11\x22\x33\x44", 4), 0);
		close_door(&d);
		for (int i = 0; i < 3; i++) {
			(void)gr_channel_close(ch[i], NULL);
		}
	}
}

static void not_accepted(const char *first, const char *second, const char *words)
{
	struct gr_channel *ch[2];
	struct door d;

	open_door(&d, "tcp:127.0.0.1:0", 1);
	ch[0] = knock(&d, first);
	ch[1] = knock(&d, second);
	pthread_join(d.thread, NULL);
	ASSERT_EQ(d.rc, -EBADMSG);
	ASSERT_HAS(d.err.msg, words);
	gr_channel_listener_close(d.listener);
	for (int i = 0; i < 2; i++) {
		(void)gr_channel_close(ch[i], NULL);
	}
}

TEST(what_is_no_channel_of_a_move_is_refused)
{
	not_accepted("QEVM", "QEVM", "second main");
	not_accepted("\x11", "\x11", "more further channels");
	not_accepted("GET / HTTP/1.0", "QEVM", "no channel of a migration");
}

TEST(accepting_ends_when_the_listener_is_shut_down)
{
	struct gr_channel *ch;
	struct door d;

	open_door(&d, "tcp:127.0.0.1:0", 2);
	ch = knock(&d, "QEVM");
	gr_channel_listener_shutdown(d.listener);
	pthread_join(d.thread, NULL);
	ASSERT_EQ(d.rc, -ECANCELED);
	gr_channel_listener_close(d.listener);
	(void)gr_channel_close(ch, NULL);
}

/* Until nobody is left to be accepted. */
static void wait_accepted(struct door *d)
{
	struct pollfd p = { gr_channel_listener_fd(d->listener), POLLIN, 0 };

	while (!__atomic_load_n(&d->ended, __ATOMIC_SEQ_CST) && poll(&p, 1, 0) > 0) {
		usleep(1000);
	}
}

TEST(accepting_ends_while_it_waits_for_a_first_byte)
{
	struct gr_channel *ch[3];
	struct door d;

	open_door(&d, "tcp:127.0.0.1:0", 2);
	for (int i = 0; i < 3; i++) {
		ch[i] = knock(&d, "");
	}
	wait_accepted(&d); /* all are there: it is their words that are waited for */
	gr_channel_listener_shutdown(d.listener);
	pthread_join(d.thread, NULL);
	ASSERT_EQ(d.rc, -ECANCELED);
	ASSERT_HAS(d.err.msg, "listening was ended");
	gr_channel_listener_close(d.listener);
	for (int i = 0; i < 3; i++) {
		(void)gr_channel_close(ch[i], NULL);
	}
}

/* Whoever looks whether the port is open, and goes, long before the move. */
TEST(a_look_at_the_port_does_not_begin_the_time_limit)
{
	char folder[] = "/tmp/guestram-multifd-XXXXXX", uri[64];
	uint8_t byte;
	struct iovec iov = { &byte, 1 };
	struct gr_channel *ch;
	struct door d;

	ASSERT(mkdtemp(folder));
	(void)snprintf(uri, sizeof(uri), "unix:%s/s", folder);
	make_door(&d, uri, 2);
	d.limit_ns = 1; /* over at once */
	ch = knock(&d, "");
	gr_channel_end_writing(ch); /* has gone, and still hears when it is dropped */
	ASSERT_EQ(pthread_create(&d.thread, NULL, accept_all, &d), 0);
	ASSERT_EQ(gr_channel_readv(ch, &iov, 1, NULL), 0);
	gr_channel_listener_shutdown(d.listener);
	pthread_join(d.thread, NULL);
	ASSERT_EQ(d.rc, -ECANCELED);
	gr_channel_listener_close(d.listener);
	(void)gr_channel_close(ch, NULL);
	ASSERT_EQ(rmdir(folder), 0);
}

static uint64_t fake_now, fake_looks; /* (atomic) */

static uint64_t fake_ns(void)
{
	__atomic_add_fetch(&fake_looks, 1, __ATOMIC_SEQ_CST);
	return __atomic_load_n(&fake_now, __ATOMIC_SEQ_CST);
}

/* The time of the peers begins with them, however long before somebody looked at the port. */
TEST(a_look_at_the_port_takes_no_time_from_the_peers)
{
	struct gr_channel *ch[5];
	struct door d;

	make_door(&d, "tcp:127.0.0.1:0", 3);
	d.limit_ns = 60 * GR_NS_PER_S;
	d.clock_ns = fake_ns;
	ASSERT_EQ(pthread_create(&d.thread, NULL, accept_all, &d), 0);
	for (int i = 0; i < 5; i++) {
		ch[i] = knock(&d, i == 0 ? "" : i == 1 ? "QEVM" : "\x11");
		if (i == 0) {
			(void)gr_channel_close(ch[0], NULL);
		}
		wait_accepted(&d);
		while (__atomic_load_n(&fake_looks, __ATOMIC_SEQ_CST) == 0) {
			usleep(1000); /* the first one's time has not begun yet */
		}
		__atomic_add_fetch(&fake_now, 40 * GR_NS_PER_S, __ATOMIC_SEQ_CST);
	}
	pthread_join(d.thread, NULL);
	if (d.rc < 0) {
		FAIL("%s", d.err.msg);
	}
	close_door(&d);
	for (int i = 1; i < 5; i++) {
		(void)gr_channel_close(ch[i], NULL);
	}
}

/* Somebody looks at the port again and again, and a further channel never comes. */
TEST(looks_at_the_port_give_the_peers_no_time)
{
	struct gr_channel *ch;
	struct door d;

	__atomic_store_n(&fake_looks, 0, __ATOMIC_SEQ_CST);
	make_door(&d, "tcp:127.0.0.1:0", 30); /* more than look */
	d.limit_ns = 60 * GR_NS_PER_S;
	d.clock_ns = fake_ns;
	ASSERT_EQ(pthread_create(&d.thread, NULL, accept_all, &d), 0);
	ch = knock(&d, "QEVM");
	for (int i = 0; i < 20 && !__atomic_load_n(&d.ended, __ATOMIC_SEQ_CST); i++) {
		uint64_t looks = __atomic_load_n(&fake_looks, __ATOMIC_SEQ_CST);

		(void)gr_channel_close(knock(&d, ""), NULL);
		/* The clock is read by whoever has accepted it. */
		while (__atomic_load_n(&fake_looks, __ATOMIC_SEQ_CST) == looks &&
		       !__atomic_load_n(&d.ended, __ATOMIC_SEQ_CST)) {
			usleep(1000);
		}
		__atomic_add_fetch(&fake_now, 40 * GR_NS_PER_S, __ATOMIC_SEQ_CST);
	}
	gr_channel_listener_shutdown(d.listener);
	pthread_join(d.thread, NULL);
	ASSERT_EQ(d.rc, -ETIMEDOUT);
	ASSERT_HAS(d.err.msg, "1 of 31 channels have come");
	gr_channel_listener_close(d.listener);
	(void)gr_channel_close(ch, NULL);
}

TEST(channels_that_do_not_come_in_time_are_told_of)
{
	struct gr_channel *ch;
	struct door d;

	make_door(&d, "tcp:127.0.0.1:0", 2);
	d.limit_ns = 1;
	ch = knock(&d, "QEVM");
	ASSERT_EQ(pthread_create(&d.thread, NULL, accept_all, &d), 0);
	pthread_join(d.thread, NULL);
	ASSERT_EQ(d.rc, -ETIMEDOUT);
	ASSERT_HAS(d.err.msg, "1 of 3 channels have come");
	gr_channel_listener_close(d.listener);
	(void)gr_channel_close(ch, NULL);
}

TEST(further_channels_need_sockets_and_a_number_within_bounds)
{
	struct gr_channel *main_channel, *further[1];
	struct gr_channel_listener *listener;
	struct gr_error err;

	ASSERT_EQ(gr_multifd_connect("tcp:127.0.0.1:1", 0, &main_channel, further, &err), -EINVAL);
	ASSERT_EQ(gr_multifd_connect("tcp:127.0.0.1:1", 256, &main_channel, further, &err),
		  -EINVAL);
	ASSERT_EQ(gr_channel_listen("exec:cat", &listener, NULL), 0);
	ASSERT_EQ(gr_multifd_accept(listener, 1, &main_channel, further, &err), -EINVAL);
	ASSERT_HAS(err.msg, "socket");
	gr_channel_listener_close(listener);
}

/* Neither is a file emptied or made, nor a command started, nor a descriptor taken over. */
TEST(what_is_no_socket_is_refused_before_it_is_opened)
{
	char file[] = "/tmp/guestram-multifd-XXXXXX", uri[4][80], made[64];
	struct gr_channel *main_channel, *further[1];
	int fd = mkstemp(file);
	struct gr_error err;
	struct stat st;

	ASSERT_GE(fd, 0);
	ASSERT_EQ(write(fd, "precious", 8), 8);
	(void)snprintf(made, sizeof(made), "%s-made", file);
	(void)snprintf(uri[0], sizeof(uri[0]), "file:%s", file);
	(void)snprintf(uri[1], sizeof(uri[1]), "file:%s", made);
	(void)snprintf(uri[2], sizeof(uri[2]), "exec:touch %s", made);
	(void)snprintf(uri[3], sizeof(uri[3]), "fd:%d", fd);
	for (int i = 0; i < 4; i++) {
		ASSERT_EQ(gr_multifd_connect(uri[i], 1, &main_channel, further, &err), -EINVAL);
		ASSERT_HAS(err.msg, "need a socket");
	}
	ASSERT_EQ(fstat(fd, &st), 0);
	ASSERT_EQ(st.st_size, 8);
	ASSERT_EQ(access(made, F_OK), -1);
	ASSERT_EQ(close(fd), 0);
	ASSERT_EQ(unlink(file), 0);
}

TEST_MAIN()

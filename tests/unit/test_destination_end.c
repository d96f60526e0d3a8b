/* SPDX-License-Identifier: MIT */
/* How a move ends at the destination: the devices' state, the answers to the source, a cancel. */
#include "destination_kit.h"
#include <linux/sockios.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* A QEMU's tail: FULL sections without lengths, a description that names devices. */
static void make_foreign_end(struct made *s, struct feed *f)
{
	static const char json[] = "{\"page_size\": 4096, \"devices\": [{\"name\": \"timer\", "
				   "\"instance_id\": 0, \"version\": 2, \"fields\": []}]}";
	uint8_t tail[256] = { 4,    0, 0, 0, 0, 5, 't', 'i', 'm', 'e', 'r',
			      0,    0, 0, 0, 0, 0, 0,	2,   1,	  2,   3,
			      0x7e, 0, 0, 0, 0, 0, 6,	0,   0,	  0,   sizeof(json) - 1 };

	memcpy(tail + 33, json, sizeof(json) - 1);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s->w, tail, 33 + sizeof(json) - 1, NULL), 0);
	ASSERT_EQ(gr_stream_flush(s->w, NULL), 0);
	f->data = gr_channel_memory_written(s->ch, &f->bytes);
}

TEST(devices_of_another_monitor_are_refused_by_name_unless_nobody_loads)
{
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops ops = { .load = move_load, .opaque = &loaded };
	struct made s;
	struct feed f = { .ops = &ops };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 0, 1);
	make_foreign_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EOPNOTSUPP);
	ASSERT_HAS(f.err.msg, "'timer'");
	ASSERT_EQ(loaded.calls, 0u);
	f.ops = NULL;
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	unmake(&s);
	gr_ram_free(to);
}

static int lacks_something(void *opaque, struct gr_error *err)
{
	const struct move_loaded *loaded = opaque;

	ASSERT_EQ(loaded->calls, 2u);
	return gr_error_set(err, -EBADMSG, "no 'test/third' has come");
}

static void incomplete(struct gr_ram *from, const uint8_t *data, size_t bytes, bool ours)
{
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops ops = { .load = move_load,
					  .complete = lacks_something,
					  .opaque = &loaded };
	struct feed f = { .data = data, .bytes = bytes, .ops = &ops };
	struct gr_ram *to = move_ram();

	(void)from, (void)ours;
	feed(&f, to);
	ASSERT_EQ(f.rc, -EBADMSG);
	ASSERT_HAS(f.err.msg, "test/third");
	ASSERT_EQ(shut_of(&f), 1);
	ASSERT(f.stats.state == GR_MIGRATE_FAILED);
	gr_ram_free(to);
}

TEST(the_source_hears_no_success_of_a_machine_that_lacks_a_device)
{
	both_dialects(incomplete);
}

TEST(an_unterminated_stream_needs_leave)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 0, 1);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s.w, "", 1, NULL), 0); /* EOF, no description */
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	f.data = gr_channel_memory_written(s.ch, &f.bytes);
	feed(&f, to);
	ASSERT_LT(f.rc, 0);
	f.params.allow_unterminated = true;
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	unmake(&s);
	gr_ram_free(to);
}

TEST(pings_are_answered_in_order_and_features_only_to_our_own)
{
	static const uint8_t want[] = {
		0,    2,    0, 4, 0,	0,    0, 1,		/* PONG 1 */
		0x47, 0x52, 0, 8, 0,	0,    0, 1, 0, 0, 0, 3, /* FEATURES: both */
		0,    7,    0, 0,				/* SWITCHOVER_ACK */
		0,    2,    0, 4, 0x47, 0x52, 0, 1,		/* its PONG */
		0,    1,    0, 4, 0,	0,    0, 0,		/* SHUT 0 */
	};
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	ASSERT_EQ(gr_stream_write_ping(s.w, 99, NULL), 0); /* nobody opened the return path */
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, 1, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	if (f.rc != 0) {
		FAIL("%s", f.err.msg);
	}
	ASSERT_EQ(f.answer_bytes, sizeof(want));
	ASSERT_MEM_EQ(f.answers, want, sizeof(want));
	f.params.plain = true;
	feed(&f, to);
	ASSERT_EQ(f.answer_bytes, sizeof(want) - 16);
	unmake(&s);
	gr_ram_free(to);
}

static void *run_destination(void *arg)
{
	struct gr_error err = { 0 };
	int rc = gr_destination_run(arg, &err);

	ASSERT_HAS(err.msg, "cancelled");
	return (void *)(intptr_t)rc;
}

/*
 * Plays a peer that sends this, and then neither writes nor reads any more (full: there is
 * no room for an answer from the start); a cancel must end the wait.
 */
static void cancel_after(const uint8_t *data, size_t bytes, bool full)
{
	struct gr_ram *to = move_ram();
	struct gr_migrate_stats stats;
	struct gr_destination *d;
	struct gr_channel *ch;
	pthread_t thread;
	size_t done = 0;
	void *rc;
	int fds[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	while (full && send(fds[0], "", 1, MSG_DONTWAIT) == 1) {
	}
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_destination_create(to, ch, NULL, NULL, &d, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, run_destination, d), 0);
	for (int idle = 0; done < bytes && idle < 50;) {
		ssize_t n = send(fds[1], data + done, bytes - done, MSG_DONTWAIT | MSG_NOSIGNAL);

		done += n > 0 ? (size_t)n : 0;
		idle = n > 0 ? 0 : idle + 1;
		(void)usleep(n > 0 ? 0 : 2000);
	}
	(void)usleep(20000);
	gr_destination_cancel(d);
	ASSERT_EQ(pthread_join(thread, &rc), 0);
	ASSERT_EQ((intptr_t)rc, -ECANCELED);
	gr_destination_stats(d, &stats);
	ASSERT(stats.state == GR_MIGRATE_CANCELLED);
	gr_destination_free(d);
	gr_channel_close(ch, NULL);
	close(fds[1]);
	gr_ram_free(to);
}

TEST(a_cancel_ends_the_wait_for_a_peer_that_stalls)
{
	struct made s;
	struct feed f = { 0 };

	make(&s);
	make_start(&s, name, RAM_BYTES);
	write_page(&s, name, 0, 1);
	write_page(&s, name, 1, 1);
	make_end(&s, &f);
	cancel_after(f.data, 0, false);
	cancel_after(f.data, 30, false);	     /* inside the list of blocks */
	cancel_after(f.data, f.bytes - 3000, false); /* inside a page */
	cancel_after(f.data, f.bytes - 5, false);    /* inside the description */
	unmake(&s);
	/* questions without end, and nobody who reads the answers */
	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	for (uint32_t i = 0; i < 200000; i++) {
		ASSERT_EQ(gr_stream_write_ping(s.w, i, NULL), 0);
	}
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	f.data = gr_channel_memory_written(s.ch, &f.bytes);
	cancel_after(f.data, f.bytes, false);
	unmake(&s);
}

TEST(a_cancel_ends_the_wait_to_tell_of_a_failure)
{
	struct made s;
	struct feed f = { 0 };

	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s.w, "\x99", 1, NULL), 0); /* no section */
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	f.data = gr_channel_memory_written(s.ch, &f.bytes);
	cancel_after(f.data, f.bytes, true);
	unmake(&s);
}

static void *run_to_success(void *arg)
{
	struct gr_error err = { 0 };

	if (gr_destination_run(arg, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return NULL;
}

/* Returns when the other end of a socket pair has read everything. */
static void wait_until_read(int fd)
{
	for (int unread = 1; unread > 0;) {
		ASSERT_EQ(ioctl(fd, SIOCOUTQ, &unread), 0);
		(void)sched_yield();
	}
}

/* A description behind the end of all sections, and more of the device's data. */
static const uint8_t forged[] = { 0, 6, 0, 0, 0, 2, '{', '}', 'm', 'o', 'r', 'e' };

static int load_forged(void *opaque, const char *id, uint32_t instance, uint32_t version,
		       const void *data, size_t bytes, struct gr_error *err)
{
	unsigned int *calls = opaque;

	(void)id, (void)instance, (void)version, (void)err;
	ASSERT_EQ(bytes, sizeof(forged));
	ASSERT_MEM_EQ(data, forged, bytes);
	++*calls;
	return 0;
}

TEST(an_end_that_a_guest_has_forged_in_a_devices_state_is_not_the_end)
{
	unsigned int calls = 0;
	struct gr_destination_ops ops = { .load = load_forged, .opaque = &calls };
	struct gr_ram *to = move_ram();
	struct gr_tail_builder b;
	struct gr_destination *d;
	struct gr_channel *ch;
	struct made s;
	const uint8_t *tail, *data;
	const uint8_t *end;
	size_t bytes;
	pthread_t thread;
	int fds[2];

	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	make_start(&s, name, RAM_BYTES);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	gr_tail_builder_init(&b, MOVE_PAGE);
	gr_tail_builder_add(&b, 0, "test/first", 0, 1, forged, sizeof(forged));
	ASSERT_EQ(gr_tail_builder_finish(&b, &tail, &bytes, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s.w, tail, bytes, NULL), 0);
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	data = gr_channel_memory_written(s.ch, &bytes);
	end = memmem(data, bytes, forged, sizeof(forged));
	ASSERT(end);
	end += sizeof(forged) - strlen("more");

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_destination_create(to, ch, NULL, &ops, &d, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, run_to_success, d), 0);
	ASSERT_EQ(send(fds[1], data, (size_t)(end - data), MSG_NOSIGNAL), end - data);
	wait_until_read(fds[1]);
	ASSERT_EQ(send(fds[1], end, bytes - (size_t)(end - data), MSG_NOSIGNAL),
		  (ssize_t)bytes - (end - data));
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_EQ(calls, 1u);
	gr_destination_free(d);
	gr_channel_close(ch, NULL);
	close(fds[1]);
	gr_tail_builder_destroy(&b);
	unmake(&s);
	gr_ram_free(to);
}

TEST_MAIN()

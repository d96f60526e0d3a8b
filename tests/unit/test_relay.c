/* SPDX-License-Identifier: MIT */
/* A relay between two of our own: each end knows what it would know without it. */
#include "move.h"
#include <errno.h>
#include <guestram/relay.h>
#include <string.h>
#include <unistd.h>

enum { MIB = 1 << 20, RAM_BYTES = 8 * MIB };

struct relayed {
	struct gr_channel *in[2], *out[2]; /* the relay has in[1] and out[0] */
	struct gr_relay_params params;
	struct gr_migrate_stats stats;
	struct gr_error err;
	int rc;
	pthread_t thread;
};

static void *relay_main(void *opaque)
{
	struct relayed *r = opaque;

	r->rc = gr_relay(r->in[1], r->out[0], &r->params, &r->stats, &r->err);
	if (r->rc == 0) {
		gr_channel_end_writing(r->out[0]);
	}
	return NULL;
}

static void start(struct relayed *r, struct move *m)
{
	r->params.size = sizeof(r->params);
	move_channels(r->in);
	move_channels(r->out);
	m->ch[0] = r->in[0];
	m->ch[1] = r->out[1];
	ASSERT_EQ(pthread_create(&r->thread, NULL, relay_main, r), 0);
}

static void finish(struct relayed *r)
{
	pthread_join(r->thread, NULL);
	(void)gr_channel_close(r->in[1], NULL);
	(void)gr_channel_close(r->out[0], NULL);
}

static void seen(void *opaque, const struct gr_migrate_stats *stats)
{
	uint64_t *most = opaque;

	ASSERT_GE(stats->transferred_bytes, *most);
	*most = stats->transferred_bytes;
}

TEST(a_running_machine_moves_through_a_relay)
{
	struct move_guest g = {
		.bytes = RAM_BYTES, .writers = 2, .seed = test_seed(), .pause_us = 20
	};
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move_loaded loaded = { 0 };
	struct gr_destination_ops to_ops = { .load = move_load, .opaque = &loaded };
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops, .to_ops = &to_ops };
	uint64_t most = 0;
	struct relayed r = { .params = { .progress = seen, .opaque = &most } };

	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	start(&r, &m);
	move_guest_start(&g);
	move_must_succeed(&m);
	finish(&r);
	ASSERT_EQ(r.rc, 0);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	ASSERT_STR_EQ(loaded.order, "firstsecond");
	/* The relay can pass on no list that changes: the source was not told of a guestram. */
	ASSERT(!m.stats.peer_is_guestram);
	ASSERT_EQ(r.stats.rounds, m.to_stats.rounds);
	ASSERT_EQ(r.stats.normal_pages, m.stats.normal_pages);
	ASSERT_EQ(r.stats.zero_pages, m.stats.zero_pages);
	ASSERT_EQ(r.stats.transferred_bytes, m.stats.transferred_bytes);
	ASSERT_EQ(r.stats.total_bytes, (uint64_t)RAM_BYTES);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

static int refuse(void *opaque, struct gr_error *err)
{
	(void)opaque;
	return gr_error_set(err, -EBADMSG, "not this one");
}

TEST(a_refusal_of_the_destination_reaches_the_source)
{
	struct gr_destination_ops to_ops = { .complete = refuse };
	struct move m = { .from = move_ram(), .to = move_ram(), .to_ops = &to_ops };
	struct relayed r = { 0 };

	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	start(&r, &m);
	move_run(&m);
	finish(&r);
	ASSERT_LT(m.rc, 0);
	ASSERT_EQ(m.to_rc, -EBADMSG);
	ASSERT_EQ(r.rc, -EREMOTEIO);
	ASSERT_HAS(r.err.msg, "it says 1");
	ASSERT(m.stats.state == GR_MIGRATE_FAILED);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(answers_that_cannot_go_back_are_refused_when_they_are_asked_for)
{
	struct move m = { .from = move_ram() };
	struct relayed r = { .params = { .size = sizeof(r.params) } };
	struct gr_source *source;
	struct gr_error err;
	int pipe_fds[2];

	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_channels(r.in);
	ASSERT_EQ(pipe(pipe_fds), 0);
	ASSERT_EQ(gr_channel_from_fd(pipe_fds[1], &r.out[0], NULL), 0);
	ASSERT_EQ(pthread_create(&r.thread, NULL, relay_main, &r), 0);
	ASSERT_EQ(gr_source_create(m.from, NULL, r.in[0], NULL, NULL, &source, &err), 0);
	ASSERT_LT(gr_source_run(source, &err), 0);
	finish(&r);
	ASSERT_EQ(r.rc, -ENOTSUP);
	ASSERT_HAS(r.err.msg, "return-path");
	gr_source_free(source);
	(void)gr_channel_close(r.in[0], NULL);
	(void)close(pipe_fds[0]);
	gr_ram_free(m.from);
}

TEST(a_broken_stream_breaks_both_ends_and_says_where)
{
	struct relayed r = { .params = { .size = sizeof(r.params) } };
	struct iovec iov;
	uint8_t byte[64];
	ssize_t n;

	move_channels(r.in);
	move_channels(r.out);
	ASSERT_EQ(pthread_create(&r.thread, NULL, relay_main, &r), 0);
	ASSERT_EQ(gr_channel_write_all(r.in[0], "QEVM\0\0\0\3\x05", 9, NULL), 0);
	pthread_join(r.thread, NULL);
	ASSERT_LT(r.rc, 0);
	ASSERT_HAS(r.err.msg, "byte 8");
	iov = (struct iovec){ byte, sizeof(byte) };
	while ((n = gr_channel_readv(r.out[1], &iov, 1, NULL)) > 0) {
	}
	ASSERT_LE(n, 0); /* the end, without anybody closing it */
	for (int i = 0; i < 2; i++) {
		(void)gr_channel_close(r.in[i], NULL);
		(void)gr_channel_close(r.out[i], NULL);
	}
}

TEST(parameters_of_another_version_are_refused)
{
	struct relayed r = { .params = { .size = 3 } };

	move_channels(r.in);
	ASSERT_EQ(gr_relay(r.in[0], r.in[1], &r.params, NULL, &r.err), -EINVAL);
	ASSERT_EQ(gr_relay(NULL, r.in[1], NULL, NULL, &r.err), -EINVAL);
	(void)gr_channel_close(r.in[0], NULL);
	(void)gr_channel_close(r.in[1], NULL);
}

TEST_MAIN()

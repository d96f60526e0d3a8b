/* SPDX-License-Identifier: MIT */
/* Moves that do not come off: cancelled, broken, without an answer, wrongly asked for. The guest is
 * left where it was. */
#include "migrate/source.h"
#include "move.h"
#include "stream/channel.h"
#include <unistd.h>

enum { MIB = 1 << 20, RAM_BYTES = 8 * MIB };

/* Cancels when a state is seen, from another thread. */
struct canceller {
	struct move *m;
	enum gr_migrate_state when;
};

static void *cancel_when(void *opaque)
{
	struct canceller *c = opaque;
	struct gr_migrate_stats stats;

	do {
		gr_source_stats(c->m->source, &stats);
	} while (stats.state < c->when);
	gr_source_cancel(c->m->source);
	return NULL;
}

static void cancel_in(enum gr_migrate_state when, bool destination_reads)
{
	struct move_guest g = {
		.bytes = RAM_BYTES, .writers = 1, .seed = test_seed(), .pause_us = 20
	};
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = {
		.from = move_ram(),
		.to = move_ram(),
		.ops = &ops,
		.params = { .bandwidth_bytes_per_s_max = when == GR_MIGRATE_DEVICE ? 0 : 4 * MIB },
	};
	struct canceller c = { &m, when };
	pthread_t receiver = 0, canceller;

	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_prepare(&m);
	ASSERT_EQ(pthread_create(&canceller, NULL, cancel_when, &c), 0);
	if (destination_reads) {
		ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &m), 0);
	}
	m.rc = gr_source_run(m.source, &m.err);
	pthread_join(canceller, NULL);
	if (destination_reads) {
		pthread_join(receiver, NULL);
	}
	move_finish(&m);
	if (m.rc == 0) {
		/* The cancel was late. Then both sides must say so. */
		ASSERT(m.stats.state == GR_MIGRATE_COMPLETED);
		ASSERT_EQ(m.to_rc, 0);
		move_guest_resume(&g);
	} else {
		ASSERT_EQ(m.rc, -ECANCELED);
		ASSERT(m.stats.state == GR_MIGRATE_CANCELLED);
		ASSERT(!destination_reads || m.to_rc < 0);
		ASSERT_EQ(g.pauses, g.resumes);
	}
	/* The guest goes on, and a next migration works. */
	m.params.bandwidth_bytes_per_s_max = 0;
	gr_ram_free(m.to);
	m.to = move_ram();
	memset(&m.err, 0, sizeof(m.err));
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(cancel_before_it_began)
{
	cancel_in(GR_MIGRATE_NONE, true);
}

TEST(without_an_answer_the_move_fails_and_the_guest_stays)
{
	struct move m = { .from = move_ram(), .to = move_ram() };
	int rc;

	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_prepare(&m);
	do {
		rc = gr_source_step(m.source, &m.err);
	} while (rc == 1 && m.source->phase != GR_SOURCE_PEER);
	ASSERT_EQ(rc, 1);
	m.source->ping_ns -= GR_SOURCE_PEER_NS; /* as if the time had passed */
	do {
		rc = gr_source_step(m.source, &m.err);
	} while (rc == 1);
	ASSERT_EQ(rc, -ETIMEDOUT);
	ASSERT_HAS(m.err.msg, "has not answered");
	move_finish(&m);
	ASSERT(m.stats.state == GR_MIGRATE_FAILED);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(cancel_while_the_peer_does_not_answer)
{
	cancel_in(GR_MIGRATE_SETUP, false);
}

TEST(cancel_during_setup)
{
	cancel_in(GR_MIGRATE_SETUP, true);
}

TEST(cancel_during_the_rounds)
{
	cancel_in(GR_MIGRATE_ACTIVE, true);
}

TEST(cancel_when_the_guest_is_stopped)
{
	for (int i = 0; i < 5; i++) {
		cancel_in(GR_MIGRATE_DEVICE, true);
	}
}

/* A destination that has everything and takes its time to load it. */
struct slow_load {
	struct move *m;
	bool loading, go_on; /* (atomic) */
	int fail;	     /* what it says in the end, or 0 */
};

static int load_slowly(void *opaque, const char *id, uint32_t instance, uint32_t version,
		       const void *data, size_t bytes, struct gr_error *err)
{
	struct slow_load *l = opaque;

	(void)id, (void)instance, (void)version, (void)data, (void)bytes;
	__atomic_store_n(&l->loading, true, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&l->go_on, __ATOMIC_ACQUIRE)) {
		usleep(100);
	}
	return l->fail == 0 ? 0 : gr_error_set(err, l->fail, "told to fail");
}

static void *cancel_when_loading(void *opaque)
{
	struct slow_load *l = opaque;

	while (!__atomic_load_n(&l->loading, __ATOMIC_ACQUIRE)) {
		usleep(100);
	}
	gr_source_cancel(l->m->source);
	usleep(100000); /* time for the source to draw the wrong conclusion */
	__atomic_store_n(&l->go_on, true, __ATOMIC_RELEASE);
	return NULL;
}

static void tcp_channels(struct gr_channel *ch[2])
{
	struct gr_channel_listener *l;

	ASSERT_EQ(gr_channel_listen("tcp:127.0.0.1:0", &l, NULL), 0);
	ASSERT_EQ(gr_channel_connect(gr_channel_listener_uri(l), &ch[0], NULL), 0);
	ASSERT_EQ(gr_channel_accept(l, &ch[1], NULL), 0);
	gr_channel_listener_close(l);
}

/* The destination decides: whatever it does, exactly one guest runs. */
static void cancel_while_loading(bool tcp, int fail)
{
	struct move_guest g = { .bytes = RAM_BYTES, .writers = 1, .seed = 1, .pause_us = 20 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };
	struct slow_load slow = { .m = &m, .fail = fail };
	struct gr_destination_ops to_ops = { .load = load_slowly, .opaque = &slow };
	pthread_t receiver, canceller;

	m.to_ops = &to_ops;
	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	if (tcp) {
		tcp_channels(m.ch);
	}
	move_prepare(&m);
	ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &m), 0);
	ASSERT_EQ(pthread_create(&canceller, NULL, cancel_when_loading, &slow), 0);
	m.rc = gr_source_run(m.source, &m.err);
	pthread_join(canceller, NULL);
	pthread_join(receiver, NULL);
	move_finish(&m);
	ASSERT_EQ(m.to_rc, fail);
	ASSERT_EQ(m.rc, fail == 0 ? 0 : -ECANCELED);
	ASSERT(m.stats.state == (fail == 0 ? GR_MIGRATE_COMPLETED : GR_MIGRATE_CANCELLED));
	ASSERT(m.to_stats.state == (fail == 0 ? GR_MIGRATE_COMPLETED : GR_MIGRATE_FAILED));
	ASSERT_EQ(g.pauses, 1u);
	ASSERT_EQ(g.resumes, fail == 0 ? 0u : 1u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(cancel_while_the_answer_is_awaited_leaves_the_decision_to_the_destination)
{
	cancel_while_loading(false, 0);
	cancel_while_loading(true, 0);
	cancel_while_loading(false, -ENODEV);
	cancel_while_loading(true, -ENODEV);
}

static int save_and_note(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	int *steps = opaque;

	*steps = 0;
	return gr_state_put(writer, "test/first", 0, 1, "abc", 3, err);
}

static int pause_silently(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static void resume_silently(void *opaque)
{
	(void)opaque;
}

static int load_anything(void *opaque, const char *id, uint32_t instance, uint32_t version,
			 const void *data, size_t bytes, struct gr_error *err)
{
	(void)opaque, (void)id, (void)instance, (void)version, (void)data, (void)bytes, (void)err;
	return 0;
}

/* Without an answer the end of the stream is the word: no cancel takes it back. */
TEST(a_plain_move_cancelled_after_any_step_leaves_one_guest)
{
	bool completed = false;

	for (int after = 0; after < 10 && !completed; after++) {
		int steps = -1000000;
		struct gr_source_ops ops = { .pause = pause_silently,
					     .resume = resume_silently,
					     .save = save_and_note,
					     .opaque = &steps };
		struct gr_destination_ops to_ops = { .load = load_anything };
		struct move m = { .from = move_ram(),
				  .to = move_ram(),
				  .ops = &ops,
				  .to_ops = &to_ops,
				  .params = { .plain = true } };
		pthread_t receiver;

		move_fill(move_add(m.from, "ram", 16 * MOVE_PAGE, 0, GR_RAM_MEMFD), 1, 2);
		move_prepare(&m);
		ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &m), 0);
		do {
			m.rc = gr_source_step(m.source, &m.err);
			if (steps++ == after) {
				gr_source_cancel(m.source);
			}
			/* Until the one that was cancelled after had been the last one anyway. */
			completed = m.rc == 0 && steps <= after + 1;
		} while (m.rc > 0);
		gr_channel_end_writing(m.ch[0]);
		pthread_join(receiver, NULL);
		move_finish(&m);
		if ((m.rc == 0) != (m.to_rc == 0)) {
			FAIL("cancelled after %d steps: source %d, destination %d", after, m.rc,
			     m.to_rc);
		}
		ASSERT(m.rc == 0 || m.rc == -ECANCELED);
		ASSERT_EQ(m.rc, after == 0 ? -ECANCELED : 0);
		gr_ram_free(m.from);
		gr_ram_free(m.to);
	}
	ASSERT(completed);
}

struct big_state {
	struct gr_source *source;
	unsigned int resumes;
	bool saved; /* (atomic) */
};

static int save_much(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	static const uint8_t data[4 * MIB];
	struct big_state *b = opaque;
	int rc = gr_state_put(writer, "test/big", 0, 1, data, sizeof(data), err);

	__atomic_store_n(&b->saved, true, __ATOMIC_RELEASE);
	return rc;
}

static void count_resume(void *opaque)
{
	struct big_state *b = opaque;

	b->resumes++;
}

static void *cancel_when_saved(void *opaque)
{
	struct big_state *b = opaque;

	while (!__atomic_load_n(&b->saved, __ATOMIC_ACQUIRE)) {
		usleep(100);
	}
	usleep(50000);
	gr_source_cancel(b->source);
	return NULL;
}

/* It answers, but then it reads no more: the guest must not wait for it for ever. */
TEST(cancel_while_a_stopped_destination_does_not_take_the_device_state)
{
	static const uint8_t answers[] = {
		0x47, 0x52, 0, 8, 0,	0,    0, 1, 0, 0, 0, 0, /* FEATURES */
		0,    2,    0, 4, 0x47, 0x52, 0, 1,		/* PONG */
	};
	struct big_state b = { 0 };
	struct gr_source_ops ops = {
		.pause = pause_silently, .resume = count_resume, .save = save_much, .opaque = &b
	};
	struct gr_ram *ram = move_ram();
	struct gr_migrate_stats stats;
	struct gr_channel *ch[2];
	struct gr_error err;
	pthread_t canceller;

	move_channels(ch);
	move_fill(move_add(ram, "ram", 4 * MOVE_PAGE, 0, GR_RAM_MEMFD), 1, 2);
	ASSERT_EQ(gr_channel_write_all(ch[1], answers, sizeof(answers), NULL), 0);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], NULL, &ops, &b.source, &err), 0);
	ASSERT_EQ(pthread_create(&canceller, NULL, cancel_when_saved, &b), 0);
	ASSERT_EQ(gr_source_run(b.source, &err), -ECANCELED);
	pthread_join(canceller, NULL);
	gr_source_stats(b.source, &stats);
	ASSERT(stats.state == GR_MIGRATE_CANCELLED);
	ASSERT_EQ(b.resumes, 1u);
	gr_source_free(b.source);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

TEST(a_destination_that_cannot_load_leaves_the_guest_at_the_source)
{
	struct move_guest g = { .bytes = RAM_BYTES, .writers = 1, .seed = 1, .pause_us = 20 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move_loaded loaded = { .fail = -ENODEV };
	struct gr_destination_ops to_ops = { .load = move_load, .opaque = &loaded };
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops, .to_ops = &to_ops };

	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_run(&m);
	ASSERT_EQ(m.to_rc, -ENODEV);
	ASSERT_HAS(m.to_err.msg, "test/first");
	ASSERT_EQ(m.rc, -EREMOTEIO);
	ASSERT_HAS(m.err.msg, "destination has failed");
	ASSERT(m.stats.state == GR_MIGRATE_FAILED);
	ASSERT_EQ(g.resumes, 1u);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

static int pause_fails(void *opaque, struct gr_error *err)
{
	(void)opaque;
	return gr_error_set(err, -EAGAIN, "a vCPU does not listen");
}

TEST(a_machine_that_cannot_be_stopped_goes_on)
{
	struct move_guest g = { .bytes = RAM_BYTES, .writers = 1, .seed = 1, .pause_us = 20 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct move m = { .from = move_ram(), .to = move_ram(), .ops = &ops };

	ops.pause = pause_fails;
	g.ram = m.from;
	move_fill(move_add(m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 2);
	move_guest_start(&g);
	move_prepare(&m);
	pthread_t receiver;

	ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, &m), 0);
	m.rc = gr_source_run(m.source, &m.err);
	gr_channel_end_writing(m.ch[0]);
	pthread_join(receiver, NULL);
	move_finish(&m);
	ASSERT_EQ(m.rc, -EAGAIN);
	ASSERT_HAS(m.err.msg, "a vCPU does not listen");
	ASSERT_EQ(g.resumes, 0u);
	ASSERT_LT(m.to_rc, 0);
	ASSERT(m.to_stats.state == GR_MIGRATE_FAILED);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

/* One source over a channel that fails as scripted; returns what it sent. */
static size_t broken_run(struct gr_ram *ram, struct move_guest *g, size_t fail_at, size_t write_max,
			 uint8_t *copy, size_t copy_bytes)
{
	static const uint8_t answers[] = {
		0x47, 0x52, 0, 8, 0,	0,    0, 1, 0, 0, 0, 0, /* FEATURES */
		0,    2,    0, 4, 0x47, 0x52, 0, 1,		/* PONG */
		0,    1,    0, 4, 0,	0,    0, 0,		/* SHUT 0 */
	};
	struct gr_memory_script script = {
		.data = answers,
		.bytes = sizeof(answers),
		.write_max = write_max,
		.eintr_every = write_max ? 3 : 0,
		.write_fail_at = fail_at,
		.write_error = fail_at == SIZE_MAX ? 0 : -ENOSPC,
	};
	struct gr_source_ops ops = move_guest_ops(g);
	unsigned int pauses = g->pauses, resumes = g->resumes;
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "plug", .fd = -1, .used_bytes = MOVE_PAGE
	};
	struct gr_migrate_stats stats;
	struct gr_channel *ch;
	struct gr_source *s;
	struct gr_error err = { 0 };
	size_t bytes;
	int rc;

	ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
	ASSERT_EQ(gr_source_create(ram, NULL, ch, NULL, &ops, &s, &err), 0);
	rc = gr_source_run(s, &err);
	gr_source_stats(s, &stats);
	gr_source_free(s);
	ASSERT(rc == 0 || fail_at != SIZE_MAX);
	if (rc != 0 || fail_at < MOVE_PAGE) { /* any move writes more than that, and then more */
		ASSERT_EQ(rc, -ENOSPC);
		ASSERT(stats.state == GR_MIGRATE_FAILED);
		ASSERT_EQ(g->pauses - pauses, g->resumes - resumes);
		ASSERT_EQ(err.code, -ENOSPC);
	} else {
		move_guest_resume(g);
	}
	/* Nothing is left frozen. */
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(gr_ram_block_del_by_id(ram, "plug", NULL), 0);
	if (copy) {
		const uint8_t *written = gr_channel_memory_written(ch, &bytes);

		ASSERT_LE(bytes, copy_bytes);
		memcpy(copy, written, bytes);
	}
	(void)gr_channel_memory_written(ch, &bytes);
	gr_channel_close(ch, NULL);
	return bytes;
}

TEST(wherever_the_channel_breaks_the_guest_goes_on)
{
	struct move_guest g = { .bytes = 64 * MOVE_PAGE, .writers = 1, .seed = 1, .pause_us = 50 };
	uint64_t seed = test_seed();
	size_t whole;

	g.ram = move_ram();
	move_fill(move_add(g.ram, "ram", g.bytes, 0, GR_RAM_MEMFD), 1, 3);
	move_guest_start(&g);
	whole = broken_run(g.ram, &g, SIZE_MAX, 0, NULL, 0);
	for (size_t n = 0; n < 300; n += 1 + n / 8) {
		broken_run(g.ram, &g, n, 0, NULL, 0);
		broken_run(g.ram, &g, test_rand(&seed) % (whole * 3 / 4), 0, NULL, 0);
	}
	move_guest_stop(&g);
	gr_ram_free(g.ram);
}

TEST(short_writes_and_interruptions_change_no_byte)
{
	struct move_guest g = { .writers = 0, .seed = 1 };
	size_t room = 2 * MIB, a_bytes, b_bytes;
	uint8_t *a = malloc(room), *b = malloc(room);

	ASSERT(a && b);
	g.ram = move_ram();
	move_fill(move_add(g.ram, "ram", MIB, 0, GR_RAM_MEMFD), 1, 3);
	move_guest_start(&g);
	a_bytes = broken_run(g.ram, &g, SIZE_MAX, 0, a, room);
	b_bytes = broken_run(g.ram, &g, SIZE_MAX, 1000, b, room);
	ASSERT_EQ(a_bytes, b_bytes);
	ASSERT_MEM_EQ(a, b, a_bytes);
	move_guest_stop(&g);
	free(a);
	free(b);
	gr_ram_free(g.ram);
}

TEST(wrong_parameters_are_refused)
{
	struct gr_ram *ram = move_ram();
	struct gr_source_params params = { .size = 1 };
	struct gr_source_ops ops = { .pause = pause_fails };
	struct gr_channel *ch[2];
	struct gr_source *source;
	struct gr_error err;

	move_channels(ch);
	ASSERT_EQ(gr_source_create(NULL, NULL, ch[0], NULL, NULL, &source, &err), -EINVAL);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, NULL, &source, &err), -EINVAL);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], NULL, &ops, &source, &err), -EINVAL);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

/* A source that was never run leaves nothing behind: all consumers are free again. */
TEST(sources_that_are_freed_unrun_give_their_consumer_back)
{
	struct gr_ram *ram = move_ram();
	struct gr_channel *ch[2];
	struct gr_source *source;
	struct gr_error err;

	move_channels(ch);
	for (int i = 0; i < 2 * GR_DIRTY_CONSUMERS_MAX; i++) {
		ASSERT_EQ(gr_source_create(ram, NULL, ch[0], NULL, NULL, &source, &err), 0);
		gr_source_free(source);
	}
	gr_source_free(NULL);
	gr_destination_free(NULL);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

static int pause_at_once(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static void cancel_on_resume(void *opaque)
{
	gr_source_cancel(*(struct gr_source **)opaque);
}

static int save_fails(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque, (void)writer;
	return gr_error_set(err, -ENODEV, "a device does not answer");
}

/* While the guest is resumed after a failure somebody cancels: it has to end somehow. */
TEST(a_cancel_beside_a_failure_ends_as_cancelled)
{
	struct gr_source *source = NULL;
	struct gr_source_ops ops = { .pause = pause_at_once,
				     .resume = cancel_on_resume,
				     .save = save_fails,
				     .opaque = &source };
	struct gr_source_params params = { .size = sizeof(params), .plain = true };
	struct gr_ram *ram = move_ram();
	struct gr_migrate_stats stats;
	struct gr_channel *ch[2];
	struct gr_error err;

	move_channels(ch);
	move_fill(move_add(ram, "ram", 4 * MOVE_PAGE, 0, GR_RAM_MEMFD), 1, 2);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, &ops, &source, &err), 0);
	ASSERT_EQ(gr_source_run(source, &err), -ECANCELED);
	gr_source_stats(source, &stats);
	ASSERT(stats.state == GR_MIGRATE_CANCELLED);
	gr_source_free(source);
	gr_channel_close(ch[0], NULL);
	gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

TEST_MAIN()

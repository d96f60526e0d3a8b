/* SPDX-License-Identifier: MIT */
/* When a source stops the guest, and what it waits for before and after. */
#include "migrate/source.h"
#include "migrate/throttle.h"
#include "move.h"

enum { MIB = 1 << 20, RAM_BYTES = 2 * MIB };

/* A move whose guest writes slowly, so that it could switch over at once. */
struct easy {
	struct move_guest guest;
	struct gr_source_ops ops;
	struct gr_destination_ops to_ops;
	struct move m;
	pthread_t receiver;
	unsigned int asked, ready_at; /* the destination's switchover_ready() */
};

static bool easy_ready(void *opaque)
{
	struct easy *e = opaque;

	return __atomic_add_fetch(&e->asked, 1, __ATOMIC_RELAXED) >= e->ready_at;
}

static void easy_begin(struct easy *e)
{
	e->guest = (struct move_guest){ .bytes = MIB, .writers = 1, .seed = 3, .pause_us = 200 };
	e->m.from = move_ram();
	e->m.to = move_ram();
	e->ops = move_guest_ops(&e->guest);
	e->m.ops = &e->ops;
	e->m.to_ops = &e->to_ops;
	e->to_ops.opaque = e;
	e->guest.ram = e->m.from;
	e->m.params.downtime_ns_max = 10 * GR_NS_PER_S;
	move_fill(move_add(e->m.from, "ram", RAM_BYTES, 0, GR_RAM_MEMFD), 1, 0);
	move_guest_start(&e->guest);
	move_prepare(&e->m);
	ASSERT_EQ(pthread_create(&e->receiver, NULL, move_receive, &e->m), 0);
}

static void easy_join(struct easy *e)
{
	gr_channel_end_writing(e->m.ch[0]);
	pthread_join(e->receiver, NULL);
	move_finish(&e->m);
}

static void easy_end(struct easy *e)
{
	move_guest_stop(&e->guest);
	gr_ram_free(e->m.from);
	gr_ram_free(e->m.to);
}

static enum gr_migrate_state easy_state(struct easy *e)
{
	struct gr_migrate_stats stats;

	gr_source_stats(e->m.source, &stats);
	return stats.state;
}

static void step_until(struct easy *e, enum gr_migrate_state state)
{
	while (easy_state(e) != state) {
		ASSERT_EQ(gr_source_step(e->m.source, &e->m.err), 1);
	}
}

TEST(who_asked_for_it_has_a_guest_that_stands_still_until_it_goes_on)
{
	struct easy e = { .m.params.pause_before_switchover = true };
	struct gr_error err = { 0 };
	uint64_t writes;

	easy_begin(&e);
	ASSERT_EQ(gr_source_continue(e.m.source, &err), -EINVAL);
	ASSERT_HAS(err.msg, "'none', not 'pre-switchover'");
	step_until(&e, GR_MIGRATE_PRE_SWITCHOVER);
	ASSERT_EQ(e.guest.pauses, 1u);
	writes = __atomic_load_n(&e.guest.writes, __ATOMIC_RELAXED);
	for (int i = 0; i < 20; i++) {
		ASSERT_EQ(gr_source_step(e.m.source, &e.m.err), 1);
		ASSERT(easy_state(&e) == GR_MIGRATE_PRE_SWITCHOVER);
	}
	ASSERT_EQ(__atomic_load_n(&e.guest.writes, __ATOMIC_RELAXED), writes);
	/* What is stored meanwhile, by whoever paused it, goes across. */
	ASSERT_EQ(gr_ram_write(e.m.from, gr_gpa(12345), "paused", 6, NULL), 0);
	ASSERT_EQ(gr_source_continue(e.m.source, &err), 0);
	e.m.rc = gr_source_run(e.m.source, &e.m.err);
	easy_join(&e);
	ASSERT_EQ(e.m.rc, 0);
	ASSERT_EQ(e.m.to_rc, 0);
	ASSERT_EQ(move_compare(e.m.from, e.m.to), 0u);
	ASSERT_EQ(e.guest.resumes, 0u);
	easy_end(&e);
}

TEST(a_cancel_before_it_goes_on_lets_the_guest_run_here)
{
	struct easy e = { .m.params.pause_before_switchover = true };

	easy_begin(&e);
	step_until(&e, GR_MIGRATE_PRE_SWITCHOVER);
	gr_source_cancel(e.m.source);
	e.m.rc = gr_source_run(e.m.source, &e.m.err);
	easy_join(&e);
	ASSERT_EQ(e.m.rc, -ECANCELED);
	ASSERT_LT(e.m.to_rc, 0);
	ASSERT_EQ(e.guest.resumes, 1u);
	easy_end(&e);
}

/* restless: there is something to send in each round, however short. */
static void ack(bool plain, unsigned int ready_at, bool restless)
{
	uint8_t byte = 0;

	struct easy e = { .ready_at = ready_at,
			  .m.params.switchover_ack = true,
			  .m.to_params = { .switchover_ack = true, .plain = plain } };

	if (ready_at) {
		e.to_ops.switchover_ready = easy_ready;
	}
	easy_begin(&e);
	while ((e.m.rc = gr_source_step(e.m.source, &e.m.err)) > 0) {
		bool ready = __atomic_load_n(&e.asked, __ATOMIC_RELAXED) >= ready_at;

		if (e.guest.pauses > 0 && !ready) {
			FAIL("the guest was stopped before the destination was ready");
		}
		if (restless && e.guest.pauses == 0) {
			ASSERT_EQ(gr_ram_write(e.m.from, gr_gpa(0), &byte, 1, NULL), 0);
			byte++;
		}
	}
	easy_join(&e);
	ASSERT_EQ(e.m.rc, 0);
	ASSERT_EQ(e.m.to_rc, 0);
	ASSERT_EQ(move_compare(e.m.from, e.m.to), 0u);
	easy_end(&e);
}

TEST(the_guest_is_not_stopped_before_the_destination_is_ready)
{
	ack(false, 30, false);
}

TEST(a_guest_that_always_has_something_to_send_hears_that_the_destination_is_ready)
{
	ack(false, 30, true);
}

TEST(a_destination_that_has_nothing_to_ask_is_ready_at_once)
{
	ack(false, 0, false);
	ack(true, 0, false);
}

/* The guest writes nothing: there are no more sections but those that ask. */
TEST(a_destination_is_asked_again_when_there_is_nothing_to_send)
{
	struct easy e = { .ready_at = 10,
			  .m.params.switchover_ack = true,
			  .m.to_params.switchover_ack = true,
			  .to_ops.switchover_ready = easy_ready };

	easy_begin(&e);
	ASSERT_EQ(move_guest_pause(&e.guest, NULL), 0);
	e.m.rc = gr_source_run(e.m.source, &e.m.err);
	easy_join(&e);
	ASSERT_EQ(e.m.rc, 0);
	ASSERT_EQ(e.m.to_rc, 0);
	ASSERT_GE(e.asked, 10u);
	easy_end(&e);
}

TEST(a_source_that_cannot_hear_of_it_does_not_wait_for_it)
{
	struct easy e = { .m.params = { .switchover_ack = true, .plain = true } };

	easy_begin(&e);
	e.m.rc = gr_source_run(e.m.source, &e.m.err);
	easy_join(&e);
	ASSERT_EQ(e.m.rc, -EINVAL);
	ASSERT_HAS(e.m.err.msg, "return path");
	easy_end(&e);
}

static const uint8_t uuid[2][16] = { { 0x12, 0x34, 0x56, 0x78, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2 },
				     { 0x12, 0x34, 0x56, 0x78, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 3 } };

static int move_between(const uint8_t *from, const uint8_t *to, struct gr_error *ret_err)
{
	struct easy e = { .m.params.uuid = from, .m.to_params.uuid = to };

	easy_begin(&e);
	e.m.rc = gr_source_run(e.m.source, &e.m.err);
	easy_join(&e);
	ASSERT_EQ(e.m.rc == 0, e.m.to_rc == 0);
	*ret_err = e.m.to_err;
	easy_end(&e);
	return e.m.to_rc;
}

TEST(a_machine_with_another_uuid_is_refused_and_goes_on_at_the_source)
{
	struct gr_error err = { 0 };

	ASSERT_EQ(move_between(uuid[0], uuid[0], &err), 0);
	ASSERT_EQ(move_between(uuid[0], NULL, &err), 0);
	ASSERT_EQ(move_between(NULL, uuid[0], &err), 0);
	ASSERT_EQ(move_between(uuid[0], uuid[1], &err), -EINVAL);
	ASSERT_HAS(err.msg, "12345678-0908-0706-0504-030201000102");
	ASSERT_HAS(err.msg, "12345678-0908-0706-0504-030201000103");
}

TEST(the_throttle_is_qemus)
{
	struct gr_throttle t = { .trigger = 50, .initial = 20, .increment = 10, .max = 45 };
	uint64_t now = 5, sent = 0;

	ASSERT_EQ(gr_throttle_harvest(&t, 0, 0, now), 0u);
	/* More than half of what was sent: the second time counts, and each second time after it. */
	for (unsigned int period = 1; period <= 8; period++) {
		static const unsigned int want[] = { 0, 0, 20, 20, 30, 30, 40, 40, 45 };

		/* Within a period the harvests add up. */
		ASSERT_EQ(gr_throttle_harvest(&t, 300, sent + 500, now + GR_NS_PER_S / 2),
			  want[period - 1]);
		sent += 1000;
		now += GR_NS_PER_S;
		ASSERT_EQ(gr_throttle_harvest(&t, 201, sent, now), want[period]);
	}
	/* Half of it is not too much. */
	for (unsigned int period = 0; period < 4; period++) {
		sent += 1000;
		now += GR_NS_PER_S;
		ASSERT_EQ(gr_throttle_harvest(&t, 500, sent, now), 45u);
	}
}

/* What the guest's vCPUs would lose. */
struct slow {
	struct move_guest guest;
	unsigned int percent, highest, calls;
};

static void on_throttle(void *opaque, unsigned int percent)
{
	struct slow *s = gr_container_of(opaque, struct slow, guest);

	s->calls++;
	s->percent = percent;
	s->highest = GR_MAX(s->highest, percent);
	__atomic_store_n(&s->guest.pause_us, percent * 1000, __ATOMIC_RELAXED);
}

/* It dirties all of its memory in no time, over a channel that takes seconds for it. */
TEST(a_guest_that_is_too_fast_is_slowed_down_until_it_can_be_moved)
{
	struct slow s = { .guest = { .bytes = 8 * MIB, .writers = 2, .seed = 9 } };
	struct gr_source_ops ops = move_guest_ops(&s.guest);
	struct move m = {
		.from = move_ram(),
		.to = move_ram(),
		.ops = &ops,
		.params = { .auto_converge = true,
			    .bandwidth_bytes_per_s_max = 16 * MIB,
			    .downtime_ns_max = 100 * GR_NS_PER_MS },
	};

	ops.throttle = on_throttle;
	s.guest.ram = m.from;
	move_fill(move_add(m.from, "ram", 8 * MIB, 0, GR_RAM_MEMFD), 1, 0);
	move_guest_start(&s.guest);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0u);
	ASSERT_GE(s.highest, 20u);
	ASSERT_EQ(s.highest, m.stats.throttle_percent);
	ASSERT_EQ(s.percent, 0u); /* no more, at the end */
	ASSERT_EQ(s.calls, GR_DIV_ROUND_UP(s.highest, 10u)); /* 20, 30, ... and 0 */
	move_guest_stop(&s.guest);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
}

TEST(a_throttle_that_cannot_be_is_refused)
{
	struct move_guest g = { 0 };
	struct gr_source_ops ops = move_guest_ops(&g);
	struct gr_source_params params = { .size = sizeof(params), .auto_converge = true };
	struct gr_ram *ram = move_ram();
	struct gr_channel *ch[2];
	struct gr_source *source;
	struct gr_error err;

	move_channels(ch);
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, &ops, &source, &err), -EINVAL);
	ASSERT_HAS(err.msg, "throttled");
	ops.throttle = on_throttle;
	params.throttle_max_percent = 100;
	ASSERT_EQ(gr_source_create(ram, NULL, ch[0], &params, &ops, &source, &err), -EINVAL);
	ASSERT_HAS(err.msg, "99 percent");
	(void)gr_channel_close(ch[0], NULL);
	(void)gr_channel_close(ch[1], NULL);
	gr_ram_free(ram);
}

TEST_MAIN()

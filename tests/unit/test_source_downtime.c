/* SPDX-License-Identifier: MIT */
/* What a guest waits for while it is moved: measured part by part, and expected the next time. */
#include "move.h"

enum { PAUSE_US = 30000, SAVE_US = 20000, LOAD_US = 10000, STATE_BYTES = 1 << 20 };

static int slow_pause(void *opaque, struct gr_error *err)
{
	usleep(PAUSE_US);
	return move_guest_pause(opaque, err);
}

static int slow_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	uint8_t *state = calloc(1, STATE_BYTES);
	int rc;

	(void)opaque;
	ASSERT(state);
	usleep(SAVE_US);
	rc = gr_state_put(writer, "test/large", 0, 1, state, STATE_BYTES, err);
	free(state);
	return rc;
}

static int slow_load(void *opaque, const char *id, uint32_t instance, uint32_t version,
		     const void *data, size_t bytes, struct gr_error *err)
{
	(void)opaque;
	(void)instance;
	(void)version;
	(void)data;
	(void)err;
	ASSERT_STR_EQ(id, "test/large");
	ASSERT_EQ(bytes, (size_t)STATE_BYTES);
	usleep(LOAD_US);
	return 0;
}

static struct gr_migrate_stats move_once(const struct gr_downtime *expected)
{
	struct move m = { .params = { .rounds_max = 4, .expected = *expected } };
	struct gr_destination_ops to_ops = { .load = slow_load };
	struct move_guest g = { .bytes = 4 << 20, .writers = 1, .pause_us = 100 };
	struct gr_source_ops ops;

	m.from = move_ram();
	m.to = move_ram();
	move_fill(move_add(m.from, "ram", 4 << 20, 0, GR_RAM_MEMFD), test_seed(), 0);
	(void)move_add(m.to, "ram", 4 << 20, 0, GR_RAM_MEMFD);
	g.ram = m.from;
	g.seed = test_seed();
	ops = move_guest_ops(&g);
	ops.pause = slow_pause;
	ops.save = slow_save;
	m.ops = &ops;
	m.to_ops = &to_ops;
	move_guest_start(&g);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0);
	move_guest_stop(&g);
	gr_ram_free(m.from);
	gr_ram_free(m.to);
	return m.stats;
}

static void print(const char *which, const struct gr_migrate_stats *s)
{
	const struct gr_downtime *d = &s->downtime;

	printf("# %s: expected %.1f ms, was %.1f ms: pause %.1f, harvest %.1f, pages %.1f, state %.1f "
	       "(%.1f MiB), answer %.1f\n",
	       which, (double)s->expected_downtime_ns / 1e6, (double)s->downtime_ns / 1e6,
	       (double)d->pause_ns / 1e6, (double)d->harvest_ns / 1e6, (double)d->pages_ns / 1e6,
	       (double)d->state_ns / 1e6, (double)d->state_bytes / (1 << 20),
	       (double)d->answer_ns / 1e6);
}

TEST(what_the_guest_waited_for_is_told_and_expected_the_next_time)
{
	struct gr_migrate_stats first = move_once(&(struct gr_downtime){ 0 }), next;
	const struct gr_downtime *d = &first.downtime;

	print("without figures", &first);
	ASSERT_GE(d->pause_ns, (uint64_t)PAUSE_US * 1000);
	ASSERT_GE(d->state_ns, (uint64_t)SAVE_US * 1000);
	ASSERT_GE(d->answer_ns, (uint64_t)LOAD_US * 1000);
	ASSERT_GE(d->state_bytes, (uint64_t)STATE_BYTES);
	ASSERT_GT(d->harvest_ns, 0u);
	ASSERT_GE(first.downtime_ns,
		  d->pause_ns + d->harvest_ns + d->pages_ns + d->state_ns + d->answer_ns);
	next = move_once(d);
	print("with those of before", &next);
	ASSERT_GE(next.expected_downtime_ns, d->pause_ns + d->state_ns + d->answer_ns);
}

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "migrate/progress.h"
#include "stream/channel.h"

static const enum gr_migrate_state all[] = {
	GR_MIGRATE_NONE,   GR_MIGRATE_SETUP,	  GR_MIGRATE_ACTIVE,	GR_MIGRATE_DEVICE,
	GR_MIGRATE_PRE_SWITCHOVER,
	GR_MIGRATE_FAILED, GR_MIGRATE_CANCELLING, GR_MIGRATE_CANCELLED, GR_MIGRATE_COMPLETED,
};

static bool legal(enum gr_migrate_state from, enum gr_migrate_state to)
{
	struct gr_progress p;
	bool moved;

	gr_progress_init(&p);
	p.stats.state = from;
	moved = gr_progress_move(&p, to);
	ASSERT(gr_progress_state(&p) == (moved ? to : from));
	gr_progress_destroy(&p);
	return moved;
}

TEST(nothing_leads_out_of_an_end)
{
	for (size_t i = 0; i < GR_ARRAY_SIZE(all); i++) {
		ASSERT(!legal(GR_MIGRATE_COMPLETED, all[i]));
		ASSERT(!legal(GR_MIGRATE_FAILED, all[i]));
		ASSERT(!legal(GR_MIGRATE_CANCELLED, all[i]));
	}
}

TEST(each_state_before_the_end_can_be_cancelled_and_can_fail)
{
	static const enum gr_migrate_state before[] = { GR_MIGRATE_NONE, GR_MIGRATE_SETUP,
							GR_MIGRATE_ACTIVE, GR_MIGRATE_PRE_SWITCHOVER,
							GR_MIGRATE_DEVICE };

	for (size_t i = 0; i < GR_ARRAY_SIZE(before); i++) {
		ASSERT(legal(before[i], GR_MIGRATE_CANCELLING));
		ASSERT(legal(before[i], GR_MIGRATE_FAILED));
		ASSERT(!legal(before[i], GR_MIGRATE_CANCELLED));
	}
}

TEST(completed_comes_from_device_or_from_a_cancel_that_was_late)
{
	for (size_t i = 0; i < GR_ARRAY_SIZE(all); i++) {
		bool want = all[i] == GR_MIGRATE_DEVICE || all[i] == GR_MIGRATE_CANCELLING;

		ASSERT_EQ(legal(all[i], GR_MIGRATE_COMPLETED), want);
	}
}

TEST(a_cancelled_migration_goes_nowhere_but_to_its_end)
{
	ASSERT(!legal(GR_MIGRATE_CANCELLING, GR_MIGRATE_ACTIVE));
	ASSERT(!legal(GR_MIGRATE_CANCELLING, GR_MIGRATE_DEVICE));
	ASSERT(!legal(GR_MIGRATE_CANCELLING, GR_MIGRATE_FAILED));
	ASSERT(legal(GR_MIGRATE_CANCELLING, GR_MIGRATE_CANCELLED));
}

TEST(names_are_those_of_qemu)
{
	ASSERT_STR_EQ(gr_migrate_state_name(GR_MIGRATE_NONE), "none");
	ASSERT_STR_EQ(gr_migrate_state_name(GR_MIGRATE_COMPLETED), "completed");
	ASSERT_STR_EQ(gr_migrate_state_name(GR_MIGRATE_CANCELLING), "cancelling");
	ASSERT_STR_EQ(gr_migrate_state_name((enum gr_migrate_state)99), "unknown");
}

static struct gr_channel *channel(void)
{
	static const uint8_t data[8];
	struct gr_memory_script script = { .data = data, .bytes = sizeof(data) };
	struct gr_channel *ch;

	ASSERT_EQ(gr_channel_memory(&script, &ch, NULL), 0);
	return ch;
}

static bool broken(struct gr_channel *ch)
{
	uint8_t byte;
	struct iovec iov = { &byte, 1 };

	return gr_channel_readv(ch, &iov, 1, NULL) < 0;
}

TEST(cancel_breaks_the_channel_unless_the_driver_keeps_it)
{
	struct gr_channel *ch = channel();
	struct gr_progress p;

	gr_progress_init(&p);
	ASSERT(gr_progress_move(&p, GR_MIGRATE_SETUP));
	ASSERT(gr_progress_keep_channel(&p));
	gr_progress_cancel(&p, ch);
	ASSERT(gr_progress_cancelling(&p));
	ASSERT(!broken(ch));
	gr_progress_destroy(&p);

	gr_progress_init(&p);
	gr_progress_cancel(&p, ch);
	ASSERT(!gr_progress_keep_channel(&p));
	ASSERT(broken(ch));
	gr_progress_destroy(&p);
	gr_channel_close(ch, NULL);
}

TEST(cancel_after_the_end_changes_nothing)
{
	struct gr_channel *ch = channel();
	struct gr_progress p;

	gr_progress_init(&p);
	p.stats.state = GR_MIGRATE_COMPLETED;
	gr_progress_cancel(&p, ch);
	ASSERT_EQ(gr_progress_state(&p), GR_MIGRATE_COMPLETED);
	ASSERT(!broken(ch));
	gr_progress_destroy(&p);
	gr_channel_close(ch, NULL);
}

TEST_MAIN()

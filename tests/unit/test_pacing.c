/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include "migrate/model.h"
#include "migrate/pacing.h"

enum { PIECE = 64 * 4104 };

/* Sends for `seconds` of a clock of our own; sleeps end late by up to late_ns. */
static double simulate(uint64_t rate, double seconds, uint64_t late_ns, uint64_t *seed)
{
	uint64_t now = 1000, end = now + (uint64_t)(seconds * 1e9), sent = 0, begin = now;
	struct gr_pacing p;

	gr_pacing_init(&p, rate, now);
	while (now < end) {
		uint64_t wait = gr_pacing_wait_ns(&p, now);
		uint64_t piece = gr_pacing_piece(&p, PIECE);

		if (wait > 0) {
			now += wait + (late_ns ? test_rand(seed) % late_ns : 0);
			continue;
		}
		now += 20000; /* what the system call takes */
		gr_pacing_sent(&p, piece, now);
		sent += piece;
	}
	return (double)sent / ((double)(now - begin) / 1e9);
}

TEST(rate_is_within_two_percent_whatever_the_sleeps_do)
{
	static const uint64_t rates[] = { 1000000, 33333333, 134217728, 1250000000 };
	static const uint64_t late[] = { 0, 100000, 3000000 };
	uint64_t seed = test_seed();

	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
		for (size_t j = 0; j < sizeof(late) / sizeof(late[0]); j++) {
			double got = simulate(rates[i], 10, late[j], &seed);
			double off = got / (double)rates[i] - 1;

			if (off > 0.02 || off < -0.02) {
				FAIL("%llu bytes/s, sleeps late by up to %llu ns: %.0f bytes/s",
				     (unsigned long long)rates[i], (unsigned long long)late[j],
				     got);
			}
		}
	}
}

TEST(after_a_stall_only_the_credit_is_caught_up)
{
	uint64_t now = 5000000000, sent = 0;
	struct gr_pacing p;

	gr_pacing_init(&p, 100000000, now);
	now += 10000000000; /* held up for 10 s: 1 GB of schedule */
	while (gr_pacing_wait_ns(&p, now) == 0) {
		gr_pacing_sent(&p, 1000000, now);
		sent += 1000000;
	}
	ASSERT_LE(sent, 27000000u);
	ASSERT_GE(sent, 25000000u);
}

TEST(no_limit_never_waits)
{
	struct gr_pacing p;

	gr_pacing_init(&p, 0, 1);
	gr_pacing_sent(&p, UINT64_MAX / 2, 2);
	ASSERT_EQ(gr_pacing_wait_ns(&p, 2), 0u);
	ASSERT_EQ(gr_pacing_piece(&p, PIECE), (uint64_t)PIECE);
}

TEST(a_slow_limit_sends_small_pieces_and_never_none)
{
	struct gr_pacing p;

	gr_pacing_init(&p, 1000000, 1);
	ASSERT_EQ(gr_pacing_piece(&p, PIECE), 10000u);
	gr_pacing_init(&p, 3, 1);
	ASSERT_EQ(gr_pacing_piece(&p, PIECE), 1u);
}

TEST(huge_amounts_do_not_overflow)
{
	struct gr_pacing p;

	gr_pacing_init(&p, 1000, 1);
	gr_pacing_sent(&p, UINT64_C(1) << 40, 1);
	ASSERT_EQ(gr_pacing_wait_ns(&p, 1), (UINT64_C(1) << 40) * 1000000);
}

TEST(bandwidth_is_weighted_by_time)
{
	struct gr_model m = { 0 };

	ASSERT_EQ(gr_model_bandwidth(&m), 0u);
	/* 0.1 s at 1 GB/s and 0.9 s at 100 MB/s: 190 MB in 1 s, whatever the pieces. */
	for (int i = 0; i < 10; i++) {
		gr_model_sample(&m, 2441, 10000000, 10000000);
	}
	gr_model_sample(&m, 21929, 90000000, 900000000);
	ASSERT_GE(gr_model_bandwidth(&m), 180000000u);
	ASSERT_LE(gr_model_bandwidth(&m), 200000000u);
	m.bytes_per_s_max = 50000000;
	ASSERT_EQ(gr_model_bandwidth(&m), 50000000u);
}

TEST(the_past_fades)
{
	struct gr_model m = { 0 };

	for (int i = 0; i < 100; i++) {
		gr_model_sample(&m, 24366, 100000000, 100000000); /* 1 GB/s for 10 s */
	}
	for (int i = 0; i < 50; i++) {
		gr_model_sample(&m, 243, 1000000, 100000000); /* 10 MB/s for 5 s */
	}
	ASSERT_LE(gr_model_bandwidth(&m), 50000000u);
}

TEST(pages_that_go_as_differences_are_expected_to_do_so_again)
{
	struct gr_model whole = { 0 }, differences = { 0 };

	/* The same bandwidth; a page takes 4104 bytes, or 100. */
	gr_model_sample(&whole, 10000, 41040000, 100000000);
	gr_model_sample(&differences, 410400, 41040000, 100000000);
	ASSERT_GE(gr_model_downtime_ns(&whole, 10000, 4104), 100000000u);
	ASSERT_LE(gr_model_downtime_ns(&differences, 10000, 4104),
		  100000000u / 41 + GR_MODEL_STATE_NS + GR_MODEL_PAUSE_NS + 1000);
}

TEST(downtime_counts_pages_dirtying_harvest_devices_and_answer)
{
	struct gr_model m = { 0 };
	uint64_t bare, more;

	ASSERT_EQ(gr_model_downtime_ns(&m, 1, 4104), UINT64_MAX);
	gr_model_sample(&m, 100000, 410400000, 1000000000); /* 100 000 pages a second */
	bare = gr_model_downtime_ns(&m, 10000, 4104);
	ASSERT_GE(bare, 100000000 + GR_MODEL_STATE_NS + GR_MODEL_PAUSE_NS);
	ASSERT_LE(bare, 100000000 + GR_MODEL_STATE_NS + GR_MODEL_PAUSE_NS + 1000000);
	/* A guess alone must not keep a short limit from being met. */
	m.limit_ns = 4000000;
	ASSERT_EQ(gr_model_downtime_ns(&m, 10000, 4104),
		  bare - GR_MODEL_STATE_NS - GR_MODEL_PAUSE_NS + 1000000);
	m.limit_ns = 0;
	m.answer_ns = 7000000;
	ASSERT_EQ(gr_model_downtime_ns(&m, 10000, 4104), bare + 7000000);
	gr_model_harvest(&m, 50000, 4000000, 1000000000);
	ASSERT_EQ(m.dirty_pages_per_s, 0u); /* one harvest makes no rate */
	gr_model_harvest(&m, 50000, 4000000, 2000000000);
	ASSERT_EQ(m.dirty_pages_per_s, 50000u);
	more = gr_model_downtime_ns(&m, 10000, 4104);
	/* 4 ms of harvest, and 5 ms x 50 000 pages/s = 250 pages = 2.5 ms more. */
	ASSERT_GE(more, bare + 7000000 + 4000000 + 2400000);
	ASSERT_LE(more, bare + 7000000 + 4000000 + 2600000);
}

TEST(a_limit_that_the_devices_break_lets_the_guest_go_when_the_rest_is_short)
{
	struct gr_model m = { .limit_ns = 100000000, .pause_ns = 1000000 };

	ASSERT(!gr_model_fits(&m, 0, 4104)); /* nothing is known of the channel */
	gr_model_sample(&m, 100000, 410400000, 1000000000); /* 10 us a page */
	m.state_ns = 40000000;
	ASSERT(gr_model_fits(&m, 5900, 4104)); /* 1 + 40 + 59 ms */
	ASSERT(!gr_model_fits(&m, 6000, 4104));
	/* By themselves above the limit, or nearly: the pages have a quarter of it. */
	for (m.state_ns = 75000000; m.state_ns < 400000000; m.state_ns *= 2) {
		ASSERT(gr_model_fits(&m, 2400, 4104));
		ASSERT(!gr_model_fits(&m, 2600, 4104));
	}
	m.limit_ns = 1; /* as good as never */
	m.harvest_ns = 1000;
	ASSERT(!gr_model_fits(&m, 0, 4104));
}

TEST(what_was_measured_is_counted_instead_of_guessed)
{
	struct gr_model m = { .limit_ns = 300000000 };
	uint64_t guessed, known;

	gr_model_sample(&m, 100000, 410400000, 1000000000); /* 410 MB/s */
	guessed = gr_model_downtime_ns(&m, 0, 4104);
	ASSERT_EQ(guessed, (uint64_t)(GR_MODEL_STATE_NS + GR_MODEL_PAUSE_NS));
	m.pause_ns = 40000000;
	m.state_ns = 60000000;
	m.state_bytes = 41040000; /* 100 ms on the wire */
	m.answer_ns = 30000000;
	known = gr_model_downtime_ns(&m, 0, 4104);
	ASSERT_EQ(known, 40000000u + 60000000u + 100000000u + 30000000u);
	/* What is known is not cut down to the limit: the guest is not stopped for it. */
	m.limit_ns = 100000000;
	ASSERT_EQ(gr_model_downtime_ns(&m, 0, 4104), known);
	/* And while it is being stopped it writes: 50 000 pages/s for 40 ms. */
	m.dirty_pages_per_s = 50000;
	ASSERT_EQ(gr_model_downtime_ns(&m, 0, 4104), known + 20000000u);
}

TEST(a_round_is_worth_its_time_if_it_halves_a_wait_that_is_worth_mentioning)
{
	struct gr_model m = { .limit_ns = 300000000 };

	ASSERT(!gr_model_gains(&m, 10000, 4104)); /* nothing is known of the channel */
	gr_model_sample(&m, 100000, 410400000, 1000000000); /* 10 us a page */
	ASSERT(gr_model_gains(&m, 10000, 4104));
	ASSERT(gr_model_gains(&m, 3800, 4104)); /* 38 ms; an eighth of the limit is 37.5 */
	ASSERT(!gr_model_gains(&m, 3700, 4104));
	gr_model_harvest(&m, 30000, 0, 1000000000);
	gr_model_harvest(&m, 30000, 0, 2000000000); /* 0.3 of what goes out */
	ASSERT(gr_model_gains(&m, 10000, 4104));
	gr_model_harvest(&m, 51000, 0, 3000000000);
	ASSERT(!gr_model_gains(&m, 10000, 4104));
	/* 35 pages a millisecond while they are sent, 10 us each, and harvested, 20 ms. */
	m = (struct gr_model){ .limit_ns = 100000000 };
	gr_model_sample(&m, 100000, 410400000, 1000000000);
	gr_model_harvest(&m, 0, 20000000, 1000000000);
	gr_model_harvest(&m, 35000, 20000000, 2000000000);
	ASSERT(gr_model_gains(&m, 5000, 4104));
	ASSERT(!gr_model_gains(&m, 2500, 4104));
	gr_model_harvest(&m, 35000, 0, 3000000000);
	ASSERT(gr_model_gains(&m, 2500, 4104));
}

TEST_MAIN()

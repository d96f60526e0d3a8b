/* SPDX-License-Identifier: MIT */
/* The workload's closed form against a plain simulation of its specification. */
#include "harness.h"
#include "pacer.h"
#include "workload.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

static uint64_t below(uint64_t *state, uint64_t limit)
{
	return test_rand(state) % limit;
}

static void make_random(struct vmm_workload *wl, uint64_t *rnd)
{
	struct gr_error err;
	struct vmm_workload_params params = {
		.memory_bytes = (256 + below(rnd, 512)) * VMM_PAGE_BYTES,
		.writers = VMM_WRITERS_MIN + below(rnd, VMM_WRITERS_MAX - VMM_WRITERS_MIN + 1),
		.once_every = 2 + below(rnd, 5),
	};

	if (below(rnd, 2) == 0) {
		params.hot_pages = 2 + below(rnd, 60);
	}
	if (vmm_workload_init(wl, &params, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

/* Every page's last writer operation, by running all operations one after the other. */
TEST(last_op_of_a_page_equals_a_simulation_at_every_counter)
{
	uint64_t rnd = test_seed();

	for (int round = 0; round < 12; round++) {
		struct vmm_workload wl;
		uint64_t w, *last;

		make_random(&wl, &rnd);
		w = below(&rnd, wl.writers);
		last = calloc(wl.ram_pages, sizeof(*last)); /* operation + 1 */
		for (uint64_t op = 0; op < 3 * wl.ram_pages; op++) {
			uint64_t pfn, got;

			if (vmm_workload_page(&wl, w, op, &pfn)) {
				ASSERT_LT(pfn, wl.ram_pages);
				ASSERT_GE(pfn, (uint64_t)VMM_SYSTEM_PAGES);
				last[pfn] = op + 1;
			}
			pfn = below(&rnd, wl.ram_pages);
			if (vmm_workload_last_op(&wl, w, pfn, op + 1, &got)) {
				ASSERT_EQ(got + 1, last[pfn]);
			} else {
				ASSERT_EQ(last[pfn], 0u);
			}
			if (op % 97 != 0) {
				continue;
			}
			for (pfn = 0; pfn < wl.ram_pages; pfn++) {
				bool any = vmm_workload_last_op(&wl, w, pfn, op + 1, &got);

				ASSERT_EQ(any ? got + 1 : 0, last[pfn]);
			}
		}
		free(last);
	}
}

TEST(every_once_page_is_written_once_by_one_writer_and_a_third_of_all_are_such)
{
	uint64_t rnd = test_seed();

	for (int round = 0; round < 8; round++) {
		struct vmm_workload wl;
		uint64_t *writes, once = 0, hot = 0, ops;

		make_random(&wl, &rnd);
		writes = calloc(wl.ram_pages, sizeof(*writes));
		ops = wl.fill_ops + (wl.once_pages / wl.writers + 1) * wl.once_every;
		ops += 2 * wl.hot_pages; /* more than once round the hot set */
		for (uint64_t w = 0; w < wl.writers; w++) {
			for (uint64_t op = 0; op < ops; op++) {
				uint64_t pfn;

				if (vmm_workload_page(&wl, w, op, &pfn)) {
					writes[pfn]++;
				}
			}
		}
		for (uint64_t pfn = 0; pfn < wl.ram_pages; pfn++) {
			once += writes[pfn] == 1;
			hot += writes[pfn] > 1;
		}
		ASSERT_EQ(once, wl.once_pages);
		ASSERT_EQ(hot, wl.hot_pages);
		ASSERT_GT(3 * once, wl.ram_pages - VMM_SYSTEM_PAGES - 3 * 48);
		free(writes);
	}
}

TEST(operations_one_after_the_other_never_write_the_same_page)
{
	uint64_t rnd = test_seed();
	struct vmm_workload wl;

	make_random(&wl, &rnd);
	for (uint64_t w = 0; w < wl.writers; w++) {
		uint64_t before = 0, pfn;

		for (uint64_t op = 0; op < 4 * wl.ram_pages; op++) {
			if (vmm_workload_page(&wl, w, op, &pfn)) {
				ASSERT_NE(pfn, before);
				before = pfn;
			}
		}
	}
}

TEST(counters_near_the_end_of_their_range_do_no_harm)
{
	uint64_t rnd = test_seed();
	struct vmm_workload wl;

	make_random(&wl, &rnd);
	for (uint64_t op = UINT64_MAX - 1000; op < UINT64_MAX; op++) {
		uint64_t pfn, last;

		if (vmm_workload_page(&wl, 1, op, &pfn)) {
			ASSERT_LT(pfn, wl.ram_pages);
			ASSERT(vmm_workload_last_op(&wl, 1, pfn, op + 1, &last));
			ASSERT_EQ(last, op);
		}
	}
}

TEST(last_op_of_a_plugged_page_equals_a_simulation)
{
	for (uint64_t pages = 1; pages < 9; pages++) {
		uint64_t last[9] = { 0 };

		for (uint64_t op = 0; op < 40; op++) {
			last[op % pages] = op + 1;
			for (uint64_t page = 0; page < pages; page++) {
				uint64_t got;
				bool any = vmm_plug_last_op(pages, page, op + 1, &got);

				ASSERT_EQ(any ? got + 1 : 0, last[page]);
			}
		}
	}
}

TEST(segments_cover_a_page_without_overlap)
{
	for (uint64_t writers = VMM_WRITERS_MIN; writers <= VMM_WRITERS_MAX; writers++) {
		uint32_t at = 0;

		for (uint64_t w = 0; w < writers; w++) {
			ASSERT_EQ(vmm_segment_first(writers, w), at);
			at += vmm_segment_words(writers, w);
		}
		ASSERT_EQ(at, (uint32_t)VMM_PAGE_WORDS);
	}
}

/* A guest in another language must compute these; they pin the specification. */
TEST(values_are_those_of_the_specification)
{
	ASSERT_EQ(vmm_workload_base(0, 0, 0), UINT64_C(0xb2f09ae92b09c4b9));
	ASSERT_EQ(vmm_workload_base(2, 0x12345, 1000003), UINT64_C(0x48301072b0b28d75));
}

TEST(constants_that_cannot_be_are_refused)
{
	struct vmm_workload_params params = { .memory_bytes = 16 << 20, .writers = 3 };
	struct vmm_workload good, bad;
	struct gr_error err;

	ASSERT_EQ(vmm_workload_init(&good, &params, &err), 0);
	for (size_t field = 0; field < sizeof(good) / sizeof(uint64_t); field++) {
		uint64_t words[sizeof(good) / sizeof(uint64_t)];

		memcpy(words, &good, sizeof(good));
		words[field] = field == 6 ? UINT64_MAX : 0; /* fill_ops may be 0 */
		memcpy(&bad, words, sizeof(bad));
		ASSERT_EQ(vmm_workload_validate(&bad, &err), -EINVAL);
		words[field] = UINT64_MAX;
		memcpy(&bad, words, sizeof(bad));
		ASSERT_EQ(vmm_workload_validate(&bad, &err), -EINVAL);
	}
	params.memory_bytes = 1000;
	ASSERT_EQ(vmm_workload_init(&bad, &params, &err), -EINVAL);
	ASSERT_HAS(err.msg, "1000");
	params.memory_bytes = 16 << 20;
	params.writers = 1;
	ASSERT_EQ(vmm_workload_init(&bad, &params, &err), -EINVAL);
}

TEST(heartbeat_keeps_the_largest_gap_and_when_it_began)
{
	struct vmm_heartbeat hb = { 0 };
	const uint64_t at[] = { 1000, 1010, 1500, 1505, 1900 };

	for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		vmm_heartbeat_beat(&hb, at[i]);
	}
	ASSERT_EQ(hb.gap_ns_max, 490u);
	ASSERT_EQ(hb.gap_began_ns, 1010u);
	ASSERT_EQ(hb.beats, 5u);
	ASSERT_EQ(hb.last_ns, 1900u);
}

static double seconds(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

TEST(pacer_gives_as_much_as_the_rate_says)
{
	struct vmm_pacer pacer;
	struct gr_error err;
	double began, took;
	uint64_t ops = 0;

	ASSERT_EQ(vmm_pacer_init(&pacer, 2, &err), 0);
	vmm_pacer_set_rate(&pacer, 8 << 20); /* 1024 operations/s for each of two writers */
	began = seconds();
	while (ops < 200) {
		ops += vmm_pacer_take(&pacer, 1);
	}
	took = seconds() - began;
	ASSERT_GT(took * 1000, 150.0); /* never faster; slower on a busy machine */
	vmm_pacer_destroy(&pacer);
}

static void *take_one(void *pacer)
{
	return (void *)(uintptr_t)vmm_pacer_take(pacer, 0);
}

TEST(stopping_wakes_a_writer_that_waits_for_its_turn)
{
	struct vmm_pacer pacer;
	struct gr_error err;
	pthread_t thread;
	void *ops;

	ASSERT_EQ(vmm_pacer_init(&pacer, 1, &err), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, take_one, &pacer), 0); /* at rate 0 */
	vmm_pacer_stop(&pacer, 0);
	ASSERT_EQ(pthread_join(thread, &ops), 0);
	ASSERT_PTR_EQ(ops, NULL);
	vmm_pacer_go(&pacer, 0);
	vmm_pacer_set_rate(&pacer, VMM_RATE_UNLIMITED);
	ASSERT_GT(vmm_pacer_take(&pacer, 0), 0u);
	ASSERT_EQ(vmm_pacer_finished(&pacer, 0), 0u);
	ASSERT_GT(vmm_pacer_take(&pacer, 0), 0u);
	ASSERT_GT(vmm_pacer_finished(&pacer, 0), 0u);
	vmm_pacer_destroy(&pacer);
}

TEST_MAIN()

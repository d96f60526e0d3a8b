/* SPDX-License-Identifier: MIT */
/* A function and its argument that change together; see base/handler.h. */
#include "base/handler.h"
#include "concurrent.h"
#include "harness.h"

static struct gr_handler handler = GR_HANDLER_INIT;
static int first, second;
static bool stop;

static void take_first(void)
{
}

static void take_second(void)
{
}

TEST(none_is_set_at_first)
{
	ASSERT(gr_handler_get(&handler).fn == NULL);
}

static void *change(void *arg)
{
	while (!LOAD(&stop)) {
		gr_handler_set(&handler, take_first, &first);
		gr_handler_set(&handler, take_second, &second);
	}
	return arg;
}

TEST(a_function_is_never_found_with_the_argument_of_another)
{
	enum { CHANGERS = 2 };
	uint64_t end = now_ns() + (uint64_t)(test_seconds(0.5) * 1e9);
	pthread_t t[CHANGERS];

	for (int i = 0; i < CHANGERS; i++) {
		t[i] = spawn(change, NULL);
	}
	while (now_ns() < end) {
		struct gr_handler_slot got = gr_handler_get(&handler);

		ASSERT_PTR_EQ(got.opaque, got.fn == take_first	  ? &first
					  : got.fn == take_second ? &second
								  : NULL);
	}
	STORE(&stop, true);
	for (int i = 0; i < CHANGERS; i++) {
		pthread_join(t[i], NULL);
	}
}

TEST_MAIN()

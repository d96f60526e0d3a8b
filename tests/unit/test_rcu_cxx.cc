// SPDX-License-Identifier: MIT
// The scope guards in C++: a section ends with its scope, by whatever way it is left.
#include <cstdio>
#include <guestram/guestram.h>

static int value = 42;
static int *published = &value;

static int by_return()
{
	GR_RCU_READ_GUARD();
	return gr_rcu_read_ongoing() ? *gr_rcu_dereference(published) : 0;
}

static void by_exception()
{
	GR_RCU_READ_GUARD();
	throw 1;
}

static bool leaves_by_exception()
{
	try {
		by_exception();
	} catch (int) {
		return !gr_rcu_read_ongoing();
	}
	return false;
}

static bool works_on_a_reader_of_ones_own()
{
	gr_rcu_reader r;
	bool inside;

	gr_rcu_reader_init(&r, nullptr, "mine");
	{
		GR_RCU_READ_GUARD_ON(&r);
		inside = gr_rcu_read_ongoing_on(&r) && *gr_rcu_dereference(published) == 42;
	}
	inside = inside && !gr_rcu_read_ongoing_on(&r);
	gr_rcu_reader_destroy(&r);
	return inside;
}

static int report(int n, bool good, const char *name)
{
	std::printf("%s %d - %s\n", good ? "ok" : "not ok", n, name);
	return good ? 0 : 1;
}

int main()
{
	int bad = 0;

	std::printf("1..3\n");
	bad += report(1, by_return() == 42 && !gr_rcu_read_ongoing(), "return_ends_the_section");
	bad += report(2, leaves_by_exception(), "an_exception_ends_the_section");
	bad += report(3, works_on_a_reader_of_ones_own(), "the_guard_of_an_explicit_reader_does_both");
	gr_rcu_synchronize();
	return bad;
}

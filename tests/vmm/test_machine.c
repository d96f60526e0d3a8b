/* SPDX-License-Identifier: MIT */
/* The machine with its thread guest: it runs, stops, is plugged, moves and is right. */
#include "harness.h"
#include "machine.h"
#include "machine_move.h"
#include "resume.h"
#include <errno.h>
#include <guestram/image.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MEMORY = 24 << 20, PLUG = 256 << 10 };

static void nap(unsigned int ms)
{
	const struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	(void)nanosleep(&ts, NULL);
}

static struct vmm_machine *make(bool incoming, bool software)
{
	const struct vmm_machine_params params = { .memory_bytes = MEMORY,
						   .vcpus = 2,
						   .accel = "threads",
						   .software_tracker = software,
						   .incoming = incoming,
						   .rate_bytes_per_s = 200 << 20,
						   .debug_fd = -1 };
	struct vmm_machine *machine;
	struct gr_error err;

	if (vmm_machine_create(&params, &machine, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return machine;
}

static void cont(struct vmm_machine *machine)
{
	struct gr_error err;

	if (vmm_machine_cont(machine, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void check(struct vmm_machine *machine, struct vmm_check *result)
{
	struct gr_error err;
	char text[256];

	if (vmm_machine_check(machine, result, &err) < 0) {
		FAIL("%s", err.msg);
	}
	if (result->pages_wrong > 0) {
		vmm_check_describe(result, text, sizeof(text));
		FAIL("%" PRIu64 " pages wrong, first %s", result->pages_wrong, text);
	}
}

/* Wait until every writer has done so many more operations. */
static void run_ops(struct vmm_machine *machine, uint64_t more)
{
	uint64_t from[VMM_WRITERS_MAX] = { 0 }, now[VMM_WRITERS_MAX] = { 0 };
	bool done = false;

	vmm_machine_ops(machine, from);
	while (!done) {
		nap(1);
		vmm_machine_ops(machine, now);
		done = true;
		for (unsigned int w = 0; w <= vmm_machine_vcpus(machine); w++) {
			done = done && now[w] >= from[w] + more;
		}
	}
}

/* Until the guest's clock has ticked since. */
static void await_beat(struct vmm_machine *machine, const struct vmm_heartbeat *before)
{
	struct vmm_heartbeat now;

	do {
		nap(1);
		ASSERT_EQ(vmm_machine_heartbeat(machine, &now, NULL), 0);
	} while (now.beats == before->beats);
}

TEST(memory_is_right_whenever_the_guest_is_stopped)
{
	struct vmm_machine *machine = make(false, true);
	struct vmm_heartbeat before, after;
	struct vmm_check result;

	for (int i = 0; i < 15; i++) {
		ASSERT_EQ(vmm_machine_heartbeat(machine, &before, NULL), 0);
		cont(machine);
		nap(10 + (unsigned int)i);
		await_beat(machine, &before);
		ASSERT_EQ(vmm_machine_check(machine, &result, NULL), -EBUSY);
		ASSERT_EQ(vmm_machine_stop(machine, NULL), 0);
		ASSERT_EQ(vmm_machine_heartbeat(machine, &after, NULL), 0);
		ASSERT_GT(after.beats, before.beats);
		check(machine, &result);
	}
	ASSERT_EQ(result.pages_checked, (uint64_t)MEMORY / VMM_PAGE_BYTES);
	ASSERT_GT(result.pages_written_once, 0u);
	ASSERT_GT(result.device_pages_checked, 0u);
	vmm_machine_free(machine);
}

TEST(blocks_come_and_go_while_the_guest_writes_them)
{
	struct vmm_machine *machine = make(false, true);
	struct vmm_check result;
	struct gr_error err;
	char id[32];

	cont(machine);
	run_ops(machine, 64);
	for (int i = 0; i < 100; i++) {
		ASSERT_EQ(vmm_machine_plug(machine, NULL, PLUG, 0, &err), 0);
		if (i >= 6) {
			(void)snprintf(id, sizeof(id), "dimm%d", i - 6);
			ASSERT_EQ(vmm_machine_unplug(machine, id, &err), 0);
		}
		nap(1);
	}
	run_ops(machine, 600);
	ASSERT_EQ(vmm_machine_stop(machine, NULL), 0);
	check(machine, &result);
	ASSERT_EQ(vmm_machine_plugs_alive(machine), 6u);
	ASSERT_EQ(result.plugged_pages_checked, 6u * PLUG / VMM_PAGE_BYTES);
	vmm_machine_free(machine);
}

TEST(wrong_blocks_are_refused_and_nothing_changes)
{
	struct vmm_machine *machine = make(false, true);
	struct gr_error err;

	ASSERT_EQ(vmm_machine_plug(machine, "a", PLUG, 0, &err), 0);
	ASSERT_EQ(vmm_machine_plug(machine, "a", PLUG, 0, &err), -EEXIST);
	ASSERT_EQ(vmm_machine_plug(machine, "ram", PLUG, 0, &err), -EEXIST);
	ASSERT_EQ(vmm_machine_plug(machine, "b", 100, 0, &err), -EINVAL);
	ASSERT_EQ(vmm_machine_plug(machine, "b", 0, 0, &err), -EINVAL);
	ASSERT_EQ(vmm_machine_plug(machine, "b", PLUG, VMM_PLUG_GPA_BASE, &err), -EINVAL);
	ASSERT_EQ(vmm_machine_plug(machine, "b", UINT64_MAX, 0, &err), -EINVAL);
	ASSERT_EQ(vmm_machine_plug(machine, "b", PLUG, VMM_PLUG_GPA_END, &err), -EINVAL);
	ASSERT_EQ(vmm_machine_unplug(machine, "b", &err), -ENOENT);
	ASSERT_EQ(vmm_machine_unplug(machine, "ram", &err), -ENOENT);
	ASSERT_EQ(vmm_machine_plugs_alive(machine), 1u);
	ASSERT_EQ(vmm_machine_unplug(machine, "a", &err), 0);
	ASSERT_EQ(vmm_machine_unplug(machine, "a", &err), -ENOENT);
	vmm_machine_free(machine);
}

/* A move between two machines of this process. */
struct pair {
	struct vmm_machine *source, *destination;
	struct vmm_move *in, *out;
	char path[64];
};

static void begin(struct pair *pair, const struct vmm_move_params *params)
{
	static unsigned int number;
	struct gr_error err;

	(void)snprintf(pair->path, sizeof(pair->path), "unix:/tmp/gr-move-%d-%u", getpid(),
		       number++);
	if (vmm_move_in(pair->destination, pair->path, NULL, &pair->in, &err) < 0 ||
	    vmm_move_out(pair->source, pair->path, params, &pair->out, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void finish(struct pair *pair)
{
	struct gr_error err;

	if (vmm_move_wait(pair->out, &err) < 0) {
		FAIL("source: %s", err.msg);
	}
	if (vmm_move_wait(pair->in, &err) < 0) {
		FAIL("destination: %s", err.msg);
	}
}

static void end(struct pair *pair)
{
	vmm_move_free(pair->out);
	vmm_move_free(pair->in);
	vmm_machine_free(pair->source);
	vmm_machine_free(pair->destination);
}

static void move_while_plugging(bool software)
{
	struct pair pair = { .source = make(false, software), .destination = make(true, software) };
	const struct vmm_move_params params = { .bandwidth_bytes_per_s_max = 100 << 20 };
	struct vmm_check at_switch, later;
	struct vmm_heartbeat before;
	struct gr_error err;
	int plugged = 0, status;
	char id[32];

	cont(pair.source);
	run_ops(pair.source, 600);
	for (; plugged < 4; plugged++) {
		ASSERT_EQ(vmm_machine_plug(pair.source, NULL, PLUG, 0, &err), 0);
	}
	begin(&pair, &params);
	while (!vmm_move_ended(pair.out, &status, NULL) &&
	       vmm_machine_plug(pair.source, NULL, PLUG, 0, &err) == 0) {
		(void)snprintf(id, sizeof(id), "dimm%d", plugged++ - 4);
		(void)vmm_machine_unplug(pair.source, id, NULL);
		nap(2);
	}
	finish(&pair);
	ASSERT_EQ(vmm_machine_state(pair.source), VMM_POSTMIGRATE);
	ASSERT_EQ(vmm_machine_state(pair.destination), VMM_PAUSED);
	ASSERT(vmm_move_source_ran(pair.in));
	ASSERT_GT(plugged, 5);
	check(pair.destination, &at_switch);
	check(pair.source, &later);
	ASSERT_EQ(at_switch.pages_written_once, later.pages_written_once);
	ASSERT_EQ(at_switch.plugged_pages_checked, later.plugged_pages_checked);
	ASSERT_GE(at_switch.plugged_pages_checked, 4u * PLUG / VMM_PAGE_BYTES);
	ASSERT_LE(at_switch.pages_last_written_before_final_round, at_switch.pages_written_once);

	/* and on it goes there, plugging included */
	ASSERT_EQ(vmm_machine_heartbeat(pair.destination, &before, NULL), 0);
	cont(pair.destination);
	run_ops(pair.destination, 300);
	ASSERT_EQ(vmm_machine_plug(pair.destination, NULL, PLUG, 0, &err), 0);
	run_ops(pair.destination, 300);
	await_beat(pair.destination, &before);
	ASSERT_EQ(vmm_machine_stop(pair.destination, NULL), 0);
	check(pair.destination, &later);
	ASSERT_GE(later.pages_written_once, at_switch.pages_written_once);
	end(&pair);
}

TEST(a_running_guest_moves_under_hotplug_with_marks_only)
{
	move_while_plugging(true);
}

TEST(a_running_guest_moves_under_hotplug_with_the_best_tracker)
{
	move_while_plugging(false);
}

/*
 * With marks alone a page whose iovec is still out is not known to be dirty. The device is
 * stopped while it waits for its next operations, with its last ones in flight.
 */
TEST(iovecs_in_flight_are_put_back_before_the_last_harvest)
{
	const struct vmm_move_params params = { .bandwidth_bytes_per_s_max = 200 << 20 };
	struct vmm_check result;

	for (int i = 0; i < 8; i++) {
		struct pair pair = { .source = make(false, true), .destination = make(true, true) };

		cont(pair.source);
		run_ops(pair.source, 1100); /* the hot set is full: every other page is a new one */
		vmm_pacer_set_rate(vmm_machine_pacer(pair.source), 40 << 20);
		begin(&pair, &params);
		finish(&pair);
		check(pair.destination, &result);
		end(&pair);
	}
}

TEST(a_guest_moves_there_and_back_and_there)
{
	struct pair pair = { .source = make(false, true), .destination = make(true, true) };
	struct vmm_check result;

	cont(pair.source);
	for (int i = 0; i < 3; i++) {
		run_ops(pair.source, 300);
		begin(&pair, NULL);
		finish(&pair);
		check(pair.destination, &result);
		vmm_move_free(pair.out);
		vmm_move_free(pair.in);
		vmm_machine_free(pair.source);
		pair.source = pair.destination;
		pair.destination = make(true, true);
		cont(pair.source);
	}
	ASSERT_EQ(vmm_machine_stop(pair.source, NULL), 0);
	check(pair.source, &result);
	vmm_machine_free(pair.source);
	vmm_machine_free(pair.destination);
}

TEST(a_stopped_guest_moves_and_stays_stopped)
{
	struct pair pair = { .source = make(false, true), .destination = make(true, true) };
	struct vmm_check result;

	cont(pair.source);
	run_ops(pair.source, 300);
	ASSERT_EQ(vmm_machine_stop(pair.source, NULL), 0);
	begin(&pair, NULL);
	finish(&pair);
	ASSERT(!vmm_move_source_ran(pair.in));
	check(pair.destination, &result);
	end(&pair);
}

TEST(a_machine_in_switch_over_can_be_stopped_but_its_memory_not_changed)
{
	struct vmm_machine *machine = make(false, true), *incoming = make(true, true);
	struct vmm_check result;
	struct gr_error err;

	ASSERT_EQ(vmm_machine_heartbeat_reset(incoming, &err), -EBUSY);
	ASSERT_HAS(err.msg, "inmigrate");
	ASSERT_EQ(vmm_machine_stop(incoming, &err), 0);
	ASSERT_EQ(vmm_machine_state(incoming), VMM_INMIGRATE);
	cont(machine);
	run_ops(machine, 100);
	ASSERT_EQ(vmm_machine_heartbeat_reset(machine, &err), -EBUSY);
	ASSERT_EQ(vmm_machine_switch_over(machine, &err), 0);
	ASSERT_EQ(vmm_machine_heartbeat_reset(machine, &err), -EBUSY);
	ASSERT_HAS(err.msg, "finish-migrate");
	vmm_machine_switch_back(machine);
	ASSERT_EQ(vmm_machine_state(machine), VMM_RUNNING); /* nobody said stop */
	ASSERT_EQ(vmm_machine_switch_over(machine, &err), 0);
	ASSERT_EQ(vmm_machine_stop(machine, &err), 0);
	vmm_machine_switch_back(machine);
	ASSERT_EQ(vmm_machine_state(machine), VMM_PAUSED);
	ASSERT_EQ(vmm_machine_heartbeat_reset(machine, &err), 0);
	check(machine, &result);
	vmm_machine_free(machine);
	vmm_machine_free(incoming);
}

static void stop_in_switch_over(void *opaque, const struct gr_migrate_stats *stats)
{
	struct pair *pair = opaque;

	if (stats->state == GR_MIGRATE_DEVICE) {
		ASSERT_EQ(vmm_machine_stop(pair->source, NULL), 0);
	}
}

TEST(a_guest_stopped_in_switch_over_is_saved_as_stopped)
{
	struct pair pair = { .source = make(false, true), .destination = make(true, true) };
	const struct vmm_move_params params = { .between = stop_in_switch_over, .opaque = &pair };
	struct vmm_check result;

	cont(pair.source);
	run_ops(pair.source, 100);
	begin(&pair, &params);
	finish(&pair);
	ASSERT(!vmm_move_source_ran(pair.in));
	check(pair.destination, &result);
	end(&pair);
}

TEST(a_cancelled_move_leaves_the_guest_running_and_the_next_one_works)
{
	struct pair pair = { .source = make(false, false), .destination = make(true, false) };
	const struct vmm_move_params slow = { .bandwidth_bytes_per_s_max = 2 << 20 };
	struct gr_migrate_stats stats;
	struct vmm_check result;
	struct gr_error err;

	cont(pair.source);
	run_ops(pair.source, 300);
	for (int i = 0; i < 2; i++) {
		begin(&pair, &slow);
		nap(100);
		vmm_move_cancel(pair.out);
		ASSERT_EQ(vmm_move_wait(pair.out, &err), -ECANCELED);
		ASSERT_LT(vmm_move_wait(pair.in, &err), 0);
		vmm_move_stats(pair.out, &stats);
		ASSERT_EQ(stats.state, GR_MIGRATE_CANCELLED);
		ASSERT_EQ(vmm_machine_state(pair.source), VMM_RUNNING);
		/* what arrived in part never runs */
		ASSERT_EQ(vmm_machine_state(pair.destination), VMM_INMIGRATE);
		ASSERT_EQ(vmm_machine_cont(pair.destination, &err), -EBUSY);
		vmm_move_free(pair.out);
		vmm_move_free(pair.in);
		vmm_machine_free(pair.destination);
		pair.destination = make(true, false);
	}
	run_ops(pair.source, 100);
	ASSERT_EQ(vmm_machine_stop(pair.source, NULL), 0);
	check(pair.source, &result);
	cont(pair.source);
	begin(&pair, NULL);
	finish(&pair);
	check(pair.destination, &result);
	end(&pair);
}

TEST(a_destination_of_another_shape_is_refused_and_the_source_goes_on)
{
	const struct vmm_machine_params other = { .memory_bytes = MEMORY,
						  .vcpus = 1,
						  .accel = "threads",
						  .incoming = true,
						  .debug_fd = -1 };
	struct pair pair = { .source = make(false, true) };
	struct vmm_check result;
	struct gr_error err;

	ASSERT_EQ(vmm_machine_create(&other, &pair.destination, &err), 0);
	cont(pair.source);
	run_ops(pair.source, 100);
	begin(&pair, NULL);
	ASSERT_LT(vmm_move_wait(pair.in, &err), 0);
	ASSERT_HAS(err.msg, "vCPUs");
	ASSERT_LT(vmm_move_wait(pair.out, &err), 0);
	run_ops(pair.source, 100);
	ASSERT_EQ(vmm_machine_stop(pair.source, NULL), 0);
	check(pair.source, &result);
	end(&pair);
}

static void damaged_move(enum gr_source_fault fault)
{
	struct pair pair = { .source = make(false, false), .destination = make(true, false) };
	const struct vmm_move_params params = { .fault = fault };
	struct vmm_check result;

	cont(pair.source);
	run_ops(pair.source, 600);
	begin(&pair, &params);
	finish(&pair);
	ASSERT_EQ(vmm_machine_check(pair.destination, &result, NULL), 0);
	ASSERT_GE(result.pages_wrong, 1u);
	check(pair.source, &result); /* the source's own memory is right */
	end(&pair);
}

static int save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	return vmm_machine_save(opaque, writer, err);
}

/* Whether no writer has done anything for a while. */
static bool stands(struct vmm_machine *machine)
{
	uint64_t from[VMM_WRITERS_MAX] = { 0 }, now[VMM_WRITERS_MAX] = { 0 };

	vmm_machine_ops(machine, from);
	nap(200);
	vmm_machine_ops(machine, now);
	return memcmp(from, now, sizeof(from)) == 0;
}

/* What has not come reads as zero once nobody brings it any more. */
TEST(a_machine_that_ends_while_its_memory_comes_does_nothing_with_zeroes)
{
	struct vmm_machine *machine = make(false, true);
	const struct gr_image_save_params params = { .size = sizeof(params),
						     .save = save,
						     .opaque = machine };
	struct vmm_resume_params lazy = { .lazy = true, .bandwidth_bytes_per_s_max = 4096 };
	struct vmm_resume *resume;
	struct gr_error err;
	char path[] = "/tmp/gr-machine-XXXXXX";
	bool ran;
	int rc, fd = mkstemp(path);

	ASSERT_GE(fd, 0);
	cont(machine);
	run_ops(machine, 20000);
	ASSERT_EQ(vmm_machine_switch_over(machine, NULL), 0);
	ASSERT_EQ(gr_image_save(vmm_machine_ram(machine), path, &params, NULL, &err), 0);
	vmm_machine_free(machine);
	machine = make(true, true);
	lazy.path = path;
	rc = vmm_resume_begin(machine, &lazy, &ran, &resume, &err);
	(void)unlink(path);
	(void)close(fd);
	if (rc < 0) {
		vmm_machine_free(machine);
		SKIP("%s", err.msg);
	}
	cont(machine);
	run_ops(machine, 10);
	ASSERT_EQ(vmm_resume_completed(resume), false);
	vmm_resume_free(resume);
	for (int looks = 0; !stands(machine); looks++) {
		ASSERT_LT(looks, 100);
	}
	vmm_machine_free(machine);
}

TEST(a_lost_page_is_caught)
{
	damaged_move(GR_FAULT_LOSE_PAGE);
}

TEST(reading_before_the_harvest_is_caught)
{
	damaged_move(GR_FAULT_EARLY_READ);
}

TEST(leaving_out_the_last_harvest_is_caught)
{
	damaged_move(GR_FAULT_SKIP_FINAL_SYNC);
}

TEST_MAIN()

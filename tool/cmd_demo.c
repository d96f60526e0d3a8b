/* SPDX-License-Identifier: MIT */
/*
 * guestram demo: moves a guest that keeps writing to a second process while its RAM is
 * plugged and unplugged, and checks every word over there.
 */
#include "demo.h"
#include "json.h"
#include "tool.h"
#include <errno.h>
#include <getopt.h>
#include <guestram/loop.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
	MEMORY_BYTES_DEFAULT = 512 << 20,
	VCPUS = 2,
	DIRTY_PERCENT = 30, /* of the link: the hot set's rate */
	ONCE_EVERY = 2,	    /* operations: one to the hot set, one to a page written once */
	ONCE_PERCENT_FIRST_ROUND = 60,
	ROUNDS_MAX = 10,
	HOT_ONE_IN = 12, /* pages */
	/* Nothing advances for so long: give up. Not a limit on slow machines. */
	STUCK_MS = 120000,
	KEEP_STEP_STUCK_MS = 20000, /* shorter: the move then goes on without */
	SHOW_MS = 100,
};
#define DOWNTIME_NS_MAX UINT64_C(50000000)
#define NS_PER_S	1000000000u
#define NS_PER_MS	UINT64_C(1000000)

struct demo {
	struct demo_options options;
	struct vmm_machine *machine;
	struct vmm_move *move;
	struct demo_load load;
	struct demo_peer peer;
	struct gr_loop *loop; /* waits for the move's state to change */
	uint64_t link_bytes_per_s, rate_bytes_per_s;
	uint64_t first_round_percent; /* (o) the move's thread: so much may be sent */
	/* the result */
	struct gr_migrate_stats stats;
	struct demo_check at_switch, later;
	struct demo_life life;
	uint64_t wall_ns, alive;
	uint32_t plugged, unplugged;
	char tracker[64];
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void nap_ms(unsigned int ms)
{
	const struct timespec ts = { .tv_nsec = ms * 1000000L };

	(void)nanosleep(&ts, NULL);
}

/* Which damage a name means; false if there is no such. */
static bool parse_fault(const char *name, enum gr_source_fault *ret)
{
	static const struct {
		const char *name;
		enum gr_source_fault fault;
	} faults[] = {
		{ "lose-page", GR_FAULT_LOSE_PAGE },
		{ "early-read", GR_FAULT_EARLY_READ },
		{ "skip-final-sync", GR_FAULT_SKIP_FINAL_SYNC },
	};

	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
		if (strcmp(name, faults[i].name) == 0) {
			*ret = faults[i].fault;
			return true;
		}
	}
	return false;
}

static int parse_options(int argc, char **argv, struct demo_options *o)
{
	static const struct option options[] = {
		{ "accel", required_argument, NULL, 'a' },
		{ "inject", required_argument, NULL, 'i' },
		{ "json", no_argument, NULL, 'j' },
		{ "memory", required_argument, NULL, 'm' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	*o = (struct demo_options){ .memory_bytes = MEMORY_BYTES_DEFAULT, .vcpus = VCPUS };
	while ((c = getopt_long(argc, argv, "m:", options, NULL)) != -1) {
		switch (c) {
		case 'a':
			o->accel = optarg;
			break;
		case 'i':
			if (!parse_fault(optarg, &o->fault)) {
				return tool_usage_error(&verb_demo, "cannot inject '%s'", optarg);
			}
			break;
		case 'j':
			o->json = true;
			break;
		case 'm':
			if (tool_parse_size(optarg, &o->memory_bytes) < 0) {
				return tool_usage_error(&verb_demo, "not a size: '%s'", optarg);
			}
			break;
		default:
			return tool_usage_error(&verb_demo, NULL);
		}
	}
	if (optind < argc) {
		return tool_usage_error(&verb_demo, "unexpected argument '%s'", argv[optind]);
	}
	return TOOL_OK;
}

/* Patience with something that advances: it ends when the count stands still for ms. */
struct patience {
	uint64_t count, since_ns;
};

static bool is_stuck(struct patience *p, uint64_t count, uint64_t ms)
{
	uint64_t now = now_ns();

	if (p->since_ns == 0 || p->count != count) {
		*p = (struct patience){ count, now };
	}
	return now - p->since_ns > ms * UINT64_C(1000000);
}

/* Run until the hot set has been filled, as fast as it goes. */
static int fill_hot_set(struct demo *demo, struct gr_error *err)
{
	const struct vmm_workload *wl = vmm_machine_workload(demo->machine);
	uint64_t ops[VMM_WRITERS_MAX] = { 0 }, done = 0;
	struct patience patience = { 0 };
	bool filled = false;

	vmm_pacer_set_rate(vmm_machine_pacer(demo->machine), VMM_RATE_UNLIMITED);
	while (!filled && !is_stuck(&patience, done, STUCK_MS)) {
		nap_ms(1);
		vmm_machine_ops(demo->machine, ops);
		filled = true;
		done = 0;
		for (uint64_t w = 0; w < wl->writers; w++) {
			done += ops[w];
			filled = filled && ops[w] + 256 >= wl->fill_ops;
			if (ops[w] + 256 >= wl->fill_ops) {
				vmm_pacer_stop(vmm_machine_pacer(demo->machine), (unsigned int)w);
			}
		}
	}
	vmm_pacer_set_rate(vmm_machine_pacer(demo->machine), demo->rate_bytes_per_s);
	for (unsigned int w = 0; w < wl->writers; w++) {
		vmm_pacer_go(vmm_machine_pacer(demo->machine), w);
	}
	return filled ? 0 : gr_error_set(err, -ETIMEDOUT, "the guest does not get going");
}

static int start_guest(struct demo *demo, struct gr_error *err)
{
	const struct vmm_machine_params params = {
		.memory_bytes = demo->options.memory_bytes,
		.vcpus = demo->options.vcpus,
		.accel = demo->options.accel,
		.once_every = ONCE_EVERY,
		.hot_pages = demo->options.memory_bytes / VMM_PAGE_BYTES / HOT_ONE_IN,
		.debug_fd = -1,
	};
	struct patience patience = { 0 };
	int rc = vmm_machine_create(&params, &demo->machine, err);

	rc = rc < 0 ? rc : vmm_machine_cont(demo->machine, err);
	rc = rc < 0 ? rc : fill_hot_set(demo, err);
	if (rc == 0) {
		gr_track_describe(vmm_machine_track(demo->machine), demo->tracker,
				  sizeof(demo->tracker));
		rc = demo_load_start(&demo->load, demo->machine, err);
	}
	while (rc == 0 && vmm_machine_plugs_alive(demo->machine) < DEMO_ALIVE_MIN) {
		nap_ms(1);
		if (is_stuck(&patience, vmm_machine_plugs_alive(demo->machine), STUCK_MS)) {
			rc = gr_error_set(err, -ETIMEDOUT, "no blocks can be plugged");
		}
	}
	return rc;
}

/* How far the guest is with the pages it writes once, in percent. */
static uint64_t once_percent(struct demo *demo)
{
	const struct vmm_workload *wl = vmm_machine_workload(demo->machine);
	uint64_t ops[VMM_WRITERS_MAX] = { 0 }, pages = 0;

	vmm_machine_ops(demo->machine, ops);
	for (uint64_t w = 0; w < wl->writers; w++) {
		pages += ops[w] > wl->fill_ops ? (ops[w] - wl->fill_ops) / wl->once_every : 0;
	}
	return pages * 100 / wl->once_pages;
}

/*
 * Between two steps of the source: the first round does not get ahead of what shall happen
 * during the move. As much of it may have been sent as blocks have come and gone, and as
 * pages have been written once; the last of these are left for the rounds after it.
 */
static void keep_step(void *opaque, const struct gr_migrate_stats *stats)
{
	struct demo *demo = opaque;
	uint64_t sent = (stats->total_bytes - stats->remaining_bytes) * 100;
	struct patience patience = { 0 };

	if (stats->rounds != 1 || stats->total_bytes == 0) {
		return;
	}
	while (sent / stats->total_bytes >= demo->first_round_percent &&
	       !is_stuck(&patience, demo->first_round_percent, KEEP_STEP_STUCK_MS)) {
		uint64_t gone = __atomic_load_n(&demo->load.unplugged, __ATOMIC_RELAXED);
		uint64_t once = once_percent(demo) * 100 / ONCE_PERCENT_FIRST_ROUND;

		gone = gone * 100 / (DEMO_PLUGS_MIN + 2);
		demo->first_round_percent = (gone < once ? gone : once) + 1;
		if (sent / stats->total_bytes >= demo->first_round_percent) {
			nap_ms(1);
		}
	}
}

static void move_changed(void *opaque, const struct gr_migrate_stats *stats)
{
	struct demo *demo = opaque;

	(void)stats;
	gr_loop_stop(demo->loop); /* move_guest() is to look */
}

static void show_progress(struct demo *demo, uint64_t began_ns, bool tty, uint64_t *shown_round)
{
	struct gr_migrate_stats stats;
	char sent[24], left[24], rate[24], dirty[24];
	uint64_t ns = now_ns() - began_ns;

	vmm_move_stats(demo->move, &stats);
	if (!tty && stats.rounds == *shown_round) {
		return;
	}
	*shown_round = stats.rounds;
	(void)fprintf(
		stderr, "%sround %-2" PRIu64 "  sent %-9s  dirty %9s/s  remaining %-9s  %9s/s%s",
		tty ? "\r" : "", stats.rounds,
		tool_format_size(stats.transferred_bytes, sent, sizeof(sent)),
		tool_format_size(stats.dirty_pages_per_s * VMM_PAGE_BYTES, dirty, sizeof(dirty)),
		tool_format_size(stats.remaining_bytes, left, sizeof(left)),
		tool_format_size((uint64_t)((double)stats.transferred_bytes * 1e9 /
					    (double)(ns > 0 ? ns : 1)),
				 rate, sizeof(rate)),
		tty ? "\033[K" : "\n");
}

/* Move it; returns when it is over there and stopped. */
static int move_guest(struct demo *demo, struct gr_error *err)
{
	const struct vmm_move_params params = {
		.downtime_ns_max = DOWNTIME_NS_MAX,
		.rounds_max = ROUNDS_MAX,
		.fault = demo->options.fault,
		.between = keep_step,
		.changed = move_changed,
		.opaque = demo,
	};
	const bool tty = isatty(STDERR_FILENO) == 1;
	struct gr_migrate_stats stats;
	struct patience patience = { 0 };
	uint64_t began_ns = now_ns(), round = 0;
	bool stuck = false;
	int status = 0, rc;

	__atomic_store_n(&demo->load.moving, true, __ATOMIC_RELAXED);
	rc = vmm_move_out(demo->machine, demo->peer.uri, &params, &demo->move, err);
	while (rc >= 0 && !vmm_move_ended(demo->move, &status, err)) {
		show_progress(demo, began_ns, tty, &round);
		rc = gr_loop_step(demo->loop, (tty ? SHOW_MS : SHOW_MS / 10) * NS_PER_MS, err);
		vmm_move_stats(demo->move, &stats);
		if (is_stuck(&patience, stats.transferred_bytes, STUCK_MS)) {
			stuck = true;
			vmm_move_cancel(demo->move);
		}
	}
	demo->wall_ns = now_ns() - began_ns;
	if (tty) {
		(void)fputs("\r\033[K", stderr);
	}
	if (rc >= 0 && status == -ECANCELED && stuck) {
		return gr_error_set(err, -ETIMEDOUT, "the move stands still");
	}
	return rc < 0 ? rc : status;
}

/* What is over there: every word before it runs, then it runs, then every word again. */
static int check_guest(struct demo *demo, struct gr_error *err)
{
	int rc = demo_peer_check(&demo->peer, &demo->at_switch, err);

	if (rc < 0 || demo->at_switch.pages_wrong > 0) {
		return rc; /* a damaged guest is not let run */
	}
	rc = demo_peer_live(&demo->peer, &demo->life, err);
	return rc < 0 ? rc : demo_peer_check(&demo->peer, &demo->later, err);
}

static int play(struct demo *demo, struct gr_error *err)
{
	int rc = demo_measure_link(&demo->link_bytes_per_s, err);
	struct gr_error load_err;

	if (rc < 0) {
		return rc;
	}
	/* the share is the hot set's; pages written once come on top */
	demo->rate_bytes_per_s =
		demo->link_bytes_per_s / 100 * DIRTY_PERCENT * ONCE_EVERY / (ONCE_EVERY - 1);
	rc = start_guest(demo, err);
	rc = rc < 0 ? rc : move_guest(demo, err);
	rc = rc < 0 ? rc : check_guest(demo, err);
	if (demo_load_stop(&demo->load, &load_err) < 0 && rc == 0) {
		*err = load_err;
		rc = load_err.code;
	}
	if (rc == 0) {
		demo->plugged = demo->load.plugged;
		demo->unplugged = demo->load.unplugged;
		demo->alive = vmm_machine_plugs_alive(demo->machine);
		vmm_move_stats(demo->move, &demo->stats);
	}
	return rc;
}

static uint64_t pages_wrong(const struct demo *demo)
{
	return demo->at_switch.pages_wrong > 0 ? demo->at_switch.pages_wrong
					       : demo->later.pages_wrong;
}

static bool passed(const struct demo *demo)
{
	return pages_wrong(demo) == 0 && demo->life.runs &&
	       demo->at_switch.pages_checked * VMM_PAGE_BYTES == demo->options.memory_bytes &&
	       demo->plugged >= DEMO_PLUGS_MIN && demo->unplugged >= DEMO_PLUGS_MIN &&
	       demo->alive >= DEMO_ALIVE_MIN;
}

/* What the guest's clock saw, without the time it stood still only to be checked. */
static uint64_t downtime_ns(const struct demo *demo)
{
	return demo->life.gap_ns > demo->at_switch.took_ns
		       ? demo->life.gap_ns - demo->at_switch.took_ns
		       : 0;
}

static uint64_t throughput(const struct demo *demo)
{
	return (uint64_t)((double)demo->stats.transferred_bytes * 1e9 / (double)demo->wall_ns);
}

static void print_json(const struct demo *demo)
{
	const struct demo_check *check = &demo->at_switch;
	struct json j;

	json_begin(&j, stdout);
	json_put_string(&j, "accelerator", vmm_machine_accel_name(demo->machine));
	json_put_string(&j, "tracker", demo->tracker);
	json_put_uint(&j, "rounds", demo->stats.rounds);
	json_put_uint(&j, "pages_sent", demo->stats.normal_pages);
	json_put_uint(&j, "pages_zero", demo->stats.zero_pages);
	json_put_uint(&j, "bytes_sent", demo->stats.transferred_bytes);
	json_put_uint(&j, "throughput_bytes_per_s", throughput(demo));
	json_put_uint(&j, "downtime_ns", downtime_ns(demo));
	json_put_uint(&j, "blocks_plugged", demo->plugged);
	json_put_uint(&j, "blocks_unplugged", demo->unplugged);
	json_put_uint(&j, "blocks_alive_at_switchover", demo->alive);
	json_put_uint(&j, "pages_checked", check->pages_checked);
	json_put_uint(&j, "plugged_pages_checked", check->plugged_pages_checked);
	json_put_uint(&j, "device_pages_checked", check->device_pages_checked);
	json_put_uint(&j, "pages_written_once", check->pages_written_once);
	json_put_uint(&j, "pages_last_written_before_final_round",
		      check->pages_last_written_before_final_round);
	json_put_uint(&j, "pages_wrong", pages_wrong(demo));
	json_put_bool(&j, "guest_resumed", demo->life.runs);
	json_end(&j);
}

static void print_guest_and_move(const struct demo *demo)
{
	char a[24], b[24], c[24];

	(void)printf("guest     %s, %u vCPUs (%s) and a device; tracker %s\n",
		     tool_format_size(demo->options.memory_bytes, a, sizeof(a)),
		     demo->options.vcpus, vmm_machine_accel_name(demo->machine), demo->tracker);
	(void)printf("link      %s/s measured; the guest dirties %d %% of that, and pages once\n"
		     "          on top: %s/s in all\n",
		     tool_format_size(demo->link_bytes_per_s, a, sizeof(a)), DIRTY_PERCENT,
		     tool_format_size(demo->rate_bytes_per_s, b, sizeof(b)));
	(void)printf("move      %.2f s, %" PRIu64 " rounds, %s on the wire, %s/s\n",
		     (double)demo->wall_ns / 1e9, demo->stats.rounds,
		     tool_format_size(demo->stats.transferred_bytes, a, sizeof(a)),
		     tool_format_size(throughput(demo), c, sizeof(c)));
	(void)printf("pages     %" PRIu64 " sent, %" PRIu64 " zero (%" PRIu64 " never touched)\n",
		     demo->stats.normal_pages, demo->stats.zero_pages, demo->stats.untouched_pages);
	(void)printf("blocks    %u plugged, %u unplugged during the move, %" PRIu64
		     " alive at switch-over;\n          %" PRIu64 " lookups without a lock\n",
		     demo->plugged, demo->unplugged, demo->alive, demo->load.lookups);
}

static void print_text(const struct demo *demo)
{
	const struct demo_check *check = &demo->at_switch;

	print_guest_and_move(demo);
	(void)printf("checked   %" PRIu64 " pages of RAM, %" PRIu64 " of plugged blocks, %" PRIu64
		     " with the device's words\n",
		     check->pages_checked, check->plugged_pages_checked,
		     check->device_pages_checked);
	(void)printf("          %" PRIu64 " pages were written once, %" PRIu64
		     " of them before the last rounds\n",
		     check->pages_written_once, check->pages_last_written_before_final_round);
	if (pages_wrong(demo) > 0) {
		(void)printf("WRONG     %" PRIu64 " pages; the first: %s\n", pages_wrong(demo),
			     check->pages_wrong > 0 ? check->first_wrong : demo->later.first_wrong);
		return;
	}
	(void)printf("downtime  %.1f ms as the guest saw it (and %.0f ms to check it, which are\n"
		     "          not counted)\n",
		     (double)downtime_ns(demo) / 1e6, (double)check->took_ns / 1e6);
	(void)printf("guest     %s there: %" PRIu64 " operations, %" PRIu64
		     " heartbeats, and every word right again\n",
		     demo->life.runs ? "runs on" : "DOES NOT RUN ON", demo->life.ops,
		     demo->life.beats);
	if (demo->plugged < DEMO_PLUGS_MIN || demo->unplugged < DEMO_PLUGS_MIN ||
	    demo->alive < DEMO_ALIVE_MIN) {
		(void)printf("FAILED    too few blocks came and went\n");
		return;
	}
	(void)printf("every word of every page is right\n");
}

static int run(int argc, char **argv)
{
	struct demo demo = { 0 };
	struct gr_error err = { .msg = "" }, stop_err;
	int status = parse_options(argc, argv, &demo.options), rc;

	if (status != TOOL_OK) {
		return status;
	}
	/* first of all, while this process has no threads */
	if (demo_peer_start(&demo.peer, &demo.options, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	rc = gr_loop_create(NULL, &demo.loop, &err);
	rc = rc < 0 ? rc : play(&demo, &err);
	if (demo_peer_stop(&demo.peer, &stop_err) < 0 && rc == 0) {
		err = stop_err;
		rc = err.code;
	}
	(void)demo_load_stop(&demo.load, NULL);
	if (rc < 0) {
		status = tool_error("%s", err.msg);
	} else {
		(demo.options.json ? print_json : print_text)(&demo);
		status = passed(&demo) ? TOOL_OK : TOOL_NO;
	}
	vmm_move_free(demo.move);
	vmm_machine_free(demo.machine);
	gr_loop_free(demo.loop);
	return status;
}

const struct verb verb_demo = {
	.name = "demo",
	.help = "move a running guest to a second process, and check it",
	.usage =
		"Usage: guestram demo [OPTIONS]\n"
		"\n"
		"Starts a guest that keeps writing its memory, moves it to a second process while\n"
		"blocks of RAM are plugged and unplugged, checks every word over there, lets the\n"
		"guest run on, and checks every word again.\n"
		"\n"
		"  -m, --memory SIZE      the guest's RAM (default 512M)\n"
		"  --accel kvm|threads    what runs the guest (default: kvm where it works)\n"
		"  --inject FAULT         damage the move, to see that it is found out:\n"
		"                           lose-page        one page a round is not sent\n"
		"                           early-read       pages are read before their dirty\n"
		"                                            bits are taken\n"
		"                           skip-final-sync  no last look for dirty pages after\n"
		"                                            the guest was stopped\n"
		"  --json                 the result as one JSON object\n"
		"\n"
		"Exit status: 0 every word is right and the guest runs on, 1 not so, 2 error.\n",
	.fn = run,
};

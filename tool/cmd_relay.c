/* SPDX-License-Identifier: MIT */
/* guestram relay: a migration passed on while it runs. */
#include "json.h"
#include "progress.h"
#include "tool.h"
#include <getopt.h>
#include <guestram/log.h>
#include <guestram/relay.h>
#include <stdio.h>

static void print_result(const char *from, const char *to, bool as_json,
			 const struct gr_migrate_stats *stats)
{
	char wire[24];
	struct json j;

	if (!as_json) {
		(void)printf("passed on %s in %.3f s: %llu pages, %llu zero, %llu as differences\n",
			     tool_format_size(stats->transferred_bytes, wire, sizeof(wire)),
			     (double)stats->total_time_ns / 1e9,
			     (unsigned long long)stats->normal_pages,
			     (unsigned long long)stats->zero_pages,
			     (unsigned long long)stats->xbzrle_pages);
		return;
	}
	json_begin(&j, stdout);
	json_put_string(&j, "from", from);
	json_put_string(&j, "to", to);
	json_put_uint(&j, "ram_bytes", stats->total_bytes);
	json_put_uint(&j, "bytes_passed", stats->transferred_bytes);
	json_put_uint(&j, "rounds", stats->rounds);
	json_put_uint(&j, "pages_normal", stats->normal_pages);
	json_put_uint(&j, "pages_zero", stats->zero_pages);
	json_put_uint(&j, "pages_xbzrle", stats->xbzrle_pages);
	json_put_uint(&j, "total_time_ns", stats->total_time_ns);
	json_end(&j);
}

static void remark(enum gr_log_level level, const char *msg, void *opaque)
{
	(void)opaque;
	if (level == GR_LOG_WARN) {
		(void)tool_error("warning: %s", msg);
	}
}

/* Whatever can fail without the source comes before it: the destination. */
static int open_both(struct gr_channel_listener *listener, const char *to_uri,
		     struct gr_channel **ret_from, struct gr_channel **ret_to, struct gr_error *err)
{
	int rc = gr_channel_connect(to_uri, ret_to, err);

	if (rc < 0) {
		gr_channel_listener_close(listener);
		return rc;
	}
	rc = tool_accept(listener, ret_from, err);
	if (rc < 0) {
		(void)gr_channel_close(*ret_to, NULL);
	}
	return rc;
}

/* From what gives one channel: a file, a command, a descriptor. */
static int relay_one(struct gr_channel_listener *listener, const char *to_uri,
		     const struct gr_relay_params *params, struct gr_migrate_stats *stats,
		     struct gr_error *err)
{
	struct gr_channel *from, *to;
	struct gr_error from_err, to_err;
	int rc = open_both(listener, to_uri, &from, &to, err), from_rc, to_rc;

	if (rc < 0) {
		return rc;
	}
	rc = gr_relay(from, to, params, stats, err);
	to_rc = gr_channel_close(to, &to_err);
	from_rc = gr_channel_close(from, &from_err);
	if (rc < 0) {
		return rc;
	}
	if (to_rc < 0) {
		*err = to_err;
		return to_rc;
	}
	if (from_rc < 0 && params->allow_unterminated) {
		*err = from_err; /* a command that failed: nothing else says that it was cut short
				  */
		return from_rc;
	}
	if (from_rc < 0) {
		(void)tool_error("warning: %s", from_err.msg);
	}
	return 0;
}

static int relay(const char *from_uri, const char *to_uri, struct gr_relay_params *params,
		 struct gr_migrate_stats *stats, struct gr_error *err)
{
	struct gr_channel_listener *listener;
	struct progress progress;
	int rc = tool_listen(from_uri, &listener, err);

	if (rc < 0) {
		return rc;
	}
	gr_log_set_handler(remark, NULL);
	progress_begin(&progress, "passing on");
	params->progress = progress_show;
	params->opaque = &progress;
	if (gr_channel_listener_fd(listener) >= 0) {
		rc = gr_relay_serve(listener, to_uri, params, stats, err);
		gr_channel_listener_close(listener);
	} else {
		rc = relay_one(listener, to_uri, params, stats, err);
	}
	progress_end(&progress);
	return rc;
}

static int run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "allow-unterminated", no_argument, NULL, 'u' },
		{ "json", no_argument, NULL, 'j' },
		{ NULL, 0, NULL, 0 },
	};
	struct gr_relay_params params = { .size = sizeof(params) };
	struct gr_migrate_stats stats = { 0 };
	struct gr_error err = { 0 };
	bool as_json = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'u':
			params.allow_unterminated = true;
			break;
		case 'j':
			as_json = true;
			break;
		default:
			return tool_usage_error(&verb_relay, NULL);
		}
	}
	if (argc - optind != 2) {
		return tool_usage_error(&verb_relay, "needs two URIs");
	}
	if (relay(argv[optind], argv[optind + 1], &params, &stats, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	print_result(argv[optind], argv[optind + 1], as_json, &stats);
	return TOOL_OK;
}

const struct verb verb_relay = {
	.name = "relay",
	.help = "pass a migration on while it runs, checking it on its way",
	.usage =
		"Usage: guestram relay FROM TO [--allow-unterminated] [--json]\n"
		"\n"
		"Waits at FROM for what a QEMU sends with `migrate FROM`, connects to TO, where\n"
		"another waits (-incoming TO), and passes it on record by record. No page is\n"
		"kept. Device state goes out as it came in, answers go back to a source that asks\n"
		"for them (capability return-path). Between sockets all channels of a source are\n"
		"passed on (capability multifd); nothing is to be set here.\n"
		"\n"
		"URI: tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND, file:PATH[,offset=N]\n"
		"\n"
		"  --allow-unterminated   a stream without closing description is whole too\n"
		"  --json                 the result as one JSON object\n",
	.fn = run,
};

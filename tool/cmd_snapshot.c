/* SPDX-License-Identifier: MIT */
/* guestram snapshot: an image of a running machine of ours. */
#include "json.h"
#include "qmp_client.h"
#include "tool.h"
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CONNECT_MS = 2000, POLL_MS = 50 };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
	(void)sig;
	interrupted = 1;
}

/* Until it is over, or asking fails. An interrupt cancels it. */
static int wait_for_end(struct vmm_qmp_client *client, json_t **ret_state, struct gr_error *err)
{
	const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };
	bool cancelled = false;
	json_t *state = NULL;
	int rc = 0;

	while (rc == 0 && !vmm_qmp_has_ended(state)) {
		json_decref(state);
		state = NULL;
		(void)nanosleep(&pause, NULL);
		if (interrupted && !cancelled) {
			cancelled = true;
			rc = vmm_qmp_execute(client, "x-snapshot-cancel", NULL, NULL, err);
		}
		rc = rc < 0 ? rc : vmm_qmp_execute(client, "x-query-snapshot", NULL, &state, err);
	}
	*ret_state = state;
	return rc;
}

static void put_stalls(struct json *j, const char *name, const json_t *stalls)
{
	json_put_object(j, name);
	json_put_uint(j, "count", vmm_qmp_number(stalls, "count"));
	json_put_uint(j, "total_ns", vmm_qmp_number(stalls, "total-ns"));
	json_put_uint(j, "max_ns", vmm_qmp_number(stalls, "max-ns"));
	json_put_uint(j, "p99_ns", vmm_qmp_number(stalls, "p99-ns"));
	json_end(j);
}

static void print_json(const json_t *state, const char *path)
{
	struct json j;

	json_begin(&j, stdout);
	json_put_string(&j, "image", path);
	json_put_string(&j, "status", vmm_qmp_text(state, "status"));
	json_put_string(&j, "error", vmm_qmp_text(state, "error-desc"));
	json_put_uint(&j, "ram_bytes", vmm_qmp_number(state, "total"));
	json_put_uint(&j, "bytes_written", vmm_qmp_number(state, "transferred"));
	json_put_uint(&j, "downtime_ns", vmm_qmp_number(state, "downtime-ns"));
	json_put_uint(&j, "total_time_ns", vmm_qmp_number(state, "total-time-ns"));
	json_put_uint(&j, "pages_copied", vmm_qmp_number(state, "copied-pages"));
	json_put_uint(&j, "buffer_bytes_max", vmm_qmp_number(state, "buffered-max"));
	put_stalls(&j, "stalls", json_object_get(state, "stalls"));
	put_stalls(&j, "stalls_when_full", json_object_get(state, "stalls-when-full"));
	json_end(&j);
}

static void print_stalls(const char *what, const json_t *stalls)
{
	(void)printf("%s: %llu stores waited, at most %.3f ms, 99 of 100 not above %.3f ms\n", what,
		     (unsigned long long)vmm_qmp_number(stalls, "count"),
		     (double)vmm_qmp_number(stalls, "max-ns") / 1e6,
		     (double)vmm_qmp_number(stalls, "p99-ns") / 1e6);
}

static void print_text(const json_t *state, const char *path)
{
	char ram[24], wrote[24];

	(void)printf("%s: %s of RAM, %s written in %.3f s; the guest stood still for %.3f ms\n",
		     path, tool_format_size(vmm_qmp_number(state, "total"), ram, sizeof(ram)),
		     tool_format_size(vmm_qmp_number(state, "transferred"), wrote, sizeof(wrote)),
		     (double)vmm_qmp_number(state, "total-time-ns") / 1e9,
		     (double)vmm_qmp_number(state, "downtime-ns") / 1e6);
	print_stalls("for a copy", json_object_get(state, "stalls"));
	print_stalls("for room in the buffer", json_object_get(state, "stalls-when-full"));
}

static int snapshot(const char *qmp, json_t *arguments, const char *path, bool as_json)
{
	const struct sigaction act = { .sa_handler = on_interrupt };
	struct vmm_qmp_client *client;
	struct gr_error err;
	json_t *state = NULL;
	int rc = vmm_qmp_connect(qmp, CONNECT_MS, &client, &err);

	if (rc < 0) {
		json_decref(arguments);
		return tool_error("%s", err.msg);
	}
	(void)sigaction(SIGINT, &act, NULL);
	(void)sigaction(SIGTERM, &act, NULL);
	rc = vmm_qmp_execute(client, "x-snapshot", arguments, NULL, &err);
	rc = rc < 0 ? rc : wait_for_end(client, &state, &err);
	vmm_qmp_disconnect(client);
	if (rc < 0) {
		json_decref(state);
		return tool_error("%s", err.msg);
	}
	rc = strcmp(vmm_qmp_text(state, "status"), "completed") == 0 ? TOOL_OK : TOOL_ERROR;
	if (as_json) {
		print_json(state, path);
	} else if (rc == TOOL_OK) {
		print_text(state, path);
	}
	if (rc != TOOL_OK) {
		(void)tool_error("no snapshot: %s", vmm_qmp_text(state, "error-desc"));
	}
	json_decref(state);
	return rc;
}

/* The monitor's folder is another one than ours, perhaps. */
static int absolute(const char *path, char *ret, size_t room)
{
	char folder[PATH_MAX];
	int n;

	if (path[0] == '/') {
		n = snprintf(ret, room, "%s", path);
	} else if (!realpath(".", folder)) {
		return -errno;
	} else {
		n = snprintf(ret, room, "%s/%s", folder, path);
	}
	return n < 0 || (size_t)n >= room ? -ENAMETOOLONG : 0;
}

static int run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "buffer", required_argument, NULL, 'b' },
		{ "json", no_argument, NULL, 'j' },
		{ "qmp", required_argument, NULL, 'q' },
		{ "rate", required_argument, NULL, 'r' },
		{ "when-full", required_argument, NULL, 'w' },
		{ NULL, 0, NULL, 0 },
	};
	char path[PATH_MAX];
	uint64_t buffer = 0, rate = 0;
	const char *qmp = NULL, *when_full = "wait";
	bool as_json = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'j') {
			as_json = true;
		} else if (c == 'q') {
			qmp = optarg;
		} else if (c == 'w') {
			when_full = optarg;
		} else if (c == 'b' || c == 'r') {
			if (tool_parse_size(optarg, c == 'b' ? &buffer : &rate) < 0) {
				return tool_usage_error(&verb_snapshot, "not a size: '%s'", optarg);
			}
		} else {
			return tool_usage_error(&verb_snapshot, NULL);
		}
	}
	if (argc - optind != 1 || !qmp) {
		return tool_usage_error(&verb_snapshot, "needs --qmp unix:PATH and a file");
	}
	if (strcmp(when_full, "wait") != 0 && strcmp(when_full, "abort") != 0) {
		return tool_usage_error(&verb_snapshot, "--when-full is wait or abort");
	}
	if (absolute(argv[optind], path, sizeof(path)) < 0) {
		return tool_error("%s: no such path", argv[optind]);
	}
	return snapshot(qmp,
			json_pack("{ss sI sI ss}", "filename", path, "buffer-bytes",
				  (json_int_t)buffer, "max-bandwidth", (json_int_t)rate,
				  "when-full", when_full),
			argv[optind], as_json);
}

const struct verb verb_snapshot = {
	.name = "snapshot",
	.help = "save a running machine without stopping it",
	.usage = "Usage: guestram snapshot --qmp unix:PATH FILE [OPTIONS]\n"
		 "\n"
		 "Has the monitor of a running machine (`guestram run`) save it into the image "
		 "FILE as\n"
		 "it is at one moment, while it runs on. Pages that the guest is about to "
		 "overwrite\n"
		 "are copied into a buffer first. FILE appears when it is whole; `guestram send`\n"
		 "brings it back. An interrupt cancels.\n"
		 "\n"
		 "  --qmp unix:PATH    the monitor\n"
		 "  --buffer SIZE      room for copies (default 64M)\n"
		 "  --when-full WHAT   wait: stores wait for the disk (default); abort: the "
		 "snapshot\n"
		 "                     is given up\n"
		 "  --rate SIZE        write at most so much per second\n"
		 "  --json             the result as one JSON object\n",
	.fn = run,
};

/* SPDX-License-Identifier: MIT */
/* guestram migrate: asks a running machine, over its monitor, to move. */
#include "json.h"
#include "qmp_client.h"
#include "tool.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { POLL_MS = 100, CONNECT_MS = 2000 };

struct migrate_options {
	json_t *capabilities; /* as QMP takes them */
	json_t *parameters;
	const char *qmp;
	const char *uri;
	bool json;
	struct tool_multifd multifd;
};

static void add_capability(struct migrate_options *o, const char *name)
{
	bool state = *name != '-';

	(void)json_array_append_new(
		o->capabilities,
		json_pack("{sssb}", "capability", state ? name : name + 1, "state", state));
}

/* NAME=VALUE, a number or a size. */
static int add_parameter(struct migrate_options *o, const char *text)
{
	const char *equals = strchr(text, '=');
	uint64_t value;
	char name[64];

	if (!equals || equals == text || (size_t)(equals - text) >= sizeof(name) ||
	    tool_parse_size(equals + 1, &value) < 0 || value > INT64_MAX) {
		return tool_usage_error(&verb_migrate, "not NAME=NUMBER: '%s'", text);
	}
	(void)snprintf(name, sizeof(name), "%.*s", (int)(equals - text), text);
	(void)json_object_set_new(o->parameters, name, json_integer((json_int_t)value));
	return TOOL_OK;
}

static int parse_options(int argc, char **argv, struct migrate_options *o)
{
	static const struct option options[] = {
		{ "capability", required_argument, NULL, 'C' },
		{ "json", no_argument, NULL, 'j' },
		{ "parameter", required_argument, NULL, 'p' },
		{ "qmp", required_argument, NULL, 'q' },
		{ "multifd", required_argument, NULL, 'm' },
		{ "multifd-compression", required_argument, NULL, 'c' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	*o = (struct migrate_options){ .capabilities = json_array(), .parameters = json_object() };
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'j') {
			o->json = true;
		} else if (c == 'q') {
			o->qmp = optarg;
		} else if (c == 'C') {
			add_capability(o, optarg);
		} else if (c == 'p') {
			if (add_parameter(o, optarg) != TOOL_OK) {
				return TOOL_ERROR;
			}
		} else if (!tool_multifd_option(&o->multifd, &verb_migrate, c, optarg)) {
			return TOOL_ERROR;
		}
	}
	if (argc - optind != 1) {
		return tool_usage_error(&verb_migrate, "needs one URI");
	}
	if (!o->qmp) {
		return tool_usage_error(&verb_migrate, "needs --qmp unix:PATH");
	}
	o->uri = argv[optind];
	return TOOL_OK;
}

static void show_progress(const json_t *answer, bool tty, uint64_t *shown_round)
{
	const json_t *ram = json_object_get(answer, "ram");
	uint64_t round = vmm_qmp_number(ram, "dirty-sync-count");
	char sent[24], left[24];

	if (!ram || (!tty && round == *shown_round)) {
		return;
	}
	*shown_round = round;
	(void)fprintf(stderr, "%sround %" PRIu64 ": sent %s, %s remaining, %.0f Mbit/s%s",
		      tty ? "\r" : "", round,
		      tool_format_size(vmm_qmp_number(ram, "transferred"), sent, sizeof(sent)),
		      tool_format_size(vmm_qmp_number(ram, "remaining"), left, sizeof(left)),
		      json_number_value(json_object_get(ram, "mbps")), tty ? "\033[K" : "\n");
}

/* Ask until it has ended. */
static int follow(struct vmm_qmp_client *client, json_t **ret_answer, struct gr_error *err)
{
	const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };
	const bool tty = isatty(STDERR_FILENO) == 1;
	uint64_t round = 0;

	for (;;) {
		json_t *answer = NULL;
		int rc = vmm_qmp_execute(client, "query-migrate", NULL, &answer, err);

		if (rc < 0) {
			return rc;
		}
		show_progress(answer, tty, &round);
		if (vmm_qmp_has_ended(answer)) {
			if (tty) {
				(void)fputs("\r\033[K", stderr);
			}
			*ret_answer = answer;
			return 0;
		}
		json_decref(answer);
		(void)nanosleep(&pause, NULL);
	}
}

static void print_json(const json_t *answer)
{
	const json_t *ram = json_object_get(answer, "ram");
	struct json j;

	json_begin(&j, stdout);
	json_put_string(&j, "status", vmm_qmp_text(answer, "status"));
	json_put_string(&j, "error", json_string_value(json_object_get(answer, "error-desc")));
	json_put_uint(&j, "total_time_ms", vmm_qmp_number(answer, "total-time"));
	json_put_uint(&j, "setup_time_ms", vmm_qmp_number(answer, "setup-time"));
	json_put_uint(&j, "downtime_ms", vmm_qmp_number(answer, "downtime"));
	json_put_uint(&j, "rounds", vmm_qmp_number(ram, "dirty-sync-count"));
	json_put_uint(&j, "bytes_sent", vmm_qmp_number(ram, "transferred"));
	json_put_uint(&j, "ram_bytes", vmm_qmp_number(ram, "total"));
	json_put_uint(&j, "pages_normal", vmm_qmp_number(ram, "normal"));
	json_put_uint(&j, "pages_zero", vmm_qmp_number(ram, "duplicate"));
	json_end(&j);
}

static int report(const struct migrate_options *o, const json_t *answer)
{
	const json_t *ram = json_object_get(answer, "ram");
	const char *status = vmm_qmp_text(answer, "status");
	const char *why = json_string_value(json_object_get(answer, "error-desc"));
	char sent[24];

	if (o->json) {
		print_json(answer);
	} else if (strcmp(status, "completed") == 0) {
		(void)printf(
			"completed in %.3f s: %s in %" PRIu64 " rounds, downtime %" PRIu64 " ms\n",
			(double)vmm_qmp_number(answer, "total-time") / 1000,
			tool_format_size(vmm_qmp_number(ram, "transferred"), sent, sizeof(sent)),
			vmm_qmp_number(ram, "dirty-sync-count"),
			vmm_qmp_number(answer, "downtime"));
	} else {
		(void)printf("%s%s%s\n", status, why ? ": " : "", why ? why : "");
	}
	return strcmp(status, "completed") == 0 ? TOOL_OK : TOOL_NO;
}

/* Both ends have to be told of further channels; this is the sending one. */
static int set_multifd(struct vmm_qmp_client *client, const struct tool_multifd *m,
		       struct gr_error *err)
{
	int rc;

	if (m->params.count == 0) {
		return 0;
	}
	rc = vmm_qmp_execute(
		client, "migrate-set-capabilities",
		json_pack("{s[{sssb}]}", "capabilities", "capability", "multifd", "state", 1), NULL,
		err);
	if (rc == 0) {
		rc = vmm_qmp_execute(client, "migrate-set-parameters",
				     json_pack("{sIss}", "multifd-channels",
					       (json_int_t)m->params.count, "multifd-compression",
					       gr_multifd_compression_name(m->params.compression)),
				     NULL, err);
	}
	return rc;
}

/* What was asked for, as far as anything was. */
static int set_up(struct vmm_qmp_client *client, const struct migrate_options *o,
		  struct gr_error *err)
{
	int rc = 0;

	if (json_array_size(o->capabilities) > 0) {
		rc = vmm_qmp_execute(client, "migrate-set-capabilities",
				     json_pack("{sO}", "capabilities", o->capabilities), NULL, err);
	}
	if (rc == 0 && json_object_size(o->parameters) > 0) {
		rc = vmm_qmp_execute(client, "migrate-set-parameters", json_incref(o->parameters),
				     NULL, err);
	}
	return rc;
}

static int move(const struct migrate_options *o)
{
	struct vmm_qmp_client *client = NULL;
	json_t *answer = NULL;
	struct gr_error err;
	int rc, status;

	rc = o->multifd.compressed && o->multifd.params.count == 0
		     ? gr_error_set(&err, -EINVAL, "--multifd-compression needs --multifd N")
		     : vmm_qmp_connect(o->qmp, CONNECT_MS, &client, &err);
	if (rc < 0) {
		return tool_error("%s", err.msg);
	}
	rc = set_up(client, o, &err);
	rc = rc < 0 ? rc : set_multifd(client, &o->multifd, &err);
	rc = rc < 0 ? rc
		    : vmm_qmp_execute(client, "migrate", json_pack("{ss}", "uri", o->uri), NULL,
				      &err);
	rc = rc < 0 ? rc : follow(client, &answer, &err);
	vmm_qmp_disconnect(client);
	if (rc < 0) {
		return tool_error("%s", err.msg);
	}
	status = report(o, answer);
	json_decref(answer);
	return status;
}

static int run(int argc, char **argv)
{
	struct migrate_options o;
	int status = parse_options(argc, argv, &o);

	if (status == TOOL_OK) {
		status = move(&o);
	}
	json_decref(o.capabilities);
	json_decref(o.parameters);
	return status;
}

const struct verb verb_migrate = {
	.name = "migrate",
	.help = "ask a running machine to move",
	.usage =
		"Usage: guestram migrate --qmp unix:PATH [OPTIONS] URI\n"
		"\n"
		"Tells the machine whose monitor listens at PATH, a `guestram run` or a QEMU, to\n"
		"move to URI, shows how far it is, and ends when the move has ended.\n"
		"\n"
		"  --qmp unix:PATH            the machine's monitor\n"
		"  --capability [-]NAME       switch a capability on, or off: xbzrle, "
		"auto-converge,\n"
		"                             pause-before-switchover, switchover-ack, "
		"x-ignore-shared,\n"
		"                             validate-uuid, background-snapshot, and with a QEMU "
		"all\n"
		"                             it has; may be given again\n"
		"  --parameter NAME=NUMBER    set a parameter, a number or a size: max-bandwidth,\n"
		"                             downtime-limit (ms), xbzrle-cache-size,\n"
		"                             throttle-trigger-threshold, cpu-throttle-initial,\n"
		"                             cpu-throttle-increment, max-cpu-throttle\n"
		"  --multifd N                pages on N further channels, for which the\n"
		"                             destination waits too\n"
		"  --multifd-compression METHOD\n"
		"                             none, zlib or zstd, as at the destination\n"
		"  --json                     the result as one JSON object\n"
		"\n"
		"URI: tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND, file:PATH[,offset=N], as the\n"
		"machine understands it.\n"
		"Exit status: 0 completed, 1 failed or cancelled, 2 error.\n",
	.fn = run,
};

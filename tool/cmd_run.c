/* SPDX-License-Identifier: MIT */
/* guestram run: the reference monitor. */
#include "monitor.h"
#include "tool.h"
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MEMORY_BYTES_DEFAULT = 128 << 20, RATE_DEFAULT = 16 << 20 };

static int parse_number(const char *text, unsigned int max, unsigned int *ret)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || value > max) {
		return -EINVAL;
	}
	*ret = (unsigned int)value;
	return 0;
}

/* What the parameters point to. */
struct run_options {
	struct tool_image_name image;
	uint8_t uuid[GR_MULTIFD_UUID_BYTES];
};

/* Those that say where the machine comes from. */
static int check_origin(const struct vmm_monitor_params *params)
{
	const struct vmm_resume_params *image = &params->image;

	if (image->path && params->incoming) {
		return tool_usage_error(&verb_run, "--image and --incoming exclude each other");
	}
	if ((image->lazy && !image->path) || (image->bandwidth_bytes_per_s_max && !image->lazy)) {
		return tool_usage_error(&verb_run, "--lazy needs --image, --lazy-rate needs --lazy");
	}
	if (image->lazy && params->machine.memory_file) {
		return tool_usage_error(&verb_run, "--lazy and --memory-file exclude each other: a "
						   "file's memory has to come at once");
	}
	return TOOL_OK;
}

static int parse_options(int argc, char **argv, struct vmm_monitor_params *params,
			 struct run_options *o)
{
	static const struct option options[] = {
		{ "accel", required_argument, NULL, 'a' },
		{ "flat", required_argument, NULL, 'f' },
		{ "image", required_argument, NULL, 'I' },
		{ "incoming", required_argument, NULL, 'i' },
		{ "lazy", no_argument, NULL, 'l' },
		{ "lazy-rate", required_argument, NULL, 'L' },
		{ "memory", required_argument, NULL, 'm' },
		{ "memory-file", required_argument, NULL, 'M' },
		{ "paused", no_argument, NULL, 'S' },
		{ "qmp", required_argument, NULL, 'q' },
		{ "rate", required_argument, NULL, 'r' },
		{ "uuid", required_argument, NULL, 'U' },
		{ "vcpus", required_argument, NULL, 'c' },
		{ NULL, 0, NULL, 0 },
	};
	struct gr_error err;
	int c;

	while ((c = getopt_long(argc, argv, "m:S", options, NULL)) != -1) {
		switch (c) {
		case 'a':
			params->machine.accel = optarg;
			break;
		case 'f':
			params->machine.flat = optarg;
			break;
		case 'i':
			params->incoming = optarg;
			break;
		case 'm':
			if (tool_parse_size(optarg, &params->machine.memory_bytes) < 0) {
				return tool_usage_error(&verb_run, "not a size: '%s'", optarg);
			}
			break;
		case 'I':
			if (tool_image_name(optarg, &o->image, &err) < 0) {
				return tool_usage_error(&verb_run, "%s", err.msg);
			}
			params->image.path = o->image.path;
			params->image.offset = o->image.offset;
			break;
		case 'l':
			params->image.lazy = true;
			break;
		case 'L':
			if (tool_parse_size(optarg, &params->image.bandwidth_bytes_per_s_max) < 0 ||
			    params->image.bandwidth_bytes_per_s_max == 0) {
				return tool_usage_error(&verb_run, "not a rate of loading: '%s'",
							optarg);
			}
			break;
		case 'M':
			params->machine.memory_file = optarg;
			break;
		case 'U':
			if (tool_parse_uuid(optarg, o->uuid) < 0) {
				return tool_usage_error(&verb_run, "not a UUID: '%s'", optarg);
			}
			params->machine.uuid = o->uuid;
			break;
		case 'S':
			params->paused = true;
			break;
		case 'q':
			params->qmp = optarg;
			break;
		case 'r':
			if (tool_parse_size(optarg, &params->machine.rate_bytes_per_s) < 0) {
				return tool_usage_error(&verb_run, "not a rate: '%s'", optarg);
			}
			break;
		case 'c':
			if (parse_number(optarg, VMM_WRITERS_MAX - 1, &params->machine.vcpus) < 0 ||
			    params->machine.vcpus == 0) {
				return tool_usage_error(&verb_run, "1 to %d vCPUs, not '%s'",
							VMM_WRITERS_MAX - 1, optarg);
			}
			break;
		default:
			return tool_usage_error(&verb_run, NULL);
		}
	}
	if (optind < argc) {
		return tool_usage_error(&verb_run, "unexpected argument '%s'", argv[optind]);
	}
	return check_origin(params);
}

static void say(void *opaque, const char *line)
{
	(void)opaque;
	(void)fprintf(stderr, "%s\n", line);
}

static int run(int argc, char **argv)
{
	struct vmm_monitor_params params = {
		.machine = { .memory_bytes = MEMORY_BYTES_DEFAULT,
			     .vcpus = 1,
			     .rate_bytes_per_s = RATE_DEFAULT,
			     .debug_fd = STDOUT_FILENO },
		.say = say,
	};
	struct run_options o;
	struct gr_error err;
	int status = parse_options(argc, argv, &params, &o);

	if (status != TOOL_OK) {
		return status;
	}
	if (vmm_monitor_run(&params, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	return TOOL_OK;
}

const struct verb verb_run = {
	.name = "run",
	.help = "run a small guest that can be moved",
	.usage =
		"Usage: guestram run [OPTIONS]\n"
		"\n"
		"Runs a guest: a workload that writes its memory in a way that can be checked, or\n"
		"a flat image of yours. Ends with the monitor's `quit`, SIGTERM or SIGINT.\n"
		"\n"
		"  -m, --memory SIZE     guest RAM, 1M to 3G (default 128M)\n"
		"  --accel kvm|threads   what runs the guest (default: kvm where it works)\n"
		"  --vcpus N             how many vCPUs (default 1)\n"
		"  --flat FILE           load a flat image to 0x7c00 and start it there in real\n"
		"                        mode (needs KVM); what it writes to port 0xe9 goes to\n"
		"                        standard output\n"
		"  --qmp unix:PATH       serve QMP there: query-commands lists what it knows\n"
		"  --incoming URI        receive the machine from there before it runs; the other\n"
		"                        options must be those of the source; defer: from where\n"
		"                        the monitor's `migrate-incoming` says\n"
		"  --image FILE          bring the machine from an image, of `guestram snapshot` or\n"
		"                        `guestram receive`, also file:PATH,offset=N; the other\n"
		"                        options as for --incoming\n"
		"  --lazy                with --image: it runs at once, its memory comes while it\n"
		"                        does (needs userfaultfd, not with --memory-file); until all\n"
		"                        has come it cannot be stopped, moved or saved\n"
		"  --lazy-rate SIZE      so many bytes a second ahead of what it asks for, at most\n"
		"  --memory-file FILE    its RAM is this file, which others may map too; with\n"
		"                        capability x-ignore-shared it does not travel\n"
		"  --uuid UUID           the machine's; told with capability validate-uuid\n"
		"  -S, --paused          do not run before the monitor's `cont`\n"
		"  --rate SIZE           the workload dirties so many bytes a second (default "
		"16M)\n"
		"\n"
		"URI: tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND, file:PATH[,offset=N]\n",
	.fn = run,
};

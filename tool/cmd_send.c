/* SPDX-License-Identifier: MIT */
/* guestram send: an image into a QEMU that waits with -incoming. */
#include "json.h"
#include "progress.h"
#include "tool.h"
#include <getopt.h>
#include <guestram/image.h>
#include <stdio.h>

static void print_result(const char *path, const char *uri, bool as_json,
			 const struct gr_migrate_stats *stats)
{
	char wire[24];
	struct json j;

	if (!as_json) {
		(void)printf("sent %s in %.3f s: %llu pages, %llu zero\n",
			     tool_format_size(stats->transferred_bytes, wire, sizeof(wire)),
			     (double)stats->total_time_ns / 1e9,
			     (unsigned long long)stats->normal_pages,
			     (unsigned long long)stats->zero_pages);
		return;
	}
	json_begin(&j, stdout);
	json_put_string(&j, "image", path);
	json_put_string(&j, "uri", uri);
	json_put_uint(&j, "ram_bytes", stats->total_bytes);
	json_put_uint(&j, "bytes_sent", stats->transferred_bytes);
	json_put_uint(&j, "pages_normal", stats->normal_pages);
	json_put_uint(&j, "pages_zero", stats->zero_pages);
	json_put_uint(&j, "total_time_ns", stats->total_time_ns);
	json_end(&j);
}

static int send_image(struct gr_image *image, const char *path, const char *uri, bool as_json,
		      struct tool_multifd *multifd)
{
	struct gr_image_params params = { .size = sizeof(params), .progress = progress_show };
	struct gr_migrate_stats stats = { 0 };
	struct progress progress;
	struct gr_error err, close_err;
	int rc, close_rc;

	if (tool_multifd_connect(multifd, uri, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	progress_begin(&progress, "sending");
	params.opaque = &progress;
	params.multifd = tool_multifd_params(multifd);
	rc = gr_image_send(image, multifd->main, &params, &stats, &err);
	progress_end(&progress);
	close_rc = tool_multifd_close(multifd, &close_err);
	if (rc < 0) {
		return tool_error("%s", err.msg);
	}
	if (close_rc < 0) {
		return tool_error("%s", close_err.msg);
	}
	print_result(path, uri, as_json, &stats);
	return TOOL_OK;
}

static int run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "multifd", required_argument, NULL, 'm' },
		{ "multifd-compression", required_argument, NULL, 'c' },
		{ "uuid", required_argument, NULL, 'U' },
		{ NULL, 0, NULL, 0 },
	};
	struct tool_multifd multifd = { 0 };
	struct gr_image *image;
	struct gr_error err;
	bool as_json = false;
	uint8_t uuid[GR_MULTIFD_UUID_BYTES];
	int c, status;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'j') {
			as_json = true;
		} else if (c == 'U') {
			if (tool_parse_uuid(optarg, uuid) < 0) {
				return tool_usage_error(&verb_send, "not a UUID: '%s'", optarg);
			}
			multifd.params.uuid = uuid;
		} else if (!tool_multifd_option(&multifd, &verb_send, c, optarg)) {
			return TOOL_ERROR;
		}
	}
	if (argc - optind != 2) {
		return tool_usage_error(&verb_send, "needs an image and a URI");
	}
	if (multifd.params.uuid && multifd.params.count == 0) {
		return tool_error("--uuid needs --multifd N: it is told on further channels only");
	}
	if (tool_multifd_check(&multifd, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	if (tool_image_open(argv[optind], &image, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	status = send_image(image, argv[optind], argv[optind + 1], as_json, &multifd);
	gr_image_close(image);
	return status;
}

const struct verb verb_send = {
	.name = "send",
	.help = "send an image to a QEMU that waits for a migration",
	.usage = "Usage: guestram send FILE URI [--multifd N]\n"
		 "                     [--multifd-compression none|zlib|zstd] [--uuid UUID] [--json]\n"
		 "\n"
		 "Sends the image FILE as a migration stream to URI, where a QEMU of the same\n"
		 "version and with the same machine and devices waits (-incoming URI). Device\n"
		 "state goes out as it came in.\n"
		 "\n"
		 "URI: tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND, file:PATH[,offset=N]\n"
		 "\n"
		 "  --multifd N            pages on N further channels: the QEMU has capability multifd\n"
		 "                         and multifd-channels N (tcp: and unix: only)\n"
		 "  --multifd-compression METHOD\n"
		 "                         its multifd-compression: none, zlib or zstd\n"
		 "  --uuid UUID            with --multifd: the QEMU's -uuid, which it looks for on them\n"
		 "  --json                 the result as one JSON object\n",
	.fn = run,
};

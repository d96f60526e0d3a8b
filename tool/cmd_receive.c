/* SPDX-License-Identifier: MIT */
/* guestram receive: a running machine's RAM and device state into a file. */
#include "json.h"
#include "progress.h"
#include "tool.h"
#include <getopt.h>
#include <guestram/image.h>
#include <stdio.h>

struct receive_options {
	const char *uri;
	const char *output;
	bool allow_unterminated;
	bool json;
	bool has_uuid;
	uint8_t uuid[GR_MULTIFD_UUID_BYTES];
	struct tool_multifd multifd;
};

static int parse_options(int argc, char **argv, struct receive_options *o)
{
	static const struct option options[] = {
		{ "output", required_argument, NULL, 'o' },
		{ "allow-unterminated", no_argument, NULL, 'u' },
		{ "json", no_argument, NULL, 'j' },
		{ "multifd", required_argument, NULL, 'm' },
		{ "multifd-compression", required_argument, NULL, 'c' },
		{ "uuid", required_argument, NULL, 'U' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	*o = (struct receive_options){ 0 };
	while ((c = getopt_long(argc, argv, "o:", options, NULL)) != -1) {
		switch (c) {
		case 'o':
			o->output = optarg;
			break;
		case 'u':
			o->allow_unterminated = true;
			break;
		case 'j':
			o->json = true;
			break;
		case 'U':
			if (tool_parse_uuid(optarg, o->uuid) < 0) {
				return tool_usage_error(&verb_receive, "not a UUID: '%s'", optarg);
			}
			o->has_uuid = true;
			break;
		case 'm':
		case 'c':
			if (!tool_multifd_option(&o->multifd, &verb_receive, c, optarg)) {
				return TOOL_ERROR;
			}
			break;
		default:
			return tool_usage_error(&verb_receive, NULL);
		}
	}
	if (argc - optind != 1) {
		return tool_usage_error(&verb_receive, "needs one URI");
	}
	if (!o->output || o->output[0] == '\0') {
		return tool_usage_error(&verb_receive, "needs --output FILE");
	}
	o->uri = argv[optind];
	return TOOL_OK;
}

static void print_json(const struct receive_options *o, const struct gr_migrate_stats *stats,
		       const struct gr_image_info *info)
{
	struct json j;

	json_begin(&j, stdout);
	json_put_string(&j, "image", o->output);
	json_put_string(&j, "machine", info->machine);
	json_put_uint(&j, "blocks", info->blocks);
	json_put_uint(&j, "ram_bytes", info->ram_bytes);
	json_put_uint(&j, "file_bytes", info->file_bytes);
	json_put_uint(&j, "disk_bytes", info->disk_bytes);
	json_put_bool(&j, "terminated", info->terminated);
	json_put_uint(&j, "bytes_received", stats->transferred_bytes);
	json_put_uint(&j, "pages_normal", stats->normal_pages);
	json_put_uint(&j, "pages_zero", stats->zero_pages);
	json_put_uint(&j, "pages_xbzrle", stats->xbzrle_pages);
	json_put_uint(&j, "total_time_ns", stats->total_time_ns);
	json_end(&j);
}

static void print_text(const struct receive_options *o, const struct gr_migrate_stats *stats,
		       const struct gr_image_info *info)
{
	char ram[24], file[24], disk[24], wire[24];

	(void)printf("%s: %s of RAM in %u blocks; the file has %s, %s on disk\n", o->output,
		     tool_format_size(info->ram_bytes, ram, sizeof(ram)), info->blocks,
		     tool_format_size(info->file_bytes, file, sizeof(file)),
		     tool_format_size(info->disk_bytes, disk, sizeof(disk)));
	(void)printf("received %s in %.3f s: %llu pages, %llu zero, %llu as differences\n",
		     tool_format_size(stats->transferred_bytes, wire, sizeof(wire)),
		     (double)stats->total_time_ns / 1e9, (unsigned long long)stats->normal_pages,
		     (unsigned long long)stats->zero_pages,
		     (unsigned long long)stats->xbzrle_pages);
}

static int report(const struct receive_options *o, const struct gr_migrate_stats *stats)
{
	struct gr_image_info info;
	struct gr_image *image;
	struct gr_error err;

	if (tool_image_open(o->output, &image, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	gr_image_info(image, &info);
	if (o->json) {
		print_json(o, stats, &info);
	} else {
		print_text(o, stats, &info);
	}
	gr_image_close(image);
	return TOOL_OK;
}

static int run(int argc, char **argv)
{
	struct gr_image_params params = { .size = sizeof(params), .progress = progress_show };
	struct gr_migrate_stats stats = { 0 };
	struct gr_channel_listener *listener = NULL;
	struct tool_image_name name;
	struct receive_options o;
	struct progress progress;
	struct gr_error err = { 0 };
	int rc, status = parse_options(argc, argv, &o);

	if (status != TOOL_OK) {
		return status;
	}
	rc = tool_image_name(o.output, &name, &err);
	rc = rc < 0 ? rc : tool_multifd_check(&o.multifd, &err);
	rc = rc < 0 ? rc : tool_listen(o.uri, &listener, &err);
	rc = rc < 0 ? rc : tool_multifd_accept(&o.multifd, listener, &err);
	if (rc < 0) {
		return tool_error("%s", err.msg);
	}
	progress_begin(&progress, "receiving");
	params.allow_unterminated = o.allow_unterminated;
	params.offset = name.offset;
	params.opaque = &progress;
	params.uuid = o.multifd.params.uuid = o.has_uuid ? o.uuid : NULL;
	params.multifd = tool_multifd_params(&o.multifd);
	rc = gr_image_receive(o.multifd.main, name.path, &params, &stats, &err);
	progress_end(&progress);
	if (rc < 0) {
		struct gr_error ignored;

		(void)tool_multifd_close(&o.multifd, &ignored); /* the first cause is what counts */
		return tool_error("%s", err.msg);
	}
	/* exec: the command may have failed after its last byte; the image is whole all the same */
	if (tool_multifd_close(&o.multifd, &err) < 0) {
		(void)tool_error("warning: %s", err.msg);
	}
	return report(&o, &stats);
}

const struct verb verb_receive = {
	.name = "receive",
	.help = "receive a QEMU machine's migration into an image",
	.usage = "Usage: guestram receive URI --output FILE [--allow-unterminated] [--multifd N]\n"
		 "                        [--multifd-compression none|zlib|zstd] [--uuid UUID] [--json]\n"
		 "\n"
		 "Waits at URI for what QEMU sends with `migrate URI` and stores RAM and device\n"
		 "state in FILE. Until all has come and is on disk it is called FILE.part; only\n"
		 "then is a source that waits for an answer told of success.\n"
		 "\n"
		 "URI: tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND, file:PATH[,offset=N]\n"
		 "\n"
		 "  -o, --output FILE      the image; file:PATH,offset=N: from byte N of PATH on, "
		 "and\n"
		 "                         what PATH has in front of it stays\n"
		 "  --allow-unterminated   accept a stream without closing description: it cannot\n"
		 "                         be told whether it is whole\n"
		 "  --multifd N            the source has capability multifd and multifd-channels N\n"
		 "  --multifd-compression METHOD\n"
		 "                         its multifd-compression: none, zlib or zstd\n"
		 "  --uuid UUID            refuse the machine with another one: what the source says\n"
		 "                         with capability validate-uuid, and on further channels\n"
		 "  --json                 the result as one JSON object\n",
	.fn = run,
};

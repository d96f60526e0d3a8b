/* SPDX-License-Identifier: MIT */
/* guestram info: what is in an image, or in the RAM of a running machine. */
#include "json.h"
#include "qmp_client.h"
#include "tool.h"
#include <getopt.h>
#include <guestram/image.h>
#include <stdio.h>
#include <string.h>

enum { CONNECT_MS = 2000 };

static void print_json(const char *path, const struct gr_image *image,
		       const struct gr_image_info *info)
{
	struct gr_image_device device;
	struct gr_image_block block;
	struct json j;

	json_begin(&j, stdout);
	json_put_string(&j, "image", path);
	json_put_string(&j, "machine", info->machine);
	json_put_uint(&j, "ram_bytes", info->ram_bytes);
	json_put_uint(&j, "file_bytes", info->file_bytes);
	json_put_uint(&j, "disk_bytes", info->disk_bytes);
	json_put_uint(&j, "tail_bytes", info->tail_bytes);
	json_put_bool(&j, "terminated", info->terminated);
	json_put_array(&j, "blocks");
	for (uint32_t i = 0; gr_image_block(image, i, &block) == 0; i++) {
		uint64_t pages = block.used_bytes / block.page_bytes;

		json_put_object(&j, NULL);
		json_put_string(&j, "id", block.id);
		json_put_uint(&j, "used_bytes", block.used_bytes);
		json_put_uint(&j, "page_bytes", block.page_bytes);
		json_put_uint(&j, "pages", pages);
		json_put_uint(&j, "pages_present", block.present_pages);
		json_put_uint(&j, "pages_zero", pages - block.present_pages);
		json_put_uint(&j, "data_offset", block.data_offset);
		json_end(&j);
	}
	json_end(&j);
	json_put_array(&j, "devices");
	for (uint32_t i = 0; gr_image_device(image, i, &device) == 0; i++) {
		json_put_object(&j, NULL);
		json_put_string(&j, "name", device.name);
		json_put_uint(&j, "instance", device.instance);
		json_put_uint(&j, "version", device.version);
		json_end(&j);
	}
	json_end(&j);
	json_end(&j);
}

/* A name from a foreign file must not get hold of the terminal. */
static const char *printable(const char *text, char *buf, size_t n)
{
	size_t i;

	for (i = 0; text[i] && i < n - 1; i++) {
		buf[i] = (char)(text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?');
	}
	buf[i] = '\0';
	return buf;
}

static void print_text(const struct gr_image *image, const struct gr_image_info *info)
{
	char a[24], b[24], name[256];
	struct gr_image_device device;
	struct gr_image_block block;

	(void)printf("machine:       %s\n", printable(info->machine, name, sizeof(name)));
	(void)printf("RAM:           %s in %u blocks\n",
		     tool_format_size(info->ram_bytes, a, sizeof(a)), info->blocks);
	(void)printf("file:          %s, %s on disk\n",
		     tool_format_size(info->file_bytes, a, sizeof(a)),
		     tool_format_size(info->disk_bytes, b, sizeof(b)));
	(void)printf("device state:  %s, %u sections%s\n",
		     tool_format_size(info->tail_bytes, a, sizeof(a)), info->devices,
		     info->terminated ? "" : " (no closing description)");
	(void)printf("\n%-40s %14s %10s %10s %10s\n", "BLOCK", "BYTES", "PAGES", "PRESENT", "ZERO");
	for (uint32_t i = 0; gr_image_block(image, i, &block) == 0; i++) {
		uint64_t pages = block.used_bytes / block.page_bytes;

		(void)printf("%-40s %14llu %10llu %10llu %10llu\n",
			     printable(block.id, name, sizeof(name)),
			     (unsigned long long)block.used_bytes, (unsigned long long)pages,
			     (unsigned long long)block.present_pages,
			     (unsigned long long)(pages - block.present_pages));
	}
	if (info->devices > 0) {
		(void)printf("\n%-40s %14s %10s\n", "DEVICE SECTION", "INSTANCE", "VERSION");
	}
	for (uint32_t i = 0; gr_image_device(image, i, &device) == 0; i++) {
		(void)printf("%-40s %14u %10u\n", printable(device.name, name, sizeof(name)),
			     device.instance, device.version);
	}
}

static int info_of_image(const char *path, bool as_json)
{
	struct gr_image_info info;
	struct gr_image *image;
	struct gr_error err;

	if (tool_image_open(path, &image, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	gr_image_info(image, &info);
	if (as_json) {
		print_json(path, image, &info);
	} else {
		print_text(image, &info);
	}
	gr_image_close(image);
	return TOOL_OK;
}

static json_t *ask(struct vmm_qmp_client *client, const char *line, struct gr_error *err)
{
	json_t *text = NULL;

	(void)vmm_qmp_execute(client, "human-monitor-command",
			      json_pack("{ss}", "command-line", line), &text, err);
	return text;
}

/* Lines of text; in a terminal's way is nothing that a monitor says. */
static void print_lines(const char *text)
{
	for (; *text; text++) {
		bool plain = (*text >= 0x20 && *text < 0x7f) || *text == '\n';

		if (*text != '\r') {
			(void)putchar(plain ? *text : '?');
		}
	}
}

/* A guestram's monitor and a QEMU's answer alike. */
static int info_of_machine(const char *qmp, bool as_json)
{
	struct vmm_qmp_client *client;
	struct gr_error err = { 0 };
	json_t *blocks, *regions;
	struct json j;

	if (vmm_qmp_connect(qmp, CONNECT_MS, &client, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	blocks = ask(client, "info ramblock", &err);
	regions = blocks ? ask(client, "info mtree -f", &err) : NULL;
	vmm_qmp_disconnect(client);
	if (!json_is_string(blocks) || !json_is_string(regions)) {
		json_decref(blocks);
		json_decref(regions);
		return tool_error("%s", err.msg[0] ? err.msg : "the monitor's answer is no text");
	}
	if (as_json) {
		json_begin(&j, stdout);
		json_put_string(&j, "qmp", qmp);
		json_put_string(&j, "blocks", json_string_value(blocks));
		json_put_string(&j, "regions", json_string_value(regions));
		json_end(&j);
	} else {
		print_lines(json_string_value(blocks));
		(void)putchar('\n');
		print_lines(json_string_value(regions));
	}
	json_decref(blocks);
	json_decref(regions);
	return TOOL_OK;
}

static int run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "qmp", required_argument, NULL, 'q' },
		{ NULL, 0, NULL, 0 },
	};
	const char *qmp = NULL;
	bool as_json = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'j') {
			as_json = true;
		} else if (c == 'q') {
			qmp = optarg;
		} else {
			return tool_usage_error(&verb_info, NULL);
		}
	}
	if (argc - optind != (qmp ? 0 : 1)) {
		return tool_usage_error(&verb_info, "needs one image, or --qmp unix:PATH");
	}
	return qmp ? info_of_machine(qmp, as_json) : info_of_image(argv[optind], as_json);
}

const struct verb verb_info = {
	.name = "info",
	.help = "list the blocks of an image or of a running machine",
	.usage = "Usage: guestram info FILE [--json]\n"
		 "       guestram info --qmp unix:PATH [--json]\n"
		 "\n"
		 "Checks that the image FILE is whole and lists what is in it: RAM blocks with\n"
		 "their sizes and pages, and the device sections.\n"
		 "\n"
		 "  --qmp unix:PATH   ask the monitor of a running machine instead, of `guestram "
		 "run`\n"
		 "                    or of a QEMU: its RAM blocks, and what the guest sees where\n"
		 "  --json            as one JSON object\n",
	.fn = run,
};

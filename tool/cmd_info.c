/* SPDX-License-Identifier: MIT */
/* guestram info: what is in an image. */
#include "json.h"
#include "tool.h"
#include <getopt.h>
#include <guestram/image.h>
#include <stdio.h>
#include <string.h>

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

static int run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ NULL, 0, NULL, 0 },
	};
	struct gr_image_info info;
	struct gr_image *image;
	struct gr_error err;
	bool as_json = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c != 'j') {
			return tool_usage_error(&verb_info, NULL);
		}
		as_json = true;
	}
	if (argc - optind != 1) {
		return tool_usage_error(&verb_info, "needs one image");
	}
	if (gr_image_open(argv[optind], &image, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	gr_image_info(image, &info);
	if (as_json) {
		print_json(argv[optind], image, &info);
	} else {
		print_text(image, &info);
	}
	gr_image_close(image);
	return TOOL_OK;
}

const struct verb verb_info = {
	.name = "info",
	.help = "list an image's blocks and device sections",
	.usage = "Usage: guestram info FILE [--json]\n"
		 "\n"
		 "Checks that the image FILE is whole and lists what is in it: RAM blocks with\n"
		 "their sizes and pages, and the device sections.\n"
		 "\n"
		 "  --json   as one JSON object\n",
	.fn = run,
};

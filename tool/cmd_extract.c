/* SPDX-License-Identifier: MIT */
/* guestram extract: a block's bytes out of an image. */
#include "tool.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <guestram/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK_BYTES = 1 << 20 };

/* Where the bytes go. */
struct output {
	const char *name;
	int fd;
	bool sparse; /* a file of ours: zeros are left out */
};

static int find_block(const struct gr_image *image, const char *id, uint32_t *ret_index,
		      struct gr_image_block *ret_block)
{
	for (uint32_t i = 0; gr_image_block(image, i, ret_block) == 0; i++) {
		if (strcmp(ret_block->id, id) == 0) {
			*ret_index = i;
			return TOOL_OK;
		}
	}
	return tool_error("no block '%s' in the image; 'guestram info' lists them", id);
}

/* Opens and empties it, unless it is the image that is read. */
static int open_file(const char *path, const char *image_path, struct output *out)
{
	struct tool_image_name name;
	struct stat st, image;

	out->name = path;
	/* guest RAM is nobody else's to read */
	out->fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (out->fd < 0 || fstat(out->fd, &st) < 0) {
		return tool_error("%s: %s", path, strerror(errno));
	}
	out->sparse = S_ISREG(st.st_mode);
	if (tool_image_name(image_path, &name, NULL) == 0 && stat(name.path, &image) == 0 &&
	    image.st_dev == st.st_dev && image.st_ino == st.st_ino) {
		return tool_error("%s: is the image itself", path);
	}
	if (out->sparse && ftruncate(out->fd, 0) < 0) {
		return tool_error("%s: %s", path, strerror(errno));
	}
	return TOOL_OK;
}

static int open_output(const char *path, const char *image_path, struct output *out)
{

	*out = (struct output){ .name = "standard output", .fd = STDOUT_FILENO };
	if (strcmp(path, "-") == 0) {
		if (isatty(STDOUT_FILENO)) {
			return tool_error(
				"standard output is a terminal: use --output FILE or a pipe");
		}
		return TOOL_OK;
	}
	return open_file(path, image_path, out);
}

static bool is_zero(const uint8_t *p, size_t n)
{
	return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static int put(const struct output *out, const uint8_t *data, size_t n)
{
	if (out->sparse && is_zero(data, n)) {
		if (lseek(out->fd, (off_t)n, SEEK_CUR) < 0) {
			return tool_error("%s: %s", out->name, strerror(errno));
		}
		return TOOL_OK;
	}
	while (n > 0) {
		ssize_t done = write(out->fd, data, n);

		if (done < 0 && errno == EINTR) {
			continue;
		}
		if (done < 0) {
			return tool_error("%s: %s", out->name, strerror(errno));
		}
		data += done;
		n -= (size_t)done;
	}
	return TOOL_OK;
}

static int copy_block(struct gr_image *image, uint32_t index, uint64_t bytes,
		      const struct output *out)
{
	uint8_t *buf = malloc(CHUNK_BYTES);
	int status = TOOL_OK;
	struct gr_error err;

	if (!buf) {
		return tool_error("out of memory");
	}
	for (uint64_t at = 0, n; status == TOOL_OK && at < bytes; at += n) {
		n = bytes - at < CHUNK_BYTES ? bytes - at : CHUNK_BYTES;
		if (gr_image_read(image, index, at, buf, n, &err) < 0) {
			status = tool_error("%s", err.msg);
		} else {
			status = put(out, buf, n);
		}
	}
	free(buf);
	if (status == TOOL_OK && out->sparse && ftruncate(out->fd, (off_t)bytes) < 0) {
		status = tool_error("%s: %s", out->name, strerror(errno));
	}
	return status;
}

static int extract(struct gr_image *image, const char *image_path, const char *id, const char *path)
{
	struct gr_image_block block;
	struct output out;
	uint32_t index = 0;
	int status = find_block(image, id, &index, &block);

	if (status == TOOL_OK) {
		status = open_output(path, image_path, &out);
	}
	if (status != TOOL_OK) {
		return status;
	}
	status = copy_block(image, index, block.used_bytes, &out);
	if (out.fd != STDOUT_FILENO && close(out.fd) < 0 && status == TOOL_OK) {
		status = tool_error("%s: %s", out.name, strerror(errno));
	}
	return status;
}

static int run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "output", required_argument, NULL, 'o' },
		{ NULL, 0, NULL, 0 },
	};
	const char *path = "-";
	struct gr_image *image;
	struct gr_error err;
	int c, status;

	while ((c = getopt_long(argc, argv, "o:", options, NULL)) != -1) {
		if (c != 'o') {
			return tool_usage_error(&verb_extract, NULL);
		}
		path = optarg;
	}
	if (argc - optind != 2) {
		return tool_usage_error(&verb_extract, "needs an image and a block");
	}
	if (tool_image_open(argv[optind], &image, &err) < 0) {
		return tool_error("%s", err.msg);
	}
	status = extract(image, argv[optind], argv[optind + 1], path);
	gr_image_close(image);
	return status;
}

const struct verb verb_extract = {
	.name = "extract",
	.help = "write the bytes of a block of an image",
	.usage = "Usage: guestram extract FILE BLOCK [--output FILE|-]\n"
		 "\n"
		 "Writes the bytes of the RAM block BLOCK of the image FILE to standard output.\n"
		 "\n"
		 "  -o, --output FILE   there instead; zeros are left out as holes\n",
	.fn = run,
};

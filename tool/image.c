/* SPDX-License-Identifier: MIT */
#include "tool.h"
#include <errno.h>
#include <guestram/image.h>
#include <string.h>

int tool_image_name(const char *text, struct tool_image_name *ret, struct gr_error *err)
{
	const char *path = text, *option = NULL;
	size_t n;

	ret->offset = 0;
	if (strncmp(text, "file:", 5) == 0) {
		path = text + 5;
		option = strstr(path, ",offset=");
	}
	if (option && tool_parse_size(option + strlen(",offset="), &ret->offset) < 0) {
		return gr_error_set(err, -EINVAL, "%s: the offset is not a number of bytes", text);
	}
	n = option ? (size_t)(option - path) : strlen(path);
	if (n == 0 || n >= sizeof(ret->path)) {
		return gr_error_set(err, -EINVAL, "%s: %s", text, n == 0 ? "no path" : "too long");
	}
	memcpy(ret->path, path, n);
	ret->path[n] = '\0';
	return 0;
}

int tool_image_open(const char *text, struct gr_image **ret_image, struct gr_error *err)
{
	struct tool_image_name name;
	int rc = tool_image_name(text, &name, err);

	return rc < 0 ? rc : gr_image_open_at(name.path, name.offset, ret_image, err);
}

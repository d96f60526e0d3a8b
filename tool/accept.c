/* SPDX-License-Identifier: MIT */
#include "tool.h"
#include <stdio.h>

int tool_accept(const char *uri, struct gr_channel **ret_channel, struct gr_error *err)
{
	struct gr_channel_listener *listener;
	int rc = gr_channel_listen(uri, &listener, err);

	if (rc < 0) {
		return rc;
	}
	if (gr_channel_listener_fd(listener) >= 0) {
		(void)fprintf(stderr, "listening on %s\n", gr_channel_listener_uri(listener));
	}
	rc = gr_channel_accept(listener, ret_channel, err);
	gr_channel_listener_close(listener);
	return rc;
}

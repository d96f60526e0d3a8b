/* SPDX-License-Identifier: MIT */
#include "tool.h"
#include <stdio.h>

int tool_listen(const char *uri, struct gr_channel_listener **ret_listener, struct gr_error *err)
{
	int rc = gr_channel_listen(uri, ret_listener, err);

	if (rc == 0 && gr_channel_listener_fd(*ret_listener) >= 0) {
		(void)fprintf(stderr, "listening on %s\n", gr_channel_listener_uri(*ret_listener));
	}
	return rc;
}

int tool_accept(struct gr_channel_listener *listener, struct gr_channel **ret_channel,
		struct gr_error *err)
{
	int rc = gr_channel_accept(listener, ret_channel, err);

	gr_channel_listener_close(listener);
	return rc;
}

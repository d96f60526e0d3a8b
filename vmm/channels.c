/* SPDX-License-Identifier: MIT */
#include "channels.h"

void vmm_channels_init(struct vmm_channels *c, unsigned int count,
		       enum gr_multifd_compression compression, const uint8_t *uuid)
{
	c->multifd = (struct gr_multifd){
		.channels = c->further, .count = count, .compression = compression, .uuid = uuid
	};
}

const struct gr_multifd *vmm_channels_multifd(const struct vmm_channels *c)
{
	return c->multifd.count == 0 ? NULL : &c->multifd;
}

int vmm_channels_connect(struct vmm_channels *c, const char *uri, struct gr_error *err)
{
	int rc = gr_multifd_supports(c->multifd.compression, err);

	if (rc < 0 || c->multifd.count == 0) {
		return rc < 0 ? rc : gr_channel_connect(uri, &c->main, err);
	}
	return gr_multifd_connect(uri, c->multifd.count, &c->main, c->further, err);
}

int vmm_channels_accept(struct vmm_channels *c, struct gr_channel_listener *listener,
			struct gr_error *err)
{
	int rc = gr_multifd_supports(c->multifd.compression, err);

	if (rc < 0 || c->multifd.count == 0) {
		return rc < 0 ? rc : gr_channel_accept(listener, &c->main, err);
	}
	return gr_multifd_accept(listener, c->multifd.count, &c->main, c->further, err);
}

int vmm_channels_close(struct vmm_channels *c, struct gr_error *err)
{
	int rc = gr_channel_close(c->main, err);

	for (unsigned int i = 0; i < c->multifd.count; i++) {
		(void)gr_channel_close(c->further[i], NULL);
	}
	return rc;
}

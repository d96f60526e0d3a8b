/* SPDX-License-Identifier: MIT */
/* All channels of a move: the main one, and those of capability multifd. */
#ifndef VMM_CHANNELS_H
#define VMM_CHANNELS_H

#include <guestram/channel.h>
#include <guestram/multifd.h>

struct vmm_channels {
	struct gr_multifd multifd; /* count 0: none */
	struct gr_channel *main;
	struct gr_channel *further[GR_MULTIFD_CHANNELS_MAX];
};

/* Set count, compression and uuid of an all-zero one. */
void vmm_channels_init(struct vmm_channels *c, unsigned int count,
		       enum gr_multifd_compression compression, const uint8_t *uuid);
int vmm_channels_connect(struct vmm_channels *c, const char *uri, struct gr_error *err);
int vmm_channels_accept(struct vmm_channels *c, struct gr_channel_listener *listener,
			struct gr_error *err);
/* What to hand to the library: NULL without further channels. */
const struct gr_multifd *vmm_channels_multifd(const struct vmm_channels *c);
/* Close all; err and the result are the main one's. */
int vmm_channels_close(struct vmm_channels *c, struct gr_error *err);

#endif

/* SPDX-License-Identifier: MIT */
/* Where no channel has a descriptor: those in memory are never waited for. */
#include "stream/channel.h"
#include <errno.h>

int gr_channel_wait_init(struct gr_channel *ch)
{
	return ch->fd < 0 ? 0 : -ENOTSUP;
}

int gr_channel_wait_fini(struct gr_channel *ch)
{
	(void)ch;
	return 0;
}

int gr_channel_wait(struct gr_channel *ch, bool writing)
{
	(void)ch;
	(void)writing;
	return -ENOTSUP;
}

bool gr_channel_is_readable(struct gr_channel *ch, int timeout_ms)
{
	(void)ch;
	(void)timeout_ms;
	return false;
}

void gr_channel_wait_end(struct gr_channel *ch)
{
	(void)ch;
}

void gr_channel_wait_cancel(struct gr_channel *ch)
{
	(void)ch;
}

void gr_channel_end_writing(struct gr_channel *ch)
{
	(void)ch;
}

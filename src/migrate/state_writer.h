/* SPDX-License-Identifier: MIT */
/* What gr_state_put() adds to: the tail of a migration or of an image. */
#ifndef GR_MIGRATE_STATE_WRITER_H
#define GR_MIGRATE_STATE_WRITER_H

#include "stream/tail.h"
#include <guestram/migrate.h>

struct gr_state_writer {
	struct gr_tail_builder *tail;
	uint32_t section_id; /* of the next device */
};

#endif

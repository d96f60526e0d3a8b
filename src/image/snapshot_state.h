/* SPDX-License-Identifier: MIT */
/*
 * The insides of a snapshot, shared by its files:
 *
 *   snapshot.c         create and free, the moment, the end, failing and cancelling
 *   snapshot_save.c    before a write, and pages to the image
 *   snapshot_buffer.c  copies that wait for the disk
 */
#ifndef GR_IMAGE_SNAPSHOT_STATE_H
#define GR_IMAGE_SNAPSHOT_STATE_H

#include "image/snapshot_buffer.h"
#include "image/store.h"
#include "migrate/pacing.h"
#include "migrate/progress.h"
#include "migrate/source_blocks.h"
#include "stream/tail.h"
#include <guestram/event.h>
#include <guestram/snapshot.h>

/* Pages that are taken, copied and written at once: the time that a store to one of them may wait.
 */
enum { GR_SNAPSHOT_BATCH_PAGES = 64 };
#define GR_SNAPSHOT_BUFFER_BYTES (UINT64_C(64) << 20)

/* What the next step does. */
enum gr_snapshot_phase {
	GR_SNAPSHOT_START, /* the moment */
	GR_SNAPSHOT_PAGES, /* what can be written, while it is */
	GR_SNAPSHOT_FINISH,
	GR_SNAPSHOT_ENDED,
};

/* Pages of one block on their way: copies, so that the disk may take its time. */
struct gr_snapshot_batch {
	const struct gr_source_block *entry;
	uint32_t count;
	uint32_t room;	   /* (c) */
	uint64_t *offsets; /* (c) room of them */
	uint8_t *pages;	   /* (c) */
};

/*
 * What the walk knows of a block's holes. It stays true for what is left: nobody fills a hole there or
 * throws anything away without a copy, and then it is not left.
 */
struct gr_snapshot_extent {
	const struct gr_ram_block *block;
	uint64_t begin, end;
	bool hole;
};

struct gr_snapshot {
	struct gr_ram *ram;		  /* (c) */
	struct gr_snapshot_params params; /* (c) defaults filled in */
	char *machine;			  /* (c) */
	struct gr_source_ops ops;	  /* (c) */
	bool stopped;			  /* (c) the machine is: no ops were given */
	uint64_t page_bytes;		  /* (c) */

	struct gr_progress progress;	  /* its own locking */
	struct gr_event work;		  /* a copy has come, or the snapshot is given up */
	struct gr_snapshot_buffer buffer; /* its own locking; the lock also covers: */
	struct gr_cbw *cbw;		  /* (buffer.lock) written by the driving thread */
	struct gr_cbw_stats cbw_stats;	  /* (buffer.lock) the last, when cbw is gone */
	int given_up; /* (buffer.lock) why before_write() gave up; 0: it did not */

	struct gr_image_store *store;	/* (o) */
	struct gr_tail_builder tail;	/* (o) */
	struct gr_source_blocks table;	/* (o) the blocks of the moment; constant after it */
	struct gr_section_watch watch;	/* (o) */
	struct gr_holes holes;		/* (o) */
	struct gr_snapshot_extent extent; /* (o) */
	struct gr_pacing pacing;	/* (o) */
	struct gr_snapshot_batch batch; /* (o) */
	struct gr_error error;		/* (o) how it ended, if not well */
	enum gr_snapshot_phase phase;	/* (o) */
	bool paused, frozen;		/* (o) within the moment */
};

/* snapshot_save.c */

/** For gr_cbw_params. */
enum gr_cbw_verdict gr_snapshot_before_write(void *opaque, const struct gr_cbw_piece *piece);

/**
 * Save the next pages.
 * @return 1 there is more, 0 all that can be written is saved, or a negative errno.
 */
GR_MUST_CHECK int gr_snapshot_save_some(struct gr_snapshot *s, struct gr_error *err);

#endif

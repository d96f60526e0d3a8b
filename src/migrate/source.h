/* SPDX-License-Identifier: MIT */
/*
 * The insides of a source, shared by its files:
 *
 *   source.c        create and free, the steps from setup to the end, failing and cancelling
 *   source_send.c   an epoch's pages: search, re-arm, look, send
 *   source_xbzrle.c differences instead of pages
 *   source_peer.c   the return path: who is there, has it failed, is it done
 *   source_multifd.c  packets on further channels
 *   source_ranges.c what goes out as ranges, and by reference
 *   source_fault.c  damage on purpose
 */
#ifndef GR_MIGRATE_SOURCE_H
#define GR_MIGRATE_SOURCE_H

#include "migrate/holes.h"
#include "migrate/model.h"
#include "migrate/pacing.h"
#include "migrate/page_cache.h"
#include "migrate/progress.h"
#include "migrate/source_blocks.h"
#include "migrate/throttle.h"
#include "stream/return_path.h"
#include "stream/tail.h"
#include "stream/writer.h"
#include <guestram/dirty.h>
#include <guestram/migrate.h>
#include <guestram/track.h>

enum {
	GR_SOURCE_BATCH_PAGES = 2 * GR_STREAM_RUN_PAGES_MAX, /* at most: a packet's */
	GR_SOURCE_BATCH_BYTES = 512 << 10, /* and so many bytes of them */
	GR_SOURCE_LOOK_AHEAD = 4, /* pages whose first line is on its way while one is looked at */
	GR_SOURCE_BATCH_LOOKS = 4096,			 /* pages looked at in one batch, at most */
	GR_SOURCE_BATCH_RUNS = 256,	/* runs of dirty pages in one batch, at most */
	GR_SOURCE_SECTION_PAGES = 8192, /* pages in one PART section, at most */
	GR_SOURCE_LOOK_COST = 20,	/* a look in mid-round costs so much of the time at most: 1 in 20 */
	GR_SOURCE_PIECE_BYTES = 2 << 20, /* go last in the first round if a page of it was written to */
	GR_SOURCE_GAINS = 3,		/* rounds that are not needed, at most */
	GR_SOURCE_RAM_SECTION = 2,	/* section id of 'ram'; the devices' follow */
};
/* How long a peer may take to answer the first PING. */
#define GR_SOURCE_PEER_NS     (20 * GR_NS_PER_S)
#define GR_SOURCE_DOWNTIME_NS (300 * GR_NS_PER_MS)
/* From one look at the trackers to the next. */
#define GR_SOURCE_LOOK_NS     (30 * GR_NS_PER_MS)

/* What the next step does. */
enum gr_source_phase {
	GR_SOURCE_SETUP,
	GR_SOURCE_PEER,	   /* wait for FEATURES or PONG */
	GR_SOURCE_START,   /* announce the blocks */
	GR_SOURCE_HARVEST, /* sync, begin, decide */
	GR_SOURCE_ROUND,   /* send the epoch while the guest runs */
	GR_SOURCE_SWITCH,  /* stop the guest */
	GR_SOURCE_PAUSED,  /* wait for gr_source_continue(), harvest last */
	GR_SOURCE_FINAL,   /* send the last epoch */
	GR_SOURCE_DEVICES, /* send their state */
	GR_SOURCE_COMMIT,  /* send what makes the stream whole */
	GR_SOURCE_ANSWER,  /* wait for SHUT */
	GR_SOURCE_ENDED,
};

/* Pages of one block on their way; the block is referenced while the batch is filled. */
struct gr_source_batch {
	const struct gr_source_block *entry;
	struct gr_ram_block *block;
	uint64_t offsets[GR_SOURCE_BATCH_PAGES];
	const void *pages[GR_SOURCE_BATCH_PAGES];
	uint32_t count;
	uint32_t room; /* at most so many pages: the bandwidth limit's piece */
	uint32_t looks;
	uint64_t zero_map[GR_SOURCE_BATCH_LOOKS / 64]; /* of the last look: bit set, that page is zero */
	uint64_t zero_offset, zero_bytes; /* zeros not yet written */
	uint64_t zero_pages, hole_pages;
	uint32_t found; /* pages that are not zero, however they go out */
	uint64_t xbzrle_pages, xbzrle_bytes, xbzrle_unchanged, xbzrle_misses, xbzrle_overflows;
	uint64_t run_first[GR_SOURCE_BATCH_RUNS]; /* what is done when the batch is sent */
	uint64_t run_pages[GR_SOURCE_BATCH_RUNS];
	uint32_t runs;
	uint64_t discards; /* of the block, when the batch was begun */
	bool direct;	   /* some pages go out from where they are */
};

/* The extent of a block known to be filled, until the next discard: no need to look for holes there. */
struct gr_source_extent {
	uint64_t incarnation, discards, begin, end;
};

struct gr_source {
	struct gr_ram *ram;		      /* (c) */
	struct gr_track *track;		      /* (c) may be NULL */
	struct gr_channel *channel;	      /* (c) */
	struct gr_source_params params;	      /* (c) defaults filled in */
	char *machine;			      /* (c) */
	uint8_t uuid[GR_STREAM_UUID_BYTES];   /* (c) what params.uuid points to, if not NULL */
	struct gr_source_ops ops;	      /* (c) */
	bool stopped;			      /* (c) the machine is: no ops were given */
	uint64_t page_bytes;		      /* (c) */
	struct gr_progress progress;	      /* its own locking */
	struct gr_dirty_consumer *consumer;   /* (o) */
	struct gr_stream_writer *writer;      /* (o) */
	struct gr_multifd_send *multifd;      /* its own locking; NULL: no further channels */
	enum gr_multifd_dialect dialect;      /* (o) */
	uint64_t bytes_seen;		      /* (o) on all channels, when a batch was sent last */
	struct gr_return_path_reader answers; /* (o) */
	struct gr_source_blocks table;	      /* (o) what the destination knows */
	struct gr_section_watch watch;	      /* (o) */
	struct gr_holes holes;		      /* (o) */
	struct gr_pacing pacing;	      /* (o) */
	struct gr_model model;		      /* (o) */
	struct gr_throttle throttle;	      /* (o) */
	struct gr_tail_builder tail;	      /* (o) */
	struct gr_source_batch batch;	      /* (o) */
	struct gr_source_extent extent;	      /* (o) */
	struct gr_page_cache cache;	      /* (o) source_xbzrle.c; zero: not wanted */
	uint8_t *delta;			      /* (o) room for one */
	struct gr_error error;		      /* (o) how it ended, if not well */
	uint8_t *bounce;		      /* (o) pages that must not be sent from where they are */
	uint8_t **shadow;		      /* (o) source_fault.c; by entry of the table */
	uint64_t *shadow_incarnation;	      /* (o) */
	uint32_t shadows;		      /* (o) */
	enum gr_source_phase phase;	      /* (o) */
	uint64_t cursor;		      /* (o) page number: where the search goes on */
	uint64_t run_end;		      /* (o) the run of dirty pages there ends here */
	uint64_t rounds;		      /* (o) harvests */
	uint64_t section_pages;		      /* (o) in the open PART section */
	uint64_t ping_ns, pause_ns;	      /* (o) when */
	struct gr_downtime downtime;	      /* (o) its parts so far */
	uint64_t part_ns;		      /* (o) when this part of the downtime began */
	const uint8_t *last;		      /* (o) of the tail: what is held back */
	size_t last_bytes;		      /* (o) */
	bool ours;			      /* (o) the peer is a guestram */
	bool answer_expected;		      /* (o) it will say SHUT */
	bool page_ranges;		      /* (o) it takes PAGE_RANGE */
	bool file_identity;		      /* (o) it may be told which file a block is */
	bool switchover_acked;		      /* (o) it has said SWITCHOVER_ACK */
	bool tracking;			      /* (o) gr_track_start() has succeeded */
	bool frozen;			      /* (o) gr_ram_freeze() is in force */
	bool paused;			      /* (o) the machine was stopped by us */
	bool epoch;			      /* (o) one is open */
	bool section;			      /* (o) a section is open in the stream */
	uint64_t look_ns;		      /* (o) when the trackers are asked in mid-round */
	bool put_off;			      /* (o) pieces were, in this round */
	bool catches_up;		      /* (o) it is their turn */
	uint64_t waiting_pages;		      /* (o) of this round's: left to the next one */
	uint32_t gains;			      /* (o) rounds that were not needed, to stop it shorter */
	bool switch_next;		      /* (o) the decision has fallen */
	bool final;			      /* (o) nobody writes guest memory any more */
	bool lost;			      /* (o) GR_FAULT_LOSE_PAGE: this round's page */
};

/* source_round.c */

/** The end of a round: harvest, then send the next one or stop the guest. @return 0 or a negative errno. */
GR_MUST_CHECK int gr_source_next_round(struct gr_source *s, struct gr_error *err);

/**
 * Sync, then begin: an epoch of what was written until now (O2, O4). What is no block's, or not to
 * be migrated, is dropped, so that the count is what there is to send.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_source_harvest(struct gr_source *s, uint64_t *ret_pages, struct gr_error *err);

/** In the first round, now and then: leave what is dirty again to the second one. @return 0 or a negative errno. */
GR_MUST_CHECK int gr_source_look_again(struct gr_source *s, struct gr_error *err);

/* source_send.c */

/**
 * Tell the destination of a changed block list, if it has changed.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_source_follow_blocks(struct gr_source *s, struct gr_error *err);

/** Drop pages of the open epoch that belong to no migratable block. */
void gr_source_trim_epoch(struct gr_source *s);

/**
 * Send the next batch of the open epoch.
 * @return 1 there is more, 0 the epoch has been sent, or a negative errno.
 */
GR_MUST_CHECK int gr_source_send_batch(struct gr_source *s, struct gr_error *err);

/** An epoch was sent: whatever has to follow it. @param s The source. @param err May be NULL. @return 0 or an errno. */
GR_MUST_CHECK int gr_source_end_round(struct gr_source *s, struct gr_error *err);

/** Close the section that is open, if one is. @return 0 or a negative errno. */
GR_MUST_CHECK int gr_source_close_section(struct gr_source *s, struct gr_error *err);

/* source_xbzrle.c */

/** Make the cache, if one is wanted. @return 0 or -ENOMEM. */
GR_MUST_CHECK int gr_source_xbzrle_init(struct gr_source *s, struct gr_error *err);

/** Free it. */
void gr_source_xbzrle_end(struct gr_source *s);

/** @return Whether pages are compared with what was sent: not before the second round. */
static inline bool gr_source_uses_xbzrle(const struct gr_source *s)
{
	return s->cache.tags && s->rounds > 1;
}

/** A range of the batch's block is being sent as zero. */
void gr_source_xbzrle_zero(struct gr_source *s, uint64_t offset, uint64_t bytes);

/**
 * Send differences of the batch's pages, which are copies; those that have to go whole stay in it.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_source_xbzrle_send(struct gr_source *s, struct gr_error *err);

/* source_peer.c */

/** Open the return path and ask who is there. @return 0 or a negative errno. */
GR_MUST_CHECK int gr_source_ask_peer(struct gr_source *s, struct gr_error *err);

/**
 * Wait a slice for the answer to that.
 * @return 1 not yet, 0 known now (or given up), or a negative errno.
 */
GR_MUST_CHECK int gr_source_await_peer(struct gr_source *s, struct gr_error *err);

/** Look whether the peer has failed meanwhile. @return 0 or a negative errno. */
GR_MUST_CHECK int gr_source_check_peer(struct gr_source *s, struct gr_error *err);

/** Wait a slice, or until the peer says something. @return 0 or a negative errno. */
GR_MUST_CHECK int gr_source_wait_slice(struct gr_source *s, struct gr_error *err);

/** Wait a slice until something can be written without sleeping. @return Whether it can. */
bool gr_source_can_write(struct gr_source *s);

/**
 * Wait a slice for SHUT, also when somebody has cancelled: the destination decides.
 * @return 1 not yet, 0 the destination has everything, or a negative errno.
 */
GR_MUST_CHECK int gr_source_await_answer(struct gr_source *s, struct gr_error *err);

/* source_multifd.c; without further channels those that meet do nothing */

/** @param s Its parameters are set. @param err May be NULL. @return 0 or a negative errno. */
GR_MUST_CHECK int gr_source_multifd_init(struct gr_source *s, struct gr_error *err);

/** The peer is known. @param s The source. */
void gr_source_multifd_set_dialect(struct gr_source *s);

/** @param s The source. @return Bytes on all channels. */
uint64_t gr_source_bytes(const struct gr_source *s);

/** @param s The source. @return Pages that a batch can have. */
uint32_t gr_source_room(const struct gr_source *s);

/** @param s The source. @param block A block. @return Its file, if pages may go by reference from it. */
struct gr_channel_file gr_source_file_of(const struct gr_source *s,
					 const struct gr_ram_block *block);

/** The batch's pages on the main channel. @param s The source. @param err May be NULL. @return 0 or a
 * negative errno. */
GR_MUST_CHECK int gr_source_send_pages(struct gr_source *s, struct gr_error *err);

/**
 * All channels meet: what was sent before is placed before what is sent after. In a section, whose
 * end or whatever comes next has to be flushed.
 * @param s   The source.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_source_meet(struct gr_source *s, struct gr_error *err);

/** Meet at a section's end, if the dialect wants that. @param s The source. @param err May be NULL. @return As meet. */
GR_MUST_CHECK int gr_source_meet_section(struct gr_source *s, struct gr_error *err);

/** Meet at a round's end, if the dialect wants that. @param s The source. @param err May be NULL. @return As meet. */
GR_MUST_CHECK int gr_source_meet_round(struct gr_source *s, struct gr_error *err);

/** Meet at an announcement, which follows. @param s The source. @param err May be NULL. @return As meet. */
GR_MUST_CHECK int gr_source_meet_announcement(struct gr_source *s, struct gr_error *err);

/** Have the batch's pages sent as a packet. @param s The source. @param err May be NULL. @return 0 or an errno. */
GR_MUST_CHECK int gr_source_send_packet(struct gr_source *s, struct gr_error *err);

/**
 * The same of zero pages of the batch's block.
 * @param s      The source.
 * @param offset Bytes in the block.
 * @param bytes  A multiple of the page size.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_source_send_zero_packets(struct gr_source *s, uint64_t offset, uint64_t bytes,
					      struct gr_error *err);

/**
 * What was unplugged while the kernel read these pages has no memory again afterwards.
 * @param block      The block, with a reference.
 * @param discards   What gr_ram_discards_locked() was before.
 * @param offsets    Of the pages.
 * @param count      How many.
 * @param page_bytes Their size.
 */
void gr_source_forget_unplugged(struct gr_ram_block *block, uint64_t discards,
				const uint64_t *offsets, uint32_t count, uint64_t page_bytes);

/* source_fault.c */

/**
 * GR_FAULT_EARLY_READ: copy all pages now, before the harvest.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_source_fault_early_read(struct gr_source *s, struct gr_error *err);

/** @return What was copied of a page, or NULL: read the page itself. */
const uint8_t *gr_source_fault_early_page(const struct gr_source *s,
					  const struct gr_ram_block *block, uint64_t offset);

/** @return Whether pages are read before they are harvested: GR_FAULT_EARLY_READ. */
bool gr_source_reads_early(const struct gr_source *s);

/** GR_FAULT_LOSE_PAGE: take one page out of the batch, once a round. */
void gr_source_fault_lose_page(struct gr_source *s);

/** Free what the faults hold. */
void gr_source_fault_end(struct gr_source *s);

#endif

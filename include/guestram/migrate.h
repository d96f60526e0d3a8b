/* SPDX-License-Identifier: MIT */
/**
 * guestram/migrate.h - move a machine's RAM to another process while it runs.
 *
 * The source sends rounds of dirty pages until what is left fits into the downtime allowed,
 * then has the machine stopped, sends the rest and the devices' state, and is done. The
 * destination receives into the RAM of a machine of its own. The wire format is QEMU's
 * (file version 3, ram version 4): a QEMU can be at either end. Between two guestrams, who
 * find each other in band, blocks may come and go while the migration runs.
 *
 *     struct gr_source_params p = { .size = sizeof(p), .downtime_ns_max = 100000000 };
 *     gr_source_create(ram, track, channel, &p, &ops, &source, &err);
 *     status = gr_source_run(source, &err);     // or gr_source_step() from a loop
 *     gr_source_stats(source, &stats);
 *     gr_source_free(source);
 *
 * Threads: one thread drives a source or destination (run or step); cancel and stats from
 * any thread. The machine's own threads go on meanwhile.
 *
 * Caveats: a failed or cancelled source leaves the guest running (it is resumed if it had
 * been stopped), and every other consumer of the dirty memory as if nothing had been. A
 * destination that fails never starts the guest; its RAM is then undefined. While a move
 * switches over, and all the time towards a peer that is no guestram, adding and removing
 * blocks fails with -EBUSY. After a plain move (no return path) close the channel, or end
 * its writing: the end of the stream is what tells the peer. docs/migration.md has the rest.
 */
#ifndef GUESTRAM_MIGRATE_H
#define GUESTRAM_MIGRATE_H

#include <guestram/channel.h>
#include <guestram/error.h>
#include <guestram/multifd.h>
#include <guestram/ram.h>
#include <guestram/track.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

struct gr_source;
struct gr_destination;

/** Where a migration is; the names are QEMU's. */
enum gr_migrate_state {
	GR_MIGRATE_NONE,
	GR_MIGRATE_SETUP,
	GR_MIGRATE_ACTIVE,     /**< rounds are being sent or received */
	GR_MIGRATE_PRE_SWITCHOVER, /**< the guest is stopped; waits for gr_source_continue() */
	GR_MIGRATE_DEVICE,     /**< the guest is stopped, the rest is on its way */
	GR_MIGRATE_COMPLETED,
	GR_MIGRATE_FAILED,
	GR_MIGRATE_CANCELLING,
	GR_MIGRATE_CANCELLED,
};

/** @param state A state. @return QEMU's name of it. @context Any. */
GR_EXPORT const char *gr_migrate_state_name(enum gr_migrate_state state);

/** What a guest that stands still waits for: what one move took, or what the next one may expect. */
struct gr_downtime {
	uint64_t pause_ns;    /**< gr_source_ops.pause() */
	uint64_t harvest_ns;  /**< the last sync and harvest */
	uint64_t pages_ns;    /**< sending the last pages */
	uint64_t state_ns;    /**< gr_source_ops.save() */
	uint64_t state_bytes; /**< what that put */
	uint64_t answer_ns;   /**< from there until the destination's word: it is sent and loaded */
};

/** How a migration does. Times are of CLOCK_MONOTONIC. */
struct gr_migrate_stats {
	enum gr_migrate_state state;
	bool peer_is_guestram;        /**< found in band; otherwise the stream is QEMU's */
	uint64_t total_bytes;         /**< RAM to move, as of the current block list */
	uint64_t remaining_bytes;     /**< known to be left */
	uint64_t transferred_bytes;   /**< on the wire */
	uint64_t normal_pages;        /**< sent or received with their bytes */
	uint64_t zero_pages;          /**< sent or received as zero, records or ranges */
	uint64_t untouched_pages;     /**< of those: known as holes, never read */
	uint64_t xbzrle_pages;        /**< sent or received as differences */
	uint64_t rounds;              /**< QEMU's dirty-sync-count */
	uint64_t dirty_pages_per_s;   /**< of the last round */
	uint64_t bandwidth_bytes_per_s; /**< measured */
	uint64_t expected_downtime_ns;
	uint64_t downtime_ns;         /**< source: from pause to the last byte acknowledged */
	struct gr_downtime downtime;  /**< source: what that was, as far as it has come */
	uint64_t setup_time_ns;
	uint64_t total_time_ns;
	uint64_t final_pages;         /**< sent after the guest was stopped */
	uint64_t deferred_pages;      /**< source: written while they waited in the first round, left to the second */
	uint64_t blocks_announced;    /**< how often the block list was sent again */
	uint64_t section_ns_max;      /**< longest read-side section of ours */
	unsigned int throttle_percent; /**< source: of the vCPUs' time, taken by auto_converge */
	uint64_t xbzrle_cache_bytes;  /**< source: of the cache; 0: none */
	uint64_t xbzrle_bytes;        /**< source: of the differences that were sent */
	uint64_t xbzrle_unchanged_pages; /**< source: written to, but as they were: not sent */
	uint64_t xbzrle_misses;       /**< source: pages that were not in the cache: sent whole */
	uint64_t xbzrle_overflows;    /**< source: differences longer than the page: sent whole */
};

/** Collects the state of vCPUs and devices; see gr_source_ops.save. */
struct gr_state_writer;

/**
 * Add one device's state to what is being saved.
 *
 * @param writer   From gr_source_ops.save.
 * @param id       Name, 1 to 255 bytes, e.g. "guestram/cpu".
 * @param instance Which of that name.
 * @param version  Of the layout of data.
 * @param data     The bytes; copied.
 * @param bytes    How many.
 * @param err      May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL, -ENOMEM.
 * @context Within gr_source_ops.save only.
 */
GR_EXPORT GR_MUST_CHECK int gr_state_put(struct gr_state_writer *writer, const char *id,
					 uint32_t instance, uint32_t version, const void *data,
					 size_t bytes, struct gr_error *err);

/** What the source asks of the machine. */
struct gr_source_ops {
	/**
	 * Stop the machine (ordering O6): vCPUs out of the guest with pending exits
	 * completed, device threads and submitted I/O drained, iovecs put back. When it
	 * returns 0 nothing writes guest memory any more.
	 */
	int (*pause)(void *opaque, struct gr_error *err);
	/** Let it run again: the move failed or was cancelled after pause(). */
	void (*resume)(void *opaque);
	/** Save vCPUs and devices with gr_state_put(), after the last harvest. */
	int (*save)(void *opaque, struct gr_state_writer *writer, struct gr_error *err);
	/** A round ended, or some time passed: for progress lines. May be NULL. */
	void (*progress)(void *opaque, const struct gr_migrate_stats *stats);
	/**
	 * Take so many percent of their time from the vCPUs from now on; 0: no more. From the
	 * source's thread; 0 comes at the latest when the migration ends. Needed for auto_converge.
	 */
	void (*throttle)(void *opaque, unsigned int percent);
	void *opaque;
};

/** Damage done on purpose, so that a checker can be shown to find it. */
enum gr_source_fault {
	GR_FAULT_NONE,
	GR_FAULT_LOSE_PAGE,       /**< one dirty page of each round is not sent */
	GR_FAULT_EARLY_READ,      /**< pages are read before they are harvested (against O2) */
	GR_FAULT_SKIP_FINAL_SYNC, /**< no harvest after the guest was stopped (against O6) */
};

/** How to move. Zero what you do not set. */
struct gr_source_params {
	size_t size;                  /**< sizeof(struct gr_source_params) */
	const char *machine;          /**< machine name in the stream; NULL: "guestram" */
	unsigned int writers;         /**< enum gr_writers: who writes this machine's memory;
				       *   0: GR_WRITERS_MARKED */
	uint64_t bandwidth_bytes_per_s_max; /**< 0: no limit */
	uint64_t downtime_ns_max;     /**< 0: 300 ms */
	/** What stopping, saving and loading this machine took the last time (a snapshot, a move that was taken
	 *  back): counted before the guest is stopped, as are the harvests of this move. 0: not known, and
	 *  guessed; harvest_ns and pages_ns are not looked at. */
	struct gr_downtime expected;
	uint64_t rounds_max;          /**< switch over at the latest after so many rounds even
				       *   if the downtime limit cannot be kept; 0: never */
	bool plain;                   /**< speak QEMU's dialect only, do not look for a guestram */
	bool auto_converge;           /**< slow a guest down that dirties faster than is sent */
	unsigned int throttle_trigger_percent; /**< it does if it dirties, in a second, more than so
				       *   much of what was sent; 0: 50 */
	unsigned int throttle_initial_percent; /**< of the vCPUs' time, taken first; 0: 20 */
	unsigned int throttle_increment_percent; /**< and more each further time; 0: 10 */
	unsigned int throttle_max_percent; /**< and never more than this; 0: 99 */
	const uint8_t *uuid;          /**< 16 bytes, copied: the destination must have the same or
				       *   none (QEMU's validate-uuid); NULL: do not say */
	bool pause_before_switchover; /**< stop the guest, then wait for gr_source_continue() */
	bool switchover_ack;          /**< do not stop it before the destination says that it is ready
				       *   (QEMU 8.1 and newer, with the same capability) */
	uint64_t xbzrle_cache_bytes;  /**< send differences (XBZRLE) of pages that change again and
				       *   again, with a cache of so many bytes; 0: do not. QEMU's
				       *   default is 64 MiB. Any destination takes them. */
	/** Blocks of files (GR_RAM_FILE with the path of a file, not PRIVATE) are not sent: the destination
	 *  has the same files mapped (QEMU's x-ignore-shared). Both ends must have it on. Between two of
	 *  ours that goes for GR_RAM_FD and GR_RAM_CALLER too, where GR_RAM_SHARED promises it. A QEMU
	 *  takes named files for shared from 8.1 on, an older one memory-backend-memfd too, which then
	 *  cannot be used with this. A QEMU as the destination notices nothing of what does not agree:
	 *  a block that it does not share, or has from another file, would be empty there. */
	bool ignore_shared;
	/** While the first round is sent, ask the trackers that often what was written meanwhile: those
	 *  pages wait for the second round instead of being sent in both. Not with a log that names
	 *  pages until they are sent (KVM's with manual protect). 0: every 30 ms, less often where
	 *  asking is slow; UINT64_MAX: never. */
	uint64_t look_ns;
	enum gr_source_fault fault;   /**< for tests of checkers only */
	const struct gr_multifd *multifd; /**< further channels, copied; NULL: none */
};

/**
 * Create a source.
 *
 * @param ram        The machine's RAM.
 * @param track      Its trackers, in use already; started and stopped by the source. NULL:
 *                   the machine is stopped or all its writers mark.
 * @param channel    An open outgoing channel; borrowed.
 * @param params     May be NULL; copied.
 * @param ops        What to ask of the machine; copied. NULL: it is stopped already and has
 *                   no state to save.
 * @param ret_source Set on success only.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL, -ENOMEM, -ENOSPC no dirty consumer free.
 * @context Any thread, outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_source_create(struct gr_ram *ram, struct gr_track *track,
					     struct gr_channel *channel,
					     const struct gr_source_params *params,
					     const struct gr_source_ops *ops,
					     struct gr_source **ret_source, struct gr_error *err);

/**
 * Move everything: from setup to completed, failed or cancelled.
 * @param source The source.
 * @param err    May be NULL.
 * @return 0 when the destination has all (and, if it is a guestram, said so), or a
 *         negative errno.
 * @errors  -ECANCELED; -EREMOTEIO the destination says that it has failed; -EPIPE it has
 *          closed the connection; what the channel, the trackers or the ops returned, with
 *          the block and page where it happened.
 * @context One thread. Blocks. Outside a read-side section.
 * @source  Clark et al., "Live Migration of Virtual Machines", NSDI 2005.
 */
GR_EXPORT GR_MUST_CHECK int gr_source_run(struct gr_source *source, struct gr_error *err);

/**
 * Do a bounded piece of the work (a batch of pages, or one of the steps between rounds).
 * @param source The source.
 * @param err    May be NULL.
 * @return 1 there is more, 0 done as gr_source_run(), or a negative errno.
 * @context As gr_source_run(); blocks at most for one batch on the channel, or as long as
 *          the bandwidth limit asks for (20 ms at most).
 */
GR_EXPORT GR_MUST_CHECK int gr_source_step(struct gr_source *source, struct gr_error *err);

/**
 * Go on from GR_MIGRATE_PRE_SWITCHOVER: whoever asked for pause_before_switchover has done what it
 * wanted to do while the guest stands still here and does not run over there.
 * @param source The source.
 * @param err    May be NULL.
 * @return 0, or -EINVAL: it is in another state, which is named.
 * @context Any thread; returns at once.
 */
GR_EXPORT GR_MUST_CHECK int gr_source_continue(struct gr_source *source, struct gr_error *err);

/**
 * Ask a source to end. Too late once the destination has said that it has everything:
 * gr_source_run() then returns 0.
 * @param source The source.
 * @context Any thread; returns at once.
 */
GR_EXPORT void gr_source_cancel(struct gr_source *source);

/**
 * @param source    The source.
 * @param ret_stats Filled.
 * @context Any thread.
 */
GR_EXPORT void gr_source_stats(struct gr_source *source, struct gr_migrate_stats *ret_stats);

/** Free it; cancels if it has not ended. @param source May be NULL. @context Its thread. */
GR_EXPORT void gr_source_free(struct gr_source *source);

/** A block that the source announced and this machine does not have. */
struct gr_block_announcement {
	const char *id;
	uint64_t used_bytes;
	uint64_t max_bytes;
	uint64_t incarnation;  /**< 0: from a QEMU, which has none */
	uint32_t page_bytes;
	unsigned int flags;    /**< of enum gr_ram_block_flags READONLY; SHARED: it stays where it is
				*   (ignore_shared), make it from the file that the source has */
	bool mapped;
	gr_gpa_t gpa;
};

/** What the destination asks of the machine. Any may be NULL. */
struct gr_destination_ops {
	/**
	 * Load one device's state. Called in the order in which it was saved, after all RAM
	 * has arrived.
	 */
	int (*load)(void *opaque, const char *id, uint32_t instance, uint32_t version,
		    const void *data, size_t bytes, struct gr_error *err);
	/**
	 * All has been loaded: is anything missing? Refusing ends the migration, and the guest
	 * goes on at a source that hears of it. The machine must not run yet: only when
	 * gr_destination_run() has returned 0 does the source know that it may not.
	 */
	int (*complete)(void *opaque, struct gr_error *err);
	/**
	 * Make a block that was announced, with gr_ram_block_add(). NULL: the destination adds
	 * a memfd block. Refusing ends the migration.
	 */
	int (*block_add)(void *opaque, const struct gr_block_announcement *what,
			 struct gr_error *err);
	/**
	 * May a source that waits for this word stop its guest now? Asked after each section of RAM
	 * until it says so. NULL: at once.
	 */
	bool (*switchover_ready)(void *opaque);
	/** Some time passed: for progress lines. */
	void (*progress)(void *opaque, const struct gr_migrate_stats *stats);
	void *opaque;
};

/** How to receive. Zero what you do not set. */
struct gr_destination_params {
	size_t size;             /**< sizeof(struct gr_destination_params) */
	const char *machine;     /**< expected machine name; NULL: any */
	bool allow_unterminated; /**< accept a stream without the closing description */
	const uint8_t *uuid;     /**< 16 bytes, copied: refuse a stream that says another one; NULL: any */
	bool plain;              /**< do not answer a guestram: behave as a QEMU does */
	bool switchover_ack;     /**< tell the source when it may switch over: a QEMU from 8.1 on with
				  *   the same capability. A guestram is told anyway. */
	/** As in gr_source_params: blocks of shared files have their content already, and must be there
	 *  under the same names before the move. A source that has it off, or does not take the same
	 *  blocks for shared, is refused; so is a block here whose file was made or got its length when
	 *  the block was added. One of ours also says which file it has: another one, or another place in
	 *  it, is refused if both run since the same boot of one machine. Otherwise, and with a QEMU, that
	 *  both have the same file is for you to see to. */
	bool ignore_shared;
	const struct gr_multifd *multifd; /**< further channels, copied; NULL: none */
};

/**
 * Create a destination. Blocks that ram has already are filled (their sizes must agree);
 * others are created.
 * @param ram      The RAM of a machine that does not run.
 * @param channel  An open incoming channel; borrowed.
 * @param params   May be NULL; copied.
 * @param ops      May be NULL; copied.
 * @param ret_destination Set on success only.
 * @param err      May be NULL.
 * @return 0 or a negative errno.
 * @errors  -EINVAL, -ENOMEM.
 * @context Any thread, outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_destination_create(struct gr_ram *ram, struct gr_channel *channel,
						  const struct gr_destination_params *params,
						  const struct gr_destination_ops *ops,
						  struct gr_destination **ret_destination,
						  struct gr_error *err);

/**
 * Receive everything.
 * @param destination The destination.
 * @param err         May be NULL.
 * @return 0 when all is here, loaded and acknowledged: the guest may run; or a negative
 *         errno: it must not.
 * @errors  -EBADMSG the stream is wrong (block, page and byte offset are named);
 *          -ECANCELED; what the channel or the ops returned.
 * @context One thread. Blocks. Outside a read-side section.
 */
GR_EXPORT GR_MUST_CHECK int gr_destination_run(struct gr_destination *destination,
					       struct gr_error *err);

/**
 * Do a bounded piece of the work: a few records.
 * @param destination The destination.
 * @param err         May be NULL.
 * @return 1 there is more, 0 done, or a negative errno.
 * @context As gr_destination_run(); blocks while the channel has nothing.
 */
GR_EXPORT GR_MUST_CHECK int gr_destination_step(struct gr_destination *destination,
						struct gr_error *err);

/** Ask it to end. @param destination The destination. @context Any thread. */
GR_EXPORT void gr_destination_cancel(struct gr_destination *destination);

/**
 * @param destination The destination.
 * @param ret_stats   Filled.
 * @context Any thread.
 */
GR_EXPORT void gr_destination_stats(struct gr_destination *destination,
				    struct gr_migrate_stats *ret_stats);

/** Free it. @param destination May be NULL. @context Its thread. */
GR_EXPORT void gr_destination_free(struct gr_destination *destination);

GR_END_DECLS
#endif

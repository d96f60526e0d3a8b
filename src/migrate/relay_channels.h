/* SPDX-License-Identifier: MIT */
/*
 * All channels of a migration that is passed on (docs/adr/0018). One thread accepts who comes, and
 * each connection has a thread of its own: it tells by the first byte what has come, hands the main
 * channel over, and passes a further one on, once the main channel is connected there (a QEMU 7.2
 * takes the first for it). A read, a look, a write: back pressure is the writing that waits.
 *
 * Nothing is put in step here. A destination waits at each SYNC for the main channel, and on that
 * one for each SYNC, as it must without us; so a channel may be any number of packets ahead of
 * another. For that the main channel's thread must never hold back what the destination waits for
 * (is_to_be_seen() in relay.c), nor may one channel wait for another: they only wait once, for the
 * page size.
 *
 * Failing: the first error is kept. All further channels are broken, and no more of the main one is
 * read, so that a destination which has something to say may say it; soon after that is broken,
 * too.
 */
#ifndef GR_MIGRATE_RELAY_CHANNELS_H
#define GR_MIGRATE_RELAY_CHANNELS_H

#include "base/mutex.h"
#include "stream/channel.h"
#include "stream/multifd_scan.h"
#include <pthread.h>

enum {
	RELAY_CHUNK_BYTES = 256 << 10,		    /* of a channel, at once */
	RELAY_PLACES = GR_MULTIFD_CHANNELS_MAX + 8, /* for whoever has come, strangers too */
};

struct gr_relay_channels;

/* Whoever has come. */
struct gr_relay_channel {
	struct gr_relay_channels *all; /* (c) */
	pthread_t thread;	       /* (the accepting thread) */
	bool started;		       /* (the accepting thread; main, when that has ended) */
	bool in_use;		       /* (l) */
	bool further;		       /* (l) it is one of the migration's */
	bool admitted; /* (l) further: it need not wait for the main channel any more */
	bool writing;  /* (l) it waits for the destination, if it waits */
	bool ended;    /* (l) its thread has nothing more to do */
	struct gr_channel *from, *to;		  /* (l) to change */
	struct gr_multifd_greeting greeting;	  /* (l) what the source has said */
	uint64_t passed;			  /* (l) bytes */
	uint64_t normal_pages, zero_pages, syncs; /* (l) copies of the scan's */
	struct gr_multifd_scan scan;		  /* (its thread) all below */
	uint8_t hello[GR_MULTIFD_GREETING_BYTES]; /* its greeting, to be written */
	bool deaf;				  /* the destination has closed it, which it may */
	bool to_failed; /* its error is one of writing or connecting to the destination */
};

struct gr_relay_channels {
	struct gr_channel_listener *listener; /* (c) borrowed; shut down at the end */
	const char *to_uri;		      /* (c) */
	bool to_many;			      /* (c) more than one channel can lead there */
	uint64_t limit_ns;		      /* (c) for a first byte, for the main channel, ... */
	struct gr_mutex lock;
	pthread_cond_t changed;	      /* anything below */
	struct gr_channel *main, *to; /* (l) once they are there */
	bool connected;		      /* (l) */
	uint32_t page_bytes;	      /* (l) 0: the main channel has not said */
	uint64_t meetings;	      /* (l) that the main channel has passed */
	bool flushes;		      /* (main) the source says when */
	bool over;		      /* (l) all of RAM has been passed on */
	bool main_ended;	      /* (l) nobody uses the main channel any more */
	bool arriving;		      /* (l) one is accepted, and may have no place yet */
	bool stopped;		      /* (l) errors come of ending */
	struct gr_error error;	      /* (l) the first one */
	bool to_failed;	      /* (l) it is one of writing or connecting to the destination */
	bool refused;	      /* (l) the destination's own word is the reason for it */
	unsigned int further; /* (l) how many there have been */
	struct gr_relay_channel *places; /* (c) RELAY_PLACES */
	pthread_t acceptor;		 /* (c) */
};

/**
 * Accept from now on.
 * @param c        Filled; on failure there is nothing to be ended.
 * @param l        As gr_relay_serve().
 * @param to_uri   The same; a URI.
 * @param limit_ns For what a source does at once.
 * @param err      May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_relay_channels_start(struct gr_relay_channels *c,
					  struct gr_channel_listener *l, const char *to_uri,
					  uint64_t limit_ns, struct gr_error *err);

/** Wait for the main channel and connect it. @param c Started. @param err May be NULL. @return 0 or
 * what has failed. */
GR_MUST_CHECK int gr_relay_channels_main(struct gr_relay_channels *c, struct gr_error *err);

/** @param c Started. @param page_bytes What the main channel has said. */
void gr_relay_channels_set_page_bytes(struct gr_relay_channels *c, uint32_t page_bytes);

/**
 * The main channel has come to where all meet.
 * @param c      Started.
 * @param at_eos As the record FLUSH.
 * @param err    May be NULL.
 * @return 0, or -EPIPE: a channel that should be there has ended.
 */
GR_MUST_CHECK int gr_relay_channels_meet(struct gr_relay_channels *c, bool at_eos,
					 struct gr_error *err);

/** All of RAM has been passed on: the destination may close further channels. @param c Started. */
void gr_relay_channels_over(struct gr_relay_channels *c);

/** What was passed on, added up. */
struct gr_relay_totals {
	uint64_t bytes, normal_pages, zero_pages;
};

/** @param c Zeroed or started. @param ret_totals Filled. */
void gr_relay_channels_totals(struct gr_relay_channels *c, struct gr_relay_totals *ret_totals);

/** The main channel is through, and nobody says that all is there: until the source has closed the
 * others. @param c Started. @param err May be NULL. @return 0 or what has failed. */
GR_MUST_CHECK int gr_relay_channels_drain(struct gr_relay_channels *c, struct gr_error *err);

/** The destination says that it has failed: what fails on further channels now comes of that, and
 * so does that they could not be written to. @param c Started. */
void gr_relay_channels_refused(struct gr_relay_channels *c);

/** The main channel has failed: what fails on further ones from now on comes of that.
 * @param c Started. */
void gr_relay_channels_main_failed(struct gr_relay_channels *c);

/** @param c Started. @param err Filled if something has failed on a further channel. @return What
 * failed first, or 0: nothing has, or it comes of what the destination has said. */
int gr_relay_channels_failed(struct gr_relay_channels *c, struct gr_error *err);

/**
 * End all threads. Well: sources may say more, which nobody reads. Not well: all is broken.
 * @param c    Started.
 * @param well How.
 */
void gr_relay_channels_end(struct gr_relay_channels *c, bool well);

/** @param c Ended; or zeroed. @param err Of the outgoing main channel, which may be a command's.
 * @return 0 or an errno of closing it. */
int gr_relay_channels_close(struct gr_relay_channels *c, struct gr_error *err);

/* ---- between relay_channels.c and relay_channel.c ---- */

/* What a channel's thread does; 0 or a negative errno. */
GR_MUST_CHECK int gr_relay_channel_run(struct gr_relay_channel *ch, struct gr_error *err);
/* Sleeps until something has changed; false: the time is over. */
bool gr_relay_channels_wait(struct gr_relay_channels *c, uint64_t until_ns) GR_REQUIRES(c->lock);

#endif

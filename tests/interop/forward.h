/* SPDX-License-Identifier: MIT */
/* What comes in is the machine of a monitor of ours: its writes are the pages that arrive. */
#ifndef FORWARD_H
#define FORWARD_H

#include "base/atomic.h"
#include "migrate/ram_sink.h"
#include "migrate/receive.h"
#include <pthread.h>

enum { FURTHER_MAX = 16 };

struct incoming {
	struct gr_ram *ram;
	struct gr_receive *receive;
	struct gr_ram_sink *sink;
	struct gr_channel *channel, *further[FURTHER_MAX];
	struct gr_multifd multifd;
	const char *shared; /* the file that pc.ram is, if it stays where it is */
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool has_blocks, ended;		/* (lock) */
	int rc;				/* (lock) */
	struct gr_error err;		/* (lock) */
	gr_atomic_u64 throttle_percent; /* of the time of who writes here */
	char machine[GR_STREAM_MACHINE_BYTES_MAX + 1];
	uint8_t *tail;
	size_t tail_bytes, sections_bytes;
};

/* Listens on uri, says where on stderr, and receives in a thread. */
int incoming_start(struct incoming *in, const char *uri, const struct gr_receive_params *params,
		   struct gr_error *err);
/* Until the blocks are there; or why they will not come. */
int incoming_await_blocks(struct incoming *in, struct gr_error *err);
/* Until all has come and the machine stands still. */
int incoming_await_end(struct incoming *in, struct gr_error *err);
bool incoming_has_ended(struct incoming *in);
uint64_t incoming_pages(struct incoming *in);
/* The devices as they came (gr_source_ops.save, with the incoming as opaque). */
int incoming_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err);
/* Ends it, if need be by force. */
void incoming_end(struct incoming *in);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * The parts of `guestram demo`: cmd_demo.c has the story and the result, demo_link.c
 * measures the link, demo_load.c plugs, unplugs and looks up while the guest moves,
 * demo_peer.c is the second process.
 */
#ifndef TOOL_DEMO_H
#define TOOL_DEMO_H

#include "machine.h"
#include "machine_move.h"
#include "qmp_client.h"
#include <pthread.h>
#include <sys/types.h>

struct demo_options {
	const char *accel; /* NULL: kvm where it works */
	uint64_t memory_bytes;
	unsigned int vcpus;
	enum gr_source_fault fault;
	bool json;
};

/*
 * How many bytes a second go through a local socket into memory that was never touched: what
 * a move can reach here at best. 0 or a negative errno.
 */
int demo_measure_link(uint64_t *ret_bytes_per_s, struct gr_error *err);

/* Plugging, unplugging and lookups without locks, in threads of their own. */
enum { DEMO_LOOKUP_THREADS = 2, DEMO_PLUGS_MIN = 20, DEMO_ALIVE_MIN = 5 };

struct demo_load {
	struct vmm_machine *machine; /* (c) */
	pthread_t threads[DEMO_LOOKUP_THREADS + 1];
	unsigned int started;	     /* (o) */
	bool stop;		     /* (a) */
	bool moving;		     /* (a) what is plugged now is counted */
	uint32_t plugged, unplugged; /* (a) while moving */
	uint32_t next, oldest;	     /* (o) the plugging thread: numbers of blocks */
	uint64_t lookups, wrong;     /* (a) */
	struct gr_error err;	     /* (o) the plugging thread, until it has ended */
};

int demo_load_start(struct demo_load *load, struct vmm_machine *machine, struct gr_error *err);
/* 0, or what went wrong in a thread. */
int demo_load_stop(struct demo_load *load, struct gr_error *err);

/* The second process: `guestram run --incoming`, driven by its monitor. */
struct demo_peer {
	char dir[32]; /* private; has the sockets and what the process said */
	char uri[64]; /* where it waits for the machine */
	pid_t pid;
	struct vmm_qmp_client *qmp;
};

/* What the destination says of its memory. */
struct demo_check {
	uint64_t pages_checked, plugged_pages_checked, device_pages_checked;
	uint64_t pages_written_once, pages_last_written_before_final_round;
	uint64_t pages_wrong;
	uint64_t took_ns;
	char first_wrong[256];
};

/* How the guest got on over there. */
struct demo_life {
	uint64_t gap_ns;     /* the largest its clock saw over the switch */
	uint64_t beats, ops; /* since it was let run */
	bool runs;	     /* heart and every writer */
};

int demo_peer_start(struct demo_peer *peer, const struct demo_options *options,
		    struct gr_error *err);
int demo_peer_check(struct demo_peer *peer, struct demo_check *ret, struct gr_error *err);
/* Let the guest run, look how it does for a while, stop it again. */
int demo_peer_live(struct demo_peer *peer, struct demo_life *ret, struct gr_error *err);
/* End it, and remove what it left. 0 if it ended well. */
int demo_peer_stop(struct demo_peer *peer, struct gr_error *err);

#endif

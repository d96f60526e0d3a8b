/* SPDX-License-Identifier: MIT */
/*
 * What runs the guest's vCPUs: KVM, or threads. The machine (machine.h) owns RAM, tracker,
 * workload, plug table, pacer and the device writer, and drives an accelerator through
 * struct vmm_accel_ops.
 *
 * Life: create -> (load each vCPU) -> start -> resume -> pause -> (save, registers) ->
 * resume ... -> destroy. After start the vCPUs are paused. All calls come from one thread
 * at a time, outside a read-side section.
 */
#ifndef VMM_ACCEL_H
#define VMM_ACCEL_H

#include "pacer.h"
#include "workload.h"
#include <guestram/track.h>

struct vmm_accel;

/* What the machine gives an accelerator; everything outlives it. */
struct vmm_accel_env {
	struct gr_ram *ram;		     /* the main RAM is there already, at gpa 0 */
	struct gr_track *track;		     /* create() takes the trackers into use */
	unsigned int vcpus;		     /* 1 to VMM_WRITERS_MAX - 1 */
	const struct vmm_workload *workload; /* NULL: a flat image is run instead */
	const char *flat;		     /* path of the flat image, or NULL */
	int debug_fd;		 /* where bytes for the debug port 0xe9 go; -1: nowhere */
	bool incoming;		 /* guest RAM will come from a move: write none of it */
	bool software_tracker;	 /* use no other tracker: for tests */
	struct vmm_pacer *pacer; /* vCPU v is its writer v */
	/*
	 * The guest ended by itself: a halt for ever, a triple fault, an exit nobody
	 * understands. `why` is a line for the user. From a vCPU's thread.
	 */
	void (*stopped)(void *opaque, const char *why);
	void *opaque;
};

/* A growing run of bytes: what save() fills. */
struct vmm_blob {
	uint8_t *data;
	size_t bytes;
	size_t room;
};

/* Append; -ENOMEM. vmm_blob_free() is for the owner. */
int vmm_blob_put(struct vmm_blob *blob, const void *data, size_t bytes, struct gr_error *err);
void vmm_blob_free(struct vmm_blob *blob);

struct vmm_accel_ops {
	const char *name; /* "kvm", "threads" */

	/*
	 * Whether it works on this machine; writes the reason into err if not. Opens and
	 * closes what it needs to find out.
	 */
	int (*probe)(struct gr_error *err);

	/*
	 * Prepare vCPUs and trackers; nothing runs. For a workload guest it may write its
	 * own system pages (VMM_ACCEL_GPA on) here, unless the machine is incoming. Sets
	 * accel->writers.
	 */
	int (*create)(const struct vmm_accel_env *env, struct vmm_accel **ret_accel,
		      struct gr_error *err);
	void (*destroy)(struct vmm_accel *accel); /* pauses first if it runs */

	/* Make the threads; they stay paused. */
	int (*start)(struct vmm_accel *accel, struct gr_error *err);

	/* Begin to pause: it returns at once; vCPUs finish what they do, and do no more. */
	void (*pause_begin)(struct vmm_accel *accel);
	/*
	 * O6: when it returns, every vCPU is out of the guest with its pending exit
	 * completed, and its heartbeat has stopped. The registers say what each has done.
	 */
	int (*pause)(struct vmm_accel *accel, struct gr_error *err);
	void (*resume)(struct vmm_accel *accel);

	/* A vCPU's whole state, own layout with a version inside; paused. */
	int (*save)(struct vmm_accel *accel, unsigned int cpu, struct vmm_blob *blob,
		    struct gr_error *err);
	/* The reverse: bytes from outside, check them. -EBADMSG. Guest RAM is there already. */
	int (*load)(struct vmm_accel *accel, unsigned int cpu, const void *data, size_t bytes,
		    struct gr_error *err);

	/* What the workload's writer has in its registers; paused, workload guests only. */
	int (*registers)(struct vmm_accel *accel, unsigned int cpu, struct vmm_writer_regs *regs,
			 struct gr_error *err);

	/* Every register by name, for people; paused. */
	void (*describe)(struct vmm_accel *accel, unsigned int cpu,
			 void (*emit)(void *opaque, const char *name, uint64_t value),
			 void *opaque);
};

/* Every accelerator's own struct begins with this. */
struct vmm_accel {
	const struct vmm_accel_ops *ops; /* (c) */
	struct vmm_accel_env env;	 /* (c) */
	unsigned int writers;		 /* (c) enum gr_writers: who writes, for gr_track_start() */
};

extern const struct vmm_accel_ops vmm_accel_threads;
extern const struct vmm_accel_ops vmm_accel_kvm;

#endif

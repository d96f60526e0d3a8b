/* SPDX-License-Identifier: MIT */
/*
 * QMP, the protocol of QEMU's monitor, served on a Unix socket: a greeting, negotiation,
 * commands with an id that comes back, errors with a class, events with a time. What the
 * commands are is the caller's business (monitor.c).
 *
 * One client at a time is served, others wait until it goes. A message is a JSON object; it
 * ends where its braces balance, so the newline that clients send is welcome and not needed.
 * What is no JSON gets an error and the server lives on.
 */
#ifndef VMM_QMP_H
#define VMM_QMP_H

#include <guestram/error.h>
#include <guestram/loop.h>
#include <jansson.h>

enum {
	VMM_QMP_MESSAGE_BYTES_MAX = 64 << 10, /* longer ones are refused */
	VMM_QMP_PENDING_BYTES_MAX = 1 << 20,  /* a client that does not read is dropped */
};

struct vmm_qmp;

/*
 * A command. args is an object, maybe empty; ret_value, a new reference, may be left NULL for
 * an empty object. On failure the message of err goes to the client.
 */
typedef int vmm_qmp_command_fn(void *opaque, json_t *args, json_t **ret_value,
			       struct gr_error *err);

struct vmm_qmp_command {
	const char *name;
	/* Its arguments' names, separated by blanks; others are refused. */
	const char *arguments;
	vmm_qmp_command_fn *fn;
};

/*
 * Serve on a socket ("unix:PATH" or PATH; QEMU's ",server=on,wait=off" behind it is fine), by
 * handlers of the loop. NULL: no socket, events vanish. The commands end with an entry without
 * name; they run in the loop's thread.
 */
int vmm_qmp_create(struct gr_loop *loop, const char *where, const struct vmm_qmp_command *commands,
		   void *opaque, struct vmm_qmp **ret_qmp, struct gr_error *err);
/* The loop's thread, or while the loop does not run. */
void vmm_qmp_free(struct vmm_qmp *qmp);

/*
 * Serve no more commands, and send what waits to be sent, but do not wait long: before the
 * process ends. Runs the loop.
 */
void vmm_qmp_flush(struct vmm_qmp *qmp);

/* Send an event; takes the reference to data, which may be NULL. Any thread. */
void vmm_qmp_event(struct vmm_qmp *qmp, const char *name, json_t *data);

/* Arguments, for commands. -EINVAL with QEMU's words; an optional one that is not there
 * leaves *ret as it is. */
int vmm_qmp_get_string(json_t *args, const char *name, const char **ret, struct gr_error *err);
int vmm_qmp_get_u64(json_t *args, const char *name, uint64_t *ret, struct gr_error *err);
int vmm_qmp_need(json_t *args, const char *name, struct gr_error *err);

/* Numbers in answers; what a JSON integer has no room for becomes the largest. */
json_t *vmm_qmp_u64(uint64_t value);
void vmm_qmp_set_u64(json_t *object, const char *name, uint64_t value);

/*
 * How long the first message in some bytes is, for readers of either side: 0 if it is not
 * complete yet. Sets ret_skip to the blank bytes before it.
 */
size_t vmm_qmp_frame(const char *data, size_t bytes, size_t *ret_skip);

#endif

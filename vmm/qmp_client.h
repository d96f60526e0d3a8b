/* SPDX-License-Identifier: MIT */
/* The other side of QMP: talks to `guestram run` or to a QEMU. One thread at a time. */
#ifndef VMM_QMP_CLIENT_H
#define VMM_QMP_CLIENT_H

#include <guestram/error.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct vmm_qmp_client;

/*
 * Connect, read the greeting, negotiate. where is "unix:PATH" or PATH; if nobody listens
 * there yet, it is tried again until timeout_ms have passed. Every later answer must also
 * come within a minute.
 */
int vmm_qmp_connect(const char *where, int timeout_ms, struct vmm_qmp_client **ret_client,
		    struct gr_error *err);
void vmm_qmp_disconnect(struct vmm_qmp_client *client);

/*
 * Execute a command and wait for its answer; events that come meanwhile are dropped.
 * arguments is taken and may be NULL. ret_value, a new reference, may be NULL. -EREMOTEIO:
 * the monitor said no, its words are in err.
 */
int vmm_qmp_execute(struct vmm_qmp_client *client, const char *command, json_t *arguments,
		    json_t **ret_value, struct gr_error *err);

/* Of an answer, which may be NULL: 0 if there is no such number, "" if there is no such string. */
uint64_t vmm_qmp_number(const json_t *object, const char *name);
const char *vmm_qmp_text(const json_t *object, const char *name);
/* Whether the migration or snapshot that the answer is about has ended, well or not. */
bool vmm_qmp_has_ended(const json_t *answer);

#endif

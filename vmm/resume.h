/* SPDX-License-Identifier: MIT */
/* A machine that comes from an image: all of it before it runs, or while it runs. */
#ifndef VMM_RESUME_H
#define VMM_RESUME_H

#include "machine.h"
#include <guestram/image.h>
#include <jansson.h>

struct vmm_resume_params {
	const char *path; /* the image; NULL: none */
	uint64_t offset;  /* where in the file it begins */
	bool lazy;	  /* the machine may run before its memory has come */
	uint64_t bandwidth_bytes_per_s_max; /* lazy: of loading ahead; 0: no limit */
};

struct vmm_resume;

/*
 * Bring a machine, made with .incoming, from an image. When it returns 0 the machine is paused and may
 * run; ret_ran says whether it ran when the image was made.
 */
int vmm_resume_begin(struct vmm_machine *machine, const struct vmm_resume_params *params,
		     bool *ret_ran, struct vmm_resume **ret_resume, struct gr_error *err);
/* Readable when all has come or something cannot be read; -1: everything was there at once. */
int vmm_resume_fd(const struct vmm_resume *resume);
/* 0: it goes on, or all has come; or what could not be read. Who touches that waits. As vmm_resume_retry(): one thread. */
int vmm_resume_failed(struct vmm_resume *resume, struct gr_error *err);
/* Whether all has come. */
bool vmm_resume_completed(struct vmm_resume *resume);
/* Try again what could not be read. */
void vmm_resume_retry(struct vmm_resume *resume);
/* The answer to a query: "status" and numbers; "error-desc" if something could not be read. */
json_t *vmm_resume_query(struct vmm_resume *resume);
/*
 * End and free it, before the machine: who waits for memory waits no more. If not all has come the machine
 * does nothing new from then on and has to be freed. May be NULL.
 */
void vmm_resume_free(struct vmm_resume *resume);

#endif

/* SPDX-License-Identifier: MIT */
/* Those of the commands of QEMU's monitor for people that speak of RAM. */
#ifndef VMM_HUMAN_H
#define VMM_HUMAN_H

#include <guestram/ram.h>
#include <jansson.h>

/* line: "info ramblock", "info mtree" or "info mtree -f". ret_text: a string, a new reference. */
int vmm_human_command(struct gr_ram *ram, const char *line, json_t **ret_text,
		      struct gr_error *err);

#endif

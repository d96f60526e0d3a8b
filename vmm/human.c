/* SPDX-License-Identifier: MIT */
#include "human.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int format_ram(struct gr_ram *ram, enum gr_ram_view view, json_t **ret_text,
		      struct gr_error *err)
{
	size_t need = gr_ram_format(ram, view, NULL, 0), room;
	char *text = NULL;

	do { /* the list may grow in between */
		room = need + 1;
		free(text);
		text = malloc(room);
		if (!text) {
			return gr_error_set(err, -ENOMEM, "no memory for the list of RAM");
		}
		need = gr_ram_format(ram, view, text, room);
	} while (need >= room);
	*ret_text = json_string(text);
	free(text);
	return *ret_text ? 0 : gr_error_set(err, -ENOMEM, "no memory for the list of RAM");
}

int vmm_human_command(struct gr_ram *ram, const char *line, json_t **ret_text, struct gr_error *err)
{
	if (strcmp(line, "info ramblock") == 0) {
		return format_ram(ram, GR_RAM_VIEW_BLOCKS, ret_text, err);
	}
	if (strcmp(line, "info mtree") == 0 || strcmp(line, "info mtree -f") == 0) {
		return format_ram(ram, GR_RAM_VIEW_REGIONS, ret_text, err);
	}
	return gr_error_set(err, -EINVAL, "'%s': there are 'info ramblock' and 'info mtree' only",
			    line);
}

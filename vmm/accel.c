/* SPDX-License-Identifier: MIT */
#include "accel.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int vmm_blob_put(struct vmm_blob *blob, const void *data, size_t bytes, struct gr_error *err)
{
	if (bytes > blob->room - blob->bytes) {
		size_t room = 2 * (blob->bytes + bytes) + 64;
		uint8_t *grown = realloc(blob->data, room);

		if (!grown) {
			return gr_error_set(err, -ENOMEM, "no memory for %zu bytes of state", room);
		}
		blob->data = grown;
		blob->room = room;
	}
	if (bytes > 0) {
		memcpy(blob->data + blob->bytes, data, bytes);
	}
	blob->bytes += bytes;
	return 0;
}

void vmm_blob_free(struct vmm_blob *blob)
{
	free(blob->data);
	*blob = (struct vmm_blob){ 0 };
}

/* SPDX-License-Identifier: MIT */
/* Pages that were compressed one by one with zlib (QEMU's COMPRESS_PAGE, up to version 9.0). */
#ifndef GR_STREAM_INFLATE_H
#define GR_STREAM_INFLATE_H

#include "base/compiler.h"
#include <stddef.h>
#include <stdint.h>

struct gr_inflate; /* zlib's state, kept from page to page */

/* The most bytes that n can become: deflate's stored blocks, and zlib's header and trailer. */
size_t gr_deflated_bytes_max(size_t n);

/**
 * Decompress one page.
 * @param state      The caller's; NULL at first, to be freed with gr_inflate_free().
 * @param data       One whole zlib stream.
 * @param bytes      Its length.
 * @param page       Where to; its content is undefined after an error.
 * @param page_bytes What must come out, exactly.
 * @return 0 or a negative errno.
 * @errors -EBADMSG not a zlib stream, more than one, or not of a page; -ENOMEM; -EOPNOTSUPP
 *         built without zlib.
 */
GR_MUST_CHECK int gr_inflate_page(struct gr_inflate **state, const uint8_t *data, size_t bytes,
				  uint8_t *page, size_t page_bytes);

/** @param state May be NULL. */
void gr_inflate_free(struct gr_inflate *state);

#endif

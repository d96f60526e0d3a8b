/* SPDX-License-Identifier: MIT */
/**
 * guestram/codec.h - pages made short: zeros found, and the difference to what the other side has.
 *
 * XBZRLE in QEMU's dialect: pairs of "so many bytes are the same", "so many are new" and the new
 * ones. The fastest way that the processor has is chosen at run time (AVX-512, AVX2, SSE2, or plain
 * C).
 *
 *     n = gr_xbzrle_encode(sent_last, page, 4096, delta, sizeof(delta));
 *     if (n == 0)              // nothing has changed
 *     else if (n == -E2BIG)    // send the whole page
 *     else                     // n bytes, for gr_xbzrle_decode() over there
 *
 * Threads: pure functions, any thread.
 *
 * Caveats: none of the pages may change meanwhile. Of a page that a guest writes make a
 * copy first, and keep that copy: it is what the other side has then, not the page.
 */
#ifndef GUESTRAM_CODEC_H
#define GUESTRAM_CODEC_H

#include <guestram/types.h>
#include <sys/types.h>

GR_BEGIN_DECLS

/**
 * Whether memory is zero. It may be written meanwhile: then it was zero, or not, word by word.
 * @param p     Aligned to 8 bytes.
 * @param bytes A multiple of 64, not 0.
 * @return true if all bytes are zero.
 * @context Any.
 */
GR_EXPORT GR_MUST_CHECK bool gr_is_zero(const void *p, size_t bytes);

/**
 * Write a page as the difference to what the other side has.
 *
 * @param old        What the other side has.
 * @param page       What it is to have.
 * @param page_bytes Bytes of both: a multiple of 64.
 * @param out        The delta.
 * @param room       Its room; a delta that needs more is none.
 * @return Bytes of the delta, 0 if the pages are the same, or -E2BIG: send the page instead.
 * @errors  -E2BIG it does not fit; also a stretch of new bytes longer than 16383, which the format
 *          cannot say (pages larger than 16 KiB only).
 * @context Any.
 * @source  Svard et al., "Evaluation of delta compression techniques for efficient live
 *          migration of large virtual machines", VEE 2011.
 */
GR_EXPORT GR_MUST_CHECK ssize_t gr_xbzrle_encode(const uint8_t *old, const uint8_t *page,
						 size_t page_bytes, uint8_t *out, size_t room);

/**
 * Apply a delta to a page. Nothing is written unless all of it is valid. Up to 31 bytes of the page
 * behind a changed stretch may be read and written again as they are: nobody may store to the page
 * meanwhile.
 *
 * @param page          The content that the sender knew of.
 * @param payload       The delta.
 * @param payload_bytes 0 changes nothing.
 * @param page_bytes    Bytes of the page.
 * @return 0 or -EBADMSG.
 * @errors  -EBADMSG it goes beyond the page, is cut off, breaks one of the rules that QEMU
 *          enforces, or is longer than UINT32_MAX, or the page is.
 * @context Any.
 */
GR_EXPORT GR_MUST_CHECK int gr_xbzrle_decode(uint8_t *page, const uint8_t *payload,
					     size_t payload_bytes, size_t page_bytes);

GR_END_DECLS
#endif

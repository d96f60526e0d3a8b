/* SPDX-License-Identifier: MIT */
/*
 * An image that is being written. Pages come in any order and any number of times, each
 * goes to its place; the bitmaps are kept in memory (one bit a page, and one for "was ever
 * written") and reach the file last, after every page. So a file with a whole tail is a
 * whole image, and nothing else is.
 *
 *     gr_image_store_create(path)      path.part exists, locked, empty
 *     gr_image_store_config()          as received
 *     gr_image_store_blocks()
 *     { gr_image_store_run(), _pages(), _zero(), _page_read() }*
 *     gr_image_store_finish()          bitmaps, END, tail, on disk, renamed to path
 *     gr_image_store_free()            without finish: path.part stays
 *
 * One thread, but for pages: gr_image_store_run(), _pages(), _zero() and _page_read() may be called
 * by several at once, of different pages.
 */
#ifndef GR_IMAGE_STORE_H
#define GR_IMAGE_STORE_H

#include "image/format.h"

struct gr_image_store;

/**
 * Begin path.part.
 * @param path      The image that shall come out.
 * @param ret_store The store.
 * @param err       May be NULL.
 * @return 0 or a negative errno.
 * @errors -EBUSY somebody else is writing there; -EISDIR, -EINVAL the name belongs to
 *         something that is not a file; what the file system says.
 */
GR_MUST_CHECK int gr_image_store_create(const char *path, struct gr_image_store **ret_store,
					struct gr_error *err);

/* Zero what you do not set. */
struct gr_image_store_params {
	uint64_t offset; /* where in the file the image begins; what is in front of it stays */
	bool direct;	 /* pages go around the page cache where that is possible */
};

/** The same with params. */
GR_MUST_CHECK int gr_image_store_create_with(const char *path,
					     const struct gr_image_store_params *params,
					     struct gr_image_store **ret_store,
					     struct gr_error *err);

/**
 * Whether pages go around the page cache.
 * @param s     The store.
 * @param why   If they were to and do not: why. Else "".
 * @param bytes Its size.
 * @return true if they do.
 */
bool gr_image_store_direct(const struct gr_image_store *s, char *why, size_t bytes);

/** @param s May be NULL. Closes; deletes nothing. */
void gr_image_store_free(struct gr_image_store *s);

/** The same, and path.part goes; an image that has its name stays. @param s May be NULL. */
void gr_image_store_discard(struct gr_image_store *s);

/**
 * Take over file header and configuration.
 * @param s          The store.
 * @param raw        As received.
 * @param bytes      How many.
 * @param page_bytes Of the target.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_image_store_config(struct gr_image_store *s, const void *raw, size_t bytes,
					uint32_t page_bytes, struct gr_error *err);

/**
 * The same for a machine of ours, instead of gr_image_store_config().
 * @param s          The store.
 * @param machine    Its name.
 * @param page_bytes Of the target.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 * @errors -EINVAL a name or page size that no image can have; what the file system says.
 */
GR_MUST_CHECK int gr_image_store_machine(struct gr_image_store *s, const char *machine,
					 uint32_t page_bytes, struct gr_error *err);

/**
 * Lay the file out and write everything in front of the pages but the bitmaps.
 * @param s          The store, configured.
 * @param section_id Of the sender's 'ram'.
 * @param places     id and used_bytes are given; copied. In the stream's order.
 * @param n          How many, at least 1.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 * @errors -EFBIG too large; -ENOMEM; what the file system says.
 */
GR_MUST_CHECK int gr_image_store_blocks(struct gr_image_store *s, uint32_t section_id,
					const struct gr_image_place *places, size_t n,
					struct gr_error *err);

/**
 * Pages with bytes that follow each other: one write.
 * @param s      The store.
 * @param block  Index.
 * @param offset Bytes in the block.
 * @param data   From where; with direct I/O at a multiple of the host's page.
 * @param bytes  How many: whole pages.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_image_store_run(struct gr_image_store *s, size_t block, uint64_t offset,
				     const void *data, size_t bytes, struct gr_error *err);

/*
 * Here and below: offsets are checked already (inside the block, multiples of the page
 * size); errors are those of the file, the receive loop puts block and page in front.
 */

/**
 * Pages with bytes. Consecutive ones go out in one write.
 * @param s       The store.
 * @param block   Index.
 * @param offsets Bytes in the block.
 * @param count   Pages.
 * @param data    count pages.
 * @param ret_bad On failure: index of the first page that was not written.
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_image_store_pages(struct gr_image_store *s, size_t block,
				       const uint64_t *offsets, size_t count, const uint8_t *data,
				       uint32_t *ret_bad, struct gr_error *err);

/**
 * A range that is zero: costs a few bits. The space of pages written earlier is given back
 * at the end.
 * @param s      The store.
 * @param block  Index.
 * @param offset Bytes in the block.
 * @param bytes  How many.
 */
void gr_image_store_zero(struct gr_image_store *s, size_t block, uint64_t offset, uint64_t bytes);

/**
 * What a page has now.
 * @param s      The store.
 * @param block  Index.
 * @param offset Bytes in the block.
 * @param page   Filled.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_image_store_page_read(struct gr_image_store *s, size_t block, uint64_t offset,
					   uint8_t *page, struct gr_error *err);

/**
 * Complete the image, bring it to disk, give it its name.
 * @param s     The store.
 * @param tail  The device tail, verbatim.
 * @param bytes How many.
 * @param err   May be NULL.
 * @return 0 or a negative errno: then nothing has the name that did not have it before, unless it
 * is the name alone that could not be brought to disk (gr_part_commit()).
 */
GR_MUST_CHECK int gr_image_store_finish(struct gr_image_store *s, const void *tail, size_t bytes,
					struct gr_error *err);

#endif

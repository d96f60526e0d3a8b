/* SPDX-License-Identifier: MIT */
/**
 * guestram/error.h - how the library reports failure.
 *
 * Functions that can fail return 0 or a negative errno and take a struct gr_error as
 * their last parameter. It belongs to the caller, has a fixed size and may be NULL, so
 * an error costs no memory and needs no freeing:
 *
 *     struct gr_error err;
 *     if (gr_ram_block_add(ram, &desc, &block, &err) < 0)
 *             fprintf(stderr, "cannot add memory: %s\n", err.msg);
 *
 * It is written on failure only. Out-parameters (ret_x) are written on success only.
 */
#ifndef GUESTRAM_ERROR_H
#define GUESTRAM_ERROR_H

#include <guestram/types.h>

GR_BEGIN_DECLS

enum { GR_ERROR_MSG_BYTES = 504 };

/** What went wrong, in words that name the object and the place. */
struct gr_error {
	int code;                      /**< negative errno, the same as the return value */
	char msg[GR_ERROR_MSG_BYTES];  /**< one line of UTF-8; cut if too long. What is no
				*   printable character in quoted names is a ? */
};

/**
 * Fill an error.
 * @param err  May be NULL.
 * @param code A negative errno.
 * @param fmt  printf format of the message.
 * @return code, so that callers can write `return gr_error_set(...)`.
 * @context Any; does not allocate.
 */
GR_EXPORT int gr_error_set(struct gr_error *err, int code, const char *fmt, ...) GR_PRINTF(3, 4);

/**
 * Put words in front of an error's message ("block 'pc.ram': " + what is there).
 * @param err May be NULL.
 * @param fmt printf format of what goes in front.
 * @return err->code, or 0 when err is NULL.
 * @context Any; does not allocate.
 */
GR_EXPORT int gr_error_prefix(struct gr_error *err, const char *fmt, ...) GR_PRINTF(2, 3);

GR_END_DECLS
#endif

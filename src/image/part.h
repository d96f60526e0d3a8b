/* SPDX-License-Identifier: MIT */
/*
 * A file that gets its name when it is complete. Until then it is path.part, locked so that nobody
 * else writes there, and what has the name stays what it is.
 */
#ifndef GR_IMAGE_PART_H
#define GR_IMAGE_PART_H

#include <guestram/error.h>
#include <stdbool.h>

struct gr_part {
	int fd;
	char *path;
	char *part_path; /* for messages */
	bool named;	 /* the file has its name: path.part is nobody's, or another's */
};

/**
 * Begin path.part.
 * @param p          Set to zero by us; gr_part_close() it, also after a failure.
 * @param path       The name that the file shall have.
 * @param keep_bytes So many bytes of the file that has the name now are those of the new one; where
 * it is shorter, or not there, zeroes.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 * @errors -EBUSY somebody else is writing there; -EISDIR, -EINVAL the name belongs to something
 * that is not a file; what the file system says.
 */
GR_MUST_CHECK int gr_part_open(struct gr_part *p, const char *path, uint64_t keep_bytes,
			       struct gr_error *err);

/**
 * Bring it to disk and give it its name.
 * @param p   Open.
 * @param err May be NULL.
 * @return 0 or a negative errno. Where the last step failed, which brings the name to disk, the new
 *         file has it, until the host crashes at least.
 */
GR_MUST_CHECK int gr_part_commit(struct gr_part *p, struct gr_error *err);

/** Delete path.part, unless the file has its name already. @param p Opened, or zeroed with fd -1. */
void gr_part_discard(struct gr_part *p);

/** Let go of it; deletes nothing. @param p Opened, or zeroed with fd -1. */
void gr_part_close(struct gr_part *p);

#endif

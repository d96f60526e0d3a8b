/* SPDX-License-Identifier: MIT */
/* The steps of loading an image, at once (load.c) or while the machine runs already (resume.c). */
#ifndef GR_IMAGE_LOAD_H
#define GR_IMAGE_LOAD_H

#include "image/image.h"
#include "image/members.h"

/** @return 0, or -EINVAL: the image is of another machine than `machine`, which may be NULL: any.
 */
GR_MUST_CHECK int gr_image_check_machine(const struct gr_image *image, const char *machine,
					 struct gr_error *err);

/**
 * Find or make the machine's block for each part of an image, in the order of the parts.
 * @param m     Zero; gr_image_members_free() it, also after a failure.
 * @param image The image.
 * @param ram   The machine.
 * @param ops   Not NULL.
 * @param err   May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_image_members_attach(struct gr_image_members *m, struct gr_image *image,
					  struct gr_ram *ram, const struct gr_destination_ops *ops,
					  struct gr_error *err);

/**
 * Fill the blocks.
 * @param image   The image.
 * @param m       Attached; those whose bytes are 0 are left alone.
 * @param threads The caller's among them.
 * @param direct  Around the page cache where that is possible.
 * @param stats   Filled but for the time.
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_image_load_members(struct gr_image *image, struct gr_image_members *m,
					unsigned int threads, bool direct,
					struct gr_image_stats *stats, struct gr_error *err);

/** Hand the devices to the machine and ask it whether it has all. @return 0 or a negative errno. */
GR_MUST_CHECK int gr_image_load_devices(struct gr_image *image,
					const struct gr_destination_ops *ops, struct gr_error *err);

#endif

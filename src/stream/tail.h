/* SPDX-License-Identifier: MIT */
/*
 * The device tail: what follows the last 'ram' section. Sections of devices have no length
 * in QEMU's format, so a third program cannot walk them; but it need not: the tail is
 * passed on as it came. It ends with
 *
 *     00 (EOF)  06 be32 length  JSON
 *
 * and is complete exactly if that description ends with the last byte. The description
 * names the devices, which is enough to list them, and to find where each one's section
 * begins and ends (its footer and the header of the next one are known bytes).
 *
 * Machines of our own write the same frame with a length in front of each device's data
 * and say so in the description; only such tails are ever iterated.
 */
#ifndef GR_STREAM_TAIL_H
#define GR_STREAM_TAIL_H

#include "stream/wire.h"
#include <guestram/error.h>

enum {
	GR_TAIL_DEVICES_MAX = 4096,
	GR_TAIL_DESCRIPTION_BYTES_MAX = 64 << 20,
	GR_TAIL_CANDIDATES_MAX = 16,
};
#define GR_TAIL_BYTES_MAX_DEFAULT ((size_t)1 << 30)

/* What has come of a tail. The caller's memory; one thread. */
struct gr_tail {
	uint8_t *data;
	size_t bytes;
	size_t capacity;
	size_t bytes_max;
	size_t scanned;	    /* starts of descriptions were looked for below this */
	size_t description; /* where 00 06 stands, valid if complete */
	bool complete;
	bool checked; /* complete is right for the present bytes */
	/* places that look like the start of a description that ends further on */
	struct {
		size_t start, end;
	} candidates[GR_TAIL_CANDIDATES_MAX];
	unsigned candidate_count;
};

/* A device as the description lists it. */
struct gr_tail_device {
	char name[GR_STREAM_ID_BYTES_MAX + 1];
	uint32_t instance_id;
	uint32_t version;  /* from the section's header; 0 if !located */
	bool located;	   /* its section was found */
	size_t section_at; /* in the tail: the 04 of the section, if located */
	size_t data_at;	   /* in the tail: the first byte of its data, if located */
	size_t data_bytes; /* if located */
};

/**
 * @param t         The caller's memory.
 * @param bytes_max Refuse more; 0 = 1 GiB.
 */
void gr_tail_init(struct gr_tail *t, size_t bytes_max);

/** @param t Initialised; may be destroyed again. */
void gr_tail_destroy(struct gr_tail *t);

/**
 * Add what came.
 * @param t    The tail.
 * @param data Copied.
 * @param n    Bytes.
 * @param err  May be NULL.
 * @return 0 or a negative errno.
 * @errors -EFBIG more than bytes_max; -ENOMEM.
 */
GR_MUST_CHECK int gr_tail_append(struct gr_tail *t, const void *data, size_t n,
				 struct gr_error *err);

/**
 * Whether the description ends with the last byte so far. With a return path the sender
 * does not close before it has our answer: stop reading as soon as this is true.
 * @param t The tail.
 * @return true when complete.
 */
bool gr_tail_is_complete(struct gr_tail *t);

/**
 * Whether a complete tail is one whole: each byte before the description is a section of a device that it
 * lists. Device state may hold bytes that look like the end, put there by a guest: then this is false.
 * @param t The tail.
 * @return true if nothing is unaccounted for. All that QEMU sends is.
 */
bool gr_tail_is_accounted(struct gr_tail *t);

/**
 * Judge a tail when its source has ended.
 * @param t                  The tail.
 * @param allow_unterminated Accept one without description (QEMU's suppress-vmdesc): then a
 *                           truncated tail cannot be told from a whole one.
 * @param err                May be NULL.
 * @return 0 or -EPIPE: truncated or without description.
 */
GR_MUST_CHECK int gr_tail_finish(struct gr_tail *t, bool allow_unterminated, struct gr_error *err);

/**
 * The description's JSON text.
 * @param t         A tail.
 * @param ret_bytes Its length.
 * @return Where it begins in t->data (no NUL at its end), or NULL if the tail is not complete.
 */
const char *gr_tail_description(struct gr_tail *t, size_t *ret_bytes);

/**
 * The part that a postcopy package carries: the sections without EOF and description.
 * @param t A tail.
 * @return Bytes from t->data on; all of it if there is no description.
 */
size_t gr_tail_sections_bytes(struct gr_tail *t);

/**
 * List the devices.
 * @param t           A complete tail.
 * @param ret_devices To be freed with free().
 * @param ret_count   How many.
 * @param err         May be NULL.
 * @return 0 or a negative errno.
 * @errors -ENODATA no description; -EBADMSG one without a list of devices; -ENOMEM.
 */
GR_MUST_CHECK int gr_tail_devices(struct gr_tail *t, struct gr_tail_device **ret_devices,
				  size_t *ret_count, struct gr_error *err);

/**
 * Whether one of our machines wrote this tail, so that its sections may be iterated.
 * @param t A tail.
 * @return true if the description says so.
 */
bool gr_tail_is_ours(struct gr_tail *t);

/* One section of a tail of ours. Pointers into the tail; name is not NUL-terminated. */
struct gr_tail_section {
	uint32_t section_id;
	uint32_t instance_id;
	uint32_t version;
	const char *name;
	size_t name_bytes;
	const uint8_t *data;
	size_t data_bytes;
};

/**
 * Walk a tail that gr_tail_is_ours() recognised.
 * @param t       The tail.
 * @param cursor  0 at first; where to go on.
 * @param section Filled when 1 is returned.
 * @param err     May be NULL.
 * @return 1, 0 after the last one, or -EBADMSG (names the byte in the tail).
 */
GR_MUST_CHECK int gr_tail_section_next(struct gr_tail *t, size_t *cursor,
				       struct gr_tail_section *section, struct gr_error *err);

/* Builds a tail of ours. The first failure is kept and returned by gr_tail_builder_finish(). */
struct gr_tail_builder {
	struct gr_tail tail;
	struct gr_tail json; /* the description's devices, growing */
	uint32_t page_bytes;
	size_t count;
	const uint8_t *end; /* what gr_tail_builder_pass() keeps for the end; NULL: our own */
	size_t end_bytes;
	struct gr_error err;
};

/**
 * @param b          The caller's memory.
 * @param page_bytes Of the target; told in the description.
 */
void gr_tail_builder_init(struct gr_tail_builder *b, uint32_t page_bytes);

/** @param b Initialised. */
void gr_tail_builder_destroy(struct gr_tail_builder *b);

/**
 * Add a device's state as a FULL section.
 * @param b           The builder.
 * @param section_id  Not that of 'ram'.
 * @param name        1..255 bytes of printable ASCII without '"' and '\'.
 * @param instance_id Of several devices of that name.
 * @param version     Of the data's layout.
 * @param data        Copied.
 * @param n           Bytes.
 */
void gr_tail_builder_add(struct gr_tail_builder *b, uint32_t section_id, const char *name,
			 uint32_t instance_id, uint32_t version, const void *data, size_t n);

/**
 * Pass another machine's tail on as it came; nothing else may be added.
 * @param b              The builder.
 * @param data           The tail; its end is copied with gr_tail_builder_finish() only.
 * @param n              Bytes.
 * @param sections_bytes gr_tail_sections_bytes() of it: what comes before EOF and description.
 */
void gr_tail_builder_pass(struct gr_tail_builder *b, const uint8_t *data, size_t n,
			  size_t sections_bytes);

/**
 * Add EOF and description.
 * @param b         The builder.
 * @param ret_data  The whole tail; lives until gr_tail_builder_destroy().
 * @param ret_bytes Its length.
 * @param err       May be NULL.
 * @return 0 or the first failure: -EINVAL a name; -EFBIG, -ENOMEM.
 */
GR_MUST_CHECK int gr_tail_builder_finish(struct gr_tail_builder *b, const uint8_t **ret_data,
					 size_t *ret_bytes, struct gr_error *err);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Writes QEMU's migration stream, byte for byte as QEMU 7.2 lays it out (section footers
 * on), and the records of our own peers when asked to.
 *
 *     gr_stream_write_config(w, "pc-i440fx-7.2", 4096)     or _raw() with a kept one
 *     gr_stream_write_start(w, section_id, blocks, n)      START and the block list
 *     gr_stream_write_eos(w)                               EOS and footer
 *     gr_stream_write_section(w, GR_SECTION_PART)
 *     gr_stream_write_pages(...) gr_stream_write_zero(...)
 *     gr_stream_write_eos(w)
 *     gr_stream_write_section(w, GR_SECTION_END) ... gr_stream_write_eos(w)
 *     gr_stream_write_raw(w, tail, bytes)
 *     gr_stream_flush(w)
 *
 * Small records gather in a buffer; pages go out from where they are, up to 64 in one
 * system call, together with what was gathered. So after gr_stream_write_pages() returned
 * their memory is not looked at again (writers of guest RAM rely on it: O2).
 * Nothing else is sent before gr_stream_flush() or the buffer is full.
 * Not thread-safe: one thread uses a writer.
 */
#ifndef GR_STREAM_WRITER_H
#define GR_STREAM_WRITER_H

#include "stream/channel.h"
#include "stream/wire.h"
#include <guestram/channel.h>
#include <guestram/error.h>

struct gr_stream_writer;

/* A block as START and ANNOUNCE list it. START uses id and used_bytes, with x-ignore-shared also gpa. */
struct gr_stream_block_desc {
	const char *id;	      /* 1..255 bytes, unique in the list */
	uint64_t used_bytes;  /* multiple of the page size, not 0 */
	uint64_t max_bytes;   /* at least used_bytes */
	uint64_t incarnation; /* not 0 */
	uint64_t gpa;	      /* UINT64_MAX = not mapped */
	uint32_t page_bytes;  /* of the backing: a power of two */
	uint32_t flags;
	const struct gr_file_identity *file; /* for who has FILE_IDENTITY: the block's, or NULL */
	uint64_t file_offset;
};

/**
 * Make a writer.
 * @param ch         Borrowed; the caller closes it.
 * @param ret_writer The writer.
 * @param err        May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_stream_writer_create(struct gr_channel *ch,
					  struct gr_stream_writer **ret_writer,
					  struct gr_error *err);

/** @param w May be NULL. What was not flushed is lost. */
void gr_stream_writer_free(struct gr_stream_writer *w);

/*
 * All functions below return 0 or a negative errno: what the channel said, which every
 * later call repeats, or -EINVAL for an id, a length or a count that cannot be sent.
 */

/**
 * The bytes of file header and configuration section.
 * @param out        GR_STREAM_CONFIG_BYTES_MAX of room.
 * @param machine    Name, e.g. "pc-i440fx-7.2".
 * @param page_bytes Of the target.
 * @param ret_bytes  How many were written.
 * @param err        May be NULL.
 * @return 0 or -EINVAL: no stream can have such a name or page size.
 */
GR_MUST_CHECK int gr_stream_config_build(uint8_t *out, const char *machine, uint32_t page_bytes,
					 size_t *ret_bytes, struct gr_error *err);

/**
 * File header and configuration section.
 * @param w          The writer.
 * @param machine    Machine name, at most 255 bytes.
 * @param page_bytes Of the target; a size other than 4096 is told in a subsection.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_config(struct gr_stream_writer *w, const char *machine,
					 uint32_t page_bytes, struct gr_error *err);

/**
 * The capability x-ignore-shared, a subsection of the configuration: right after it. From then on
 * the list of blocks has their addresses.
 * @param w   The writer.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_ignore_shared(struct gr_stream_writer *w, struct gr_error *err);

/**
 * The list of blocks has their addresses: the configuration is passed through with
 * gr_stream_write_raw() and names x-ignore-shared.
 * @param w The writer.
 */
void gr_stream_writer_set_ignore_shared(struct gr_stream_writer *w);

/**
 * The machine's UUID, a subsection of the configuration (QEMU's validate-uuid): after the capabilities.
 * @param w    The writer.
 * @param uuid 16 bytes.
 * @param err  May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_uuid(struct gr_stream_writer *w, const uint8_t *uuid,
				       struct gr_error *err);

/**
 * The target's page size, when the configuration is passed through with
 * gr_stream_write_raw().
 * @param w          The writer.
 * @param page_bytes What the configuration says.
 */
void gr_stream_writer_set_page_bytes(struct gr_stream_writer *w, uint32_t page_bytes);

/**
 * Bytes as they are: a configuration or a device tail passed through. Not in a section.
 * @param w    The writer.
 * @param data What.
 * @param n    Bytes; a large piece is sent without being copied.
 * @param err  May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_raw(struct gr_stream_writer *w, const void *data, size_t n,
				      struct gr_error *err);

/**
 * START of 'ram' with the block list. Records and gr_stream_write_eos() follow.
 * @param w          The writer.
 * @param section_id Kept for all later sections.
 * @param blocks     In QEMU's order: the biggest first.
 * @param n          At most GR_STREAM_BLOCKS_MAX.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_start(struct gr_stream_writer *w, uint32_t section_id,
					const struct gr_stream_block_desc *blocks, size_t n,
					struct gr_error *err);

/**
 * Begin a PART or END section of 'ram'.
 * @param w       The writer.
 * @param section GR_SECTION_PART or GR_SECTION_END.
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_section(struct gr_stream_writer *w, enum gr_section section,
					  struct gr_error *err);

/**
 * End the section: EOS and footer.
 * @param w   The writer.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_eos(struct gr_stream_writer *w, struct gr_error *err);

/**
 * Only the EOS of the section, where further channels meet; gr_stream_write_eos() writes the rest.
 * @param w   The writer.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_eos_word(struct gr_stream_writer *w, struct gr_error *err);

/**
 * Pages of one block, sent from where they are.
 * @param w       The writer, in a section.
 * @param id      The block.
 * @param offsets Bytes in the block, page-aligned, any order.
 * @param pages   The pages, page_bytes of the configuration each.
 * @param n       Any number; goes out in batches of 64.
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_pages(struct gr_stream_writer *w, const char *id,
					const uint64_t *offsets, const void *const *pages, size_t n,
					struct gr_error *err);

/**
 * Pages that follow each other, in the block and in memory, as one record. Own peers only.
 * @param w      The writer, in a section.
 * @param id     The block.
 * @param offset Bytes in the block.
 * @param data   The pages.
 * @param bytes  A multiple of the page size, not 0.
 * @param file   What of them lies in it may go by reference (gr_channel_refer()).
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_page_range(struct gr_stream_writer *w, const char *id,
					     uint64_t offset, const void *data, size_t bytes,
					     const struct gr_channel_file *file,
					     struct gr_error *err);

/**
 * One page of zeros: 9 bytes if the block is the one of the record before.
 * @param w      The writer, in a section.
 * @param id     The block.
 * @param offset Bytes in the block.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_zero(struct gr_stream_writer *w, const char *id, uint64_t offset,
				       struct gr_error *err);

/**
 * An XBZRLE delta of one page.
 * @param w       The writer, in a section.
 * @param id      The block.
 * @param offset  Bytes in the block.
 * @param payload What gr_xbzrle_decode() takes.
 * @param n       Bytes, at most a page.
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_xbzrle(struct gr_stream_writer *w, const char *id,
					 uint64_t offset, const void *payload, size_t n,
					 struct gr_error *err);

/**
 * A range of zeros. Own peers only.
 * @param w      The writer, in a section.
 * @param id     The block.
 * @param offset Bytes in the block, page-aligned.
 * @param bytes  A multiple of the page size, not 0.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_zero_range(struct gr_stream_writer *w, const char *id,
					     uint64_t offset, uint64_t bytes, struct gr_error *err);

/**
 * The complete new block list; what it does not name is deleted. Own peers only.
 * @param w      The writer, in a section.
 * @param blocks The list.
 * @param n      At most GR_STREAM_BLOCKS_MAX.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_announce(struct gr_stream_writer *w,
					   const struct gr_stream_block_desc *blocks, size_t n,
					   struct gr_error *err);

/**
 * MULTIFD_FLUSH: the further channels have said SYNC.
 * @param w   The writer, in a section.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_flush_record(struct gr_stream_writer *w, struct gr_error *err);

/**
 * A command, between sections.
 * @param w       The writer.
 * @param command Which.
 * @param data    May be NULL when n is 0.
 * @param n       Bytes.
 * @param err     May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_command(struct gr_stream_writer *w, enum gr_command command,
					  const void *data, uint16_t n, struct gr_error *err);

/**
 * A PING, between sections.
 * @param w     The writer.
 * @param value Comes back in the PONG; GR_PING_FEATURES asks for FEATURES too.
 * @param err   May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_write_ping(struct gr_stream_writer *w, uint32_t value,
				       struct gr_error *err);

/**
 * Send what was gathered.
 * @param w   The writer.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 */
GR_MUST_CHECK int gr_stream_flush(struct gr_stream_writer *w, struct gr_error *err);

/**
 * @param w The writer.
 * @return Bytes written to the stream, gathered ones included.
 */
uint64_t gr_stream_writer_bytes(const struct gr_stream_writer *w);

#endif

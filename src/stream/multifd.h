/* SPDX-License-Identifier: MIT */
/*
 * What goes over a further channel of a move (QEMU's multifd), in bytes: a greeting of 64, then
 * packets. A packet is a header of fixed length, with room for as many offsets as 512 KiB have
 * pages, and a payload of so many pages, compressed or not. All integers are big-endian.
 *
 *   greeting  be32 magic, be32 version, uuid[16], u8 id, zeros
 *   header      0 be32 magic       4 be32 version       8 be32 flags       12 be32 room for pages
 *              16 be32 pages      20 be32 payload      24 be64 number     32 be32 zero pages
 *              64 char block[256], then be64 offset[]: pages with bytes first, then zero pages
 *
 * Nothing is believed: a packet that gr_multifd_header_parse() and gr_multifd_header_check() have
 * let through names pages inside the block, and its payload is not longer than the maximum. Quirks
 * of QEMU 7.2: what a packet without pages has in payload, block and number is left from the packet
 * before; without compression only the number of pages tells the payload.
 */
#ifndef GR_STREAM_MULTIFD_H
#define GR_STREAM_MULTIFD_H

#include "stream/wire.h"
#include <guestram/error.h>
#include <guestram/multifd.h>

#define GR_MULTIFD_MAGIC   0x11223344u
#define GR_MULTIFD_VERSION 1u

enum {
	GR_MULTIFD_GREETING_BYTES = 64,
	GR_MULTIFD_FIXED_BYTES = 320,
	GR_MULTIFD_BLOCK_BYTES = 256,
	GR_MULTIFD_DATA_BYTES = 512 << 10, /* pages in a packet, at most */
	GR_MULTIFD_PAGES_MAX = GR_MULTIFD_DATA_BYTES >> GR_STREAM_PAGE_BITS_MIN,
	GR_MULTIFD_HEADER_BYTES_MAX = GR_MULTIFD_FIXED_BYTES + 8 * GR_MULTIFD_PAGES_MAX,
	/* what does not shrink grows a little; QEMU's own buffers have as much */
	GR_MULTIFD_PAYLOAD_BYTES_MAX = 2 * GR_MULTIFD_DATA_BYTES,
};

enum gr_multifd_flag {
	GR_MULTIFD_SYNC = 1 << 0,
	GR_MULTIFD_METHODS = 0x1f << 1,	  /* 1 zlib, 2 zstd; hardware's: 4 qpl, 8 uadk, 16 qatzip */
	GR_MULTIFD_DEVICE_STATE = 1 << 6, /* QEMU 10.0+ */
};

/* The first bytes of a channel. */
struct gr_multifd_greeting {
	uint8_t uuid[GR_MULTIFD_UUID_BYTES];
	uint8_t id; /* which of the channels, from 0 */
};

/* A packet's header. */
struct gr_multifd_header {
	bool sync; /* after the pages, wait for the main channel */
	enum gr_multifd_compression compression;
	uint32_t pages; /* with bytes */
	uint32_t zero_pages;
	uint32_t payload_bytes; /* that follow; never more than the maximum */
	uint64_t number;
	char block[GR_MULTIFD_BLOCK_BYTES]; /* "" if it has no pages */
	uint64_t offsets[GR_MULTIFD_PAGES_MAX];
};

/** @param page_bytes Of the target. @return Pages in a packet, at most. */
static inline uint32_t gr_multifd_pages_max(uint32_t page_bytes)
{
	return GR_MULTIFD_DATA_BYTES / page_bytes;
}

/** @param page_bytes Of the target. @return Length of every header. */
static inline size_t gr_multifd_header_bytes(uint32_t page_bytes)
{
	return GR_MULTIFD_FIXED_BYTES + (size_t)8 * gr_multifd_pages_max(page_bytes);
}

/** @param g The greeting. @param raw Filled: GR_MULTIFD_GREETING_BYTES. */
void gr_multifd_greeting_put(const struct gr_multifd_greeting *g, uint8_t *raw);

/**
 * @param raw   GR_MULTIFD_GREETING_BYTES.
 * @param ret_g Filled on success.
 * @param err   May be NULL.
 * @return 0 or -EBADMSG.
 */
GR_MUST_CHECK int gr_multifd_greeting_parse(const uint8_t *raw, struct gr_multifd_greeting *ret_g,
					    struct gr_error *err);

/**
 * @param h          What to say; its pages and zero pages fit.
 * @param page_bytes Of the target.
 * @param raw        Filled: gr_multifd_header_bytes().
 */
void gr_multifd_header_put(const struct gr_multifd_header *h, uint32_t page_bytes, uint8_t *raw);

/**
 * Parse a header. Whether its pages are in the block is for gr_multifd_header_check().
 * @param raw        gr_multifd_header_bytes().
 * @param page_bytes Of the target.
 * @param ret_h      Filled on success.
 * @param err        May be NULL.
 * @return 0 or a negative errno.
 * @errors -EBADMSG not a valid header; -EOPNOTSUPP valid but not for us (named).
 */
GR_MUST_CHECK int gr_multifd_header_parse(const uint8_t *raw, uint32_t page_bytes,
					  struct gr_multifd_header *ret_h, struct gr_error *err);

/**
 * As gr_multifd_header_parse(), for who passes it on as it is: by any method that QEMU has, which all
 * say the length of what follows in the same place.
 * @param raw        As there.
 * @param page_bytes As there.
 * @param ret_h      As there; compression is not one that we know.
 * @param err        May be NULL.
 * @return As there.
 */
GR_MUST_CHECK int gr_multifd_header_look(const uint8_t *raw, uint32_t page_bytes,
					 struct gr_multifd_header *ret_h, struct gr_error *err);

/**
 * Whether all pages of a header are in its block.
 * @param h          Parsed.
 * @param used_bytes Of the block.
 * @param page_bytes Of the target.
 * @param err        May be NULL; names the page.
 * @return 0 or -EBADMSG.
 */
GR_MUST_CHECK int gr_multifd_header_check(const struct gr_multifd_header *h, uint64_t used_bytes,
					  uint32_t page_bytes, struct gr_error *err);

/**
 * @param params What somebody wants.
 * @param err    May be NULL.
 * @return 0, -EINVAL (the channels) or -ENOTSUP (the compression).
 */
GR_MUST_CHECK int gr_multifd_check(const struct gr_multifd *params, struct gr_error *err);

/* What the first byte of a connection tells. */
enum gr_multifd_kind {
	GR_MULTIFD_NOBODY, /* closed without a byte: a look at the port, as monitoring does it */
	GR_MULTIFD_MAIN,
	GR_MULTIFD_FURTHER,
};

/**
 * Tell what was accepted, by its first byte, which stays.
 * @param ch         A socket.
 * @param wake_fd    Readable: give up (-ECANCELED).
 * @param timeout_ms How long to wait for the byte.
 * @param err        May be NULL.
 * @return An enum gr_multifd_kind, or a negative errno.
 * @errors -ETIMEDOUT; -EOPNOTSUPP one with TLS; -EBADMSG no channel of a migration.
 */
GR_MUST_CHECK int gr_multifd_tell(const struct gr_channel *ch, int wake_fd, int timeout_ms,
				  struct gr_error *err);

/** @param ch A socket. @return Whether its peer has closed it, and all that it said is read. */
bool gr_multifd_has_gone(const struct gr_channel *ch);

/**
 * As gr_multifd_accept(), with a time limit and a clock of one's own.
 * @param listener     Of a socket.
 * @param count        Further channels.
 * @param limit_ns     What the next one may take once one has come.
 * @param clock        Nanoseconds, for tests.
 * @param ret_main     The main channel.
 * @param ret_channels Room for count.
 * @param err          May be NULL.
 * @return As gr_multifd_accept().
 */
GR_MUST_CHECK int gr_multifd_accept_within(struct gr_channel_listener *listener, unsigned int count,
					   uint64_t limit_ns, uint64_t (*clock)(void),
					   struct gr_channel **ret_main,
					   struct gr_channel **ret_channels, struct gr_error *err);

/**
 * The dialect of a machine, by the version that ends its name ("pc-q35-8.2").
 * @param machine A machine's name.
 * @return Never GR_MULTIFD_BY_MACHINE; a name without a version has the newest.
 */
enum gr_multifd_dialect gr_multifd_dialect_of(const char *machine);

#endif

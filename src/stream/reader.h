/* SPDX-License-Identifier: MIT */
/*
 * A pull parser of QEMU's migration stream. It knows no RAM block of ours, allocates only
 * for its own tables, and trusts nothing: a record that it delivers has been checked
 * completely (block known, offset inside the block and aligned, lengths within the named
 * maxima). What is wrong is said with the block, the page and the byte of the stream.
 *
 *     while ((rc = gr_stream_next(r, &rec, err)) > 0)
 *             switch (rec.kind) { ... }
 *
 * Everything a record points to belongs to the reader and dies with the next call.
 * Not thread-safe: one thread uses a reader.
 *
 * Order of the records of a good stream:
 *
 *   CONFIG  COMMAND*  RAM_START BLOCKS [ANNOUNCE] [FLUSH] EOS(START)
 *   { { PAGES | STORED | ZERO | XBZRLE | ANNOUNCE | FLUSH }* EOS(PART|END)  COMMAND* }*  TAIL+  end
 */
#ifndef GR_STREAM_READER_H
#define GR_STREAM_READER_H

#include "stream/wire.h"
#include <guestram/channel.h>
#include <guestram/codec.h>
#include <guestram/error.h>
#include <guestram/iovec.h>

struct gr_stream_reader;

/* Where bytes come from. readv returns what is there: bytes, 0 at the end, or -errno. */
struct gr_stream_source {
	ssize_t (*readv)(void *opaque, const struct iovec *iov, int n, struct gr_error *err);
	void *opaque;
};

/* GPA of a block that is not mapped, or of which the stream did not say. */
#define GR_STREAM_GPA_NONE UINT64_MAX

/*
 * One entry of the reader's block table. A plain QEMU stream fills id and used_bytes.
 * ANNOUNCE (own peers) carries the rest, and is the complete new list: blocks that it
 * does not name are gone (alive = false). The same id with another incarnation is another
 * block, in another entry.
 *
 * An entry that died stays for the consumer to see. Once its user is NULL, the next
 * ANNOUNCE may use the entry for a new block: so clear user when you have let go of it.
 */
struct gr_stream_block {
	char id[GR_STREAM_ID_BYTES_MAX + 1];
	uint64_t used_bytes;  /* multiple of the stream's page size, never 0 */
	uint64_t max_bytes;   /* == used_bytes unless announced */
	uint64_t incarnation; /* never repeats, never 0; 0 = not announced yet */
	/* GR_STREAM_GPA_NONE. With x-ignore-shared a QEMU says where the block is in whatever
	 * contains it, which for main memory is the guest's address. */
	uint64_t gpa;
	uint32_t page_bytes;  /* of the sender's backing; 0 = not said */
	uint32_t flags;	      /* the announcing peer's, passed through */
	struct gr_file_identity file; /* shared memory's, if an announcement said so, or zero */
	uint64_t file_offset;	      /* and where the block starts in it */
	bool alive;
	void *user; /* the consumer's; never touched by the reader, NULL at first */
};

enum gr_stream_record_kind {
	GR_STREAM_CONFIG,    /* file header and configuration section; always the first record */
	/* OPEN_RETURN_PATH, PING, SWITCHOVER_START, and POSTCOPY_ADVISE without data: that one
	 * only says that a section of dirty bitmaps may come. The others are refused. */
	GR_STREAM_COMMAND,
	GR_STREAM_RAM_START, /* the START of 'ram' */
	GR_STREAM_BLOCKS,    /* the block table is filled */
	GR_STREAM_PAGES,     /* a run of pages of one block */
	GR_STREAM_ZERO,	     /* a range of one block that is filled with one byte */
	GR_STREAM_STORED,    /* a range whose pages are where gr_stream_memory said */
	GR_STREAM_XBZRLE,    /* a delta against the page's present content */
	GR_STREAM_EOS,	     /* end of a 'ram' section, footer checked */
	GR_STREAM_ANNOUNCE,  /* the block table has changed */
	/* In step with the further channels: MULTIFD_FLUSH, or the EOS of a section. Behind that
	 * one a QEMU may hold the footer back until the channels have gone on. */
	GR_STREAM_FLUSH,
	GR_STREAM_TAIL,	     /* raw bytes of the device tail, in pieces; only these from now on */
};

struct gr_stream_record {
	enum gr_stream_record_kind kind;
	uint64_t byte_offset; /* where in the stream it starts */
	union {
		struct {
			/* "" if the sender left the section out */
			char machine[GR_STREAM_MACHINE_BYTES_MAX + 1];
			bool has_uuid;
			bool ignore_shared;  /* the capability x-ignore-shared is in use */
			uint8_t uuid[GR_STREAM_UUID_BYTES];
			uint32_t page_bytes; /* of the target */
			const uint8_t *raw;  /* header, configuration, subsections: verbatim */
			size_t raw_bytes;
		} config;
		struct {
			enum gr_command command;
			uint16_t data_bytes;
			const uint8_t *data;
		} command;
		struct {
			uint32_t section_id; /* the same in every later 'ram' section */
		} ram_start;
		struct {
			uint64_t total_bytes; /* as sent; equals the sum of used_bytes */
			uint32_t count;	      /* entries of the table, dead ones included */
		} blocks;		      /* BLOCKS and ANNOUNCE */
		struct {
			uint32_t block;		 /* index of the table */
			uint32_t count;		 /* 1..GR_STREAM_RUN_PAGES_MAX */
			const uint64_t *offsets; /* bytes in the block, any order */
			const uint8_t *data;	 /* count pages, one after the other */
		} pages;
		struct {
			uint32_t block;
			uint8_t fill;
			uint64_t offset; /* bytes in the block */
			uint64_t bytes;	 /* a multiple of the page size */
		} zero;
		struct {
			uint32_t block;
			uint64_t offset; /* bytes in the block */
			uint64_t bytes;	 /* a multiple of the page size */
		} stored;
		struct {
			uint32_t block;
			uint16_t payload_bytes;
			uint64_t offset;
			const uint8_t *payload; /* for gr_xbzrle_decode(); already checked */
		} xbzrle;
		struct {
			enum gr_section section; /* START, PART or END */
		} eos;
		struct {
			bool at_eos; /* the EOS record follows */
		} flush;
		struct {
			const uint8_t *data;
			size_t bytes;
		} tail;
	};
};

/**
 * Make a reader.
 * @param source     Copied.
 * @param ret_reader The reader.
 * @param err        May be NULL.
 * @return 0 or -ENOMEM.
 */
GR_MUST_CHECK int gr_stream_reader_create(const struct gr_stream_source *source,
					  struct gr_stream_reader **ret_reader,
					  struct gr_error *err);

/** @param r May be NULL. The blocks' user pointers are the consumer's business. */
void gr_stream_reader_free(struct gr_stream_reader *r);

/**
 * A source that reads a channel.
 * @param ch Borrowed.
 * @return The source.
 */
struct gr_stream_source gr_stream_source_channel(struct gr_channel *ch);

/**
 * Deliver the next record.
 *
 * Waits for the bytes that the record still needs and for no others, so a record is
 * delivered before the peer has to send more.
 *
 * @param r   The reader.
 * @param rec Filled when 1 is returned.
 * @param err May be NULL.
 * @return 1, 0 at the end of the tail (whether that is complete, gr_tail_finish() knows),
 *         or a negative errno, which every later call repeats.
 * @errors -EBADMSG not a valid stream; -EPIPE the stream ends too early; -EOPNOTSUPP valid
 *         but not for us (named); -ENOMEM; what the source says.
 */
GR_MUST_CHECK int gr_stream_next(struct gr_stream_reader *r, struct gr_stream_record *rec,
				 struct gr_error *err);

/**
 * Accept the records of our own peers from now on (ZERO_RANGE comes out as ZERO, PAGE_RANGE as PAGES
 * and STORED, in pieces).
 * To be called when the peer was told that we do, i.e. when FEATURES is sent.
 * @param r The reader.
 */
void gr_stream_reader_allow_extensions(struct gr_stream_reader *r);

/*
 * Where a page's bytes may be received at once: one page, or NULL: deliver it as PAGES. Asked for pages of
 * ranges, after their header was checked. Bytes are in it that no record has told of until STORED
 * comes, or the stream fails: then torn(), which may be NULL, is called with all that was begun.
 */
struct gr_stream_memory {
	uint8_t *(*page)(void *opaque, struct gr_stream_block *block, uint64_t offset);
	void (*torn)(void *opaque, struct gr_stream_block *block, uint64_t offset, uint64_t bytes);
	bool (*stores_only)(void *opaque, struct gr_stream_block *block); /* see gr_stream_read_guest() */
	void *opaque;
};

/**
 * Read into memory that page() chose: at any moment a tracker may begin to protect it that serves stores and
 * no system calls, which get EFAULT then. As long as stores_only() says so, a store to each page has it served, and
 * the source, of which nothing was taken, is read again. Other memory that gives EFAULT is not touched: a file
 * that has become too short, a huge page that is not to be had, a broken page end the process that stores there.
 * @param source Says -EFAULT.
 * @param memory stores_only may be NULL: never.
 * @param block  The entry whose memory it is.
 * @param iov    Where to.
 * @param n      Its entries.
 * @param err    May be NULL.
 * @return What the source says.
 */
ssize_t gr_stream_read_guest(const struct gr_stream_source *source, const struct gr_stream_memory *memory,
			     struct gr_stream_block *block, const struct iovec *iov, int n,
			     struct gr_error *err);

/**
 * Deliver STORED where memory says so. Without it all pages come as PAGES.
 * @param r      The reader.
 * @param memory Copied.
 */
void gr_stream_reader_set_memory(struct gr_stream_reader *r, const struct gr_stream_memory *memory);

/**
 * Accept the capability x-ignore-shared; without this it is refused by name.
 * @param r The reader.
 */
void gr_stream_reader_allow_ignore_shared(struct gr_stream_reader *r);

/**
 * Deliver FLUSH: the consumer has the further channels.
 * @param r The reader.
 */
void gr_stream_reader_allow_flush(struct gr_stream_reader *r);

/**
 * Take the page size from elsewhere: for machines whose configuration section does not
 * say it and which do not have 4096 bytes. Only before the first gr_stream_next().
 * @param r          The reader.
 * @param page_bytes A power of two, 4096..65536.
 */
void gr_stream_reader_set_page_bytes(struct gr_stream_reader *r, uint32_t page_bytes);

/**
 * @param r The reader.
 * @return The target's page size in bytes; final after CONFIG.
 */
uint32_t gr_stream_reader_page_bytes(const struct gr_stream_reader *r);

/**
 * For those who keep the stream: QEMU finds later sections by this number.
 * @param r The reader.
 * @return Section id of 'ram'; known from RAM_START on.
 */
uint32_t gr_stream_reader_section_id(const struct gr_stream_reader *r);

/**
 * @param r The reader.
 * @return Entries of the block table, dead ones included.
 */
uint32_t gr_stream_reader_block_count(const struct gr_stream_reader *r);

/**
 * @param r     The reader.
 * @param index Below gr_stream_reader_block_count().
 * @return The entry. The pointer dies with the next gr_stream_next(), the index does not.
 */
struct gr_stream_block *gr_stream_reader_block(struct gr_stream_reader *r, uint32_t index);

/**
 * @param r The reader.
 * @return The kind of the 'ram' section (START, PART or END) that the last PAGES, ZERO,
 *         XBZRLE, ANNOUNCE or EOS belongs to.
 */
enum gr_section gr_stream_reader_section(const struct gr_stream_reader *r);

/**
 * @param r The reader.
 * @return Bytes consumed: everything before this was delivered.
 */
uint64_t gr_stream_reader_offset(const struct gr_stream_reader *r);

/**
 * For tests: parse everything from the buffer, never scatter into staged pages.
 * @param r The reader.
 */
void gr_stream_reader_disable_staging(struct gr_stream_reader *r);

/**
 * Whether gr_xbzrle_decode() would take a delta.
 * @param payload       The delta.
 * @param payload_bytes Bytes of it.
 * @param page_bytes    Bytes of the page.
 * @return 0 or -EBADMSG.
 */
GR_MUST_CHECK int gr_xbzrle_check(const uint8_t *payload, size_t payload_bytes, size_t page_bytes);

#endif

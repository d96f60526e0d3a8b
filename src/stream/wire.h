/* SPDX-License-Identifier: MIT */
/*
 * QEMU's migration stream in numbers: file version 3, 'ram' section version 4, and the
 * records that only our own peers exchange. docs/wire-format.md tells the same in prose.
 * All integers are big-endian; a "str8" is one byte of length and that many bytes.
 */
#ifndef GR_STREAM_WIRE_H
#define GR_STREAM_WIRE_H

#include "base/compiler.h"
#include "base/endian.h"
#include "base/memory.h"
#include <string.h>

/* file header */
enum { GR_STREAM_HEADER_BYTES = 8 };
#define GR_STREAM_MAGIC	  0x5145564du /* "QEVM" */
#define GR_STREAM_VERSION 3u

/* first byte of a section */
enum gr_section {
	GR_SECTION_EOF = 0x00,
	GR_SECTION_START = 0x01,
	GR_SECTION_PART = 0x02,
	GR_SECTION_END = 0x03,
	GR_SECTION_FULL = 0x04,
	GR_SECTION_SUBSECTION = 0x05,
	GR_SECTION_DESCRIPTION = 0x06,
	GR_SECTION_CONFIGURATION = 0x07,
	GR_SECTION_COMMAND = 0x08,
	GR_SECTION_FOOTER = 0x7e,
};

/*
 * A capability that the configuration names when it is in use: blocks that both sides have mapped
 * from one file do not travel, and each entry of the list of blocks has be64 address behind its length.
 */
#define GR_CAPABILITY_IGNORE_SHARED "x-ignore-shared"

/* the 'ram' section: records begin with be64 offset | flags */
#define GR_RAM_SECTION_NAME "ram"
enum { GR_RAM_SECTION_VERSION = 4 };
enum gr_ram_flag {
	GR_RAM_FULL = 0x001, /* obsolete */
	GR_RAM_ZERO = 0x002,
	GR_RAM_MEM_SIZE = 0x004,
	GR_RAM_PAGE = 0x008,
	GR_RAM_EOS = 0x010,
	GR_RAM_CONTINUE = 0x020, /* same block as the page record before: no id follows */
	GR_RAM_XBZRLE = 0x040,
	GR_RAM_HOOK = 0x080,	      /* RDMA only */
	GR_RAM_COMPRESS_PAGE = 0x100, /* removed in QEMU 9.1 */
	GR_RAM_MULTIFD_FLUSH = 0x200, /* QEMU 8.1+ */
	/* ours: [id unless CONTINUE] be64 length; the range is zero */
	GR_RAM_ZERO_RANGE = 0x400,
	/* ours: upper bits = count * page size; the complete new block list: count times */
	/* { str8 id, be64 incarnation, be64 used, be64 max, be32 page, be32 flags, be64 gpa } */
	GR_RAM_ANNOUNCE = 0x800,
	/* ours: [id unless CONTINUE] be64 length, then so many bytes: the pages of the range */
	GR_RAM_PAGE_RANGE = 0xc00,
};
/* Flags of FEATURES. */
enum {
	GR_FEATURE_PAGE_RANGE = 1 << 0,	   /* PAGE_RANGE is understood */
	GR_FEATURE_FILE_IDENTITY = 1 << 1, /* so is an announcement that says which file a block is */
};
enum { GR_RAM_ANNOUNCE_FIXED_BYTES = 40 }; /* of an entry, without its id */
/* In an entry's flags: { boot id, be64 device, be64 inode, be64 offset } follow. */
#define GR_RAM_ANNOUNCE_FILE (UINT32_C(1) << 31)
enum { GR_RAM_ANNOUNCE_FILE_BYTES = GR_BOOT_ID_BYTES + 24 };
enum { GR_XBZRLE_ENCODING = 0x01 };

/* commands: 08 be16 command, be16 length, data */
enum gr_command {
	GR_COMMAND_OPEN_RETURN_PATH = 1,
	GR_COMMAND_PING = 2, /* be32 value */
	GR_COMMAND_POSTCOPY_ADVISE = 3,
	GR_COMMAND_POSTCOPY_LISTEN = 4,
	GR_COMMAND_POSTCOPY_RUN = 5,
	GR_COMMAND_POSTCOPY_RAM_DISCARD = 6,
	GR_COMMAND_PACKAGED = 7,
	GR_COMMAND_ENABLE_COLO = 8,
	GR_COMMAND_POSTCOPY_RESUME = 9,
	GR_COMMAND_RECV_BITMAP = 10,
	GR_COMMAND_SWITCHOVER_START = 11, /* QEMU 10.0+ */
};

/* return path: be16 type, be16 length, data */
enum gr_return_path_type {
	GR_RETURN_SHUT = 1, /* be32 error, 0 = success */
	GR_RETURN_PONG = 2, /* be32 value of the PING */
	GR_RETURN_REQ_PAGES_ID = 3,
	GR_RETURN_REQ_PAGES = 4,
	GR_RETURN_RECV_BITMAP = 5,
	GR_RETURN_RESUME_ACK = 6,
	GR_RETURN_SWITCHOVER_ACK = 7,
	GR_RETURN_FEATURES = 0x4752, /* ours: be32 version, be32 flags */
};
/* A PING with this value asks whether the peer is one of ours: it answers FEATURES, then PONG. */
#define GR_PING_FEATURES 0x47520001u

/*
 * Named maxima: what a stream may ask of us. QEMU's own machines have some tens of blocks
 * and machine names below 64 bytes.
 */
enum {
	GR_STREAM_ID_BYTES_MAX = 255, /* what a str8 can say */
	GR_STREAM_MACHINE_BYTES_MAX = 255,
	GR_STREAM_UUID_BYTES = 16,
	GR_STREAM_CONFIG_BYTES_MAX = 1024, /* header, configuration and its subsections */
	GR_STREAM_BLOCKS_MAX = 65536,	   /* in one list, as GR_RAM_BLOCKS_MAX */
	GR_STREAM_PAGE_BYTES_DEFAULT = 4096,
	GR_STREAM_PAGE_BITS_MIN = 12,
	GR_STREAM_PAGE_BITS_MAX = 16,
	GR_STREAM_RUN_PAGES_MAX = 64,	  /* pages in one record of the reader */
	GR_STREAM_RETURN_BYTES_MAX = 512, /* data of a return-path message, as QEMU's source */
};
/* A block's length: so that a full list's sum still fits in 64 bits. */
#define GR_STREAM_BLOCK_BYTES_MAX (UINT64_C(1) << 47)

static inline void gr_put_be16(void *p, uint16_t v)
{
	v = gr_be16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void gr_put_be32(void *p, uint32_t v)
{
	v = gr_be32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void gr_put_be64(void *p, uint64_t v)
{
	v = gr_be64(v);
	memcpy(p, &v, sizeof(v));
}

static inline uint16_t gr_get_be16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return gr_be16(v);
}

static inline uint32_t gr_get_be32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return gr_be32(v);
}

static inline uint64_t gr_get_be64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return gr_be64(v);
}

#endif

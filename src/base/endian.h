/* SPDX-License-Identifier: MIT */
/* To and from the byte orders of streams (big) and dirty logs (little), on any host. */
#ifndef GR_BASE_ENDIAN_H
#define GR_BASE_ENDIAN_H

#include <stdint.h>

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#	define GR_SWAP_IF_LITTLE(bits, v) (v)
#	define GR_SWAP_IF_BIG(bits, v)	   (__builtin_bswap##bits(v))
#elif __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#	define GR_SWAP_IF_LITTLE(bits, v) (__builtin_bswap##bits(v))
#	define GR_SWAP_IF_BIG(bits, v)	   (v)
#else
#	error "neither big- nor little-endian"
#endif

static inline uint16_t gr_be16(uint16_t v)
{
	return GR_SWAP_IF_LITTLE(16, v);
}

static inline uint32_t gr_be32(uint32_t v)
{
	return GR_SWAP_IF_LITTLE(32, v);
}

static inline uint64_t gr_be64(uint64_t v)
{
	return GR_SWAP_IF_LITTLE(64, v);
}

static inline uint32_t gr_le32(uint32_t v)
{
	return GR_SWAP_IF_BIG(32, v);
}

static inline uint64_t gr_le64(uint64_t v)
{
	return GR_SWAP_IF_BIG(64, v);
}

#endif

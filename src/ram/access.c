/* SPDX-License-Identifier: MIT */
/*
 * Access as a device has it: by guest physical address, across regions and blocks, with the
 * marks that make it visible to whoever copies the memory. Up to 64 KiB are one section and one
 * load of the index, so that what was checked is what is used. What is longer is checked first, so
 * that a write to what is not there changes nothing, and then borrowed piece by piece, each looked
 * up anew: memory that goes meanwhile is an error after what is before it was done.
 */
#include "base/atomic.h"
#include "base/hook.h"
#include "bitmap/bits.h"
#include "ram/copy.h"
#include "ram/piece.h"
#include <errno.h>

/* No section of a millisecond: some 10 us of copying, or some 100 us of looking at regions. */
enum { SECTION_BYTES = 64 << 10, SECTION_REGIONS = 4096 };
#define PIECE_BYTES ((uint64_t)1 << 20)

void gr_ram_mark(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	uint32_t page_bytes = block->ram->page_bytes;
	uint64_t page = (block->offset.v + offset) / page_bytes, end;

	if (bytes == 0) {
		return;
	}
	if (offset >= block->max_bytes || bytes > block->max_bytes - offset) {
		gr_die("gr_ram_mark: block '%s' has no bytes %llu to %llu", block->id,
		       (unsigned long long)offset, (unsigned long long)(offset + bytes - 1));
	}
	end = (block->offset.v + offset + bytes - 1) / page_bytes + 1;
	/* By chunks, so that no section gets long. */
	for (uint64_t n; page < end; page += n) {
		n = GR_MIN(end - page, GR_BITS_CHUNK_PAGES - page % GR_BITS_CHUNK_PAGES);
		gr_rcu_read_lock();
		gr_dirty_mark_range(block->ram->dirty, page, n);
		gr_rcu_read_unlock();
	}
}

/* What is done to guest memory, and the caller's side of it, which moves on. */
struct access {
	void (*step)(struct access *a, uint8_t *host, size_t bytes);
	void *to;
	const void *from;
	uint8_t byte;
};

static void read_step(struct access *a, uint8_t *host, size_t bytes)
{
	gr_copy_from_guest(a->to, host, bytes);
	a->to = (uint8_t *)a->to + bytes;
}

static void write_step(struct access *a, uint8_t *host, size_t bytes)
{
	gr_copy_to_guest(host, a->from, bytes);
	a->from = (const uint8_t *)a->from + bytes;
}

static void fill_step(struct access *a, uint8_t *host, size_t bytes)
{
	gr_fill_guest(host, a->byte, bytes);
}

static void do_piece(struct access *a, const struct gr_piece *p, bool write)
{
	struct gr_ram_block *block = p->region->block;

	if (!write) {
		a->step(a, p->host, p->bytes);
		return;
	}
#ifdef GR_MUTANT_WRITE_MARKS_FIRST
	gr_ram_mark(block, p->offset, p->bytes);
	GR_HOOK("write: between");
	a->step(a, p->host, p->bytes);
#else
	a->step(a, p->host, p->bytes);
	GR_HOOK("write: between");
	gr_ram_mark(block, p->offset, p->bytes); /* O1 */
#endif
}

static int access_in_section(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes, bool write,
			     struct access *a, struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	uint64_t pieces;
	struct gr_piece p;
	int ret =
		write ? gr_pieces_check_rcu(index, gpa, bytes, true, UINT64_MAX, &pieces, err) : 0;

	while (ret == 0 && bytes != 0) {
		if (!gr_piece_at_rcu(index, gpa, bytes, &p)) {
			return gr_piece_fault(-EFAULT, gpa, err); /* writes: checked above */
		}
		ret = gr_piece_open(&p, gpa, write, err);
		if (ret == 0) {
			do_piece(a, &p, write);
			gr_piece_close(&p);
		}
		gpa.v += p.bytes;
		bytes -= p.bytes;
	}
	return ret;
}

/* Are the first so many regions there, and writable? Moves on behind them. */
static int check_some(struct gr_ram *ram, gr_gpa_t *gpa, uint64_t *bytes, struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);

	for (unsigned int i = 0; *bytes != 0 && i < SECTION_REGIONS; i++) {
		const struct gr_ram_region *r = gr_ram_region_at_rcu(index, *gpa);
		uint64_t n;

		if (!r || r->readonly) {
			return gr_piece_fault(r ? -EROFS : -EFAULT, *gpa, err);
		}
		n = GR_MIN(*bytes, r->bytes - (gpa->v - r->gpa.v));
		gpa->v += n;
		*bytes -= n;
	}
	return 0;
}

static int check_writable(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes, struct gr_error *err)
{
	int ret = 0;

	while (ret == 0 && bytes != 0) {
		ret = check_some(ram, &gpa, &bytes, err);
	}
	return ret;
}

/*
 * What takes long is done outside of sections, on memory that is borrowed piece by piece: nobody
 * who waits for readers waits for it, not even if a page must come from a disk first.
 */
static int access_by_pieces(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes, bool write,
			    struct access *a, struct gr_error *err)
{
	int ret = write ? check_writable(ram, gpa, bytes, err) : 0;
	struct gr_ram_iov piece;

	while (ret == 0 && bytes != 0) {
		ret = gr_ram_translate(ram, gpa, GR_MIN(bytes, PIECE_BYTES), write, &piece, err);
		if (ret == 0) {
			gpa.v += piece.iov.iov_len;
			bytes -= piece.iov.iov_len;
			GR_HOOK("access: piece");
			a->step(a, piece.iov.iov_base, piece.iov.iov_len);
			gr_ram_iov_put(&piece, 1, piece.iov.iov_len); /* O1 */
		}
	}
	return ret;
}

static int do_access(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes, bool write, struct access *a,
		     struct gr_error *err)
{
#ifndef GR_MUTANT_ACCESS_ONE_SECTION
	if (bytes > SECTION_BYTES) {
		return access_by_pieces(ram, gpa, bytes, write, a, err);
	}
#endif
	return access_in_section(ram, gpa, bytes, write, a, err);
}

int gr_ram_read(struct gr_ram *ram, gr_gpa_t gpa, void *buf, size_t bytes, struct gr_error *err)
{
	struct access a = { .step = read_step, .to = buf };

	return do_access(ram, gpa, bytes, false, &a, err);
}

int gr_ram_write(struct gr_ram *ram, gr_gpa_t gpa, const void *buf, size_t bytes,
		 struct gr_error *err)
{
	struct access a = { .step = write_step, .from = buf };

	return do_access(ram, gpa, bytes, true, &a, err);
}

int gr_ram_fill(struct gr_ram *ram, gr_gpa_t gpa, uint8_t byte, uint64_t bytes,
		struct gr_error *err)
{
	struct access a = { .step = fill_step, .byte = byte };

	return do_access(ram, gpa, bytes, true, &a, err);
}

int gr_ram_cmpxchg(struct gr_ram *ram, gr_gpa_t gpa, void *expected, const void *desired,
		   size_t bytes, bool *ret_swapped, struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	struct gr_piece p;
	int ret;

	/* Aligned, it is in one piece: all borders are multiples of the page size. */
	if (!GR_IS_POWER_OF_TWO(bytes) || bytes > 8 || gpa.v % bytes != 0) {
		return gr_error_set(err, -EINVAL, "no exchange of %zu bytes at guest address %#llx",
				    bytes, (unsigned long long)gpa.v);
	}
	if (!gr_piece_at_rcu(index, gpa, bytes, &p)) {
		return gr_piece_fault(-EFAULT, gpa, err);
	}
	if (p.region->readonly) {
		return gr_piece_fault(-EROFS, gpa, err);
	}
	ret = gr_piece_open(&p, gpa, true, err);
	if (ret < 0) {
		return ret;
	}
	*ret_swapped = gr_cmpxchg_guest(p.host, expected, desired, bytes);
	if (*ret_swapped) {
		gr_ram_mark(p.region->block, p.offset, bytes); /* O1 */
	}
	gr_piece_close(&p);
	return 0;
}

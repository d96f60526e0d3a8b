/* SPDX-License-Identifier: MIT */
/*
 * Access as a device has it: by guest physical address, across regions and blocks, with the
 * marks that make it visible to whoever copies the memory. Each call loads the index once, so
 * that what it checked is what it uses.
 */
#include "base/atomic.h"
#include "base/hook.h"
#include "ram/copy.h"
#include "ram/ram.h"
#include <errno.h>

static int fault(int code, gr_gpa_t gpa, struct gr_error *err)
{
	return gr_error_set(err, code, code == -EROFS ? "guest address %#llx is read-only" :
							"guest address %#llx is not mapped",
			    (unsigned long long)gpa.v);
}

void gr_ram_mark(struct gr_ram_block *block, uint64_t offset, uint64_t bytes)
{
	uint32_t page_bytes = block->ram->page_bytes;
	uint64_t first = (block->offset.v + offset) / page_bytes;

	if (bytes == 0) {
		return;
	}
	if (offset >= block->max_bytes || bytes > block->max_bytes - offset) {
		gr_die("gr_ram_mark: block '%s' has no bytes %llu to %llu", block->id,
		       (unsigned long long)offset, (unsigned long long)(offset + bytes - 1));
	}
	gr_rcu_read_lock();
	gr_dirty_mark_range(block->ram->dirty, first,
			    (block->offset.v + offset + bytes - 1) / page_bytes - first + 1);
	gr_rcu_read_unlock();
}

/* The region at gpa and how much of it lies in front; NULL if nothing is mapped there. */
static const struct gr_ram_region *piece_at(const struct gr_ram_index *index, gr_gpa_t gpa,
					    uint64_t bytes, size_t *ret_bytes)
	GR_REQUIRES_SHARED(gr_rcu_section);
static const struct gr_ram_region *piece_at(const struct gr_ram_index *index, gr_gpa_t gpa,
					    uint64_t bytes, size_t *ret_bytes)
{
	const struct gr_ram_region *r = gr_ram_region_at_rcu(index, gpa);

	if (r) {
		/* What is mapped fits in a size_t. */
		*ret_bytes = (size_t)GR_MIN(bytes, r->bytes - (gpa.v - r->gpa.v));
	}
	return r;
}

/* Is all of it mapped, and writable if asked? Counts the pieces. */
static int check_range(const struct gr_ram_index *index, gr_gpa_t gpa, uint64_t bytes, bool write,
		       unsigned int *ret_pieces, struct gr_error *err)
	GR_REQUIRES_SHARED(gr_rcu_section);
static int check_range(const struct gr_ram_index *index, gr_gpa_t gpa, uint64_t bytes, bool write,
		       unsigned int *ret_pieces, struct gr_error *err)
{
	unsigned int pieces = 0;

	/* No region reaches the last byte of the address space: an address cannot wrap. */
	while (bytes != 0) {
		size_t n = 0;
		const struct gr_ram_region *r = piece_at(index, gpa, bytes, &n);

		if (!r) {
			return fault(-EFAULT, gpa, err);
		}
		if (write && r->readonly) {
			return fault(-EROFS, gpa, err);
		}
		gpa.v += n;
		bytes -= n;
		pieces++;
	}
	*ret_pieces = pieces;
	return 0;
}

static uint8_t *host_of(const struct gr_ram_region *r, gr_gpa_t gpa)
{
	return r->block->host + r->block_offset + (gpa.v - r->gpa.v);
}

int gr_ram_read(struct gr_ram *ram, gr_gpa_t gpa, void *buf, size_t bytes, struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	uint8_t *to = buf;

	while (bytes != 0) {
		size_t n = 0;
		const struct gr_ram_region *r = piece_at(index, gpa, bytes, &n);

		if (!r) {
			return fault(-EFAULT, gpa, err);
		}
		gr_copy_from_guest(to, host_of(r, gpa), n);
		to += n;
		gpa.v += n;
		bytes -= n;
	}
	return 0;
}

int gr_ram_write(struct gr_ram *ram, gr_gpa_t gpa, const void *buf, size_t bytes,
		 struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	const uint8_t *from = buf;
	unsigned int pieces;
	int ret = check_range(index, gpa, bytes, true, &pieces, err);

	if (ret < 0) {
		return ret;
	}
	while (bytes != 0) {
		size_t n = 0;
		const struct gr_ram_region *r = piece_at(index, gpa, bytes, &n);

		GR_ASSERT(r); /* checked above, in the same index */
#ifdef GR_MUTANT_WRITE_MARKS_FIRST
		gr_ram_mark(r->block, r->block_offset + (gpa.v - r->gpa.v), n);
		GR_HOOK("write: between");
		gr_copy_to_guest(host_of(r, gpa), from, n);
#else
		gr_copy_to_guest(host_of(r, gpa), from, n);
		GR_HOOK("write: between");
		gr_ram_mark(r->block, r->block_offset + (gpa.v - r->gpa.v), n); /* O1 */
#endif
		from += n;
		gpa.v += n;
		bytes -= n;
	}
	return 0;
}

int gr_ram_iov_get(struct gr_ram *ram, gr_gpa_t gpa, uint64_t bytes, bool write,
		   struct gr_ram_iov *iov, unsigned int iov_max, unsigned int *ret_iov,
		   struct gr_error *err)
{
	GR_RCU_READ_GUARD();
	const struct gr_ram_index *index = gr_rcu_dereference(ram->index);
	unsigned int pieces = 0;
	int ret = check_range(index, gpa, bytes, write, &pieces, err);

	if (ret < 0) {
		return ret;
	}
	if (pieces > iov_max) {
		return gr_error_set(err, -ENOSPC,
				    "%#llx bytes at guest address %#llx are in %u pieces, more than %u",
				    (unsigned long long)bytes, (unsigned long long)gpa.v, pieces,
				    iov_max);
	}
	for (unsigned int i = 0; i < pieces; i++) {
		size_t n = 0;
		const struct gr_ram_region *r = piece_at(index, gpa, bytes, &n);

		GR_ASSERT(r); /* checked above, in the same index */
		gr_ram_block_get(r->block);
		iov[i].iov.iov_base = host_of(r, gpa);
		iov[i].iov.iov_len = n;
		iov[i].block = r->block;
		iov[i].offset = r->block_offset + (gpa.v - r->gpa.v);
		iov[i].write = write;
#ifdef GR_MUTANT_IOV_MARKS_WHEN_TAKEN
		if (write) {
			gr_ram_mark(r->block, iov[i].offset, n);
		}
#endif
		gpa.v += n;
		bytes -= n;
	}
	*ret_iov = pieces;
	return 0;
}

void gr_ram_iov_put(struct gr_ram_iov *iov, unsigned int entries, uint64_t bytes_done)
{
	for (unsigned int i = 0; i < entries; i++) {
		uint64_t n = GR_MIN(bytes_done, (uint64_t)iov[i].iov.iov_len);

#ifndef GR_MUTANT_IOV_MARKS_WHEN_TAKEN
		if (iov[i].write) {
			gr_ram_mark(iov[i].block, iov[i].offset, n); /* O1: with the bytes done */
		}
#endif
		bytes_done -= n;
		gr_ram_block_put(iov[i].block);
		iov[i].block = NULL; /* a second put of this entry does nothing */
		iov[i].write = false;
	}
}

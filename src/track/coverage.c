/* SPDX-License-Identifier: MIT */
#include "track/coverage.h"
#include "base/compiler.h"
#include "ram/ram.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const struct {
	unsigned int bit;
	const char *who;
	const char *advice;
} writers_of[] = {
	{ GR_WRITERS_OUTSIDE,
	  "writers outside this mapping (another mapping, another process, write() on the file)",
	  "no tracker of this version sees them: have them write through the blocks' own mapping, "
	  "or mark what they wrote" },
	{ GR_WRITERS_KVM_VCPUS, "the virtual CPUs of KVM",
	  "kvm-log, kvm-ring, uffd-wp and uffd-sync see them" },
	{ GR_WRITERS_MAPPING, "stores and system calls of this process through the blocks' mapping",
	  "uffd-wp and uffd-sync see them, or mark each with gr_ram_mark()" },
	{ GR_WRITERS_STORES, "stores of this process through the blocks' mapping",
	  "uffd-wp and uffd-sync see them, or mark each with gr_ram_mark()" },
	{ GR_WRITERS_MARKED, "code that marks what it writes", "software sees it" },
	{ GR_WRITERS_REPORTING, "processes that report what they write", "software sees it" },
};

int gr_coverage_check(struct gr_tracker *const *trackers, unsigned int count, const char *names,
		      unsigned int writers, struct gr_error *err)
{
	unsigned int covered = GR_WRITERS_MARKED | GR_WRITERS_REPORTING, known = 0;

	for (unsigned int i = 0; i < count; i++) {
		covered |= trackers[i]->ops->covers;
	}
	for (size_t i = 0; i < GR_ARRAY_SIZE(writers_of); i++) {
		for (unsigned int j = 0; j < count; j++) {
			const struct gr_tracker_ops *ops = trackers[j]->ops;

			if (writers & writers_of[i].bit & ops->breaks) {
				return gr_error_set(
					err, -EINVAL,
					"tracking refused: %s cannot go on under %s: %s",
					writers_of[i].who, ops->name, ops->breaks_why);
			}
		}
		known |= writers_of[i].bit;
		if (writers & writers_of[i].bit & ~covered) {
			return gr_error_set(err, -EINVAL,
					    "tracking refused: %s are seen by no tracker in use "
					    "(%s); %s",
					    writers_of[i].who, names, writers_of[i].advice);
		}
	}
	if (writers & ~known) {
		return gr_error_set(err, -EINVAL, "tracking refused: unknown writers %#x",
				    writers & ~known);
	}
	return 0;
}

/* ---- two blocks, one memory ------------------------------------------------------------- */

struct gr_shown_piece {
	bool is_private; /* its stores stay, but it shows those of others */
	dev_t dev;
	ino_t ino;
	uint64_t start, end; /* bytes of the file */
	const struct gr_ram_block *block;
};

static bool same_file(const struct gr_shown_piece *a, const struct gr_shown_piece *b)
{
	return a->dev == b->dev && a->ino == b->ino;
}

static bool before(const struct gr_shown_piece *a, const struct gr_shown_piece *b)
{
	if (a->is_private != b->is_private) {
		return b->is_private;
	}
	if (!same_file(a, b)) {
		return a->dev != b->dev ? a->dev < b->dev : a->ino < b->ino;
	}
	return a->start < b->start;
}

/* How many pieces come before this one. */
static size_t pieces_before(const struct gr_shown *shown, const struct gr_shown_piece *p)
{
	size_t lo = 0, hi = shown->pieces;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (before(&shown->piece[mid], p)) {
			lo = mid + 1;
		} else {
			hi = mid;
		}
	}
	return lo;
}

static bool overlap(const struct gr_shown_piece *a, const struct gr_shown_piece *b)
{
	return same_file(a, b) && a->start < b->end && b->start < a->end;
}

/*
 * The block that shows some of the same bytes, or NULL. Shared pieces of a file never overlap, so
 * one of the two neighbours does; private ones do as they like, and are few.
 */
static const struct gr_ram_block *also_shown_by(const struct gr_shown *shown,
						const struct gr_shown_piece *p)
{
	struct gr_shown_piece key = *p;
	size_t i;

	key.is_private = false;
	i = pieces_before(shown, &key);
	if (i > 0 && !shown->piece[i - 1].is_private && overlap(&shown->piece[i - 1], p)) {
		return shown->piece[i - 1].block;
	}
	if (i < shown->pieces && !shown->piece[i].is_private && overlap(&shown->piece[i], p)) {
		return shown->piece[i].block;
	}
	if (p->is_private) {
		return NULL; /* two private ones of one file have nothing to do with each other */
	}
	key.is_private = true;
	key.start = 0;
	for (i = pieces_before(shown, &key); i < shown->pieces && same_file(&shown->piece[i], p);
	     i++) {
		if (overlap(&shown->piece[i], p)) {
			return shown->piece[i].block;
		}
	}
	return NULL;
}

/* Whether there is a file behind it; fills p then. */
static int piece_of(const struct gr_ram_block *block, struct gr_shown_piece *p,
		    struct gr_error *err)
{
	struct stat st;

	if (block->fd < 0 || (gr_ram_block_flags(block) & GR_RAM_HOST_READONLY)) {
		return 0;
	}
	if (fstat(block->fd, &st) < 0) {
		return gr_error_set(err, -errno, "block '%s' cannot be tracked: its file: %s",
				    block->id, strerror(errno));
	}
	*p = (struct gr_shown_piece){
		.is_private = (gr_ram_block_flags(block) & GR_RAM_PRIVATE) != 0,
		.dev = st.st_dev,
		.ino = st.st_ino,
		.start = block->fd_offset,
		.end = block->fd_offset + block->max_bytes,
		.block = block,
	};
	return S_ISREG(st.st_mode);
}

/* A block that was removed and is used all the same: an iovec that was not put back, perhaps. */
static bool shows_the_same(void *opaque, const struct gr_ram_block *block)
{
	const struct gr_shown_piece *p = opaque;
	struct gr_shown_piece other;

	return piece_of(block, &other, NULL) > 0 && overlap(p, &other) &&
	       !(p->is_private && other.is_private);
}

int gr_shown_add(struct gr_shown *shown, const struct gr_ram_block *block, struct gr_error *err)
{
	const struct gr_ram_block *other;
	struct gr_shown_piece p;
	int ret = piece_of(block, &p, err);
	size_t at;

	if (ret <= 0) {
		return ret;
	}
	other = also_shown_by(shown, &p);
#ifdef GR_MUTANT_TRACK_MAPPED_TWICE
	other = NULL;
#endif
#ifndef GR_MUTANT_TRACK_FORGETS_REMOVED
	if (!other && gr_ram_removed_in_use(block->ram, shows_the_same, &p)) {
		return gr_error_set(
			err, -EBUSY,
			"block '%s' cannot be tracked yet: a block that was removed maps the same "
			"bytes of its file, and somebody still has a reference to it (an iovec "
			"that "
			"was not put back, a migration)",
			block->id);
	}
#endif
	if (other) {
		return gr_error_set(
			err, -EINVAL,
			"block '%s' cannot be tracked beside '%s': both map the same bytes "
			"of one file, and a store through one is seen by no tracker of the "
			"other",
			block->id, other->id);
	}
	if (shown->pieces == shown->room) {
		size_t room = shown->room ? 2 * shown->room : 16;
		struct gr_shown_piece *more = realloc(shown->piece, room * sizeof(*more));

		if (!more) {
			return gr_error_set(err, -ENOMEM, "no memory to track block '%s'",
					    block->id);
		}
		shown->piece = more;
		shown->room = room;
	}
	at = pieces_before(shown, &p);
	memmove(&shown->piece[at + 1], &shown->piece[at],
		(shown->pieces - at) * sizeof(*shown->piece));
	shown->piece[at] = p;
	shown->pieces++;
	return 0;
}

void gr_shown_del(struct gr_shown *shown, const struct gr_ram_block *block)
{
	struct gr_shown_piece p;
	int ret = piece_of(block, &p, NULL);

	if (ret == 0) {
		return;
	}
	for (size_t i = ret < 0 ? 0 : pieces_before(shown, &p); i < shown->pieces; i++) {
		if (shown->piece[i].block == block) {
			shown->pieces--;
			memmove(&shown->piece[i], &shown->piece[i + 1],
				(shown->pieces - i) * sizeof(*shown->piece));
			return;
		}
	}
}

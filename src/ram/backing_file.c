/* SPDX-License-Identifier: MIT */
/* Files that guest memory is in. */
#include "ram/ram.h"
#include <errno.h>
#include <string.h>

static int open_path(struct gr_block *block, const struct gr_ram_block_desc *desc, int *ret_fd,
		     struct gr_error *err)
{
	enum gr_file_origin origin;
	int fd;

	if (!desc->path || desc->path[0] == '\0') {
		return gr_error_set(err, -EINVAL, "block '%s': GR_RAM_FILE without a path", desc->id);
	}
	fd = gr_file_open(desc->path, desc->id, desc->flags & GR_RAM_HOST_READONLY, &origin);
	if (fd < 0) {
		return gr_error_set(err, fd, "block '%s': cannot open '%s': %s", desc->id,
				    desc->path, strerror(-fd));
	}
	*ret_fd = fd;
	block->named = origin != GR_FILE_NAMELESS;
#ifdef GR_MUTANT_FILE_NAMELESS_IS_SHARED
	block->named = true;
#endif
	if (origin == GR_FILE_MADE) {
		block->made_path = strdup(desc->path);
		if (!block->made_path) {
			gr_file_remove(desc->path);
			gr_memory_file_close(fd);
			return gr_error_set(err, -ENOMEM, "block '%s': no memory", desc->id);
		}
	}
	return 0;
}

/*
 * An empty file is ours alone from before it gets its length until the block is on the list: if
 * adding fails, it is shortened again, and whoever had mapped it meanwhile would fault. Any other
 * file is looked at only, to see that nobody is making it right now. Sets its length, as it is
 * under the lock. A caller's fd is opened again for that, since its locks are the caller's own.
 */
static int lock_file(struct gr_block *block, const struct gr_ram_block_desc *desc, int fd,
		     int64_t *bytes, struct gr_error *err)
{
	bool make = *bytes == 0 && !(desc->flags & GR_RAM_HOST_READONLY);
	int ret = gr_file_lock(fd, make);

#ifdef GR_MUTANT_FILE_UNDO_UNLOCKED
	gr_file_unlock(fd);
#endif
	if (ret < 0 && ret != -EBUSY) {
		return 0; /* no locks here: nothing will be undone either */
	}
	if (ret == 0) {
		*bytes = gr_file_bytes(fd);
		block->file_locked = make && *bytes == 0;
		if (!block->file_locked) {
			gr_file_unlock(fd);
		}
		if (*bytes != 0 || block->file_locked || (desc->flags & GR_RAM_HOST_READONLY)) {
			return 0;
		}
	}
	return gr_error_set(err, -EBUSY, "block '%s': somebody else has locked '%s', to make it right now",
			    desc->id, desc->path ? desc->path : "the file of its fd");
}

static int lock_fd(struct gr_block *block, const struct gr_ram_block_desc *desc, int fd,
		   int64_t *bytes, struct gr_error *err)
{
#ifdef GR_MUTANT_FD_STAYS_LONG
	return 0;
#endif
	int again = gr_file_open_again(fd), ret;

	if (again < 0) {
		return 0; /* for reading only, perhaps, or sealed against it: then it has its length */
	}
	ret = lock_file(block, desc, again, bytes, err);
	if (ret == 0 && block->file_locked) {
		block->lock_fd = again;
	} else {
		gr_memory_file_close(again);
	}
	return ret;
}

/* An empty file gets its length; any other one must have it. */
static int make_room(struct gr_block *block, const struct gr_ram_block_desc *desc, int fd,
		     struct gr_error *err)
{
	int64_t page = gr_memory_file_page_bytes(fd), bytes = gr_file_bytes(fd);
	uint64_t need;
	int ret;

	if (page < 0 || bytes < 0) {
		return gr_error_set(err, -EINVAL, "block '%s': not a file of bytes or memory",
				    desc->id);
	}
	if (desc->backing == GR_RAM_FILE || (desc->backing == GR_RAM_ON_DEMAND && desc->path)) {
		ret = lock_file(block, desc, fd, &bytes, err);
	} else {
		ret = lock_fd(block, desc, fd, &bytes, err);
	}
	if (ret < 0) {
		return ret;
	}
	if (desc->fd_offset % (uint64_t)page != 0 ||
	    __builtin_add_overflow(GR_ROUND_UP(block->pub.max_bytes, (uint64_t)page),
				   desc->fd_offset, &need) ||
	    need > INT64_MAX) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': offset %llu in its file is no multiple of %llu, or too "
				    "high",
				    desc->id, (unsigned long long)desc->fd_offset,
				    (unsigned long long)page);
	}
	block->pub.page_bytes = (uint64_t)page;
	if (bytes == 0 && !(desc->flags & GR_RAM_HOST_READONLY)) {
		ret = gr_file_set_bytes(fd, need);
		if (ret < 0) {
			return gr_error_set(err, ret, "block '%s': making its file %llu bytes long: %s",
					    desc->id, (unsigned long long)need, strerror(-ret));
		}
		block->made_longer = true;
	} else if ((uint64_t)bytes < desc->fd_offset + block->pub.max_bytes) {
		return gr_error_set(err, -EINVAL,
				    "block '%s': its file has %llu bytes, less than offset %llu and %llu "
				    "bytes",
				    desc->id, (unsigned long long)bytes,
				    (unsigned long long)desc->fd_offset,
				    (unsigned long long)block->pub.max_bytes);
	}
	return 0;
}

int gr_backing_open(struct gr_block *block, const struct gr_ram_block_desc *desc,
		    struct gr_error *err)
{
	int fd = -1, ret = 0;

	if (desc->backing == GR_RAM_FILE || (desc->backing == GR_RAM_ON_DEMAND && desc->path)) {
		ret = open_path(block, desc, &fd, err);
	} else {
		fd = gr_file_duplicate(desc->fd);
		if (fd < 0) {
			ret = gr_error_set(err, fd, "block '%s': fd %d: %s", desc->id, desc->fd,
					   strerror(-fd));
		}
	}
	if (ret < 0) {
		return ret;
	}
	block->pub.fd = fd;
	block->pub.fd_offset = desc->fd_offset;
	return make_room(block, desc, fd, err);
}

bool gr_ram_block_is_shared_file(const struct gr_ram_block *block, bool promised)
{
	unsigned int flags = gr_ram_block_flags(block);

	if (flags & (GR_RAM_PRIVATE | GR_RAM_HOST_READONLY)) {
		return false;
	}
	if (block->backing == GR_RAM_FD || block->backing == GR_RAM_CALLER) {
#ifdef GR_MUTANT_FD_IS_SHARED_UNPROMISED
		return block->fd >= 0;
#endif
		return promised && (flags & GR_RAM_SHARED);
	}
	return block->backing == GR_RAM_FILE && gr_block(block)->named;
}

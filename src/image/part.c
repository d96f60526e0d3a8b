/* SPDX-License-Identifier: MIT */
#include "image/part.h"
#include "base/compiler.h"
#include "image/file.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The image takes the place of what has its name: never that of a device or a folder. */
static int check_name(const char *path, struct gr_error *err)
{
	struct stat st;

	if (stat(path, &st) < 0 || S_ISREG(st.st_mode)) {
		return 0; /* what else is wrong with the path is found out with path.part */
	}
	if (S_ISDIR(st.st_mode)) {
		return gr_error_set(err, -EISDIR, "%s: %s", path, strerror(EISDIR));
	}
	return gr_error_set(err, -EINVAL, "%s: exists and is not a regular file", path);
}

/* Opens and locks path.part; -EAGAIN: its name has moved on meanwhile. */
static int try_part(struct gr_part *p, struct gr_error *err)
{
	struct stat ours, named;

	/* Guest RAM is nobody else's to read. */
	p->fd = open(p->part_path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (p->fd < 0 || fstat(p->fd, &ours) < 0) {
		return gr_error_set(err, -errno, "%s: %s", p->part_path, strerror(errno));
	}
	if (!S_ISREG(ours.st_mode)) {
		return gr_error_set(err, -EINVAL, "%s: exists and is not a regular file",
				    p->part_path);
	}
	if (flock(p->fd, LOCK_EX | LOCK_NB) < 0) {
		return errno == EWOULDBLOCK
			       ? gr_error_set(err, -EBUSY, "%s: somebody else is writing it",
					      p->part_path)
			       : gr_error_set(err, -errno, "%s: cannot be locked: %s", p->part_path,
					      strerror(errno));
	}
	/* Who had the lock before us may have given the file its final name. */
	if (lstat(p->part_path, &named) < 0 || named.st_ino != ours.st_ino ||
	    named.st_dev != ours.st_dev) {
		return -EAGAIN;
	}
	return 0;
}

static int open_part(struct gr_part *p, struct gr_error *err)
{
	int rc;

	while ((rc = try_part(p, err)) == -EAGAIN) {
		(void)close(p->fd);
		p->fd = -1;
	}
	return rc;
}

/* What stands in front of an image belongs to somebody else, who finds it again. */
static int keep(struct gr_part *p, uint64_t bytes, struct gr_error *err)
{
	int from = bytes > 0 ? open(p->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
	uint8_t buf[16 << 10];
	uint64_t at = 0;
	int rc = 0;

	if (from < 0) {
		return bytes == 0 || errno == ENOENT
			       ? 0
			       : gr_error_set(err, -errno, "%s: %s", p->path, strerror(errno));
	}
	while (rc == 0 && at < bytes) {
		ssize_t n = pread(from, buf, GR_MIN(bytes - at, (uint64_t)sizeof(buf)), (off_t)at);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			rc = n < 0 ? gr_error_set(err, -errno,
						  "%s: cannot read byte %" PRIu64 ": %s", p->path,
						  at, strerror(errno))
				   : 0;
			break;
		}
		rc = gr_file_pwrite(p->fd, buf, (size_t)n, at);
		if (rc < 0) {
			(void)gr_error_set(err, rc, "%s: cannot write at byte %" PRIu64 ": %s",
					   p->part_path, at, strerror(-rc));
		}
		at += (uint64_t)n;
	}
	(void)close(from);
	return rc;
}

int gr_part_open(struct gr_part *p, const char *path, uint64_t keep_bytes, struct gr_error *err)
{
	int rc;

	*p = (struct gr_part){ .fd = -1, .path = strdup(path) };
	if (!p->path || asprintf(&p->part_path, "%s.part", path) < 0) {
		p->part_path = NULL;
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
#ifdef GR_MUTANT_IMAGE_EARLY_NAME
	(void)snprintf(p->part_path, strlen(path) + 1, "%s", path);
#endif
	rc = check_name(path, err);
	if (rc == 0) {
		rc = open_part(p, err);
	}
	if (rc < 0) {
		return rc;
	}
	/* Cut off only once it is ours. */
	if (ftruncate(p->fd, 0) < 0) {
		return gr_error_set(err, -errno, "%s: %s", p->part_path, strerror(errno));
	}
	return keep(p, keep_bytes, err);
}

/* By name, so only while that is ours: until it is given away we have its lock. */
void gr_part_discard(struct gr_part *p)
{
#ifndef GR_MUTANT_IMAGE_DISCARDS_BY_NAME
	if (p->named) {
		return;
	}
#endif
	if (p->fd >= 0) {
		(void)unlink(p->part_path);
	}
}

void gr_part_close(struct gr_part *p)
{
	if (p->fd >= 0) {
		(void)close(p->fd);
		p->fd = -1;
	}
	free(p->part_path);
	free(p->path);
	p->path = p->part_path = NULL;
}

/* The name and the data have to be on disk before anybody is told so. */
int gr_part_commit(struct gr_part *p, struct gr_error *err)
{
	char *folder_of = strdup(p->path);
	int folder = -1, rc = 0;

	if (!folder_of) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	if (fdatasync(p->fd) < 0) {
		rc = gr_error_set(err, -errno, "%s: %s", p->part_path, strerror(errno));
		goto out;
	}
	/* Before the name is given: a failure then leaves what has it. */
	folder = open(dirname(folder_of), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (folder < 0) {
		rc = gr_error_set(err, -errno,
				  "%s: its folder cannot be opened to bring the name to disk: %s",
				  p->path, strerror(errno));
		goto out;
	}
	if (rename(p->part_path, p->path) < 0) {
		rc = gr_error_set(err, -errno, "%s: cannot be renamed to %s: %s", p->part_path,
				  p->path, strerror(errno));
		goto out;
	}
	p->named = true;
	/* EINVAL: a file system that has no such thing */
	if (fsync(folder) < 0 && errno != EINVAL) {
		rc = gr_error_set(err, -errno,
				  "%s: complete, but its folder cannot be written to disk: %s",
				  p->path, strerror(errno));
	}
out:
	if (folder >= 0) {
		(void)close(folder);
	}
	free(folder_of);
	return rc;
}

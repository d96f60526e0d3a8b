/* SPDX-License-Identifier: MIT */
#include "base/memory.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* How often others may make and remove the file between our looks. */
enum { TRIES_MAX = 1000 };

/* A file in a directory, without a name as soon as it is there. */
static int open_in(const char *directory, const char *name)
{
	char path[PATH_MAX], clean[64];
	int fd, n;

	(void)snprintf(clean, sizeof(clean), "%s", name);
	for (char *p = clean; (p = strchr(p, '/'));) {
		*p = '_';
	}
	n = snprintf(path, sizeof(path), "%s/guestram.%s.XXXXXX", directory, clean);
	if (n < 0 || (size_t)n >= sizeof(path)) {
		return -ENAMETOOLONG;
	}
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0) {
		return -errno;
	}
	(void)unlink(path);
	return fd;
}

int gr_file_open(const char *path, const char *name, bool readonly, enum gr_file_origin *ret_origin)
{
	/* A FIFO is refused by who asks for its length: do not wait here for its other end. */
	int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (readonly ? O_RDONLY : O_RDWR);
	struct stat st;
	int fd = -1;

	*ret_origin = GR_FILE_FOUND;
	for (int tries = 0; fd < 0 && tries < TRIES_MAX; tries++) {
		if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
			*ret_origin = GR_FILE_NAMELESS;
			return readonly ? -EISDIR : open_in(path, name);
		}
		fd = open(path, flags);
		if (fd < 0 && errno == ENOENT && !readonly) {
			/* Ours only if nobody else makes it meanwhile: then that one is opened. */
			fd = open(path, flags | O_CREAT | O_EXCL, 0600);
			*ret_origin = fd >= 0 ? GR_FILE_MADE : GR_FILE_FOUND;
		}
		if (fd < 0 && errno != EINTR && errno != EEXIST) {
			return -errno;
		}
	}
	return fd >= 0 ? fd : -EAGAIN;
}

void gr_file_remove(const char *path)
{
	(void)unlink(path);
}

int gr_file_lock(int fd, bool exclusive)
{
	while (flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) != 0) {
		if (errno != EINTR) {
			return errno == EWOULDBLOCK ? -EBUSY : -errno;
		}
	}
	return 0;
}

void gr_file_unlock(int fd)
{
	(void)flock(fd, LOCK_UN);
}

/* Linux has one, as 32 digits and dashes. */
static bool read_boot_id(uint8_t *id)
{
	char text[64];
	size_t digits = 0;
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, text, sizeof(text)) : -1;

	if (fd >= 0) {
		(void)close(fd);
	}
	memset(id, 0, GR_BOOT_ID_BYTES);
	for (ssize_t i = 0; i < n && digits < 2 * (size_t)GR_BOOT_ID_BYTES; i++) {
		const char *all = "0123456789abcdef", *found = strchr(all, text[i]);

		if (found && text[i] != '\0') {
			id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | (found - all));
			digits++;
		}
	}
	return digits == 2 * (size_t)GR_BOOT_ID_BYTES;
}

void gr_file_identify(int fd, struct gr_file_identity *ret_identity)
{
	struct gr_file_identity identity = { 0 };
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0 && read_boot_id(identity.boot)) {
		bool is_device = S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode);

		identity.device = is_device ? st.st_rdev : st.st_dev;
		identity.inode = is_device ? 0 : st.st_ino;
		*ret_identity = identity;
	} else {
		*ret_identity = (struct gr_file_identity){ 0 };
	}
}

int gr_file_duplicate(int fd)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	return copy >= 0 ? copy : -errno;
}

int64_t gr_file_bytes(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? (int64_t)st.st_size : -errno;
}

int gr_file_set_bytes(int fd, uint64_t bytes)
{
	while (ftruncate(fd, (off_t)bytes) != 0) {
		if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

int gr_file_write_back(int fd)
{
	while (fdatasync(fd) != 0) {
		if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

/* SPDX-License-Identifier: MIT */
/* A flat 16-bit image, loaded and started as a PC's BIOS starts a boot sector. */
#include "kvm_payload.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	FLAT_START = 0x7c00,
	/* What real mode reaches below the adapters' memory. */
	FLAT_BYTES_MAX = 0xa0000 - FLAT_START,
};

/* Up to FLAT_BYTES_MAX + 1 bytes, so that too long can be told from just fitting. */
static ssize_t read_all(int fd, uint8_t *buf)
{
	size_t n = 0;

	while (n <= FLAT_BYTES_MAX) {
		ssize_t got = read(fd, buf + n, FLAT_BYTES_MAX + 1 - n);

		if (got < 0 && errno == EINTR) {
			continue;
		}
		if (got < 0) {
			return -errno;
		}
		if (got == 0) {
			break;
		}
		n += (size_t)got;
	}
	return (ssize_t)n;
}

int vmm_flat_load(struct gr_ram *ram, const char *path, struct gr_error *err)
{
	uint8_t *image = malloc(FLAT_BYTES_MAX + 1);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t bytes = fd < 0 ? -errno : 0;
	int rc;

	if (!image) {
		rc = gr_error_set(err, -ENOMEM, "no memory for the image '%s'", path);
		goto out;
	}
	if (bytes == 0) {
		bytes = read_all(fd, image);
	}
	if (bytes < 0) {
		rc = gr_error_set(err, (int)bytes, "cannot read the image '%s': %s", path,
				  strerror((int)-bytes));
	} else if (bytes == 0 || bytes > FLAT_BYTES_MAX) {
		rc = gr_error_set(err, -EINVAL, "the image '%s' must be 1 to %d bytes", path,
				  FLAT_BYTES_MAX);
	} else {
		rc = gr_ram_write(ram, gr_gpa(FLAT_START), image, (size_t)bytes, err);
	}
out:
	if (fd >= 0) {
		(void)close(fd);
	}
	free(image);
	return rc;
}

void vmm_flat_registers(struct kvm_regs *regs, struct kvm_sregs *sregs)
{
	struct kvm_segment *segments[] = { &sregs->cs, &sregs->ds, &sregs->es,
					   &sregs->fs, &sregs->gs, &sregs->ss };

	*regs = (struct kvm_regs){ .rip = FLAT_START, .rflags = 2, .rsp = FLAT_START };
	for (size_t i = 0; i < sizeof(segments) / sizeof(segments[0]); i++) {
		segments[i]->base = 0;
		segments[i]->selector = 0;
	}
}

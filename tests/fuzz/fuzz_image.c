/* SPDX-License-Identifier: MIT */
/* A file that somebody else wrote: opened, listed, read, sent on, loaded. */
#include "fuzz.h"
#include <fcntl.h>
#include <guestram/image.h>
#include <guestram/ram.h>
#include <guestram/rcu.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { READ_BYTES = 64 << 10, SEND_BYTES_MAX = 1 << 20 };

static void read_all(struct gr_image *image)
{
	static uint8_t buf[READ_BYTES];
	struct gr_image_device device;
	struct gr_image_block block;

	for (uint32_t i = 0; gr_image_block(image, i, &block) == 0; i++) {
		uint64_t n = block.used_bytes < READ_BYTES ? block.used_bytes : READ_BYTES;

		if (block.present_pages > block.used_bytes / block.page_bytes) {
			abort();
		}
		/* Open has checked that all of it is in the file. */
		if (gr_image_read(image, i, 0, buf, n, NULL) < 0 ||
		    gr_image_read(image, i, block.used_bytes - n, buf, n, NULL) < 0) {
			abort();
		}
	}
	for (uint32_t i = 0; gr_image_device(image, i, &device) == 0; i++) {
		if (device.name[0] == '\0') {
			continue;
		}
	}
}

static void send_on(struct gr_image *image)
{
	struct gr_channel *ch;
	int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || gr_channel_from_fd(fd, &ch, NULL) < 0) {
		abort();
	}
	if (gr_image_send(image, ch, NULL, NULL, NULL) < 0) {
		abort();
	}
	(void)gr_channel_close(ch, NULL);
}

/* Into a machine, at once and while it "runs": the same bytes as those that are read. */
static void load(struct gr_image *image, bool lazily)
{
	struct gr_image_resume_params params = { .size = sizeof(params), .threads = 1 };
	struct gr_image_resume *resume = NULL;
	static uint8_t buf[READ_BYTES];
	struct gr_image_block block;
	struct gr_ram *ram;

	if (gr_ram_create(NULL, &ram, NULL) < 0) {
		abort();
	}
	if (lazily ? gr_image_resume_start(image, ram, &params, NULL, &resume, NULL) < 0
		   : gr_image_load(image, ram, NULL, NULL, NULL, NULL) < 0) {
		gr_ram_free(ram); /* pages or a length that this machine cannot have */
		return;
	}
	for (uint32_t i = 0; gr_image_block(image, i, &block) == 0; i++) {
		const struct gr_ram_block *got;
		uint64_t n = block.used_bytes < READ_BYTES ? block.used_bytes : READ_BYTES;

		gr_rcu_read_lock();
		got = gr_ram_block_by_id_rcu(ram, block.id);
		if (!got || gr_image_read(image, i, 0, buf, n, NULL) < 0 ||
		    memcmp(got->host, buf, n) != 0) {
			abort();
		}
		gr_rcu_read_unlock();
	}
	if (resume && (gr_image_resume_wait(resume, UINT64_MAX, NULL) < 0 ||
		       gr_image_resume_end(resume, NULL) < 0)) {
		abort();
	}
	gr_ram_free(ram);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct gr_image_info info;
	struct gr_image *image;
	char path[64];

	if (fd < 0 || write(fd, data, n) != (ssize_t)n) {
		abort();
	}
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (gr_image_open(path, &image, NULL) == 0) {
		gr_image_info(image, &info);
		read_all(image);
		if (info.ram_bytes <= SEND_BYTES_MAX) {
			send_on(image);
			load(image, false);
			load(image, true);
		}
		gr_image_close(image);
	}
	(void)close(fd);
	return 0;
}

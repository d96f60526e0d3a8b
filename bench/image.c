/* SPDX-License-Identifier: MIT */
/*
 * RAM into a file and back. The peer is QEMU 10 (GR_QEMU10, GR_QEMU10_DATA, as in the tests), which
 * moves the same content with `migrate file:` and mapped-ram; its destination's memory is as fresh
 * as ours.
 *
 *   image.write, image.read        CPU seconds per GiB, to tmpfs and to a disk (TMPDIR, direct I/O)
 *   image.read/tmpfs_private       into private memory with huge pages on both sides, QEMU's
 * default image.read/tmpfs/bare          against a bare loop without a format, pread() and
 * UFFDIO_COPY image.read/tmpfs/allocation    against allocating and mapping as much memory without
 * any content resume.first_instruction       from opening an image on tmpfs to the first word of
 * the machine's memory, against loading all of it first; 256 MiB, and 16 GiB of which 512 MiB have
 * content; 256 MiB on a disk whose content is in no page cache resume.first_touch             p99
 * of the first touch of a page, against a private mapping of the image
 */
#include "bench/harness.h"
#include "bench/qemu.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/guestram.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, TOUCHES = 2000, COLD_TOUCHES = 500 };

static char shm_dir[] = "/dev/shm/guestram-bench-XXXXXX";
static char disk_dir[128];
static char qemu_name[64];

static struct gr_ram *ram_of(uint8_t *host, int fd, uint64_t bytes)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "ram",
					  .used_bytes = bytes,
					  .backing = GR_RAM_CALLER,
					  .host = host,
					  .fd = fd };
	struct gr_error err;
	struct gr_ram *ram;

	if (gr_ram_create(NULL, &ram, &err) < 0 || gr_ram_block_add(ram, &desc, NULL, &err) < 0) {
		bench_die("%s", err.msg);
	}
	return ram;
}

static struct gr_image *open_image(const char *path)
{
	struct gr_image *image;
	struct gr_error err;

	if (gr_image_open(path, &image, &err) < 0) {
		bench_die("%s", err.msg);
	}
	return image;
}

static const uint8_t *memory_of(struct gr_ram *ram)
{
	const struct gr_ram_block *block;

	gr_rcu_read_lock();
	block = gr_ram_block_by_id_rcu(ram, "ram");
	gr_rcu_read_unlock();
	if (!block) {
		bench_die("the image has no block 'ram'");
	}
	return block->host; /* nobody removes it */
}

/* As QEMU has it by default: private, with huge pages. */
static void add_private(struct gr_ram *ram, uint64_t bytes)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "ram",
					  .used_bytes = bytes,
					  .backing = GR_RAM_ANONYMOUS,
					  .flags = GR_RAM_THP,
					  .fd = -1 };
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, NULL, &err) < 0) {
		bench_die("%s", err.msg);
	}
}

static struct bench_image_cost our_image(struct gr_ram *from, const uint8_t *want, uint64_t bytes,
					 const char *path, bool direct, bool private)
{
	struct gr_image_save_params save = { .size = sizeof(save), .threads = 1, .direct = direct };
	struct gr_image_load_params load = { .size = sizeof(load), .threads = 1, .direct = direct };
	struct bench_image_cost cost;
	struct gr_image *image;
	struct gr_error err;
	struct gr_ram *to;

	cost.save_wall_s = -bench_now_s();
	cost.save_cpu_s = -bench_cpu_s(0);
	if (gr_image_save(from, path, &save, NULL, &err) < 0) {
		bench_die("%s", err.msg);
	}
	cost.save_wall_s += bench_now_s();
	cost.save_cpu_s += bench_cpu_s(0);
	if (gr_ram_create(NULL, &to, &err) < 0) {
		bench_die("%s", err.msg);
	}
	if (private) {
		add_private(to, bytes);
	}
	cost.load_wall_s = -bench_now_s();
	cost.load_cpu_s = -bench_cpu_s(0);
	image = open_image(path);
	if (gr_image_load(image, to, &load, NULL, NULL, &err) < 0) {
		bench_die("%s", err.msg);
	}
	cost.load_wall_s += bench_now_s();
	cost.load_cpu_s += bench_cpu_s(0);
	if (memcmp(memory_of(to), want, bytes) != 0) {
		bench_die("what we loaded is not what we saved");
	}
	gr_image_close(image);
	gr_ram_free(to);
	return cost;
}

/* A new memory file. */
static uint8_t *new_memory(uint64_t bytes, int *ret_fd)
{
	int fd = memfd_create("bare", MFD_CLOEXEC);
	void *p = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0) {
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	}
	if (p == MAP_FAILED) {
		bench_die("no memory: %s", strerror(errno));
	}
	*ret_fd = fd;
	return p;
}

/* As much private memory, in huge pages. */
static uint8_t *new_private_memory(uint64_t bytes, int *ret_fd)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || madvise(p, bytes, MADV_HUGEPAGE) != 0) {
		bench_die("no memory: %s", strerror(errno));
	}
	*ret_fd = -1;
	return p;
}

/* What no machine with that much memory can do without. */
static double allocation_cpu_s(uint64_t bytes, bool private)
{
	int fd;
	uint8_t *p = private ? new_private_memory(bytes, &fd) : new_memory(bytes, &fd);
	double cpu_s = -bench_cpu_s(0);

	if (madvise(p, bytes, MADV_POPULATE_WRITE) != 0) {
		bench_die("cannot allocate: %s", strerror(errno));
	}
	cpu_s += bench_cpu_s(0);
	munmap(p, bytes);
	if (fd >= 0) {
		close(fd);
	}
	return cpu_s;
}

/* The cheapest way we know of into memory that is mapped afterwards. */
static double bare_read_cpu_s(const char *from, uint64_t bytes)
{
	enum { AT_ONCE = 256 << 10 };
	static uint8_t buffer[AT_ONCE] __attribute__((aligned(PAGE)));
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UINT64_C(1) << 12 }; /* WP_HUGETLBFS_SHMEM */
	struct uffdio_register reg = { .range.len = bytes, .mode = UFFDIO_REGISTER_MODE_WP };
	int fd, file = open(from, O_RDONLY | O_CLOEXEC),
		uffd = (int)syscall(SYS_userfaultfd,
				    O_CLOEXEC | 1 /* faults of this process's code */);
	uint8_t *p = new_memory(bytes, &fd);
	double cpu_s = -1;

	reg.range.start = (uint64_t)(uintptr_t)p;
	if (file >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 &&
	    ioctl(uffd, UFFDIO_REGISTER, &reg) == 0) {
		cpu_s = -bench_cpu_s(0);
		for (uint64_t at = 0; at < bytes; at += AT_ONCE) {
			struct uffdio_copy copy = { .dst = reg.range.start + at,
						    .src = (uint64_t)(uintptr_t)buffer,
						    .len = AT_ONCE };

			if (pread(file, buffer, AT_ONCE, (off_t)at) != AT_ONCE ||
			    ioctl(uffd, UFFDIO_COPY, &copy) != 0) {
				bench_die("bare loop: %s", strerror(errno));
			}
		}
		cpu_s += bench_cpu_s(0);
	}
	close(uffd);
	close(file);
	munmap(p, bytes);
	close(fd);
	return cpu_s; /* negative: this kernel has no such way */
}

static void files(const struct bench_options *o, const char *folder, const char *where, bool direct,
		  bool private)
{
	static const char *const names[2] = { "image.write", "image.read" };
	char file[160], image[160], text[6][64];
	struct bench_machine m = {
		.tmp = shm_dir, .src_file = file, .bytes = o->size_mib << 20, .private = private
	};
	double gib = (double)m.bytes / (1 << 30);
	struct bench_result r[6] = { 0 };
	struct gr_ram *ram;
	uint8_t *host;
	int fd;

	for (int i = 0; i < 4; i++) {
		(void)snprintf(text[i], sizeof(text[i]), "%s/%s%s", names[i % 2], where,
			       i < 2 ? "" : "_wall");
		r[i].name = text[i];
		r[i].unit = i < 2 ? "cpu s/GiB" : "s/GiB";
		r[i].peer_name = qemu_name;
	}
	for (int i = 4; i < 6; i++) {
		(void)snprintf(text[i], sizeof(text[i]), "image.read/%s/%s", where,
			       i == 4 ? "bare" : "allocation");
		r[i].name = text[i];
		r[i].unit = "cpu s/GiB";
		r[i].peer_name = i == 4 ? "pread and UFFDIO_COPY" : "allocation alone";
	}
	if (!bench_wanted(o, text[0]) && !bench_wanted(o, text[1])) {
		return;
	}
	(void)snprintf(file, sizeof(file), "%s/ram", shm_dir);
	(void)snprintf(image, sizeof(image), "%s/image", folder);
	host = bench_map_file(file, m.bytes, &fd);
	bench_fill_random(host, m.bytes, 1);
	ram = ram_of(host, fd, m.bytes);
	for (int i = 0; i < o->runs; i++) {
		struct bench_image_cost ours = our_image(ram, host, m.bytes, image, direct,
							 private),
					peer;

		(void)unlink(image);
		peer = bench_qemu_image(&m, image);
		(void)unlink(image);
		bench_add(&r[1], ours.load_cpu_s / gib, peer.load_cpu_s / gib);
		bench_add(&r[3], ours.load_wall_s / gib, peer.load_wall_s / gib);
		if (!private) { /* the source's memory is the same */
			bench_add(&r[0], ours.save_cpu_s / gib, peer.save_cpu_s / gib);
			bench_add(&r[2], ours.save_wall_s / gib, peer.save_wall_s / gib);
		}
		if (!direct) {
			double bare = private ? -1 : bare_read_cpu_s(file, m.bytes);

			if (bare >= 0) {
				bench_add(&r[4], ours.load_cpu_s / gib, bare / gib);
			}
			bench_add(&r[5], ours.load_cpu_s / gib,
				  allocation_cpu_s(m.bytes, private) / gib);
		}
	}
	for (int i = 0; i < 6; i++) {
		if (r[i].runs > 0) {
			bench_print(o, &r[i]);
		}
	}
	gr_ram_free(ram);
	munmap(host, m.bytes);
	close(fd);
	(void)unlink(file);
}

/* p99 of touching pages in a row, far enough from each other that none brings the next;
 * microseconds. */
static double touch_us(const uint8_t *memory, uint64_t data_bytes, int touches)
{
	static double us[TOUCHES];
	uint64_t step = data_bytes / (uint64_t)(touches + 1) & ~(uint64_t)(PAGE - 1);

	for (int i = 0; i < touches; i++) {
		/* from the end on: what is loaded ahead begins at the beginning */
		const volatile uint8_t *at = memory + data_bytes - PAGE - (uint64_t)i * step;
		double began = bench_now_s();

		(void)*at;
		us[i] = (bench_now_s() - began) * 1e6;
	}
	bench_sort(us, (size_t)touches);
	return us[touches * 99 / 100];
}

/* What the page cache has of a file goes, where that is wanted and it is on a disk. */
static void drop_cache(const char *path, bool really)
{
	int fd = really ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0 && (fdatasync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)) {
		bench_die("%s stays in the page cache: %s", path, strerror(errno));
	}
	if (fd >= 0) {
		close(fd);
	}
}

struct first {
	double ms;
	double touch_us;
};

static struct first resume_lazily(const char *path, uint64_t data_bytes, int touches)
{
	/* Loading ahead waits, so that each touch is the first. */
	struct gr_image_resume_params params = { .size = sizeof(params),
						 .threads = 1,
						 .bandwidth_bytes_per_s_max = 1 << 20,
						 .writers = GR_WRITERS_MAPPING };
	struct gr_image_resume *resume;
	struct first first;
	struct gr_image *image;
	struct gr_error err;
	struct gr_ram *ram;

	first.ms = -bench_now_s() * 1e3;
	image = open_image(path);
	if (gr_ram_create(NULL, &ram, &err) < 0 ||
	    gr_image_resume_start(image, ram, &params, NULL, &resume, &err) < 0) {
		bench_die("%s", err.msg);
	}
	(void)*(const volatile uint8_t *)memory_of(ram);
	first.ms += bench_now_s() * 1e3;
	first.touch_us = touch_us(memory_of(ram), data_bytes, touches);
	(void)gr_image_resume_end(resume, NULL);
	gr_image_close(image);
	gr_ram_free(ram);
	return first;
}

static struct first load_first(const char *path, uint64_t data_bytes, int touches)
{
	struct gr_image_load_params params = { .size = sizeof(params), .threads = 2 };
	struct gr_image_block block;
	struct gr_image *image;
	struct first first;
	struct gr_error err;
	struct gr_ram *ram;
	uint8_t *map;
	int fd;

	first.ms = -bench_now_s() * 1e3;
	image = open_image(path);
	if (gr_ram_create(NULL, &ram, &err) < 0 ||
	    gr_image_load(image, ram, &params, NULL, NULL, &err) < 0) {
		bench_die("%s", err.msg);
	}
	(void)*(const volatile uint8_t *)memory_of(ram);
	first.ms += bench_now_s() * 1e3;
	(void)gr_image_block(image, 0, &block);
	drop_cache(path, touches == COLD_TOUCHES);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	map = mmap(NULL, data_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd,
		   (off_t)block.data_offset);
	if (map == MAP_FAILED) {
		bench_die("cannot map %s: %s", path, strerror(errno));
	}
	first.touch_us = touch_us(map, data_bytes, touches);
	munmap(map, data_bytes);
	close(fd);
	gr_image_close(image);
	gr_ram_free(ram);
	return first;
}

static void resume(const struct bench_options *o, const char *size, uint64_t bytes,
		   uint64_t data_bytes, const char *folder)
{
	bool cold = folder != shm_dir;
	int touches = cold ? COLD_TOUCHES : TOUCHES;
	char path[160], file[160], text[2][64];
	struct bench_result r[2] = { 0 };
	struct gr_error err;
	struct gr_ram *ram;
	uint8_t *host;
	int fd;

	(void)snprintf(text[0], sizeof(text[0]), "resume.first_instruction/%s", size);
	(void)snprintf(text[1], sizeof(text[1]), "resume.first_touch/%s_p99", size);
	r[0].name = text[0];
	r[0].unit = "ms";
	r[0].peer_name = "loading all first";
	r[1].name = text[1];
	r[1].unit = "us";
	r[1].peer_name = "a private mapping of the image";
	if (!bench_wanted(o, "resume.first_instruction") &&
	    !bench_wanted(o, "resume.first_touch")) {
		return;
	}
	(void)snprintf(path, sizeof(path), "%s/image", folder);
	(void)snprintf(file, sizeof(file), "%s/ram", shm_dir);
	host = bench_map_file(file, bytes, &fd);
	bench_fill_random(host, data_bytes, 1);
	ram = ram_of(host, fd, bytes);
	if (gr_image_save(ram, path, NULL, NULL, &err) < 0) {
		bench_die("%s", err.msg);
	}
	gr_ram_free(ram);
	munmap(host, bytes);
	close(fd);
	(void)unlink(file);
	for (int i = 0; i < o->runs; i++) {
		struct first lazy, eager;

		drop_cache(path, cold);
		lazy = resume_lazily(path, data_bytes, touches);
		drop_cache(path, cold);
		eager = load_first(path, data_bytes, touches);

		bench_add(&r[0], lazy.ms, eager.ms);
		bench_add(&r[1], lazy.touch_us, eager.touch_us);
	}
	bench_print(o, &r[0]);
	bench_print(o, &r[1]);
	(void)unlink(path);
}

static void remove_folders(void)
{
	char command[320];

	(void)snprintf(command, sizeof(command), "rm -rf '%s' '%s'", shm_dir, disk_dir);
	(void)!system(command);
}

int main(int argc, char **argv)
{
	const char *qemu = getenv("GR_QEMU10"), *tmp = getenv("TMPDIR"), *version;
	uint64_t small = UINT64_C(256) << 20;
	struct bench_options o;

	bench_options_parse(&o, argc, argv);
	(void)snprintf(disk_dir, sizeof(disk_dir), "%s/guestram-bench-XXXXXX",
		       tmp ? tmp : "/var/tmp");
	if (!mkdtemp(shm_dir) || !mkdtemp(disk_dir)) {
		bench_die("cannot make a folder: %s", strerror(errno));
	}
	(void)atexit(remove_folders);
	resume(&o, "256MiB", small, small, shm_dir);
	resume(&o, "16GiB", UINT64_C(16) << 30, o.quick ? small / 4 : 2 * small, shm_dir);
	resume(&o, "256MiB_cold_disk", small, small, disk_dir);
	if (!qemu) {
		(void)fprintf(stderr, "image.*: skipped, GR_QEMU10 names no QEMU (make qemu10)\n");
		return 0;
	}
	version = bench_qemu_version();
	if (!version) {
		bench_die("%s does not run", qemu);
	}
	(void)snprintf(qemu_name, sizeof(qemu_name), "QEMU %s, mapped-ram", version);
	files(&o, shm_dir, "tmpfs", false, false);
	files(&o, shm_dir, "tmpfs_private", false, true);
	files(&o, disk_dir, "disk", true, false);
	files(&o, disk_dir, "disk_private", true, true);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/* A machine's RAM into an image and back: by several threads, around the page cache, anywhere in a
 * file. */
#include "harness.h"
#include "image/direct.h"
#include "image/store.h"
#include "smaps.h"
#include "stream/tail.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/image.h>
#include <guestram/rcu.h>
#include <guestram/track.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, RAM_BYTES = 17 << 20, ROM_BYTES = 3 * PAGE };

static char folder[64];

static const char *in_folder(const char *name)
{
	static char paths[4][128];
	static unsigned next;
	char *path = paths[next++ % 4];

	if (!folder[0]) {
		(void)snprintf(folder, sizeof(folder), "/var/tmp/gr-image-XXXXXX");
		ASSERT(mkdtemp(folder));
	}
	(void)snprintf(path, 128, "%s/%s", folder, name);
	return path;
}

static void remove_folder(void)
{
	char command[128];

	(void)snprintf(command, sizeof(command), "rm -rf %s", folder);
	ASSERT_EQ(system(command), 0);
}

static struct gr_ram_block *add(struct gr_ram *ram, const char *id, uint64_t bytes,
				enum gr_ram_backing backing, unsigned int flags)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = bytes,
					  .backing = backing,
					  .flags = flags,
					  .fd = -1 };
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

/* In front of the C library's: a folder that cannot be brought to disk. */
static int fsync_errno;

int fsync(int fd)
{
	if (fsync_errno != 0) {
		errno = fsync_errno;
		return -1;
	}
	return (int)syscall(SYS_fsync, fd);
}

struct machine {
	struct gr_ram *ram;
	struct gr_ram_block *big, *anonymous, *rom;
};

static void machine_make_of(struct machine *m, enum gr_ram_backing backing, unsigned int flags)
{
	ASSERT_EQ(gr_ram_create(NULL, &m->ram, NULL), 0);
	m->big = add(m->ram, "ram", RAM_BYTES, backing, flags);
	m->anonymous = add(m->ram, "more", RAM_BYTES / 2, GR_RAM_ANONYMOUS, 0);
	m->rom = add(m->ram, "rom", ROM_BYTES, GR_RAM_MEMFD, 0);
}

static void machine_make(struct machine *m)
{
	machine_make_of(m, GR_RAM_MEMFD, 0);
}

/* Runs of pages with bytes, pages of zeroes, and some that nobody touches. */
static void fill_block(struct gr_ram_block *block, uint64_t *seed)
{
	uint64_t pages = gr_ram_block_used_bytes(block) / PAGE;

	for (uint64_t page = 0; page < pages;) {
		uint64_t kind = test_rand(seed) % 3, n = 1 + test_rand(seed) % 40;

		for (; n > 0 && page < pages; n--, page++) {
			uint64_t *word = (uint64_t *)(void *)(block->host + page * PAGE);

			if (kind == 0) {
				continue;
			}
			word[test_rand(seed) % 512] = kind == 1 ? 0 : test_rand(seed) | 1;
		}
	}
}

static void machine_fill(struct machine *m, uint64_t *seed)
{
	fill_block(m->big, seed);
	fill_block(m->anonymous, seed);
	fill_block(m->rom, seed);
}

static void check_block(const struct gr_ram_block *got, const struct gr_ram_block *want)
{
	ASSERT_EQ(gr_ram_block_used_bytes(got), gr_ram_block_used_bytes(want));
	ASSERT_MEM_EQ(got->host, want->host, gr_ram_block_used_bytes(want));
}

static void check_equal(const struct machine *got, const struct machine *want)
{
	check_block(got->big, want->big);
	check_block(got->anonymous, want->anonymous);
	check_block(got->rom, want->rom);
}

static struct gr_image_stats save_well(struct machine *m, const char *path,
				       const struct gr_image_save_params *params)
{
	struct gr_image_stats stats;
	struct gr_error err;

	if (gr_image_save(m->ram, path, params, &stats, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return stats;
}

static struct gr_image_stats load_well(struct machine *m, const char *path, uint64_t offset,
				       const struct gr_image_load_params *params)
{
	struct gr_image_stats stats;
	struct gr_image *image;
	struct gr_error err;

	if (gr_image_open_at(path, offset, &image, &err) < 0 ||
	    gr_image_load(image, m->ram, params, NULL, &stats, &err) < 0) {
		FAIL("%s", err.msg);
	}
	gr_image_close(image);
	return stats;
}

static void round_trip(const struct gr_image_save_params *save,
		       const struct gr_image_load_params *load)
{
	uint64_t seed = test_seed();
	struct gr_image_stats saved, loaded;
	struct machine from, fresh, used;

	machine_make(&from);
	machine_fill(&from, &seed);
	saved = save_well(&from, in_folder("vm.ram"), save);
	ASSERT_EQ(saved.data_pages + saved.zero_pages,
		  (RAM_BYTES + RAM_BYTES / 2 + ROM_BYTES) / PAGE);
	machine_make(&fresh);
	loaded = load_well(&fresh, in_folder("vm.ram"), save->offset, load);
	check_equal(&fresh, &from);
	ASSERT_EQ(loaded.data_pages, saved.data_pages);
	/* what a machine had before is gone */
	machine_make(&used);
	machine_fill(&used, &seed);
	(void)load_well(&used, in_folder("vm.ram"), save->offset, load);
	check_equal(&used, &from);
	gr_ram_free(from.ram);
	gr_ram_free(fresh.ram);
	gr_ram_free(used.ram);
	remove_folder();
}

TEST(a_machine_comes_back_as_it_was)
{
	struct gr_image_save_params save = { .size = sizeof(save) };
	struct gr_image_load_params load = { .size = sizeof(load) };

	round_trip(&save, &load);
}

/* Whether memory that asks for huge pages gets one now. */
static bool has_huge_pages(void)
{
	size_t bytes = 4 << 20;
	uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool has;

	ASSERT(p != MAP_FAILED);
	ASSERT_EQ(madvise(p, bytes, MADV_HUGEPAGE), 0);
	memset(p, 1, bytes);
	has = strtoul(smaps(p, "AnonHugePages:"), NULL, 10) > 0;
	munmap(p, bytes);
	return has;
}

TEST(memory_that_wants_huge_pages_gets_them_by_being_loaded)
{
	struct gr_image_save_params save = { .size = sizeof(save) };
	struct gr_image_load_params load = { .size = sizeof(load) };
	uint64_t seed = test_seed();
	struct machine from, to;

	machine_make(&from);
	machine_make_of(&to, GR_RAM_ANONYMOUS, GR_RAM_THP);
	machine_fill(&from, &seed);
	save_well(&from, in_folder("vm.ram"), &save);
	load_well(&to, in_folder("vm.ram"), 0, &load);
	check_equal(&to, &from);
	if (strtoul(smaps(to.big->host, "AnonHugePages:"), NULL, 10) == 0) {
		if (!has_huge_pages()) {
			SKIP("this system has no huge page for those that ask");
		}
		FAIL("loaded into small pages");
	}
	gr_ram_free(to.ram);
	gr_ram_free(from.ram);
	remove_folder();
}

static void load_where_only_stores_get(enum gr_ram_backing backing)
{
	struct gr_image_save_params save = { .size = sizeof(save) };
	struct gr_image_load_params load = { .size = sizeof(load) };
	uint64_t seed = test_seed();
	struct machine from, to;
	struct gr_track *track;
	struct gr_error err;

	if (geteuid() == 0) { /* whose trackers see system calls too */
		ASSERT_EQ(setgid(65534) | setuid(65534), 0);
		ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
	}
	machine_make(&from);
	machine_make_of(&to, backing, 0);
	machine_fill(&from, &seed);
	memset(to.big->host, 0xee, RAM_BYTES / 2);
	save_well(&from, in_folder("vm.ram"), &save);
	ASSERT_EQ(gr_track_create(to.ram, &track, &err), 0);
	if (gr_track_use(track, GR_TRACKER_UFFD_SYNC, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	if (gr_track_start(track, GR_WRITERS_STORES, &err) < 0) {
		FAIL("%s", err.msg);
	}
	load_well(&to, in_folder("vm.ram"), 0, &load);
	check_equal(&to, &from);
	gr_track_stop(track);
	gr_track_free(track);
	gr_ram_free(to.ram);
	gr_ram_free(from.ram);
	remove_folder();
}

TEST(an_image_comes_into_private_memory_that_only_stores_may_change)
{
	load_where_only_stores_get(GR_RAM_ANONYMOUS);
}

TEST(an_image_comes_into_a_memfd_that_only_stores_may_change)
{
	load_where_only_stores_get(GR_RAM_MEMFD);
}

TEST(many_threads_save_and_load_the_same)
{
	struct gr_image_save_params save = { .size = sizeof(save), .threads = 8 };
	struct gr_image_load_params load = { .size = sizeof(load), .threads = 8 };

	round_trip(&save, &load);
}

TEST(direct_transfers_save_and_load_the_same)
{
	struct gr_image_save_params save = { .size = sizeof(save), .threads = 2, .direct = true };
	struct gr_image_load_params load = { .size = sizeof(load), .threads = 2, .direct = true };

	round_trip(&save, &load);
}

TEST(image_at_an_odd_place_of_a_file_is_saved_and_loaded)
{
	struct gr_image_save_params save = {
		.size = sizeof(save), .threads = 2, .direct = true, .offset = 12345
	};
	struct gr_image_load_params load = { .size = sizeof(load), .threads = 2, .direct = true };

	round_trip(&save, &load);
}

static uint64_t memory_bytes(const struct gr_ram_block *block)
{
	struct stat st;

	ASSERT_EQ(fstat(block->fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

TEST(what_nobody_touched_takes_neither_memory_nor_space)
{
	struct gr_image_save_params save = { .size = sizeof(save), .threads = 2 };
	struct machine from, to;
	struct stat st;

	machine_make(&from);
	from.big->host[5 * PAGE] = 1;
	save_well(&from, in_folder("vm.ram"), &save);
	ASSERT_EQ(memory_bytes(from.big), PAGE);
	ASSERT_EQ(stat(in_folder("vm.ram"), &st), 0);
	ASSERT_LT((uint64_t)st.st_blocks * 512, 256 << 10);
	machine_make(&to);
	(void)load_well(&to, in_folder("vm.ram"), 0, NULL);
	ASSERT_EQ(memory_bytes(to.big), PAGE);
	check_equal(&to, &from);
	gr_ram_free(from.ram);
	gr_ram_free(to.ram);
	remove_folder();
}

struct device {
	char data[32];
	unsigned int completed;
};

static int save_device(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct device *d = opaque;

	return gr_state_put(writer, "clock", 3, 7, d->data, sizeof(d->data), err);
}

static int load_device(void *opaque, const char *id, uint32_t instance, uint32_t version,
		       const void *data, size_t bytes, struct gr_error *err)
{
	struct device *d = opaque;

	if (strcmp(id, "clock") != 0 || instance != 3 || version != 7 || bytes != sizeof(d->data)) {
		return gr_error_set(err, -EINVAL, "not our device");
	}
	memcpy(d->data, data, bytes);
	return 0;
}

static int complete(void *opaque, struct gr_error *err)
{
	struct device *d = opaque;

	d->completed++;
	return d->data[0] == 'x' ? gr_error_set(err, -EBADMSG, "something is missing") : 0;
}

TEST(devices_come_back_and_have_the_last_word)
{
	struct device from = { .data = "tick tock" }, to = { 0 };
	struct gr_image_save_params save = {
		.size = sizeof(save), .save = save_device, .opaque = &from, .machine = "my machine"
	};
	struct gr_image_load_params load = { .size = sizeof(load), .machine = "my machine" };
	struct gr_destination_ops ops = { .load = load_device,
					  .complete = complete,
					  .opaque = &to };
	struct gr_image *image;
	struct gr_error err;
	struct machine m, other;

	machine_make(&m);
	machine_make(&other);
	save_well(&m, in_folder("vm.ram"), &save);
	ASSERT_EQ(gr_image_open(in_folder("vm.ram"), &image, NULL), 0);
	ASSERT_EQ(gr_image_load(image, other.ram, &load, &ops, NULL, &err), 0);
	ASSERT_STR_EQ(to.data, "tick tock");
	ASSERT_EQ(to.completed, 1);
	load.machine = "another";
	ASSERT_EQ(gr_image_load(image, other.ram, &load, &ops, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "'my machine', not 'another'");
	gr_image_close(image);

	from.data[0] = 'x';
	save_well(&m, in_folder("vm.ram"), &save);
	ASSERT_EQ(gr_image_open(in_folder("vm.ram"), &image, NULL), 0);
	ASSERT_EQ(gr_image_load(image, other.ram, NULL, &ops, NULL, &err), -EBADMSG);
	gr_image_close(image);
	gr_ram_free(m.ram);
	gr_ram_free(other.ram);
	remove_folder();
}

TEST(machine_of_another_shape_is_refused_by_block)
{
	struct gr_ram *ram;
	struct gr_image *image;
	struct gr_error err;
	struct machine m;

	machine_make(&m);
	save_well(&m, in_folder("vm.ram"), NULL);
	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	(void)add(ram, "more", RAM_BYTES, GR_RAM_MEMFD, 0);
	ASSERT_EQ(gr_image_open(in_folder("vm.ram"), &image, NULL), 0);
	ASSERT_EQ(gr_image_load(image, ram, NULL, NULL, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "block 'more'");
	gr_image_close(image);
	gr_ram_free(ram);
	gr_ram_free(m.ram);
	remove_folder();
}

/* The file is shorter than it was when it was opened: what a thread cannot read ends all. */
TEST(file_that_is_cut_while_it_is_loaded_is_named_with_block_and_byte)
{
	struct gr_image_load_params load = { .size = sizeof(load), .threads = 4 };
	struct machine m, to;
	struct gr_image_block block;
	struct gr_image *image;
	struct gr_error err;

	machine_make(&m);
	memset(m.big->host, 0x5a, RAM_BYTES);
	save_well(&m, in_folder("vm.ram"), NULL);
	machine_make(&to);
	ASSERT_EQ(gr_image_open(in_folder("vm.ram"), &image, NULL), 0);
	for (uint32_t i = 0; i < 3; i++) {
		ASSERT_EQ(gr_image_block(image, i, &block), 0);
		if (strcmp(block.id, "ram") == 0) {
			break;
		}
	}
	ASSERT_EQ(truncate(in_folder("vm.ram"), (off_t)(block.data_offset + RAM_BYTES / 2)), 0);
	ASSERT_EQ(gr_image_load(image, to.ram, &load, NULL, NULL, &err), -EPIPE);
	ASSERT_HAS(err.msg, "block 'ram' at 0x");
	ASSERT_HAS(err.msg, "the file was cut");
	gr_image_close(image);
	gr_ram_free(m.ram);
	gr_ram_free(to.ram);
	remove_folder();
}

TEST(full_disk_is_named_with_block_and_page_and_the_old_image_stays)
{
	struct gr_image_save_params save = { .size = sizeof(save), .threads = 4 };
	struct rlimit limit = { 8 << 20, 8 << 20 };
	struct gr_ram_block *block;
	struct gr_image *image;
	struct gr_error err;
	struct gr_ram *ram;
	uint8_t byte;

	(void)signal(SIGXFSZ, SIG_IGN);
	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	block = add(ram, "ram", RAM_BYTES, GR_RAM_MEMFD, 0);
	block->host[0] = 1;
	ASSERT_EQ(gr_image_save(ram, in_folder("vm.ram"), NULL, NULL, NULL), 0);
	memset(block->host, 0x5a, RAM_BYTES);
	ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ASSERT_EQ(gr_image_save(ram, in_folder("vm.ram"), &save, NULL, &err), -EFBIG);
	ASSERT_HAS(err.msg, "block 'ram', pages from 0x");
	ASSERT_EQ(access(in_folder("vm.ram.part"), F_OK), 0);
	ASSERT_EQ(gr_image_open(in_folder("vm.ram"), &image, NULL), 0);
	ASSERT_EQ(gr_image_read(image, 0, 0, &byte, 1, NULL), 0);
	ASSERT_EQ(byte, 1);
	gr_image_close(image);
	gr_ram_free(ram);
	remove_folder();
}

/* One that may be gone after a crash is no image. */
TEST(folder_that_cannot_be_brought_to_disk_keeps_the_old_image)
{
	struct gr_ram_block *block;
	struct gr_image *image;
	struct gr_error err;
	struct gr_ram *ram;
	uint8_t byte;

	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	block = add(ram, "ram", RAM_BYTES, GR_RAM_MEMFD, 0);
	block->host[0] = 1;
	ASSERT_EQ(gr_image_save(ram, in_folder("vm.ram"), NULL, NULL, NULL), 0);
	ASSERT_EQ(chmod(in_folder("vm.ram"), 0644), 0);
	ASSERT_EQ(chmod(folder, 0333), 0);
	if (geteuid() == 0) {
		ASSERT_EQ(setresuid(65534, 65534, 0), 0);
	}
	block->host[0] = 2;
	ASSERT_EQ(gr_image_save(ram, in_folder("vm.ram"), NULL, NULL, &err), -EACCES);
	ASSERT_HAS(err.msg, "folder cannot be opened");
	ASSERT_EQ(gr_image_open(in_folder("vm.ram"), &image, NULL), 0);
	ASSERT_EQ(gr_image_read(image, 0, 0, &byte, 1, NULL), 0);
	ASSERT_EQ(byte, 1);
	gr_image_close(image);
	gr_ram_free(ram);
	(void)setresuid(0, 0, 0); /* if it was root */
	ASSERT_EQ(chmod(folder, 0755), 0);
	remove_folder();
}

/* Any place, length and memory: what is in the file is what a plain write would have put there. */
TEST(requests_of_any_alignment_reach_the_same_bytes)
{
	enum { BYTES = 1 << 18 };
	uint64_t seed = test_seed();
	uint8_t *want = calloc(1, BYTES), *from = aligned_alloc(PAGE, BYTES),
		*got = aligned_alloc(PAGE, BYTES);
	int fd = open(in_folder("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct gr_direct d;

	ASSERT_EQ(ftruncate(fd, BYTES), 0);
	gr_direct_open(&d, fd, true, true);
	for (int i = 0; i < 200; i++) {
		uint64_t shift = test_rand(&seed) % 3 == 0 ? test_rand(&seed) % PAGE : 0;
		uint64_t at = test_rand(&seed) % (BYTES / 2), n = test_rand(&seed) % (BYTES / 4);

		if (test_rand(&seed) % 2) {
			at &= ~(uint64_t)(PAGE - 1);
		}
		for (uint64_t k = 0; k < n; k++) {
			from[shift + k] = (uint8_t)test_rand(&seed);
		}
		memcpy(want + at, from + shift, n);
		ASSERT_EQ(gr_direct_pwrite(&d, from + shift, n, at), 0);
		ASSERT_EQ(gr_direct_pread(&d, got + shift, n, at), 0);
		ASSERT_MEM_EQ(got + shift, from + shift, n);
	}
	ASSERT_EQ(pread(fd, got, BYTES, 0), BYTES);
	ASSERT_MEM_EQ(got, want, BYTES);
	ASSERT_EQ(gr_direct_pread(&d, got, PAGE, BYTES), -EPIPE);
	gr_direct_close(&d);
	ASSERT_EQ(close(fd), 0);
	free(want);
	free(from);
	free(got);
	remove_folder();
}

TEST(file_system_without_direct_transfers_is_used_as_it_is_and_says_so)
{
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	struct gr_direct d;
	char why[96], c;

	gr_direct_open(&d, fd, true, false);
	ASSERT(!gr_direct_is_on(&d));
	gr_direct_why(&d, why, sizeof(why));
	ASSERT_HAS(why, "no direct I/O");
	ASSERT_EQ(gr_direct_pread(&d, &c, 1, 0), 0);
	ASSERT_EQ(c, 'N');
	gr_direct_close(&d);
	gr_direct_open(&d, fd, false, false);
	gr_direct_why(&d, why, sizeof(why));
	ASSERT_STR_EQ(why, "");
	ASSERT_EQ(close(fd), 0);
}

enum { STORE_PAGES = 64, STORE_THREADS = 4, STORE_ROUNDS = 3000 };

struct store_thread {
	struct gr_image_store *store;
	pthread_t thread;
	uint64_t first;
};

/* Every so manieth page of one word: set, then cleared, and nobody else's mark may undo either. */
static void *store_some(void *opaque)
{
	struct store_thread *t = opaque;
	static const uint8_t page[PAGE] = { 1 };
	uint8_t got[PAGE];

	for (int round = 0; round < STORE_ROUNDS; round++) {
		for (uint64_t i = t->first; i < STORE_PAGES; i += STORE_THREADS) {
			ASSERT_EQ(gr_image_store_run(t->store, 0, i * PAGE, page, PAGE, NULL), 0);
		}
		for (uint64_t i = t->first; i < STORE_PAGES; i += STORE_THREADS) {
			gr_image_store_zero(t->store, 0, i * PAGE, PAGE);
		}
		for (uint64_t i = t->first; i < STORE_PAGES; i += STORE_THREADS) {
			ASSERT_EQ(gr_image_store_page_read(t->store, 0, i * PAGE, got, NULL), 0);
			ASSERT_EQ(got[0], 0);
		}
	}
	ASSERT_EQ(gr_image_store_run(t->store, 0, t->first * PAGE, page, PAGE, NULL), 0);
	return NULL;
}

static int finish(struct gr_image_store *store, struct gr_error *err)
{
	struct gr_tail_builder tail;
	const uint8_t *data;
	size_t bytes;
	int rc;

	gr_tail_builder_init(&tail, PAGE);
	ASSERT_EQ(gr_tail_builder_finish(&tail, &data, &bytes, NULL), 0);
	rc = gr_image_store_finish(store, data, bytes, err);
	gr_tail_builder_destroy(&tail);
	return rc;
}

TEST(writers_of_neighbouring_pages_do_not_lose_each_others_marks)
{
	struct gr_image_place place = { .id = "ram", .used_bytes = STORE_PAGES * PAGE };
	struct store_thread threads[STORE_THREADS];
	struct gr_image_store *store;
	struct gr_image_block block;
	struct gr_image *image;

	ASSERT_EQ(gr_image_store_create(in_folder("vm.ram"), &store, NULL), 0);
	ASSERT_EQ(gr_image_store_machine(store, "m", PAGE, NULL), 0);
	ASSERT_EQ(gr_image_store_blocks(store, 1, &place, 1, NULL), 0);
	for (unsigned i = 0; i < STORE_THREADS; i++) {
		threads[i].store = store;
		threads[i].first = i;
		ASSERT_EQ(pthread_create(&threads[i].thread, NULL, store_some, &threads[i]), 0);
	}
	for (unsigned i = 0; i < STORE_THREADS; i++) {
		ASSERT_EQ(pthread_join(threads[i].thread, NULL), 0);
	}
	ASSERT_EQ(finish(store, NULL), 0);
	gr_image_store_free(store);
	ASSERT_EQ(gr_image_open(in_folder("vm.ram"), &image, NULL), 0);
	ASSERT_EQ(gr_image_block(image, 0, &block), 0);
	ASSERT_EQ(block.present_pages, STORE_THREADS);
	gr_image_close(image);
	remove_folder();
}

/* The image has its name, the folder is not on disk: the next one's .part is not ours to delete. */
TEST(a_discard_after_the_name_was_given_takes_nobodys_file)
{
	struct gr_image_place place = { .id = "ram", .used_bytes = STORE_PAGES * PAGE };
	struct gr_image_store *store, *next;
	struct gr_image *image;
	struct gr_error err;

	ASSERT_EQ(gr_image_store_create(in_folder("vm.ram"), &store, NULL), 0);
	ASSERT_EQ(gr_image_store_machine(store, "m", PAGE, NULL), 0);
	ASSERT_EQ(gr_image_store_blocks(store, 1, &place, 1, NULL), 0);
	fsync_errno = EIO;
	ASSERT_EQ(finish(store, &err), -EIO);
	ASSERT_HAS(err.msg, "complete, but");
	fsync_errno = 0;
	ASSERT_EQ(gr_image_store_create(in_folder("vm.ram"), &next, NULL), 0);
	gr_image_store_discard(store);
	ASSERT_EQ(access(in_folder("vm.ram.part"), F_OK), 0);
	ASSERT_EQ(gr_image_open(in_folder("vm.ram"), &image, NULL), 0);
	gr_image_close(image);
	gr_image_store_discard(next);
	ASSERT_EQ(access(in_folder("vm.ram.part"), F_OK), -1);
	remove_folder();
}

TEST_MAIN()

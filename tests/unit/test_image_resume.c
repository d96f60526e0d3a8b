/* SPDX-License-Identifier: MIT */
/* A machine that runs while its memory comes from an image: what it sees is the image, and what it
 * stored. */
#include "concurrent.h"
#include "harness.h"
#include "image/image.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/copy_before_write.h>
#include <guestram/dirty_rate.h>
#include <guestram/image.h>
#include <guestram/ram_change.h>
#include <guestram/snapshot.h>
#include <guestram/track.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES = 4096, ROM_PAGES = 3, WRITERS = 3 };
enum { BEHIND_CUT = PAGES - 3 }; /* a page that the image has, see word_of() and cut_image() */

#define FOREVER UINT64_MAX

static char folder[64];

static const char *image_path(void)
{
	static char path[96];

	if (!folder[0]) {
		(void)snprintf(folder, sizeof(folder), "/tmp/gr-resume-XXXXXX");
		ASSERT(mkdtemp(folder));
	}
	(void)snprintf(path, sizeof(path), "%s/vm.ram", folder);
	return path;
}

static void remove_folder(void)
{
	char command[128];

	(void)snprintf(command, sizeof(command), "rm -rf %s", folder);
	ASSERT_EQ(system(command), 0);
}

struct machine {
	struct gr_ram *ram;
	struct gr_ram_block *big, *rom;
};

static struct gr_ram_block *add(struct gr_ram *ram, const char *id, uint64_t pages,
				enum gr_ram_backing backing, unsigned int flags)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = pages * PAGE,
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

static struct machine machine_of(enum gr_ram_backing backing, unsigned int flags)
{
	struct machine m;

	ASSERT_EQ(gr_ram_create(NULL, &m.ram, NULL), 0);
	m.big = add(m.ram, "ram", PAGES, backing, flags);
	m.rom = add(m.ram, "rom", ROM_PAGES, backing, 0);
	return m;
}

/* What the image has: every fifth page is zero. */
static uint64_t word_of(uint64_t page, uint64_t word)
{
	return page % 5 == 4 ? 0 : (page << 32 | word) + 1;
}

static void fill(struct gr_ram_block *block)
{
	for (uint64_t page = 0; page < gr_ram_block_used_bytes(block) / PAGE; page++) {
		for (uint64_t word = 0; page % 5 != 4 && word < WORDS; word++) {
			((uint64_t *)(void *)block->host)[page * WORDS + word] =
				word_of(page, word);
		}
	}
}

static void make_image(void)
{
	struct machine m = machine_of(GR_RAM_MEMFD, 0);
	struct gr_error err;

	fill(m.big);
	fill(m.rom);
	if (gr_image_save(m.ram, image_path(), NULL, NULL, &err) < 0) {
		FAIL("%s", err.msg);
	}
	gr_ram_free(m.ram);
}

/* Of one page: word 0 may be the writers'. */
static void check_page(const struct gr_ram_block *block, uint64_t page)
{
	const uint64_t *w = (const uint64_t *)(const void *)(block->host + page * PAGE);

	for (uint64_t word = 1; word < WORDS; word++) {
		ASSERT_EQ(w[word], word_of(page, word));
	}
}

static void check_all(const struct gr_ram_block *block)
{
	for (uint64_t page = 0; page < gr_ram_block_used_bytes(block) / PAGE; page++) {
		check_page(block, page);
		ASSERT_EQ(*(uint64_t *)(void *)(block->host + page * PAGE), word_of(page, 0));
	}
}

struct resumed {
	struct gr_image *image;
	struct gr_image_resume *resume;
};

static const struct gr_image_resume_params fast = { .size = sizeof(fast), .threads = 2 };
/* Nothing but the first piece of each thread comes by itself. */
static const struct gr_image_resume_params touched_only = { .size = sizeof(touched_only),
							    .threads = 1,
							    .bandwidth_bytes_per_s_max = 1 };

/* Of the image that is open. */
static void begin(struct resumed *r, struct machine *m, const struct gr_image_resume_params *params)
{
	struct gr_error err;

	if (gr_image_resume_start(r->image, m->ram, params, NULL, &r->resume, &err) < 0) {
		if (err.code == -EPERM || err.code == -ENOTSUP || err.code == -ENOSYS) {
			SKIP("%s", err.msg);
		}
		FAIL("%s", err.msg);
	}
}

static struct resumed resume(struct machine *m, const struct gr_image_resume_params *params)
{
	struct resumed r;
	struct gr_error err;

	if (gr_image_open(image_path(), &r.image, &err) < 0) {
		FAIL("%s", err.msg);
	}
	begin(&r, m, params);
	return r;
}

static void complete(struct resumed *r)
{
	struct gr_error err;

	if (gr_image_resume_wait(r->resume, FOREVER, &err) < 0 ||
	    gr_image_resume_end(r->resume, &err) < 0) {
		FAIL("%s", err.msg);
	}
	gr_image_close(r->image);
}

static void give_up(struct resumed *r)
{
	struct gr_error err;

	ASSERT_EQ(gr_image_resume_end(r->resume, &err), -ECANCELED);
	ASSERT_HAS(err.msg, "bytes not loaded");
	gr_image_close(r->image);
}

static void free_all(struct machine *m)
{
	gr_ram_free(m->ram);
	remove_folder();
}

static void untouched_machine(enum gr_ram_backing backing)
{
	struct gr_image_resume_stats stats;
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(backing, 0);
	r = resume(&m, &fast);
	ASSERT_EQ(gr_image_resume_wait(r.resume, FOREVER, NULL), 0);
	gr_image_resume_stats(r.resume, &stats);
	ASSERT_EQ(stats.state, GR_IMAGE_RESUME_COMPLETED);
	ASSERT_EQ(stats.left_bytes, 0);
	ASSERT_EQ(stats.touches, 0);
	complete(&r);
	check_all(m.big);
	check_all(m.rom);
	free_all(&m);
}

TEST(all_memory_comes_without_being_touched)
{
	untouched_machine(GR_RAM_MEMFD);
}

TEST(private_memory_comes_too)
{
	untouched_machine(GR_RAM_ANONYMOUS);
}

TEST(what_is_touched_comes_at_once_and_the_rest_does_not)
{
	struct gr_image_resume_stats stats;
	struct machine m;
	struct resumed r;
	struct stat st;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	r = resume(&m, &touched_only);
	for (uint64_t page = PAGES - 1; page > PAGES - 100; page -= 7) {
		check_page(m.big, page);
	}
	ASSERT_EQ(gr_image_resume_wait(r.resume, 0, NULL), -ETIMEDOUT);
	gr_image_resume_stats(r.resume, &stats);
	ASSERT_EQ(stats.state, GR_IMAGE_RESUME_LOADING);
	ASSERT_GT(stats.touches, 0);
	ASSERT_GT(stats.left_bytes, PAGES * PAGE / 2);
	ASSERT_EQ(fstat(m.big->fd, &st), 0);
	ASSERT_LT((uint64_t)st.st_blocks * 512, PAGES * PAGE / 4);
	give_up(&r);
	free_all(&m);
}

/* Its owner may do so, and the kernel then makes several mappings of one. */
static void split_mapping(const struct machine *m, uint64_t page)
{
	ASSERT_NE(page % 5, 0); /* within what the image has in one piece */
	ASSERT_EQ(madvise(m->big->host + page * PAGE, 100 * PAGE, MADV_DONTDUMP), 0);
}

TEST(block_of_several_mappings_comes_whole)
{
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	split_mapping(&m, 2051);
	r = resume(&m, &touched_only);
	split_mapping(&m, 1027);
	check_page(m.big, 2050); /* is brought with what follows it, in the next mapping */
	check_page(m.big, 2051);
	check_page(m.big, 1026);
	check_page(m.big, 1027);
	give_up(&r);
	r = resume(&m, &fast);
	complete(&r);
	check_all(m.big);
	check_all(m.rom);
	free_all(&m);
}

/* Parts of its pages are there already, where the image has something and where it has not. */
TEST(pages_larger_than_the_hosts_come_around_what_is_there)
{
	enum { LARGE = 4 * PAGE, COUNT = 64, DATA = 40, ZERO = 50 };
	struct gr_ram_params ram_params = { .size = sizeof(ram_params), .page_bytes = LARGE };
	struct machine m = { 0 };
	struct resumed r;
	uint8_t part[PAGE];

	if (sysconf(_SC_PAGESIZE) != PAGE) {
		SKIP("pages of %d bytes are not large here", LARGE);
	}
	memset(part, 0x55, PAGE);
	for (int round = 0; round < 2; round++) {
		ASSERT_EQ(gr_ram_create(&ram_params, &m.ram, NULL), 0);
		m.big = add(m.ram, "ram", COUNT * LARGE / PAGE, GR_RAM_MEMFD, 0);
		memset(m.big->host, 0x77, COUNT * LARGE);
		memset(m.big->host + ZERO * LARGE, 0, LARGE);
		ASSERT_EQ(gr_image_save(m.ram, image_path(), NULL, NULL, NULL), 0);
		r = resume(&m, &touched_only);
		/* the file's, not the mapping's: nobody sleeps */
		ASSERT_EQ(pwrite(m.big->fd, part, PAGE, DATA * LARGE + PAGE), PAGE);
		ASSERT_EQ(pwrite(m.big->fd, part, PAGE, ZERO * LARGE + PAGE), PAGE);
		for (uint32_t i = 0; i < 4; i++) {
			uint32_t at = round == 0 ? i * PAGE : (3 - i) * PAGE;

			ASSERT_EQ(m.big->host[DATA * LARGE + at + 9], at == PAGE ? 0x55 : 0x77);
			ASSERT_EQ(m.big->host[ZERO * LARGE + at + 9], at == PAGE ? 0x55 : 0);
		}
		give_up(&r);
		gr_ram_free(m.ram);
	}
	remove_folder();
}

/* ---- O5 ------------------------------------------------------------------------------------ */

struct writer {
	const struct machine *m;
	pthread_t thread;
	uint64_t number;
};

/* Each page is stored to once, by one writer: what is lost then stays lost. */
static void *write_pages(void *opaque)
{
	struct writer *w = opaque;

	/* from the end on: the loading goes the other way */
	for (uint64_t i = PAGES - 1 - w->number; i < PAGES; i -= WRITERS) {
		uint64_t *word = (uint64_t *)(void *)(w->m->big->host + i * PAGE);

		*word = ~i;
		check_page(w->m->big, i);
	}
	return NULL;
}

static void writers_run(enum gr_ram_backing backing, uint64_t bytes_per_s)
{
	struct gr_image_resume_params params = { .size = sizeof(params),
						 .threads = 2,
						 .bandwidth_bytes_per_s_max = bytes_per_s };
	struct writer writers[WRITERS];
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(backing, 0);
	r = resume(&m, &params);
	for (uint64_t i = 0; i < WRITERS; i++) {
		writers[i] = (struct writer){ .m = &m, .number = i };
		ASSERT_EQ(pthread_create(&writers[i].thread, NULL, write_pages, &writers[i]), 0);
	}
	for (uint64_t i = 0; i < WRITERS; i++) {
		ASSERT_EQ(pthread_join(writers[i].thread, NULL), 0);
	}
	complete(&r);
	for (uint64_t page = 0; page < PAGES; page++) {
		check_page(m.big, page);
		ASSERT_EQ(*(uint64_t *)(void *)(m.big->host + page * PAGE), ~page);
	}
	free_all(&m);
}

TEST(what_the_guest_stored_is_never_followed_by_the_image)
{
	writers_run(GR_RAM_MEMFD, 16 << 20);
}

TEST(writers_in_private_memory_and_at_full_speed_lose_nothing)
{
	writers_run(GR_RAM_ANONYMOUS, 0);
}

TEST(what_the_guest_threw_away_does_not_come_back)
{
	struct gr_image_resume_params params = { .size = sizeof(params),
						 .threads = 1,
						 .bandwidth_bytes_per_s_max = 16 << 20 };
	struct gr_image_resume_stats stats;
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	r = resume(&m, &params);
	check_page(m.big, PAGES - 10); /* one that is there already */
	ASSERT_EQ(gr_ram_discard(m.big, (PAGES - 1000) * PAGE, 1000 * PAGE, NULL), 0);
	ASSERT_EQ(m.big->host[(PAGES - 10) * PAGE], 0); /* touched while the rest is loading */
	ASSERT_EQ(m.big->host[(PAGES - 500) * PAGE], 0);
	ASSERT_EQ(gr_image_resume_wait(r.resume, FOREVER, NULL), 0);
	gr_image_resume_stats(r.resume, &stats);
	ASSERT_GT(stats.discarded_bytes, 0);
	complete(&r);
	for (uint64_t page = 0; page < PAGES; page++) {
		if (page < PAGES - 1000) {
			check_page(m.big, page);
		} else {
			ASSERT_EQ(((uint64_t *)(void *)m.big->host)[page * WORDS + 7], 0);
		}
	}
	free_all(&m);
}

static void discard_while_loading(void)
{
	struct machine m = machine_of(GR_RAM_MEMFD, 0);
	struct resumed r = resume(&m, &fast);

	for (uint64_t page = 0; page < PAGES; page += 3) {
		ASSERT_EQ(gr_ram_discard(m.big, page * PAGE, PAGE, NULL), 0);
	}
	complete(&r);
	for (uint64_t page = 0; page < PAGES; page++) {
		if (page % 3 != 0) {
			check_page(m.big, page);
		} else {
			ASSERT_EQ(((uint64_t *)(void *)m.big->host)[page * WORDS + 7], 0);
		}
	}
	gr_ram_free(m.ram);
}

/* Page after page, where the loading is just now: whether they meet is chance, so more than once. */
TEST(pages_that_are_on_their_way_do_not_come_after_their_discard)
{
	uint64_t end = now_ns() + (uint64_t)(test_seconds(0.2) * 1e9);

	make_image();
	do {
		discard_while_loading();
	} while (now_ns() < end);
	remove_folder();
}

/* ---- failures -------------------------------------------------------------------------------- */

/* A file that lost its end after it was opened, from the middle of "ram" on, until somebody finds
 * it again. */
struct cut {
	int fd;
	off_t at, end;
	uint8_t *rest;
};

static struct cut cut_image(struct gr_image **ret_image)
{
	struct cut c = { .fd = open(image_path(), O_RDWR | O_CLOEXEC) };
	struct gr_image_block block;

	ASSERT_GE(c.fd, 0);
	ASSERT_EQ(gr_image_open(image_path(), ret_image, NULL), 0);
	ASSERT_EQ(gr_image_block(*ret_image, 0, &block), 0);
	ASSERT_STR_EQ(block.id, "ram");
	c.at = (off_t)(block.data_offset + PAGES / 2 * PAGE);
	c.end = lseek(c.fd, 0, SEEK_END);
	c.rest = malloc((size_t)(c.end - c.at));
	ASSERT_EQ(pread(c.fd, c.rest, (size_t)(c.end - c.at), c.at), c.end - c.at);
	ASSERT_EQ(ftruncate(c.fd, c.at), 0);
	return c;
}

static void mend_image(struct cut *c)
{
	ASSERT_EQ(pwrite(c->fd, c->rest, (size_t)(c->end - c->at), c->at), c->end - c->at);
	ASSERT_EQ(close(c->fd), 0);
	free(c->rest);
}

static void *touch_last(void *opaque)
{
	const struct machine *m = opaque;

	check_page(m->big, BEHIND_CUT); /* sleeps until it can be read */
	return NULL;
}

TEST(page_that_cannot_be_read_makes_its_reader_wait_until_it_can)
{
	struct pollfd poll_fd = { .events = POLLIN };
	struct gr_error err;
	pthread_t toucher;
	struct machine m;
	struct resumed r;
	struct cut cut;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	cut = cut_image(&r.image);
	/* "rom" lies behind and comes while it starts or later: only "ram" is looked at */
	ASSERT_EQ(gr_image_resume_start(r.image, m.ram, &fast, NULL, &r.resume, &err), 0);
	ASSERT_EQ(pthread_create(&toucher, NULL, touch_last, &m), 0);
	for (int again = 0; again < 3; again++) {
		ASSERT_EQ(gr_image_resume_wait(r.resume, FOREVER, &err), -EPIPE);
		ASSERT_HAS(err.msg, "block 'r");
		ASSERT_HAS(err.msg, "the file was cut");
		poll_fd.fd = gr_image_resume_fd(r.resume);
		ASSERT_EQ(poll(&poll_fd, 1, 0), 1);
		if (again < 2) {
			gr_image_resume_retry(r.resume); /* nothing has changed */
		}
	}
	check_page(m.big, 3); /* what could be read is there, or comes */
	mend_image(&cut);
	gr_image_resume_retry(r.resume);
	complete(&r);
	ASSERT_EQ(pthread_join(toucher, NULL), 0);
	check_all(m.big);
	check_all(m.rom);
	free_all(&m);
}

/* -ETIMEDOUT is what gr_image_resume_wait() says while all is well. */
TEST(disk_that_times_out_is_a_failure_and_no_reason_to_wait_longer)
{
	struct gr_image *image;
	struct gr_error err;

	make_image();
	ASSERT_EQ(gr_image_open(image_path(), &image, NULL), 0);
	ASSERT_EQ(gr_image_cannot_read(image, &image->parts[0], 0, -ETIMEDOUT, &err), -EIO);
	ASSERT_HAS(err.msg, strerror(ETIMEDOUT));
	ASSERT_EQ(gr_image_cannot_read(image, &image->parts[0], 0, -ENOMEM, &err), -ENOMEM);
	gr_image_close(image);
	remove_folder();
}

/* Who may not load more yet hears of it at once. */
TEST(failure_is_reported_while_the_loading_is_held_back)
{
	struct gr_error err;
	pthread_t toucher;
	struct machine m;
	struct resumed r;
	struct cut cut;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	cut = cut_image(&r.image);
	begin(&r, &m, &touched_only);
	ASSERT_EQ(pthread_create(&toucher, NULL, touch_last, &m), 0);
	ASSERT_EQ(gr_image_resume_wait(r.resume, FOREVER, &err), -EPIPE);
	ASSERT_HAS(err.msg, "block 'ram'");
	mend_image(&cut);
	gr_image_resume_retry(r.resume);
	ASSERT_EQ(pthread_join(toucher, NULL), 0);
	ASSERT_EQ(gr_image_resume_wait(r.resume, 0, &err), -ETIMEDOUT);
	give_up(&r);
	free_all(&m);
}

struct device {
	const struct machine *m;
	uint64_t page; /* where its rings are */
};

static int read_ring(void *opaque, struct gr_error *err)
{
	const struct device *d = opaque;

	(void)err;
	(void)*(volatile const uint8_t *)(d->m->big->host + d->page * PAGE);
	return 0;
}

static void start_with_device(const struct gr_image_resume_params *params)
{
	struct machine m = machine_of(GR_RAM_MEMFD, 0);
	struct device device = { .m = &m, .page = BEHIND_CUT };
	struct gr_destination_ops ops = { .complete = read_ring, .opaque = &device };
	struct gr_error err;
	struct resumed r;
	struct cut cut;

	make_image();
	cut = cut_image(&r.image);
	ASSERT_EQ(gr_image_resume_start(r.image, m.ram, params, &ops, &r.resume, &err), -EPIPE);
	ASSERT_HAS(err.msg, "block 'r");
	ASSERT_HAS(err.msg, "the file was cut");
	/* Not the device's page is missing: the machine may start. */
	device.page = 2;
	ASSERT_EQ(gr_image_resume_start(r.image, m.ram, params, &ops, &r.resume, &err), 0);
	ASSERT_EQ(gr_image_resume_end(r.resume, NULL), -ECANCELED);
	mend_image(&cut);
	device.page = BEHIND_CUT;
	ASSERT_EQ(gr_image_resume_start(r.image, m.ram, &fast, &ops, &r.resume, &err), 0);
	complete(&r);
	check_all(m.big);
	gr_ram_free(m.ram);
}

TEST(device_that_needs_a_page_that_cannot_be_read_fails_the_start)
{
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	r = resume(&m, &fast); /* or is skipped */
	complete(&r);
	start_with_device(&touched_only);
	start_with_device(&fast); /* others may have had the page */
	free_all(&m);
}

static void *touch_nothing(void *opaque)
{
	const struct machine *m = opaque;

	ASSERT_EQ(*(volatile uint64_t *)(void *)(m->big->host + BEHIND_CUT * PAGE), 0);
	return NULL;
}

TEST(page_that_cannot_be_read_and_is_discarded_lets_its_reader_go)
{
	struct gr_image_resume_stats stats = { 0 };
	pthread_t toucher;
	struct machine m;
	struct resumed r;
	struct cut cut;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	cut = cut_image(&r.image);
	begin(&r, &m, &fast);
	ASSERT_EQ(pthread_create(&toucher, NULL, touch_nothing, &m), 0);
	while (stats.touches == 0 || stats.state != GR_IMAGE_RESUME_FAILED) {
		gr_image_resume_stats(r.resume, &stats);
		(void)sched_yield();
	}
	ASSERT_EQ(gr_ram_discard(m.big, BEHIND_CUT * PAGE, PAGE, NULL), 0);
	ASSERT_EQ(pthread_join(toucher, NULL), 0); /* by the discard alone */
	give_up(&r);
	mend_image(&cut);
	free_all(&m);
}

static int in_child(struct machine *m, struct resumed *r)
{
	struct gr_error err;

	/* Those that are there, and those that a thread of the parent may be bringing. */
	if (gr_ram_discard(m->big, 0, PAGES * PAGE, NULL) < 0) {
		return 1;
	}
	if (gr_image_resume_end(r->resume, &err) != -ECANCELED) {
		return 2;
	}
	if (gr_ram_discard(m->big, 0, PAGES * PAGE, NULL) < 0 || m->big->host[BEHIND_CUT * PAGE]) {
		return 3;
	}
	return gr_image_save(m->ram, "/dev/null", NULL, NULL, &err) == -EINVAL ? 0 : 4;
}

TEST(child_is_not_served_and_lets_its_parent_be)
{
	const struct gr_image_resume_params params = { .size = sizeof(params),
						       .threads = 2,
						       .bandwidth_bytes_per_s_max = 16 << 20 };

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	make_image();
	for (int round = 0; round < 8; round++) {
		struct machine m = machine_of(GR_RAM_ANONYMOUS, 0);
		struct resumed r = resume(&m, &params);
		pid_t child = fork();
		int status;

		ASSERT_GE(child, 0);
		if (child == 0) {
			_exit(in_child(&m, &r));
		}
		ASSERT_EQ(waitpid(child, &status, 0), child);
		ASSERT_EQ(status, 0);
		complete(&r);
		check_all(m.big);
		gr_ram_free(m.ram);
	}
	remove_folder();
}

static enum gr_cbw_verdict never(void *opaque, const struct gr_cbw_piece *piece)
{
	(void)opaque;
	(void)piece;
	FAIL("asked");
}

static int no_pause(void *opaque, struct gr_error *err)
{
	(void)opaque;
	(void)err;
	FAIL("it would wait for a vCPU that waits for memory");
}

static void no_resume(void *opaque)
{
	(void)opaque;
}

static int no_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque;
	(void)writer;
	(void)err;
	return 0;
}

TEST(live_snapshot_is_refused_before_the_machine_is_stopped)
{
	const struct gr_source_ops ops = { .pause = no_pause, .resume = no_resume, .save = no_save };
	const struct gr_snapshot_params params = { .size = sizeof(params),
						   .writers = GR_WRITERS_STORES };
	struct gr_snapshot *snapshot;
	struct gr_error err;
	struct machine m;
	struct resumed r;
	char other[128];

	make_image();
	(void)snprintf(other, sizeof(other), "%s.other", image_path());
	m = machine_of(GR_RAM_MEMFD, 0);
	r = resume(&m, &touched_only);
	ASSERT_EQ(gr_snapshot_create(m.ram, other, &params, &ops, &snapshot, &err), 0);
	ASSERT_EQ(gr_snapshot_run(snapshot, &err), -EBUSY);
	ASSERT_HAS(err.msg, "still being loaded");
	gr_snapshot_free(snapshot);
	ASSERT_EQ(access(other, F_OK), -1);
	give_up(&r);
	free_all(&m);
}

TEST(who_passes_over_untouched_memory_is_refused_until_all_has_come)
{
	struct gr_cbw_params cbw_params = { .size = sizeof(cbw_params),
					    .writers = GR_WRITERS_STORES,
					    .before_write = never };
	struct gr_image_load_params load = { .size = sizeof(load) };
	struct gr_image_resume *second;
	struct gr_destination *destination;
	struct gr_source *source;
	struct gr_channel *channel;
	struct gr_cbw *cbw;
	struct gr_error err;
	struct machine m;
	struct resumed r;
	char other[128];

	make_image();
	(void)snprintf(other, sizeof(other), "%s.other", image_path());
	m = machine_of(GR_RAM_MEMFD, 0);
	r = resume(&m, &touched_only);
	ASSERT_EQ(gr_channel_from_fd(open("/dev/null", O_WRONLY | O_CLOEXEC), &channel, NULL), 0);
	ASSERT_EQ(gr_source_create(m.ram, NULL, channel, NULL, NULL, &source, NULL), 0);
	ASSERT_EQ(gr_source_run(source, &err), -EBUSY);
	ASSERT_HAS(err.msg, "still being loaded");
	gr_source_free(source);
	ASSERT_EQ(gr_destination_create(m.ram, channel, NULL, NULL, &destination, &err), -EBUSY);
	ASSERT_EQ(gr_cbw_start(m.ram, &cbw_params, &cbw, &err), -EBUSY);
	ASSERT_HAS(err.msg, "still being loaded");
	ASSERT_EQ(gr_image_save(m.ram, other, NULL, NULL, &err), -EBUSY);
	ASSERT_EQ(access(other, F_OK), -1);
	ASSERT_EQ(gr_image_load(r.image, m.ram, &load, NULL, NULL, &err), -EBUSY);
	ASSERT_EQ(gr_image_resume_start(r.image, m.ram, &fast, NULL, &second, &err), -EBUSY);
	give_up(&r);

	r = resume(&m, &fast);
	complete(&r);
	ASSERT_EQ(gr_image_save(m.ram, other, NULL, NULL, &err), 0);
	ASSERT_EQ(gr_source_create(m.ram, NULL, channel, NULL, NULL, &source, NULL), 0);
	ASSERT_EQ(gr_source_step(source, &err), 1);
	gr_source_free(source);
	check_all(m.big);
	(void)gr_channel_close(channel, NULL);
	free_all(&m);
}

/* Its looks go through the file where they can: there a page that has not come is zero. */
TEST(sampling_does_not_take_what_comes_for_what_is_written)
{
	const struct gr_dirty_rate_params sampling = { .size = sizeof(sampling),
						       .block_bytes_min = 1,
						       .samples_per_gib = GR_DIRTY_RATE_SAMPLES_MAX };
	struct gr_dirty_rate_result result = { .size = sizeof(result) };
	struct gr_dirty_rate *rate, *early;
	struct gr_error err;
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	ASSERT_EQ(gr_dirty_rate_begin(m.ram, &sampling, &early, &err), 0);
	r = resume(&m, &touched_only);
	ASSERT_EQ(gr_dirty_rate_begin(m.ram, &sampling, &rate, &err), -EBUSY);
	ASSERT_HAS(err.msg, "still being loaded");
	ASSERT_EQ(gr_dirty_rate_end(early, &result, &err), -EBUSY);
	gr_dirty_rate_free(early);
	give_up(&r);

	r = resume(&m, &fast);
	complete(&r);
	ASSERT_EQ(gr_dirty_rate_begin(m.ram, &sampling, &rate, &err), 0);
	ASSERT_EQ(gr_dirty_rate_end(rate, &result, &err), 0);
	ASSERT_GT(result.sampled_pages, 0u);
	ASSERT_EQ(result.dirty_pages, 0u);
	gr_dirty_rate_free(rate);
	free_all(&m);
}

TEST(tracking_by_userfaultfd_is_refused_and_marks_work)
{
	struct gr_track *track;
	struct gr_error err;
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	r = resume(&m, &touched_only);
	ASSERT_EQ(gr_track_create(m.ram, &track, NULL), 0);
	if (gr_track_use(track, GR_TRACKER_UFFD_WP, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	ASSERT_EQ(gr_track_start(track, GR_WRITERS_STORES, &err), -EBUSY);
	ASSERT_HAS(err.msg, "block 'r");
	gr_track_free(track);
	ASSERT_EQ(gr_track_create(m.ram, &track, NULL), 0);
	ASSERT_EQ(gr_track_start(track, GR_WRITERS_MARKED, &err), 0);
	gr_track_stop(track);
	gr_track_free(track);
	give_up(&r);

	/* and the other way round */
	ASSERT_EQ(gr_track_create(m.ram, &track, NULL), 0);
	ASSERT_EQ(gr_track_use(track, GR_TRACKER_UFFD_WP, NULL, &err), 0);
	ASSERT_EQ(gr_track_start(track, GR_WRITERS_STORES, &err), 0);
	ASSERT_EQ(gr_image_open(image_path(), &r.image, NULL), 0);
	ASSERT_EQ(gr_image_resume_start(r.image, m.ram, &fast, NULL, &r.resume, &err), -EBUSY);
	ASSERT_HAS(err.msg, "is it tracked?");
	gr_image_close(r.image);
	gr_track_stop(track);
	gr_track_free(track);
	free_all(&m);
}

TEST(memory_that_must_be_there_is_loaded_before_the_start_returns)
{
	struct gr_image_resume_stats stats;
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(GR_RAM_MEMFD, GR_RAM_PREALLOC);
	memset(m.big->host, 0x77, PAGES * PAGE);
	r = resume(&m, &fast);
	gr_image_resume_stats(r.resume, &stats);
	ASSERT_EQ(stats.total_bytes, ROM_PAGES * PAGE);
	check_all(m.big);
	complete(&r);
	check_all(m.rom);
	free_all(&m);
}

TEST(what_the_machine_had_is_gone)
{
	struct machine m;
	struct resumed r;

	make_image();
	m = machine_of(GR_RAM_MEMFD, 0);
	memset(m.big->host, 0x77, PAGES * PAGE);
	r = resume(&m, &fast);
	check_all(m.big);
	complete(&r);
	check_all(m.big);
	free_all(&m);
}

TEST(without_privilege_only_stores_can_wait)
{
	struct gr_image_resume_params params = fast;
	struct gr_error err;
	struct machine m;
	struct resumed r;

	make_image();
	ASSERT_EQ(chmod(folder, 0755), 0);
	ASSERT_EQ(chmod(image_path(), 0644), 0);
	m = machine_of(GR_RAM_MEMFD, 0);
	if (geteuid() == 0) {
		ASSERT_EQ(setresuid(65534, 65534, 0), 0);
	}
	params.writers = GR_WRITERS_STORES;
	r = resume(&m, &params);
	check_all(m.big);
	complete(&r);
	params.writers = GR_WRITERS_MAPPING;
	ASSERT_EQ(gr_image_open(image_path(), &r.image, NULL), 0);
	if (gr_image_resume_start(r.image, m.ram, &params, NULL, &r.resume, &err) == 0) {
		SKIP("vm.unprivileged_userfaultfd or /dev/userfaultfd gives it to everybody here");
	}
	ASSERT_EQ(err.code, -EINVAL);
	ASSERT_HAS(err.msg, "cannot wait");
	params.writers = GR_WRITERS_OUTSIDE;
	ASSERT_EQ(gr_image_resume_start(r.image, m.ram, &params, NULL, &r.resume, &err), -EINVAL);
	gr_image_close(r.image);
	gr_ram_free(m.ram);
	if (setresuid(0, 0, 0) == 0) {
		remove_folder();
	}
}

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
#include "migrate/holes.h"
#include "migrate/place.h"
#include "move.h"
#include <fcntl.h>
#include <guestram/track.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGES = 64, BYTES = PAGES * MOVE_PAGE };

/* The finder's view of a block, a character for each page: '.' hole, 'x' data. */
static void view(const struct gr_ram_block *block, uint64_t page_bytes, char *ret)
{
	struct gr_holes h;
	uint64_t end = 0;
	bool hole;

	ASSERT_EQ(gr_holes_init(&h, page_bytes, NULL), 0);
	for (uint64_t at = 0; at < BYTES; at = end) {
		hole = gr_holes_next(&h, block, at, BYTES, &end);
		ASSERT_LT(at, end);
		ASSERT_LE(end, (uint64_t)BYTES);
		ASSERT_EQ(end % page_bytes, 0u);
		for (uint64_t i = at; i < end; i += page_bytes) {
			*ret++ = hole ? '.' : 'x';
		}
	}
	*ret = '\0';
	gr_holes_destroy(&h);
}

static void touch_some(uint8_t *host)
{
	host[0] = 1;
	host[3 * MOVE_PAGE + 5] = 1;
	host[4 * MOVE_PAGE] = 1;
	host[63 * MOVE_PAGE] = 1;
}

#define SOME    \
	"x..xx" \
	"..........................................................x"

TEST(memfd_blocks_show_their_holes)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = move_add(ram, "ram", BYTES, 0, GR_RAM_MEMFD);
	char got[PAGES + 1];
	uint8_t byte = 1;

	view(b, MOVE_PAGE, got);
	ASSERT_EQ(strspn(got, "."), (size_t)PAGES);
	touch_some(b->host);
	view(b, MOVE_PAGE, got);
	ASSERT_STR_EQ(got, SOME);
	/* What came through another door is seen too. */
	ASSERT_EQ(pwrite(b->fd, &byte, 1, (off_t)b->fd_offset + 10 * MOVE_PAGE), 1);
	view(b, MOVE_PAGE, got);
	ASSERT_EQ(got[10], 'x');
	/* Looking has touched nothing. */
	view(b, MOVE_PAGE, got);
	ASSERT_EQ(got[11], '.');
	gr_ram_free(ram);
}

TEST(a_memfd_that_is_full_has_no_hole_until_one_is_made)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = move_add(ram, "ram", BYTES, 0, GR_RAM_MEMFD);
	char got[PAGES + 1];

	memset(b->host, 1, BYTES);
	view(b, MOVE_PAGE, got);
	ASSERT_EQ(strspn(got, "x"), (size_t)PAGES);
	ASSERT_EQ(fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    (off_t)b->fd_offset + 10 * MOVE_PAGE, MOVE_PAGE),
		  0);
	view(b, MOVE_PAGE, got);
	ASSERT_EQ(got[9], 'x');
	ASSERT_EQ(got[10], '.');
	ASSERT_EQ(got[11], 'x');
	gr_ram_free(ram);
}

/* As the kernel counts them, all of its pages are allocated. */
TEST(what_fallocate_gave_and_nobody_wrote_is_a_hole)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = move_add(ram, "ram", BYTES, 0, GR_RAM_MEMFD);
	char got[PAGES + 1];

	ASSERT_EQ(fallocate(b->fd, 0, (off_t)b->fd_offset, BYTES), 0);
	b->host[0] = 1;
	view(b, MOVE_PAGE, got);
	ASSERT_EQ(got[0], 'x');
	ASSERT_EQ(strspn(got + 1, "."), (size_t)PAGES - 1);
	/* Whatever is said of the others, none with data is a hole. */
	touch_some(b->host);
	view(b, MOVE_PAGE, got);
	ASSERT_EQ(got[0], 'x');
	ASSERT_EQ(got[3], 'x');
	ASSERT_EQ(got[4], 'x');
	ASSERT_EQ(got[63], 'x');
	gr_ram_free(ram);
}

/* The seeks that pass over what fallocate() gave, page by page. */
static unsigned int long_seeks;

off_t lseek(int fd, off_t offset, int whence)
{
	off_t at = syscall(SYS_lseek, fd, offset, whence);

	long_seeks += whence == SEEK_DATA && at - offset >= 1 << 20;
	return at;
}

/* A block of which fallocate() gave all: so many pages at its begin are written, every other one, and its end. */
static struct gr_ram_block *add_preallocated(struct gr_ram *ram, uint64_t bytes, unsigned int pages)
{
	const uint64_t end_bytes = 256 << 10;
	struct gr_ram_block *b = move_add(ram, "ram", bytes, 0, GR_RAM_MEMFD);

	ASSERT_EQ(fallocate(b->fd, 0, (off_t)b->fd_offset, (off_t)bytes), 0);
	for (unsigned int i = 0; i < pages; i++) {
		b->host[2 * i * MOVE_PAGE] = 1;
	}
	memset(b->host + bytes - end_bytes, 1, end_bytes);
	return b;
}

/* Some firmware and kernels write both ends of fresh memory. */
TEST(the_last_pages_do_not_speak_for_all_that_fallocate_gave)
{
	const uint64_t bytes = 4 << 20, end_bytes = 256 << 10;
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = add_preallocated(ram, bytes, 1);
	struct gr_holes h;
	uint64_t end;

	ASSERT_EQ(gr_holes_init(&h, MOVE_PAGE, NULL), 0);
	h.walks_once = true;
	ASSERT(!gr_holes_next(&h, b, 0, bytes, &end));
	ASSERT_EQ(end, (uint64_t)MOVE_PAGE);
	ASSERT(gr_holes_next(&h, b, end, bytes, &end));
	ASSERT_EQ(end, bytes - end_bytes);
	gr_holes_destroy(&h);
	gr_ram_free(ram);
}

/* Once for the samples, once for the hole itself; who asks without end has no samples. */
TEST(a_long_hole_is_passed_twice_however_much_data_there_is)
{
	const uint64_t bytes = 8 << 20;
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = add_preallocated(ram, bytes, 100);
	struct gr_holes h;

	ASSERT_EQ(gr_holes_init(&h, MOVE_PAGE, NULL), 0);
	for (int once = 0; once < 2; once++) {
		unsigned int before = long_seeks, holes = 0;
		uint64_t end = 0;

		h.walks_once = once;
		for (uint64_t at = 0; at < bytes; at = end) {
			holes += gr_holes_next(&h, b, at, bytes, &end);
		}
		ASSERT_EQ(holes, once ? 100u : 0u);
		ASSERT_EQ(long_seeks - before, once ? 2u : 0u);
	}
	gr_holes_destroy(&h);
	gr_ram_free(ram);
}

TEST(anonymous_blocks_show_their_holes)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = move_add(ram, "ram", BYTES, 0, GR_RAM_ANONYMOUS);
	char got[PAGES + 1];

	ASSERT_EQ(madvise(b->host, BYTES, MADV_NOHUGEPAGE), 0);
	view(b, MOVE_PAGE, got);
	ASSERT_EQ(strspn(got, "."), (size_t)PAGES);
	touch_some(b->host);
	view(b, MOVE_PAGE, got);
	ASSERT_STR_EQ(got, SOME);
	gr_ram_free(ram);
}

/* Protecting a block leaves a note in each of its empty entries. */
TEST(anonymous_blocks_under_write_protection_show_their_holes)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = move_add(ram, "ram", BYTES, 0, GR_RAM_ANONYMOUS);
	struct gr_track *track;
	char got[PAGES + 1];
	struct gr_error err;

	ASSERT_EQ(madvise(b->host, BYTES, MADV_NOHUGEPAGE), 0);
	b->host[2 * MOVE_PAGE] = 1;
	ASSERT_EQ(gr_track_create(ram, &track, &err), 0);
	if (gr_track_use(track, GR_TRACKER_UFFD_WP, NULL, &err) < 0) {
		SKIP("%s", err.msg);
	}
	ASSERT_EQ(gr_track_start(track, GR_WRITERS_MAPPING, &err), 0);
	touch_some(b->host);
	view(b, MOVE_PAGE, got);
	if (strcmp(got, "x.xxx..........................................................x") != 0) {
		/* Allowed where something is swapped out: data is what it then says. */
		ASSERT_EQ(strspn(got, "x"), (size_t)PAGES);
		SKIP("swap is in use here");
	}
	gr_track_stop(track);
	gr_track_free(track);
	gr_ram_free(ram);
}

/* A guest whose pages are larger than the file's: a page that is partly filled is data. */
TEST(holes_are_whole_pages_of_the_guest)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = move_add(ram, "ram", BYTES, 0, GR_RAM_MEMFD);
	char got[PAGES + 1];

	b->host[5 * MOVE_PAGE] = 1;
	b->host[8 * MOVE_PAGE] = 1;
	b->host[15 * MOVE_PAGE] = 1;
	view(b, 4 * MOVE_PAGE, got);
	ASSERT_STR_EQ(got, ".xxx............");
	gr_ram_free(ram);
}

static struct gr_ram_block *add_callers(struct gr_ram *ram, void *host, int fd)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = "own",
		.used_bytes = BYTES,
		.backing = GR_RAM_CALLER,
		.host = host,
		.fd = fd,
	};
	struct gr_ram_block *b;
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, &b, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return b;
}

/* The file says hole, the mapping has a page of its own: only the page map knows. */
TEST(a_private_mapping_of_the_callers_is_not_called_a_hole)
{
	struct gr_ram *ram = move_ram();
	int fd = memfd_create("own", MFD_CLOEXEC);
	uint8_t *host;
	char got[PAGES + 1];

	ASSERT_EQ(ftruncate(fd, BYTES), 0);
	host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	ASSERT(host != MAP_FAILED);
	touch_some(host);
	view(add_callers(ram, host, fd), MOVE_PAGE, got);
	ASSERT_STR_EQ(got, SOME);
	gr_ram_free(ram);
}

TEST(memory_of_the_callers_without_an_fd_has_no_holes)
{
	struct gr_ram *ram = move_ram();
	uint8_t *host =
		mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char got[PAGES + 1];

	ASSERT(host != MAP_FAILED);
	view(add_callers(ram, host, -1), MOVE_PAGE, got);
	ASSERT_EQ(strspn(got, "x"), (size_t)PAGES);
	gr_ram_free(ram);
}

/* Fills pages 2..5 while 3 is there already. */
static void fill(enum gr_ram_backing backing, enum gr_place_how how)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block *b = move_add(ram, "ram", BYTES, 0, backing);
	static uint8_t data[4 * MOVE_PAGE];
	struct gr_placer p;
	enum gr_place_how best;

	for (size_t i = 0; i < sizeof(data); i++) {
		data[i] = (uint8_t)(i / 16 + 1);
	}
	gr_placer_init(&p);
	best = gr_placer_begin(&p, b, MOVE_PAGE);
	if (how == GR_PLACE_UFFD && best != GR_PLACE_UFFD) {
		SKIP("this kernel has no UFFDIO_COPY for this memory");
	}
	memset(b->host + 3 * MOVE_PAGE, 0xff, MOVE_PAGE);
	gr_placer_fill(&p, b, how, 2 * MOVE_PAGE, data, sizeof(data), MOVE_PAGE);
	ASSERT_MEM_EQ(b->host + 2 * MOVE_PAGE, data, sizeof(data));
	/* Others that look meanwhile do not sleep. */
	ASSERT_EQ(b->host[7 * MOVE_PAGE], 0);
	b->host[8 * MOVE_PAGE] = 1;
	gr_placer_end(&p, b, best);
	b->host[9 * MOVE_PAGE] = 1;
	gr_placer_destroy(&p);
	gr_ram_free(ram);
}

TEST(uffd_fills_memfd_pages_and_stores_into_those_that_are_there)
{
	fill(GR_RAM_MEMFD, GR_PLACE_UFFD);
}

TEST(uffd_fills_anonymous_pages_and_stores_into_those_that_are_there)
{
	fill(GR_RAM_ANONYMOUS, GR_PLACE_UFFD);
}

TEST(pwrite_fills_memfd_pages)
{
	fill(GR_RAM_MEMFD, GR_PLACE_PWRITE);
}

TEST(stores_fill_anything)
{
	fill(GR_RAM_ANONYMOUS, GR_PLACE_STORE);
	fill(GR_RAM_MEMFD, GR_PLACE_STORE);
}

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
/* Images: what goes in comes out, small, whole or refused. */
#include "harness.h"
#include "image/format.h"
#include "stream/return_path.h"
#include "stream/tail.h"
#include "stream/writer.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/image.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, RAM_PAGES = 300, ROM_PAGES = 3, SECTION_ID = 2 };

static char folder[64];

static const char *in_folder(const char *name)
{
	static char paths[8][128];
	static unsigned next;
	char *path = paths[next++ % 8];

	if (!folder[0]) {
		(void)snprintf(folder, sizeof(folder), "/tmp/gr-image-XXXXXX");
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

static bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

static bool is_locked(const char *path)
{
	FILE *locks = fopen("/proc/locks", "r");
	bool found = false;
	char line[128], inode[32];
	struct stat st;

	ASSERT(locks);
	ASSERT_EQ(stat(path, &st), 0);
	(void)snprintf(inode, sizeof(inode), ":%ju ", (uintmax_t)st.st_ino);
	while (!found && fgets(line, sizeof(line), locks)) {
		found = strstr(line, inode);
	}
	(void)fclose(locks);
	return found;
}

/* A stream being written to a channel, and what the blocks must contain in the end. */
struct stream {
	struct gr_channel *ch;
	struct gr_stream_writer *w;
	uint8_t *ram; /* RAM_PAGES */
	uint8_t *rom; /* ROM_PAGES */
};

static const struct gr_stream_block_desc blocks[] = {
	{ .id = "pc.ram", .used_bytes = RAM_PAGES * PAGE, .max_bytes = RAM_PAGES * PAGE },
	{ .id = "pc.rom", .used_bytes = ROM_PAGES * PAGE, .max_bytes = ROM_PAGES * PAGE },
};

static struct gr_channel *connect_to(const char *uri)
{
	struct gr_channel *ch;
	struct gr_error err;

	if (gr_channel_connect(uri, &ch, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return ch;
}

static void stream_begin(struct stream *s, struct gr_channel *ch, bool return_path)
{
	s->ch = ch;
	s->ram = calloc(RAM_PAGES, PAGE);
	s->rom = calloc(ROM_PAGES, PAGE);
	ASSERT(s->ram && s->rom);
	ASSERT_EQ(gr_stream_writer_create(s->ch, &s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_config(s->w, "pc-i440fx-7.2", PAGE, NULL), 0);
	if (return_path) {
		ASSERT_EQ(gr_stream_write_command(s->w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL),
			  0);
	}
	ASSERT_EQ(gr_stream_write_start(s->w, SECTION_ID, blocks, 2, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s->w, GR_SECTION_PART, NULL), 0);
}

static void stream_page(struct stream *s, unsigned block, uint64_t page, const uint8_t *data)
{
	uint64_t offset = page * PAGE;
	const void *pages[1] = { data };

	memcpy((block ? s->rom : s->ram) + offset, data, PAGE);
	ASSERT_EQ(gr_stream_write_pages(s->w, blocks[block].id, &offset, pages, 1, NULL), 0);
}

static void stream_zero(struct stream *s, unsigned block, uint64_t page)
{
	memset((block ? s->rom : s->ram) + page * PAGE, 0, PAGE);
	ASSERT_EQ(gr_stream_write_zero(s->w, blocks[block].id, page * PAGE, NULL), 0);
}

/* A difference that sets n bytes at a place. */
static void stream_difference(struct stream *s, uint64_t page, unsigned at, unsigned n,
			      uint8_t value)
{
	uint8_t delta[256];
	size_t used = 0;

	ASSERT(at > 0 && n < 128);
	if (at < 128) {
		delta[used++] = (uint8_t)at;
	} else {
		delta[used++] = (uint8_t)((at & 0x7f) | 0x80);
		delta[used++] = (uint8_t)(at >> 7);
	}
	delta[used++] = (uint8_t)n;
	memset(delta + used, value, n);
	memset(s->ram + page * PAGE + at, value, n);
	ASSERT_EQ(gr_stream_write_xbzrle(s->w, "pc.ram", page * PAGE, delta, used + n, NULL), 0);
}

/* Everything behind the pages; the tail has one device. */
static void stream_end(struct stream *s)
{
	struct gr_tail_builder b;
	const uint8_t *tail;
	size_t n;

	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s->w, GR_SECTION_END, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(s->w, NULL), 0);
	gr_tail_builder_init(&b, PAGE);
	gr_tail_builder_add(&b, 7, "clock", 0, 3, "tick tock", 9);
	ASSERT_EQ(gr_tail_builder_finish(&b, &tail, &n, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s->w, tail, n, NULL), 0);
	gr_tail_builder_destroy(&b);
	ASSERT_EQ(gr_stream_flush(s->w, NULL), 0);
}

static void stream_free(struct stream *s)
{
	gr_stream_writer_free(s->w);
	free(s->ram);
	free(s->rom);
}

static int receive_file_with(const char *capture, const char *path,
			     const struct gr_image_params *params, struct gr_error *err)
{
	struct gr_channel_listener *listener;
	struct gr_channel *ch;
	int rc;

	ASSERT_EQ(gr_channel_listen(capture, &listener, NULL), 0);
	ASSERT_EQ(gr_channel_accept(listener, &ch, NULL), 0);
	gr_channel_listener_close(listener);
	rc = gr_image_receive(ch, path, params, NULL, err);
	ASSERT_EQ(gr_channel_close(ch, NULL), 0);
	return rc;
}

static int receive_file(const char *capture, const char *path, struct gr_error *err)
{
	return receive_file_with(capture, path, NULL, err);
}

static void receive_well(const char *capture, const char *path)
{
	struct gr_error err;

	if (receive_file(capture, path, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static struct gr_image *open_well(const char *path)
{
	struct gr_image *image;
	struct gr_error err;

	if (gr_image_open(path, &image, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return image;
}

static void check_content(const char *path, const struct stream *s)
{
	struct gr_image *image = open_well(path);
	uint8_t *got = malloc(RAM_PAGES * PAGE);
	struct gr_image_block block;

	ASSERT(got);
	ASSERT_EQ(gr_image_block(image, 0, &block), 0);
	ASSERT_STR_EQ(block.id, "pc.ram");
	ASSERT_EQ(gr_image_read(image, 0, 0, got, RAM_PAGES * PAGE, NULL), 0);
	ASSERT_MEM_EQ(got, s->ram, RAM_PAGES * PAGE);
	ASSERT_EQ(gr_image_read(image, 1, 0, got, ROM_PAGES * PAGE, NULL), 0);
	ASSERT_MEM_EQ(got, s->rom, ROM_PAGES * PAGE);
	/* pieces that begin and end anywhere */
	ASSERT_EQ(gr_image_read(image, 0, 4095, got, 3 * PAGE + 2, NULL), 0);
	ASSERT_MEM_EQ(got, s->ram + 4095, 3 * PAGE + 2);
	ASSERT_EQ(gr_image_read(image, 0, RAM_PAGES * PAGE - 1, got, 1, NULL), 0);
	ASSERT_EQ(gr_image_read(image, 0, RAM_PAGES * PAGE - 1, got, 2, NULL), -EINVAL);
	ASSERT_EQ(gr_image_read(image, 0, UINT64_MAX, got, 2, NULL), -EINVAL);
	ASSERT_EQ(gr_image_read(image, 2, 0, got, 1, NULL), -EINVAL);
	gr_image_close(image);
	free(got);
}

/* A small good image, for tests that damage it. */
static const char *small_image(void)
{
	struct stream s;
	uint8_t data[PAGE];

	stream_begin(&s, connect_to(in_folder("capture")), false);
	for (uint64_t page = 0; page < 20; page++) {
		memset(data, (int)page + 1, sizeof(data));
		stream_page(&s, 0, page * 7, data);
	}
	stream_page(&s, 1, 1, data);
	stream_end(&s);
	ASSERT_EQ(gr_channel_close(s.ch, NULL), 0);
	stream_free(&s);
	receive_well(in_folder("capture"), in_folder("vm.ram"));
	return in_folder("vm.ram");
}

TEST(image_has_the_last_content_of_every_page)
{
	uint64_t seed = test_seed();
	uint8_t data[PAGE];
	struct stream s;

	stream_begin(&s, connect_to(in_folder("capture")), false);
	for (int i = 0; i < 4000; i++) {
		uint64_t page = test_rand(&seed) % RAM_PAGES;

		switch (test_rand(&seed) % 4) {
		case 0:
			stream_zero(&s, 0, page);
			break;
		case 1:
			stream_difference(&s, page, 1 + (unsigned)(test_rand(&seed) % 3000),
					  1 + (unsigned)(test_rand(&seed) % 100), (uint8_t)i);
			break;
		default:
			memset(data, i, sizeof(data));
			data[test_rand(&seed) % PAGE] = 1;
			stream_page(&s, 0, page, data);
			stream_page(&s, 1, page % ROM_PAGES, data);
			break;
		}
	}
	stream_end(&s);
	ASSERT_EQ(gr_channel_close(s.ch, NULL), 0);
	receive_well(in_folder("capture"), in_folder("vm.ram"));
	check_content(in_folder("vm.ram"), &s);
	ASSERT(!exists(in_folder("vm.ram.part")));
	stream_free(&s);
	remove_folder();
}

TEST(zero_over_a_written_page_gives_its_space_back)
{
	struct gr_image_block block;
	struct gr_image_info info;
	struct gr_image *image;
	uint8_t data[PAGE];
	struct stream s;

	memset(data, 0x5a, sizeof(data));
	stream_begin(&s, connect_to(in_folder("capture")), false);
	for (uint64_t page = 0; page < RAM_PAGES; page++) {
		stream_page(&s, 0, page, data);
	}
	for (uint64_t page = 0; page < RAM_PAGES - 1; page++) {
		stream_zero(&s, 0, page);
	}
	/* against zero, not against the 5a of before */
	stream_difference(&s, 5, 17, 3, 0x77);
	stream_end(&s);
	ASSERT_EQ(gr_channel_close(s.ch, NULL), 0);
	receive_well(in_folder("capture"), in_folder("vm.ram"));
	check_content(in_folder("vm.ram"), &s);
	image = open_well(in_folder("vm.ram"));
	ASSERT_EQ(gr_image_block(image, 0, &block), 0);
	ASSERT_EQ(block.present_pages, 2);
	gr_image_info(image, &info);
	if (info.disk_bytes >= info.file_bytes) {
		SKIP("this file system keeps no holes");
	}
	ASSERT_LT(info.disk_bytes, RAM_PAGES * PAGE / 4);
	gr_image_close(image);
	stream_free(&s);
	remove_folder();
}

/* As libvirt does: something of its own in front of what QEMU writes. */
TEST(image_may_begin_behind_what_the_file_has_already)
{
	enum { OFFSET = 5000 }; /* no multiple of anything */
	struct gr_image_params params = { .size = sizeof(params), .offset = OFFSET };
	const char *whole = small_image(), *path = in_folder("behind");
	uint8_t header[OFFSET + 100], got[OFFSET];
	static uint8_t ram[2][RAM_PAGES * PAGE];
	struct gr_image *image;
	struct gr_error err;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	memset(header, 0x3c, sizeof(header));
	ASSERT_EQ(write(fd, header, sizeof(header)), (ssize_t)sizeof(header));
	ASSERT_EQ(close(fd), 0);
	ASSERT_EQ(receive_file_with(in_folder("capture"), path, &params, &err), 0);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT_EQ(pread(fd, got, sizeof(got), 0), (ssize_t)sizeof(got));
	ASSERT_MEM_EQ(got, header, sizeof(got));
	ASSERT_EQ(close(fd), 0);

	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(gr_image_open_at(i ? path : whole, i ? OFFSET : 0, &image, NULL), 0);
		ASSERT_EQ(gr_image_read(image, 0, 0, ram[i], sizeof(ram[i]), NULL), 0);
		gr_image_close(image);
	}
	ASSERT_MEM_EQ(ram[1], ram[0], sizeof(ram[0]));

	ASSERT_EQ(gr_image_open(path, &image, &err), -EBADMSG);
	ASSERT_EQ(gr_image_open_at(path, OFFSET + 1, &image, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "counted from byte 5001: byte 0");
	ASSERT_EQ(gr_image_open_at(path, UINT64_MAX, &image, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "incomplete");
	params.offset = UINT64_MAX;
	ASSERT_EQ(receive_file_with(in_folder("capture"), path, &params, &err), -EFBIG);
	remove_folder();
}

/* The file as QEMU reads it, by the description of the format and nothing else. */
TEST(file_is_laid_out_as_mapped_ram)
{
	const char *path = small_image();
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint8_t *file, *p;

	ASSERT_EQ(fstat(fd, &st), 0);
	file = malloc((size_t)st.st_size);
	ASSERT(file);
	ASSERT_EQ(read(fd, file, (size_t)st.st_size), st.st_size);
	(void)close(fd);

	p = file;
	ASSERT_MEM_EQ(p, "QEVM\0\0\0\3\7\0\0\0\15pc-i440fx-7.2", 26);
	p += 26;
	ASSERT_MEM_EQ(p, "\5\32configuration/capabilities\0\0\0\1\0\0\0\1\12mapped-ram", 47);
	p += 47;
	ASSERT_MEM_EQ(p, "\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4", 17);
	ASSERT_EQ(gr_get_be64(p + 17), (uint64_t)(RAM_PAGES + ROM_PAGES) * PAGE | GR_RAM_MEM_SIZE);
	p += 25;
	for (unsigned i = 0; i < 2; i++) {
		uint64_t bitmap, pages, present = 0;

		ASSERT_EQ(*p, 6);
		ASSERT_MEM_EQ(p + 1, blocks[i].id, 6);
		ASSERT_EQ(gr_get_be64(p + 7), blocks[i].used_bytes);
		ASSERT_EQ(gr_get_be32(p + 15), 1);
		ASSERT_EQ(gr_get_be64(p + 19), PAGE);
		bitmap = gr_get_be64(p + 27);
		pages = gr_get_be64(p + 35);
		ASSERT_EQ(bitmap, (uint64_t)(p + 43 - file));
		ASSERT_EQ(pages % PAGE, 0);
		for (uint64_t page = 0; page < blocks[i].used_bytes / PAGE; page++) {
			bool set = file[bitmap + page / 8] >> (page % 8) & 1;

			present += set;
			ASSERT_EQ(file[pages + page * PAGE] != 0, set);
		}
		ASSERT_EQ(present, i ? 1 : 20);
		p = file + pages + blocks[i].used_bytes;
	}
	ASSERT_MEM_EQ(p, "\0\0\0\0\0\0\0\20\176\0\0\0\2", 13);
	ASSERT_MEM_EQ(p + 13, "\3\0\0\0\2\0\0\0\0\0\0\0\20\176\0\0\0\2", 18);
	ASSERT_EQ(p[31], GR_SECTION_FULL);
	free(file);
	remove_folder();
}

/* The blocks of QEMU's pc with -m 16 to 128, and a device tail of its usual size. */
TEST(layout_of_a_small_machine_stays_below_1_05)
{
	static const struct {
		const char *id;
		uint64_t bytes;
	} pc[] = { { "pc.ram", 0 },
		   { "/rom@etc/acpi/tables", 0x20000 },
		   { "pc.bios", 0x40000 },
		   { "pc.rom", 0x20000 },
		   { "/rom@etc/table-loader", 0x1000 },
		   { "/rom@etc/acpi/rsdp", 0x1000 } };

	for (uint64_t mib = 16; mib <= 128; mib++) {
		struct gr_image_place places[6] = { 0 };
		uint64_t ram = 0, end;

		for (unsigned i = 0; i < 6; i++) {
			(void)snprintf(places[i].id, sizeof(places[i].id), "%s", pc[i].id);
			places[i].used_bytes = i ? pc[i].bytes : mib << 20;
			ram += places[i].used_bytes;
		}
		ASSERT_EQ(gr_image_layout(98, PAGE, places, 6, &end, NULL), 0);
		ASSERT_LT((end + 120000) * 100, ram * 105);
		for (unsigned i = 0; i < 6; i++) {
			ASSERT_EQ(places[i].pages_at % PAGE, 0);
			ASSERT_GE(places[i].pages_at,
				  places[i].bitmap_at +
					  gr_image_bitmap_bytes(places[i].used_bytes, PAGE));
		}
		if (mib >= 64) {
			ASSERT_EQ(places[0].pages_at % GR_IMAGE_ALIGN_BYTES, 0);
		}
	}
}

TEST(configuration_keeps_its_other_subsections)
{
	static const uint8_t raw[] = "QEVM\0\0\0\3\7\0\0\0\2pc"
				     "\5\22configuration/uuid\0\0\0\1"
				     "0123456789abcdef\1";
	size_t n = sizeof(raw) - 2; /* without the section that follows, and the NUL */
	struct gr_image_config config;
	uint8_t *with, *without;
	size_t with_bytes, without_bytes;

	ASSERT_EQ(gr_image_config_parse(raw, sizeof(raw) - 1, &config, NULL), 0);
	ASSERT_EQ(config.bytes, n);
	ASSERT(!config.mapped);
	ASSERT_STR_EQ(config.machine, "pc");
	ASSERT_EQ(gr_image_config_rewrite(raw, &config, true, &with, &with_bytes, NULL), 0);
	ASSERT_EQ(with_bytes, n + 47);

	ASSERT_EQ(gr_image_config_parse(with, with_bytes, &config, NULL), 0);
	ASSERT(config.mapped);
	ASSERT_EQ(gr_image_config_rewrite(with, &config, false, &without, &without_bytes, NULL), 0);
	ASSERT_EQ(without_bytes, n);
	ASSERT_MEM_EQ(without, raw, n);
	free(with);
	free(without);
}

TEST(capability_that_changes_the_layout_is_refused_by_name)
{
	static const uint8_t raw[] = "QEVM\0\0\0\3\7\0\0\0\2pc"
				     "\5\32configuration/capabilities\0\0\0\1\0\0\0\1"
				     "\17x-ignore-shared";
	struct gr_image_config config;
	struct gr_error err;

	ASSERT_EQ(gr_image_config_parse(raw, sizeof(raw) - 1, &config, &err), -EOPNOTSUPP);
	ASSERT_HAS(err.msg, "x-ignore-shared");
}

TEST(configuration_without_subsections_comes_back_as_it_was)
{
	static const uint8_t raw[] = "QEVM\0\0\0\3\7\0\0\0\2pc";
	size_t n = sizeof(raw) - 1, with_bytes, without_bytes;
	struct gr_image_config config;
	uint8_t *with, *without;

	ASSERT_EQ(gr_image_config_parse(raw, n, &config, NULL), 0);
	ASSERT_EQ(gr_image_config_rewrite(raw, &config, true, &with, &with_bytes, NULL), 0);
	ASSERT_EQ(gr_image_config_parse(with, with_bytes, &config, NULL), 0);
	ASSERT(config.mapped);
	ASSERT_EQ(gr_image_config_rewrite(with, &config, false, &without, &without_bytes, NULL), 0);
	ASSERT_EQ(without_bytes, n);
	ASSERT_MEM_EQ(without, raw, n);
	free(with);
	free(without);
	/* every prefix is an error or, where a section may begin, a shorter configuration */
	for (size_t cut = 0; cut < n; cut++) {
		if (cut != 8) {
			ASSERT_EQ(gr_image_config_parse(raw, cut, &config, NULL), -EBADMSG);
		}
	}
}

TEST(sent_image_received_again_is_the_same_image)
{
	const char *path = small_image();
	struct gr_image *image = open_well(path);
	struct gr_migrate_stats stats;
	struct gr_channel *ch = connect_to(in_folder("sent"));
	char command[300];

	ASSERT_EQ(gr_image_send(image, ch, NULL, &stats, NULL), 0);
	ASSERT_EQ(gr_channel_close(ch, NULL), 0);
	ASSERT_EQ(stats.normal_pages, 21);
	ASSERT_EQ(stats.normal_pages + stats.zero_pages, RAM_PAGES + ROM_PAGES);
	ASSERT_EQ(stats.remaining_bytes, 0);
	gr_image_close(image);
	receive_well(in_folder("sent"), in_folder("again.ram"));
	(void)snprintf(command, sizeof(command), "cmp %s %s", path, in_folder("again.ram"));
	ASSERT_EQ(system(command), 0);
	remove_folder();
}

TEST(every_truncation_of_an_image_is_refused_with_its_byte)
{
	const char *path = small_image();
	struct gr_image *image;
	struct gr_error err;
	struct stat st;
	off_t cut;

	ASSERT_EQ(stat(path, &st), 0);
	for (cut = st.st_size - 1; cut >= 0; cut -= cut > st.st_size - 600 || cut < 300 ? 1 : 997) {
		ASSERT_EQ(truncate(path, cut), 0);
		ASSERT_EQ(gr_image_open(path, &image, &err), -EBADMSG);
		ASSERT_HAS(err.msg, "byte ");
		ASSERT_HAS(err.msg, "vm.ram");
	}
	remove_folder();
}

TEST(byte_too_many_is_refused)
{
	const char *path = small_image();
	struct gr_image *image;
	struct gr_error err;
	struct stat st;

	ASSERT_EQ(stat(path, &st), 0);
	ASSERT_EQ(truncate(path, st.st_size + 1), 0);
	ASSERT_EQ(gr_image_open(path, &image, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "too long");
	remove_folder();
}

TEST(torn_image_without_description_is_found)
{
	struct gr_image_params params = { .size = sizeof(params), .allow_unterminated = true };
	const char *path = small_image(), *capture = in_folder("capture");
	struct gr_image_info info;
	struct gr_image *image;
	struct gr_error err;
	struct stat st;

	/* a sender that stops before its last byte, and is allowed to */
	ASSERT_EQ(stat(capture, &st), 0);
	ASSERT_EQ(truncate(capture, st.st_size - 1), 0);
	ASSERT_EQ(receive_file_with(capture, path, &params, &err), 0);
	image = open_well(path);
	gr_image_info(image, &info);
	ASSERT(!info.terminated);
	gr_image_close(image);

	ASSERT_EQ(stat(path, &st), 0);
	ASSERT_EQ(truncate(path, st.st_size - 1), 0);
	ASSERT_EQ(gr_image_open(path, &image, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "incomplete");
	remove_folder();
}

TEST(hostile_block_headers_are_refused_for_what_is_wrong_with_them)
{
	/* the first block's header in small_image(): its fields, what to write, what to hear */
	enum {
		TOTAL = 90,
		ID = 99,
		USED = 105,
		LAYOUT = 109,
		PAGE_SIZE = 117,
		BITMAP = 125,
		PAGES = 133
	};
	static const struct {
		off_t at;
		uint64_t value;
		const char *words;
	} cases[] = {
		{ TOTAL, 0x1000 | GR_RAM_MEM_SIZE, "larger than their total" },
		{ TOTAL, GR_RAM_MEM_SIZE, "without blocks" },
		{ TOTAL, GR_RAM_EOS, "list of blocks" },
		{ ID, 0, "proper name" },
		{ USED, 0, "block 'pc.ram' of 0 bytes" },
		{ USED, 0x1001, "block 'pc.ram' of 0x1001 bytes" },
		{ USED, UINT64_MAX << 12, "block 'pc.ram' of" },
		{ USED, (uint64_t)1 << 40, "bitmap of block 'pc.ram'" },
		{ LAYOUT, 2, "newer layout" },
		{ PAGE_SIZE, 8192, "another size" },
		{ PAGE_SIZE, 0, "another size" },
		{ BITMAP, 0, "bitmap of block 'pc.ram'" },
		{ BITMAP, UINT64_MAX, "bitmap of block 'pc.ram'" },
		{ BITMAP, UINT64_MAX - 4, "bitmap of block 'pc.ram'" },
		{ PAGES, 0, "pages of block 'pc.ram'" },
		{ PAGES, 4097, "pages of block 'pc.ram'" },
		{ PAGES, 1 << 30, "pages of block 'pc.ram'" },
		{ PAGES, UINT64_MAX - 4095, "pages of block 'pc.ram'" },
	};
	const char *path = small_image();
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t head[512];

	ASSERT_EQ(pread(fd, head, sizeof(head), 0), (ssize_t)sizeof(head));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct gr_image *image;
		struct gr_error err;
		uint8_t bytes[8];

		gr_put_be64(bytes, cases[i].value);
		ASSERT_EQ(pwrite(fd, bytes, 8, cases[i].at), 8);
		ASSERT_EQ(gr_image_open(path, &image, &err), -EBADMSG);
		ASSERT_HAS(err.msg, "byte ");
		ASSERT_HAS(err.msg, cases[i].words);
		ASSERT_EQ(pwrite(fd, head, sizeof(head), 0), (ssize_t)sizeof(head));
	}
	gr_image_close(open_well(path));
	(void)close(fd);
	remove_folder();
}

/* Whatever stands in the file: an error, or an image whose blocks can be read. */
TEST(damaged_images_never_lead_out_of_the_file)
{
	const char *path = small_image();
	uint64_t seed = test_seed();
	uint8_t head[8192], buf[PAGE];
	int fd = open(path, O_RDWR | O_CLOEXEC);
	unsigned opened = 0, refused = 0;

	ASSERT_EQ(pread(fd, head, sizeof(head), 0), (ssize_t)sizeof(head));
	for (int i = 0; i < 3000; i++) {
		struct gr_image_block block;
		struct gr_image *image;
		struct gr_error err = { 0 };
		uint64_t at = test_rand(&seed) % 320;
		uint8_t bytes[8];
		size_t n = 1 + test_rand(&seed) % sizeof(bytes);

		for (size_t k = 0; k < n; k++) {
			uint64_t r = test_rand(&seed);

			bytes[k] = r % 3 == 0 ? 0 : r % 3 == 1 ? 0xff : (uint8_t)(r >> 8);
		}
		ASSERT_EQ(pwrite(fd, bytes, n, (off_t)at), (ssize_t)n);
		if (gr_image_open(path, &image, &err) < 0) {
			ASSERT_HAS(err.msg, path);
			refused++;
		} else {
			for (uint32_t b = 0; gr_image_block(image, b, &block) == 0; b++) {
				ASSERT_LE(block.present_pages * block.page_bytes, block.used_bytes);
				ASSERT_EQ(gr_image_read(image, b, block.used_bytes - PAGE, buf,
							PAGE, NULL),
					  0);
			}
			gr_image_close(image);
			opened++;
		}
		ASSERT_EQ(pwrite(fd, head, sizeof(head), 0), (ssize_t)sizeof(head));
	}
	test_diag("%u opened, %u refused", opened, refused);
	ASSERT(opened > 0 && refused > 0);
	(void)close(fd);
	remove_folder();
}

TEST(broken_stream_leaves_the_part_and_the_old_image)
{
	const char *path = small_image();
	struct gr_error err;
	struct stat before, after, capture;

	ASSERT_EQ(stat(path, &before), 0);
	ASSERT_EQ(stat(in_folder("capture"), &capture), 0);
	ASSERT_EQ(truncate(in_folder("capture"), capture.st_size - 1), 0);
	ASSERT_EQ(receive_file(in_folder("capture"), path, &err) < 0, true);
	ASSERT_HAS(err.msg, "byte ");
	ASSERT_EQ(stat(path, &after), 0);
	ASSERT_EQ(before.st_ino, after.st_ino);
	ASSERT(exists(in_folder("vm.ram.part")));
	gr_image_close(open_well(path));
	remove_folder();
}

TEST(full_disk_is_an_error_that_says_so)
{
	/* enough for the list of blocks, not for the pages of the second one */
	rlim_t bytes = (RAM_PAGES + 1) * PAGE + 100;
	struct rlimit limit = { .rlim_cur = bytes, .rlim_max = bytes };
	struct gr_error err;
	const char *path;

	path = small_image();
	ASSERT_EQ(unlink(path), 0);
	(void)signal(SIGXFSZ, SIG_IGN);
	ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ASSERT_EQ(receive_file(in_folder("capture"), path, &err), -EFBIG);
	ASSERT_HAS(err.msg, "vm.ram.part");
	ASSERT_HAS(err.msg, "pc.rom");
	ASSERT(!exists(path));
	ASSERT(exists(in_folder("vm.ram.part")));
	remove_folder();
}

struct receiver {
	struct gr_channel *ch;
	const char *path;
	struct gr_error err;
	int rc;
};

static void *receive_thread(void *arg)
{
	struct receiver *r = arg;

	r->rc = gr_image_receive(r->ch, r->path, NULL, NULL, &r->err);
	return NULL;
}

TEST(source_hears_of_success_when_the_image_has_its_name)
{
	struct gr_return_path_reader answers = { 0 };
	struct gr_return_path_message msg;
	struct receiver r = { .path = in_folder("vm.ram") };
	pthread_t thread;
	struct gr_channel *ch;
	struct stream s;
	int fds[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[1], &r.ch, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, receive_thread, &r), 0);
	stream_begin(&s, ch, true);
	stream_zero(&s, 0, 0);
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	ASSERT(!exists(r.path));
	stream_end(&s);
	ASSERT_EQ(gr_return_path_next(&answers, ch, &msg, NULL), 1);
	ASSERT_EQ(msg.type, GR_RETURN_SHUT);
	ASSERT_EQ(msg.value, 0);
	ASSERT(exists(r.path));
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_EQ(r.rc, 0);
	(void)gr_channel_close(r.ch, NULL);
	(void)gr_channel_close(ch, NULL);
	stream_free(&s);
	remove_folder();
}

TEST(source_hears_of_failure)
{
	struct gr_return_path_reader answers = { 0 };
	struct gr_return_path_message msg;
	struct receiver r = { .path = in_folder("vm.ram") };
	pthread_t thread;
	struct gr_channel *ch;
	struct stream s;
	int fds[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[1], &r.ch, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, receive_thread, &r), 0);
	stream_begin(&s, ch, true);
	/* the name is taken by a folder meanwhile: it cannot be replaced */
	while (!exists(in_folder("vm.ram.part"))) {
		(void)usleep(1000);
	}
	(void)usleep(20000);
	ASSERT_EQ(mkdir(r.path, 0700), 0);
	stream_end(&s);
	ASSERT_EQ(gr_return_path_next(&answers, ch, &msg, NULL), 1);
	ASSERT_EQ(msg.type, GR_RETURN_SHUT);
	ASSERT_NE(msg.value, 0);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_LT(r.rc, 0);
	(void)gr_channel_close(r.ch, NULL);
	(void)gr_channel_close(ch, NULL);
	stream_free(&s);
	remove_folder();
}

TEST(second_receiver_of_one_name_is_refused)
{
	struct gr_error err;
	const char *path = small_image();
	const char *part = in_folder("vm.ram.part"), *capture = in_folder("capture");
	struct receiver r = { .path = path };
	struct gr_channel *ch;
	pthread_t thread;
	int fds[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[1], &r.ch, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, receive_thread, &r), 0);
	while (!exists(part) || !is_locked(part)) { /* the lock follows the file */
		(void)usleep(1000);
	}
	ASSERT_EQ(receive_file(capture, path, &err), -EBUSY);
	ASSERT_EQ(gr_channel_close(ch, NULL), 0);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_LT(r.rc, 0);
	(void)gr_channel_close(r.ch, NULL);
	remove_folder();
}

/* As root `--output /dev/null` would otherwise put a file in the place of the device. */
TEST(what_is_no_file_is_not_replaced)
{
	const char *path = small_image(), *capture = in_folder("capture");
	const char *places[] = { in_folder("fifo"), in_folder("folder"), in_folder("link") };
	struct gr_error err = { 0 };
	struct stat st;

	ASSERT_EQ(unlink(path), 0);
	ASSERT_EQ(mkfifo(places[0], 0600), 0);
	ASSERT_EQ(mkdir(places[1], 0700), 0);
	ASSERT_EQ(symlink("/dev/full", places[2]), 0);
	for (size_t i = 0; i < 3; i++) {
		char part[128];

		ASSERT_EQ(receive_file(capture, places[i], &err), i == 1 ? -EISDIR : -EINVAL);
		ASSERT_HAS(err.msg, places[i]);
		(void)snprintf(part, sizeof(part), "%s.part", places[i]);
		ASSERT(!exists(part)); /* refused before a byte was read */
		ASSERT_EQ(stat(places[i], &st), 0);
		ASSERT(!S_ISREG(st.st_mode));
	}
	remove_folder();
}

TEST(part_that_is_no_file_of_ours_is_not_written)
{
	const char *path = small_image(), *capture = in_folder("capture");
	const char *part = in_folder("vm.ram.part"), *victim = in_folder("victim");
	struct gr_error err = { 0 };
	struct stat st;

	ASSERT_EQ(truncate(capture, 1 << 20) == 0, true);
	ASSERT_EQ(link(capture, victim), 0);
	ASSERT_EQ(symlink(victim, part), 0);
	ASSERT_EQ(receive_file(capture, path, &err), -ELOOP);
	ASSERT_EQ(stat(victim, &st), 0);
	ASSERT_EQ(st.st_size, 1 << 20);
	ASSERT_EQ(unlink(part), 0);
	ASSERT_EQ(mkfifo(part, 0600), 0);
	ASSERT_EQ(receive_file(capture, path, &err), -EINVAL);
	ASSERT_HAS(err.msg, part);
	remove_folder();
}

static void *rename_thread(void *arg)
{
	/* what a first receiver does at its end, over and over */
	const char *const *names = arg;
	int fd;

	for (int i = 0; i < 20000; i++) {
		fd = open(names[0], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) {
			(void)close(fd);
			continue;
		}
		(void)!write(fd, "whole", 5);
		(void)rename(names[0], names[1]);
		(void)close(fd);
	}
	return NULL;
}

TEST(image_that_got_its_name_is_never_cut_off_by_the_next_receiver)
{
	const char *names[2] = { in_folder("x.part"), in_folder("x") };
	const char *empty = in_folder("empty");
	struct gr_error err;
	pthread_t thread;
	struct stat st;

	{
		int fd = open(empty, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

		ASSERT(fd >= 0);
		close(fd);
	}
	ASSERT_EQ(pthread_create(&thread, NULL, rename_thread, names), 0);
	for (int i = 0; i < 20000; i++) {
		ASSERT_LT(receive_file(empty, names[1], &err), 0);
		if (stat(names[1], &st) == 0) {
			ASSERT_GE(st.st_size, 5);
		}
	}
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	remove_folder();
}

TEST(description_that_lists_no_devices_is_refused_before_the_image_has_its_name)
{
	const char *path = in_folder("vm.ram"), *capture = in_folder("capture");
	struct gr_error err;
	struct stream s;

	stream_begin(&s, connect_to(capture), false);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_raw(s.w, "\0\6\0\0\0\2{}", 8, NULL), 0);
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	ASSERT_EQ(gr_channel_close(s.ch, NULL), 0);
	ASSERT_EQ(receive_file(capture, path, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "description");
	ASSERT(!exists(path));
	stream_free(&s);
	remove_folder();
}

/* Puts five bytes into a file. */
static void insert(const char *path, uint64_t at, const char *bytes)
{
	struct stat st;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t *rest;
	size_t n;

	ASSERT(fd >= 0);
	ASSERT_EQ(fstat(fd, &st), 0);
	n = (size_t)st.st_size - at;
	rest = malloc(n);
	ASSERT(rest);
	ASSERT_EQ(pread(fd, rest, n, (off_t)at), (ssize_t)n);
	ASSERT_EQ(pwrite(fd, bytes, 5, (off_t)at), 5);
	ASSERT_EQ(pwrite(fd, rest, n, (off_t)at + 5), (ssize_t)n);
	free(rest);
	(void)close(fd);
}

/* QEMU 10 says SWITCHOVER_START between the last rounds of RAM and the devices. */
TEST(switch_over_command_between_ram_and_devices_is_no_part_of_the_tail)
{
	enum { START_END_BYTES = 13, END_BYTES = 18 };
	static const unsigned int behind[] = { START_END_BYTES, START_END_BYTES + END_BYTES };
	struct gr_image_block block;
	struct gr_image_device device;
	struct gr_image_info before, after;
	struct gr_image *image;
	struct gr_error err;

	for (size_t i = 0; i < 2; i++) {
		const char *path = small_image();
		uint64_t ram_end;

		image = open_well(path);
		ASSERT_EQ(gr_image_block(image, 1, &block), 0);
		gr_image_info(image, &before);
		ram_end = block.data_offset + block.used_bytes;
		gr_image_close(image);
		insert(path, ram_end + behind[i], "\10\0\13\0\0");
		image = open_well(path);
		gr_image_info(image, &after);
		ASSERT_EQ(after.tail_bytes, before.tail_bytes);
		ASSERT_EQ(gr_image_device(image, 0, &device), 0);
		ASSERT_EQ(device.version, 3u); /* its section was found */
		gr_image_close(image);
		insert(path, ram_end + behind[i], "\10\0\7\0\0"); /* PACKAGED */
		ASSERT_EQ(gr_image_open(path, &image, &err), -EBADMSG);
		ASSERT_HAS(err.msg, "command");
	}
	remove_folder();
}

TEST_MAIN()

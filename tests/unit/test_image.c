/* SPDX-License-Identifier: MIT */
/* Images: what goes in comes out, and is small. */
#include "image/format.h"
#include "image_kit.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/image.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* SPDX-License-Identifier: MIT */
/* Images that are cut off, torn or forged: refused, for what is wrong with them. */
#include "image/format.h"
#include "image_kit.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/image.h>
#include <sys/stat.h>
#include <unistd.h>

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

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
/* What a destination does not take: blocks, machines and peers that are not those it is made for.
 */
#include "destination_kit.h"

TEST(a_block_of_another_size_is_refused)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	move_add(to, name, 2 * RAM_BYTES, 0, GR_RAM_MEMFD);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "block 'ram' has 262144 bytes at the source, 524288 here");
	unmake(&s);
	gr_ram_free(to);
}

TEST(another_machine_is_refused)
{
	struct made s;
	struct feed f = { .params = { .machine = "other" } };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "machine 'machine'");
	f.params.machine = "machine";
	feed(&f, to);
	ASSERT_EQ(f.rc, 0);
	unmake(&s);
	gr_ram_free(to);
}

TEST(pages_of_another_size_are_refused)
{
	struct gr_ram_params params = { .size = sizeof(params), .page_bytes = 16384 };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to;

	ASSERT_EQ(gr_ram_create(&params, &to, NULL), 0);
	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "4096");
	unmake(&s);
	gr_ram_free(to);
}

TEST(a_stranger_cannot_make_us_map_the_world)
{
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, UINT64_C(1) << 46);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EFBIG);
	unmake(&s);
	gr_ram_free(to);
}

static int refuse(void *opaque, const struct gr_block_announcement *what, struct gr_error *err)
{
	unsigned int *calls = opaque;

	(*calls)++;
	ASSERT_EQ(what->used_bytes, (uint64_t)RAM_BYTES);
	return gr_error_set(err, -EPERM, "no room for '%s'", what->id);
}

TEST(the_machine_may_refuse_a_block)
{
	unsigned int calls = 0;
	struct gr_destination_ops ops = { .block_add = refuse, .opaque = &calls };
	struct made s;
	struct feed f = { .ops = &ops };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EPERM);
	ASSERT_HAS(f.err.msg, "no room for 'ram'");
	ASSERT_EQ(calls, 1u);
	unmake(&s);
	gr_ram_free(to);
}

/* Announces a list between records, after FEATURES was asked for. */
static void announce(struct made *s, const struct gr_stream_block_desc *descs, size_t n)
{
	ASSERT_EQ(gr_stream_write_announce(s->w, descs, n, NULL), 0);
}

TEST(replugged_blocks_are_new_blocks_and_absent_ones_go)
{
	struct gr_stream_block_desc d[] = {
		{ .id = "a",
		  .used_bytes = RAM_BYTES,
		  .max_bytes = RAM_BYTES,
		  .incarnation = 1,
		  .gpa = 0,
		  .page_bytes = MOVE_PAGE },
		{ .id = "b",
		  .used_bytes = RAM_BYTES,
		  .max_bytes = RAM_BYTES,
		  .incarnation = 2,
		  .gpa = 1 << 30,
		  .page_bytes = MOVE_PAGE },
	};
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();
	struct gr_ram_block *b;
	uint64_t offset;

	move_add(to, "bystander", MOVE_PAGE, 1ull << 40, GR_RAM_MEMFD);
	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
	ASSERT_EQ(gr_stream_write_start(s.w, 2, d, 2, NULL), 0);
	announce(&s, d, 2);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s.w, GR_SECTION_PART, NULL), 0);
	write_page(&s, "a", 1, 1);
	write_page(&s, "b", 1, 1);
	ASSERT_EQ(gr_stream_write_eos(s.w, NULL), 0);
	ASSERT_EQ(gr_stream_write_section(s.w, GR_SECTION_END, NULL), 0);
	/* 'a' again, empty, elsewhere and shorter; 'b' is gone. */
	d[0].incarnation = 3;
	d[0].used_bytes = d[0].max_bytes = 2 * MOVE_PAGE;
	d[0].gpa = 1 << 30;
	announce(&s, d, 1);
	write_page(&s, "a", 0, 9);
	make_end(&s, &f);
	feed(&f, to);
	if (f.rc != 0) {
		FAIL("%s", f.err.msg);
	}
	gr_rcu_read_lock();
	ASSERT(!gr_ram_block_by_id_rcu(to, "b"));
	ASSERT(gr_ram_block_by_id_rcu(to, "bystander"));
	b = gr_ram_block_by_gpa_rcu(to, gr_gpa(1 << 30), &offset, NULL);
	ASSERT(b);
	ASSERT_STR_EQ(b->id, "a");
	ASSERT_EQ(gr_ram_block_used_bytes(b), 2u * MOVE_PAGE);
	ASSERT_EQ(b->host[0], 9);
	ASSERT_EQ(b->host[MOVE_PAGE], 0);
	ASSERT(!gr_ram_block_by_gpa_rcu(to, gr_gpa(0), &offset, NULL));
	gr_rcu_read_unlock();
	ASSERT_EQ(shut_of(&f), 0);
	unmake(&s);
	gr_ram_free(to);
}

static void announced_again(uint64_t used_bytes, uint64_t page)
{
	struct gr_stream_block_desc d = { .id = name,
					  .used_bytes = RAM_BYTES,
					  .max_bytes = 2 * RAM_BYTES,
					  .incarnation = 5,
					  .page_bytes = MOVE_PAGE };
	struct gr_ram *to = move_ram();
	struct feed f = { 0 };
	struct made s;

	move_add(to, name, RAM_BYTES, 0, GR_RAM_MEMFD);
	make(&s);
	ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
	ASSERT_EQ(gr_stream_write_start(s.w, 2, &d, 1, NULL), 0);
	announce(&s, &d, 1);
	d.used_bytes = used_bytes;
	announce(&s, &d, 1);
	write_page(&s, name, page, 7);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_EQ(f.rc, -EINVAL);
	ASSERT_HAS(f.err.msg, "block 'ram' changed its length during the move, from 262144 to");
	ASSERT_EQ(shut_of(&f), 1);
	unmake(&s);
	gr_ram_free(to);
}

TEST(a_block_that_is_announced_again_with_another_length_is_refused)
{
	announced_again(2 * RAM_BYTES, RAM_PAGES + 3);
	announced_again(RAM_BYTES / 2, 3);
}

/* A peer that said it is one of ours owes the announcement before anything else. */
TEST(pages_before_the_announcement_are_refused)
{
	struct gr_stream_block_desc d = { .id = name,
					  .used_bytes = RAM_BYTES,
					  .max_bytes = RAM_BYTES };

	for (int kind = 0; kind < 3; kind++) {
		struct made s;
		struct feed f = { 0 };
		struct gr_ram *to = move_ram();

		make(&s);
		ASSERT_EQ(gr_stream_write_command(s.w, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, NULL),
			  0);
		ASSERT_EQ(gr_stream_write_ping(s.w, GR_PING_FEATURES, NULL), 0);
		ASSERT_EQ(gr_stream_write_start(s.w, 2, &d, 1, NULL), 0);
		if (kind == 0) {
			write_page(&s, name, 0, 1);
		} else if (kind == 1) {
			ASSERT_EQ(gr_stream_write_zero(s.w, name, 0, NULL), 0);
		} else {
			ASSERT_EQ(gr_stream_write_xbzrle(s.w, name, 0, "\1\1x", 3, NULL), 0);
		}
		make_end(&s, &f);
		feed(&f, to);
		ASSERT_EQ(f.rc, -EBADMSG);
		ASSERT_HAS(f.err.msg, "byte ");
		ASSERT_HAS(f.err.msg, "'ram'");
		ASSERT_EQ(shut_of(&f), 1);
		unmake(&s);
		gr_ram_free(to);
	}
}

TEST(extensions_are_refused_from_a_peer_that_was_not_told_of_them)
{
	struct gr_stream_block_desc d = { .id = name,
					  .used_bytes = RAM_BYTES,
					  .max_bytes = RAM_BYTES,
					  .incarnation = 1,
					  .gpa = 0,
					  .page_bytes = MOVE_PAGE };
	struct made s;
	struct feed f = { 0 };
	struct gr_ram *to = move_ram();

	make(&s);
	make_start(&s, name, RAM_BYTES);
	announce(&s, &d, 1);
	make_end(&s, &f);
	feed(&f, to);
	ASSERT_LT(f.rc, 0);
	ASSERT_HAS(f.err.msg, "byte ");
	unmake(&s);
	gr_ram_free(to);
}

TEST_MAIN()

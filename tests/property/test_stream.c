/* SPDX-License-Identifier: MIT */
/*
 * Random records, written by the writer and read by the reader, in random pieces. The
 * model is two memories: what the sender has changed and what the receiver has applied
 * are the same bytes at the end, and both parsing paths deliver the same.
 */
#include "harness.h"
#include "stream/channel.h"
#include "stream/writer.h"
#include "stream_kit.h"

enum { PAGE = 4096, BLOCKS = 6, PAGES_MAX = 40, OPS = 120 };

struct block {
	char id[32];
	uint64_t incarnation; /* 0: not there */
	uint32_t pages;
	uint8_t ram[PAGES_MAX][PAGE];
};

struct machine {
	struct block block[BLOCKS];
};

static uint64_t next_incarnation;

static void plug(struct machine *m, unsigned int i, uint64_t *s)
{
	struct block *b = &m->block[i];

	memset(b, 0, sizeof(*b));
	(void)snprintf(b->id, sizeof(b->id), "block%u", i);
	b->incarnation = ++next_incarnation;
	b->pages = 1 + (uint32_t)(test_rand(s) % PAGES_MAX);
}

static size_t list_of(const struct machine *m, struct gr_stream_block_desc *list)
{
	size_t n = 0;

	for (unsigned int i = 0; i < BLOCKS; i++) {
		const struct block *b = &m->block[i];

		if (b->incarnation) {
			list[n++] = (struct gr_stream_block_desc){
				.id = b->id,
				.used_bytes = (uint64_t)b->pages * PAGE,
				.max_bytes = (uint64_t)PAGES_MAX * PAGE,
				.incarnation = b->incarnation,
				.gpa = i & 1 ? UINT64_MAX : (uint64_t)i << 30,
				.page_bytes = PAGE,
			};
		}
	}
	return n;
}

static struct block *any(struct machine *m, uint64_t *s)
{
	for (;;) {
		struct block *b = &m->block[test_rand(s) % BLOCKS];

		if (b->incarnation) {
			return b;
		}
	}
}

static void fill(uint8_t *page, uint64_t *s)
{
	for (size_t i = 0; i < PAGE; i += 8) {
		uint64_t v = test_rand(s);

		memcpy(page + i, &v, 8);
	}
}

static void send_pages(struct gr_stream_writer *w, struct block *b, uint64_t *s)
{
	const void *pages[100];
	uint64_t offsets[100];
	size_t n = 1 + (size_t)(test_rand(s) % (test_rand(s) & 1 ? 4 : 100));

	for (size_t i = 0; i < n; i++) {
		uint32_t page = (uint32_t)(test_rand(s) % b->pages);

		if (test_rand(s) & 1) {
			fill(b->ram[page], s);
		}
		offsets[i] = (uint64_t)page * PAGE;
		pages[i] = b->ram[page];
	}
	ASSERT_EQ(gr_stream_write_pages(w, b->id, offsets, pages, n, NULL), 0);
}

static void send_range(struct gr_stream_writer *w, struct block *b, uint64_t *s)
{
	const struct gr_channel_file no_file = { .fd = -1 };
	uint32_t from = (uint32_t)(test_rand(s) % b->pages);
	uint32_t n = 1 + (uint32_t)(test_rand(s) % (b->pages - from));

	fill(b->ram[from + test_rand(s) % n], s);
	ASSERT_EQ(gr_stream_write_page_range(w, b->id, (uint64_t)from * PAGE, b->ram[from],
					     (size_t)n * PAGE, &no_file, NULL),
		  0);
}

static void send_zeros(struct gr_stream_writer *w, struct block *b, bool range, uint64_t *s)
{
	uint32_t from = (uint32_t)(test_rand(s) % b->pages);
	uint32_t n = 1 + (uint32_t)(test_rand(s) % (b->pages - from));

	memset(b->ram[from], 0, (size_t)n * PAGE);
	if (range) {
		ASSERT_EQ(gr_stream_write_zero_range(w, b->id, (uint64_t)from * PAGE,
						     (uint64_t)n * PAGE, NULL),
			  0);
		return;
	}
	for (uint32_t i = 0; i < n; i++) {
		ASSERT_EQ(gr_stream_write_zero(w, b->id, (uint64_t)(from + i) * PAGE, NULL), 0);
	}
}

static void send_delta(struct gr_stream_writer *w, struct block *b, uint64_t *s)
{
	uint8_t *page = b->ram[test_rand(s) % b->pages];
	uint8_t delta[2 + 100 + 3] = { 0 };
	size_t skip = (size_t)(test_rand(s) % 128), n = 1 + (size_t)(test_rand(s) % 100);

	delta[0] = (uint8_t)skip;
	delta[1] = (uint8_t)n;
	for (size_t i = 0; i < n; i++) {
		delta[2 + i] = (uint8_t)test_rand(s);
	}
	memcpy(page + skip, delta + 2, n);
	ASSERT_EQ(
		gr_stream_write_xbzrle(w, b->id, (uint64_t)(page - b->ram[0]), delta, 2 + n, NULL),
		0);
}

static void replug(struct machine *m, struct gr_stream_writer *w, uint64_t *s)
{
	struct gr_stream_block_desc list[BLOCKS];
	unsigned int i = 1 + (unsigned int)(test_rand(s) % (BLOCKS - 1)); /* the first one stays */

	if (m->block[i].incarnation && test_rand(s) & 1) {
		memset(&m->block[i], 0, sizeof(m->block[i]));
	} else {
		plug(m, i, s); /* also in the place of one that lived */
	}
	ASSERT_EQ(gr_stream_write_announce(w, list, list_of(m, list), NULL), 0);
}

/* Sends OPS random records; true: those of our own peers too. */
static void send_stream(struct machine *m, struct gr_channel *ch, bool own, uint64_t *s)
{
	struct gr_stream_block_desc list[BLOCKS];
	struct gr_stream_writer *w;
	struct kit_bytes tail = { 0 };
	bool in_section = true;

	for (unsigned int i = 0; i < BLOCKS; i += 2) {
		plug(m, i, s);
	}
	ASSERT_EQ(gr_stream_writer_create(ch, &w, NULL), 0);
	ASSERT_EQ(gr_stream_write_config(w, "property", PAGE, NULL), 0);
	ASSERT_EQ(gr_stream_write_ping(w, GR_PING_FEATURES, NULL), 0);
	ASSERT_EQ(gr_stream_write_start(w, (uint32_t)test_rand(s), list, list_of(m, list), NULL),
		  0);
	if (own) {
		ASSERT_EQ(gr_stream_write_announce(w, list, list_of(m, list), NULL), 0);
	}
	for (int i = 0; i < OPS; i++) {
		uint64_t what = test_rand(s) % 100;

		if (!in_section) {
			ASSERT_EQ(gr_stream_write_section(w, GR_SECTION_PART, NULL), 0);
			in_section = true;
		}
		if (own && what < 10) {
			send_range(w, any(m, s), s);
		} else if (what < 40) {
			send_pages(w, any(m, s), s);
		} else if (what < 70) {
			send_zeros(w, any(m, s), own && what < 55, s);
		} else if (what < 85) {
			send_delta(w, any(m, s), s);
		} else if (what < 92) {
			ASSERT_EQ(gr_stream_write_eos(w, NULL), 0);
			in_section = false;
		} else if (own) {
			replug(m, w, s);
		}
		if (what % 10 == 0) {
			ASSERT_EQ(gr_stream_flush(w, NULL), 0);
		}
	}
	if (in_section) {
		ASSERT_EQ(gr_stream_write_eos(w, NULL), 0);
	}
	ASSERT_EQ(gr_stream_write_section(w, GR_SECTION_END, NULL), 0);
	ASSERT_EQ(gr_stream_write_eos(w, NULL), 0);
	kit_tail(&tail);
	ASSERT_EQ(gr_stream_write_raw(w, tail.p, tail.n, NULL), 0);
	ASSERT_EQ(gr_stream_flush(w, NULL), 0);
	kit_free(&tail);
	gr_stream_writer_free(w);
}

/* What a consumer of the block table does: new blocks get memory, dead ones lose it. */
static void follow(struct machine *m, struct gr_stream_reader *r)
{
	bool taken[BLOCKS] = { false };

	for (uint32_t i = 0; i < gr_stream_reader_block_count(r); i++) {
		struct gr_stream_block *b = gr_stream_reader_block(r, i);

		if (!b->alive && b->user) {
			memset(b->user, 0, sizeof(struct block));
			b->user = NULL;
		}
		if (b->user) {
			taken[(struct block *)b->user - m->block] = true;
		}
	}
	for (uint32_t i = 0; i < gr_stream_reader_block_count(r); i++) {
		struct gr_stream_block *b = gr_stream_reader_block(r, i);
		unsigned int at = 0;

		if (!b->alive) {
			continue;
		}
		if (!b->user) {
			while (taken[at]) {
				ASSERT_LT(++at, (unsigned int)BLOCKS);
			}
			taken[at] = true;
			b->user = &m->block[at];
			memset(b->user, 0, sizeof(struct block));
		}
		(void)snprintf(((struct block *)b->user)->id, 32, "%.31s", b->id);
		((struct block *)b->user)->incarnation = b->incarnation;
		((struct block *)b->user)->pages = (uint32_t)(b->used_bytes / PAGE);
	}
}

/* Some pages of ranges come into memory, others as records. */
static uint8_t *page_memory(void *opaque, struct gr_stream_block *block, uint64_t offset)
{
	struct block *b = block->user;

	(void)opaque;
	return offset / PAGE % 5 < 3 ? b->ram[offset / PAGE] : NULL;
}

static void apply(struct machine *m, struct gr_stream_reader *r, const struct gr_stream_record *rec)
{
	struct block *b;

	switch ((unsigned int)rec->kind) {
	case GR_STREAM_BLOCKS:
	case GR_STREAM_ANNOUNCE:
		follow(m, r);
		break;
	case GR_STREAM_PAGES:
		b = gr_stream_reader_block(r, rec->pages.block)->user;
		for (uint32_t i = 0; i < rec->pages.count; i++) {
			memcpy(b->ram[rec->pages.offsets[i] / PAGE],
			       rec->pages.data + (size_t)i * PAGE, PAGE);
		}
		break;
	case GR_STREAM_ZERO:
		b = gr_stream_reader_block(r, rec->zero.block)->user;
		memset(b->ram[rec->zero.offset / PAGE], rec->zero.fill,
		       (size_t)rec->zero.bytes);
		break;
	case GR_STREAM_XBZRLE:
		b = gr_stream_reader_block(r, rec->xbzrle.block)->user;
		ASSERT_EQ(gr_xbzrle_decode(b->ram[rec->xbzrle.offset / PAGE], rec->xbzrle.payload,
					   rec->xbzrle.payload_bytes, PAGE),
			  0);
		break;
	default:
		break;
	}
}

static void receive(struct machine *m, struct kit_source *source, bool own)
{
	struct gr_stream_source src = { kit_readv, source };
	struct gr_error err = { 0 };
	struct gr_stream_reader *r;
	struct gr_stream_record rec;
	int rc;

	ASSERT_EQ(gr_stream_reader_create(&src, &r, NULL), 0);
	if (own) {
		struct gr_stream_memory memory = { .page = page_memory };

		gr_stream_reader_allow_extensions(r);
		gr_stream_reader_set_memory(r, &memory);
	}
	while ((rc = gr_stream_next(r, &rec, &err)) > 0) {
		apply(m, r, &rec);
	}
	if (rc < 0) {
		FAIL("%s", err.msg);
	}
	gr_stream_reader_free(r);
}

static void compare(const struct machine *sent, const struct machine *got, bool own)
{
	for (unsigned int i = 0; i < BLOCKS; i++) {
		const struct block *a = &sent->block[i], *b = NULL;
		unsigned int same = 0;

		for (unsigned int k = 0; k < BLOCKS; k++) {
			if (a->incarnation && strcmp(got->block[k].id, a->id) == 0) {
				b = &got->block[k];
				same++;
			}
		}
		ASSERT_EQ(same, a->incarnation ? 1u : 0u);
		if (b) {
			ASSERT_EQ(b->incarnation, own ? a->incarnation : 0);
			ASSERT_EQ(b->pages, a->pages);
			ASSERT_MEM_EQ(b->ram, a->ram, sizeof(a->ram));
		}
	}
}

static void round_trip(bool own)
{
	static struct machine sent, got;
	uint64_t s = test_seed();

	for (int round = 0; round < (test_under_tsan() ? 10 : 40); round++) {
		static const size_t pieces[] = { 0, 100, 4104, 5000, 70000 };
		struct kit_source source = { .piece_max = pieces[round % 5], .seed = s };
		struct kit_trace staged, plain;
		struct gr_channel *ch;
		size_t n;

		memset(&sent, 0, sizeof(sent));
		memset(&got, 0, sizeof(got));
		ASSERT_EQ(gr_channel_memory(NULL, &ch, NULL), 0);
		send_stream(&sent, ch, own, &s);
		source.data = gr_channel_memory_written(ch, &n);
		source.n = n;
		receive(&got, &source, own);
		compare(&sent, &got, own);
		source.pos = 0;
		staged = kit_trace(&source, own ? KIT_EXTENSIONS : 0);
		source.pos = 0;
		source.piece_max = 0;
		plain = kit_trace(&source, KIT_NO_STAGING | (own ? KIT_EXTENSIONS : 0));
		ASSERT_EQ(staged.rc, 0);
		ASSERT_EQ(plain.rc, 0);
		ASSERT_EQ(staged.hash, plain.hash);
		ASSERT_EQ(staged.pages, plain.pages);
		ASSERT_EQ(gr_channel_close(ch, NULL), 0);
	}
}

TEST(what_qemu_can_read_arrives_as_it_was_sent)
{
	round_trip(false);
}

TEST(with_our_own_records_blocks_come_and_go_and_the_bytes_arrive)
{
	round_trip(true);
}

TEST(damaged_anywhere_a_stream_gives_an_error_or_records_and_nothing_else)
{
	static struct machine sent;
	uint64_t s = test_seed();
	struct kit_bytes copy = { 0 };
	struct gr_channel *ch;
	const uint8_t *data;
	unsigned int refused = 0;
	size_t n;

	memset(&sent, 0, sizeof(sent));
	ASSERT_EQ(gr_channel_memory(NULL, &ch, NULL), 0);
	send_stream(&sent, ch, true, &s);
	data = gr_channel_memory_written(ch, &n);
	for (int round = 0; round < 60; round++) {
		struct kit_source source = { .piece_max = round % 2 ? 5000 : 0, .seed = s };
		struct kit_trace t;

		copy.n = 0;
		kit_raw(&copy, data, n);
		/* near the start, where lengths are, as often as anywhere */
		for (uint64_t k = 1 + test_rand(&s) % 4; k; k--) {
			copy.p[test_rand(&s) % (round & 1 ? 1000 : n)] ^=
				(uint8_t)(1u << test_rand(&s) % 8);
		}
		source.data = copy.p;
		source.n = test_rand(&s) % 3 ? n : (size_t)(test_rand(&s) % n);
		t = kit_trace(&source, KIT_EXTENSIONS);
		refused += t.rc < 0;
	}
	ASSERT_GT(refused, 10u);
	kit_free(&copy);
	ASSERT_EQ(gr_channel_close(ch, NULL), 0);
}

TEST_MAIN()

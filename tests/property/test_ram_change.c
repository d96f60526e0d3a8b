/* SPDX-License-Identifier: MIT */
/*
 * Random stores, discards, pieces plugged and unplugged, new lengths and new memory, against plain
 * arrays. After each step:
 *
 *   - every byte is what it should be;
 *   - whatever has changed is dirty (a copy that is brought up to date from what is reported, and from
 *     nothing else, is the memory);
 *   - a listener that wrote down what came and went has the same pieces as the block says;
 *   - and now and then all of it moves, and arrives.
 *
 * And the same by a thread of its own while the machine moves.
 */
#include "move.h"
#include <guestram/ram_change.h>
#include <sys/mman.h>

enum { BLOCKS = 4, GRANULES = 16, GRANULE_PAGES = 2, PAGES = GRANULES * GRANULE_PAGES };
#define GRANULE_BYTES ((uint64_t)GRANULE_PAGES * MOVE_PAGE)
#define BYTES	      ((uint64_t)PAGES * MOVE_PAGE)
#define STEP_BYTES    ((uint64_t)1 << 30) /* from one block's guest address to the next */

struct model {
	struct gr_ram_block *block;
	uint8_t *bytes;		  /* what should be there */
	uint8_t *copy;		  /* what a consumer knows */
	bool gone[GRANULES];	  /* what should be plugged */
	bool heard_gone[GRANULES]; /* what the listener thinks */
	uint64_t used;
	struct gr_ram_populate_listener listener;
};

static struct gr_ram *ram;
static struct gr_dirty_consumer *consumer;
static struct model models[BLOCKS];
static uint64_t rng;
static bool refuse, held;

static uint64_t roll(uint64_t n)
{
	return test_rand(&rng) % n;
}

static void hear(struct model *m, uint64_t offset, uint64_t bytes, bool gone)
{
	for (uint64_t g = offset / GRANULE_BYTES; g < (offset + bytes) / GRANULE_BYTES; g++) {
		ASSERT_NE(m->heard_gone[g], gone); /* never twice */
		m->heard_gone[g] = gone;
	}
}

static int hear_populate(void *opaque, struct gr_ram_block *block, uint64_t offset, uint64_t bytes,
			 struct gr_error *err)
{
	if (refuse) {
		return gr_error_set(err, -EBADMSG, "'%s': told to refuse", block->id);
	}
	hear(opaque, offset, bytes, false);
	return 0;
}

static void hear_depopulate(void *opaque, struct gr_ram_block *block, uint64_t offset,
			    uint64_t bytes)
{
	(void)block;
	hear(opaque, offset, bytes, true);
}

static void add_all(void)
{
	static const struct {
		const char *id;
		enum gr_ram_backing backing;
		unsigned int flags;
	} kinds[BLOCKS] = { { "memfd", GR_RAM_MEMFD, 0 },
			    { "anonymous", GR_RAM_ANONYMOUS, 0 },
			    { "shared", GR_RAM_ANONYMOUS, GR_RAM_SHARED },
			    { "callers", GR_RAM_CALLER, GR_RAM_PRIVATE } };

	for (unsigned int i = 0; i < BLOCKS; i++) {
		struct model *m = &models[i];
		struct gr_ram_block_desc desc = { .size = sizeof(desc), .id = kinds[i].id,
						  .used_bytes = BYTES, .backing = kinds[i].backing,
						  .flags = kinds[i].flags, .fd = -1,
						  .granule_bytes = GRANULE_BYTES };
		struct gr_error err;

		if (kinds[i].backing == GR_RAM_CALLER) {
			desc.host = test_pages(BYTES);
		}
		if (gr_ram_block_add(ram, &desc, &m->block, &err) < 0) {
			FAIL("%s", err.msg);
		}
		/* Not mapped by its description: a region must not keep it from getting shorter. */
		m->bytes = calloc(1, BYTES);
		m->copy = calloc(1, BYTES);
		m->used = BYTES;
		memset(m->heard_gone, 1, sizeof(m->heard_gone));
		m->listener = (struct gr_ram_populate_listener){ .populate = hear_populate,
								 .depopulate = hear_depopulate,
								 .opaque = m };
		ASSERT_EQ(gr_ram_populate_listener_add(m->block, &m->listener, NULL), 0);
	}
}

/* Brings the copies up to date from what is reported, and looks whether that was enough. */
static void check_dirty(void)
{
	uint64_t at = 0, first, n;

	ASSERT_EQ(gr_dirty_epoch_begin(consumer, NULL, NULL), 0);
	for (; gr_dirty_epoch_next(consumer, at, &first, &n); at = first + n) {
		for (uint64_t page = first; page < first + n; page++) {
			for (unsigned int i = 0; i < BLOCKS; i++) {
				uint64_t offset = page * MOVE_PAGE - models[i].block->offset.v;

				if (offset < BYTES) {
					memcpy(models[i].copy + offset, models[i].block->host + offset,
					       MOVE_PAGE);
				}
			}
		}
	}
	ASSERT_EQ(gr_dirty_epoch_commit(consumer), 0);
	for (unsigned int i = 0; i < BLOCKS; i++) {
		ASSERT_MEM_EQ(models[i].block->host, models[i].bytes, BYTES);
		ASSERT_MEM_EQ(models[i].copy, models[i].bytes, BYTES);
	}
}

static void check_plugged(struct model *m)
{
	for (uint64_t g = 0; g < GRANULES; g++) {
		ASSERT_EQ(gr_ram_populated(m->block, g * GRANULE_BYTES, GRANULE_BYTES), !m->gone[g]);
		ASSERT_EQ(m->heard_gone[g], m->gone[g]);
	}
	ASSERT_EQ(gr_ram_block_used_bytes(m->block), m->used);
}

/* By way of a region that is there for as long as it takes. */
static void store(struct model *m)
{
	uint64_t offset = roll(m->used), bytes = 1 + roll(m->used - offset), word = test_rand(&rng);
	struct gr_ram_region region = { .gpa = gr_gpa(STEP_BYTES), .bytes = m->used, .block = m->block };
	uint8_t *from = malloc(bytes);
	struct gr_ram_iov iov;
	bool swapped = false;

	memset(from, (int)roll(256), bytes);
	ASSERT_EQ(gr_ram_region_add(ram, &region, NULL), 0);
	switch (roll(5)) {
	case 0:
		ASSERT_EQ(gr_ram_write(ram, gr_gpa(STEP_BYTES + offset), from, bytes, NULL), 0);
		memcpy(m->bytes + offset, from, bytes);
		break;
	case 1:
		ASSERT_EQ(gr_ram_fill(ram, gr_gpa(STEP_BYTES + offset), from[0], bytes, NULL), 0);
		memcpy(m->bytes + offset, from, bytes);
		break;
	case 2:
		offset &= ~UINT64_C(7);
		ASSERT_EQ(gr_ram_cmpxchg(ram, gr_gpa(STEP_BYTES + offset), m->bytes + offset, &word, 8,
					 &swapped, NULL), 0);
		ASSERT(swapped);
		memcpy(m->bytes + offset, &word, 8);
		break;
	case 3:
		ASSERT_EQ(gr_ram_translate(ram, gr_gpa(STEP_BYTES + offset), bytes, true, &iov, NULL), 0);
		ASSERT_EQ(iov.iov.iov_len, bytes);
		memcpy(iov.iov.iov_base, from, bytes);
		gr_ram_iov_put(&iov, 1, bytes);
		memcpy(m->bytes + offset, from, bytes);
		break;
	default:
		memcpy(m->block->host + offset, from, bytes);
		gr_ram_mark(m->block, offset, bytes);
		memcpy(m->bytes + offset, from, bytes);
	}
	ASSERT_EQ(gr_ram_region_del(ram, gr_gpa(STEP_BYTES), NULL), 0);
	free(from);
}

static void discard(struct model *m)
{
	uint64_t page = roll(PAGES), n = 1 + roll(PAGES - page);
	uint64_t offset = page * MOVE_PAGE, bytes = n * MOVE_PAGE;

	ASSERT_EQ(gr_ram_discard(m->block, offset, bytes, NULL), held ? -EBUSY : 0);
	if (!held) {
		memset(m->bytes + offset, 0, bytes);
	}
}

static void new_memory(struct model *m)
{
	uint64_t offset = roll(BYTES);
	int want = m->block->backing == GR_RAM_CALLER ? -ENOTSUP : held ? -EBUSY : 0;

	ASSERT_EQ(gr_ram_remap(m->block, offset, 1, NULL), want);
	if (want == 0) {
		memset(m->bytes + (offset & ~UINT64_C(4095)), 0, MOVE_PAGE);
	}
}

static void plug(struct model *m, bool gone)
{
	uint64_t g = roll(GRANULES), n = 1 + roll(GRANULES - g);
	uint64_t offset = g * GRANULE_BYTES, bytes = n * GRANULE_BYTES;
	bool any = false;
	int want = 0;

	for (uint64_t i = g; i < g + n; i++) {
		any |= m->gone[i];
	}
	if (gone) {
		want = held ? -EBUSY : 0;
		ASSERT_EQ(gr_ram_depopulate(m->block, offset, bytes, NULL), want);
	} else {
		refuse = roll(4) == 0;
		want = refuse && any ? -EBADMSG : 0;
		ASSERT_EQ(gr_ram_populate(m->block, offset, bytes, NULL), want);
		refuse = false;
	}
	for (uint64_t i = g; want == 0 && i < g + n; i++) {
		if (gone && !m->gone[i]) {
			memset(m->bytes + i * GRANULE_BYTES, 0, GRANULE_BYTES);
		}
		m->gone[i] = gone;
	}
}

static void resize(struct model *m)
{
	uint64_t used = (1 + roll(PAGES)) * MOVE_PAGE;

	ASSERT_EQ(gr_ram_block_resize(m->block, used, NULL), 0);
	m->used = used;
}

static void hold(void)
{
	if (held) {
		gr_ram_discard_release(ram, GR_RAM_NO_DISCARDS);
	} else {
		ASSERT_EQ(gr_ram_discard_hold(ram, GR_RAM_NO_DISCARDS, NULL), 0);
	}
	held = !held;
}

/* Whether nothing that is unplugged and was not stored to since has memory. */
static void check_untouched(const struct gr_ram_block *block, const struct model *m)
{
	unsigned char map[PAGES];

	ASSERT_EQ(mincore(block->host, BYTES, map), 0);
	for (unsigned int page = 0; page < PAGES; page++) {
		if (m->gone[page / GRANULE_PAGES]) {
			ASSERT_EQ(map[page] & 1, 0);
		}
	}
}

/* After everything that is unplugged was thrown away again: the checks have read it. */
static void move_all(void)
{
	struct move m = { .from = ram, .to = move_ram() };

	if (held) {
		hold();
	}
	for (unsigned int i = 0; i < BLOCKS; i++) {
		(void)madvise(models[i].block->host, BYTES, MADV_NOHUGEPAGE);
		for (uint64_t g = 0; g < GRANULES; g++) {
			if (models[i].gone[g]) {
				ASSERT_EQ(gr_ram_discard(models[i].block, g * GRANULE_BYTES,
							 GRANULE_BYTES, NULL), 0);
				memset(models[i].bytes + g * GRANULE_BYTES, 0, GRANULE_BYTES);
			}
		}
	}
	move_must_succeed(&m);
	for (unsigned int i = 0; i < BLOCKS; i++) {
		check_untouched(models[i].block, &models[i]);
	}
	ASSERT_EQ(move_compare(ram, m.to), 0u);
	gr_ram_free(m.to);
}

TEST(random_changes_of_memory_are_marked_told_and_moved)
{
	unsigned int steps = test_under_tsan() ? 60 : test_under_asan() ? 600 : 3000;

	rng = test_seed();
	ram = move_ram();
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "test", GR_DIRTY_START_FULL, &consumer,
					NULL), 0);
	add_all();
	for (unsigned int i = 0; i < steps; i++) {
		struct model *m = &models[roll(BLOCKS)];

		switch (roll(10)) {
		case 0:
			discard(m);
			break;
		case 1:
			new_memory(m);
			break;
		case 2:
		case 3:
			plug(m, true);
			break;
		case 4:
			plug(m, false);
			break;
		case 5:
			resize(m);
			break;
		case 6:
			hold();
			break;
		default:
			store(m);
		}
		check_dirty();
		check_plugged(m);
		if (i % 50 == 49) {
			move_all();
			check_dirty();
		}
	}
	for (unsigned int i = 0; i < BLOCKS; i++) {
		gr_ram_populate_listener_del(models[i].block, &models[i].listener);
		free(models[i].bytes);
		free(models[i].copy);
	}
	gr_dirty_consumer_del(consumer);
	gr_ram_free(ram);
}

/* ---- while it moves -------------------------------------------------------------------- */

struct changer {
	struct move_guest guest; /* which it is part of: it stands still when the guest does */
	bool resizes;		 /* (atomic) */
	uint64_t changes;	 /* (atomic) */
};

/* A part of a granule that is plugged; nobody stores to others. */
static void write_plugged(const struct model *m, uint64_t gpa)
{
	uint64_t g = roll(GRANULES / 2), words[64];

	if (!m->gone[g]) {
		for (unsigned int i = 0; i < 64; i++) {
			words[i] = test_rand(&rng);
		}
		gpa += g * GRANULE_BYTES + roll(GRANULE_BYTES - sizeof(words));
		ASSERT_EQ(gr_ram_write(ram, gr_gpa(gpa), words, sizeof(words), NULL), 0);
	}
}

static void change(struct model *m, uint64_t gpa, bool resizes)
{
	uint64_t g = roll(GRANULES), n = 1 + roll(GRANULES - g);
	bool gone;

	switch (roll(resizes ? 9 : 8)) {
	case 0:
		ASSERT_EQ(gr_ram_discard(m->block, g * GRANULE_BYTES, n * GRANULE_BYTES, NULL), 0);
		break;
	case 1:
	case 2:
		gone = roll(2) == 0;
		ASSERT_EQ((gone ? gr_ram_depopulate : gr_ram_populate)(
				  m->block, g * GRANULE_BYTES, n * GRANULE_BYTES, NULL), 0);
		memset(m->gone + g, gone, n);
		break;
	case 3:
		ASSERT_EQ(gr_ram_remap(m->block, roll(BYTES), 1, NULL),
			  m->block->backing == GR_RAM_CALLER ? -ENOTSUP : 0);
		break;
	case 8:
		ASSERT_EQ(gr_ram_block_resize(m->block, (PAGES / 2 + roll(PAGES / 2 + 1)) * MOVE_PAGE,
					      NULL), 0);
		break;
	default:
		write_plugged(m, gpa);
	}
}

static void *change_on(void *opaque)
{
	struct changer *c = opaque;

	while (move_guest_point(&c->guest)) {
		uint64_t i = roll(BLOCKS);

		change(&models[i], (i + 1) * STEP_BYTES,
		       __atomic_load_n(&c->resizes, __ATOMIC_RELAXED));
		if (__atomic_add_fetch(&c->changes, 1, __ATOMIC_RELAXED) % 16 == 0) {
			usleep(50); /* a move comes to its end some day */
		}
	}
	return NULL;
}

/* Whether it arrived; if not, a block was resized, and the guest runs on. */
static bool move_beside(struct changer *c, const struct gr_source_ops *ops)
{
	struct move m = { .from = ram, .to = move_ram(), .ops = ops };
	bool arrived;

	move_run(&m);
	arrived = m.rc == 0;
	if (arrived) {
		ASSERT_EQ(m.to_rc, 0);
		ASSERT_EQ(move_compare(ram, m.to), 0u); /* the guest stands still here */
		move_guest_resume(&c->guest);
	} else {
		ASSERT_HAS(m.err.msg, "was resized during the move");
		ASSERT_LT(m.to_rc, 0);
	}
	ASSERT_EQ(c->guest.pauses, c->guest.resumes);
	gr_ram_free(m.to);
	return arrived;
}

TEST(random_changes_by_another_thread_arrive_or_end_the_move)
{
	struct changer c = { .guest = { .others = 1 } };
	struct gr_source_ops ops = move_guest_ops(&c.guest);
	unsigned int moves = test_under_tsan() ? 10 : 60, arrived = 0, ended = 0;
	pthread_t thread;

	rng = test_seed();
	ram = c.guest.ram = move_ram();
	add_all();
	for (unsigned int i = 0; i < BLOCKS; i++) {
		struct gr_ram_region region = { .gpa = gr_gpa((i + 1) * STEP_BYTES), .bytes = BYTES / 2,
						.block = models[i].block };

		gr_ram_populate_listener_del(models[i].block, &models[i].listener);
		ASSERT_EQ(gr_ram_region_add(ram, &region, NULL), 0);
		move_fill(models[i].block, i + 1, 3);
	}
	move_guest_start(&c.guest);
	ASSERT_EQ(pthread_create(&thread, NULL, change_on, &c), 0);
	for (unsigned int i = 0; i < moves; i++) {
		bool resizes = i % 3 == 2;

		__atomic_store_n(&c.resizes, resizes, __ATOMIC_RELAXED);
		if (move_beside(&c, &ops)) {
			arrived++;
		} else {
			ended++;
		}
	}
	move_guest_stop(&c.guest);
	pthread_join(thread, NULL);
	test_diag("%u arrived, %u ended by a new length; %llu changes", arrived, ended,
		  (unsigned long long)c.changes);
	ASSERT_GE(arrived, moves / 4);
	for (unsigned int i = 0; i < BLOCKS; i++) {
		free(models[i].bytes);
		free(models[i].copy);
	}
	gr_ram_free(ram);
}

TEST_MAIN()

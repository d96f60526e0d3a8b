/* SPDX-License-Identifier: MIT */
/*
 * Moves of a machine whose guest writes, whose blocks come and go and which is backed up at
 * the same time, cut off and cancelled at random. What must hold:
 *
 *   - both ends agree on how it ended: never two running guests, never none;
 *   - after a success every byte and every block is the same on both sides;
 *   - the backup, another consumer of the same dirty memory, never misses a page,
 *     whatever the migrations do.
 */
#include "move.h"
#include <guestram/track.h>

enum {
	PAGES = 1024,
	BYTES = PAGES * MOVE_PAGE,
	HOT_SLOTS = 8,
	HOT_PAGES = 32,
};
#define HOT_GPA (UINT64_C(1) << 33)

/* A consumer with a copy of block "ram". */
struct backup {
	struct gr_ram *ram;
	struct gr_ram_block *block;
	struct gr_track *track;
	struct gr_dirty_consumer *consumer;
	uint8_t *copy;
	uint64_t seed;
	bool stop; /* (atomic) */
	pthread_t thread;
};

__attribute__((no_sanitize("thread"))) static void copy_page(uint8_t *to, const uint8_t *from)
{
	for (size_t i = 0; i < MOVE_PAGE; i += 8) {
		*(volatile uint64_t *)(void *)(to + i) =
			*(const volatile uint64_t *)(const void *)(from + i);
	}
}

/* One epoch; given up in the middle now and then. */
static void backup_round(struct backup *b, bool may_abort)
{
	uint64_t base = b->block->offset.v / MOVE_PAGE, first, n, at = base;
	bool giving_up = may_abort && test_rand(&b->seed) % 4 == 0;

	if (b->track) {
		ASSERT_EQ(gr_track_sync(b->track, NULL), 0);
	}
	ASSERT_EQ(gr_dirty_epoch_begin(b->consumer, NULL, NULL), 0);
	while (gr_dirty_epoch_next(b->consumer, at, &first, &n) && first < base + PAGES) {
		n = first + n > base + PAGES ? base + PAGES - first : n;
		if (b->track) {
			ASSERT_EQ(gr_track_rearm(b->track, b->block, (first - base) * MOVE_PAGE,
						 n * MOVE_PAGE, NULL),
				  0);
		}
		for (uint64_t i = first - base; i < first - base + n; i++) {
			copy_page(b->copy + i * MOVE_PAGE, b->block->host + i * MOVE_PAGE);
		}
		gr_dirty_epoch_done(b->consumer, first, n);
		at = first + n;
		if (giving_up && test_rand(&b->seed) % 8 == 0) {
			ASSERT_EQ(gr_dirty_epoch_abort(b->consumer), 0);
			return;
		}
	}
	ASSERT_EQ(gr_dirty_epoch_commit(b->consumer), 0);
}

static void *backup_main(void *opaque)
{
	struct backup *b = opaque;

	while (!__atomic_load_n(&b->stop, __ATOMIC_ACQUIRE)) {
		backup_round(b, true);
		usleep(1000);
	}
	return NULL;
}

/* Plugs and unplugs until the guest is stopped for the last time. */
struct plugger {
	struct gr_ram *ram;
	uint64_t seed;
	pthread_mutex_t lock;
	bool stop; /* (lock) */
	unsigned int plugs, unplugs, refused;
	pthread_t thread;
};

static void plug_one(struct plugger *p, unsigned int slot)
{
	char id[16];
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = id,
		.used_bytes = HOT_PAGES * MOVE_PAGE,
		.fd = -1,
		.backing = slot % 2 ? GR_RAM_ANONYMOUS : GR_RAM_MEMFD,
		.mapped = true,
		.gpa = gr_gpa(HOT_GPA + slot * HOT_PAGES * MOVE_PAGE),
	};
	int rc;

	snprintf(id, sizeof(id), "hot-%u", slot);
	rc = gr_ram_block_add(p->ram, &desc, NULL, NULL);
	if (rc == 0) {
		p->plugs++;
		return;
	}
	if (rc == -EEXIST) {
		rc = gr_ram_block_del_by_id(p->ram, id, NULL);
		p->unplugs += rc == 0;
	}
	ASSERT(rc == 0 || rc == -EBUSY);
	p->refused += rc == -EBUSY;
}

static void *plug_main(void *opaque)
{
	struct plugger *p = opaque;
	bool stop = false;

	while (!stop) {
		pthread_mutex_lock(&p->lock);
		stop = p->stop;
		if (!stop) {
			plug_one(p, (unsigned int)(test_rand(&p->seed) % HOT_SLOTS));
		}
		pthread_mutex_unlock(&p->lock);
		usleep((useconds_t)(test_rand(&p->seed) % 1500));
	}
	return NULL;
}

/* What writes without marks: only with a tracker that sees it. */
struct storer {
	struct gr_ram_block *block;
	struct move_guest *guest;
	uint64_t seed;
	pthread_t thread;
};

static void *store_main(void *opaque)
{
	struct storer *s = opaque;
	uint64_t *words = (uint64_t *)(void *)s->block->host;

	/* Counts as one of the guest's writers: it parks with them. */
	while (move_guest_point(s->guest)) {
		uint64_t where = test_rand(&s->seed);

		__atomic_store_n(&words[where % (BYTES / 8)], where, __ATOMIC_RELAXED);
		usleep(20);
	}
	return NULL;
}

struct world {
	struct move_guest guest;
	struct gr_source_ops ops;
	struct backup backup;
	struct plugger plugger;
	struct storer storer;
	struct gr_ram *ram;
	struct gr_track *track;
	bool last; /* this move's pause ends the plugging */
};

static int world_pause(void *opaque, struct gr_error *err)
{
	struct world *w = opaque;
	int rc = move_guest_pause(&w->guest, err);

	if (w->last) {
		pthread_mutex_lock(&w->plugger.lock);
		w->plugger.stop = true;
		pthread_mutex_unlock(&w->plugger.lock);
	}
	return rc;
}

static void world_resume(void *opaque)
{
	struct world *w = opaque;

	move_guest_resume(&w->guest);
}

static int world_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct world *w = opaque;

	return move_guest_save(&w->guest, writer, err);
}

static void world_start(struct world *w, uint64_t *seed, bool plugging, bool uffd)
{
	struct gr_error err;

	w->ram = move_ram();
	w->ops = (struct gr_source_ops){
		.pause = world_pause, .resume = world_resume, .save = world_save, .opaque = w
	};
	w->backup.block = move_add(w->ram, "ram", BYTES, 0, GR_RAM_MEMFD);
	move_add(w->ram, "second", 64 * MOVE_PAGE, UINT64_C(1) << 32, GR_RAM_ANONYMOUS);
	move_fill(w->backup.block, test_rand(seed), 5);
	if (uffd) {
		ASSERT_EQ(gr_track_create(w->ram, &w->track, &err), 0);
		if (gr_track_use(w->track, GR_TRACKER_UFFD_WP, NULL, &err) < 0) {
			SKIP("%s", err.msg);
		}
		/* For the backup, which was there before the migration. */
		ASSERT_EQ(gr_track_start(w->track, GR_WRITERS_MAPPING | GR_WRITERS_MARKED, &err),
			  0);
	}
	w->backup.ram = w->ram;
	w->backup.track = w->track;
	w->backup.seed = test_rand(seed);
	w->backup.copy = calloc(1, BYTES);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(w->ram), "backup", GR_DIRTY_START_FULL,
					&w->backup.consumer, NULL),
		  0);
	w->guest = (struct move_guest){
		.ram = w->ram,
		.bytes = BYTES,
		.writers = 2,
		.pause_us = 20,
		.seed = test_rand(seed),
		.hot_gpa = HOT_GPA,
		.hot_step = HOT_PAGES * MOVE_PAGE,
		.hot_slots = plugging ? HOT_SLOTS : 0,
	};
	move_guest_start(&w->guest);
	if (uffd) {
		w->storer = (struct storer){ w->backup.block, &w->guest, test_rand(seed), 0 };
		pthread_mutex_lock(&w->guest.lock);
		w->guest.others = 1;
		pthread_mutex_unlock(&w->guest.lock);
		ASSERT_EQ(pthread_create(&w->storer.thread, NULL, store_main, &w->storer), 0);
	}
	ASSERT_EQ(pthread_create(&w->backup.thread, NULL, backup_main, &w->backup), 0);
	w->plugger.ram = w->ram;
	w->plugger.seed = test_rand(seed);
	pthread_mutex_init(&w->plugger.lock, NULL);
	w->plugger.stop = !plugging;
	ASSERT_EQ(pthread_create(&w->plugger.thread, NULL, plug_main, &w->plugger), 0);
}

/* The guest stands still; the backup makes its last round and must have everything. */
static void world_end(struct world *w)
{
	pthread_join(w->plugger.thread, NULL);
	__atomic_store_n(&w->backup.stop, true, __ATOMIC_RELEASE);
	pthread_join(w->backup.thread, NULL);
	backup_round(&w->backup, false);
	ASSERT_MEM_EQ(w->backup.copy, w->backup.block->host, BYTES);
	gr_dirty_consumer_del(w->backup.consumer);
	move_guest_stop(&w->guest);
	if (w->track) {
		pthread_join(w->storer.thread, NULL);
		gr_track_stop(w->track);
		gr_track_free(w->track);
	}
	free(w->backup.copy);
	gr_ram_free(w->ram);
}

/* What happens to a move on its way. */
enum accident { NONE, CANCEL_SOURCE, CANCEL_DESTINATION, CUT };

struct trouble {
	struct move *m;
	enum accident what;
	uint64_t after_bytes;
	bool over; /* (atomic) */
};

static void *trouble_main(void *opaque)
{
	struct trouble *t = opaque;

	while (gr_channel_bytes_written(t->m->ch[0]) < t->after_bytes &&
	       !__atomic_load_n(&t->over, __ATOMIC_ACQUIRE)) {
		usleep(20);
	}
	if (t->what == CANCEL_SOURCE) {
		gr_source_cancel(t->m->source);
	} else if (t->what == CANCEL_DESTINATION) {
		gr_destination_cancel(t->m->destination);
	} else if (t->what == CUT) {
		gr_channel_shutdown(t->m->ch[1]);
	}
	return NULL;
}

static struct gr_ram *move_once(struct world *w, enum accident what, uint64_t after_bytes,
				struct move *m)
{
	struct trouble t = { m, what, after_bytes, false };
	unsigned int resumes = w->guest.resumes;
	pthread_t receiver, troubler;

	*m = (struct move){ .from = w->ram, .to = move_ram(), .track = w->track, .ops = &w->ops };
	m->params.rounds_max = 6;
	m->params.xbzrle_cache_bytes = after_bytes % 3 * 40 * MOVE_PAGE;
	if (w->track) {
		m->params.writers = GR_WRITERS_MAPPING | GR_WRITERS_MARKED;
	}
	move_prepare(m);
	ASSERT_EQ(pthread_create(&receiver, NULL, move_receive, m), 0);
	ASSERT_EQ(pthread_create(&troubler, NULL, trouble_main, &t), 0);
	m->rc = gr_source_run(m->source, &m->err);
	__atomic_store_n(&t.over, true, __ATOMIC_RELEASE);
	pthread_join(receiver, NULL);
	pthread_join(troubler, NULL);
	move_finish(m);
	/* One guest, whatever happened. */
	if ((m->rc == 0) != (m->to_rc == 0)) {
		FAIL("accident %d after %llu bytes: source %d '%s', destination %d '%s'", (int)what,
		     (unsigned long long)after_bytes, m->rc, m->err.msg, m->to_rc, m->to_err.msg);
	}
	ASSERT(m->rc != 0 || m->stats.state == GR_MIGRATE_COMPLETED);
	ASSERT(m->rc == 0 || w->guest.resumes - resumes <= 1);
	return m->to;
}

static void moves(bool plugging, bool uffd, int accidents)
{
	uint64_t seed = test_seed();
	struct world w = { .last = false };
	struct gr_ram *to;
	struct move m;
	unsigned int announced = 0;

	world_start(&w, &seed, plugging, uffd);
	for (int i = 0; i < accidents; i++) {
		uint64_t after = test_rand(&seed) % (BYTES * 5 / 4);
		enum accident what = (enum accident)(CANCEL_SOURCE + test_rand(&seed) % 3);

		to = move_once(&w, what, after, &m);
		if (m.rc == 0) {
			/* The accident came late. The guest here goes on all the same. */
			move_guest_resume(&w.guest);
		}
		gr_ram_free(to);
	}
	w.last = true;
	to = move_once(&w, NONE, UINT64_MAX, &m);
	announced = (unsigned int)m.stats.blocks_announced;
	if (m.rc != 0) {
		FAIL("source '%s', destination '%s'", m.err.msg, m.to_rc ? m.to_err.msg : "");
	}
	pthread_mutex_lock(&w.plugger.lock);
	w.plugger.stop = true;
	pthread_mutex_unlock(&w.plugger.lock);
	ASSERT_EQ(move_compare(w.ram, to), 0u);
	test_diag("%u plugs, %u unplugs, %u refused, announced %u times in the last move",
		  w.plugger.plugs, w.plugger.unplugs, w.plugger.refused, announced);
	ASSERT_LE(m.stats.section_ns_max, 1000000000u);
	world_end(&w);
	gr_ram_free(to);
}

TEST(a_machine_that_writes_and_is_backed_up_survives_accidents_and_moves)
{
	moves(false, false, 12);
}

TEST(blocks_that_come_and_go_arrive_or_are_gone)
{
	for (int i = 0; i < 5; i++) {
		moves(true, false, 2);
	}
}

TEST(unmarked_stores_arrive_too_when_a_tracker_sees_them)
{
	moves(false, true, 4);
}

TEST(unmarked_stores_and_plugging_together)
{
	moves(true, true, 3);
}

TEST_MAIN()

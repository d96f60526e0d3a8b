/* SPDX-License-Identifier: MIT */
/* The driver: who is covered, what is started when, what happens under plug and unplug. */
#include "base/compiler.h"
#include "harness.h"
#include "track/report.h"
#include "track/tracker.h"
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum { PAGE = 4096 };

static struct gr_ram *make_ram(uint32_t page_bytes)
{
	struct gr_ram_params params = { .size = sizeof(params), .page_bytes = page_bytes };
	struct gr_ram *ram;

	ASSERT_EQ(gr_ram_create(&params, &ram, NULL), 0);
	return ram;
}

static struct gr_ram_block *plug(struct gr_ram *ram, const char *id, uint64_t bytes)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = id,
					  .used_bytes = bytes,
					  .backing = GR_RAM_ANONYMOUS,
					  .fd = -1 };
	struct gr_ram_block *block;
	struct gr_error err;

	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

/* ---- a tracker that writes down what it is told --------------------------------------- */

struct spy {
	struct gr_tracker base;
	char log[4096];
	const char *refuse; /* the id of a block, or an op, that it does not want */
	bool gone_while_syncing;
	bool fail_sync;
	bool *destroyed;
};

static struct spy *spy_of(struct gr_tracker *t)
{
	return gr_container_of(t, struct spy, base);
}

static void note(struct spy *s, const char *op, const char *what)
{
	size_t at = strlen(s->log);

	(void)snprintf(s->log + at, sizeof(s->log) - at, "%s%s%s ", op, what ? ":" : "",
		       what ? what : "");
}

static int note_or_refuse(struct spy *s, const char *op, const char *what, struct gr_error *err)
{
	if (s->refuse && strcmp(s->refuse, what ? what : op) == 0) {
		return gr_error_set(err, -EPERM, "the spy refuses %s", s->refuse);
	}
	note(s, op, what);
	return 0;
}

static void spy_destroy(struct gr_tracker *t)
{
	if (spy_of(t)->destroyed) {
		*spy_of(t)->destroyed = true;
	}
	free(spy_of(t));
}

static int spy_start(struct gr_tracker *t, struct gr_error *err)
{
	return note_or_refuse(spy_of(t), "start", NULL, err);
}

static void spy_stop(struct gr_tracker *t)
{
	note(spy_of(t), "stop", NULL);
}

static int spy_block_add(struct gr_tracker *t, struct gr_ram_block *block, struct gr_error *err)
{
	return note_or_refuse(spy_of(t), "add", block->id, err);
}

static void spy_block_del(struct gr_tracker *t, struct gr_ram_block *block)
{
	note(spy_of(t), "del", block->id);
}

static int spy_region_add(struct gr_tracker *t, const struct gr_ram_region *region,
			  struct gr_error *err)
{
	return note_or_refuse(spy_of(t), "map", region->block->id, err);
}

static void spy_region_del(struct gr_tracker *t, const struct gr_ram_region *region)
{
	note(spy_of(t), "unmap", region->block->id);
}

static void *unplug_thread(void *block)
{
	ASSERT_EQ(gr_ram_block_del(block, NULL), 0);
	return NULL;
}

static int spy_sync_block(struct gr_tracker *t, struct gr_ram_block *block, struct gr_error *err)
{
	struct spy *s = spy_of(t);
	pthread_t thread;

	note(s, "sync", block->id);
	if (s->gone_while_syncing) {
		/* Not stopped by the sync: the thread ends while we are in here. */
		ASSERT_EQ(pthread_create(&thread, NULL, unplug_thread, block), 0);
		ASSERT_EQ(pthread_join(thread, NULL), 0);
		block->host[0] = 1; /* its memory is still there */
	}
	if (s->gone_while_syncing || s->fail_sync) {
		return gr_error_set(err, -EPERM, "no such memory");
	}
	return 0;
}

static int spy_rearm(struct gr_tracker *t, struct gr_ram_block *block, uint64_t offset,
		     uint64_t bytes, struct gr_error *err)
{
	(void)offset;
	(void)bytes;
	return note_or_refuse(spy_of(t), "rearm", block->id, err);
}

static const struct gr_tracker_ops spy_ops = {
	.name = "spy",
	.covers = GR_WRITERS_KVM_VCPUS,
	.destroy = spy_destroy,
	.start = spy_start,
	.stop = spy_stop,
	.block_add = spy_block_add,
	.block_del = spy_block_del,
	.region_add = spy_region_add,
	.region_del = spy_region_del,
	.sync_block = spy_sync_block,
	.rearm = spy_rearm,
};

static struct spy *use_spy(struct gr_track *track)
{
	struct spy *s = calloc(1, sizeof(*s));

	ASSERT(s);
	s->base.ops = &spy_ops;
	ASSERT_EQ(gr_track_use_tracker(track, &s->base, NULL), 0);
	return s;
}

struct rig {
	struct gr_ram *ram;
	struct gr_track *track;
	struct spy *spy;
};

static struct rig make_rig(void)
{
	struct rig r = { .ram = make_ram(PAGE) };

	ASSERT_EQ(gr_track_create(r.ram, &r.track, NULL), 0);
	r.spy = use_spy(r.track);
	return r;
}

static void free_rig(struct rig *r)
{
	gr_track_free(r->track);
	gr_ram_free(r->ram);
}

/* ---- coverage ------------------------------------------------------------------------- */

static void expect_refusal(struct gr_track *track, unsigned int writers, const char *who,
			   const char *advice)
{
	struct gr_error err;

	ASSERT_EQ(gr_track_start(track, writers, &err), -EINVAL);
	ASSERT_EQ(err.code, -EINVAL);
	ASSERT_HAS(err.msg, who);
	ASSERT_HAS(err.msg, advice);
}

TEST(software_alone_covers_only_code_that_marks)
{
	struct gr_ram *ram = make_ram(PAGE);
	struct gr_track *track;
	char names[64];

	ASSERT_EQ(gr_track_create(ram, &track, NULL), 0);
	expect_refusal(track, GR_WRITERS_MAPPING | GR_WRITERS_MARKED,
		       "stores and system calls of this process", "(software)");
	expect_refusal(track, GR_WRITERS_KVM_VCPUS, "virtual CPUs of KVM",
		       "kvm-log, kvm-ring, uffd-wp and uffd-sync see them");
	expect_refusal(track, GR_WRITERS_OUTSIDE, "another process", "no tracker of this version");
	expect_refusal(track, 1u << 20, "unknown writers", "0x100000");
	ASSERT_EQ(gr_track_start(track, GR_WRITERS_MARKED, NULL), 0);
	gr_track_describe(track, names, sizeof(names));
	ASSERT_STR_EQ(names, "software");
	gr_track_stop(track);
	gr_track_free(track);
	gr_ram_free(ram);
}

TEST(a_refusal_names_the_trackers_in_use_and_starts_none)
{
	struct rig r = make_rig();
	char names[64], cut[6];

	expect_refusal(r.track, GR_WRITERS_KVM_VCPUS | GR_WRITERS_MAPPING, "through the blocks",
		       "(spy+software)");
	expect_refusal(r.track, ~0u, "another mapping", "(spy+software)");
	ASSERT_STR_EQ(r.spy->log, "");
	gr_track_describe(r.track, names, sizeof(names));
	ASSERT_STR_EQ(names, "spy+software");
	gr_track_describe(r.track, cut, sizeof(cut));
	ASSERT_STR_EQ(cut, "spy+s");
	free_rig(&r);
}

TEST(the_second_start_is_checked_too)
{
	struct rig r = make_rig();

	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_KVM_VCPUS, NULL), 0);
	expect_refusal(r.track, GR_WRITERS_MAPPING, "mapping", "spy");
	ASSERT_STR_EQ(r.spy->log, "start ");
	free_rig(&r);
}

/* ---- start and stop ------------------------------------------------------------------- */

TEST(trackers_see_what_is_there_and_what_changes_from_start_to_stop)
{
	struct rig r = make_rig();
	struct gr_ram_block *a = plug(r.ram, "a", 64 * PAGE), *b;
	struct gr_ram_region map = { gr_gpa(0), 64 * PAGE, a, 0, false };

	ASSERT_EQ(gr_ram_region_add(r.ram, &map, NULL), 0);
	ASSERT_STR_EQ(r.spy->log, "");
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_KVM_VCPUS, NULL), 0);
	ASSERT_STR_EQ(r.spy->log, "start add:a map:a ");
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, NULL), 0);
	r.spy->log[0] = '\0';
	b = plug(r.ram, "b", PAGE);
	ASSERT_EQ(gr_track_sync(r.track, NULL), 0);
	ASSERT_STR_EQ(r.spy->log, "add:b sync:a sync:b ");
	r.spy->log[0] = '\0';
	ASSERT_EQ(gr_track_rearm(r.track, a, 0, PAGE, NULL), 0);
	ASSERT_EQ(gr_ram_block_del(b, NULL), 0);
	gr_track_stop(r.track);
	ASSERT_EQ(gr_track_sync(r.track, NULL), 0);
	ASSERT_STR_EQ(r.spy->log, "rearm:a del:b sync:a ");
	r.spy->log[0] = '\0';
	gr_track_stop(r.track);
	ASSERT_STR_EQ(r.spy->log, "unmap:a del:a stop ");
	/* Neither plugs nor syncs reach it now. */
	plug(r.ram, "c", PAGE);
	ASSERT_EQ(gr_track_sync(r.track, NULL), 0);
	ASSERT_EQ(gr_track_rearm(r.track, a, 0, PAGE, NULL), 0);
	ASSERT_STR_EQ(r.spy->log, "unmap:a del:a stop ");
	r.spy->log[0] = '\0';
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, NULL), 0);
	ASSERT_HAS(r.spy->log, "start add:");
	free_rig(&r);
}

TEST(a_start_that_is_refused_leaves_nothing_behind)
{
	struct rig r = make_rig();
	struct spy *second = use_spy(r.track);
	struct gr_error err;

	plug(r.ram, "a", 64 * PAGE);
	plug(r.ram, "b", 64 * PAGE);
	second->refuse = "b";
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, &err), -EPERM);
	ASSERT_HAS(err.msg, "the spy refuses b");
	ASSERT_STR_EQ(r.spy->log, "start add:a add:b del:b del:a stop ");
	ASSERT_STR_EQ(second->log, "start add:a del:a stop ");
	r.spy->log[0] = second->log[0] = '\0';
	second->refuse = "start";
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, &err), -EPERM);
	ASSERT_STR_EQ(r.spy->log, "start stop ");
	ASSERT_STR_EQ(second->log, "");
	second->refuse = NULL;
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, &err), 0);
	free_rig(&r);
}

TEST(a_plug_that_a_tracker_refuses_does_not_happen)
{
	struct rig r = make_rig();
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "no", .used_bytes = PAGE, .fd = -1
	};
	struct gr_error err;

	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, NULL), 0);
	r.spy->refuse = "no";
	ASSERT_EQ(gr_ram_block_add(r.ram, &desc, NULL, &err), -EPERM);
	ASSERT_HAS(err.msg, "the spy refuses no");
	ASSERT_EQ(gr_track_sync(r.track, NULL), 0);
	ASSERT_STR_EQ(r.spy->log, "start ");
	free_rig(&r);
}

TEST(use_comes_before_start_and_once)
{
	struct rig r = make_rig();
	struct gr_error err;
	bool destroyed = false;
	struct spy *late;

	ASSERT_EQ(gr_track_use(r.track, GR_TRACKER_SOFTWARE, NULL, &err), -EEXIST);
	ASSERT_HAS(err.msg, "'software' is in use already");
	ASSERT_EQ(gr_track_use(r.track, (enum gr_tracker_kind)77, NULL, &err), -ENOTSUP);
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, NULL), 0);
	ASSERT_EQ(gr_track_use(r.track, GR_TRACKER_UFFD_WP, NULL, &err), -EBUSY);
	ASSERT_HAS(err.msg, "tracking has started");
	late = calloc(1, sizeof(*late));
	ASSERT(late);
	late->base.ops = &spy_ops;
	late->destroyed = &destroyed;
	ASSERT_EQ(gr_track_use_tracker(r.track, &late->base, &err), -EBUSY);
	ASSERT(destroyed);
	free_rig(&r);
}

/* ---- sync ----------------------------------------------------------------------------- */

TEST(a_block_may_go_while_a_sync_works_on_it)
{
	struct rig r = make_rig();
	struct gr_error err;

	plug(r.ram, "a", 64 * PAGE);
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, NULL), 0);
	r.spy->gone_while_syncing = true;
	if (gr_track_sync(r.track, &err) < 0) {
		FAIL("%s", err.msg);
	}
	r.spy->gone_while_syncing = false;
	ASSERT_EQ(gr_track_sync(r.track, NULL), 0);
	ASSERT_STR_EQ(r.spy->log, "start add:a sync:a del:a ");
	free_rig(&r);
}

TEST(a_sync_that_fails_says_so_and_does_the_rest)
{
	struct rig r = make_rig();
	struct spy *second = use_spy(r.track);
	struct gr_error err;

	plug(r.ram, "a", 64 * PAGE);
	plug(r.ram, "b", 64 * PAGE);
	ASSERT_EQ(gr_track_start(r.track, GR_WRITERS_MARKED, NULL), 0);
	r.spy->fail_sync = true;
	ASSERT_EQ(gr_track_sync(r.track, &err), -EPERM);
	ASSERT_STR_EQ(err.msg, "spy: no such memory");
	ASSERT_HAS(r.spy->log, "sync:a sync:b");
	ASSERT_HAS(second->log, "sync:a sync:b");
	ASSERT_EQ(gr_track_sync(r.track, NULL), -EPERM);
	r.spy->refuse = "a";
	ASSERT_EQ(gr_track_rearm(r.track, plug(r.ram, "c", PAGE), 0, PAGE, NULL), 0);
	free_rig(&r);
}

/* ---- reports -------------------------------------------------------------------------- */

struct marks {
	struct gr_dirty_consumer *consumer;
	uint64_t pages;
	bool page[4096];
};

/* What was marked since the last look, in pages of the RAM address space. */
static void look(struct marks *m)
{
	uint64_t first, n;

	memset(m->page, 0, sizeof(m->page));
	ASSERT_EQ(gr_dirty_epoch_begin(m->consumer, &m->pages, NULL), 0);
	for (uint64_t at = 0; gr_dirty_epoch_next(m->consumer, at, &first, &n); at = first + n) {
		ASSERT_LE(first + n, (uint64_t)GR_ARRAY_SIZE(m->page));
		memset(&m->page[first], true, n);
	}
	ASSERT_EQ(gr_dirty_epoch_commit(m->consumer), 0);
}

static void watch(struct marks *m, struct gr_ram *ram)
{
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "watch", GR_DIRTY_START_CLEAN,
					&m->consumer, NULL),
		  0);
	look(m);
}

TEST(a_reported_range_is_widened_to_pages_and_cut_at_the_block)
{
	static struct marks m;
	struct gr_ram *ram = make_ram(PAGE);
	struct gr_ram_block *a = plug(ram, "a", 64 * PAGE), *b = plug(ram, "b", 64 * PAGE);
	uint64_t base = b->offset.v / PAGE;

	(void)a;
	watch(&m, ram);
	gr_report_range(b, 3 * PAGE + 5, PAGE);
	look(&m);
	ASSERT_EQ(m.pages, 2u);
	ASSERT(m.page[base + 3] && m.page[base + 4]);
	gr_report_range(b, 63 * PAGE, UINT64_MAX);
	look(&m);
	ASSERT_EQ(m.pages, 1u);
	ASSERT(m.page[base + 63]);
	gr_report_range(b, 64 * PAGE, PAGE);
	gr_report_range(b, 5, 0);
	look(&m);
	ASSERT_EQ(m.pages, 0u);
	gr_dirty_consumer_del(m.consumer);
	gr_ram_free(ram);
}

/* The kernel's page size and the guest's need not be the same, nor words line up. */
TEST(a_reported_bitmap_marks_its_pages_whatever_the_page_sizes)
{
	static struct marks m;
	static const uint32_t sizes[] = { 4096, 16384, 1024 };
	uint64_t rnd = test_seed();

	for (int round = 0; round < 300; round++) {
		uint32_t guest = sizes[round % 3];
		struct gr_ram *ram = make_ram(guest);
		struct gr_ram_block *block = plug(ram, "a", 1 << 20);
		uint64_t unit = guest > 4096 ? guest : 4096;
		uint64_t offset = test_rand(&rnd) % 20 * unit;
		uint64_t pages = 1 + test_rand(&rnd) % ((block->max_bytes - offset) / 4096);
		uint64_t words[5], ones = 0;
		bool want[1024] = { false };

		for (size_t i = 0; i < GR_ARRAY_SIZE(words); i++) {
			words[i] = test_rand(&rnd);
			words[i] &= test_rand(&rnd) | (round % 7 ? 0 : ~0ull);
			words[i] = htole64(words[i]);
		}
		for (uint64_t i = 0; i < pages; i++) {
			if (le64toh(words[i / 64]) >> (i % 64) & 1) {
				uint64_t from = offset + i * 4096, to = from + 4096;

				ones++;
				for (uint64_t p = from / guest; p * guest < to; p++) {
					want[p] = true;
				}
			}
		}
		watch(&m, ram);
		ASSERT_EQ(gr_report_le(block, offset, words, pages, 4096), ones);
		look(&m);
		for (size_t i = 0; i < (1u << 20) / guest; i++) {
			ASSERT_EQ(m.page[block->offset.v / guest + i], want[i]);
		}
		gr_dirty_consumer_del(m.consumer);
		gr_ram_free(ram);
	}
}

TEST(a_big_report_is_cut_into_sections)
{
	struct gr_ram *ram = make_ram(1024);
	/* Room in the address space only: nothing of it is touched. */
	struct gr_ram_block *block = plug(ram, "big", 5ull << 30);
	struct gr_dirty_consumer *c;
	uint64_t pages;

	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(ram), "c", GR_DIRTY_START_CLEAN, &c, NULL), 0);
	gr_report_range(block, 1024, (5ull << 30) - 1024);
	ASSERT_EQ(gr_dirty_epoch_begin(c, &pages, NULL), 0);
	ASSERT_EQ(pages, (5ull << 20) - 1);
	gr_dirty_consumer_del(c);
	gr_ram_free(ram);
}

TEST_MAIN()

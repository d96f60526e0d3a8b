/* SPDX-License-Identifier: MIT */
/*
 * Snapshots, step by step: what is in the image is what was there at the moment, the buffer has its
 * bound, and however it ends the guest runs on and no file is left that is not whole. On both kinds
 * of memory.
 */
#include "concurrent.h"
#include "ram/copy.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/image.h>
#include <guestram/ram_change.h>
#include <guestram/snapshot.h>
#include <guestram/track.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 256, STATE_MAX = 8 };

struct rig {
	struct gr_ram *ram;
	struct gr_ram_block *block;
	struct gr_snapshot *snapshot;
	char dir[32], path[64], part[80];
	uint64_t state; /* of the device, saved */
	unsigned int pauses, resumes;
	bool running;
	bool hasty; /* it writes as soon as it runs */
	int fail_pause, fail_save;
};

static int on_pause(void *opaque, struct gr_error *err)
{
	struct rig *r = opaque;

	if (r->fail_pause != 0) {
		return gr_error_set(err, r->fail_pause, "told to fail");
	}
	ASSERT(r->running);
	r->running = false;
	r->pauses++;
	return 0;
}

static void on_resume(void *opaque)
{
	struct rig *r = opaque;

	ASSERT(!r->running);
	r->running = true;
	r->resumes++;
	if (r->hasty) {
		r->state++;
		memset(r->block->host, 0xee, PAGES * PAGE);
	}
}

static int on_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct rig *r = opaque;

	if (r->fail_save != 0) {
		return gr_error_set(err, r->fail_save, "told to fail");
	}
	return gr_state_put(writer, "test/state", 0, 1, &r->state, sizeof(r->state), err);
}

static struct gr_ram_block *plug(struct gr_ram *ram, struct gr_ram_block_desc desc)
{
	struct gr_ram_block *block;
	struct gr_error err;

	desc.size = sizeof(desc);
	if (desc.backing != GR_RAM_FD) {
		desc.fd = -1;
	}
	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return block;
}

static volatile uint8_t *at(struct rig *r, unsigned int page)
{
	return r->block->host + (size_t)page * PAGE;
}

/* Page n begins with this; the holes are never touched. */
static uint8_t content(unsigned int page)
{
	return page % 8 == 0 ? 0 : (uint8_t)(page % 255 + 1);
}

static struct rig *make_rig(enum gr_ram_backing backing)
{
	struct rig *r = calloc(1, sizeof(*r));

	ASSERT(r);
	(void)snprintf(r->dir, sizeof(r->dir), "/tmp/gr-snapshot-XXXXXX");
	ASSERT(mkdtemp(r->dir));
	(void)snprintf(r->path, sizeof(r->path), "%s/vm.ram", r->dir);
	(void)snprintf(r->part, sizeof(r->part), "%s.part", r->path);
	ASSERT_EQ(gr_ram_create(NULL, &r->ram, NULL), 0);
	r->block = plug(r->ram, (struct gr_ram_block_desc){ .id = "ram",
							    .used_bytes = PAGES * PAGE,
							    .max_bytes = 2 * PAGES * PAGE,
							    .backing = backing });
	for (unsigned int i = 0; i < PAGES; i++) {
		if (i % 8 != 0) {
			*at(r, i) = content(i);
		}
	}
	r->running = true;
	r->state = 42;
	return r;
}

static void free_rig(struct rig *r)
{
	gr_snapshot_free(r->snapshot);
	gr_ram_free(r->ram);
	(void)unlink(r->path);
	ASSERT_EQ(rmdir(r->dir), 0); /* nothing else is left */
	free(r);
}

static int try_create(struct rig *r, struct gr_snapshot_params params, struct gr_error *err)
{
	const struct gr_source_ops ops = {
		.pause = on_pause, .resume = on_resume, .save = on_save, .opaque = r
	};

	params.size = sizeof(params);
	params.writers = params.writers ? params.writers : GR_WRITERS_STORES;
	return gr_snapshot_create(r->ram, r->path, &params, &ops, &r->snapshot, err);
}

/* Created, and its moment has been. */
static void start(struct rig *r, struct gr_snapshot_params params)
{
	struct gr_error err;
	int ret;

	if (try_create(r, params, &err) < 0) {
		FAIL("%s", err.msg);
	}
	ret = gr_snapshot_step(r->snapshot, &err);
	if (ret == -ENOTSUP || ret == -EPERM) {
		SKIP("%s", err.msg);
	}
	if (ret < 0) {
		FAIL("%s", err.msg);
	}
	ASSERT_EQ(ret, 1);
	ASSERT(r->running);
}

static void finish(struct rig *r)
{
	struct gr_snapshot_stats stats;
	struct gr_error err;

	if (gr_snapshot_run(r->snapshot, &err) < 0) {
		FAIL("%s", err.msg);
	}
	gr_snapshot_stats(r->snapshot, &stats);
	ASSERT_EQ((int)stats.move.state, (int)GR_MIGRATE_COMPLETED);
	ASSERT_EQ((stats.move.normal_pages + stats.move.zero_pages) * PAGE, stats.move.total_bytes);
	ASSERT_EQ(stats.move.remaining_bytes, 0u);
	ASSERT_EQ(stats.buffered_bytes, 0u);
	ASSERT_LE(stats.buffered_bytes_max, stats.buffer_bytes);
	ASSERT_EQ(r->pauses, r->resumes);
}

/* It has failed with that, and nothing has changed but what the guest did. */
static void expect_failed(struct rig *r, int code, const char *says)
{
	struct gr_snapshot_stats stats;
	struct gr_error err = { .code = 0 };

	ASSERT_EQ(gr_snapshot_run(r->snapshot, &err), code);
	ASSERT_HAS(err.msg, says);
	gr_snapshot_stats(r->snapshot, &stats);
	ASSERT_EQ((int)stats.move.state,
		  (int)(code == -ECANCELED ? GR_MIGRATE_CANCELLED : GR_MIGRATE_FAILED));
	ASSERT(r->running);
	ASSERT_EQ(access(r->part, F_OK), -1);
	ASSERT_EQ(gr_snapshot_run(r->snapshot, &err), code); /* and so it stays */
}

/* The image has this block as it was, page by page. */
static void expect_image(struct rig *r, const char *id, unsigned int pages)
{
	struct gr_image_block info;
	struct gr_image *image;
	struct gr_error err;
	uint8_t page[PAGE];
	uint32_t index = 0;

	if (gr_image_open(r->path, &image, &err) < 0) {
		FAIL("%s", err.msg);
	}
	while (gr_image_block(image, index, &info) == 0 && strcmp(info.id, id) != 0) {
		index++;
	}
	ASSERT_EQ(gr_image_block(image, index, &info), 0);
	ASSERT_EQ(info.used_bytes, (uint64_t)pages * PAGE);
	for (unsigned int i = 0; i < pages; i++) {
		ASSERT_EQ(gr_image_read(image, index, (uint64_t)i * PAGE, page, PAGE, NULL), 0);
		if (page[0] != content(i)) {
			FAIL("page %u of '%s' begins with %u, not %u", i, id, page[0], content(i));
		}
	}
	gr_image_close(image);
}

struct store {
	struct rig *r;
	unsigned int first, pages;
	uint32_t done; /* (a) pages written */
	uint32_t tid;  /* (a) */
};

static void *store(void *opaque)
{
	struct store *s = opaque;

	__atomic_store_n(&s->tid, (uint32_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
	for (unsigned int i = 0; i < s->pages; i++) {
		gr_fill_guest((uint8_t *)(uintptr_t)at(s->r, s->first + i), 0xee, PAGE);
		__atomic_add_fetch(&s->done, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void wait_until_done(const struct store *s, uint32_t pages)
{
	uint64_t deadline = now_ns() + UINT64_C(30000000000);

	while (__atomic_load_n(&s->done, __ATOMIC_ACQUIRE) < pages) {
		if (now_ns() > deadline) {
			FAIL("%u pages were written, not %u", LOAD(&s->done), pages);
		}
		sched_yield();
	}
}

/* It sleeps in nothing but a store. */
static void wait_until_it_waits(const struct store *s)
{
	uint64_t deadline = now_ns() + UINT64_C(30000000000);
	char path[64], state;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/self/task/%u/stat",
		       __atomic_load_n(&s->tid, __ATOMIC_ACQUIRE));
	do {
		state = '?';
		f = fopen(path, "r");
		ASSERT(f && fscanf(f, "%*u (%*[^)]) %c", &state) == 1);
		(void)fclose(f);
		if (now_ns() > deadline) {
			FAIL("the writer does not wait: '%c'", state);
		}
	} while (state == 'R');
}

static void wait_until_kept(struct rig *r)
{
	uint64_t deadline = now_ns() + UINT64_C(30000000000);
	struct gr_snapshot_stats stats;

	do {
		gr_snapshot_stats(r->snapshot, &stats);
		if (now_ns() > deadline) {
			FAIL("the buffer has %llu bytes", (unsigned long long)stats.buffered_bytes);
		}
		sched_yield();
	} while (stats.buffered_bytes + PAGE <= stats.buffer_bytes);
}

/* Every test below runs on both kinds of memory. */
#define ON_BOTH(name)                                  \
	static void name(enum gr_ram_backing backing); \
	TEST(name##_memfd)                             \
	{                                              \
		name(GR_RAM_MEMFD);                    \
	}                                              \
	TEST(name##_anonymous)                         \
	{                                              \
		name(GR_RAM_ANONYMOUS);                \
	}                                              \
	static void name(enum gr_ram_backing backing)

/* ---- the moment ------------------------------------------------------------------------ */

ON_BOTH(the_image_has_what_was_there_at_the_moment)
{
	struct rig *r = make_rig(backing);
	struct gr_snapshot_stats stats;

	start(r, (struct gr_snapshot_params){ .size = 0 });
	ASSERT_EQ(r->pauses, 1u);
	/* Present, a hole, zeroes over it, one twice, the first, the last. */
	for (unsigned int n = 0; n < 2; n++) {
		*at(r, 3) = 0xe0;
		*at(r, 16) = 0xe1;
		*at(r, 5) = 0;
		*at(r, 0) = 0xe2;
		*at(r, PAGES - 1) = 0xe3;
	}
	gr_snapshot_stats(r->snapshot, &stats);
	ASSERT_EQ(stats.copied_pages, 3u); /* a hole needs no copy */
	ASSERT_EQ((int)stats.move.state, (int)GR_MIGRATE_ACTIVE);
	ASSERT_EQ(access(r->path, F_OK), -1);
	finish(r);
	gr_snapshot_stats(r->snapshot, &stats);
	ASSERT_GE(stats.below.count, 5u);
	ASSERT_GE(stats.below.ns_max, stats.below.ns_p99);
	ASSERT_EQ(stats.above.count, 0u);
	ASSERT_EQ(stats.move.untouched_pages, PAGES / 8 - 2);
	expect_image(r, "ram", PAGES);
	ASSERT_EQ(*at(r, 3), 0xe0);
	ASSERT_EQ(access(r->part, F_OK), -1);
	free_rig(r);
}

ON_BOTH(what_the_guest_does_first_is_not_in_the_image)
{
	struct rig *r = make_rig(backing);

	r->hasty = true;
	start(r, (struct gr_snapshot_params){ .size = 0 });
	finish(r);
	expect_image(r, "ram", PAGES);
	free_rig(r);
}

static int load(void *opaque, const char *id, uint32_t instance, uint32_t version, const void *data,
		size_t bytes, struct gr_error *err)
{
	(void)err;
	ASSERT_STR_EQ(id, "test/state");
	ASSERT_EQ(instance, 0u);
	ASSERT_EQ(version, 1u);
	ASSERT_EQ(bytes, sizeof(uint64_t));
	memcpy(opaque, data, bytes);
	return 0;
}

struct sending {
	struct gr_image *image;
	struct gr_channel *channel;
};

static void *send_image(void *opaque)
{
	struct sending *s = opaque;

	ASSERT_EQ(gr_image_send(s->image, s->channel, NULL, NULL, NULL), 0);
	ASSERT_EQ(gr_channel_close(s->channel, NULL), 0);
	return NULL;
}

TEST(a_machine_comes_back_from_it_with_state_and_memory_of_the_moment)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_channel *in;
	struct gr_destination *destination;
	struct sending s;
	uint64_t state = 0;
	const struct gr_destination_ops ops = { .load = load, .opaque = &state };
	struct gr_ram_block *block;
	struct gr_ram *ram;
	struct gr_error err;
	pthread_t t;
	int fd[2];

	r->hasty = true;
	start(r, (struct gr_snapshot_params){ .machine = "box" });
	finish(r);
	ASSERT_EQ(gr_image_open(r->path, &s.image, &err), 0);
	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	ASSERT_EQ(gr_channel_from_fd(fd[0], &s.channel, &err), 0);
	ASSERT_EQ(gr_channel_from_fd(fd[1], &in, &err), 0);
	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	ASSERT_EQ(gr_destination_create(
			  ram, in,
			  &(struct gr_destination_params){
				  .size = sizeof(struct gr_destination_params), .machine = "box" },
			  &ops, &destination, &err),
		  0);
	t = spawn(send_image, &s);
	if (gr_destination_run(destination, &err) < 0) {
		FAIL("%s", err.msg);
	}
	ASSERT_EQ(pthread_join(t, NULL), 0);
	ASSERT_EQ(state, 42u);
	gr_rcu_read_lock();
	block = gr_ram_block_find_rcu(ram, gr_ram_addr(0));
	ASSERT(block);
	for (unsigned int i = 0; i < PAGES; i++) {
		ASSERT_EQ(block->host[(size_t)i * PAGE], content(i));
	}
	gr_rcu_read_unlock();
	gr_destination_free(destination);
	ASSERT_EQ(gr_channel_close(in, NULL), 0);
	gr_ram_free(ram);
	gr_image_close(s.image);
	free_rig(r);
}

TEST(a_machine_that_is_stopped_needs_no_ops)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_error err;

	if (gr_snapshot_create(
		    r->ram, r->path,
		    &(struct gr_snapshot_params){ .size = sizeof(struct gr_snapshot_params),
						  .writers = GR_WRITERS_STORES },
		    NULL, &r->snapshot, &err) < 0) {
		FAIL("%s", err.msg);
	}
	finish(r);
	expect_image(r, "ram", PAGES);
	free_rig(r);
}

/* ---- the buffer ------------------------------------------------------------------------ */

ON_BOTH(a_full_buffer_holds_stores_until_there_is_room)
{
	struct rig *r = make_rig(backing);
	struct store s = { .r = r, .first = 1, .pages = 100 };
	struct gr_snapshot_stats stats;
	pthread_t t;

	start(r, (struct gr_snapshot_params){ .buffer_bytes = 4 * PAGE + 100 });
	t = spawn(store, &s);
	wait_until_done(&s, 4);
	wait_until_kept(r);
	wait_until_it_waits(&s);
	ASSERT_LE(LOAD(&s.done), 5u);
	finish(r);
	wait_until_done(&s, 100);
	ASSERT_EQ(pthread_join(t, NULL), 0);
	gr_snapshot_stats(r->snapshot, &stats);
	ASSERT_EQ(stats.buffered_bytes_max, (uint64_t)4 * PAGE);
	ASSERT_GE(stats.above.count, 1u);
	ASSERT_GE(stats.below.count, 4u);
	expect_image(r, "ram", PAGES);
	ASSERT_EQ(*at(r, 100), 0xee);
	free_rig(r);
}

ON_BOTH(a_full_buffer_ends_the_snapshot_and_frees_the_guest_if_so_chosen)
{
	struct rig *r = make_rig(backing);
	struct store s = { .r = r, .first = 1, .pages = 100 };
	pthread_t t;

	start(r, (struct gr_snapshot_params){ .buffer_bytes = 4 * PAGE,
					      .when_full = GR_SNAPSHOT_ABORT });
	t = spawn(store, &s);
	wait_until_done(&s, 100); /* nobody writes the image meanwhile */
	ASSERT_EQ(pthread_join(t, NULL), 0);
	expect_failed(r, -ENOBUFS, "the buffer of 16384 bytes is full");
	ASSERT_EQ(access(r->path, F_OK), -1);
	ASSERT_EQ(*at(r, 100), 0xee);
	ASSERT_EQ(*at(r, 101), content(101));
	free_rig(r);
}

TEST(memory_is_not_given_back_while_it_is_kept)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_error err;

	start(r, (struct gr_snapshot_params){ .buffer_bytes = 2 * PAGE });
	ASSERT_EQ(gr_ram_discard(r->block, 8 * PAGE, PAGE, NULL), 0); /* a hole */
	ASSERT_EQ(gr_ram_discard(r->block, PAGE, 2 * PAGE, NULL), 0);
	ASSERT_EQ(gr_ram_discard(r->block, 3 * PAGE, PAGE, &err), -EBUSY);
	ASSERT_HAS(err.msg, "a snapshot has not saved the page");
	finish(r);
	expect_image(r, "ram", PAGES);
	ASSERT_EQ(*at(r, 1), 0);
	ASSERT_EQ(gr_ram_discard(r->block, 3 * PAGE, PAGE, &err), 0);
	free_rig(r);
}

TEST(memory_that_the_host_has_lost_ends_the_snapshot)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);

	start(r, (struct gr_snapshot_params){ .size = 0 });
	ASSERT_EQ(gr_ram_remap(r->block, 9 * PAGE, PAGE, NULL), 0);
	*at(r, 9) = 1;
	*at(r, 10) = 1;
	expect_failed(r, -EHWPOISON, "the host has lost memory");
	free_rig(r);
}

/* ---- blocks ---------------------------------------------------------------------------- */

ON_BOTH(blocks_that_come_grow_and_go_leave_the_image_as_it_was)
{
	struct rig *r = make_rig(backing);
	struct gr_ram_block *goes =
		plug(r->ram, (struct gr_ram_block_desc){
				     .id = "goes", .used_bytes = 16 * PAGE, .backing = backing });
	struct gr_ram_block *comes;
	struct gr_image *image;
	struct gr_image_info info;

	(void)plug(r->ram, (struct gr_ram_block_desc){ .id = "apart",
						       .used_bytes = 16 * PAGE,
						       .flags = GR_RAM_NO_MIGRATE });
	for (unsigned int i = 0; i < 16; i++) {
		goes->host[(size_t)i * PAGE] = content(i);
	}
	start(r, (struct gr_snapshot_params){ .size = 0 });
	ASSERT_EQ(gr_ram_block_del(goes, NULL), 0);
	comes = plug(r->ram, (struct gr_ram_block_desc){
				     .id = "comes", .used_bytes = 16 * PAGE, .backing = backing });
	memset(comes->host, 1, 16 * PAGE);
	ASSERT_EQ(gr_ram_block_resize(r->block, 2 * PAGES * PAGE, NULL), 0);
	*at(r, PAGES + 1) = 1;
	*at(r, 1) = 1;
	finish(r);
	expect_image(r, "ram", PAGES);
	expect_image(r, "goes", 16);
	ASSERT_EQ(gr_image_open(r->path, &image, NULL), 0);
	gr_image_info(image, &info);
	ASSERT_EQ(info.blocks, 2u);
	gr_image_close(image);
	free_rig(r);
}

static int try_to_plug(void *opaque, struct gr_error *err)
{
	struct rig *r = opaque;
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "late", .used_bytes = PAGE, .fd = -1
	};

	ASSERT_EQ(gr_ram_block_add(r->ram, &desc, NULL, err), -EBUSY);
	ASSERT_HAS(err->msg, "a snapshot is about to start");
	return on_pause(r, err);
}

TEST(no_block_comes_or_goes_in_the_moment)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	const struct gr_source_ops ops = {
		.pause = try_to_plug, .resume = on_resume, .save = on_save, .opaque = r
	};
	const struct gr_snapshot_params params = { .size = sizeof(params),
						   .writers = GR_WRITERS_STORES };

	ASSERT_EQ(gr_snapshot_create(r->ram, r->path, &params, &ops, &r->snapshot, NULL), 0);
	finish(r);
	expect_image(r, "ram", PAGES);
	(void)plug(r->ram, (struct gr_ram_block_desc){ .id = "later", .used_bytes = PAGE });
	free_rig(r);
}

/* ---- ends ------------------------------------------------------------------------------ */

ON_BOTH(a_cancel_frees_who_waits_although_nothing_is_written)
{
	struct rig *r = make_rig(backing);
	struct store s = { .r = r, .first = 1, .pages = 100 };
	struct gr_snapshot_stats stats;
	pthread_t t;

	start(r, (struct gr_snapshot_params){ .buffer_bytes = 4 * PAGE });
	t = spawn(store, &s);
	wait_until_kept(r);
	gr_snapshot_cancel(r->snapshot);
	wait_until_done(&s, 100);
	ASSERT_EQ(pthread_join(t, NULL), 0);
	expect_failed(r, -ECANCELED, "cancelled");
	gr_snapshot_cancel(r->snapshot);
	gr_snapshot_stats(r->snapshot, &stats);
	ASSERT_EQ((int)stats.move.state, (int)GR_MIGRATE_CANCELLED);
	ASSERT_EQ(access(r->path, F_OK), -1);
	free_rig(r);
}

TEST(one_that_is_freed_half_way_leaves_nothing_and_the_next_one_may_come)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_error err;

	start(r, (struct gr_snapshot_params){ .size = 0 });
	ASSERT_EQ(gr_snapshot_step(r->snapshot, NULL), 1);
	ASSERT_EQ(access(r->part, F_OK), 0);
	{
		struct gr_snapshot *first = r->snapshot;

		ASSERT_EQ(try_create(r, (struct gr_snapshot_params){ .size = 0 }, &err), -EBUSY);
		r->snapshot = first;
	}
	gr_snapshot_free(r->snapshot);
	ASSERT_EQ(access(r->part, F_OK), -1);
	*at(r, 1) = content(1);
	start(r, (struct gr_snapshot_params){ .size = 0 });
	finish(r);
	expect_image(r, "ram", PAGES);
	/* And over an older image. */
	gr_snapshot_free(r->snapshot);
	*at(r, 2) = 0xee;
	start(r, (struct gr_snapshot_params){ .size = 0 });
	*at(r, 3) = 0xee;
	gr_snapshot_cancel(r->snapshot);
	expect_failed(r, -ECANCELED, "cancelled");
	expect_image(r, "ram", PAGES); /* the older one */
	free_rig(r);
}

TEST(failing_to_stop_to_save_or_to_protect_leaves_the_guest_running)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_error err;

	r->fail_pause = -EIO;
	ASSERT_EQ(try_create(r, (struct gr_snapshot_params){ .size = 0 }, &err), 0);
	expect_failed(r, -EIO, "the machine cannot be stopped: told to fail");
	gr_snapshot_free(r->snapshot);
	r->fail_pause = 0;
	r->fail_save = -ENODEV;
	ASSERT_EQ(try_create(r, (struct gr_snapshot_params){ .size = 0 }, &err), 0);
	expect_failed(r, -ENODEV, "saving the devices: told to fail");
	ASSERT_EQ(r->resumes, 1u);
	gr_snapshot_free(r->snapshot);
	r->fail_save = 0;
	ASSERT_EQ(try_create(r, (struct gr_snapshot_params){ .writers = GR_WRITERS_OUTSIDE }, &err),
		  0);
	expect_failed(r, -EINVAL, "another process");
	ASSERT_EQ(r->resumes, 2u);
	gr_snapshot_free(r->snapshot);
	r->snapshot = NULL;
	ASSERT_EQ(try_create(r, (struct gr_snapshot_params){ .buffer_bytes = 100 }, &err), -EINVAL);
	ASSERT_HAS(err.msg, "room for a page");
	*at(r, 1) = 0xee;
	free_rig(r);
}

TEST(memory_that_cannot_be_protected_is_refused_by_name)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	char path[] = "/var/tmp/gr-snapshot-XXXXXX";
	struct gr_error err;
	int fd = mkstemp(path);

	if (fd < 0) {
		SKIP("no file in /var/tmp: %s", strerror(errno));
	}
	ASSERT_EQ(unlink(path), 0);
	ASSERT_EQ(ftruncate(fd, 16 * PAGE), 0);
	(void)plug(r->ram, (struct gr_ram_block_desc){ .id = "nvdimm",
						       .used_bytes = 16 * PAGE,
						       .backing = GR_RAM_FD,
						       .fd = fd,
						       .flags = GR_RAM_SHARED });
	ASSERT_EQ(try_create(r, (struct gr_snapshot_params){ .size = 0 }, &err), 0);
	if (gr_snapshot_step(r->snapshot, &err) == 1) {
		SKIP("/var/tmp is in memory here");
	}
	expect_failed(r, -EINVAL, "block 'nvdimm'");
	free_rig(r);
}

TEST(a_name_that_is_no_files_is_refused_at_once)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct gr_snapshot_params params = { .size = sizeof(params) };
	struct gr_error err;

	ASSERT_EQ(gr_snapshot_create(r->ram, r->dir, &params, NULL, &r->snapshot, &err), -EISDIR);
	ASSERT_EQ(gr_snapshot_create(r->ram, "/dev/null", &params, NULL, &r->snapshot, &err),
		  -EINVAL);
	ASSERT_EQ(gr_snapshot_create(r->ram, "/nowhere/x", &params, NULL, &r->snapshot, &err),
		  -ENOENT);
	ASSERT_EQ(gr_snapshot_create(r->ram, NULL, &params, NULL, &r->snapshot, &err), -EINVAL);
	params.when_full = (enum gr_snapshot_when_full)7;
	ASSERT_EQ(gr_snapshot_create(r->ram, r->path, &params, NULL, &r->snapshot, &err), -EINVAL);
	params.size = 1;
	ASSERT_EQ(gr_snapshot_create(r->ram, r->path, &params, NULL, &r->snapshot, &err), -EINVAL);
	r->snapshot = NULL;
	free_rig(r);
}

/* The file cannot grow beyond half of what it needs. */
TEST(a_file_that_cannot_be_written_ends_the_snapshot_and_frees_the_guest)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct store s = { .r = r, .first = 1, .pages = 200 };
	struct rlimit limit;
	pthread_t t;

	ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
	(void)signal(SIGXFSZ, SIG_IGN);
	start(r, (struct gr_snapshot_params){ .buffer_bytes = 4 * PAGE });
	limit.rlim_cur = PAGES * PAGE / 2;
	ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
	t = spawn(store, &s);
	wait_until_kept(r);
	expect_failed(r, -EFBIG, "block 'ram', page at 0x");
	wait_until_done(&s, 200);
	ASSERT_EQ(pthread_join(t, NULL), 0);
	limit.rlim_cur = limit.rlim_max;
	ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ASSERT_EQ(access(r->path, F_OK), -1);
	free_rig(r);
}

TEST(a_full_disk_ends_the_snapshot_and_frees_the_guest)
{
	struct rig *r = make_rig(GR_RAM_MEMFD);
	struct store s = { .r = r, .first = 1, .pages = 200 };
	pthread_t t;

	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", r->dir, "tmpfs", 0, "size=256k") < 0) {
		int why = errno;

		free_rig(r);
		SKIP("no small file system: %s", strerror(why));
	}
	start(r, (struct gr_snapshot_params){ .buffer_bytes = 4 * PAGE });
	t = spawn(store, &s);
	wait_until_kept(r);
	expect_failed(r, -ENOSPC, "No space left on device");
	wait_until_done(&s, 200);
	ASSERT_EQ(pthread_join(t, NULL), 0);
	ASSERT_EQ(access(r->path, F_OK), -1);
	ASSERT_EQ(umount(r->dir), 0);
	free_rig(r);
}

TEST_MAIN()

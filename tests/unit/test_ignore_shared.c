/* SPDX-License-Identifier: MIT */
/* x-ignore-shared: memory that both machines have mapped from one file stays where it is. */
#include "move.h"
#include <fcntl.h>
#include <guestram/dirty.h>
#include <guestram/ram_change.h>
#include <sys/mman.h>

enum { SHARED_PAGES = 256, OWN_PAGES = 32, OWN_AT = 1 << 24 };

#define SHARED_BYTES ((uint64_t)SHARED_PAGES * MOVE_PAGE)

static char folder[64], path[80], new_path[80], other_path[80], link_path[80];
static int fd = -1; /* of the file */

static void make_longer(const char *name, int *ret_fd)
{
	*ret_fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ASSERT(*ret_fd >= 0);
	ASSERT_EQ(ftruncate(*ret_fd, (off_t)(SHARED_BYTES + MOVE_PAGE)), 0);
}

static void make_file(void)
{
	(void)snprintf(folder, sizeof(folder), "/tmp/guestram-shared-XXXXXX");
	ASSERT(mkdtemp(folder));
	(void)snprintf(path, sizeof(path), "%s/ram", folder);
	(void)snprintf(new_path, sizeof(new_path), "%s/new", folder);
	(void)snprintf(other_path, sizeof(other_path), "%s/other", folder);
	(void)snprintf(link_path, sizeof(link_path), "%s/link", folder);
	make_longer(other_path, &fd);
	(void)close(fd);
	make_longer(path, &fd);
	ASSERT_EQ(link(path, link_path), 0);
}

/* What is in a machine beside the block "own": "shared" as that file in some way, or as other memory. */
enum with {
	A_FILE,
	A_PRIVATE_FILE,
	A_FILE_ELSEWHERE, /* and another block in its place */
	A_FILE_FAR_AWAY,  /* and nothing there */
	A_NEW_FILE,  /* another path, where nothing is yet */
	ANOTHER_FILE, /* and where there is one of the same length */
	A_LINK,	      /* another name of the file */
	A_LATER_PIECE, /* of the file */
	A_DIRECTORY, /* a file without a name */
	AN_FD,	     /* of a file that only this machine has */
	A_PROMISED_FD,
	CALLERS, /* copied on write from the file whose fd comes with it */
	PROMISED_CALLERS,
	A_MEMFD,
	NOTHING
};

static void unmap(void *host, uint64_t bytes, void *opaque)
{
	(void)opaque;
	(void)munmap(host, bytes);
}

static const char *path_of(enum with with)
{
	return with == A_NEW_FILE   ? new_path :
	       with == ANOTHER_FILE ? other_path :
	       with == A_LINK	    ? link_path :
	       with == A_DIRECTORY  ? folder :
				      path;
}

static struct gr_ram_block *add_file(struct gr_ram *ram, enum with with)
{
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "shared",
					  .used_bytes = SHARED_BYTES,
					  .backing = GR_RAM_FILE,
					  .path = path_of(with),
					  .fd_offset = with == A_LATER_PIECE ? MOVE_PAGE : 0,
					  .flags = with == A_PRIVATE_FILE ? GR_RAM_PRIVATE : 0,
					  .mapped = true,
					  .gpa = gr_gpa(with == A_FILE_ELSEWHERE || with == A_FILE_FAR_AWAY ? 2 * OWN_AT : 0),
					  .fd = -1 };
	bool callers = with == CALLERS || with == PROMISED_CALLERS, own = with == AN_FD;
	struct gr_ram_block *block;
	struct gr_error err;

	if (callers || own || with == A_PROMISED_FD) {
		desc.backing = callers ? GR_RAM_CALLER : GR_RAM_FD;
		desc.path = NULL;
		desc.fd = own ? memfd_create("own", MFD_CLOEXEC) : fd;
		desc.flags = own || with == CALLERS ? 0 : GR_RAM_SHARED;
	}
	if (callers) {
		desc.host = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE,
				 with == CALLERS ? MAP_PRIVATE : MAP_SHARED, fd, 0);
		ASSERT(desc.host != MAP_FAILED);
		desc.release = unmap;
	}
	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("%s", err.msg);
	}
	if (own) {
		(void)close(desc.fd);
	}
	return block;
}

static struct gr_ram_block *make(struct gr_ram **ram, enum with with)
{
	struct gr_ram_block *block = NULL;

	*ram = move_ram();
	if (with == A_MEMFD) {
		block = move_add(*ram, "shared", SHARED_PAGES * MOVE_PAGE, 0, GR_RAM_MEMFD);
	} else if (with != NOTHING) {
		block = add_file(*ram, with);
	}
	if (with == A_FILE_ELSEWHERE) {
		(void)move_add(*ram, "other", MOVE_PAGE, 0, GR_RAM_MEMFD);
	}
	(void)move_add(*ram, "own", OWN_PAGES * MOVE_PAGE, OWN_AT, GR_RAM_MEMFD);
	return block;
}

static struct gr_ram_block *find(struct gr_ram *ram, const char *id)
{
	struct gr_ram_block *block;

	gr_rcu_read_lock();
	block = gr_ram_block_by_id_rcu(ram, id);
	gr_rcu_read_unlock();
	ASSERT(block);
	return block;
}

static void end(struct move *m)
{
	gr_ram_free(m->from);
	gr_ram_free(m->to);
	(void)close(fd);
	(void)unlink(new_path);
	ASSERT_EQ(unlink(other_path), 0);
	ASSERT_EQ(unlink(link_path), 0);
	ASSERT_EQ(unlink(path), 0);
	ASSERT_EQ(rmdir(folder), 0);
}

static void nothing_travels_between(enum with with, enum with there, bool plain)
{
	struct move m = { .params = { .ignore_shared = true, .plain = plain },
			  .to_params = { .ignore_shared = true, .plain = plain } };
	struct gr_ram_block *from;

	make_file();
	from = make(&m.from, with);
	(void)make(&m.to, there);
	move_fill(from, test_seed(), 3);
	move_fill(find(m.from, "own"), test_seed(), 3);
	move_must_succeed(&m);
	ASSERT_EQ(m.stats.normal_pages + m.stats.zero_pages, OWN_PAGES);
	ASSERT_EQ(m.stats.total_bytes, OWN_PAGES * MOVE_PAGE);
	ASSERT_EQ(m.to_stats.normal_pages + m.to_stats.zero_pages, OWN_PAGES);
	ASSERT_EQ(move_compare(m.from, m.to), 0);
	end(&m);
}

static void nothing_of_it_travels(enum with with, bool plain)
{
	nothing_travels_between(with, with, plain);
}

TEST(what_is_shared_does_not_travel_and_the_rest_does)
{
	nothing_of_it_travels(A_FILE, false);
}

TEST(in_qemus_dialect_it_does_not_travel_either)
{
	nothing_of_it_travels(A_FILE, true);
}

TEST(what_the_callers_promise_to_share_does_not_travel)
{
	nothing_of_it_travels(A_PROMISED_FD, false);
	nothing_of_it_travels(PROMISED_CALLERS, false);
}

/* Memory that the other end may well not have is sent, and is there. */
static void all_of_it_travels(enum with with, bool plain)
{
	struct move m = { .params = { .ignore_shared = true, .plain = plain },
			  .to_params = { .ignore_shared = true, .plain = plain } };

	make_file();
	move_fill(make(&m.from, with), test_seed(), 3);
	(void)make(&m.to, with);
	move_must_succeed(&m);
	ASSERT_EQ(m.to_stats.normal_pages + m.to_stats.zero_pages, SHARED_PAGES + OWN_PAGES);
	ASSERT_EQ(move_compare(m.from, m.to), 0);
	end(&m);
}

TEST(a_file_without_a_name_is_not_shared)
{
	all_of_it_travels(A_DIRECTORY, false);
	all_of_it_travels(A_DIRECTORY, true);
}

TEST(descriptors_are_not_shared_unless_their_callers_say_so)
{
	all_of_it_travels(AN_FD, false);
	all_of_it_travels(CALLERS, false);
}

/* A QEMU takes for shared what has a name, whatever we know. */
TEST(in_qemus_dialect_descriptors_travel)
{
	all_of_it_travels(A_PROMISED_FD, true);
	all_of_it_travels(PROMISED_CALLERS, true);
}

TEST(the_callers_memory_is_promised_with_its_fd)
{
	struct gr_ram *ram = move_ram();
	struct gr_ram_block_desc desc = { .size = sizeof(desc),
					  .id = "shared",
					  .used_bytes = MOVE_PAGE,
					  .backing = GR_RAM_CALLER,
					  .flags = GR_RAM_SHARED,
					  .host = aligned_alloc(MOVE_PAGE, MOVE_PAGE),
					  .fd = -1 };
	struct gr_error err;

	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, &err), -EINVAL);
	ASSERT_HAS(err.msg, "GR_RAM_SHARED");
	ASSERT_HAS(err.msg, "without the fd");
	free(desc.host);
	gr_ram_free(ram);
}

TEST(a_writing_guest_moves_and_its_shared_memory_stays)
{
	struct move m = { .params.ignore_shared = true, .to_params.ignore_shared = true };
	struct gr_source_ops ops;
	struct move_guest g = { .bytes = SHARED_PAGES * MOVE_PAGE, .writers = 2, .pause_us = 50,
				.hot_gpa = OWN_AT, .hot_step = MOVE_PAGE, .hot_slots = OWN_PAGES };

	make_file();
	(void)make(&m.from, A_FILE);
	(void)make(&m.to, A_FILE);
	g.ram = m.from;
	g.seed = test_seed();
	ops = move_guest_ops(&g);
	m.ops = &ops;
	move_guest_start(&g);
	move_must_succeed(&m);
	ASSERT_EQ(move_compare(m.from, m.to), 0);
	move_guest_stop(&g);
	end(&m);
}

/* A backup at the destination that has looked before must look again: nobody stored to it here. */
TEST(the_destinations_consumers_hear_of_what_is_shared)
{
	struct move m = { .params.ignore_shared = true, .to_params.ignore_shared = true };
	struct gr_dirty_consumer *consumer;
	struct gr_error err;

	make_file();
	(void)make(&m.from, A_FILE);
	(void)make(&m.to, A_FILE);
	ASSERT_EQ(gr_dirty_consumer_add(gr_ram_dirty(m.to), "backup", 0, &consumer, &err), 0);
	move_must_succeed(&m);
	ASSERT_EQ(gr_dirty_epoch_begin(consumer, NULL, &err), 0);
	ASSERT_GE(gr_dirty_epoch_pages(consumer), (uint64_t)SHARED_PAGES);
	(void)gr_dirty_epoch_commit(consumer);
	gr_dirty_consumer_del(consumer);
	end(&m);
}

/* Neither side's machine is what the other one takes it for: the words that the destination says. */
static void refused(enum with source, bool source_on, enum with destination, bool destination_on,
		    bool plain, const char *words)
{
	struct move m = { .params = { .ignore_shared = source_on, .plain = plain },
			  .to_params = { .ignore_shared = destination_on, .plain = plain } };

	make_file();
	(void)make(&m.from, source);
	(void)make(&m.to, destination);
	move_run(&m);
	ASSERT_LT(m.to_rc, 0);
	ASSERT_HAS(m.to_err.msg, words);
	ASSERT_HAS(m.to_err.msg, "x-ignore-shared");
	if (!plain) {
		ASSERT_LT(m.rc, 0);
	}
	if (destination == NOTHING && !plain) { /* nor was it made before it was refused */
		gr_rcu_read_lock();
		ASSERT(!gr_ram_block_by_id_rcu(m.to, "shared"));
		gr_rcu_read_unlock();
	}
	end(&m);
}

TEST(a_capability_on_one_side_only_is_refused)
{
	for (int plain = 0; plain < 2; plain++) {
		refused(A_FILE, true, A_FILE, false, plain, "not in use here");
		refused(A_FILE, false, A_FILE, true, plain, "not at the source");
	}
}

TEST(memory_that_one_side_only_shares_is_refused)
{
	refused(A_FILE, true, A_MEMFD, true, false, "'shared' is shared memory at the source and not");
	refused(A_FILE, true, NOTHING, true, false, "'shared' is shared memory at the source and not");
	refused(A_FILE, true, A_PRIVATE_FILE, true, false, "'shared' is shared memory at the source");
	refused(A_MEMFD, true, A_FILE, true, false, "'shared' is shared memory here and not");
}

/* A QEMU does not say what it shares: it is seen from what comes. */
TEST(memory_that_one_side_only_shares_is_refused_in_qemus_dialect)
{
	refused(A_FILE, true, A_MEMFD, true, true, "'shared': nothing of it came");
	refused(A_FILE, true, NOTHING, true, true, "'shared': nothing of it came");
	refused(A_MEMFD, true, A_FILE, true, true, "its content was sent");
}

/* A wrong path at the destination: there is a file now, and nothing of the source's is in it. */
TEST(a_file_that_was_made_for_the_destination_is_refused)
{
	for (int plain = 0; plain < 2; plain++) {
		refused(A_FILE, true, A_NEW_FILE, true, plain, "'shared': its file was empty or not there");
	}
}

/* Of the same length, and not empty: only the files' own numbers can tell. */
TEST(two_files_of_the_same_length_are_refused)
{
	refused(A_FILE, true, ANOTHER_FILE, true, false, "block 'shared' is another file here");
	refused(A_FILE, true, A_LATER_PIECE, true, false, "block 'shared' is another file here");
	refused(ANOTHER_FILE, true, A_PROMISED_FD, true, false, "block 'shared' is another file here");
}

TEST(a_file_by_another_name_is_the_same_file)
{
	nothing_travels_between(A_FILE, A_LINK, false);
	nothing_travels_between(A_LINK, A_PROMISED_FD, false);
	nothing_travels_between(A_LATER_PIECE, A_LATER_PIECE, false);
}

/*
 * A virtio-mem device's memory of which nothing is plugged in: a QEMU names no page of it. If it is so
 * here, too, nothing is missing.
 */
TEST(a_block_that_is_all_unplugged_is_not_taken_for_shared)
{
	for (int unplugged = 0; unplugged < 2; unplugged++) {
		struct move m = { .params = { .ignore_shared = true, .plain = true },
				  .to_params = { .ignore_shared = true, .plain = true } };
		struct gr_error err;

		make_file();
		/* What comes then is what a QEMU sends whose block has nothing plugged in. */
		(void)make(&m.from, A_FILE);
		(void)make(&m.to, A_MEMFD);
		if (unplugged) {
			ASSERT_EQ(gr_ram_depopulate(find(m.to, "shared"), 0, SHARED_BYTES, &err), 0);
		}
		move_run(&m);
		ASSERT_EQ(m.to_rc, unplugged ? 0 : -EINVAL);
		if (!unplugged) {
			ASSERT_HAS(m.to_err.msg, "all unplugged there");
		}
		end(&m);
	}
}

static int stands_still(void *opaque, struct gr_error *err)
{
	(void)opaque, (void)err;
	return 0;
}

static void goes_on(void *opaque)
{
	(void)opaque;
}

static int has_a_device(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	(void)opaque;
	return gr_state_put(writer, "test/plug", 0, 1, "", 1, err);
}

/* As virtio-mem: what is plugged in comes with its state. */
static int plugs(void *opaque, const char *id, uint32_t instance, uint32_t version, const void *data,
		 size_t bytes, struct gr_error *err)
{
	struct move *m = opaque;

	(void)id, (void)instance, (void)version, (void)data, (void)bytes;
	return gr_ram_populate(find(m->to, "shared"), 0, SHARED_BYTES, err);
}

/* The source shares it, which a QEMU does not say; here it is empty, and plugged in only at the end. */
TEST(a_device_that_plugs_in_what_never_came_is_refused)
{
	static const struct gr_source_ops ops = { .pause = stands_still,
						  .resume = goes_on,
						  .save = has_a_device };
	struct move m = { .params = { .ignore_shared = true, .plain = true },
			  .to_params = { .ignore_shared = true, .plain = true },
			  .ops = &ops };
	struct gr_destination_ops to_ops = { .load = plugs, .opaque = &m };
	struct gr_error err;

	make_file();
	(void)make(&m.from, A_FILE);
	(void)make(&m.to, A_MEMFD);
	ASSERT_EQ(gr_ram_depopulate(find(m.to, "shared"), 0, SHARED_BYTES, &err), 0);
	m.to_ops = &to_ops;
	move_run(&m);
	ASSERT_EQ(m.to_rc, -EINVAL);
	ASSERT_HAS(m.to_err.msg, "block 'shared': nothing of it came");
	end(&m);
}

TEST(shared_memory_at_another_address_is_refused)
{
	refused(A_FILE, true, A_FILE_ELSEWHERE, true, false, "block 'shared' is at 0x0 at the source");
	refused(A_FILE, true, A_FILE_FAR_AWAY, true, false, "block 'shared' is at 0x0 at the source");
	refused(A_FILE_ELSEWHERE, true, A_FILE, true, false, "block 'shared' is at 0x2000000 at the");
}

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
/*
 * A machine that moves, for tests: RAM, threads that write it, a socket pair, and both
 * ends of a migration. Everything is in one process, so that source and destination can be
 * compared byte by byte.
 */
#ifndef MOVE_H
#define MOVE_H

#include "harness.h"
#include <errno.h>
#include <guestram/channel.h>
#include <guestram/migrate.h>
#include <guestram/ram.h>
#include <guestram/rcu.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOVE_FN __attribute__((unused)) static

enum { MOVE_WRITERS_MAX = 4, MOVE_PAGE = 4096 };

/* The running guest: threads that write through gr_ram_write() until they are stopped. */
struct move_guest {
	struct gr_ram *ram;
	uint64_t gpa, bytes;		       /* where they write */
	uint64_t hot_gpa, hot_step, hot_slots; /* plugged blocks, written where they exist */
	unsigned int writers;
	unsigned int others;   /* (lock) threads of the test's that park with them */
	unsigned int pause_us; /* (atomic) between two writes; 0: as fast as possible */
	uint64_t seed;
	pthread_t threads[MOVE_WRITERS_MAX];
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool stop, paused;	      /* (lock) */
	unsigned int parked;	      /* (lock) */
	unsigned int pauses, resumes; /* (lock) how often */
	uint64_t writes;	      /* (atomic) */
};

struct move_writer_arg {
	struct move_guest *guest;
	unsigned int index;
};

/* Returns whether to go on. */
MOVE_FN bool move_guest_point(struct move_guest *g)
{
	bool go;

	pthread_mutex_lock(&g->lock);
	if (g->paused) {
		g->parked++;
		pthread_cond_broadcast(&g->changed);
		while (g->paused && !g->stop) {
			pthread_cond_wait(&g->changed, &g->lock);
		}
		g->parked--;
	}
	go = !g->stop;
	pthread_mutex_unlock(&g->lock);
	return go;
}

MOVE_FN void *move_writer(void *opaque)
{
	struct move_writer_arg *arg = opaque;
	struct move_guest *g = arg->guest;
	uint64_t state = g->seed + arg->index + 1, counter = 0;
	unsigned int pause_us;

	while (move_guest_point(g)) {
		uint64_t where = test_rand(&state), value = counter++ << 8 | arg->index | 1;
		gr_gpa_t gpa = gr_gpa(g->gpa + where % (g->bytes / 8) * 8);

		if (g->hot_slots != 0 && where % 3 == 0) {
			gpa = gr_gpa(g->hot_gpa + where / 3 % g->hot_slots * g->hot_step +
				     (where >> 32) % 64 * 512);
		}
		/* A slot without a block: not written, and that is all. */
		if (gr_ram_write(g->ram, gpa, &value, sizeof(value), NULL) == 0) {
			__atomic_add_fetch(&g->writes, 1, __ATOMIC_RELAXED);
		}
		pause_us = __atomic_load_n(&g->pause_us, __ATOMIC_RELAXED);
		if (pause_us != 0) {
			usleep(pause_us);
		}
	}
	free(arg);
	return NULL;
}

MOVE_FN void move_guest_start(struct move_guest *g)
{
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->changed, NULL);
	for (unsigned int i = 0; i < g->writers; i++) {
		struct move_writer_arg *arg = malloc(sizeof(*arg));

		ASSERT(arg);
		*arg = (struct move_writer_arg){ g, i };
		ASSERT_EQ(pthread_create(&g->threads[i], NULL, move_writer, arg), 0);
	}
}

MOVE_FN void move_guest_stop(struct move_guest *g)
{
	pthread_mutex_lock(&g->lock);
	g->stop = true;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
	for (unsigned int i = 0; i < g->writers; i++) {
		pthread_join(g->threads[i], NULL);
	}
}

MOVE_FN int move_guest_pause(void *opaque, struct gr_error *err)
{
	struct move_guest *g = opaque;

	(void)err;
	pthread_mutex_lock(&g->lock);
	g->paused = true;
	g->pauses++;
	while (g->parked < g->writers + g->others && !g->stop) {
		pthread_cond_wait(&g->changed, &g->lock);
	}
	pthread_mutex_unlock(&g->lock);
	return 0;
}

MOVE_FN void move_guest_resume(void *opaque)
{
	struct move_guest *g = opaque;

	pthread_mutex_lock(&g->lock);
	g->paused = false;
	g->resumes++;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
}

MOVE_FN int move_guest_save(void *opaque, struct gr_state_writer *writer, struct gr_error *err)
{
	struct move_guest *g = opaque;
	int rc = gr_state_put(writer, "test/first", 0, 1, &g->writes, sizeof(g->writes), err);

	return rc < 0 ? rc : gr_state_put(writer, "test/second", 7, 2, "abc", 3, err);
}

MOVE_FN struct gr_source_ops move_guest_ops(struct move_guest *g)
{
	struct gr_source_ops ops = {
		.pause = move_guest_pause,
		.resume = move_guest_resume,
		.save = move_guest_save,
		.opaque = g,
	};

	return ops;
}

/* What the destination's machine has loaded. */
struct move_loaded {
	unsigned int calls;
	uint64_t first;
	char order[64];
	int fail; /* a load fails with this */
};

MOVE_FN int move_load(void *opaque, const char *id, uint32_t instance, uint32_t version,
		      const void *data, size_t bytes, struct gr_error *err)
{
	struct move_loaded *l = opaque;

	l->calls++;
	if (l->fail != 0) {
		return gr_error_set(err, l->fail, "told to fail");
	}
	if (strcmp(id, "test/first") == 0) {
		ASSERT_EQ(bytes, sizeof(l->first));
		ASSERT_EQ(instance, 0u);
		ASSERT_EQ(version, 1u);
		memcpy(&l->first, data, bytes);
	} else {
		ASSERT_STR_EQ(id, "test/second");
		ASSERT_EQ(instance, 7u);
		ASSERT_EQ(version, 2u);
		ASSERT_EQ(bytes, 3u);
	}
	strncat(l->order, id + 5, sizeof(l->order) - strlen(l->order) - 1);
	return 0;
}

MOVE_FN struct gr_ram *move_ram(void)
{
	struct gr_ram *ram = NULL;
	struct gr_error err = { 0 };

	if (gr_ram_create(NULL, &ram, &err) < 0) {
		FAIL("RAM: %s", err.msg);
	}
	return ram;
}

MOVE_FN struct gr_ram_block *move_add(struct gr_ram *ram, const char *id, uint64_t bytes,
				      uint64_t gpa, enum gr_ram_backing backing)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = id,
		.used_bytes = bytes,
		.backing = backing,
		.mapped = true,
		.gpa = gr_gpa(gpa),
		.fd = -1,
	};
	struct gr_ram_block *block = NULL;
	struct gr_error err = { 0 };

	if (gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		FAIL("block: %s", err.msg);
	}
	return block;
}

/* Random words in every page whose number is not a multiple of `holes` (0: in all). */
MOVE_FN void move_fill(struct gr_ram_block *block, uint64_t seed, uint64_t holes)
{
	uint64_t bytes = gr_ram_block_used_bytes(block);

	for (uint64_t at = 0; at < bytes; at += MOVE_PAGE) {
		if (holes != 0 && at / MOVE_PAGE % holes == 0) {
			continue;
		}
		for (uint64_t i = 0; i < MOVE_PAGE; i += 8) {
			uint64_t v = test_rand(&seed);

			memcpy(block->host + at + i, &v, sizeof(v));
		}
		gr_ram_mark(block, at, MOVE_PAGE);
	}
}

MOVE_FN void move_channels(struct gr_channel *ch[2])
{
	struct gr_error err = { 0 };
	int fd[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fd), 0);
	for (int i = 0; i < 2; i++) {
		if (gr_channel_from_fd(fd[i], &ch[i], &err) < 0) {
			FAIL("channel: %s", err.msg);
		}
	}
}

/* One move, with both results. Zero what you do not set. */
struct move {
	struct gr_ram *from, *to;
	struct gr_track *track;
	struct gr_source_params params;
	struct gr_destination_params to_params;
	const struct gr_source_ops *ops;
	const struct gr_destination_ops *to_ops;
	struct gr_channel *ch[2];
	struct gr_source *source;
	struct gr_destination *destination;
	int rc, to_rc;
	struct gr_error err, to_err;
	struct gr_migrate_stats stats, to_stats;
	bool destination_first_closes; /* the destination closes its channel when it fails */
};

MOVE_FN void *move_receive(void *opaque)
{
	struct move *m = opaque;

	m->to_rc = gr_destination_run(m->destination, &m->to_err);
	ASSERT_EQ(gr_rcu_self.ctr & GR_RCU_DEPTH, 0u);
	if (m->to_rc < 0) {
		/* As a process that ends would: the source must not wait for ever. */
		gr_channel_shutdown(m->ch[1]);
	}
	return NULL;
}

MOVE_FN void move_prepare(struct move *m)
{
	m->params.size = sizeof(m->params);
	m->to_params.size = sizeof(m->to_params);
	if (!m->ch[0]) {
		move_channels(m->ch);
	}
	if (gr_source_create(m->from, m->track, m->ch[0], &m->params, m->ops, &m->source, &m->err) <
	    0) {
		FAIL("source: %s", m->err.msg);
	}
	if (gr_destination_create(m->to, m->ch[1], &m->to_params, m->to_ops, &m->destination,
				  &m->to_err) < 0) {
		FAIL("destination: %s", m->to_err.msg);
	}
}

MOVE_FN void move_finish(struct move *m)
{
	gr_source_stats(m->source, &m->stats);
	gr_destination_stats(m->destination, &m->to_stats);
	gr_source_free(m->source);
	gr_destination_free(m->destination);
	(void)gr_channel_close(m->ch[0], NULL);
	(void)gr_channel_close(m->ch[1], NULL);
	m->source = NULL;
	m->destination = NULL;
	m->ch[0] = m->ch[1] = NULL;
}

MOVE_FN void move_run(struct move *m)
{
	pthread_t thread;

	move_prepare(m);
	ASSERT_EQ(pthread_create(&thread, NULL, move_receive, m), 0);
	m->rc = gr_source_run(m->source, &m->err);
	ASSERT_EQ(gr_rcu_self.ctr & GR_RCU_DEPTH, 0u);
	if (!m->stats.peer_is_guestram) {
		/* Without a return path the end of the stream is the answer. */
		gr_channel_end_writing(m->ch[0]);
	}
	pthread_join(thread, NULL);
	move_finish(m);
}

MOVE_FN void move_must_succeed(struct move *m)
{
	move_run(m);
	if (m->rc != 0 || m->to_rc != 0) {
		FAIL("source %d '%s', destination %d '%s'", m->rc, m->rc ? m->err.msg : "",
		     m->to_rc, m->to_rc ? m->to_err.msg : "");
	}
	ASSERT(m->stats.state == GR_MIGRATE_COMPLETED);
	ASSERT(m->to_stats.state == GR_MIGRATE_COMPLETED);
}

/* How many pages differ; fails where the lists of blocks do. */
MOVE_FN uint64_t move_compare(struct gr_ram *a, struct gr_ram *b)
{
	struct gr_ram_block *x, *y;
	uint64_t wrong = 0, blocks_a = 0, blocks_b = 0;

	gr_rcu_read_lock();
	gr_ram_for_each_block_rcu(x, a) {
		blocks_a++;
		y = gr_ram_block_by_id_rcu(b, x->id);
		if (!y) {
			FAIL("block '%s' is missing", x->id);
		}
		ASSERT_EQ(gr_ram_block_used_bytes(x), gr_ram_block_used_bytes(y));
		for (uint64_t at = 0; at < gr_ram_block_used_bytes(x); at += MOVE_PAGE) {
			wrong += memcmp(x->host + at, y->host + at, MOVE_PAGE) != 0;
		}
	}
	gr_ram_for_each_block_rcu(y, b) {
		blocks_b++;
	}
	gr_rcu_read_unlock();
	ASSERT_EQ(blocks_a, blocks_b);
	return wrong;
}

#endif

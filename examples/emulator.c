/* SPDX-License-Identifier: MIT */
/*
 * An emulator's host, without KVM: a core interprets a toy machine's code on a thread of its own
 * and finds its memory through a one-entry TLB. Meanwhile memory is plugged, a device writes there,
 * and the memory is unplugged under the running core. Nobody takes a lock to reach memory.
 */
#include <guestram/ram.h>
#include <guestram/rcu_qs.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIB = 1 << 20, DIMM = 16 * MIB, RESULT = 0x2000, SLICE = 1000 };

/* Four bytes each: what, register, and a value or another register. Words have 32 bits. */
enum op { SET, ADD, LOAD, STORE, JUMP };
struct instruction {
	uint8_t op, a;
	uint16_t b;
};

/* Adds one to each word of a page at r0, and the last word that it saw goes to RESULT. */
static const struct instruction code[] = {
	{ SET, 0, 16 },	 /* r0 = 16 MiB: where the DIMM will be */
	{ SET, 1, 0 },	 /* (SET counts in MiB) */
	{ LOAD, 2, 0 },	 /* again: r2 = [r0] */
	{ ADD, 2, 1 },	 /* r2 += 1 */
	{ STORE, 2, 0 }, /* [r0] = r2 */
	{ STORE, 2, 3 }, /* [r3] = r2; r3 is RESULT from the beginning */
	{ JUMP, 0, 2 },
};

struct core {
	struct gr_ram *ram;
	uint32_t r[4], pc;
	bool stop; /* (a) */
	/* The TLB: one region, as long as no quiescent state comes between. */
	struct gr_ram_block *block;
	uint64_t gpa, bytes, offset;
};

static void die(const char *what, const struct gr_error *err)
{
	fprintf(stderr, "emulator: %s: %s\n", what, err->msg);
	exit(1);
}

/* The word's place, or NULL: no memory there. Regions are whole pages. */
static uint32_t *find(struct core *c, uint32_t gpa) GR_REQUIRES_SHARED(gr_rcu_section)
{
	if (!c->block || gpa - c->gpa >= c->bytes) {
		c->gpa = gpa;
		c->block = gr_ram_block_by_gpa_rcu(c->ram, gr_gpa(gpa), &c->offset, &c->bytes);
	}
	return c->block ? (uint32_t *)(c->block->host + c->offset + (gpa - c->gpa)) : NULL;
}

static uint32_t load(struct core *c, uint32_t gpa) GR_REQUIRES_SHARED(gr_rcu_section)
{
	const uint32_t *word = find(c, gpa & ~3u);

	return word ? __atomic_load_n(word, __ATOMIC_RELAXED) : ~0u; /* an empty bus: all ones */
}

static void store(struct core *c, uint32_t gpa, uint32_t word) GR_REQUIRES_SHARED(gr_rcu_section)
{
	uint32_t *place = find(c, gpa & ~3u);

	if (place && !(gr_ram_block_flags(c->block) & GR_RAM_READONLY)) {
		__atomic_store_n(place, word, __ATOMIC_RELAXED);
		gr_ram_mark(c->block, c->offset + ((gpa & ~3u) - c->gpa), 4); /* after it */
	}
}

static void step(struct core *c) GR_REQUIRES_SHARED(gr_rcu_section)
{
	struct instruction i;
	uint32_t word = load(c, c->pc);

	memcpy(&i, &word, sizeof(i));
	c->pc += sizeof(i);
	switch ((enum op)i.op) {
	case SET:
		c->r[i.a] = i.b * (uint32_t)MIB;
		break;
	case ADD:
		c->r[i.a] += i.b;
		break;
	case LOAD:
		c->r[i.a] = load(c, c->r[i.b]);
		break;
	case STORE:
		store(c, c->r[i.b], c->r[i.a]);
		break;
	case JUMP:
		c->pc = i.b * (uint32_t)sizeof(i);
		break;
	}
}

static void *run(void *arg)
{
	struct core *c = arg;

	gr_rcu_qs_register_thread();
	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
		gr_rcu_qs_read_lock();
		for (int i = 0; i < SLICE; i++) {
			step(c);
		}
		c->block = NULL; /* it may go now */
		gr_rcu_qs_read_unlock();
		gr_rcu_quiescent_state();
	}
	gr_rcu_qs_unregister_thread();
	return NULL;
}

static uint32_t word_at(struct gr_ram *ram, uint64_t gpa)
{
	struct gr_error err;
	uint32_t word;

	if (gr_ram_read(ram, gr_gpa(gpa), &word, sizeof(word), &err) < 0) {
		die("read", &err);
	}
	return word;
}

/* Whether the core has seen something at the DIMM's place that begins at `from`. */
static bool counts_from(struct gr_ram *ram, uint32_t from)
{
	return word_at(ram, RESULT) - from < UINT32_MAX / 4;
}

static void await(struct gr_ram *ram, uint32_t from)
{
	while (!counts_from(ram, from)) {
	}
	printf("the core counts from %#" PRIx32 "\n", from);
}

int main(void)
{
	struct gr_ram_block_desc ram_desc = {
		.size = sizeof(ram_desc), .id = "ram", .used_bytes = MIB, .mapped = true
	};
	struct gr_ram_block_desc dimm_desc = { .size = sizeof(dimm_desc),
					       .id = "dimm",
					       .used_bytes = 4 * MIB,
					       .mapped = true,
					       .gpa = gr_gpa(DIMM) };
	struct core core = { .r = { 0, 0, 0, RESULT } };
	uint32_t from_device = 0x10000000;
	struct gr_dirty_consumer *consumer = NULL;
	struct gr_error err;
	pthread_t thread;
	uint64_t first, pages;

	if (gr_ram_create(NULL, &core.ram, &err) < 0 ||
	    gr_ram_block_add(core.ram, &ram_desc, NULL, &err) < 0 ||
	    gr_ram_write(core.ram, gr_gpa(0), code, sizeof(code), &err) < 0 ||
	    gr_dirty_consumer_add(gr_ram_dirty(core.ram), "example", GR_DIRTY_START_CLEAN,
				  &consumer, &err) < 0) {
		die("set-up", &err);
	}
	pthread_create(&thread, NULL, run, &core);
	await(core.ram, 0); /* nothing is there: all ones, and one more is 0 */

	if (gr_ram_block_add(core.ram, &dimm_desc, NULL, &err) < 0) {
		die("plug", &err);
	}
	await(core.ram, 1);
	/* A device writes, until the core has seen it: what the core had loaded before, it stores. */
	do {
		if (gr_ram_write(core.ram, gr_gpa(DIMM), &from_device, 4, &err) < 0) {
			die("device", &err);
		}
	} while (!counts_from(core.ram, from_device));
	await(core.ram, from_device);
	/* The core goes on; the memory goes when it has said that it does not look there any more.
	 */
	if (gr_ram_block_del_by_id(core.ram, "dimm", &err) < 0) {
		die("unplug", &err);
	}
	gr_rcu_barrier(NULL);
	await(core.ram, 0);

	__atomic_store_n(&core.stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	if (gr_dirty_epoch_begin(consumer, NULL, &err) < 0) {
		die("epoch", &err);
	}
	if (!gr_dirty_epoch_next(consumer, 0, &first, &pages)) {
		return 1;
	}
	printf("dirty since the start: %" PRIu64 " page from %#" PRIx64 "\n", pages,
	       first * gr_ram_page_bytes(core.ram));
	gr_dirty_epoch_commit(consumer);
	gr_dirty_consumer_del(consumer);
	gr_ram_free(core.ram);
	return first == RESULT / 4096 && pages == 1 ? 0 : 1;
}

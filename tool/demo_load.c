/* SPDX-License-Identifier: MIT */
#include "demo.h"
#include "writer.h"
#include <errno.h>
#include <guestram/rcu.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
	ALIVE_AIM = 8,
	PLUG_BYTES = 1 << 20,
	PLUGS_MAX = 900, /* the table has no room for ever */
	PLUG_NAP_NS = 4000000,
	LOOKUP_NAP_NS = 2000000,
	LOOKUPS_AT_ONCE = 500,
};

static void nap(long ns)
{
	const struct timespec ts = { .tv_nsec = ns };

	gr_rcu_park();
	(void)nanosleep(&ts, NULL);
}

static bool stopping(const struct demo_load *load)
{
	/* Relaxed: it only ends a loop; pthread_join() orders the rest. */
	return __atomic_load_n(&load->stop, __ATOMIC_RELAXED);
}

static void count(uint32_t *counter)
{
	/* Relaxed: statistics. */
	(void)__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

/* At switch-over blocks cannot come or go: not a failure, try again. */
static int plug_one(struct demo_load *load)
{
	bool moving = __atomic_load_n(&load->moving, __ATOMIC_RELAXED);
	int rc = vmm_machine_plug(load->machine, NULL, PLUG_BYTES, 0, &load->err);

	if (rc == 0) {
		load->next++;
		if (moving) {
			count(&load->plugged);
		}
	}
	return rc == -EBUSY ? 0 : rc;
}

static int unplug_oldest(struct demo_load *load)
{
	bool moving = __atomic_load_n(&load->moving, __ATOMIC_RELAXED);
	char id[32];
	int rc;

	(void)snprintf(id, sizeof(id), "dimm%u", load->oldest);
	rc = vmm_machine_unplug(load->machine, id, &load->err);
	if (rc == 0) {
		load->oldest++;
		if (moving) {
			count(&load->unplugged);
		}
	}
	return rc == -EBUSY ? 0 : rc;
}

static void *plug_main(void *opaque)
{
	struct demo_load *load = opaque;
	int rc = 0;

	while (rc == 0 && !stopping(load)) {
		if (load->next - load->oldest < ALIVE_AIM) {
			rc = load->next < PLUGS_MAX ? plug_one(load) : 0;
		} else {
			rc = unplug_oldest(load);
		}
		if (load->next - load->oldest >= ALIVE_AIM - 1) {
			nap(PLUG_NAP_NS);
		}
	}
	load->err.code = rc;
	return NULL;
}

/* One address, found in three ways that must agree. The block may go at any time. */
static bool look_up(struct gr_ram *ram, uint64_t gpa)
{
	struct gr_ram_block *block, *by_host, *by_addr;
	uint64_t offset, host_offset, word;
	GR_RCU_READ_GUARD();

	block = gr_ram_block_by_gpa_rcu(ram, gr_gpa(gpa), &offset, NULL);
	if (!block) {
		return true;
	}
	if (gpa >= VMM_PLUG_GPA_BASE) {
		/* Its memory is there. Not in main RAM: a look would fill its holes. */
		vmm_guest_load(block->host + offset, &word, 1);
	}
	by_host = gr_ram_block_by_host_rcu(ram, block->host + offset, &host_offset);
	by_addr = gr_ram_block_find_rcu(ram, gr_ram_addr(block->offset.v + offset));
	if (by_host == block && by_addr == block) {
		return host_offset == offset;
	}
	return !gr_ram_block_listed(block);
}

static void *lookup_main(void *opaque)
{
	struct demo_load *load = opaque;
	struct gr_ram *ram = vmm_machine_ram(load->machine);
	uint64_t x = (uint64_t)(uintptr_t)&x | 1, wrong = 0, lookups = 0;
	uint64_t ram_bytes = vmm_machine_workload(load->machine)->ram_pages * VMM_PAGE_BYTES;

	while (!stopping(load)) {
		for (int i = 0; i < LOOKUPS_AT_ONCE; i++) {
			uint64_t gpa;

			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			gpa = x / 16 * 8;
			gpa = x & 1 ? gpa % ram_bytes
				    : VMM_PLUG_GPA_BASE + gpa % (UINT64_C(256) << 20);
			wrong += !look_up(ram, gpa);
		}
		lookups += LOOKUPS_AT_ONCE;
		nap(LOOKUP_NAP_NS);
	}
	(void)__atomic_fetch_add(&load->lookups, lookups, __ATOMIC_RELAXED);
	(void)__atomic_fetch_add(&load->wrong, wrong, __ATOMIC_RELAXED);
	return NULL;
}

int demo_load_start(struct demo_load *load, struct vmm_machine *machine, struct gr_error *err)
{
	memset(load, 0, sizeof(*load));
	load->machine = machine;
	for (unsigned int i = 0; i <= DEMO_LOOKUP_THREADS; i++) {
		int rc = pthread_create(&load->threads[i], NULL, i == 0 ? plug_main : lookup_main,
					load);

		if (rc != 0) {
			(void)demo_load_stop(load, NULL);
			return gr_error_set(err, -rc, "cannot make a thread: %s", strerror(rc));
		}
		load->started++;
	}
	return 0;
}

int demo_load_stop(struct demo_load *load, struct gr_error *err)
{
	__atomic_store_n(&load->stop, true, __ATOMIC_RELAXED);
	for (unsigned int i = 0; i < load->started; i++) {
		(void)pthread_join(load->threads[i], NULL);
	}
	load->started = 0;
	if (load->wrong > 0) {
		return gr_error_set(err, -EBADMSG, "%llu lookups found the wrong block",
				    (unsigned long long)load->wrong);
	}
	if (load->err.code < 0) {
		return gr_error_set(err, load->err.code, "plugging: %s", load->err.msg);
	}
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Dirty-rate measurement. Sampling keeps a checksum of random pages of each big block and holds the
 * pages against it later. The other two are a consumer of the dirty memory like any other, or a
 * count of what went through the rings.
 */
#include "base/clock.h"
#include "base/compiler.h"
#include "base/random.h"
#include "ram/copy.h"
#include "ram/ram.h"
#include "track/kvm_memory.h"
#include <errno.h>
#include <guestram/dirty_rate.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SAMPLES_DEFAULT = 512 };
#define GIB		 ((uint64_t)1 << 30)
#define BLOCK_BYTES_MIN ((uint64_t)128 << 20)

struct sample {
	uint64_t offset; /* in the block, bytes */
	uint64_t sum;
};

struct sampled_block {
	struct gr_ram_block *block; /* a reference */
	uint64_t bytes;		    /* its length at the first look */
	size_t samples;
	struct sample *sample;
};

struct gr_dirty_rate {
	struct gr_dirty_rate_params params;
	struct gr_ram *ram;
	uint64_t page_bytes;
	uint64_t began_ns; /* the first look's begin: elapsed until the second one's */
	uint8_t *page;	   /* room for one */

	struct sampled_block *blocks; /* sampling */
	size_t block_count;

	bool tracking;			    /* started by us */
	struct gr_dirty_consumer *consumer; /* bitmap */
	uint64_t *vcpu_pages;		    /* ring: at the begin, per vCPU */
	uint64_t ring_pages;		    /* ring: at the begin, of all */
	unsigned int vcpus;
};

/* Not for enemies: it only has to change when the page does. */
static uint64_t checksum(const uint8_t *p, uint64_t bytes)
{
	uint64_t sum = 0x9e3779b97f4a7c15u;

	for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
		uint64_t word;

		memcpy(&word, p + at, sizeof(word));
		sum = (sum ^ word) * 0xff51afd7ed558ccdu;
		sum ^= sum >> 32;
	}
	return sum;
}

static uint64_t per_second(double bytes, uint64_t elapsed_ns)
{
	double rate = bytes * 1e9 / (double)elapsed_ns;

	return rate < 0x1p64 ? (uint64_t)rate : UINT64_MAX; /* the conversion must not run over */
}

/*
 * Through the file where it is the memory, which leaves holes be; the guest's stores to a private
 * mapping never reach its file. Whether the page could be read: what the file does not give (it was
 * cut, the memory is poisoned) would kill whoever loads it.
 */
static bool page_checksum(struct gr_dirty_rate *rate, const struct gr_ram_block *block,
			  uint64_t offset, uint64_t *ret_sum)
{
	if (block->fd >= 0 && !(gr_ram_block_flags(block) & GR_RAM_PRIVATE)) {
		if (pread(block->fd, rate->page, rate->page_bytes,
			  (off_t)(block->fd_offset + offset)) != (ssize_t)rate->page_bytes) {
			return false;
		}
	} else if (block->host) {
		gr_copy_from_guest(rate->page, block->host + offset, rate->page_bytes);
	} else {
		return false;
	}
	*ret_sum = checksum(rate->page, rate->page_bytes);
	return true;
}

/* ---- sampling ------------------------------------------------------------------------- */

static int hold_blocks(struct gr_dirty_rate *rate, struct gr_error *err)
{
	size_t room = 0, count;

	do {
		struct gr_ram_block *block;

		free(rate->blocks);
		room = 2 * room + 16;
		rate->blocks = calloc(room, sizeof(*rate->blocks));
		if (!rate->blocks) {
			return gr_error_set(err, -ENOMEM, "no memory to sample %zu blocks", room);
		}
		count = 0;
		gr_rcu_read_lock();
		gr_ram_for_each_block_rcu(block, rate->ram) {
			uint64_t bytes = gr_ram_block_used_bytes(block);

			if (bytes < rate->params.block_bytes_min) {
				continue;
			}
			if (count < room) {
				rate->blocks[count].block = block;
				rate->blocks[count].bytes = bytes;
			}
			count++;
		}
		for (size_t i = 0; count <= room && i < count; i++) {
			gr_ram_block_get(rate->blocks[i].block);
		}
		gr_rcu_read_unlock();
	} while (count > room);
	rate->block_count = count;
	return 0;
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static int sample_begin(struct gr_dirty_rate *rate, struct gr_error *err)
{
	uint64_t random = rate->params.seed;
	/* What comes from an image would count as written: read through the file it is zero until then. */
	int ret = gr_ram_loaded_check(rate->ram, err);

	ret = ret < 0 ? ret : hold_blocks(rate, err);

	rate->began_ns = gr_clock_ns();
	if (random == 0 && !gr_random(&random, sizeof(random))) {
		random = rate->began_ns; /* still other pages each time */
	}

	for (size_t i = 0; ret == 0 && i < rate->block_count; i++) {
		struct sampled_block *b = &rate->blocks[i];
		uint64_t pages = b->bytes / rate->page_bytes;
		size_t wanted = (size_t)GR_MAX(
			rate->params.samples_per_gib * (b->bytes >> 20) / 1024, (uint64_t)1);

		b->sample = calloc(wanted, sizeof(*b->sample));
		if (!b->sample) {
			return gr_error_set(err, -ENOMEM, "block '%s': no memory for %zu samples",
					    b->block->id, wanted);
		}
		for (size_t k = 0; k < wanted; k++) {
			struct sample *s = &b->sample[b->samples];

			s->offset = next_random(&random) % pages * rate->page_bytes;
			b->samples += page_checksum(rate, b->block, s->offset, &s->sum);
		}
	}
	return ret;
}

static void sample_end(struct gr_dirty_rate *rate, struct gr_dirty_rate_result *result)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < rate->block_count; i++) {
		struct sampled_block *b = &rate->blocks[i];
		uint64_t looked_at = 0;

		if (!gr_ram_block_listed(b->block) ||
		    gr_ram_block_used_bytes(b->block) != b->bytes) {
			continue; /* as if it had not been there */
		}
		for (size_t k = 0; k < b->samples; k++) {
			uint64_t sum;

			if (page_checksum(rate, b->block, b->sample[k].offset, &sum)) {
				result->dirty_pages += sum != b->sample[k].sum;
				looked_at++;
			}
		}
		result->sampled_pages += looked_at;
		bytes += looked_at > 0 ? b->bytes : 0;
	}
	if (result->sampled_pages > 0) {
		double part = (double)result->dirty_pages / (double)result->sampled_pages;

		result->bytes_per_s = per_second(part * (double)bytes, result->elapsed_ns);
	}
}

/* ---- tracking ------------------------------------------------------------------------- */

/* What is in debt would be reported once more without having been written. */
static int rearm_all(struct gr_dirty_rate *rate, struct gr_error *err)
{
	int ret = hold_blocks(rate, err);

	for (size_t i = 0; i < rate->block_count; i++) {
		struct sampled_block *b = &rate->blocks[i];

		if (ret == 0) {
			ret = gr_track_rearm(rate->params.track, b->block, 0, b->bytes, err);
		}
	}
	for (size_t i = 0; i < rate->block_count; i++) {
		gr_ram_block_put(rate->blocks[i].block);
	}
	rate->block_count = 0;
	return ret;
}

static int track_begin(struct gr_dirty_rate *rate, struct gr_error *err)
{
	int ret = gr_track_start(rate->params.track, rate->params.writers, err);

	if (ret < 0) {
		return ret;
	}
	rate->tracking = true;
	rate->began_ns = gr_clock_ns();
	ret = gr_track_sync(rate->params.track, err);
	if (ret == 0) {
		ret = rearm_all(rate, err);
	}
	if (ret == 0 && rate->params.mode == GR_DIRTY_RATE_BITMAP) {
		ret = gr_dirty_consumer_add(gr_ram_dirty(rate->ram), "dirty rate",
					    GR_DIRTY_START_CLEAN, &rate->consumer, err);
	} else if (ret == 0) {
		rate->ring_pages = gr_kvm_ring_counts(rate->params.kvm, rate->vcpu_pages,
						      GR_DIRTY_RATE_VCPUS_MAX, &rate->vcpus);
	}
	return ret;
}

static int track_end(struct gr_dirty_rate *rate, struct gr_dirty_rate_result *result,
		     struct gr_error *err)
{
	int ret = gr_track_sync(rate->params.track, err);

	if (ret < 0) {
		return ret;
	}
	if (rate->consumer) {
		uint64_t pages;

		ret = gr_dirty_epoch_begin(rate->consumer, &pages, err);
		if (ret < 0) {
			return ret;
		}
		/* Given back, so that a later look counts from the begin. */
		(void)gr_dirty_epoch_abort(rate->consumer);
		result->dirty_pages = pages;
	} else {
		uint64_t now[GR_DIRTY_RATE_VCPUS_MAX];
		unsigned int n;
		uint64_t all = gr_kvm_ring_counts(rate->params.kvm, now, GR_DIRTY_RATE_VCPUS_MAX, &n);

		result->dirty_pages = all - rate->ring_pages;
		/* Of those that were there at the begin: new ones come after them. */
		result->vcpus = GR_MIN(n, rate->vcpus);
		for (unsigned int i = 0; i < result->vcpus; i++) {
			uint64_t pages = now[i] - rate->vcpu_pages[i];

			result->vcpu_bytes_per_s[i] = per_second(
				(double)pages * (double)rate->page_bytes, result->elapsed_ns);
		}
	}
	result->bytes_per_s = per_second((double)result->dirty_pages * (double)rate->page_bytes,
					 result->elapsed_ns);
	return 0;
}

/* ---- both ----------------------------------------------------------------------------- */

static int check_params(struct gr_dirty_rate_params *p, struct gr_error *err)
{
	p->samples_per_gib = p->samples_per_gib ? p->samples_per_gib : SAMPLES_DEFAULT;
	p->block_bytes_min = p->block_bytes_min ? p->block_bytes_min : BLOCK_BYTES_MIN;
	switch (p->mode) {
	case GR_DIRTY_RATE_SAMPLING:
		if (p->samples_per_gib < GR_DIRTY_RATE_SAMPLES_MIN ||
		    p->samples_per_gib > GR_DIRTY_RATE_SAMPLES_MAX) {
			return gr_error_set(err, -EINVAL,
					    "dirty rate: %u sampled pages per GiB are not %d to %d",
					    p->samples_per_gib, GR_DIRTY_RATE_SAMPLES_MIN,
					    GR_DIRTY_RATE_SAMPLES_MAX);
		}
		return 0;
	case GR_DIRTY_RATE_RING:
		if (!p->kvm || !gr_kvm_ring_any(p->kvm)) {
			return gr_error_set(err, -EINVAL,
					    "dirty rate: no vCPU has a dirty ring: is kvm-ring in use?");
		}
		break;
	case GR_DIRTY_RATE_BITMAP:
		break;
	default:
		return gr_error_set(err, -EINVAL, "dirty rate: there is no mode %d", (int)p->mode);
	}
	p->block_bytes_min = 1; /* all blocks */
	return p->track ? 0 : gr_error_set(err, -EINVAL, "dirty rate: this mode needs the trackers");
}

int gr_dirty_rate_begin(struct gr_ram *ram, const struct gr_dirty_rate_params *params,
			struct gr_dirty_rate **ret_rate, struct gr_error *err)
{
	struct gr_dirty_rate *rate;
	int ret;

	if (params->size != sizeof(*params)) {
		return gr_error_set(err, -EINVAL, "dirty rate: parameters of %zu bytes, not %zu",
				    params->size, sizeof(*params));
	}
	rate = calloc(1, sizeof(*rate));
	if (!rate) {
		return gr_error_set(err, -ENOMEM, "no memory for a dirty rate");
	}
	rate->params = *params;
	rate->ram = ram;
	rate->page_bytes = gr_ram_page_bytes(ram);
	rate->page = malloc(rate->page_bytes);
	rate->vcpu_pages = calloc(GR_DIRTY_RATE_VCPUS_MAX, sizeof(*rate->vcpu_pages));
	ret = rate->page && rate->vcpu_pages
		      ? check_params(&rate->params, err)
		      : gr_error_set(err, -ENOMEM, "no memory for a dirty rate");
	if (ret == 0) {
		ret = rate->params.mode == GR_DIRTY_RATE_SAMPLING ? sample_begin(rate, err)
								  : track_begin(rate, err);
	}
	if (ret < 0) {
		gr_dirty_rate_free(rate);
		return ret;
	}
	*ret_rate = rate;
	return 0;
}

int gr_dirty_rate_end(struct gr_dirty_rate *rate, struct gr_dirty_rate_result *result,
		      struct gr_error *err)
{
	uint64_t elapsed = gr_clock_ns() - rate->began_ns;

	if (result->size != sizeof(*result)) {
		return gr_error_set(err, -EINVAL, "dirty rate: a result of %zu bytes, not %zu",
				    result->size, sizeof(*result));
	}
	memset(result, 0, sizeof(*result));
	result->size = sizeof(*result);
	result->elapsed_ns = GR_MAX(elapsed, (uint64_t)1);
	if (rate->params.mode == GR_DIRTY_RATE_SAMPLING) {
		int ret = gr_ram_loaded_check(rate->ram, err);

		if (ret == 0) {
			sample_end(rate, result);
		}
		return ret;
	}
	return track_end(rate, result, err);
}

void gr_dirty_rate_free(struct gr_dirty_rate *rate)
{
	if (!rate) {
		return;
	}
	gr_dirty_consumer_del(rate->consumer);
	if (rate->tracking) {
		gr_track_stop(rate->params.track);
	}
	for (size_t i = 0; i < rate->block_count; i++) {
		gr_ram_block_put(rate->blocks[i].block);
		free(rate->blocks[i].sample);
	}
	free(rate->blocks);
	free(rate->vcpu_pages);
	free(rate->page);
	free(rate);
}

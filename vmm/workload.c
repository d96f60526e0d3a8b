/* SPDX-License-Identifier: MIT */
/*
 * The closed form of the workload: which page an operation writes, and which was the last
 * operation that wrote a page. workload.h is the specification.
 */
#include "workload.h"
#include <errno.h>

enum {
	KIND_HOT,
	KIND_ONCE,
	KINDS = 3, /* the third is never touched */
	GROUP_SPAN = KINDS * VMM_GROUP_PAGES,
};

static uint64_t page_of(unsigned int kind, uint64_t index)
{
	return VMM_SYSTEM_PAGES + index / VMM_GROUP_PAGES * GROUP_SPAN + kind * VMM_GROUP_PAGES +
	       index % VMM_GROUP_PAGES;
}

/* The reverse: which kind a page is, and its index. Pages below the groups are no kind. */
static unsigned int kind_of(uint64_t pfn, uint64_t *ret_index)
{
	uint64_t at;

	if (pfn < VMM_SYSTEM_PAGES) {
		return KINDS;
	}
	at = pfn - VMM_SYSTEM_PAGES;
	*ret_index = at / GROUP_SPAN * VMM_GROUP_PAGES + at % VMM_GROUP_PAGES;
	return (unsigned int)(at % GROUP_SPAN / VMM_GROUP_PAGES);
}

/* a * inverse % m == 1, or 0 when a and m have a factor in common. Extended Euclid. */
static uint64_t inverse(uint64_t a, uint64_t m)
{
	int64_t t = 0, next_t = 1;
	uint64_t r = m, next_r = a % m;

	if (m == 1) {
		return 0; /* everything is 0 modulo 1 */
	}
	while (next_r != 0) {
		uint64_t quotient = r / next_r, rest = r % next_r;
		int64_t swap = t - (int64_t)quotient * next_t;

		r = next_r;
		next_r = rest;
		t = next_t;
		next_t = swap;
	}
	if (r != 1) {
		return 0;
	}
	return t < 0 ? (uint64_t)(t + (int64_t)m) : (uint64_t)t;
}

int vmm_workload_init(struct vmm_workload *wl, const struct vmm_workload_params *params,
		      struct gr_error *err)
{
	uint64_t pages = params->memory_bytes / VMM_PAGE_BYTES;
	uint64_t groups;

	if (params->memory_bytes % VMM_PAGE_BYTES != 0 ||
	    params->memory_bytes < VMM_MEMORY_BYTES_MIN ||
	    params->memory_bytes > VMM_MEMORY_BYTES_MAX) {
		return gr_error_set(err, -EINVAL,
				    "memory of %llu bytes: must be whole pages, 1M to 3G",
				    (unsigned long long)params->memory_bytes);
	}
	groups = (pages - VMM_SYSTEM_PAGES) / GROUP_SPAN;
	*wl = (struct vmm_workload){
		.magic = VMM_WORKLOAD_MAGIC,
		.ram_pages = pages,
		.writers = params->writers,
		.hot_pages = params->hot_pages ? params->hot_pages : groups * VMM_GROUP_PAGES / 2,
		.once_pages = groups * VMM_GROUP_PAGES,
		.once_every = params->once_every ? params->once_every : 2,
	};
	wl->fill_ops = wl->hot_pages;
	/* about the golden section of O: neighbours in time are far apart in memory */
	wl->once_stride = wl->once_pages * 618 / 1000;
	do {
		wl->once_stride++;
		wl->once_inverse = inverse(wl->once_stride, wl->once_pages);
	} while (wl->once_inverse == 0);
	return vmm_workload_validate(wl, err);
}

int vmm_workload_validate(const struct vmm_workload *wl, struct gr_error *err)
{
	uint64_t index;

	if (wl->magic != VMM_WORKLOAD_MAGIC) {
		return gr_error_set(err, -EINVAL, "workload: not a description of one");
	}
	if (wl->ram_pages < VMM_MEMORY_BYTES_MIN / VMM_PAGE_BYTES ||
	    wl->ram_pages > VMM_MEMORY_BYTES_MAX / VMM_PAGE_BYTES) {
		return gr_error_set(err, -EINVAL, "workload: %llu pages of memory",
				    (unsigned long long)wl->ram_pages);
	}
	if (wl->writers < VMM_WRITERS_MIN || wl->writers > VMM_WRITERS_MAX) {
		return gr_error_set(err, -EINVAL, "workload: %llu writers: must be %d to %d",
				    (unsigned long long)wl->writers, VMM_WRITERS_MIN,
				    VMM_WRITERS_MAX);
	}
	index = (wl->ram_pages - VMM_SYSTEM_PAGES) / GROUP_SPAN * VMM_GROUP_PAGES;
	if (wl->hot_pages < 2 || wl->hot_pages > index) {
		return gr_error_set(err, -EINVAL, "workload: %llu hot pages: must be 2 to %llu",
				    (unsigned long long)wl->hot_pages, (unsigned long long)index);
	}
	if (wl->once_pages < 2 || wl->once_pages > index) {
		return gr_error_set(err, -EINVAL, "workload: %llu once pages: must be 2 to %llu",
				    (unsigned long long)wl->once_pages, (unsigned long long)index);
	}
	if (wl->once_every < 2 || wl->once_every > UINT32_MAX || wl->fill_ops > UINT32_MAX) {
		return gr_error_set(err, -EINVAL, "workload: a page once in %llu operations",
				    (unsigned long long)wl->once_every);
	}
	if (wl->once_stride == 0 || wl->once_stride > UINT32_MAX ||
	    wl->once_inverse >= wl->once_pages ||
	    wl->once_stride % wl->once_pages * wl->once_inverse % wl->once_pages != 1) {
		return gr_error_set(err, -EINVAL, "workload: a stride of %llu for %llu pages",
				    (unsigned long long)wl->once_stride,
				    (unsigned long long)wl->once_pages);
	}
	return 0;
}

/* Where in the hot set writer w begins, so that the writers are in different places. */
static uint64_t hot_start(const struct vmm_workload *wl, uint64_t w)
{
	return w * wl->hot_pages / wl->writers;
}

bool vmm_workload_page(const struct vmm_workload *wl, uint64_t w, uint64_t i, uint64_t *ret_pfn)
{
	uint64_t hot = i;

	if (i >= wl->fill_ops) {
		uint64_t j = i - wl->fill_ops, q = j / wl->once_every;

		if (j % wl->once_every == wl->once_every - 1) {
			uint64_t t;

			if (q >= wl->once_pages) {
				return false; /* and t below cannot overflow */
			}
			t = q * wl->writers + w;
			if (t >= wl->once_pages) {
				return false;
			}
			*ret_pfn = page_of(KIND_ONCE, t * wl->once_stride % wl->once_pages);
			return true;
		}
		hot = i - q;
	}
	*ret_pfn = page_of(KIND_HOT, (hot + hot_start(wl, w)) % wl->hot_pages);
	return true;
}

static bool last_hot_op(const struct vmm_workload *wl, uint64_t w, uint64_t index, uint64_t ops,
			uint64_t *ret_op)
{
	uint64_t first = (index + wl->hot_pages - hot_start(wl, w)) % wl->hot_pages;
	uint64_t hot_ops = ops, hot, j;

	if (ops > wl->fill_ops) {
		hot_ops = ops - (ops - wl->fill_ops) / wl->once_every;
	}
	if (hot_ops <= first) {
		return false;
	}
	hot = first + (hot_ops - 1 - first) / wl->hot_pages * wl->hot_pages;
	if (hot < wl->fill_ops) {
		*ret_op = hot;
		return true;
	}
	/* K - 1 hot operations, then one that is not */
	j = hot - wl->fill_ops;
	*ret_op =
		wl->fill_ops + j / (wl->once_every - 1) * wl->once_every + j % (wl->once_every - 1);
	return true;
}

bool vmm_workload_last_op(const struct vmm_workload *wl, uint64_t w, uint64_t pfn, uint64_t ops,
			  uint64_t *ret_op)
{
	uint64_t index, t, op;

	switch (kind_of(pfn, &index)) {
	case KIND_HOT:
		return index < wl->hot_pages && last_hot_op(wl, w, index, ops, ret_op);
	case KIND_ONCE:
		if (index >= wl->once_pages) {
			return false;
		}
		t = index * wl->once_inverse % wl->once_pages;
		op = wl->fill_ops + t / wl->writers * wl->once_every + wl->once_every - 1;
		if (t % wl->writers != w || op >= ops) {
			return false;
		}
		*ret_op = op;
		return true;
	default:
		return false;
	}
}

bool vmm_workload_is_once(const struct vmm_workload *wl, uint64_t pfn)
{
	uint64_t index;

	return kind_of(pfn, &index) == KIND_ONCE && index < wl->once_pages;
}

bool vmm_plug_last_op(uint64_t pages, uint64_t page, uint64_t ops, uint64_t *ret_op)
{
	if (pages == 0 || ops <= page) {
		return false;
	}
	*ret_op = page + (ops - 1 - page) / pages * pages;
	return true;
}

/* SPDX-License-Identifier: MIT */
/*
 * The workload that every guest of the reference monitor runs, whoever runs it: the guest
 * made of threads (threads.c) and the KVM guest's own code. This header is its
 * specification. What it is for: from the saved registers of the writers alone the right
 * value of every word of guest memory is known, so a destination checks every page of what
 * it received and names the first word that is wrong.
 *
 * Writers. W of them (2 to 8), numbered from 0: vCPU v is writer v, the device (device.c) is
 * the last one, W - 1. A page has 512 words of 8 bytes, little-endian. Writer w owns the
 * words [w * 512 / W, (w + 1) * 512 / W) of every page: its segment. Every page can be
 * shared by all writers, and every word has one writer.
 *
 * Operations. A writer counts its operations from 0. Operation i writes the writer's
 * segment of one page: word k of the segment (from 0) becomes
 *
 *     base + k * STEP    with base = vmm_workload_base(w, pfn, i)
 *
 * pfn is the page's guest physical address / 4096. All arithmetic is modulo 2^64. What no
 * operation has written is 0. Words are written in order of k.
 *
 * Which page. With the constants of the run (struct vmm_workload):
 *
 *     i < F                      the hot page number  i
 *     else, j = i - F:
 *       j % K == K - 1           the once page number j / K
 *       else                     the hot page number  F + j - j / K
 *
 *     hot number h:              hot page (h + w * H / W) % H
 *     once number q:             t = q * W + w; nothing at all if t >= O, else
 *                                once page (t * stride) % O; stride has no factor with O
 *
 * So the first F operations fill the hot set, and every K-th one after that writes a page
 * that nobody has written before and nobody will write again: if such a page is lost on its
 * way, no later write heals it. A third of all pages is written once; a hot set is
 * written all the time; the rest is never touched and stays zero. The three kinds lie
 * side by side in groups of 48 pages, 16 of each:
 *
 *     page of kind c (hot 0, once 1, untouched 2), index x:
 *             VMM_SYSTEM_PAGES + (x / 16) * 48 + c * 16 + x % 16
 *
 * Plugged blocks. After the main operation i with i % 8 == 7 a writer does one operation on
 * a plugged block, if there is one; which one is its own choice (all get their turn). For
 * each entry of the plug table a writer has a counter; operation m on an entry of P pages
 * writes the writer's segment of its page m % P, value rule as above with i = m. When a
 * block is gone, stores to it are dropped, as hardware does; then its content is of no
 * interest any more.
 *
 * Registers of a writer (struct vmm_writer_regs): op is the number of the main operation
 * that is in progress or next; plug_entry is 0, or e + 1 while the operation on entry e is
 * in progress (op is then the next main operation); words_done words of the operation in
 * progress have been stored, the others have not. plug_ops are the counters.
 *
 * Guest memory below VMM_SYSTEM_PAGES, page numbers:
 *
 *     1       struct vmm_workload, the constants, for a guest that wants to read them
 *     2       struct vmm_heartbeat
 *     3       two words: live plug entries are in [first, end)
 *     4..7    the plug table: struct vmm_plug[1024], pages == 0 means not live
 *     8..63   the accelerator's own (code, page tables, counters); zero if it has none
 *
 * The monitor writes pages 3 to 7 with gr_ram_write(): gpa first, then pages. System pages are
 * checked by a digest that the source takes while the guest is stopped.
 *
 * Heartbeat. Several times per millisecond at best, at least every few milliseconds, the
 * guest reads a clock (CLOCK_MONOTONIC in ns, the same in both processes of a move on one
 * host) and updates vmm_heartbeat as vmm_heartbeat_beat() does. The largest gap that it
 * sees over a move is the downtime as the guest saw it.
 */
#ifndef VMM_WORKLOAD_H
#define VMM_WORKLOAD_H

#include <guestram/error.h>
#include <guestram/types.h>

enum {
	VMM_PAGE_BYTES = 4096,
	VMM_PAGE_WORDS = VMM_PAGE_BYTES / 8,
	VMM_SYSTEM_PAGES = 64,
	VMM_CONFIG_GPA = 1 * VMM_PAGE_BYTES,
	VMM_HEARTBEAT_GPA = 2 * VMM_PAGE_BYTES,
	VMM_PLUG_RANGE_GPA = 3 * VMM_PAGE_BYTES,
	VMM_PLUG_TABLE_GPA = 4 * VMM_PAGE_BYTES,
	VMM_ACCEL_GPA = 8 * VMM_PAGE_BYTES,
	VMM_GROUP_PAGES = 16, /* pages of one kind side by side */
	VMM_PLUG_EVERY = 8,   /* main operations per operation on a plugged block */
	VMM_PLUGS_MAX = 1024, /* entries of the plug table, never used twice */
	VMM_WRITERS_MIN = 2,
	VMM_WRITERS_MAX = 8,
};

#define VMM_PLUG_GPA_BASE    (UINT64_C(4) << 30)  /* plugged blocks live from here... */
#define VMM_PLUG_GPA_END     (UINT64_C(20) << 30) /* ...to here */
#define VMM_MEMORY_BYTES_MIN (UINT64_C(1) << 20)
#define VMM_MEMORY_BYTES_MAX (UINT64_C(3) << 30)	  /* below the hole for devices */
#define VMM_WORKLOAD_MAGIC   UINT64_C(0x3144414f4c4b5257) /* "WRKLOAD1" */

/* The constants of a run, as the guest and the stream see them: little-endian words. */
struct vmm_workload {
	uint64_t magic;
	uint64_t ram_pages;    /* pages of the main RAM, system pages included */
	uint64_t writers;      /* W */
	uint64_t hot_pages;    /* H, at least 2 */
	uint64_t once_pages;   /* O */
	uint64_t once_every;   /* K, at least 2 */
	uint64_t fill_ops;     /* F */
	uint64_t once_stride;  /* no factor in common with O */
	uint64_t once_inverse; /* once_stride * once_inverse % O == 1 */
};

/* One entry of the plug table. */
struct vmm_plug {
	uint64_t gpa;
	uint64_t pages; /* 0: not live */
};

/* What a writer has in its registers. */
struct vmm_writer_regs {
	uint64_t op;
	uint32_t words_done;
	uint32_t plug_entry; /* 0, or the entry in progress + 1 */
	uint64_t plug_ops[VMM_PLUGS_MAX];
};

/* The guest's clock page. */
struct vmm_heartbeat {
	uint64_t last_ns;      /* when it last looked */
	uint64_t gap_ns_max;   /* longest time between two looks */
	uint64_t gap_began_ns; /* when that one began */
	uint64_t beats;	       /* how often it looked */
};

/* Multipliers of the value rule. */
#define VMM_MIX_OP     UINT64_C(0x9e3779b97f4a7c15)
#define VMM_MIX_PAGE   UINT64_C(0xc2b2ae3d27d4eb4f)
#define VMM_MIX_WRITER UINT64_C(0x165667b19e3779f9)
#define VMM_STEP       UINT64_C(0xd6e8feb86659fd93)

/*
 * The first value of a segment:
 *     x = (i + 1) * OP + pfn * PAGE + (w + 1) * WRITER
 *     x ^= x >> 32;  x *= OP;  rotate left by 29;  x |= 1
 */
static inline uint64_t vmm_workload_base(uint64_t w, uint64_t pfn, uint64_t i)
{
	uint64_t x = (i + 1) * VMM_MIX_OP + pfn * VMM_MIX_PAGE + (w + 1) * VMM_MIX_WRITER;

	x ^= x >> 32;
	x *= VMM_MIX_OP;
	x = x << 29 | x >> 35;
	return x | 1;
}

/* The segment of writer w: first word and number of words. */
static inline uint32_t vmm_segment_first(uint64_t writers, uint64_t w)
{
	return (uint32_t)(w * VMM_PAGE_WORDS / writers);
}

static inline uint32_t vmm_segment_words(uint64_t writers, uint64_t w)
{
	return vmm_segment_first(writers, w + 1) - vmm_segment_first(writers, w);
}

/* One look at the clock. */
static inline void vmm_heartbeat_beat(struct vmm_heartbeat *hb, uint64_t now_ns)
{
	if (hb->beats > 0 && now_ns - hb->last_ns > hb->gap_ns_max) {
		hb->gap_ns_max = now_ns - hb->last_ns;
		hb->gap_began_ns = hb->last_ns;
	}
	hb->last_ns = now_ns;
	hb->beats++;
}

/* What a run shall be like; zero means the default. */
struct vmm_workload_params {
	uint64_t memory_bytes; /* main RAM, page multiple */
	uint64_t writers;      /* vCPUs and the device */
	uint64_t hot_pages;    /* default: half of the hot groups, a sixth of RAM */
	uint64_t once_every;   /* default: 2 */
};

/*
 * Make the constants of a run. -EINVAL: memory too small, too big or no page multiple, or a
 * number of writers, hot pages or once_every that cannot be.
 */
int vmm_workload_init(struct vmm_workload *wl, const struct vmm_workload_params *params,
		      struct gr_error *err);

/* Whether constants that came from outside can be used. -EINVAL with the reason if not. */
int vmm_workload_validate(const struct vmm_workload *wl, struct gr_error *err);

/* The page that main operation i of writer w writes; false when it writes nothing. */
bool vmm_workload_page(const struct vmm_workload *wl, uint64_t w, uint64_t i, uint64_t *ret_pfn);

/* Whether a page is one of those that are written once. */
bool vmm_workload_is_once(const struct vmm_workload *wl, uint64_t pfn);

/*
 * The last main operation below `ops` of writer w that wrote a page, in constant time; false
 * when there is none.
 */
bool vmm_workload_last_op(const struct vmm_workload *wl, uint64_t w, uint64_t pfn, uint64_t ops,
			  uint64_t *ret_op);

/* The same for an entry of the plug table: page is the number within the entry. */
bool vmm_plug_last_op(uint64_t pages, uint64_t page, uint64_t ops, uint64_t *ret_op);

#endif

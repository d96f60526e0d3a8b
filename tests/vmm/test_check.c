/* SPDX-License-Identifier: MIT */
/* The checker finds what is wrong, and only that. */
#include "check.h"
#include "harness.h"
#include <errno.h>
#include <stdlib.h>

enum { PAGES = 1024, WRITERS = 3, PLUG_PAGES = 8 };

struct guest {
	struct gr_ram *ram;
	struct vmm_workload wl;
	struct vmm_writer_regs regs[WRITERS];
	struct vmm_plug plugs[VMM_PLUGS_MAX];
	uint64_t digests[VMM_SYSTEM_PAGES];
};

static void add_block(struct guest *guest, const char *id, uint64_t gpa, uint64_t pages)
{
	struct gr_error err;
	const struct gr_ram_block_desc desc = { .size = sizeof(desc),
						.id = id,
						.used_bytes = pages * VMM_PAGE_BYTES,
						.mapped = true,
						.gpa = gr_gpa(gpa),
						.fd = -1 };

	if (gr_ram_block_add(guest->ram, &desc, NULL, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void store(struct guest *guest, uint64_t gpa, uint64_t word)
{
	ASSERT_EQ(gr_ram_write(guest->ram, gr_gpa(gpa), &word, sizeof(word), NULL), 0);
}

static uint64_t load(struct guest *guest, uint64_t gpa)
{
	uint64_t word = 0;

	ASSERT_EQ(gr_ram_read(guest->ram, gr_gpa(gpa), &word, sizeof(word), NULL), 0);
	return word;
}

static void store_op(struct guest *guest, unsigned int w, uint64_t pfn, uint64_t op, uint32_t words)
{
	uint64_t gpa = pfn * VMM_PAGE_BYTES + 8 * (uint64_t)vmm_segment_first(WRITERS, w);

	for (uint32_t k = 0; k < words; k++) {
		store(guest, gpa + 8 * (uint64_t)k, vmm_workload_base(w, pfn, op) + k * VMM_STEP);
	}
}

/* A guest as the specification says, written down plainly; each writer stops in an operation. */
static struct guest *make_guest(uint64_t *rnd)
{
	const struct vmm_workload_params params = { .memory_bytes = PAGES * VMM_PAGE_BYTES,
						    .writers = WRITERS };
	struct guest *guest = calloc(1, sizeof(*guest));

	ASSERT_EQ(gr_ram_create(NULL, &guest->ram, NULL), 0);
	ASSERT_EQ(vmm_workload_init(&guest->wl, &params, NULL), 0);
	add_block(guest, "ram", 0, PAGES);
	add_block(guest, "dimm5", VMM_PLUG_GPA_BASE, PLUG_PAGES);
	guest->plugs[5] = (struct vmm_plug){ .gpa = VMM_PLUG_GPA_BASE, .pages = PLUG_PAGES };
	store(guest, 0x2008, 77); /* something in the system pages */
	ASSERT_EQ(vmm_system_digests(guest->ram, guest->digests, NULL), 0);
	for (unsigned int w = 0; w < WRITERS; w++) {
		struct vmm_writer_regs *regs = &guest->regs[w];
		uint32_t words = vmm_segment_words(WRITERS, w);
		uint64_t ops = 200 + test_rand(rnd) % 700, pfn, m;

		for (regs->op = 0; regs->op < ops; regs->op++) {
			if (vmm_workload_page(&guest->wl, w, regs->op, &pfn)) {
				store_op(guest, w, pfn, regs->op, words);
			}
		}
		for (m = 0; m < 11; m++) {
			pfn = VMM_PLUG_GPA_BASE / VMM_PAGE_BYTES + m % PLUG_PAGES;
			store_op(guest, w, pfn, m, words);
		}
		regs->plug_ops[5] = m;
		regs->words_done = (uint32_t)(test_rand(rnd) % words);
		if (w == 1) {
			regs->plug_entry = 5 + 1;
			pfn = VMM_PLUG_GPA_BASE / VMM_PAGE_BYTES + m % PLUG_PAGES;
			store_op(guest, w, pfn, m, regs->words_done);
		} else if (vmm_workload_page(&guest->wl, w, regs->op, &pfn)) {
			store_op(guest, w, pfn, regs->op, regs->words_done);
		}
	}
	return guest;
}

static void free_guest(struct guest *guest)
{
	gr_ram_free(guest->ram);
	free(guest);
}

static void check(struct guest *guest, struct vmm_check *ret)
{
	const struct vmm_check_input in = { .ram = guest->ram,
					    .wl = &guest->wl,
					    .regs = guest->regs,
					    .plugs = guest->plugs,
					    .system_digests = guest->digests };

	vmm_check_memory(&in, ret);
}

TEST(right_memory_is_right_down_to_half_done_operations)
{
	uint64_t rnd = test_seed(), once = 0;
	struct guest *guest = make_guest(&rnd);
	struct vmm_check result;
	char text[200];

	check(guest, &result);
	vmm_check_describe(&result, text, sizeof(text));
	test_diag("%s", text);
	ASSERT_EQ(result.pages_wrong, 0u);
	ASSERT_EQ(result.pages_checked, (uint64_t)PAGES);
	ASSERT_EQ(result.plugged_pages_checked, (uint64_t)PLUG_PAGES);
	ASSERT_GT(result.device_pages_checked, (uint64_t)PLUG_PAGES);
	for (unsigned int w = 0; w < WRITERS; w++) {
		once += (guest->regs[w].op - guest->wl.fill_ops) / guest->wl.once_every;
	}
	ASSERT_LE(result.pages_written_once, once);
	ASSERT_GT(result.pages_written_once, 0u);
	free_guest(guest);
}

TEST(one_wrong_bit_anywhere_is_found_and_named)
{
	uint64_t rnd = test_seed();
	struct guest *guest = make_guest(&rnd);
	struct vmm_check result;
	char text[200], where[32];

	for (int i = 0; i < 60; i++) {
		uint64_t gpa = test_rand(&rnd) % (PAGES * VMM_PAGE_BYTES / 8) * 8, right;

		if (i % 4 == 0) {
			gpa = VMM_PLUG_GPA_BASE + gpa % (PLUG_PAGES * VMM_PAGE_BYTES);
		} else if (i % 4 == 1) {
			gpa %= VMM_SYSTEM_PAGES * VMM_PAGE_BYTES;
		}
		right = load(guest, gpa);
		store(guest, gpa, right ^ UINT64_C(1) << test_rand(&rnd) % 64);
		check(guest, &result);
		ASSERT_EQ(result.pages_wrong, 1u);
		if (gpa >= VMM_SYSTEM_PAGES * VMM_PAGE_BYTES) {
			ASSERT_EQ(result.first_wrong.gpa, gpa);
			ASSERT_EQ(result.first_wrong.expected, right);
		} else {
			ASSERT_EQ(result.first_wrong.gpa, gpa / VMM_PAGE_BYTES * VMM_PAGE_BYTES);
		}
		vmm_check_describe(&result, text, sizeof(text));
		(void)snprintf(where, sizeof(where), "%#" PRIx64, result.first_wrong.gpa);
		ASSERT_HAS(text, where);
		store(guest, gpa, right);
	}
	check(guest, &result);
	ASSERT_EQ(result.pages_wrong, 0u);
	free_guest(guest);
}

TEST(a_page_of_an_older_time_is_wrong)
{
	uint64_t rnd = test_seed();
	struct guest *guest = make_guest(&rnd);
	struct vmm_check result;

	for (unsigned int w = 0; w < WRITERS; w++) {
		struct vmm_writer_regs before = guest->regs[w];

		guest->regs[w].op += 2; /* two more were done, and the pages were lost */
		guest->regs[w].words_done = 0;
		guest->regs[w].plug_entry = 0;
		check(guest, &result);
		ASSERT_GE(result.pages_wrong, 1u);
		guest->regs[w] = before;
	}
	free_guest(guest);
}

TEST(a_plugged_block_that_is_not_there_is_wrong)
{
	uint64_t rnd = test_seed();
	struct guest *guest = make_guest(&rnd);
	struct vmm_check result;
	char text[200];

	guest->plugs[6] = (struct vmm_plug){ .gpa = VMM_PLUG_GPA_BASE + (1 << 30), .pages = 3 };
	check(guest, &result);
	ASSERT_EQ(result.pages_wrong, 3u);
	vmm_check_describe(&result, text, sizeof(text));
	ASSERT_HAS(text, "nothing is mapped");
	guest->plugs[6].pages = 0;
	ASSERT_EQ(gr_ram_block_del_by_id(guest->ram, "dimm5", NULL), 0);
	check(guest, &result);
	ASSERT_EQ(result.pages_wrong, (uint64_t)PLUG_PAGES);
	guest->plugs[5].pages = 0; /* unplugged: nobody asks for it */
	guest->regs[1].plug_entry = 0;
	guest->regs[1].words_done = 0;
	check(guest, &result);
	ASSERT_EQ(result.pages_wrong, 0u);
	free_guest(guest);
}

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
/*
 * A machine's RAM in one page: add a block, map it for the guest, read and write it as a
 * device does, see what was written, take the block out again.
 */
#include <guestram/ram.h>
#include <stdio.h>
#include <string.h>

static int fail(const struct gr_error *err)
{
	fprintf(stderr, "ram: %s\n", err->msg);
	return 1;
}

static int print_dirty(struct gr_ram *ram, struct gr_dirty_consumer *consumer)
{
	uint64_t pages, at = 0, first, n;
	struct gr_error err;

	if (gr_dirty_epoch_begin(consumer, &pages, &err) < 0) {
		return fail(&err);
	}
	printf("%llu pages were written:", (unsigned long long)pages);
	for (; gr_dirty_epoch_next(consumer, at, &first, &n); at = first + n) {
		printf(" %#llx+%llu", (unsigned long long)(first * gr_ram_page_bytes(ram)),
		       (unsigned long long)n);
	}
	printf("\n");
	/* They are safe (here: seen). After a failure: gr_dirty_epoch_abort(). */
	return gr_dirty_epoch_commit(consumer);
}

int main(void)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = "ram",
		.used_bytes = 16 << 20,
		.backing = GR_RAM_ANONYMOUS, /* 0, on Linux: a memfd, which other processes can map */
		.mapped = true,
		.gpa = gr_gpa(0x100000),
	};
	struct gr_dirty_consumer *consumer;
	struct gr_ram_block *block;
	struct gr_error err;
	struct gr_ram *ram;
	char text[16] = "";
	uint64_t offset;

	if (gr_ram_create(NULL, &ram, &err) < 0 || gr_ram_block_add(ram, &desc, &block, &err) < 0) {
		return fail(&err);
	}
	/* Whoever wants to know what is written from now on is a consumer. */
	if (gr_dirty_consumer_add(gr_ram_dirty(ram), "example", GR_DIRTY_START_CLEAN, &consumer,
				  &err) < 0) {
		return fail(&err);
	}

	/* As a device: across page, region and block borders; marks what it writes. */
	if (gr_ram_write(ram, gr_gpa(0x100ffc), "hello, guest", 13, &err) < 0 ||
	    gr_ram_read(ram, gr_gpa(0x100ffc), text, 13, &err) < 0) {
		return fail(&err);
	}
	printf("the guest sees \"%s\"\n", text);

	/* Through a pointer: find the block in a read-side section, store, then mark. */
	gr_rcu_read_lock();
	block = gr_ram_block_by_gpa_rcu(ram, gr_gpa(0x180000), &offset, NULL);
	memset(block->host + offset, 0xff, 4096);
	gr_ram_mark(block, offset, 4096);
	gr_rcu_read_unlock();
	if (print_dirty(ram, consumer) != 0) {
		return 1;
	}

	/* Unplug: gone at once for who looks it up, its memory when the last reader is done. */
	if (gr_ram_block_del_by_id(ram, "ram", &err) < 0) {
		return fail(&err);
	}
	if (gr_ram_read(ram, gr_gpa(0x100ffc), text, 13, &err) == 0) {
		return 1;
	}
	printf("after unplug: %s\n", err.msg);
	gr_dirty_consumer_del(consumer);
	gr_ram_free(ram);
	return 0;
}

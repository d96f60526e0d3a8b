/* SPDX-License-Identifier: MIT */
#include "bench/guest.h"
#include "bench/harness.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { CODE_AT = 0x7c00, GDT_AT = 0x180, SECTOR = 512, FLOPPY = 1440 << 10 };

double bench_guest_ticks_per_s(void)
{
#if defined(__x86_64__)
	static double per_s;

	if (per_s == 0) {
		double began = bench_now_s();
		uint64_t ticks = __builtin_ia32_rdtsc();

		while (bench_now_s() - began < 0.05) {
		}
		per_s = (double)(__builtin_ia32_rdtsc() - ticks) / (bench_now_s() - began);
	}
	return per_s;
#else
	return 0;
#endif
}

struct code {
	uint8_t bytes[SECTOR];
	size_t n;
};

static void put(struct code *c, const char *bytes, size_t n)
{
	if (c->n + n > GDT_AT) {
		bench_die("the guest is too long");
	}
	memcpy(c->bytes + c->n, bytes, n);
	c->n += n;
}

#define PUT(c, bytes) put(c, bytes, sizeof(bytes) - 1)

static void put32(struct code *c, uint32_t v)
{
	const char bytes[] = { (char)v, (char)(v >> 8), (char)(v >> 16), (char)(v >> 24) };

	put(c, bytes, sizeof(bytes));
}

/* Real mode, with a segment es that reaches everywhere. */
static void put_start(struct code *c)
{
	PUT(c, "\xfa");					/* cli */
	PUT(c, "\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c"); /* ds = ss = 0; sp = 0x7c00 */
	PUT(c, "\xe4\x92\x0c\x02\xe6\x92");		/* A20 on */
	PUT(c, "\x0f\x01\x16\x90\x7d");			/* lgdt [0x7c00 + GDT_AT + 16] */
	PUT(c, "\x0f\x20\xc0\x0c\x01\x0f\x22\xc0");	/* protected mode */
	PUT(c, "\xbb\x08\x00\x8e\xc3");			/* es = 8: a limit of 4 GiB, kept ... */
	PUT(c, "\x24\xfe\x0f\x22\xc0");			/* ... in real mode */
	PUT(c, "\x66\x31\xf6");				/* esi = 0: the number of stores */
	PUT(c, "\x66\xbd");				/* ebp: random, xorshift32 */
	put32(c, 2463534242u);
}

static void put_loop(struct code *c, uint32_t pages, uint32_t gap_ticks)
{
	size_t loop = c->n, wait;

	PUT(c, "\x66\x89\xe8\x66\xc1\xe0\x0d\x66\x31\xc5"); /* ebp ^= ebp << 13 */
	PUT(c, "\x66\x89\xe8\x66\xc1\xe8\x11\x66\x31\xc5"); /* ebp ^= ebp >> 17 */
	PUT(c, "\x66\x89\xe8\x66\xc1\xe0\x05\x66\x31\xc5"); /* ebp ^= ebp << 5 */
	PUT(c, "\x66\x89\xef\x66\x81\xe7");		    /* edi = ebp & (pages - 1) */
	put32(c, pages - 1);
	PUT(c, "\x66\xc1\xe7\x0c\x66\x81\xc7"); /* edi = (edi << 12) + region */
	put32(c, GUEST_REGION_AT);
	PUT(c, "\x0f\x31\x66\x89\xc3");	    /* rdtsc; ebx = eax */
	PUT(c, "\x26\x67\x66\x89\x2f");	    /* es:[edi] = ebp: the store */
	PUT(c, "\x0f\x31\x66\x89\xc1");	    /* rdtsc; ecx = eax */
	PUT(c, "\x66\x29\xd8");		    /* eax -= ebx */
	PUT(c, "\x66\x89\xf2\x66\x81\xe2"); /* edx = esi & (entries - 1) */
	put32(c, GUEST_LOG_ENTRIES - 1);
	PUT(c, "\x66\xc1\xe2\x03\x66\x81\xc2"); /* edx = (edx << 3) + log */
	put32(c, GUEST_LOG_AT);
	PUT(c, "\x26\x67\x66\x89\x3a");		/* es:[edx] = edi */
	PUT(c, "\x26\x67\x66\x89\x42\x04");	/* es:[edx + 4] = eax */
	PUT(c, "\x66\x46\x66\x89\x36\x04\x06"); /* esi++; [counter] = esi */
	wait = c->n;
	PUT(c, "\x0f\x31\x66\x29\xc8\x66\x3d"); /* rdtsc; eax -= ecx; is it less than the gap? */
	put32(c, gap_ticks);
	put(c, (const char[]){ 0x72, (char)(wait - (c->n + 2)) }, 2); /* jb wait */
	wait = loop - (c->n + 3);
	put(c, (const char[]){ (char)0xe9, (char)wait, (char)(wait >> 8) }, 3); /* jmp loop */
}

void bench_guest_floppy(const char *path, uint32_t pages, double gap_s)
{
	/* nothing; data, from 0 to 4 GiB; and where it is */
	static const uint8_t gdt[] = { 0, 0, 0,	   0,	 0, 0,	0, 0,	 0xff, 0xff, 0,
				       0, 0, 0x92, 0xcf, 0, 15, 0, 0x80, 0x7d, 0,    0 };
	struct code c = { .n = 0 };
	FILE *f = fopen(path, "we");

	put_start(&c);
	put_loop(&c, pages, (uint32_t)(gap_s * bench_guest_ticks_per_s()));
	memcpy(c.bytes + GDT_AT, gdt, sizeof(gdt));
	c.bytes[SECTOR - 2] = 0x55;
	c.bytes[SECTOR - 1] = 0xaa;
	if (!f || fwrite(c.bytes, SECTOR, 1, f) != 1 || fclose(f) != 0 ||
	    truncate(path, FLOPPY) != 0) {
		bench_die("cannot write %s", path);
	}
}

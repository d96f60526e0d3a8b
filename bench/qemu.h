/* SPDX-License-Identifier: MIT */
/* A QEMU as a peer: two paused machines over one shared memory file each, moved by QMP. */
#ifndef BENCH_QEMU_H
#define BENCH_QEMU_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

struct bench_move {
	double wall_s;			   /* from `migrate` to `completed` */
	double src_cpu_s;		   /* CPU seconds of the source process meanwhile */
	double dst_cpu_s;		   /* the same of the destination */
	double src_peak_mib, dst_peak_mib; /* memory that was resident in each process at once */
};

/* What to move and how. */
struct bench_machine {
	const char *tmp;      /* a private folder for sockets */
	const char *src_file; /* memory file of the source, filled already */
	uint64_t bytes;	      /* its length */
	const char *uri;      /* "unix:..." or "tcp:..." */
	unsigned channels;    /* further ones (multifd); 0: none */
	bool present;	      /* the destination's memory is allocated before the clock starts */
	bool untouched;	      /* nobody ever touched the source's: it must not be mapped before */
	bool from_qemu;	      /* the source is a QEMU, also of ours */
	bool private;	      /* an image's destination has private memory, as QEMU's default is */
	const char *floppy;   /* boots this and runs; otherwise it stands still */
	bool installed;	      /* the QEMU of the system, even if $GR_QEMU10 names another one */
};

/* The version of the QEMU that is used, $GR_QEMU10 or the installed one ("7.2.22"), or NULL if
 * there is none. */
const char *bench_qemu_version(void);
/* Of the installed one if another one is used, or NULL. */
const char *bench_qemu_installed(void);
/* Moves once and compares both memories; exits if anything fails or differs. */
struct bench_move bench_qemu_move(const struct bench_machine *m);

/* From a QEMU to whoever listens at m->uri; nothing is compared. Only the source's figures, and in
 * wall_s when it began. */
struct bench_move bench_qemu_send(const struct bench_machine *m);
/* Whether two memory files are the same; what neither has stays so. */
bool bench_same_bytes(int a, int b, uint64_t bytes);
/* VmHWM of a process, 0: of this one. */
double bench_peak_mib(pid_t pid);

/* One of them, for what is not done yet above. */
struct bench_qemu {
	pid_t pid;
	FILE *qmp; /* both directions */
	int fd;
};
void bench_qemu_start(struct bench_qemu *q, const struct bench_machine *m, const char *name,
		      const char *mem_file, bool prealloc, bool incoming);
void bench_qemu_end(struct bench_qemu *q);
/* One command, to its answer. */
void bench_qmp(struct bench_qemu *q, const char *command);
/* Reads lines until one contains any of the two words; returns it. */
const char *bench_qmp_wait(struct bench_qemu *q, const char *word, const char *or_word);
/* Begins; what comes of it is told by events. */
void bench_qemu_migrate(struct bench_qemu *q, const char *uri);
void bench_qemu_wait_completed(struct bench_qemu *q);

/* A machine into a file in the mapped-ram layout, and back into fresh memory; compares. */
struct bench_image_cost {
	double save_wall_s, save_cpu_s;
	double load_wall_s, load_cpu_s;
};
struct bench_image_cost bench_qemu_image(const struct bench_machine *m, const char *image);

#endif

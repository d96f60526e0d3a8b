/* SPDX-License-Identifier: MIT */
#ifndef HARNESS_SYS_MMAN_H
#define HARNESS_SYS_MMAN_H

#include <stddef.h>
#include <sys/types.h>

#define PROT_NONE     0
#define PROT_READ     1
#define PROT_WRITE    2
#define MAP_PRIVATE   2
#define MAP_ANONYMOUS 32
#define MAP_FAILED    ((void *)-1)

/* Private and anonymous only. */
void *mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset);
int munmap(void *p, size_t bytes);
int mprotect(void *p, size_t bytes, int prot);

#endif

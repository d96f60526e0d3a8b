/* SPDX-License-Identifier: MIT */
/* Memory by the page, from the system. */
#ifndef GR_BASE_MEMORY_H
#define GR_BASE_MEMORY_H

#include "base/compiler.h"

/* Bytes of a page of this host: 4 KiB to 64 KiB. */
size_t gr_page_bytes(void);
/* How many processors run threads: 1 where that cannot be told. */
unsigned int gr_cpus(void);

/* Zeroes that cost address space only, until they are touched. NULL: none left. */
void *gr_pages_alloc(size_t bytes);
void gr_pages_free(void *pages, size_t bytes);

/* What a mapping is like. */
enum gr_memory_flags {
	GR_MEMORY_SHARED = 1 << 0,     /* stores reach the file, or children of fork() */
	GR_MEMORY_READONLY = 1 << 1,   /* a store faults */
	GR_MEMORY_NO_RESERVE = 1 << 2, /* nobody promises that there is memory behind it */
	GR_MEMORY_SYNC = 1 << 3,       /* the file is persistent memory, and it is mapped itself */
};

struct gr_memory {
	uint8_t *host;	    /* where; gr_memory_map() sets it */
	size_t bytes;	    /* whole pages */
	size_t guard;	    /* bytes behind the end that nobody can touch */
	size_t align;	    /* the start is a multiple of this */
	size_t page_bytes;  /* of its pages; above the host's: huge ones */
	int fd;		    /* the file, or -1: zeroes */
	uint64_t offset;    /* where it starts in the file, whole pages */
	unsigned int flags; /* enum gr_memory_flags */
};

/* Maps it. 0 or a negative errno; -ENOTSUP where the system does not have its like. */
int gr_memory_map(struct gr_memory *m);
/* Maps a piece of it once more in its place, without what was registered or asked for there. */
int gr_memory_map_again(const struct gr_memory *m, size_t offset, size_t bytes);
void gr_memory_unmap(const struct gr_memory *m);

/* Does the system let GR_MEMORY_NO_RESERVE have its way? `path` is that of Linux's setting. */
bool gr_memory_may_overcommit(const char *path);
/*
 * Is it memory that this setting is about? What has a file of its own and is shared is counted by the
 * page, if at all, and huge pages by themselves; a private copy of a file is counted like other memory.
 */
bool gr_memory_is_counted(const struct gr_memory *m);

/* Wishes for a range of memory: 0 or a negative errno, -ENOTSUP where the system knows none. */
enum gr_memory_advice {
	GR_MEMORY_THP,	   /* huge pages where they fit */
	GR_MEMORY_NO_DUMP, /* not in a core file */
	GR_MEMORY_NO_FORK, /* not in children */
	GR_MEMORY_MERGE,   /* pages of equal content may become one */
	GR_MEMORY_LOCK,	   /* in memory, now and always */
};
int gr_memory_advise(void *host, size_t bytes, enum gr_memory_advice advice);
/* Is the file kept in memory, so that a policy of where goes with the file? Others ignore it. */
bool gr_memory_file_is_memory(int fd);
/* `policy` is one of enum gr_ram_numa of guestram/ram.h by value; `nodes` has bit n for node n. */
int gr_memory_bind(void *host, size_t bytes, unsigned int policy, uint64_t nodes);

/*
 * Puts memory behind a piece of a mapping; its bytes stay what they are. No lack of memory or
 * space raises a signal: it is -ENOMEM or -ENOSPC.
 */
int gr_memory_populate(const struct gr_memory *m, size_t offset, size_t bytes);
/* The same, for kernels that have no call for it. */
int gr_memory_populate_by_copy(const struct gr_memory *m, size_t offset, size_t bytes);

/*
 * Gives the memory behind a piece back: it reads as zeroes from now on, or, if the mapping is
 * private and has a file, as that. `locked`: GR_MEMORY_LOCK was asked for. What is shared and has a
 * file need not be mapped.
 */
int gr_memory_discard(const struct gr_memory *m, uint64_t offset, uint64_t bytes, bool locked);
/* What was stored is in the file when this returns. */
int gr_memory_write_back(void *host, size_t bytes);

/*
 * A new file of `bytes` zeroes in memory, closed on exec, whose length nobody can change: no
 * process that has it can make us fault. page_bytes as above. The fd or a negative errno;
 * -ENOTSUP where the system has none.
 */
int gr_memory_file(const char *name, uint64_t bytes, size_t page_bytes);
/* Bytes of a page of the memory or file that fd is; a negative errno if it is neither. */
int64_t gr_memory_file_page_bytes(int fd);
void gr_memory_file_close(int fd);

enum gr_file_origin {
	GR_FILE_FOUND,
	GR_FILE_MADE,	  /* there was none */
	GR_FILE_NAMELESS, /* made in a directory: nobody else can open it */
};
/*
 * Opens the file at path, which is made if there is none. If it is a directory, makes a file in it
 * that has no name. The fd or a negative errno.
 */
int gr_file_open(const char *path, const char *name, bool readonly, enum gr_file_origin *ret_origin);
void gr_file_remove(const char *path);
/*
 * Locks what fd has open, for whoever asks the same, in other processes too; at once or -EBUSY.
 * Another negative errno: this file knows no locks. It ends with the unlock or the last close.
 */
int gr_file_lock(int fd, bool exclusive);
void gr_file_unlock(int fd);
/* The file of fd opened once more, for writing: an fd with locks of its own. Or a negative errno. */
int gr_file_open_again(int fd);
/* Another fd for the same file, closed on exec. Or a negative errno. */
int gr_file_duplicate(int fd);
int64_t gr_file_bytes(int fd);
int gr_file_set_bytes(int fd, uint64_t bytes);
/* All that was stored, through whatever mapping, is in the file when this returns. */
int gr_file_write_back(int fd);

/*
 * Which file it is, for who runs on the same machine since the same boot: two descriptors of one file
 * agree, and those of two files differ. Zero: not known.
 */
enum { GR_BOOT_ID_BYTES = 16 };
struct gr_file_identity {
	uint8_t boot[GR_BOOT_ID_BYTES];
	uint64_t device, inode; /* of a device node: which device, and 0 */
};
void gr_file_identify(int fd, struct gr_file_identity *ret_identity);

/* For gr_aligned_free() only. bytes is a multiple of align. NULL: no memory. */
void *gr_aligned_alloc(size_t align, size_t bytes);
void gr_aligned_free(void *memory);

#endif

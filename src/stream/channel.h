/* SPDX-License-Identifier: MIT */
/*
 * The insides of a channel. Each kind supplies single attempts (one system call, nothing
 * retried); channel.c turns those into the public calls: retries after EINTR, waiting
 * after EAGAIN, going on after short writes, cancelling, counting.
 */
#ifndef GR_STREAM_CHANNEL_H
#define GR_STREAM_CHANNEL_H

#include "base/compiler.h"
#include <guestram/channel.h>

struct gr_channel_ops {
	/* One attempt: bytes, 0 at the end, or a negative errno. NULL: not in this direction. */
	ssize_t (*readv)(struct gr_channel *ch, const struct iovec *iov, int n);
	ssize_t (*writev)(struct gr_channel *ch, const struct iovec *iov, int n);
	/* One attempt to send from a file, by reference; NULL: not on this kind. */
	ssize_t (*send_file)(struct gr_channel *ch, int file, uint64_t offset, size_t bytes);
	/* Last words before the fd is closed and the memory freed; may be NULL. */
	void (*before_close)(struct gr_channel *ch);
	/* After the fd was closed; may be NULL. */
	int (*after_close)(struct gr_channel *ch, struct gr_error *err);
};

struct gr_channel {
	const struct gr_channel_ops *ops; /* (c) */
	char *name;			  /* (c) for messages */
	int fd;				  /* (c) -1: a memory channel */
	int wake_fd;			  /* (c) eventfd: readable for ever once shut down */
	bool duplex;			  /* (c) */
	bool is_socket;			  /* (c) */
	bool restore_blocking;		  /* (c) clear O_NONBLOCK again when closing */
	bool widened;			  /* (the writing thread) its buffer is large enough for files */
	bool refused_file;		  /* (the writing thread) nothing goes by reference here */
	bool shut;			  /* (a) */
	gr_atomic_u64 bytes_read;		  /* (a) written by the reading thread */
	gr_atomic_u64 bytes_written;		  /* (a) written by the writing thread */
};

/*
 * Frame of every constructor: fills the common part. On failure the caller frees its memory.
 * name is copied.
 */
int gr_channel_init(struct gr_channel *ch, const struct gr_channel_ops *ops, const char *name,
		    int fd, struct gr_error *err);
/* The reverse, fd included. Returns what close(2) said. */
int gr_channel_fini(struct gr_channel *ch);

/*
 * channel_wait.c: for the fd of ch (closed at the end), or for the shutdown: 0, -ECANCELED or
 * another negative errno.
 */
int gr_channel_wait_init(struct gr_channel *ch);
int gr_channel_wait_fini(struct gr_channel *ch);
int gr_channel_wait(struct gr_channel *ch, bool writing);
/* Wakes who waits, for ever; cancel breaks a socket as well, so that its peer notices. */
void gr_channel_wait_end(struct gr_channel *ch);
void gr_channel_wait_cancel(struct gr_channel *ch);
/* Whether a read will not wait: bytes, the end, an error or the shutdown come within timeout_ms. */
bool gr_channel_is_readable(struct gr_channel *ch, int timeout_ms);
/* Waits for events on fd, or for the shutdown: 0, -ECANCELED or another negative errno. */
int gr_channel_poll(int fd, short events, int wake_fd, int timeout_ms);
/* Waits for somebody to accept, at most so long (-1: for ever): 0, -ETIMEDOUT, -ECANCELED, ... */
int gr_channel_listener_wait(struct gr_channel_listener *l, int timeout_ms, struct gr_error *err);
/* Readable for ever once the listener was shut down: for other waits on its behalf. */
int gr_channel_listener_wake_fd(const struct gr_channel_listener *l);
/*
 * Makes reads end, a sleeping one too, while answers can still be written. A channel that is no
 * socket is shut down. Any thread.
 */
void gr_channel_end_reading(struct gr_channel *ch);
/*
 * As gr_channel_shutdown() on this side: reads and writes end with -ECANCELED, sleeping ones too. The
 * peer sees nothing of it until the channel is closed: what it writes is accepted. Any thread.
 */
void gr_channel_stop_waiting(struct gr_channel *ch);

/* Whether gr_channel_send_file() is more than a refusal; after one it is not asked again. Writing thread. */
bool gr_channel_sends_files(const struct gr_channel *ch);
/*
 * Sends bytes of a file without copying them: the peer reads them from the file's own memory, as
 * they are then. Waits, and ends when shut down, as gr_channel_writev_all(). Returns how many went; fewer than
 * asked: the rest cannot go that way (not on this channel, not from this file, not in this process, the
 * file ends), write it. -ECANCELED, -EPIPE or -ECONNRESET: nor can that.
 */
ssize_t gr_channel_send_file(struct gr_channel *ch, int file, uint64_t offset, size_t bytes,
			     struct gr_error *err);

/* A file and where it is mapped, shared: what is sent from there may go by reference. */
struct gr_channel_file {
	int fd;
	uint64_t offset;     /* of host in the file, bytes */
	const uint8_t *host; /* (bytes == 0: no file) */
	uint64_t bytes;
};
/* Whether a run of memory lies in the file, and can and should go by reference: a short one is cheaper to copy. */
bool gr_channel_may_refer(const struct gr_channel *ch, const struct gr_channel_file *file,
			  const struct iovec *run);
/* Sends it so, and leaves in run what could not go that way: to be written. 0 or a negative errno. */
int gr_channel_refer(struct gr_channel *ch, const struct gr_channel_file *file, struct iovec *run,
		     struct gr_error *err);

/* As gr_channel_from_fd(), with a name for messages. */
int gr_channel_from_fd_named(int fd, const char *name, struct gr_channel **ret_ch,
			     struct gr_error *err);
/* writev(2) to a pipe whose reader may be gone: -EPIPE, never SIGPIPE. */
ssize_t gr_channel_pipe_writev(int fd, const struct iovec *iov, int n);

/* A URI taken apart; the strings are allocated together with it. */
enum gr_uri_kind { GR_URI_TCP, GR_URI_UNIX, GR_URI_FD, GR_URI_EXEC, GR_URI_FILE };
struct gr_uri {
	enum gr_uri_kind kind;
	char *host;	 /* TCP: without brackets, may be "" */
	char *port;	 /* TCP */
	char *path;	 /* UNIX, FILE; EXEC: the command */
	int fd;		 /* FD */
	uint64_t offset; /* FILE, bytes */
};
int gr_uri_parse(const char *text, struct gr_uri *ret_uri, struct gr_error *err);
void gr_uri_destroy(struct gr_uri *uri);
/* Whether it leads to a peer that can be connected to as often as one likes. */
bool gr_uri_is_socket(const struct gr_uri *uri);

/* Sockets: connected or listening descriptors. uri is the text for messages. */
int gr_socket_connect(const struct gr_uri *u, const char *uri, int *ret_fd, struct gr_error *err);
int gr_socket_listen(const struct gr_uri *u, const char *uri, int *ret_fd, char **ret_uri,
		     struct gr_error *err);

/* Starts /bin/sh -c; writing: the channel is its standard input, else its standard output. */
int gr_exec_open(const char *command, const char *uri, bool writing, struct gr_channel **ret_ch,
		 struct gr_error *err);

/*
 * A channel that is a script, for tests: bytes to read, given out in pieces, with
 * interruptions; what is written is kept.
 */
struct gr_memory_script {
	const uint8_t *data; /* borrowed: what is read */
	size_t bytes;
	size_t read_max;	  /* at most so many in one attempt; 0 = no limit */
	size_t write_max;	  /* the same for writes */
	unsigned int eintr_every; /* each n-th attempt fails with EINTR; 0 = never */
	int read_error;		  /* after the data: this negative errno instead of the end */
	size_t write_fail_at;	  /* writes beyond so many bytes fail ... */
	int write_error;	  /* ... with this negative errno; 0 = never */
};
int gr_channel_memory(const struct gr_memory_script *script, struct gr_channel **ret_ch,
		      struct gr_error *err);
/* What was written so far; lives until the next write or the close. */
const uint8_t *gr_channel_memory_written(struct gr_channel *ch, size_t *ret_bytes);

#endif

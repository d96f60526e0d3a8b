/* SPDX-License-Identifier: MIT */
/**
 * guestram/channel.h - byte channels, named as QEMU names them.
 *
 * A channel carries the bytes of a migration or an image: a socket, a pipe to a command,
 * a file, or a descriptor that somebody handed over. Which one is said by a URI in QEMU's
 * spelling, so what follows `migrate` or `-incoming` there works here too. Whoever has
 * data to send connects; whoever waits for it listens and accepts.
 *
 *     struct gr_channel *ch;
 *     struct gr_error err;
 *
 *     if (gr_channel_connect("unix:/run/vm.sock", &ch, &err) < 0)
 *             return complain(err.msg);
 *     if (gr_channel_write_all(ch, "hello", 5, &err) < 0)
 *             ...
 *     if (gr_channel_close(ch, &err) < 0)     the last chance to hear of an error
 *             ...
 *
 * URIs:
 *
 *   tcp:HOST:PORT         HOST a name, an IPv4 address, [an IPv6 address] or empty; when
 *                         listening, empty is every address and port 0 any free port
 *   unix:PATH             a listener removes a stale socket that nobody listens on
 *   fd:N                  an inherited descriptor: the channel takes it and closes it
 *   exec:COMMAND          /bin/sh -c; connecting writes to its standard input (its output
 *                         goes to our standard error), accepting reads its standard output
 *   file:PATH[,offset=N]  connecting creates the file or cuts it off at the offset (bytes
 *                         before it stay), accepting reads from the offset; N takes 0x and
 *                         k, M, G, T
 *   PATH                  the same as file:PATH when it has a '/' or no ':'
 *
 * Thread rules: one thread may read while another writes; two readers or two writers need
 * a lock of their own. gr_channel_shutdown() and the counters may be called by anyone at
 * any time before gr_channel_close().
 *
 * Caveats: exec: and file: carry bytes one way only, and so does a pipe behind fd:, so no
 * answer ever comes back on them (gr_channel_is_duplex()). A pipe behind fd: is switched to
 * non-blocking while the channel lives, which others that share it can see. Closing an
 * exec: channel waits for the command to end. SIGPIPE is never raised by a channel.
 */
#ifndef GUESTRAM_CHANNEL_H
#define GUESTRAM_CHANNEL_H

#include <guestram/error.h>
#include <guestram/iovec.h>
#include <guestram/types.h>

GR_BEGIN_DECLS

/** A byte channel: opaque. */
struct gr_channel;
/** What accepts channels: opaque. */
struct gr_channel_listener;

/**
 * Open the sending end: what the side that runs `migrate` does.
 *
 * @param uri    Where to; see the top of this header.
 * @param ret_ch The channel.
 * @param err    May be NULL.
 * @return 0 or a negative errno; the message names the URI.
 * @errors -EINVAL not a URI; -ECONNREFUSED, -ENOENT, ... as the system says.
 * @context Any thread. Sleeps until connected, at most 20 s for each address of a host.
 */
GR_EXPORT GR_MUST_CHECK int gr_channel_connect(const char *uri, struct gr_channel **ret_ch,
					       struct gr_error *err);

/**
 * Prepare the receiving end: what `-incoming` does.
 *
 * Sockets listen from here on. For fd:, exec: and file: nothing happens before
 * gr_channel_accept().
 *
 * @param uri          Where to listen; see the top of this header.
 * @param ret_listener The listener.
 * @param err          May be NULL.
 * @return 0 or a negative errno; the message names the URI.
 * @errors -EINVAL not a URI; -EADDRINUSE somebody listens there or it is not a socket;
 *         -EACCES it is a socket that we may not connect to.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int
gr_channel_listen(const char *uri, struct gr_channel_listener **ret_listener, struct gr_error *err);

/**
 * Wait for a peer; fd:, exec: and file: are opened here and give one channel only.
 *
 * @param listener From gr_channel_listen().
 * @param ret_ch   The channel; independent of the listener.
 * @param err      May be NULL.
 * @return 0 or a negative errno.
 * @errors -ECANCELED after gr_channel_listener_shutdown(); -EALREADY opened before.
 * @context One thread at a time. Sleeps.
 */
GR_EXPORT GR_MUST_CHECK int gr_channel_accept(struct gr_channel_listener *listener,
					      struct gr_channel **ret_ch, struct gr_error *err);

/**
 * Where a listener can be reached: the URI with the port that port 0 became.
 * @param listener From gr_channel_listen().
 * @return A string that lives as long as the listener.
 * @context Any thread.
 */
GR_EXPORT const char *gr_channel_listener_uri(const struct gr_channel_listener *listener);

/**
 * What to poll for a peer.
 * @param listener From gr_channel_listen().
 * @return A descriptor that gets readable, or -1 where accepting never waits. Borrowed.
 * @context Any thread.
 */
GR_EXPORT int gr_channel_listener_fd(const struct gr_channel_listener *listener);

/**
 * Make a waiting gr_channel_accept() and every later one fail with -ECANCELED.
 * @param listener From gr_channel_listen().
 * @context Any thread; also a signal handler.
 */
GR_EXPORT void gr_channel_listener_shutdown(struct gr_channel_listener *listener);

/**
 * Stop listening; removes the socket file that listening made. Accepted channels live on.
 * @param listener May be NULL.
 * @context Nobody uses the listener any more.
 */
GR_EXPORT void gr_channel_listener_close(struct gr_channel_listener *listener);

/**
 * Make a channel of a descriptor: socket, pipe, file or terminal.
 *
 * @param fd     Taken (closed by gr_channel_close()) on success only.
 * @param ret_ch The channel.
 * @param err    May be NULL.
 * @return 0 or a negative errno.
 * @errors -EBADF not open; -ENOMEM.
 * @context Any thread.
 */
GR_EXPORT GR_MUST_CHECK int gr_channel_from_fd(int fd, struct gr_channel **ret_ch,
					       struct gr_error *err);

/**
 * Read what is there.
 *
 * Waits until at least one byte has come, then returns what came: it never waits for the
 * rest, because the peer may be waiting for our answer.
 *
 * @param ch  The channel.
 * @param iov Where to; left as it is.
 * @param n   Entries of iov, at most 1024.
 * @param err May be NULL.
 * @return Bytes (at least 1), 0 at the end of the stream, or a negative errno.
 * @errors -ECANCELED after gr_channel_shutdown(); -EBADF a write-only channel.
 * @context One reading thread at a time. Sleeps.
 */
GR_EXPORT GR_MUST_CHECK ssize_t gr_channel_readv(struct gr_channel *ch, const struct iovec *iov,
						 int n, struct gr_error *err);

/**
 * Write everything.
 *
 * @param ch  The channel.
 * @param iov What; left as it is. Not needed any more after the return.
 * @param n   Entries of iov, any number.
 * @param err May be NULL.
 * @return 0 or a negative errno; after an error an unknown part has been written.
 * @errors -ECANCELED after gr_channel_shutdown(); -EPIPE the peer is gone; -EBADF a
 *         read-only channel.
 * @context One writing thread at a time. Sleeps.
 */
GR_EXPORT GR_MUST_CHECK int gr_channel_writev_all(struct gr_channel *ch, const struct iovec *iov,
						  int n, struct gr_error *err);

/**
 * Write everything, from one buffer.
 * @param ch   The channel.
 * @param data What.
 * @param n    Bytes.
 * @param err  May be NULL.
 * @return 0 or a negative errno.
 * @errors As gr_channel_writev_all().
 * @context One writing thread at a time. Sleeps.
 */
GR_EXPORT GR_MUST_CHECK int gr_channel_write_all(struct gr_channel *ch, const void *data, size_t n,
						 struct gr_error *err);

/**
 * Whether answers can come back on this channel.
 * @param ch The channel.
 * @return true for sockets and for a descriptor opened for both.
 * @context Any thread.
 */
GR_EXPORT bool gr_channel_is_duplex(const struct gr_channel *ch);

/**
 * The descriptor, to poll it. Reading or writing it directly would corrupt the stream.
 * @param ch The channel.
 * @return Borrowed; -1 where there is none.
 * @context Any thread.
 */
GR_EXPORT int gr_channel_fd(const struct gr_channel *ch);

/**
 * What the channel is called in error messages: usually its URI.
 * @param ch The channel.
 * @return A string that lives as long as the channel.
 * @context Any thread.
 */
GR_EXPORT const char *gr_channel_name(const struct gr_channel *ch);

/**
 * Break the channel: reads and writes, sleeping ones too, fail with -ECANCELED from now on.
 * This is how a migration is cancelled. The peer of a socket sees the end at once.
 * @param ch The channel; it still has to be closed.
 * @context Any thread; also a signal handler.
 */
GR_EXPORT void gr_channel_shutdown(struct gr_channel *ch);

/**
 * Say that nothing more will be written, so that the peer reads the end of the stream,
 * while answers can still be read. Does nothing where that is not possible.
 * @param ch The channel.
 * @context The writing thread.
 */
GR_EXPORT void gr_channel_end_writing(struct gr_channel *ch);

/**
 * @param ch The channel.
 * @return Bytes read so far.
 * @context Any thread.
 */
GR_EXPORT uint64_t gr_channel_bytes_read(const struct gr_channel *ch);

/**
 * @param ch The channel.
 * @return Bytes written so far.
 * @context Any thread.
 */
GR_EXPORT uint64_t gr_channel_bytes_written(const struct gr_channel *ch);

/**
 * Close and free a channel; it is gone whatever the return value says.
 *
 * For exec: this waits for the command and reports how it ended; a command of a channel
 * that was shut down is told to end (SIGTERM) and its status is not looked at.
 *
 * @param ch  May be NULL.
 * @param err May be NULL.
 * @return 0 or a negative errno: what was written may then not have arrived.
 * @errors -EIO the command failed; what close(2) says.
 * @context Nobody uses the channel any more. exec: sleeps until the command ends.
 */
GR_EXPORT int gr_channel_close(struct gr_channel *ch, struct gr_error *err);

GR_END_DECLS
#endif

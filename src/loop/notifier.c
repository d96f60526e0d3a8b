/* SPDX-License-Identifier: MIT */
/*
 * Notifiers: a word that says "set", and a descriptor to sleep on. Both sides change the word by
 * exchanges, so each finds the other: a set() that comes before a clear() is what that clear
 * reads (through other sets, which are exchanges too), with all that was written before it;
 * one that comes after finds 0, and writes to the descriptor.
 *
 * clear() empties the descriptor first and turns the word back after it. A set between the two
 * finds 1 and writes nothing, and the exchange still sees it. In the other order its bytes
 * would be read away while the word stays 1: no later set would ever write again. A set
 * that has turned the word and not written yet may write after a clear: then one clear() more
 * is called for than needed, and finds nothing to do.
 */
#include "base/atomic.h"
#include "base/hook.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/loop.h>
#include <string.h>
#include <unistd.h>
#ifdef GR_HAVE_EVENTFD
#	include <sys/eventfd.h>
#endif

static int open_fds(struct gr_notifier *notifier)
{
#ifdef GR_HAVE_EVENTFD
	notifier->fd = notifier->write_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return notifier->fd < 0 ? -errno : 0;
#else
	int fds[2];

	if (pipe(fds) < 0) {
		return -errno;
	}
	for (int i = 0; i < 2; i++) {
		(void)fcntl(fds[i], F_SETFD, FD_CLOEXEC);
		(void)fcntl(fds[i], F_SETFL, O_NONBLOCK);
	}
	notifier->fd = fds[0];
	notifier->write_fd = fds[1];
	return 0;
#endif
}

int gr_notifier_init(struct gr_notifier *notifier, struct gr_error *err)
{
	int rc = open_fds(notifier);

	gr_store_relaxed(&notifier->word, 0u);
	return rc < 0 ? gr_error_set(err, rc, "cannot make a notifier: %s", strerror(-rc)) : 0;
}

void gr_notifier_destroy(struct gr_notifier *notifier)
{
	(void)close(notifier->fd);
	if (notifier->write_fd != notifier->fd) {
		(void)close(notifier->write_fd);
	}
	notifier->fd = notifier->write_fd = -1;
}

int gr_notifier_fd(const struct gr_notifier *notifier)
{
	return notifier->fd;
}

void gr_notifier_set(struct gr_notifier *notifier)
{
	const uint64_t one = 1; /* an eventfd wants eight bytes; a pipe takes them too */
	int saved_errno = errno;

	/* Release: what the caller wrote. Pairs with the exchange in gr_notifier_clear(). */
	if (gr_xchg_acq_rel(&notifier->word, 1u) == 0) {
		/* It is never full: who writes has found 0. */
		(void)!write(notifier->write_fd, &one, sizeof(one));
	}
	errno = saved_errno;
}

bool gr_notifier_clear(struct gr_notifier *notifier)
{
	int saved_errno = errno;
	uint64_t buf[8]; /* an eventfd gives eight bytes and is empty */
	bool set = false;
	ssize_t n;

#ifdef GR_MUTANT_NOTIFIER_CLEARS_WORD_FIRST
	set = gr_xchg_acq_rel(&notifier->word, 0u) != 0;
	GR_HOOK("gr_notifier_clear: halfway");
#endif
	do {
		n = read(notifier->fd, buf, sizeof(buf));
		set |= n > 0;
	} while (n == (ssize_t)sizeof(buf));
#ifndef GR_MUTANT_NOTIFIER_CLEARS_WORD_FIRST
	GR_HOOK("gr_notifier_clear: halfway");
	/* Acquire: pairs with the exchange in gr_notifier_set(). */
	set |= gr_xchg_acq_rel(&notifier->word, 0u) != 0;
#endif
	errno = saved_errno;
	return set;
}

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
#include "base/wake_fd.h"
#include <guestram/loop.h>
#include <string.h>

int gr_notifier_init(struct gr_notifier *notifier, struct gr_error *err)
{
	int rc = gr_wake_fd_open(&notifier->fd, &notifier->write_fd);

	gr_store_relaxed(&notifier->word, 0u);
	return rc < 0 ? gr_error_set(err, rc, "cannot make a notifier: %s", strerror(-rc)) : 0;
}

void gr_notifier_destroy(struct gr_notifier *notifier)
{
	gr_wake_fd_close(notifier->fd, notifier->write_fd);
	notifier->fd = notifier->write_fd = -1;
}

int gr_notifier_fd(const struct gr_notifier *notifier)
{
	return notifier->fd;
}

void gr_notifier_set(struct gr_notifier *notifier)
{
	/* Release: what the caller wrote. Pairs with the exchange in gr_notifier_clear(). */
	if (gr_xchg_acq_rel(&notifier->word, 1u) == 0) {
		gr_wake_fd_ring(notifier->write_fd);
	}
}

bool gr_notifier_clear(struct gr_notifier *notifier)
{
	bool set = false;

#ifdef GR_MUTANT_NOTIFIER_CLEARS_WORD_FIRST
	set = gr_xchg_acq_rel(&notifier->word, 0u) != 0;
	GR_HOOK("gr_notifier_clear: halfway");
#endif
	set |= gr_wake_fd_silence(notifier->fd);
#ifndef GR_MUTANT_NOTIFIER_CLEARS_WORD_FIRST
	GR_HOOK("gr_notifier_clear: halfway");
	/* Acquire: pairs with the exchange in gr_notifier_set(). */
	set |= gr_xchg_acq_rel(&notifier->word, 0u) != 0;
#endif
	return set;
}

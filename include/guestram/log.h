/* SPDX-License-Identifier: MIT */
/**
 * guestram/log.h - where the library's remarks go.
 *
 * The library never prints. Until a handler is set its remarks vanish.
 */
#ifndef GUESTRAM_LOG_H
#define GUESTRAM_LOG_H

#include <guestram/types.h>

GR_BEGIN_DECLS

enum gr_log_level { GR_LOG_DEBUG, GR_LOG_INFO, GR_LOG_WARN };

/** Receives one remark: a line without newline. May be called from any thread. */
typedef void gr_log_fn(enum gr_log_level level, const char *msg, void *opaque);

/**
 * Set the process-wide log handler.
 * @param fn     The handler, or NULL for silence.
 * @param opaque Passed on.
 * @context Any thread; before the threads that log are started, or the old handler may
 *          still be called for a moment.
 */
GR_EXPORT void gr_log_set_handler(gr_log_fn *fn, void *opaque);

GR_END_DECLS
#endif

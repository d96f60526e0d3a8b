/* SPDX-License-Identifier: MIT */
#ifndef GR_BASE_LOG_H
#define GR_BASE_LOG_H

#include <guestram/log.h>

/* Formats a remark for the handler, if there is one. */
void gr_log(enum gr_log_level level, const char *fmt, ...) GR_PRINTF(2, 3);

void gr_log_after_fork_in_child(void);

#endif

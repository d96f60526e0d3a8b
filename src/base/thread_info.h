/* SPDX-License-Identifier: MIT */
/* For messages: which thread, and what code. Nothing here fails; it knows less at worst. */
#ifndef GR_BASE_THREAD_INFO_H
#define GR_BASE_THREAD_INFO_H

#include "base/compiler.h"

/* The calling thread's number as the system's tools show it; 0 where there is none. */
uint32_t gr_thread_id(void);

/* The name that thread of this process has now; "?" where it cannot be told. */
void gr_thread_name(uint32_t id, char *name, size_t bytes);

/* Where an address in code lies: "libx.so(function+0x12)", or at least its number. */
void gr_code_name(const void *address, char *text, size_t bytes);

#endif

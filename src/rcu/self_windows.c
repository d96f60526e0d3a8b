/* SPDX-License-Identifier: MIT */
/*
 * The calling thread's record on Windows: memory that a slot of the thread points to.
 *
 * When a thread ends the system calls, in this order: FLS callbacks (reader.c's exit hook
 * among them, which takes the record off the registry and makes the thread LATE), the
 * DLLs, and the program's own TLS callbacks. The last is where the record goes: until then
 * code of the ending thread may still enter sections.
 */
#include "base/memory.h"
#include "rcu/rcu_internal.h"
#include <guestram/event.h>
#include <string.h>
#include <windows.h>

static struct gr_once slot_once = GR_ONCE_INIT;
static DWORD slot = TLS_OUT_OF_INDEXES; /* (c) after the once */

static void make_slot(void)
{
	slot = TlsAlloc();
	if (slot == TLS_OUT_OF_INDEXES) {
		gr_die("no thread-local slot for RCU readers");
	}
}

struct gr_rcu_reader *gr_rcu_self_of_thread(void)
{
	struct gr_rcu_reader *r;

	gr_once(&slot_once, make_slot);
	r = TlsGetValue(slot);
	if (GR_UNLIKELY(!r)) {
		r = gr_aligned_alloc(_Alignof(struct gr_rcu_reader), sizeof(*r));
		if (!r || !TlsSetValue(slot, r)) {
			gr_die("no memory for an RCU reader");
		}
		memset(r, 0, sizeof(*r));
	}
	return r;
}

static void NTAPI thread_ends(void *module, DWORD reason, void *reserved)
{
	struct gr_rcu_reader *r;

	(void)module;
	(void)reserved;
	if (reason == DLL_THREAD_DETACH && slot != TLS_OUT_OF_INDEXES) {
		r = TlsGetValue(slot);
		(void)TlsSetValue(slot, NULL);
		gr_aligned_free(r);
	}
}

/* The array of the program's TLS callbacks is what the linker finds between .CRT$XLA and XLZ. */
__attribute__((section(".CRT$XLY"),
	       used)) static void(NTAPI *const on_thread_end)(void *, DWORD, void *) = thread_ends;

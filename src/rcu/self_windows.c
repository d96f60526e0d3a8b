/* SPDX-License-Identifier: MIT */
/*
 * What a thread knows about RCU on Windows: memory that a slot of the thread points to.
 *
 * When a thread ends, keys of winpthreads are destroyed, then the system calls FLS callbacks, the
 * DLLs, and the program's own TLS callbacks. The last of these is where the memory goes:
 * until then code of the ending thread may still enter sections. All that hooks at the end
 * of threads touch must be here: gcc emulates thread-local variables with one of those keys.
 */
#include "base/memory.h"
#include "rcu/queue.h"
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

struct of_thread {
	struct gr_rcu_reader self;
	struct gr_rcu_own_readers own;
	struct gr_rcu_calls caller;
};

__attribute__((const)) static struct of_thread *of_thread(void)
{
	struct of_thread *t;

	gr_once(&slot_once, make_slot);
	t = TlsGetValue(slot);
	if (GR_UNLIKELY(!t)) {
		t = gr_aligned_alloc(_Alignof(struct of_thread), sizeof(*t));
		if (!t || !TlsSetValue(slot, t)) {
			gr_die("no memory for an RCU reader");
		}
		memset(t, 0, sizeof(*t));
	}
	return t;
}

struct gr_rcu_reader *gr_rcu_self_of_thread(void)
{
	return &of_thread()->self;
}

struct gr_rcu_own_readers *gr_rcu_own_of_thread(void)
{
	return &of_thread()->own;
}

struct gr_rcu_calls *gr_rcu_caller_of_thread(void)
{
	return &of_thread()->caller;
}

static void NTAPI thread_ends(void *module, DWORD reason, void *reserved)
{
	(void)module;
	(void)reserved;
	if (reason == DLL_THREAD_DETACH && slot != TLS_OUT_OF_INDEXES) {
		gr_aligned_free(TlsGetValue(slot));
		(void)TlsSetValue(slot, NULL);
	}
}

/* After base/windows/thread_exit.c (XLX), which says where this array comes from. */
__attribute__((section(".CRT$XLY"),
	       used)) static void(NTAPI *const on_thread_end)(void *, DWORD, void *) = thread_ends;

/* SPDX-License-Identifier: MIT */
#include "base/thread_exit.h"
#include "base/compiler.h"
#include <assert.h>
#include <errno.h>
#include <windows.h>

/* FLS callbacks have the calling convention of the system; 64-bit Windows has but one. */
static_assert(sizeof(void *) == 8, "32-bit Windows needs a trampoline here");

int gr_thread_exit_init(struct gr_thread_exit *hook, void (*fn)(void *arg))
{
	HMODULE self;

	hook->slot = FlsAlloc(fn);
	if (hook->slot == FLS_OUT_OF_INDEXES) {
		return -ENOMEM;
	}
	/* Threads carry our function for as long as they live: never unloaded. */
	(void)GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_PIN |
					 GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
				 (const char *)(uintptr_t)&gr_thread_exit_init, &self);
	return 0;
}

int gr_thread_exit_set(struct gr_thread_exit *hook, void *arg)
{
	return FlsSetValue(hook->slot, arg) ? 0 : -ENOMEM;
}

/* SPDX-License-Identifier: MIT */
/*
 * The end of a thread is seen twice, and what comes first counts: a fiber-local slot's callback
 * sees every thread, and a key of winpthreads sees those that it started, earlier. Both are
 * needed because the hooks use thread-local variables, which gcc emulates: where gcc is built
 * for winpthreads they are freed by a key's destructor, before the slot's callback. Keys are
 * destroyed in the order they were made in, so ours is made before any other.
 */
#include "base/thread_exit.h"
#include "base/atomic.h"
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <windows.h>

/* FLS callbacks have the calling convention of the system; 64-bit Windows has but one. */
static_assert(sizeof(void *) == 8, "32-bit Windows needs a trampoline here");

enum { HOOKS_MAX = 8 };

static struct {
	uint32_t count;			    /* (a) */
	void (*fn[HOOKS_MAX])(void *arg);   /* (c) each, once its hook is made */
	pthread_key_t key;		    /* (c) */
	DWORD slot;			    /* (c) */
	BOOLEAN(NTAPI *process_ends)(void); /* (c) may be NULL */
} hooks = { .slot = FLS_OUT_OF_INDEXES };

/* A thread's. */
struct at_exit {
	void *arg[HOOKS_MAX];
};

/*
 * The thread that ends the process gets its slots' callbacks, too. What it left open does not
 * matter any more; on POSIX nothing is called then.
 */
static void run(struct at_exit *all)
{
	if (hooks.process_ends && hooks.process_ends()) {
		return;
	}
	for (int i = 0; i < HOOKS_MAX; i++) {
		void *arg = all->arg[i];

		all->arg[i] = NULL;
		if (arg) {
			hooks.fn[i](arg);
		}
	}
}

static void key_goes(void *all)
{
	run(all);
}

static void NTAPI slot_goes(void *all)
{
	run(all);
	(void)pthread_setspecific(hooks.key, NULL);
	free(all);
}

__attribute__((constructor(101))) static void make_key_first(void)
{
	HMODULE self;
	int ret = pthread_key_create(&hooks.key, key_goes);

	hooks.slot = FlsAlloc(slot_goes);
	if (ret != 0 || hooks.slot == FLS_OUT_OF_INDEXES) {
		gr_die("no slot for what is done at the end of threads");
	}
	hooks.process_ends = (BOOLEAN(NTAPI *)(void))(uintptr_t)GetProcAddress(
		GetModuleHandleA("ntdll.dll"), "RtlDllShutdownInProgress");
	/* Threads carry our functions for as long as they live: never unloaded. */
	(void)GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_PIN |
					 GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
				 (const char *)(uintptr_t)&make_key_first, &self);
}

int gr_thread_exit_init(struct gr_thread_exit *hook, void (*fn)(void *arg))
{
	hook->index = gr_add_relaxed(&hooks.count, 1u);
	if (hook->index >= HOOKS_MAX) {
		return -ENOMEM;
	}
	hooks.fn[hook->index] = fn;
	return 0;
}

int gr_thread_exit_set(struct gr_thread_exit *hook, void *arg)
{
	struct at_exit *all = FlsGetValue(hooks.slot);

	if (!all) {
		all = arg ? calloc(1, sizeof(*all)) : NULL;
		if (!all) {
			return arg ? -ENOMEM : 0;
		}
		if (!FlsSetValue(hooks.slot, all)) {
			free(all);
			return -ENOMEM;
		}
	}
	all->arg[hook->index] = arg;
	/* Each time: destructors of other keys may arm a hook that has run, for one more round. */
	return -pthread_setspecific(hooks.key, all);
}

/* SPDX-License-Identifier: MIT */
/*
 * The end of a thread is seen twice. A key of winpthreads comes first, together with those of
 * others, for one more round whenever one of their destructors arms a hook again. Last, when all
 * keys and fiber-local slots are done, the system calls what the program lists for it: that is for
 * hooks that were armed after the key's last round. What a thread has to know until then is in
 * slots of the system's: gcc emulates thread-local variables, and frees them with a key of its own.
 */
#include "base/thread_exit.h"
#include "base/atomic.h"
#include <errno.h>
#include <pthread.h>
#include <windows.h>

enum { HOOKS_MAX = 8 };

static struct {
	uint32_t count;			    /* (a) */
	void (*fn[HOOKS_MAX])(void *arg);   /* (c) each, once its hook is made */
	pthread_key_t key;		    /* (c) */
	DWORD slot;			    /* (c) */
	BOOLEAN(NTAPI *process_ends)(void); /* (c) may be NULL */
} hooks = { .slot = TLS_OUT_OF_INDEXES };

/* A thread's. */
struct at_exit {
	void *arg[HOOKS_MAX];
};

/*
 * The thread that ends the process may get its keys destroyed, too. What it left open does not
 * matter any more; on POSIX nothing is called then.
 */
static void run(void *at_exit)
{
	struct at_exit *all = at_exit;

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

/* Before any other key can be, so that others' destructors find things as late as can be. */
__attribute__((constructor(101))) static void make_key_first(void)
{
	HMODULE self;
	int ret = pthread_key_create(&hooks.key, run);

	hooks.slot = TlsAlloc();
	if (ret != 0 || hooks.slot == TLS_OUT_OF_INDEXES) {
		gr_die("no slot for what is done at the end of threads");
	}
	hooks.process_ends = (BOOLEAN(NTAPI *)(void))(uintptr_t)GetProcAddress(
		GetModuleHandleA("ntdll.dll"), "RtlDllShutdownInProgress");
	/* Threads carry our functions for as long as they live: never unloaded. */
	(void)GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_PIN |
					 GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
				 (const char *)(uintptr_t)&make_key_first, &self);
}

static void NTAPI thread_ends(void *module, DWORD reason, void *reserved)
{
	struct at_exit *all;

	(void)module;
	(void)reserved;
	if (reason == DLL_THREAD_DETACH && hooks.slot != TLS_OUT_OF_INDEXES) {
		all = TlsGetValue(hooks.slot);
		if (all) {
			run(all);
			(void)TlsSetValue(hooks.slot, NULL);
			free(all);
		}
	}
}

/*
 * The array of these is what the linker finds between .CRT$XLA and XLZ, by name: after that of
 * winpthreads (XLF), before what hooks need is freed (rcu/self_windows.c, XLY).
 */
__attribute__((section(".CRT$XLX"),
	       used)) static void(NTAPI *const on_thread_end)(void *, DWORD, void *) = thread_ends;

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
	struct at_exit *all = TlsGetValue(hooks.slot);

	if (!all) {
		all = arg ? calloc(1, sizeof(*all)) : NULL;
		if (!all) {
			return arg ? -ENOMEM : 0;
		}
		if (!TlsSetValue(hooks.slot, all)) {
			free(all);
			return -ENOMEM;
		}
	}
	all->arg[hook->index] = arg;
	/* Each time: destructors of other keys may arm a hook that has run, for one more round. */
	return -pthread_setspecific(hooks.key, all);
}

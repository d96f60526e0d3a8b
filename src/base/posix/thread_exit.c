/* SPDX-License-Identifier: MIT */
#include "base/thread_exit.h"

int gr_thread_exit_init(struct gr_thread_exit *hook, void (*fn)(void *arg))
{
	return -pthread_key_create(&hook->key, fn);
}

int gr_thread_exit_set(struct gr_thread_exit *hook, void *arg)
{
	return -pthread_setspecific(hook->key, arg);
}

/* SPDX-License-Identifier: MIT */
/*
 * Places in lock-free code where a test may stop a thread to replay an interleaving. Nothing
 * at all is compiled there, but in test programs that compile the file again with
 * -DGR_TEST_HOOKS and define gr_test_hook() themselves. A place is named "what: just done".
 */
#ifndef GR_BASE_HOOK_H
#define GR_BASE_HOOK_H

#ifdef GR_TEST_HOOKS
void gr_test_hook(const char *place);
/* For the files of a layer whose hooks a test does not care for. */
__attribute__((weak)) void gr_test_hook(const char *place)
{
	(void)place;
}
#define GR_HOOK(place) gr_test_hook(place)
#else
#define GR_HOOK(place) ((void)0)
#endif

#endif

/* SPDX-License-Identifier: MIT */
#include "base/zero.h"
#include <guestram/codec.h>

bool gr_is_zero(const void *p, size_t bytes)
{
	return gr_page_is_zero(p, bytes);
}

/* SPDX-License-Identifier: MIT */
/*
 * A machine that runs while its memory is still coming from an image. Who reads memory behind the
 * guest's back and passes over what nobody has touched would take pages that have not come yet for
 * zeroes.
 */
#include "base/atomic.h"
#include "ram/ram.h"
#include <errno.h>

int gr_ram_loading_begin(struct gr_ram *ram, struct gr_error *err)
{
	uint32_t none = 0;

	if (!gr_cas_acq_rel(&ram->loading, &none, 1u)) {
		return gr_ram_loaded_check(ram, err);
	}
	return 0;
}

void gr_ram_loading_end(struct gr_ram *ram)
{
	/* What was placed is seen by who finds it loaded: pairs with the acquire below. */
	gr_store_release(&ram->loading, 0u);
}

int gr_ram_loaded_check(const struct gr_ram *ram, struct gr_error *err)
{
#ifndef GR_MUTANT_RAM_LOADING_IS_LOADED
	if (gr_load_acquire(&ram->loading) != 0) {
		return gr_error_set(
			err, -EBUSY,
			"the machine's memory is still being loaded from its image: wait for "
			"gr_image_resume_wait()");
	}
#else
	(void)ram;
	(void)err;
#endif
	return 0;
}

/* SPDX-License-Identifier: MIT */
#include "resume.h"
#include <errno.h>
#include <stdlib.h>

struct vmm_resume {
	struct vmm_machine *machine;
	struct gr_image *image;
	struct gr_image_resume *resume; /* NULL: it was loaded at once */
};

static int on_load(void *opaque, const char *id, uint32_t instance, uint32_t version,
		   const void *data, size_t bytes, struct gr_error *err)
{
	const struct vmm_resume *r = opaque;

	return vmm_machine_load(r->machine, id, instance, version, data, bytes, err);
}

static int on_complete(void *opaque, struct gr_error *err)
{
	const struct vmm_resume *r = opaque;

	return vmm_machine_complete(r->machine, err);
}

static int bring(struct vmm_resume *r, const struct vmm_resume_params *params, struct gr_error *err)
{
	const struct gr_destination_ops ops = { .load = on_load,
						.complete = on_complete,
						.opaque = r };
	const struct gr_image_load_params load = { .size = sizeof(load), .threads = 1 };
	const struct gr_image_resume_params lazy = {
		.size = sizeof(lazy),
		.writers = vmm_machine_writers(r->machine),
		.threads = 1,
		.bandwidth_bytes_per_s_max = params->bandwidth_bytes_per_s_max,
	};
	struct gr_ram *ram = vmm_machine_ram(r->machine);

	if (!params->lazy) {
		return gr_image_load(r->image, ram, &load, &ops, NULL, err);
	}
	return gr_image_resume_start(r->image, ram, &lazy, &ops, &r->resume, err);
}

int vmm_resume_begin(struct vmm_machine *machine, const struct vmm_resume_params *params,
		     bool *ret_ran, struct vmm_resume **ret_resume, struct gr_error *err)
{
	struct vmm_resume *r = calloc(1, sizeof(*r));
	int rc;

	if (!r) {
		return gr_error_set(err, -ENOMEM, "no memory to resume");
	}
	r->machine = machine;
	rc = gr_image_open_at(params->path, params->offset, &r->image, err);
	rc = rc < 0 ? rc : bring(r, params, err);
	if (rc < 0) {
		vmm_resume_free(r);
		return rc;
	}
	*ret_ran = vmm_machine_arrived(machine);
	*ret_resume = r;
	return 0;
}

int vmm_resume_fd(const struct vmm_resume *r)
{
	return r->resume ? gr_image_resume_fd(r->resume) : -1;
}

static enum gr_image_resume_state state_of(struct vmm_resume *r)
{
	struct gr_image_resume_stats stats = { .state = GR_IMAGE_RESUME_COMPLETED };

	if (r->resume) {
		gr_image_resume_stats(r->resume, &stats);
	}
	return stats.state;
}

int vmm_resume_failed(struct vmm_resume *r, struct gr_error *err)
{
	/* It stays so until vmm_resume_retry(). */
	return state_of(r) == GR_IMAGE_RESUME_FAILED ? gr_image_resume_wait(r->resume, 0, err) : 0;
}

bool vmm_resume_completed(struct vmm_resume *r)
{
	return state_of(r) == GR_IMAGE_RESUME_COMPLETED;
}

void vmm_resume_retry(struct vmm_resume *r)
{
	if (r->resume) {
		gr_image_resume_retry(r->resume);
	}
}

json_t *vmm_resume_query(struct vmm_resume *r)
{
	static const char *const names[] = {
		[GR_IMAGE_RESUME_LOADING] = "active",
		[GR_IMAGE_RESUME_COMPLETED] = "completed",
		[GR_IMAGE_RESUME_FAILED] = "failed",
	};
	struct gr_image_resume_stats stats = { .state = GR_IMAGE_RESUME_COMPLETED };
	struct gr_error why;
	json_t *answer;

	if (r->resume) {
		gr_image_resume_stats(r->resume, &stats);
	}
	answer = json_pack("{ss sI sI sI sI sI}", "status", names[stats.state], "total",
			   (json_int_t)stats.total_bytes, "remaining", (json_int_t)stats.left_bytes,
			   "waited-for", (json_int_t)stats.touches, "start-ns",
			   (json_int_t)stats.start_ns, "total-time-ns", (json_int_t)stats.total_ns);
	if (vmm_resume_failed(r, &why) < 0) {
		(void)json_object_set_new(answer, "error-desc", json_string(why.msg));
	}
	return answer;
}

void vmm_resume_free(struct vmm_resume *r)
{
	if (!r) {
		return;
	}
	if (!vmm_resume_completed(r)) {
		/* Who waits goes on with zeroes, and must come no further than to where it stands. */
		vmm_machine_end_begin(r->machine);
	}
	if (r->resume) {
		(void)gr_image_resume_end(r->resume, NULL);
	}
	gr_image_close(r->image);
	free(r);
}

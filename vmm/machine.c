/* SPDX-License-Identifier: MIT */
#include "machine_internal.h"
#include <errno.h>
#include <guestram/loop.h>
#include <guestram/rcu_control.h>
#include <stdlib.h>
#include <string.h>

static const struct vmm_accel_ops *const accels[] = {
#ifdef VMM_HAVE_KVM
	&vmm_accel_kvm,
#endif
	&vmm_accel_threads,
};
enum { ACCELS = sizeof(accels) / sizeof(accels[0]) };

const char *vmm_run_state_name(enum vmm_run_state state)
{
	switch (state) {
	case VMM_PAUSED:
		return "paused";
	case VMM_RUNNING:
		return "running";
	case VMM_INMIGRATE:
		return "inmigrate";
	case VMM_FINISH_MIGRATE:
		return "finish-migrate";
	case VMM_POSTMIGRATE:
		return "postmigrate";
	case VMM_SHUTDOWN:
		return "shutdown";
	}
	return "unknown";
}

static void say_changed(struct vmm_machine *machine, enum vmm_run_state state, const char *why)
{
	if (machine->params.changed) {
		machine->params.changed(machine->params.opaque, state, why);
	}
}

/* The guest ended by itself: from a vCPU's thread, which may not stop itself. */
static void guest_stopped(void *opaque, const char *why)
{
	say_changed(opaque, VMM_SHUTDOWN, why);
}

static int choose_accel(const struct vmm_machine_params *params,
			const struct vmm_accel_ops **ret_ops, struct gr_error *err)
{
	struct gr_error why = { .msg = "" };

	for (size_t i = 0; i < ACCELS; i++) {
		if (params->accel && strcmp(params->accel, accels[i]->name) != 0) {
			continue;
		}
		if (accels[i]->probe(&why) == 0) {
			*ret_ops = accels[i];
			return 0;
		}
		if (params->accel) {
			return gr_error_set(err, -ENOTSUP, "no %s here: %s", params->accel,
					    why.msg);
		}
	}
	return gr_error_set(err, -ENOTSUP, "accelerator '%s' is unknown or not built in",
			    params->accel ? params->accel : "");
}

static int make_main_ram(struct vmm_machine *machine, struct gr_error *err)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc),
		.id = "ram",
		.used_bytes = machine->params.memory_bytes,
		.mapped = true,
		.gpa = gr_gpa(0),
		.backing = machine->params.memory_file ? GR_RAM_FILE : GR_RAM_MEMFD,
		.path = machine->params.memory_file,
		.fd = -1,
	};

	if (machine->params.memory_bytes < VMM_MEMORY_BYTES_MIN ||
	    machine->params.memory_bytes > VMM_MEMORY_BYTES_MAX) {
		return gr_error_set(err, -EINVAL, "memory must be 1M to 3G");
	}
	return gr_ram_block_add(machine->ram, &desc, NULL, err);
}

static int make_vcpus(struct vmm_machine *machine, struct gr_error *err)
{
	const struct vmm_accel_ops *ops = NULL;
	struct vmm_accel_env env = {
		.ram = machine->ram,
		.track = machine->track,
		.vcpus = machine->params.vcpus,
		.workload = machine->flat ? NULL : &machine->wl,
		.flat = machine->params.flat,
		.debug_fd = machine->params.debug_fd,
		.incoming = machine->params.incoming,
		.software_tracker = machine->params.software_tracker,
		.pacer = &machine->pacer,
		.stopped = guest_stopped,
		.opaque = machine,
	};
	int rc = choose_accel(&machine->params, &ops, err);

	if (rc < 0) {
		return rc;
	}
#ifndef GR_MUTANT_VMM_NO_QUIET
	/* While there are vCPUs no grace period interrupts them in the guest. */
	gr_rcu_quiet_begin();
	machine->quiet = true;
#endif
	rc = ops->create(&env, &machine->accel, err);
	if (rc < 0) {
		return rc;
	}
	return ops->start(machine->accel, err);
}

static int make_workload(struct vmm_machine *machine, struct gr_error *err)
{
	const struct vmm_workload_params params = {
		.memory_bytes = machine->params.memory_bytes,
		.writers = machine->params.vcpus + 1,
		.hot_pages = machine->params.hot_pages,
		.once_every = machine->params.once_every,
	};
	int rc = vmm_workload_init(&machine->wl, &params, err);

	if (rc == 0 && !machine->params.incoming) {
		rc = gr_ram_write(machine->ram, gr_gpa(VMM_CONFIG_GPA), &machine->wl,
				  sizeof(machine->wl), err);
	}
	return rc;
}

static int build(struct vmm_machine *machine, struct gr_error *err)
{
	int rc = gr_ram_create(NULL, &machine->ram, err);

	if (rc == 0) {
		rc = make_main_ram(machine, err);
	}
	if (rc == 0) {
		rc = gr_track_create(machine->ram, &machine->track, err);
	}
	if (rc == 0 && !machine->flat) {
		rc = make_workload(machine, err);
	}
	if (rc == 0) {
		rc = make_vcpus(machine, err);
	}
	if (rc == 0 && !machine->flat) {
		rc = vmm_device_create(machine->ram, &machine->wl, &machine->pacer,
				       &machine->device, err);
	}
	return rc;
}

int vmm_machine_create(const struct vmm_machine_params *params, struct vmm_machine **ret_machine,
		       struct gr_error *err)
{
	struct vmm_machine *machine = calloc(1, sizeof(*machine));
	int rc;

	if (!machine) {
		return gr_error_set(err, -ENOMEM, "no memory for a machine");
	}
	machine->params = *params;
	machine->params.vcpus = params->vcpus ? params->vcpus : 1;
	machine->flat = params->flat != NULL;
	machine->state = params->incoming ? VMM_INMIGRATE : VMM_PAUSED;
	machine->next_gpa = VMM_PLUG_GPA_BASE;
	if (machine->params.vcpus >= VMM_WRITERS_MAX) {
		free(machine);
		return gr_error_set(err, -EINVAL, "at most %d vCPUs", VMM_WRITERS_MAX - 1);
	}
	rc = vmm_pacer_init(&machine->pacer, machine->params.vcpus + 1, err);
	if (rc < 0) {
		free(machine);
		return rc;
	}
	(void)pthread_mutex_init(&machine->lock, NULL);
	vmm_pacer_set_rate(&machine->pacer, params->rate_bytes_per_s);
	rc = build(machine, err);
	if (rc < 0) {
		vmm_machine_free(machine);
		return rc;
	}
	*ret_machine = machine;
	return 0;
}

void vmm_machine_free(struct vmm_machine *machine)
{
	if (!machine) {
		return;
	}
	vmm_device_free(machine->device);
	if (machine->accel) {
		machine->accel->ops->destroy(machine->accel);
	}
	if (machine->quiet) {
		gr_rcu_quiet_end();
	}
	gr_track_free(machine->track);
	gr_ram_free(machine->ram);
	for (uint32_t e = 0; e < VMM_PLUGS_MAX; e++) {
		free(machine->plug_ids[e]);
	}
	vmm_pacer_destroy(&machine->pacer);
	(void)pthread_mutex_destroy(&machine->lock);
	free(machine);
}

struct gr_ram *vmm_machine_ram(struct vmm_machine *machine)
{
	return machine->ram;
}

const uint8_t *vmm_machine_uuid(struct vmm_machine *machine)
{
	return machine->params.uuid;
}

struct gr_track *vmm_machine_track(struct vmm_machine *machine)
{
	return machine->track;
}

void vmm_machine_throttle(struct vmm_machine *machine, unsigned int percent)
{
	vmm_pacer_throttle(&machine->pacer, percent, machine->params.vcpus);
}

struct vmm_pacer *vmm_machine_pacer(struct vmm_machine *machine)
{
	return &machine->pacer;
}

const struct vmm_workload *vmm_machine_workload(struct vmm_machine *machine)
{
	return machine->flat ? NULL : &machine->wl;
}

const char *vmm_machine_accel_name(struct vmm_machine *machine)
{
	return machine->accel->ops->name;
}

unsigned int vmm_machine_vcpus(struct vmm_machine *machine)
{
	return machine->params.vcpus;
}

unsigned int vmm_machine_writers(struct vmm_machine *machine)
{
	return machine->accel->writers | GR_WRITERS_MARKED;
}

enum vmm_run_state vmm_machine_state(struct vmm_machine *machine)
{
	enum vmm_run_state state;

	(void)pthread_mutex_lock(&machine->lock);
	state = machine->state;
	(void)pthread_mutex_unlock(&machine->lock);
	return state;
}

static void run_locked(struct vmm_machine *machine)
{
	machine->digests_known = false; /* the guest changes its pages from here on */
	machine->accel->ops->resume(machine->accel);
	if (machine->device) {
		vmm_device_resume(machine->device);
	}
	machine->state = VMM_RUNNING;
}

/* O6: vCPUs first, then the device that serves them. */
static int halt_locked(struct vmm_machine *machine, enum vmm_run_state state, struct gr_error *err)
{
	int rc = machine->accel->ops->pause(machine->accel, err);

	if (rc < 0) {
		return rc;
	}
	if (machine->device) {
		vmm_device_pause(machine->device);
	}
	machine->state = state;
	return 0;
}

int vmm_machine_cont(struct vmm_machine *machine, struct gr_error *err)
{
	enum vmm_run_state state;
	int rc = 0;

	(void)pthread_mutex_lock(&machine->lock);
	state = machine->state;
	if (state == VMM_INMIGRATE || state == VMM_FINISH_MIGRATE || state == VMM_SHUTDOWN) {
		rc = gr_error_set(err, -EBUSY, "a machine in state '%s' cannot run",
				  vmm_run_state_name(state));
	} else if (state != VMM_RUNNING) {
		run_locked(machine);
	}
	(void)pthread_mutex_unlock(&machine->lock);
	if (rc == 0 && state != VMM_RUNNING) {
		say_changed(machine, VMM_RUNNING, NULL);
	}
	return rc;
}

int vmm_machine_stop(struct vmm_machine *machine, struct gr_error *err)
{
	bool ran;
	int rc = 0;

	(void)pthread_mutex_lock(&machine->lock);
	ran = machine->state == VMM_RUNNING;
	if (ran) {
		rc = halt_locked(machine, VMM_PAUSED, err);
	} else if (machine->state == VMM_FINISH_MIGRATE) {
		/* it stands still already: what is saved, or a failed move, shall not run it */
		machine->was_running = false;
	}
	(void)pthread_mutex_unlock(&machine->lock);
	if (ran && rc == 0) {
		say_changed(machine, VMM_PAUSED, NULL);
	}
	return rc;
}

void vmm_machine_end_begin(struct vmm_machine *machine)
{
#ifndef GR_MUTANT_VMM_ENDS_LATE
	(void)pthread_mutex_lock(&machine->lock);
	if (machine->state == VMM_RUNNING) {
		machine->accel->ops->pause_begin(machine->accel);
		if (machine->device) {
			vmm_device_pause_begin(machine->device);
		}
	}
	(void)pthread_mutex_unlock(&machine->lock);
#else
	(void)machine;
#endif
}

int vmm_machine_switch_over(struct vmm_machine *machine, struct gr_error *err)
{
	uint64_t began_ns;
	bool ran;
	int rc = 0;

	(void)pthread_mutex_lock(&machine->lock);
	ran = machine->was_running = machine->state == VMM_RUNNING;
	if (ran) {
		began_ns = gr_loop_now_ns();
		rc = halt_locked(machine, VMM_FINISH_MIGRATE, err);
		machine->expected.pause_ns = gr_loop_now_ns() - began_ns;
	} else {
		machine->state = VMM_FINISH_MIGRATE;
	}
	(void)pthread_mutex_unlock(&machine->lock);
	if (rc == 0 && ran) {
		say_changed(machine, VMM_FINISH_MIGRATE, NULL);
	}
	return rc;
}

struct gr_downtime vmm_machine_expected(struct vmm_machine *machine)
{
	struct gr_downtime expected;

	(void)pthread_mutex_lock(&machine->lock);
	expected = machine->expected;
	(void)pthread_mutex_unlock(&machine->lock);
	return expected;
}

void vmm_machine_switch_back(struct vmm_machine *machine)
{
	bool run;

	(void)pthread_mutex_lock(&machine->lock);
	run = machine->was_running;
	if (run) {
		run_locked(machine);
	} else {
		machine->state = VMM_PAUSED;
	}
	(void)pthread_mutex_unlock(&machine->lock);
	if (run) {
		say_changed(machine, VMM_RUNNING, NULL);
	}
}

void vmm_machine_moved_away(struct vmm_machine *machine)
{
	(void)pthread_mutex_lock(&machine->lock);
	machine->state = VMM_POSTMIGRATE;
	(void)pthread_mutex_unlock(&machine->lock);
	say_changed(machine, VMM_POSTMIGRATE, NULL);
}

static void ops_locked(struct vmm_machine *machine, uint64_t ops[VMM_WRITERS_MAX])
{
	for (unsigned int w = 0; w <= machine->params.vcpus; w++) {
		ops[w] = machine->ops_base[w] + vmm_pacer_finished(&machine->pacer, w);
	}
}

void vmm_machine_ops(struct vmm_machine *machine, uint64_t ops[VMM_WRITERS_MAX])
{
	(void)pthread_mutex_lock(&machine->lock);
	ops_locked(machine, ops);
	(void)pthread_mutex_unlock(&machine->lock);
}

void vmm_machine_round_began(struct vmm_machine *machine)
{
	(void)pthread_mutex_lock(&machine->lock);
	ops_locked(machine, machine->ops_before_final);
	machine->ops_before_final_known = true;
	(void)pthread_mutex_unlock(&machine->lock);
}

int vmm_machine_heartbeat(struct vmm_machine *machine, struct vmm_heartbeat *ret,
			  struct gr_error *err)
{
	return gr_ram_read(machine->ram, gr_gpa(VMM_HEARTBEAT_GPA), ret, sizeof(*ret), err);
}

int vmm_machine_heartbeat_reset(struct vmm_machine *machine, struct gr_error *err)
{
	const uint64_t zero[2] = { 0 };
	int rc;

	(void)pthread_mutex_lock(&machine->lock);
	if (machine->state == VMM_RUNNING) {
		rc = gr_error_set(err, -EBUSY, "the guest owns its clock page while it runs");
	} else if (machine->state == VMM_FINISH_MIGRATE || machine->state == VMM_INMIGRATE) {
		/* after the last harvest it would be lost (O6), before the last page undone */
		rc = gr_error_set(err, -EBUSY,
				  "the clock page cannot change while the machine is in state '%s'",
				  vmm_run_state_name(machine->state));
	} else {
		machine->digests_known = false;
		rc = gr_ram_write(
			machine->ram,
			gr_gpa(VMM_HEARTBEAT_GPA + offsetof(struct vmm_heartbeat, gap_ns_max)),
			zero, sizeof(zero), err);
	}
	(void)pthread_mutex_unlock(&machine->lock);
	return rc;
}

int vmm_machine_regs_locked(struct vmm_machine *machine, struct vmm_writer_regs **ret_regs,
			    struct gr_error *err)
{
	struct vmm_writer_regs *regs = calloc(machine->wl.writers, sizeof(*regs));

	if (!regs) {
		return gr_error_set(err, -ENOMEM, "no memory for registers");
	}
	for (unsigned int v = 0; v < machine->params.vcpus; v++) {
		int rc = machine->accel->ops->registers(machine->accel, v, &regs[v], err);

		if (rc < 0) {
			free(regs);
			return rc;
		}
	}
	regs[machine->params.vcpus] = *vmm_device_regs(machine->device);
	*ret_regs = regs;
	return 0;
}

static int check_locked(struct vmm_machine *machine, struct vmm_check *ret, struct gr_error *err)
{
	struct vmm_writer_regs *regs;
	int rc;

	if (machine->flat) {
		return gr_error_set(err, -ENOTSUP, "what a flat image writes is not known");
	}
	if (machine->state == VMM_RUNNING || machine->state == VMM_INMIGRATE) {
		return gr_error_set(err, -EBUSY, "a machine in state '%s' cannot be checked",
				    vmm_run_state_name(machine->state));
	}
	rc = vmm_machine_regs_locked(machine, &regs, err);
	if (rc == 0) {
		const struct vmm_check_input in = {
			.ram = machine->ram,
			.wl = &machine->wl,
			.regs = regs,
			.plugs = machine->plugs,
			.system_digests = machine->digests_known ? machine->system_digests : NULL,
			.ops_before_final =
				machine->ops_before_final_known ? machine->ops_before_final : NULL,
		};

		vmm_check_memory(&in, ret);
		free(regs);
	}
	return rc;
}

int vmm_machine_check(struct vmm_machine *machine, struct vmm_check *ret, struct gr_error *err)
{
	int rc;

	(void)pthread_mutex_lock(&machine->lock);
	rc = check_locked(machine, ret, err);
	(void)pthread_mutex_unlock(&machine->lock);
	return rc;
}

int vmm_machine_describe(struct vmm_machine *machine, unsigned int cpu,
			 void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque,
			 struct gr_error *err)
{
	bool ran;
	int rc = 0;

	if (cpu >= machine->params.vcpus) {
		return gr_error_set(err, -EINVAL, "no vCPU %u", cpu);
	}
	(void)pthread_mutex_lock(&machine->lock);
	ran = machine->state == VMM_RUNNING;
	if (ran) {
		rc = machine->accel->ops->pause(machine->accel, err);
	}
	if (rc == 0) {
		machine->accel->ops->describe(machine->accel, cpu, emit, opaque);
		if (ran) {
			machine->accel->ops->resume(machine->accel);
		}
	}
	(void)pthread_mutex_unlock(&machine->lock);
	return rc;
}

/* SPDX-License-Identifier: MIT */
/*
 * The machine's part of the stream, three kinds of section:
 *
 *   guestram/machine  version 1: workload constants, rate, plug table, digests of the system
 *                     pages, counters at the last round's beginning, whether it ran
 *   guestram/cpu      one for each vCPU: the accelerator's name and its own bytes
 *   guestram/device   the device's registers
 */
#include "machine_internal.h"
#include "state.h"
#include <errno.h>
#include <guestram/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MACHINE_ID "guestram/machine"
#define CPU_ID	   "guestram/cpu"
#define DEVICE_ID  "guestram/device"
enum {
	STATE_VERSION = 1,
	WORKLOAD_WORDS = sizeof(struct vmm_workload) / 8,
	FLAG_FLAT = 1 << 0,
	FLAG_RAN = 1 << 1,
	FLAG_FINAL_KNOWN = 1 << 2,
};

static int put_words(struct vmm_blob *blob, const void *words, unsigned int count,
		     struct gr_error *err)
{
	int rc = 0;

	for (unsigned int i = 0; i < count && rc == 0; i++) {
		uint64_t word;

		memcpy(&word, (const uint8_t *)words + 8 * (size_t)i, sizeof(word));
		rc = vmm_put_u64(blob, word, err);
	}
	return rc;
}

static void get_words(struct vmm_reader *in, void *words, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		uint64_t word = vmm_get_u64(in);

		memcpy((uint8_t *)words + 8 * (size_t)i, &word, sizeof(word));
	}
}

static int put_plugs(struct vmm_machine *machine, struct vmm_blob *blob, struct gr_error *err)
{
	const uint64_t head[] = { machine->next_entry, machine->next_gpa };
	int rc = put_words(blob, head, 2, err);

	for (uint32_t e = 0; e < machine->next_entry && rc == 0; e++) {
		const char *id = machine->plugs[e].pages > 0 ? machine->plug_ids[e] : "";
		const uint64_t entry[] = { machine->plugs[e].gpa, machine->plugs[e].pages,
					   strlen(id) };

		rc = put_words(blob, entry, 3, err);
		if (rc == 0) {
			rc = vmm_blob_put(blob, id, strlen(id), err);
		}
	}
	return rc;
}

static int save_machine(struct vmm_machine *machine, struct vmm_blob *blob, struct gr_error *err)
{
	const uint64_t head[] = {
		(machine->flat ? FLAG_FLAT : 0u) | (machine->was_running ? FLAG_RAN : 0u) |
			(machine->ops_before_final_known ? FLAG_FINAL_KNOWN : 0u),
		vmm_pacer_rate(&machine->pacer),
		machine->params.memory_bytes,
		machine->params.vcpus,
	};
	int rc = put_words(blob, head, 4, err);

	if (rc == 0) {
		rc = put_words(blob, &machine->wl, WORKLOAD_WORDS, err);
	}
	if (rc == 0) {
		rc = put_plugs(machine, blob, err);
	}
	if (rc == 0) {
		rc = vmm_system_digests(machine->ram, machine->system_digests, err);
	}
	if (rc == 0) {
		machine->digests_known = true;
		rc = put_words(blob, machine->system_digests, VMM_SYSTEM_PAGES, err);
	}
	if (rc == 0) {
		rc = put_words(blob, machine->ops_before_final, VMM_WRITERS_MAX, err);
	}
	return rc;
}

static int save_cpu(struct vmm_machine *machine, unsigned int cpu, struct vmm_blob *blob,
		    struct gr_error *err)
{
	const char *name = machine->accel->ops->name;
	int rc = vmm_put_u64(blob, strlen(name), err);

	if (rc == 0) {
		rc = vmm_blob_put(blob, name, strlen(name), err);
	}
	return rc < 0 ? rc : machine->accel->ops->save(machine->accel, cpu, blob, err);
}

static int put_section(struct gr_state_writer *writer, const char *id, uint32_t instance,
		       struct vmm_blob *blob, struct gr_error *err)
{
	int rc = gr_state_put(writer, id, instance, STATE_VERSION, blob->data, blob->bytes, err);

	blob->bytes = 0;
	return rc;
}

static int save_locked(struct vmm_machine *machine, struct gr_state_writer *writer,
		       struct vmm_blob *blob, struct gr_error *err)
{
	int rc = save_machine(machine, blob, err);

	if (rc == 0) {
		rc = put_section(writer, MACHINE_ID, 0, blob, err);
	}
	for (unsigned int v = 0; v < machine->params.vcpus && rc == 0; v++) {
		rc = save_cpu(machine, v, blob, err);
		if (rc == 0) {
			rc = put_section(writer, CPU_ID, v, blob, err);
		}
	}
	if (rc == 0 && machine->device) {
		rc = vmm_regs_put(blob, vmm_device_regs(machine->device), err);
		if (rc == 0) {
			rc = put_section(writer, DEVICE_ID, 0, blob, err);
		}
	}
	return rc;
}

int vmm_machine_save(struct vmm_machine *machine, struct gr_state_writer *writer,
		     struct gr_error *err)
{
	struct vmm_blob blob = { 0 };
	uint64_t began_ns;
	int rc;

	(void)pthread_mutex_lock(&machine->lock);
	began_ns = gr_loop_now_ns();
	rc = save_locked(machine, writer, &blob, err);
	machine->expected.state_ns = gr_loop_now_ns() - began_ns;
	(void)pthread_mutex_unlock(&machine->lock);
	vmm_blob_free(&blob);
	return rc;
}

/* An entry that lives must be a block that has arrived. */
static int load_plug(struct vmm_machine *machine, struct vmm_reader *in, uint32_t e,
		     struct gr_error *err)
{
	struct vmm_plug plug;
	uint64_t id_bytes;
	const char *id;

	get_words(in, &plug, 2);
	id_bytes = vmm_get_u64(in);
	id = id_bytes <= GR_RAM_ID_BYTES_MAX ? vmm_get_bytes(in, id_bytes) : NULL;
	if (in->failed || !id || plug.gpa % VMM_PAGE_BYTES != 0 || plug.gpa < VMM_PLUG_GPA_BASE ||
	    plug.gpa > VMM_PLUG_GPA_END ||
	    plug.pages > (VMM_PLUG_GPA_END - plug.gpa) / VMM_PAGE_BYTES) {
		return gr_error_set(err, -EBADMSG, "plug entry %u cannot be", e);
	}
	machine->plugs[e] = plug;
	free(machine->plug_ids[e]);
	machine->plug_ids[e] = strndup(id, id_bytes);
	if (!machine->plug_ids[e]) {
		return gr_error_set(err, -ENOMEM, "no memory for an id");
	}
	return 0;
}

static int load_plugs(struct vmm_machine *machine, struct vmm_reader *in, struct gr_error *err)
{
	uint64_t entries = vmm_get_u64(in);
	int rc = 0;

	machine->next_gpa = vmm_get_u64(in);
	if (entries > VMM_PLUGS_MAX || machine->next_gpa < VMM_PLUG_GPA_BASE) {
		return gr_error_set(err, -EBADMSG, "%llu plug entries up to %#llx",
				    (unsigned long long)entries,
				    (unsigned long long)machine->next_gpa);
	}
	for (uint32_t e = 0; e < entries && rc == 0; e++) {
		rc = load_plug(machine, in, e, err);
	}
	machine->next_entry = (uint32_t)entries;
	return rc;
}

static int load_machine(struct vmm_machine *machine, struct vmm_reader *in, struct gr_error *err)
{
	uint64_t head[4];
	int rc;

	get_words(in, head, 4);
	if (!in->failed &&
	    (head[2] != machine->params.memory_bytes || head[3] != machine->params.vcpus ||
	     !(head[0] & FLAG_FLAT) != !machine->flat)) {
		return gr_error_set(err, -EINVAL,
				    "the source has %llu bytes of memory, %llu vCPUs and %s; "
				    "this machine has %llu, %u and %s",
				    (unsigned long long)head[2], (unsigned long long)head[3],
				    head[0] & FLAG_FLAT ? "a flat image" : "the workload",
				    (unsigned long long)machine->params.memory_bytes,
				    machine->params.vcpus,
				    machine->flat ? "a flat image" : "the workload");
	}
	get_words(in, &machine->wl, WORKLOAD_WORDS);
	rc = machine->flat || in->failed ? 0 : vmm_workload_validate(&machine->wl, err);
	if (rc == 0 && !machine->flat && !in->failed &&
	    (machine->wl.ram_pages != head[2] / VMM_PAGE_BYTES ||
	     machine->wl.writers != head[3] + 1)) {
		rc = gr_error_set(err, -EBADMSG, "the workload is not that of this machine");
	}
	if (rc == 0) {
		rc = load_plugs(machine, in, err);
	}
	if (rc < 0) {
		return rc;
	}
	get_words(in, machine->system_digests, VMM_SYSTEM_PAGES);
	get_words(in, machine->ops_before_final, VMM_WRITERS_MAX);
	rc = vmm_reader_end(in, err);
	if (rc == 0) {
		vmm_pacer_set_rate(&machine->pacer, head[1]);
		machine->ops_before_final_known = (head[0] & FLAG_FINAL_KNOWN) != 0;
		machine->source_ran = (head[0] & FLAG_RAN) != 0;
		machine->digests_known = true;
		machine->machine_loaded = true;
	}
	return rc;
}

static int load_cpu(struct vmm_machine *machine, uint32_t cpu, struct vmm_reader *in,
		    struct gr_error *err)
{
	const char *name = machine->accel->ops->name, *theirs;
	uint64_t bytes;
	int rc;

	if (cpu >= machine->params.vcpus) {
		return gr_error_set(err, -EBADMSG, "no vCPU %u here", cpu);
	}
	bytes = vmm_get_u64(in);
	theirs = vmm_get_bytes(in, bytes);
	if (!theirs || bytes != strlen(name) || memcmp(theirs, name, bytes) != 0) {
		return gr_error_set(err, -EINVAL,
				    "the source's vCPUs are not of the accelerator '%s'", name);
	}
	rc = machine->accel->ops->load(machine->accel, cpu, in->at, in->left, err);
	machine->cpu_loaded[cpu] = rc == 0;
	return rc;
}

static int load_locked(struct vmm_machine *machine, const char *id, uint32_t instance,
		       struct vmm_reader *in, struct gr_error *err)
{
	int rc;

	if (strcmp(id, MACHINE_ID) == 0 && instance == 0) {
		return load_machine(machine, in, err);
	}
	if (!machine->machine_loaded) {
		return gr_error_set(err, -EBADMSG, "'%s' comes before '%s'", id, MACHINE_ID);
	}
	if (strcmp(id, CPU_ID) == 0) {
		return load_cpu(machine, instance, in, err);
	}
	if (strcmp(id, DEVICE_ID) == 0 && instance == 0 && machine->device) {
		rc = vmm_regs_get(in, &machine->wl, machine->params.vcpus,
				  vmm_device_regs(machine->device), err);
		rc = rc < 0 ? rc : vmm_reader_end(in, err);
		machine->device_loaded = rc == 0;
		return rc;
	}
	return gr_error_set(err, -EINVAL, "this machine has no such device");
}

int vmm_machine_load(struct vmm_machine *machine, const char *id, uint32_t instance,
		     uint32_t version, const void *data, size_t bytes, struct gr_error *err)
{
	struct vmm_reader in = { .at = data, .left = bytes };
	int rc;

	if (version != STATE_VERSION) {
		rc = gr_error_set(err, -EINVAL, "version %u is unknown", version);
	} else {
		(void)pthread_mutex_lock(&machine->lock);
		rc = load_locked(machine, id, instance, &in, err);
		(void)pthread_mutex_unlock(&machine->lock);
	}
	if (rc < 0) {
		(void)gr_error_prefix(err, "device state '%s' %u: ", id, instance);
	}
	return rc;
}

/* The pacer counts from 0; the registers go on from what the source had done. */
static int count_from_here_locked(struct vmm_machine *machine, struct gr_error *err)
{
	struct vmm_writer_regs *regs;
	int rc = vmm_machine_regs_locked(machine, &regs, err);

	if (rc < 0) {
		return rc;
	}
	for (unsigned int w = 0; w <= machine->params.vcpus; w++) {
		machine->ops_base[w] = regs[w].op;
	}
	free(regs);
	return 0;
}

int vmm_machine_complete(struct vmm_machine *machine, struct gr_error *err)
{
	bool complete;
	int rc = 0;

	(void)pthread_mutex_lock(&machine->lock);
	complete = machine->machine_loaded && (machine->device_loaded || machine->flat);
	for (unsigned int v = 0; v < machine->params.vcpus; v++) {
		complete = complete && machine->cpu_loaded[v];
	}
	if (!complete) {
		rc = gr_error_set(
			err, -EBADMSG,
			"the stream lacks the state of the machine, a vCPU or the device");
	} else if (!machine->flat) {
		rc = count_from_here_locked(machine, err);
	}
	(void)pthread_mutex_unlock(&machine->lock);
	return rc;
}

bool vmm_machine_arrived(struct vmm_machine *machine)
{
	bool ran;

	(void)pthread_mutex_lock(&machine->lock);
	machine->state = VMM_PAUSED;
	ran = machine->source_ran;
	(void)pthread_mutex_unlock(&machine->lock);
	return ran;
}

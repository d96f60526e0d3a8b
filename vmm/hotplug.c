/* SPDX-License-Identifier: MIT */
/*
 * Blocks that come and go. The order on the way in: the block, then the entry in the
 * guest's table; on the way out: the entry, then the block. A guest that is in the middle
 * of an operation on a block that goes finds nothing there, and its stores are dropped.
 */
#include "machine_internal.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PLUG_GPA_ALIGN = 2 << 20 };

static int write_word(struct vmm_machine *machine, uint64_t gpa, uint64_t word,
		      struct gr_error *err)
{
	return gr_ram_write(machine->ram, gr_gpa(gpa), &word, sizeof(word), err);
}

int vmm_plug_table_write_locked(struct vmm_machine *machine, uint32_t entry, struct gr_error *err)
{
	uint64_t at = VMM_PLUG_TABLE_GPA + entry * sizeof(struct vmm_plug);
	uint64_t first = 0;
	int rc;

	while (first < machine->next_entry && machine->plugs[first].pages == 0) {
		first++;
	}
	/* the address before the number of pages, which makes it live */
	rc = write_word(machine, at, machine->plugs[entry].gpa, err);
	if (rc == 0) {
		rc = write_word(machine, at + 8, machine->plugs[entry].pages, err);
	}
	if (rc == 0) {
		rc = write_word(machine, VMM_PLUG_RANGE_GPA, first, err);
	}
	if (rc == 0) {
		rc = write_word(machine, VMM_PLUG_RANGE_GPA + 8, machine->next_entry, err);
	}
	machine->digests_known = false;
	return rc;
}

static int may_change_locked(struct vmm_machine *machine, struct gr_error *err)
{
	if (machine->state == VMM_FINISH_MIGRATE || machine->state == VMM_POSTMIGRATE ||
	    machine->state == VMM_INMIGRATE) {
		return gr_error_set(err, -EBUSY,
				    "blocks cannot come or go while the machine is in state '%s'",
				    vmm_run_state_name(machine->state));
	}
	return 0;
}

static int plug_locked(struct vmm_machine *machine, const char *id, uint64_t bytes, uint64_t gpa,
		       struct gr_error *err)
{
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .used_bytes = bytes, .mapped = true, .fd = -1
	};
	uint32_t entry = machine->next_entry;
	uint64_t end;
	char name[32];
	int rc = may_change_locked(machine, err);

	if (rc < 0) {
		return rc;
	}
	gpa = gpa ? gpa : machine->next_gpa;
	if (entry == VMM_PLUGS_MAX) {
		return gr_error_set(err, -ENOSPC, "all %d plug entries have been used",
				    VMM_PLUGS_MAX);
	}
	if (gpa < machine->next_gpa || __builtin_add_overflow(gpa, bytes, &end) ||
	    end > VMM_PLUG_GPA_END) {
		return gr_error_set(
			err, -EINVAL,
			"block of %llu bytes at %#llx: free addresses are %#llx to %#llx",
			(unsigned long long)bytes, (unsigned long long)gpa,
			(unsigned long long)machine->next_gpa,
			(unsigned long long)VMM_PLUG_GPA_END);
	}
	(void)snprintf(name, sizeof(name), "dimm%u", entry);
	desc.id = id ? id : name;
	desc.gpa = gr_gpa(gpa);
	machine->plug_ids[entry] = strdup(desc.id);
	if (!machine->plug_ids[entry]) {
		return gr_error_set(err, -ENOMEM, "no memory for an id");
	}
	rc = gr_ram_block_add(machine->ram, &desc, NULL, err);
	if (rc < 0) {
		free(machine->plug_ids[entry]);
		machine->plug_ids[entry] = NULL;
		return rc;
	}
	machine->plugs[entry] = (struct vmm_plug){ .gpa = gpa, .pages = bytes / VMM_PAGE_BYTES };
	machine->next_entry++;
	machine->next_gpa = (end + PLUG_GPA_ALIGN - 1) / PLUG_GPA_ALIGN * PLUG_GPA_ALIGN;
	return machine->flat ? 0 : vmm_plug_table_write_locked(machine, entry, err);
}

static int unplug_locked(struct vmm_machine *machine, const char *id, struct gr_error *err)
{
	struct vmm_plug was;
	uint32_t e = 0;
	int rc = may_change_locked(machine, err);

	if (rc < 0) {
		return rc;
	}
	while (e < machine->next_entry &&
	       (machine->plugs[e].pages == 0 || strcmp(machine->plug_ids[e], id) != 0)) {
		e++;
	}
	if (e == machine->next_entry) {
		return gr_error_set(err, -ENOENT, "no plugged block '%s'", id);
	}
	was = machine->plugs[e];
	machine->plugs[e].pages = 0;
	rc = machine->flat ? 0 : vmm_plug_table_write_locked(machine, e, err);
	if (rc == 0) {
		rc = gr_ram_block_del_by_id(machine->ram, id, err);
	}
	if (rc < 0) {
		machine->plugs[e] = was;
		if (!machine->flat) {
			(void)vmm_plug_table_write_locked(machine, e, NULL);
		}
	}
	return rc;
}

int vmm_machine_plug(struct vmm_machine *machine, const char *id, uint64_t bytes, uint64_t gpa,
		     struct gr_error *err)
{
	int rc;

	(void)pthread_mutex_lock(&machine->lock);
	rc = plug_locked(machine, id, bytes, gpa, err);
	(void)pthread_mutex_unlock(&machine->lock);
	return rc;
}

int vmm_machine_unplug(struct vmm_machine *machine, const char *id, struct gr_error *err)
{
	int rc;

	(void)pthread_mutex_lock(&machine->lock);
	rc = unplug_locked(machine, id, err);
	(void)pthread_mutex_unlock(&machine->lock);
	return rc;
}

void vmm_machine_plugs(struct vmm_machine *machine,
		       void (*fn)(void *opaque, const char *id, uint64_t gpa, uint64_t bytes),
		       void *opaque)
{
	(void)pthread_mutex_lock(&machine->lock);
	for (uint32_t e = 0; e < machine->next_entry; e++) {
		if (machine->plugs[e].pages > 0) {
			fn(opaque, machine->plug_ids[e], machine->plugs[e].gpa,
			   machine->plugs[e].pages * VMM_PAGE_BYTES);
		}
	}
	(void)pthread_mutex_unlock(&machine->lock);
}

unsigned int vmm_machine_plugs_alive(struct vmm_machine *machine)
{
	unsigned int alive = 0;

	(void)pthread_mutex_lock(&machine->lock);
	for (uint32_t e = 0; e < machine->next_entry; e++) {
		alive += machine->plugs[e].pages > 0;
	}
	(void)pthread_mutex_unlock(&machine->lock);
	return alive;
}

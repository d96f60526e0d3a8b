/* SPDX-License-Identifier: MIT */
/* The monitor's commands about the machine's memory, its vCPUs and what they do. */
#include "human.h"
#include "monitor_internal.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAVE_CHUNK_BYTES = 1 << 20 };

/* Write guest memory into an open file. */
static int save_range(struct gr_ram *ram, uint64_t gpa, uint64_t bytes, FILE *file,
		      struct gr_error *err)
{
	void *buf = malloc(SAVE_CHUNK_BYTES);
	int rc = buf ? 0 : gr_error_set(err, -ENOMEM, "no memory for a buffer");

	while (rc == 0 && bytes > 0) {
		size_t n = bytes < SAVE_CHUNK_BYTES ? bytes : SAVE_CHUNK_BYTES;

		rc = gr_ram_read(ram, gr_gpa(gpa), buf, n, err);
		if (rc == 0 && fwrite(buf, 1, n, file) != n) {
			rc = gr_error_set(err, -EIO, "cannot write: %s", strerror(errno));
		}
		gpa += n;
		bytes -= n;
	}
	free(buf);
	return rc;
}

int vmm_do_pmemsave(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *filename = NULL;
	uint64_t val = 0, size = 0, end;
	FILE *file;
	int rc = vmm_qmp_need(args, "val", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_need(args, "size", err);
	rc = rc < 0 ? rc : vmm_qmp_need(args, "filename", err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "val", &val, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "size", &size, err);
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "filename", &filename, err);
	if (rc == 0 && __builtin_add_overflow(val, size, &end)) {
		rc = gr_error_set(err, -EINVAL, "Invalid addr or size");
	}
	rc = rc < 0 ? rc : vmm_monitor_memory_has_come(monitor, err);
	if (rc < 0) {
		return rc;
	}
	file = fopen(filename, "we");
	if (!file) {
		return gr_error_set(err, -errno, "Could not open '%s': %s", filename,
				    strerror(errno));
	}
	rc = save_range(vmm_machine_ram(monitor->machine), val, size, file, err);
	if (fclose(file) != 0 && rc == 0) {
		rc = gr_error_set(err, -EIO, "cannot write '%s': %s", filename, strerror(errno));
	}
	return rc;
}

int vmm_do_block_add(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *id = NULL;
	uint64_t size = 0, gpa = 0;
	int rc = vmm_qmp_need(args, "id", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_need(args, "size", err);
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "id", &id, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "size", &size, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "gpa", &gpa, err);
	rc = rc < 0 ? rc
		    : vmm_monitor_memory_has_come(monitor,
						  err); /* the guest's table of them is there */
	return rc < 0 ? rc : vmm_machine_plug(monitor->machine, id, size, gpa, err);
}

int vmm_do_block_del(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *id = NULL;
	int rc = vmm_qmp_need(args, "id", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "id", &id, err);
	rc = rc < 0 ? rc : vmm_monitor_memory_has_come(monitor, err);
	return rc < 0 ? rc : vmm_machine_unplug(monitor->machine, id, err);
}

static void emit_block(void *opaque, const char *id, uint64_t gpa, uint64_t bytes)
{
	json_t *block = json_pack("{ss}", "id", id);

	vmm_qmp_set_u64(block, "gpa", gpa);
	vmm_qmp_set_u64(block, "size", bytes);
	(void)json_array_append_new(opaque, block);
}

int vmm_do_query_blocks(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = json_array();
	emit_block(*ret, "ram", 0, monitor->params.machine.memory_bytes);
	vmm_machine_plugs(monitor->machine, emit_block, *ret);
	return 0;
}

int vmm_do_query_ramblock(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	json_t *text;
	int rc = vmm_human_command(vmm_machine_ram(monitor->machine), "info ramblock", &text, err);

	(void)args;
	if (rc == 0) {
		*ret = json_pack("{so}", "human-readable-text", text);
	}
	return rc;
}

int vmm_do_human_command(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	const char *line = json_string_value(json_object_get(args, "command-line"));

	if (!line) {
		return gr_error_set(err, -EINVAL, "'command-line' is missing or no string");
	}
	return vmm_human_command(vmm_machine_ram(monitor->machine), line, ret, err);
}

int vmm_do_calc_dirty_rate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc = vmm_monitor_memory_has_come(
		monitor, err); /* a grace period waits for who waits for memory */

	(void)ret;
	return rc < 0 ? rc : vmm_dirty_rate_calc(monitor->dirty_rate, args, err);
}

int vmm_do_query_dirty_rate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;

	(void)args;
	(void)err;
	*ret = vmm_dirty_rate_query(monitor->dirty_rate);
	return 0;
}

static void emit_register(void *opaque, const char *name, uint64_t value)
{
	/* all 64 bits, which a JSON integer does not have room for everywhere */
	char text[24];

	(void)snprintf(text, sizeof(text), "0x%" PRIx64, value);
	(void)json_object_set_new(opaque, name, json_string(text));
}

int vmm_do_query_registers(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc = vmm_monitor_may_wait_for_vcpus(monitor, err);
	json_t *cpus = json_array();

	(void)args;
	for (unsigned int v = 0; v < vmm_machine_vcpus(monitor->machine) && rc == 0; v++) {
		json_t *registers = json_object();

		rc = vmm_machine_describe(monitor->machine, v, emit_register, registers, err);
		(void)json_array_append_new(cpus, json_pack("{sIso}", "cpu-index", (json_int_t)v,
							    "registers", registers));
	}
	*ret = cpus;
	return rc;
}

int vmm_do_query_heartbeat(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	struct vmm_heartbeat hb;
	int rc = vmm_monitor_memory_has_come(monitor, err);

	(void)args;
	rc = rc < 0 ? rc : vmm_machine_heartbeat(monitor->machine, &hb, err);
	if (rc < 0) {
		return rc;
	}
	*ret = json_object();
	vmm_qmp_set_u64(*ret, "last-ns", hb.last_ns);
	vmm_qmp_set_u64(*ret, "gap-ns-max", hb.gap_ns_max);
	vmm_qmp_set_u64(*ret, "gap-began-ns", hb.gap_began_ns);
	vmm_qmp_set_u64(*ret, "beats", hb.beats);
	return 0;
}

int vmm_do_heartbeat_reset(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	int rc = vmm_monitor_memory_has_come(monitor, err);

	(void)args;
	(void)ret;
	return rc < 0 ? rc : vmm_machine_heartbeat_reset(monitor->machine, err);
}

int vmm_do_query_ops(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	uint64_t ops[VMM_WRITERS_MAX] = { 0 };

	(void)args;
	(void)err;
	vmm_machine_ops(monitor->machine, ops);
	*ret = json_array();
	for (unsigned int w = 0; w <= vmm_machine_vcpus(monitor->machine); w++) {
		(void)json_array_append_new(*ret, vmm_qmp_u64(ops[w]));
	}
	return 0;
}

int vmm_do_set_rate(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	uint64_t rate = 0;
	int rc = vmm_qmp_need(args, "bytes-per-second", err);

	(void)ret;
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "bytes-per-second", &rate, err);
	if (rc == 0) {
		vmm_pacer_set_rate(vmm_machine_pacer(monitor->machine), rate);
	}
	return rc;
}

int vmm_do_check(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct monitor *monitor = opaque;
	struct vmm_check check;
	uint64_t began_ns = gr_loop_now_ns();
	char text[256];
	int rc = vmm_monitor_memory_has_come(monitor, err);

	(void)args;
	rc = rc < 0 ? rc : vmm_machine_check(monitor->machine, &check, err);
	if (rc < 0) {
		return rc;
	}
	vmm_check_describe(&check, text, sizeof(text));
	*ret = json_pack("{ss}", "first-wrong", check.pages_wrong > 0 ? text : "");
	vmm_qmp_set_u64(*ret, "pages-checked", check.pages_checked);
	vmm_qmp_set_u64(*ret, "plugged-pages-checked", check.plugged_pages_checked);
	vmm_qmp_set_u64(*ret, "device-pages-checked", check.device_pages_checked);
	vmm_qmp_set_u64(*ret, "pages-written-once", check.pages_written_once);
	vmm_qmp_set_u64(*ret, "pages-last-written-before-final-round",
			check.pages_last_written_before_final_round);
	vmm_qmp_set_u64(*ret, "pages-wrong", check.pages_wrong);
	vmm_qmp_set_u64(*ret, "took-ns", gr_loop_now_ns() - began_ns);
	return 0;
}

/* SPDX-License-Identifier: MIT */
#include "state.h"
#include <errno.h>
#include <string.h>

int vmm_put_u64(struct vmm_blob *blob, uint64_t value, struct gr_error *err)
{
	uint8_t bytes[8];

	for (unsigned int i = 0; i < sizeof(bytes); i++) {
		bytes[i] = (uint8_t)(value >> (8 * i));
	}
	return vmm_blob_put(blob, bytes, sizeof(bytes), err);
}

const void *vmm_get_bytes(struct vmm_reader *in, size_t bytes)
{
	const void *at = in->at;

	if (in->failed || bytes > in->left) {
		in->failed = true;
		return NULL;
	}
	in->at += bytes;
	in->left -= bytes;
	return at;
}

uint64_t vmm_get_u64(struct vmm_reader *in)
{
	const uint8_t *bytes = vmm_get_bytes(in, 8);
	uint64_t value = 0;

	for (unsigned int i = 0; bytes && i < 8; i++) {
		value |= (uint64_t)bytes[i] << (8 * i);
	}
	return value;
}

int vmm_reader_end(const struct vmm_reader *in, struct gr_error *err)
{
	if (in->failed) {
		return gr_error_set(err, -EBADMSG, "the state is too short");
	}
	if (in->left > 0) {
		return gr_error_set(err, -EBADMSG, "the state is %zu bytes too long", in->left);
	}
	return 0;
}

int vmm_regs_put(struct vmm_blob *blob, const struct vmm_writer_regs *regs, struct gr_error *err)
{
	uint64_t entries = VMM_PLUGS_MAX;
	int rc;

	while (entries > 0 && regs->plug_ops[entries - 1] == 0) {
		entries--;
	}
	rc = vmm_put_u64(blob, regs->op, err);
	if (rc == 0) {
		rc = vmm_put_u64(blob, regs->words_done, err);
	}
	if (rc == 0) {
		rc = vmm_put_u64(blob, regs->plug_entry, err);
	}
	if (rc == 0) {
		rc = vmm_put_u64(blob, entries, err);
	}
	for (uint64_t e = 0; e < entries && rc == 0; e++) {
		rc = vmm_put_u64(blob, regs->plug_ops[e], err);
	}
	return rc;
}

int vmm_regs_get(struct vmm_reader *in, const struct vmm_workload *wl, unsigned int w,
		 struct vmm_writer_regs *regs, struct gr_error *err)
{
	uint64_t words_done, plug_entry, entries;

	memset(regs, 0, sizeof(*regs));
	regs->op = vmm_get_u64(in);
	words_done = vmm_get_u64(in);
	plug_entry = vmm_get_u64(in);
	entries = vmm_get_u64(in);
	if (in->failed) {
		return vmm_reader_end(in, err);
	}
	if (words_done > vmm_segment_words(wl->writers, w) || plug_entry > VMM_PLUGS_MAX ||
	    entries > VMM_PLUGS_MAX) {
		return gr_error_set(err, -EBADMSG, "writer %u cannot have these registers", w);
	}
	regs->words_done = (uint32_t)words_done;
	regs->plug_entry = (uint32_t)plug_entry;
	for (uint64_t e = 0; e < entries; e++) {
		regs->plug_ops[e] = vmm_get_u64(in);
	}
	return in->failed ? vmm_reader_end(in, err) : 0;
}

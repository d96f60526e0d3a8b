/* SPDX-License-Identifier: MIT */
#include "device.h"
#include "gate.h"
#include "writer.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	IN_FLIGHT_MAX = 32, /* requests */
	IOV_MAX_EACH = 2,   /* a segment lies in one page, so one is enough */
	CHUNK_WORDS = 16,   /* stores between two looks at the gate */
	STOPPED_NAP_NS = 500000,
};

/* A request whose bytes are in guest memory and whose iovecs have not been put back. */
struct request {
	struct gr_ram_iov iov[IOV_MAX_EACH];
	unsigned int iovs;
	uint64_t bytes_done;
};

struct vmm_device {
	struct vmm_writer writer;
	struct vmm_gate gate;
	struct vmm_pacer *pacer;		 /* (c) */
	bool running;				 /* (o) the caller of pause and resume */
	pthread_t thread;			 /* (c) */
	struct request in_flight[IN_FLIGHT_MAX]; /* (o) the thread: a ring */
	unsigned int oldest, count;
};

static void put_back_oldest(struct vmm_device *device)
{
	struct request *request = &device->in_flight[device->oldest];

	gr_ram_iov_put(request->iov, request->iovs, request->bytes_done);
	device->oldest = (device->oldest + 1) % IN_FLIGHT_MAX;
	device->count--;
}

static void put_back_all(struct vmm_device *device)
{
	while (device->count > 0) {
		put_back_oldest(device);
	}
}

/* Take iovecs, fill them, leave them in flight. false: the gate closed half way. */
static bool write_iov(struct vmm_device *device, const struct vmm_writer_op *op)
{
	struct request *request;
	uint64_t value = op->value;
	uint32_t done = 0;

	if (device->count == IN_FLIGHT_MAX) {
		put_back_oldest(device);
	}
	request = &device->in_flight[(device->oldest + device->count) % IN_FLIGHT_MAX];
	if (gr_ram_iov_get(device->writer.ram, gr_gpa(op->gpa), 8 * (uint64_t)op->words, true,
			   request->iov, IOV_MAX_EACH, &request->iovs, NULL) < 0) {
		vmm_writer_progress(&device->writer, op->words); /* unplugged: dropped */
		return true;
	}
	while (done < op->words && !vmm_gate_closing(&device->gate)) {
		uint32_t words = op->words - done < CHUNK_WORDS ? op->words - done : CHUNK_WORDS;

		vmm_guest_store((uint8_t *)request->iov[0].iov.iov_base + 8 * (size_t)done, value,
				words);
		value = vmm_value_after(value, words);
		done += words;
	}
	request->bytes_done = 8 * (uint64_t)done;
	device->count++;
	vmm_writer_progress(&device->writer, done);
	return done == op->words;
}

static void write_copy(struct vmm_device *device, const struct vmm_writer_op *op)
{
	uint64_t words[VMM_PAGE_WORDS];

	for (uint32_t k = 0; k < op->words; k++) {
		words[k] = vmm_value_after(op->value, k);
	}
	/* Unplugged meanwhile: nothing is written, as the workload wants it. */
	(void)gr_ram_write(device->writer.ram, gr_gpa(op->gpa), words, 8 * (size_t)op->words, NULL);
	vmm_writer_progress(&device->writer, op->words);
}

static uint32_t run_ops(struct vmm_device *device, uint32_t ops)
{
	while (ops > 0) {
		struct vmm_writer_op op;

		if (vmm_gate_closing(&device->gate)) {
			return ops;
		}
		vmm_writer_op(&device->writer, &op);
		if (op.words > 0) {
			if (device->writer.regs.op % 2 == 0) {
				write_copy(device, &op);
			} else if (!write_iov(device, &op)) {
				return ops;
			}
		}
		if (vmm_writer_finish(&device->writer)) {
			ops--;
		}
	}
	return 0;
}

static void *device_main(void *opaque)
{
	struct vmm_device *device = opaque;
	unsigned int w = device->writer.number;

	while (vmm_gate_wait(&device->gate)) {
		while (!vmm_gate_closing(&device->gate)) {
			uint32_t ops, left;

			gr_rcu_park();
			ops = vmm_pacer_take(device->pacer, w);
			if (ops == 0) {
				vmm_gate_sleep(&device->gate, STOPPED_NAP_NS);
				continue; /* the gate is closing: drain; or soon */
			}
			/* what was in flight during the sleep is done now */
			put_back_all(device);
			left = run_ops(device, ops);
			vmm_pacer_give_back(device->pacer, w, left);
		}
#ifndef GR_MUTANT_O6_DEVICE_NOT_DRAINED
		put_back_all(device); /* O6: nothing in flight when the gate has closed */
#endif
	}
	put_back_all(device);
	return NULL;
}

int vmm_device_create(struct gr_ram *ram, const struct vmm_workload *wl, struct vmm_pacer *pacer,
		      struct vmm_device **ret_device, struct gr_error *err)
{
	struct vmm_device *device = calloc(1, sizeof(*device));
	int rc;

	if (!device) {
		return gr_error_set(err, -ENOMEM, "no memory for the device");
	}
	device->pacer = pacer;
	device->writer = (struct vmm_writer){ .wl = wl,
					      .ram = ram,
					      .number = (unsigned int)wl->writers - 1 };
	vmm_gate_init(&device->gate);
	device->gate.threads = 1;
	rc = pthread_create(&device->thread, NULL, device_main, device);
	if (rc != 0) {
		vmm_gate_destroy(&device->gate);
		free(device);
		return gr_error_set(err, -rc, "cannot make the device's thread: %s", strerror(rc));
	}
	*ret_device = device;
	return 0;
}

void vmm_device_free(struct vmm_device *device)
{
	if (!device) {
		return;
	}
	if (device->running) {
		vmm_device_pause(device);
	}
	vmm_gate_set(&device->gate, VMM_GATE_QUIT);
	(void)pthread_join(device->thread, NULL);
	vmm_gate_destroy(&device->gate);
	free(device);
}

void vmm_device_pause_begin(struct vmm_device *device)
{
	vmm_gate_set(&device->gate, VMM_GATE_CLOSED);
	vmm_pacer_stop(device->pacer, device->writer.number);
}

void vmm_device_pause(struct vmm_device *device)
{
	vmm_device_pause_begin(device);
	vmm_gate_await_closed(&device->gate);
	device->running = false;
}

void vmm_device_resume(struct vmm_device *device)
{
	vmm_pacer_go(device->pacer, device->writer.number);
	device->running = true;
	vmm_gate_set(&device->gate, VMM_GATE_OPEN);
}

struct vmm_writer_regs *vmm_device_regs(struct vmm_device *device)
{
	return &device->writer.regs;
}

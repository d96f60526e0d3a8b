/* SPDX-License-Identifier: MIT */
/*
 * A guest made of threads, for machines without /dev/kvm: each vCPU is a thread that looks
 * guest addresses up without locks and stores through host pointers, as a device model or
 * an emulator's softmmu does.
 *
 * A vCPU is a quiescent-state reader: online while it translates and stores, with a quiescent
 * state between two operations, and offline wherever it waits. So its sections cost nothing, grace
 * periods wait for one operation at most, and (the machine holds a quiet time) none interrupts it.
 */
#include "accel.h"
#include "gate.h"
#include "state.h"
#include "writer.h"
#include <errno.h>
#include <guestram/rcu_qs.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	CHUNK_WORDS = 16, /* stores between two looks at the gate */
	BEAT_NS = 250000,
};

struct vcpu {
	struct threads *guest; /* (c) */
	struct vmm_writer writer;
	pthread_t thread;
};

struct threads {
	struct vmm_accel accel;
	struct vmm_gate gate;
	bool mark;    /* (c) no tracker sees plain stores */
	bool running; /* (o) the caller of the ops */
	struct vcpu *vcpus;
	pthread_t heart;
};

static struct threads *threads_of(struct vmm_accel *accel)
{
	return (struct threads *)accel; /* its first member */
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * Store what is left of the operation; what is not mapped is dropped. false: the gate closed
 * half way, at a word boundary that the registers know.
 */
static bool store_op_rcu(struct vcpu *vcpu, const struct vmm_writer_op *op)
	GR_REQUIRES_SHARED(gr_rcu_section)
{
	struct threads *guest = vcpu->guest;
	uint64_t offset = 0, bytes = 0, value = op->value;
	struct gr_ram_block *block;
	uint32_t done = 0;

	block = gr_ram_block_by_gpa_rcu(guest->accel.env.ram, gr_gpa(op->gpa), &offset, &bytes);
	if (!block || bytes < 8 * (uint64_t)op->words) {
		vmm_writer_progress(&vcpu->writer, op->words);
		return true;
	}
	while (done < op->words && !vmm_gate_closing(&guest->gate)) {
		uint32_t words = op->words - done < CHUNK_WORDS ? op->words - done : CHUNK_WORDS;

		vmm_guest_store(block->host + offset + 8 * (uint64_t)done, value, words);
		value = vmm_value_after(value, words);
		done += words;
	}
	if (guest->mark) {
		gr_ram_mark(block, offset, 8 * (uint64_t)done); /* O1: after the stores */
	}
	vmm_writer_progress(&vcpu->writer, done);
	return done == op->words;
}

/* Do so many main operations; returns how many were not finished when the gate closed. */
static uint32_t run_ops(struct vcpu *vcpu, uint32_t ops)
{
	while (ops > 0) {
		struct vmm_writer_op op;
		bool stored;

		if (vmm_gate_closing(&vcpu->guest->gate)) {
			return ops;
		}
		gr_rcu_quiescent_state();
		vmm_writer_op(&vcpu->writer, &op);
		gr_rcu_qs_read_lock();
		stored = op.words == 0 || store_op_rcu(vcpu, &op);
		gr_rcu_qs_read_unlock();
		if (!stored) {
			return ops;
		}
		if (vmm_writer_finish(&vcpu->writer)) {
			ops--;
		}
	}
	return 0;
}

/* Before whatever waits. */
static void go_offline(void)
{
#ifndef GR_MUTANT_VMM_VCPU_STAYS_ONLINE
	gr_rcu_thread_offline();
#endif
}

static void *vcpu_main(void *opaque)
{
	struct vcpu *vcpu = opaque;
	struct vmm_pacer *pacer = vcpu->guest->accel.env.pacer;

	gr_rcu_qs_register_thread();
	go_offline();
	while (vmm_gate_wait(&vcpu->guest->gate)) {
		while (!vmm_gate_closing(&vcpu->guest->gate)) {
			uint32_t ops, left;

			ops = vmm_pacer_take(pacer, vcpu->writer.number);
			if (ops == 0) {
				vmm_gate_sleep(&vcpu->guest->gate, BEAT_NS);
				continue; /* the gate is closing, or soon */
			}
			gr_rcu_thread_online();
			left = run_ops(vcpu, ops);
			go_offline();
			vmm_pacer_give_back(pacer, vcpu->writer.number, left);
		}
	}
	gr_rcu_qs_unregister_thread();
	return NULL;
}

static void beat(struct threads *guest)
{
	GR_RCU_READ_GUARD();
	struct vmm_heartbeat hb;
	uint64_t offset;
	struct gr_ram_block *block = gr_ram_block_by_gpa_rcu(
		guest->accel.env.ram, gr_gpa(VMM_HEARTBEAT_GPA), &offset, NULL);

	if (!block) {
		return;
	}
	vmm_guest_load(block->host + offset, (uint64_t *)&hb, sizeof(hb) / 8);
	vmm_heartbeat_beat(&hb, now_ns());
	vmm_guest_copy(block->host + offset, (const uint64_t *)&hb, sizeof(hb) / 8);
	if (guest->mark) {
		gr_ram_mark(block, offset, sizeof(hb));
	}
}

static void *heart_main(void *opaque)
{
	struct threads *guest = opaque;

	while (vmm_gate_wait(&guest->gate)) {
		while (!vmm_gate_closing(&guest->gate)) {
			beat(guest);
			vmm_gate_sleep(&guest->gate, BEAT_NS);
		}
	}
	return NULL;
}

static int threads_probe(struct gr_error *err)
{
	(void)err;
	return 0; /* always */
}

static int threads_create(const struct vmm_accel_env *env, struct vmm_accel **ret_accel,
			  struct gr_error *err)
{
	struct threads *guest;

	if (!env->workload) {
		return gr_error_set(err, -ENOTSUP,
				    "a flat image needs KVM: threads cannot run machine code");
	}
	guest = calloc(1, sizeof(*guest));
	if (guest) {
		guest->vcpus = calloc(env->vcpus, sizeof(*guest->vcpus));
	}
	if (!guest || !guest->vcpus) {
		free(guest);
		return gr_error_set(err, -ENOMEM, "no memory for %u vCPUs", env->vcpus);
	}
	guest->accel.ops = &vmm_accel_threads;
	guest->accel.env = *env;
	guest->mark = env->software_tracker ||
		      gr_track_use(env->track, GR_TRACKER_UFFD_WP, NULL, NULL) < 0;
	guest->accel.writers = GR_WRITERS_MARKED | (guest->mark ? 0 : GR_WRITERS_MAPPING);
	vmm_gate_init(&guest->gate);
	for (unsigned int v = 0; v < env->vcpus; v++) {
		guest->vcpus[v].guest = guest;
		guest->vcpus[v].writer =
			(struct vmm_writer){ .wl = env->workload, .ram = env->ram, .number = v };
	}
	*ret_accel = &guest->accel;
	return 0;
}

static void threads_pause_begin(struct vmm_accel *accel)
{
	vmm_gate_set(&threads_of(accel)->gate, VMM_GATE_CLOSED);
	for (unsigned int v = 0; v < accel->env.vcpus; v++) {
		vmm_pacer_stop(accel->env.pacer, v);
	}
}

static int threads_pause(struct vmm_accel *accel, struct gr_error *err)
{
	struct threads *guest = threads_of(accel);

	(void)err;
	threads_pause_begin(accel);
	vmm_gate_await_closed(&guest->gate);
	guest->running = false;
	return 0;
}

static void threads_resume(struct vmm_accel *accel)
{
	struct threads *guest = threads_of(accel);

	for (unsigned int v = 0; v < accel->env.vcpus; v++) {
		vmm_pacer_go(accel->env.pacer, v);
	}
	guest->running = true;
	vmm_gate_set(&guest->gate, VMM_GATE_OPEN);
}

/* End the threads that exist. */
static void end_threads(struct threads *guest)
{
	unsigned int threads = guest->gate.threads, vcpus = guest->accel.env.vcpus;

	vmm_gate_set(&guest->gate, VMM_GATE_QUIT);
	for (unsigned int v = 0; v < threads && v < vcpus; v++) {
		(void)pthread_join(guest->vcpus[v].thread, NULL);
	}
	if (threads > vcpus) {
		(void)pthread_join(guest->heart, NULL);
	}
	guest->gate.threads = 0;
}

static int threads_start(struct vmm_accel *accel, struct gr_error *err)
{
	struct threads *guest = threads_of(accel);
	int rc = 0;

	for (unsigned int v = 0; v < accel->env.vcpus && rc == 0; v++) {
		rc = pthread_create(&guest->vcpus[v].thread, NULL, vcpu_main, &guest->vcpus[v]);
		guest->gate.threads += rc == 0;
	}
	if (rc == 0) {
		rc = pthread_create(&guest->heart, NULL, heart_main, guest);
		guest->gate.threads += rc == 0;
	}
	if (rc != 0) {
		end_threads(guest);
		return gr_error_set(err, -rc, "cannot make the guest's threads: %s", strerror(rc));
	}
	return 0;
}

static void threads_destroy(struct vmm_accel *accel)
{
	struct threads *guest = threads_of(accel);

	if (guest->running) {
		(void)threads_pause(accel, NULL);
	}
	end_threads(guest);
	vmm_gate_destroy(&guest->gate);
	free(guest->vcpus);
	free(guest);
}

static int threads_save(struct vmm_accel *accel, unsigned int cpu, struct vmm_blob *blob,
			struct gr_error *err)
{
	return vmm_regs_put(blob, &threads_of(accel)->vcpus[cpu].writer.regs, err);
}

static int threads_load(struct vmm_accel *accel, unsigned int cpu, const void *data, size_t bytes,
			struct gr_error *err)
{
	struct vmm_reader in = { .at = data, .left = bytes };
	struct vmm_writer *writer = &threads_of(accel)->vcpus[cpu].writer;
	int rc = vmm_regs_get(&in, writer->wl, cpu, &writer->regs, err);

	return rc < 0 ? rc : vmm_reader_end(&in, err);
}

static int threads_registers(struct vmm_accel *accel, unsigned int cpu,
			     struct vmm_writer_regs *regs, struct gr_error *err)
{
	(void)err;
	*regs = threads_of(accel)->vcpus[cpu].writer.regs;
	return 0;
}

static void threads_describe(struct vmm_accel *accel, unsigned int cpu,
			     void (*emit)(void *opaque, const char *name, uint64_t value),
			     void *opaque)
{
	const struct vmm_writer_regs *regs = &threads_of(accel)->vcpus[cpu].writer.regs;

	emit(opaque, "op", regs->op);
	emit(opaque, "words_done", regs->words_done);
	emit(opaque, "plug_entry", regs->plug_entry);
}

const struct vmm_accel_ops vmm_accel_threads = {
	.name = "threads",
	.probe = threads_probe,
	.create = threads_create,
	.destroy = threads_destroy,
	.start = threads_start,
	.pause_begin = threads_pause_begin,
	.pause = threads_pause,
	.resume = threads_resume,
	.save = threads_save,
	.load = threads_load,
	.registers = threads_registers,
	.describe = threads_describe,
};

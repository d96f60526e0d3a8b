/* SPDX-License-Identifier: MIT */
/*
 * The KVM guest: its code does what workload.h says, wherever it is stopped; it moves; flat
 * images run.
 */
#include "guest/payload.h"
#include "harness.h"
#include "kvm_payload.h"
#include "machine.h"
#include "machine_move.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1 << 20 };

static void sleep_us(uint64_t us)
{
	struct timespec ts = { .tv_sec = (time_t)(us / 1000000),
			       .tv_nsec = (long)(us % 1000000 * 1000) };

	nanosleep(&ts, NULL);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void need_kvm(void)
{
	struct gr_error err;

	if (vmm_accel_kvm.probe(&err) < 0) {
		SKIP("%s", err.msg);
	}
}

static void on_change(void *opaque, enum vmm_run_state state, const char *why)
{
	(void)opaque;
	if (state == VMM_SHUTDOWN) {
		test_diag("the guest ended: %s", why);
		_exit(1);
	}
}

static struct vmm_machine *machine_create(struct vmm_machine_params params)
{
	struct vmm_machine *m;
	struct gr_error err;

	need_kvm();
	params.accel = "kvm";
	params.changed = on_change;
	if (params.memory_bytes == 0) {
		params.memory_bytes = 2 * MIB;
	}
	if (params.rate_bytes_per_s == 0) {
		params.rate_bytes_per_s = VMM_RATE_UNLIMITED;
	}
	if (vmm_machine_create(&params, &m, &err) < 0) {
		FAIL("%s", err.msg);
	}
	return m;
}

static void go(struct vmm_machine *m)
{
	struct gr_error err;

	if (vmm_machine_cont(m, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

static void halt(struct vmm_machine *m)
{
	struct gr_error err;

	if (vmm_machine_stop(m, &err) < 0) {
		FAIL("%s", err.msg);
	}
}

/* Every word is right; returns how many pages have been written once. */
static struct vmm_check check(struct vmm_machine *m)
{
	struct vmm_check c;
	struct gr_error err;
	char text[256];

	if (vmm_machine_check(m, &c, &err) < 0) {
		FAIL("%s", err.msg);
	}
	if (c.pages_wrong > 0) {
		vmm_check_describe(&c, text, sizeof(text));
		FAIL("%" PRIu64 " pages wrong: %s", c.pages_wrong, text);
	}
	return c;
}

static uint64_t ops_of(struct vmm_machine *m, unsigned int w)
{
	uint64_t ops[VMM_WRITERS_MAX];

	vmm_machine_ops(m, ops);
	return ops[w];
}

/* Runs until every vCPU has done so many operations. */
static void run_ops(struct vmm_machine *m, uint64_t ops)
{
	double end = now() + 40;

	go(m);
	for (unsigned int v = 0; v < vmm_machine_vcpus(m); v++) {
		while (ops_of(m, v) < ops) {
			ASSERT_LT(now(), end);
			sleep_us(1000);
		}
	}
	halt(m);
}

TEST(the_code_writes_what_the_specification_says)
{
	struct vmm_machine *m = machine_create((struct vmm_machine_params){ .vcpus = 2 });
	struct vmm_check c;

	run_ops(m, 2 * vmm_machine_workload(m)->once_pages);
	c = check(m);
	ASSERT_EQ(c.pages_checked, 2u * MIB / 4096);
	/* All once pages have had their time; later operations on them are none. */
	ASSERT_EQ(c.pages_written_once, vmm_machine_workload(m)->once_pages);
	ASSERT_GT(c.device_pages_checked, 0u);
	vmm_machine_free(m);
}

TEST(stopped_anywhere_the_registers_tell_every_word)
{
	struct vmm_machine *m = machine_create((struct vmm_machine_params){ .vcpus = 2 });
	double end = now() + test_seconds(3);
	uint64_t rnd = test_seed(), stops = 0;

	while (now() < end || ops_of(m, 0) == 0 || ops_of(m, 1) == 0) {
		go(m);
		sleep_us(test_rand(&rnd) % 5000);
		halt(m);
		check(m);
		stops++;
	}
	test_diag("%" PRIu64 " stops", stops);
	vmm_machine_free(m);
}

TEST(plugged_blocks_are_written_and_may_go_at_any_time)
{
	struct vmm_machine *m = machine_create((struct vmm_machine_params){ .vcpus = 2 });
	double end = now() + test_seconds(3);
	uint64_t rnd = test_seed(), written = 0;
	char id[16];

	for (unsigned int n = 0; now() < end || n < 6; n++) {
		struct gr_error err;

		(void)snprintf(id, sizeof(id), "dimm%u", n);
		if (vmm_machine_plug(m, id, 8 * 4096, 0, &err) < 0) {
			FAIL("%s", err.msg);
		}
		go(m);
		sleep_us(test_rand(&rnd) % 20000);
		if (n >= 3) { /* while it runs */
			(void)snprintf(id, sizeof(id), "dimm%u", n - 3);
			ASSERT_EQ(vmm_machine_unplug(m, id, NULL), 0);
		}
		sleep_us(test_rand(&rnd) % 5000);
		halt(m);
		written += check(m).plugged_pages_checked;
	}
	ASSERT_GT(written, 0u);
	vmm_machine_free(m);
}

TEST(the_guest_looks_at_its_clock_also_when_it_has_nothing_to_write)
{
	struct vmm_machine *m =
		machine_create((struct vmm_machine_params){ .rate_bytes_per_s = 4096 });
	struct vmm_heartbeat hb = { 0 };
	double end = now() + 20;

	go(m);
	while (hb.beats < 30) {
		ASSERT_LT(now(), end);
		sleep_us(10000);
		ASSERT_EQ(vmm_machine_heartbeat(m, &hb, NULL), 0);
	}
	halt(m);
	/* one page a second for vCPU and device together: it did not wait for the next one */
	ASSERT_LT(ops_of(m, 0), 15u);
	check(m);
	vmm_machine_free(m);
}

TEST(the_pacer_limits_the_guest)
{
	/* 100 pages a second for vCPU and device together */
	struct vmm_machine *m =
		machine_create((struct vmm_machine_params){ .rate_bytes_per_s = 100 * 4096 });

	go(m);
	sleep_us(1000000);
	halt(m);
	ASSERT_LE(ops_of(m, 0), 100u);
	ASSERT_GT(ops_of(m, 0), 10u);
	vmm_machine_free(m);
}

/* The machine moves to another one in this process, `moves` times over. */
static void move_once(struct vmm_machine *from, struct vmm_machine *to)
{
	char uri[64];
	struct vmm_move_params params = { .rounds_max = 8 }; /* however slow the machine is */
	struct vmm_move *in, *out;
	struct gr_error err;

	(void)snprintf(uri, sizeof(uri), "unix:/tmp/kvm-move-%d", (int)getpid());
	if (vmm_move_in(to, uri, NULL, &in, &err) < 0 ||
	    vmm_move_out(from, uri, &params, &out, &err) < 0) {
		FAIL("%s", err.msg);
	}
	if (vmm_move_wait(out, &err) < 0) {
		FAIL("out: %s", err.msg);
	}
	if (vmm_move_wait(in, &err) < 0) {
		FAIL("in: %s", err.msg);
	}
	vmm_move_free(out);
	vmm_move_free(in);
}

TEST(a_running_machine_moves_with_every_word_and_goes_on)
{
	struct vmm_machine *m =
		machine_create((struct vmm_machine_params){ .vcpus = 2, .rate_bytes_per_s = MIB });

	ASSERT_EQ(vmm_machine_plug(m, "dimm0", 16 * 4096, 0, NULL), 0);
	go(m);
	for (unsigned int n = 0; n < 3; n++) {
		struct vmm_machine *to = machine_create((struct vmm_machine_params){
			.vcpus = 2, .rate_bytes_per_s = MIB, .incoming = true });
		struct vmm_heartbeat before, after;

		sleep_us(300000);
		move_once(m, to);
		vmm_machine_free(m);
		m = to;
		ASSERT_GT(check(m).plugged_pages_checked, 0u);
		ASSERT_EQ(vmm_machine_heartbeat(m, &before, NULL), 0);
		go(m);
		sleep_us(300000);
		halt(m);
		ASSERT_EQ(vmm_machine_heartbeat(m, &after, NULL), 0);
		ASSERT_GT(after.beats, before.beats);
		check(m);
		go(m);
	}
	halt(m);
	vmm_machine_free(m);
}

TEST(foreign_vcpu_state_is_refused_or_harmless)
{
	struct vmm_machine *m = machine_create((struct vmm_machine_params){ 0 });
	uint64_t rnd = test_seed();
	struct gr_ram *ram;
	struct gr_track *track;
	struct vmm_pacer pacer;
	struct vmm_workload wl;
	struct vmm_accel *accel;
	struct vmm_blob blob = { 0 };
	struct gr_error err;
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "ram", .used_bytes = 2 * MIB, .mapped = true
	};
	struct vmm_accel_env env = { .vcpus = 1, .debug_fd = -1, .workload = &wl, .pacer = &pacer };
	uint8_t *bytes;

	vmm_machine_free(m);
	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(gr_track_create(ram, &track, NULL), 0);
	ASSERT_EQ(vmm_pacer_init(&pacer, 2, NULL), 0);
	ASSERT_EQ(vmm_workload_init(&wl, &(struct vmm_workload_params){ 2 * MIB, 2, 0, 0 }, NULL),
		  0);
	env.ram = ram;
	env.track = track;
	ASSERT_EQ(vmm_accel_kvm.create(&env, &accel, &err), 0);
	ASSERT_EQ(accel->ops->save(accel, 0, &blob, &err), 0);
	ASSERT_EQ(accel->ops->load(accel, 0, blob.data, blob.bytes, &err), 0);

	for (size_t n = 0; n < blob.bytes; n += 1 + blob.bytes / 50) {
		ASSERT_EQ(accel->ops->load(accel, 0, blob.data, n, &err), -EBADMSG);
	}
	bytes = malloc(blob.bytes);
	for (unsigned int n = 0; n < 300; n++) {
		int rc;

		memcpy(bytes, blob.data, blob.bytes);
		for (unsigned int i = 0; i < 8; i++) {
			bytes[test_rand(&rnd) % blob.bytes] = (uint8_t)test_rand(&rnd);
		}
		rc = accel->ops->load(accel, 0, bytes, blob.bytes, &err);
		ASSERT(rc == 0 || rc == -EBADMSG);
	}
	free(bytes);
	vmm_blob_free(&blob);
	accel->ops->destroy(accel);
	gr_track_free(track);
	gr_ram_free(ram);
	vmm_pacer_destroy(&pacer);
}

/* Registers that no run of the code leaves behind. */
TEST(impossible_registers_are_refused)
{
	struct gr_ram *ram;
	struct vmm_workload wl;
	struct vmm_writer_regs regs;
	struct gr_error err;
	struct gr_ram_block_desc desc = {
		.size = sizeof(desc), .id = "ram", .used_bytes = 2 * MIB, .mapped = true
	};
	struct kvm_regs r = { .r13 = 5, .r15 = 5, .r8 = 0x10000, .rdi = 0x10000 + 8 * 100 };

	ASSERT_EQ(gr_ram_create(NULL, &ram, NULL), 0);
	ASSERT_EQ(gr_ram_block_add(ram, &desc, NULL, NULL), 0);
	ASSERT_EQ(vmm_workload_init(&wl, &(struct vmm_workload_params){ 2 * MIB, 2, 0, 0 }, NULL),
		  0);
	ASSERT_EQ(vmm_payload_decode(ram, &wl, 0, &r, &regs, &err), 0);
	ASSERT_EQ(regs.words_done, 100u);
	ASSERT_EQ(regs.op, 5u);
	r.r13 = 4; /* the operation before: none of this one's words */
	ASSERT_EQ(vmm_payload_decode(ram, &wl, 0, &r, &regs, &err), 0);
	ASSERT_EQ(regs.words_done, 0u);
	r.r13 = 5;
	r.rdi = r.r8 + 8 * 257;
	ASSERT_EQ(vmm_payload_decode(ram, &wl, 0, &r, &regs, &err), -EBADMSG);
	r.rdi = r.r8 - 8;
	ASSERT_EQ(vmm_payload_decode(ram, &wl, 0, &r, &regs, &err), -EBADMSG);
	r.r14 = VMM_PLUGS_MAX + 1;
	ASSERT_EQ(vmm_payload_decode(ram, &wl, 0, &r, &regs, &err), -EBADMSG);
	ASSERT_HAS(err.msg, "plug entry");
	/* The counter of entry 3 is 7, and r13 says that 9 of its words are done. */
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(PAYLOAD_COUNTERS_PAGE * 4096 + 3 * 8), &(uint64_t){ 7 },
			       8, NULL),
		  0);
	r.r14 = 4;
	r.r13 = 7;
	r.rdi = r.r8 + 8 * 9;
	ASSERT_EQ(vmm_payload_decode(ram, &wl, 0, &r, &regs, &err), 0);
	ASSERT_EQ(regs.words_done, 9u);
	ASSERT_EQ(regs.plug_ops[3], 7u);
	gr_ram_free(ram);
}

/* A flat image as a file; returns its path. */
static const char *image(const void *code, size_t bytes)
{
	static char path[64];
	int fd;

	(void)snprintf(path, sizeof(path), "/tmp/kvm-flat-%d", (int)getpid());
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(write(fd, code, bytes), (ssize_t)bytes);
	close(fd);
	return path;
}

/* What comes out of the debug port within a while, until so many bytes are there. */
static size_t output(int fd, char *buf, size_t bytes)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	size_t n = 0;

	while (n < bytes && poll(&p, 1, 5000) > 0) {
		ssize_t got = read(fd, buf + n, bytes - n);

		ASSERT_GT(got, 0);
		n += (size_t)got;
	}
	return n;
}

static uint64_t seen_rip, seen_cs, seen_halted;

static void see(void *opaque, const char *name, uint64_t value)
{
	(void)opaque;
	seen_rip = strcmp(name, "rip") == 0 ? value : seen_rip;
	seen_cs = strcmp(name, "cs") == 0 ? value : seen_cs;
	seen_halted = strcmp(name, "halted") == 0 ? value : seen_halted;
}

TEST(a_flat_image_runs_prints_and_halts)
{
	/*
	 * push cs; pop ax; add al, '0'; out 0xe9, al; mov si, text; mov cx, 4; mov dx, 0xe9;
	 * cld; rep outsb; mov dx, 0x1234; in al, dx; inc al; add al, '0'; out 0xe9, al;
	 * out dx, al; hlt; text: "flat"
	 */
	static const uint8_t code[] = { 0x0e, 0x58, 0x04, 0x30, 0xe6, 0xe9, 0xbe, 0x1e, 0x7c,
					0xb9, 0x04, 0x00, 0xba, 0xe9, 0x00, 0xfc, 0xf3, 0x6e,
					0xba, 0x34, 0x12, 0xec, 0xfe, 0xc0, 0x04, 0x30, 0xe6,
					0xe9, 0xee, 0xf4, 'f',	'l',  'a',  't' };
	struct vmm_machine *m, *to;
	struct vmm_machine_params params = { .memory_bytes = 1 * MIB };
	char text[16] = "";
	int p[2];

	need_kvm();
	ASSERT_EQ(pipe2(p, O_CLOEXEC), 0);
	params.debug_fd = p[1];
	params.flat = image(code, sizeof(code));
	m = machine_create(params);
	go(m);
	ASSERT_EQ(output(p[0], text, 6), 6u);
	ASSERT_STR_EQ(text, "0flat0");
	sleep_us(100000);
	ASSERT_EQ(vmm_machine_state(m), VMM_RUNNING);
	ASSERT_EQ(vmm_machine_describe(m, 0, see, NULL, NULL), 0);
	ASSERT_EQ(seen_rip, 0x7c1eu);
	ASSERT_EQ(seen_cs, 0u);
	ASSERT_EQ(seen_halted, 1u);
	halt(m);
	go(m);

	/* Halted it moves, and it stays halted there. */
	params.incoming = true;
	to = machine_create(params);
	move_once(m, to);
	go(to);
	sleep_us(100000);
	ASSERT_EQ(vmm_machine_describe(to, 0, see, NULL, NULL), 0);
	ASSERT_EQ(seen_rip, 0x7c1eu);
	ASSERT_EQ(seen_halted, 1u);
	vmm_machine_free(to);
	vmm_machine_free(m);
	(void)unlink(params.flat);
}

static void *count_up(void *arg)
{
	int fd = *(int *)arg;
	uint8_t buf[512], next = 0;
	ssize_t got;
	uint64_t bytes = 0, wrong = 0;

	while ((got = read(fd, buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < got; i++, bytes++) {
			wrong += buf[i] != next;
			next = (uint8_t)(buf[i] + 1);
		}
	}
	test_diag("%" PRIu64 " bytes", bytes);
	ASSERT_GT(bytes, 0u);
	ASSERT_EQ(wrong, 0u);
	return NULL;
}

/*
 * The guest leaves for a store to the debug port nearly all the time: it prints 0, 1, 2, ... If
 * a pause left such an exit half done, the guest would print a byte again after the move.
 */
TEST(what_a_vcpu_left_the_guest_for_is_done_once_also_over_a_move)
{
	/* mov dx, 0xe9; xor al, al; again: out dx, al; inc al; jmp again */
	static const uint8_t code[] = {
		0xba, 0xe9, 0x00, 0x30, 0xc0, 0xee, 0xfe, 0xc0, 0xeb, 0xfb
	};
	struct vmm_machine_params params = { .memory_bytes = 1 * MIB };
	struct vmm_machine *m, *to;
	pthread_t reader;
	int p[2];

	need_kvm();
	ASSERT_EQ(pipe2(p, O_CLOEXEC), 0);
	params.debug_fd = p[1];
	params.flat = image(code, sizeof(code));
	m = machine_create(params);
	params.incoming = true;
	ASSERT_EQ(pthread_create(&reader, NULL, count_up, &p[0]), 0);
	for (unsigned int n = 0; n < 5; n++) {
		go(m);
		sleep_us(50000);
		to = machine_create(params);
		move_once(m, to);
		vmm_machine_free(m);
		m = to;
	}
	go(m);
	sleep_us(50000);
	vmm_machine_free(m);
	close(p[1]);
	pthread_join(reader, NULL);
	(void)unlink(params.flat);
}

TEST(a_flat_image_that_cannot_be_loaded_is_an_error)
{
	struct vmm_machine_params params = { .memory_bytes = 1 * MIB, .debug_fd = -1 };
	struct vmm_machine *m;
	struct gr_error err;

	need_kvm();
	params.accel = "kvm";
	params.flat = "/nowhere/at-all";
	ASSERT_EQ(vmm_machine_create(&params, &m, &err), -ENOENT);
	ASSERT_HAS(err.msg, "/nowhere/at-all");
	params.flat = image("", 0);
	ASSERT_EQ(vmm_machine_create(&params, &m, &err), -EINVAL);
	ASSERT_EQ(truncate(params.flat, MIB), 0);
	ASSERT_EQ(vmm_machine_create(&params, &m, &err), -EINVAL);
	ASSERT_HAS(err.msg, "must be 1 to");
	(void)unlink(params.flat);
}

static int ended;

static void on_end(void *opaque, enum vmm_run_state state, const char *why)
{
	(void)opaque;
	if (state == VMM_SHUTDOWN) {
		ASSERT_HAS(why, "triple fault");
		__atomic_store_n(&ended, 1, __ATOMIC_RELEASE);
	}
}

TEST(a_guest_that_shuts_down_is_reported_and_does_not_move)
{
	/* lidt with no entries, then int3: an exception without a handler, three times over */
	static const uint8_t code[] = { 0x0f, 0x01, 0x1e, 0x06, 0x7c, 0xcc, 0, 0, 0, 0, 0, 0 };
	struct vmm_machine_params params = {
		.memory_bytes = 1 * MIB, .debug_fd = -1, .accel = "kvm", .changed = on_end
	};
	struct vmm_machine *m, *to;
	struct vmm_move *in, *out;
	struct gr_error err;
	double end = now() + 10;

	need_kvm();
	params.flat = image(code, sizeof(code));
	ASSERT_EQ(vmm_machine_create(&params, &m, NULL), 0);
	go(m);
	while (!__atomic_load_n(&ended, __ATOMIC_ACQUIRE)) {
		ASSERT_LT(now(), end);
		sleep_us(1000);
	}
	halt(m);
	ASSERT_EQ(vmm_machine_describe(m, 0, see, NULL, NULL), 0);
	params.incoming = true;
	ASSERT_EQ(vmm_machine_create(&params, &to, NULL), 0);
	ASSERT_EQ(vmm_move_in(to, "unix:/tmp/kvm-ended", NULL, &in, NULL), 0);
	ASSERT_EQ(
		vmm_move_out(m, "unix:/tmp/kvm-ended", &(struct vmm_move_params){ 0 }, &out, NULL),
		0);
	ASSERT_LT(vmm_move_wait(out, &err), 0);
	ASSERT_HAS(err.msg, "triple fault");
	ASSERT_LT(vmm_move_wait(in, NULL), 0);
	vmm_move_free(out);
	vmm_move_free(in);
	vmm_machine_free(to);
	vmm_machine_free(m);
	(void)unlink(params.flat);
}

TEST_MAIN()

/* SPDX-License-Identifier: MIT */
#include "bench/qemu.h"
#include "bench/harness.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define INSTALLED "qemu-system-x86_64"

/* The newer one that scripts/qemu10.sh unpacks, or NULL. */
static const char *newer_binary(void)
{
	const char *newer = getenv("GR_QEMU10");

	return newer && *newer ? newer : NULL;
}

static const char *qemu_binary(bool installed)
{
	return installed || !newer_binary() ? INSTALLED : newer_binary();
}

static const char *version_of(const char *binary, char version[32])
{
	char command[512];
	FILE *f;

	(void)snprintf(command, sizeof(command), "%s --version 2>/dev/null", binary);
	f = popen(command, "r");
	version[0] = '\0';
	if (f) {
		if (fscanf(f, "QEMU emulator version %31s", version) != 1) {
			version[0] = '\0';
		}
		(void)pclose(f);
	}
	return version[0] ? version : NULL;
}

const char *bench_qemu_version(void)
{
	static char version[32];

	return version_of(qemu_binary(false), version);
}

const char *bench_qemu_installed(void)
{
	static char version[32];

	return newer_binary() ? version_of(INSTALLED, version) : NULL;
}

/* Where its firmware is. */
static const char *qemu_data(bool installed)
{
	const char *data = getenv("GR_QEMU10_DATA");

	return data && *data && !installed && newer_binary() ? data : "/usr/share/qemu";
}

static int connect_unix(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = -1;

	if (strlen(path) >= sizeof(a.sun_path)) {
		bench_die("socket path too long: %s", path);
	}
	memcpy(a.sun_path, path, strlen(path));
	for (int i = 0; i < 2500; i++) {
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0) {
			return fd;
		}
		close(fd);
		usleep(4000);
	}
	return -1;
}

/* Reads lines until one contains any of the two words; returns it. */
const char *bench_qmp_wait(struct bench_qemu *q, const char *word, const char *or_word)
{
	static char line[65536];

	while (fgets(line, sizeof(line), q->qmp)) {
		if (strstr(line, "\"error\"") || strstr(line, "\"failed\"")) {
			bench_die("QEMU says: %s", line);
		}
		if (strstr(line, word) || (or_word && strstr(line, or_word))) {
			return line;
		}
	}
	bench_die("QEMU ended while we waited for %s", word);
}

void bench_qmp(struct bench_qemu *q, const char *command)
{
	(void)dprintf(q->fd, "%s\n", command);
	(void)bench_qmp_wait(q, "\"return\"", NULL);
}

void bench_qemu_start(struct bench_qemu *q, const struct bench_machine *m, const char *name,
		      const char *mem_file, bool prealloc, bool incoming)
{
	const char *binary = qemu_binary(m->installed);
	char object[512], monitor[256], path[128], memory[64], drive[256];
	const char *args[32];
	int n = 0;

	(void)snprintf(path, sizeof(path), "%s/%s.qmp", m->tmp, name);
	(void)snprintf(monitor, sizeof(monitor), "unix:%s,server=on,wait=off", path);
	if (mem_file) {
		(void)snprintf(
			object, sizeof(object),
			"memory-backend-file,id=ram,mem-path=%s,size=%llu,share=on,prealloc=%s",
			mem_file, (unsigned long long)m->bytes, prealloc ? "on" : "off");
	} else {
		(void)snprintf(object, sizeof(object), "memory-backend-ram,id=ram,size=%llu",
			       (unsigned long long)m->bytes);
	}
	(void)snprintf(memory, sizeof(memory), "%lluM", (unsigned long long)(m->bytes >> 20));
	const char *const always[] = { binary,
				       "-L",
				       qemu_data(m->installed),
				       "-machine",
				       "pc,memory-backend=ram",
				       "-accel",
				       "tcg",
				       "-m",
				       memory,
				       "-object",
				       object,
				       "-nodefaults",
				       "-display",
				       "none",
				       "-qmp",
				       monitor };

	for (size_t i = 0; i < sizeof(always) / sizeof(always[0]); i++) {
		args[n++] = always[i];
	}
	if (m->floppy) {
		(void)snprintf(drive, sizeof(drive), "if=floppy,format=raw,readonly=on,file=%s",
			       m->floppy);
		args[n++] = "-drive";
		args[n++] = drive;
		args[n++] = "-boot";
		args[n++] = "a";
	} else {
		args[n++] = "-S";
	}
	if (incoming) {
		args[n++] = "-incoming";
		args[n++] = "defer";
	}
	args[n] = NULL;
	q->pid = fork();
	if (q->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execvp(binary, (char **)(uintptr_t)args);
		_exit(127);
	}
	q->fd = connect_unix(path);
	if (q->fd < 0 || !(q->qmp = fdopen(dup(q->fd), "r"))) {
		bench_die("cannot reach QEMU's monitor %s: %s", path, strerror(errno));
	}
	(void)bench_qmp_wait(q, "\"QMP\"", NULL);
	bench_qmp(q, "{\"execute\":\"qmp_capabilities\"}");
	bench_qmp(q, "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":"
		     "[{\"capability\":\"events\",\"state\":true}]}}");
	bench_qmp(q, "{\"execute\":\"migrate-set-parameters\",\"arguments\":"
		     "{\"max-bandwidth\":1000000000000}}");
}

static void qemu_multifd(struct bench_qemu *q, unsigned channels)
{
	char command[256];

	if (channels == 0) {
		return;
	}
	bench_qmp(q, "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":"
		     "[{\"capability\":\"multifd\",\"state\":true}]}}");
	(void)snprintf(command, sizeof(command),
		       "{\"execute\":\"migrate-set-parameters\",\"arguments\":"
		       "{\"multifd-channels\":%u}}",
		       channels);
	bench_qmp(q, command);
}

void bench_qemu_end(struct bench_qemu *q)
{
	(void)fclose(q->qmp);
	close(q->fd);
	kill(q->pid, SIGKILL);
	waitpid(q->pid, NULL, 0);
}

bool bench_same_bytes(int a, int b, uint64_t bytes)
{
	enum { AT_ONCE = 1 << 20 };
	static char from_a[AT_ONCE], from_b[AT_ONCE];
	ssize_t n;

	for (uint64_t at = 0; at < bytes; at += (uint64_t)n) {
		n = pread(a, from_a, AT_ONCE, (off_t)at);
		if (n <= 0 || pread(b, from_b, (size_t)n, (off_t)at) != n ||
		    memcmp(from_a, from_b, (size_t)n) != 0) {
			return false;
		}
	}
	return true;
}

double bench_peak_mib(pid_t pid)
{
	char path[64], line[256];
	double kib = -1;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", pid ? (int)pid : (int)getpid());
	f = fopen(path, "re");
	while (f && kib < 0 && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "VmHWM: %lf", &kib) != 1) {
			kib = -1;
		}
	}
	if (kib < 0) {
		bench_die("%s says nothing about memory", path);
	}
	(void)fclose(f);
	return kib / 1024;
}

static void compare_files(const char *a, const char *b, uint64_t bytes)
{
	int fa = open(a, O_RDONLY | O_CLOEXEC), fb = open(b, O_RDONLY | O_CLOEXEC);

	if (!bench_same_bytes(fa, fb, bytes)) {
		bench_die("QEMU's destination has other RAM than its source");
	}
	close(fa);
	close(fb);
}

void bench_qemu_migrate(struct bench_qemu *q, const char *uri)
{
	char command[512];

	(void)snprintf(command, sizeof(command),
		       "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"%s\"}}\n", uri);
	(void)!write(q->fd, command, strlen(command));
}

void bench_qemu_wait_completed(struct bench_qemu *q)
{
	(void)bench_qmp_wait(q, "\"status\": \"completed\"", "\"status\":\"completed\"");
}

struct bench_move bench_qemu_send(const struct bench_machine *m)
{
	struct bench_move move = { 0 };
	struct bench_qemu q;

	bench_qemu_start(&q, m, "src", m->src_file, !m->untouched, false);
	qemu_multifd(&q, m->channels);
	move.src_cpu_s = -bench_cpu_s(q.pid);
	move.wall_s = bench_now_s();
	bench_qemu_migrate(&q, m->uri);
	bench_qemu_wait_completed(&q);
	move.src_cpu_s += bench_cpu_s(q.pid);
	move.src_peak_mib = bench_peak_mib(q.pid);
	bench_qemu_end(&q);
	return move;
}

struct bench_move bench_qemu_move(const struct bench_machine *m)
{
	struct bench_move move;
	struct bench_qemu src, dst;
	char dst_file[128], command[512];
	double start;

	(void)snprintf(dst_file, sizeof(dst_file), "%s.dst", m->src_file);
	(void)unlink(dst_file);
	bench_qemu_start(&dst, m, "dst", dst_file, m->present, true);
	/* The source's page table is there, as ours is. */
	bench_qemu_start(&src, m, "src", m->src_file, !m->untouched, false);
	qemu_multifd(&dst, m->channels);
	qemu_multifd(&src, m->channels);
	(void)snprintf(command, sizeof(command),
		       "{\"execute\":\"migrate-incoming\",\"arguments\":{\"uri\":\"%s\"}}", m->uri);
	bench_qmp(&dst, command);
	move.src_cpu_s = -bench_cpu_s(src.pid);
	move.dst_cpu_s = -bench_cpu_s(dst.pid);
	start = bench_now_s();
	bench_qemu_migrate(&src, m->uri);
	bench_qemu_wait_completed(&src);
	/* The source says so before the destination has loaded; wait for that too. */
	bench_qemu_wait_completed(&dst);
	move.wall_s = bench_now_s() - start;
	move.src_cpu_s += bench_cpu_s(src.pid);
	move.dst_cpu_s += bench_cpu_s(dst.pid);
	move.src_peak_mib = bench_peak_mib(src.pid);
	move.dst_peak_mib = bench_peak_mib(dst.pid);
	bench_qemu_end(&src);
	bench_qemu_end(&dst);
	compare_files(m->src_file, dst_file, m->bytes);
	(void)unlink(dst_file);
	return move;
}

static void mapped_ram(struct bench_qemu *q)
{
	bench_qmp(q, "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":"
		     "[{\"capability\":\"mapped-ram\",\"state\":true}]}}");
}

/* Runs one command to the end of the migration; wall and CPU time meanwhile. */
static void timed(struct bench_qemu *q, const char *verb, const char *image, double *wall_s,
		  double *cpu_s)
{
	char command[512];

	(void)snprintf(command, sizeof(command),
		       "{\"execute\":\"%s\",\"arguments\":{\"uri\":\"file:%s\"}}\n", verb, image);
	*cpu_s = -bench_cpu_s(q->pid);
	*wall_s = -bench_now_s();
	(void)!write(q->fd, command, strlen(command));
	bench_qemu_wait_completed(q);
	*wall_s += bench_now_s();
	*cpu_s += bench_cpu_s(q->pid);
}

/* The private memory of a QEMU is what it has mapped in that length (and perhaps a little more). */
static void compare_private(const struct bench_qemu *q, const char *file, uint64_t bytes)
{
	unsigned long long from = 0, to = 0, start = 0;
	char path[64], line[512], mode[8];
	uint8_t *want, *got = malloc(bytes);
	FILE *maps;
	int fd;

	(void)snprintf(path, sizeof(path), "/proc/%d/maps", (int)q->pid);
	maps = fopen(path, "re");
	while (maps && start == 0 && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%llx-%llx %7s", &from, &to, mode) == 3 && to - from >= bytes &&
		    strcmp(mode, "rw-p") == 0) {
			start = from;
		}
	}
	if (maps) {
		(void)fclose(maps);
	}
	(void)snprintf(path, sizeof(path), "/proc/%d/mem", (int)q->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	for (uint64_t at = 0; at < bytes; at += 1 << 20) {
		if (!got || pread(fd, got + at, 1 << 20, (off_t)(start + at)) != 1 << 20) {
			bench_die("cannot read QEMU's memory: %s", strerror(errno));
		}
	}
	close(fd);
	fd = open(file, O_RDONLY | O_CLOEXEC);
	want = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (want == MAP_FAILED || memcmp(want, got, bytes) != 0) {
		bench_die("QEMU's private memory is not what its source had");
	}
	munmap(want, bytes);
	close(fd);
	free(got);
}

struct bench_image_cost bench_qemu_image(const struct bench_machine *m, const char *image)
{
	struct bench_image_cost cost;
	char dst_file[128];
	struct bench_qemu q;

	(void)snprintf(dst_file, sizeof(dst_file), "%s.dst", m->src_file);
	(void)unlink(dst_file);
	bench_qemu_start(&q, m, "src", m->src_file, false, false);
	mapped_ram(&q);
	timed(&q, "migrate", image, &cost.save_wall_s, &cost.save_cpu_s);
	bench_qemu_end(&q);
	bench_qemu_start(&q, m, "dst", m->private ? NULL : dst_file, false, true);
	mapped_ram(&q);
	timed(&q, "migrate-incoming", image, &cost.load_wall_s, &cost.load_cpu_s);
	if (m->private) {
		compare_private(&q, m->src_file, m->bytes);
	}
	bench_qemu_end(&q);
	if (!m->private) {
		compare_files(m->src_file, dst_file, m->bytes);
	}
	(void)unlink(dst_file);
	return cost;
}

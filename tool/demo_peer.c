/* SPDX-License-Identifier: MIT */
#include "demo.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	CONNECT_MS = 60000,
	CONNECT_SLICE_MS = 100,
	LIVE_LOOKS_MAX = 3000, /* 2 ms each */
	BEATS_MIN = 50,
	OPS_MIN = 200, /* of each writer */
};

static void nap_ms(unsigned int ms)
{
	const struct timespec ts = { .tv_nsec = ms * 1000000L };

	(void)nanosleep(&ts, NULL);
}

/* The child's half. Dies with the parent; what it says goes to a file. */
__attribute__((noreturn)) static void
become_destination(const struct demo_peer *peer, const struct demo_options *options, pid_t parent)
{
	char memory[32], vcpus[16], qmp[64], log[64];
	const char *argv[] = {
		"guestram",	"run",	   "--paused", "--incoming",
		peer->uri,	"--qmp",   qmp,	       "--memory",
		memory,		"--vcpus", vcpus,      options->accel ? "--accel" : NULL,
		options->accel, NULL
	};
	int fd;

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) {
		_exit(127); /* it died before that */
	}
	(void)snprintf(memory, sizeof(memory), "%" PRIu64, options->memory_bytes);
	(void)snprintf(vcpus, sizeof(vcpus), "%u", options->vcpus);
	(void)snprintf(qmp, sizeof(qmp), "unix:%s/qmp", peer->dir);
	(void)snprintf(log, sizeof(log), "%s/log", peer->dir);
	fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd >= 0) {
		(void)dup2(fd, STDOUT_FILENO);
		(void)dup2(fd, STDERR_FILENO);
	}
	/* exec takes what it is given; the cast is C's, not ours */
	(void)execv("/proc/self/exe", (char *const *)(uintptr_t)argv);
	_exit(127);
}

/* The last line it said, for an error of ours. */
static void last_words(const struct demo_peer *peer, char *text, int room)
{
	char path[64];
	FILE *file;

	text[0] = '\0';
	(void)snprintf(path, sizeof(path), "%s/log", peer->dir);
	file = fopen(path, "re");
	while (file && fgets(text, room, file)) {
		text[strcspn(text, "\n")] = '\0';
	}
	if (file) {
		(void)fclose(file);
	}
}

/* Connect to its monitor, unless it ends before there is one. */
static int connect_to(struct demo_peer *peer, struct gr_error *err)
{
	char where[64], words[160];
	int rc = -ETIMEDOUT;

	(void)snprintf(where, sizeof(where), "unix:%s/qmp", peer->dir);
	for (int ms = 0; ms < CONNECT_MS; ms += CONNECT_SLICE_MS) {
		siginfo_t ended = { .si_pid = 0 };

		rc = vmm_qmp_connect(where, CONNECT_SLICE_MS, &peer->qmp, err);
		if (rc == 0 ||
		    (waitid(P_PID, (id_t)peer->pid, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 &&
		     ended.si_pid == peer->pid)) {
			break;
		}
	}
	if (rc < 0) {
		last_words(peer, words, sizeof(words));
		if (words[0] != '\0') {
			return gr_error_set(err, rc, "the destination did not come up: %s", words);
		}
		(void)gr_error_prefix(err, "the destination did not come up: ");
	}
	return rc;
}

int demo_peer_start(struct demo_peer *peer, const struct demo_options *options,
		    struct gr_error *err)
{
	pid_t parent = getpid();
	int rc;

	*peer = (struct demo_peer){ .dir = "/tmp/guestram-demo-XXXXXX" };
	if (!mkdtemp(peer->dir)) {
		return gr_error_set(err, -errno, "cannot make a folder in /tmp: %s",
				    strerror(errno));
	}
	(void)snprintf(peer->uri, sizeof(peer->uri), "unix:%s/move", peer->dir);
	peer->pid = fork();
	if (peer->pid == 0) {
		become_destination(peer, options, parent);
	}
	if (peer->pid < 0) {
		rc = gr_error_set(err, -errno, "cannot make a process: %s", strerror(errno));
		(void)rmdir(peer->dir);
		return rc;
	}
	rc = connect_to(peer, err);
	if (rc < 0) {
		(void)demo_peer_stop(peer, NULL);
	}
	return rc;
}

/* It told the source that all is there before it says so itself. */
static int await_arrival(struct demo_peer *peer, struct gr_error *err)
{
	for (int i = 0; i < LIVE_LOOKS_MAX; i++) {
		json_t *answer = NULL;
		int rc = vmm_qmp_execute(peer->qmp, "query-status", NULL, &answer, err);
		const char *status = json_string_value(json_object_get(answer, "status"));
		bool here = status && strcmp(status, "inmigrate") != 0;

		json_decref(answer);
		if (rc < 0 || here) {
			return rc;
		}
		nap_ms(2);
	}
	return gr_error_set(err, -ETIMEDOUT, "the guest does not arrive");
}

int demo_peer_check(struct demo_peer *peer, struct demo_check *ret, struct gr_error *err)
{
	json_t *answer = NULL;
	int rc = await_arrival(peer, err);

	rc = rc < 0 ? rc : vmm_qmp_execute(peer->qmp, "x-check", NULL, &answer, err);
	if (rc < 0) {
		return rc;
	}
	*ret = (struct demo_check){
		.pages_checked = vmm_qmp_number(answer, "pages-checked"),
		.plugged_pages_checked = vmm_qmp_number(answer, "plugged-pages-checked"),
		.device_pages_checked = vmm_qmp_number(answer, "device-pages-checked"),
		.pages_written_once = vmm_qmp_number(answer, "pages-written-once"),
		.pages_last_written_before_final_round =
			vmm_qmp_number(answer, "pages-last-written-before-final-round"),
		.pages_wrong = vmm_qmp_number(answer, "pages-wrong"),
		.took_ns = vmm_qmp_number(answer, "took-ns"),
	};
	(void)snprintf(ret->first_wrong, sizeof(ret->first_wrong), "%s",
		       vmm_qmp_text(answer, "first-wrong"));
	json_decref(answer);
	return 0;
}

/* The smallest of the writers' counters, and all together. */
static int query_ops(struct demo_peer *peer, uint64_t *ret_least, uint64_t *ret_all,
		     struct gr_error *err)
{
	json_t *answer = NULL, *value;
	size_t i;
	int rc = vmm_qmp_execute(peer->qmp, "x-query-ops", NULL, &answer, err);

	*ret_least = UINT64_MAX;
	*ret_all = 0;
	if (rc < 0) {
		return rc;
	}
	json_array_foreach(answer, i, value)
	{
		uint64_t ops = (uint64_t)json_integer_value(value);

		*ret_least = ops < *ret_least ? ops : *ret_least;
		*ret_all += ops;
	}
	json_decref(answer);
	return 0;
}

static int query_heartbeat(struct demo_peer *peer, uint64_t *ret_beats, uint64_t *ret_gap_ns,
			   struct gr_error *err)
{
	json_t *answer = NULL;
	int rc = vmm_qmp_execute(peer->qmp, "x-query-heartbeat", NULL, &answer, err);

	if (rc == 0) {
		*ret_beats = vmm_qmp_number(answer, "beats");
		*ret_gap_ns = vmm_qmp_number(answer, "gap-ns-max");
		json_decref(answer);
	}
	return rc;
}

/*
 * The first beat over there sees the gap since the last one here. It is read at once, so that
 * what the guest sees later, on a machine that is busy, is not counted. The gap was reset to
 * 0 before: while it is 0 the beat is not complete, even if its number is there already.
 */
static int await_first_beat(struct demo_peer *peer, uint64_t beats, uint64_t *ret_gap_ns,
			    struct gr_error *err)
{
	uint64_t now = beats;
	int rc = 0;

	for (int i = 0; i < LIVE_LOOKS_MAX && rc == 0 && (now == beats || *ret_gap_ns == 0); i++) {
		rc = query_heartbeat(peer, &now, ret_gap_ns, err);
	}
	return rc;
}

int demo_peer_live(struct demo_peer *peer, struct demo_life *ret, struct gr_error *err)
{
	uint64_t beats = 0, gap_ns = 0, least = 0, all = 0, now_beats = 0, now_least = 0;
	uint64_t now_all = 0;
	int rc = query_heartbeat(peer, &beats, &gap_ns, err);

	*ret = (struct demo_life){ 0 };
	rc = rc < 0 ? rc : query_ops(peer, &least, &all, err);
	rc = rc < 0 ? rc : vmm_qmp_execute(peer->qmp, "x-heartbeat-reset", NULL, NULL, err);
	rc = rc < 0 ? rc : vmm_qmp_execute(peer->qmp, "cont", NULL, NULL, err);
	rc = rc < 0 ? rc : await_first_beat(peer, beats, &ret->gap_ns, err);
	for (int i = 0; i < LIVE_LOOKS_MAX && rc == 0 && !ret->runs; i++) {
		nap_ms(2);
		rc = query_heartbeat(peer, &now_beats, &gap_ns, err);
		rc = rc < 0 ? rc : query_ops(peer, &now_least, &now_all, err);
		ret->beats = now_beats - beats;
		ret->ops = now_all - all;
		ret->runs = now_beats >= beats + BEATS_MIN && now_least >= least + OPS_MIN;
	}
	return rc < 0 ? rc : vmm_qmp_execute(peer->qmp, "stop", NULL, NULL, err);
}

static void remove_files(const struct demo_peer *peer)
{
	static const char *const names[] = { "log", "move", "qmp" };
	char path[64];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", peer->dir, names[i]);
		(void)unlink(path);
	}
	(void)rmdir(peer->dir);
}

int demo_peer_stop(struct demo_peer *peer, struct gr_error *err)
{
	char words[160];
	int status = 0, rc = 0;

	if (!peer->qmp || vmm_qmp_execute(peer->qmp, "quit", NULL, NULL, NULL) < 0) {
		(void)kill(peer->pid, SIGKILL);
	}
	vmm_qmp_disconnect(peer->qmp);
	while (waitpid(peer->pid, &status, 0) < 0 && errno == EINTR) {
	}
	last_words(peer, words, sizeof(words));
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		rc = gr_error_set(err, -ECHILD, "the destination ended with status %#x: %s",
				  (unsigned int)status, words);
	}
	remove_files(peer);
	return rc;
}

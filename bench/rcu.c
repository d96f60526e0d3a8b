/* SPDX-License-Identifier: MIT */
/*
 * RCU readers and grace periods against liburcu (Debian's, with its inlined readers) and
 * QEMU's scheme, in the same run, in alternation.
 *
 *   rcu.read_memb      a section: lock + unlock, membarrier on both sides
 *   rcu.read_qsbr      a section of a quiescent-state thread (".../quiescent": with its report)
 *   rcu.read_fallback  a section where no process-wide barrier is available
 *   rcu.gp_busy        a grace period while a thread on another processor runs sections
 *   rcu.gp_parked      while all readers are parked; one runs without RCU, as in a guest
 *   rcu.gp_concurrent8 eight threads that synchronize at the same time
 *   rcu.gp_poll        from starting a polled grace period until it is over
 *   rcu.storm_syscalls system calls of a grace period with one slow and one fast reader
 *
 * Readers are measured in three programs: linked to shared libraries (the case itself),
 * statically (".static"), and with the reading code in a shared library (".shared").
 */
#include "bench/harness.h"
#include "bench/rcu_cases.h"
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Runs a reading program and adds what it prints. */
static void add_reads(const char *program, const struct bench_rcu *ours,
		      const struct bench_rcu *peer, const struct bench_options *o,
		      struct bench_result *ret, struct bench_result *ret_quiescent)
{
	unsigned long sections = o->quick ? 100000 : 2000000;
	char self[PATH_MAX] = "", command[2 * PATH_MAX];
	double ns[4];
	FILE *out;

	if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0) {
		bench_die("/proc/self/exe: %s", strerror(errno));
	}
	(void)snprintf(command, sizeof(command), "'%s/rcu_impl/%s' '%s' '%s' %d %lu", dirname(self),
		       program, ours->name, peer->name, o->runs, sections);
	out = popen(command, "r");
	if (!out) {
		bench_die("cannot run %s: %s", command, strerror(errno));
	}
	while (fscanf(out, "%lf %lf %lf %lf", &ns[0], &ns[1], &ns[2], &ns[3]) == 4) {
		bench_add(ret, ns[0], ns[1]);
		bench_add(ret_quiescent, ns[2], ns[3]);
	}
	if (pclose(out) != 0 || ret->runs != o->runs) {
		bench_die("%s failed", command);
	}
}

static void read_case(const struct bench_options *o, const char *name, const struct bench_rcu *ours,
		      const struct bench_rcu *peer, bool quiescent)
{
	static const struct {
		const char *program, *suffix;
	} ways[] = { { "read_linked", "" },
		     { "read_static", ".static" },
		     { "read_shared", ".shared" } };

	if (!bench_rcu_have(name, peer)) {
		return;
	}
	for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		struct bench_result plain = { .unit = "ns", .peer_name = peer->name }, qs = plain;
		char plain_name[64], qs_name[80];

		(void)snprintf(plain_name, sizeof(plain_name), "%s%s", name, ways[i].suffix);
		(void)snprintf(qs_name, sizeof(qs_name), "%s/quiescent", plain_name);
		plain.name = plain_name;
		qs.name = qs_name;
		add_reads(ways[i].program, ours, peer, o, &plain, &qs);
		bench_print(o, &plain);
		if (quiescent) {
			bench_print(o, &qs);
		}
	}
}

static void read_fallback(const struct bench_options *o)
{
	(void)setenv("GR_FORCE_FENCES", "1", 1);
	read_case(o, "rcu.read_fallback", &bench_rcu_guestram, bench_rcu_mb, false);
	read_case(o, "rcu.read_fallback/qemu", &bench_rcu_guestram, &bench_rcu_qemu, false);
	(void)unsetenv("GR_FORCE_FENCES");
}

int main(int argc, char **argv)
{
	struct bench_options o;

	bench_options_parse(&o, argc, argv);
	if (bench_wanted(&o, "rcu.read_memb")) {
		read_case(&o, "rcu.read_memb", &bench_rcu_guestram, bench_rcu_memb, false);
	}
	if (bench_wanted(&o, "rcu.read_qsbr")) {
		read_case(&o, "rcu.read_qsbr", &bench_rcu_guestram_qs, bench_rcu_qsbr, true);
	}
	if (bench_wanted(&o, "rcu.read_fallback")) {
		read_fallback(&o);
	}
	bench_gp_cases(&o);
	bench_storm_case(&o);
	return 0;
}

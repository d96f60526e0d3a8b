/* SPDX-License-Identifier: MIT */
/* guestram: finds the verb, runs it, makes sure that what it printed has arrived. */
#include "tool.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/types.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* clang-format off: a line for each */
/* In the order in which `guestram --help` lists them; NULL ends the table. */
static const struct verb *const verbs[] = {
	&verb_demo,
	&verb_run,
	&verb_migrate,
	&verb_receive,
	&verb_send,
	&verb_relay,
	&verb_snapshot,
	&verb_info,
	&verb_extract,
	&verb_features,
	NULL,
};
/* clang-format on */

static void print_help(void)
{
	(void)printf("Usage: guestram VERB [OPTIONS] [ARGUMENTS]\n"
		     "\n"
		     "The guest RAM of virtual machines: move it, keep it, look into it.\n"
		     "\n"
		     "Verbs:\n");
	for (size_t i = 0; verbs[i]; i++) {
		(void)printf("  %-10s%s\n", verbs[i]->name, verbs[i]->help);
	}
	(void)printf("\n"
		     "  --help      show this, or with a verb what that verb takes\n"
		     "  --version   show the version\n"
		     "\n"
		     "Results go to standard output, everything else to standard error.\n"
		     "Exit status: 0 done, 1 the answer is no, 2 error.\n");
}

static const struct verb *find_verb(const char *name)
{
	for (size_t i = 0; verbs[i]; i++) {
		if (strcmp(verbs[i]->name, name) == 0) {
			return verbs[i];
		}
	}
	return NULL;
}

static bool asks_for_help(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "--help") == 0) {
			return true;
		}
	}
	return false;
}

static int run_verb(const struct verb *verb, int argc, char **argv)
{
	char name[64];

	if (asks_for_help(argc, argv)) {
		(void)fputs(verb->usage, stdout);
		return TOOL_OK;
	}
	/* getopt_long() begins its messages with argv[0] */
	(void)snprintf(name, sizeof(name), "guestram %s", verb->name);
	argv[0] = name;
	return verb->fn(argc, argv);
}

static int dispatch(int argc, char **argv)
{
	const struct verb *verb;

	if (argc < 2) {
		(void)fprintf(stderr, "guestram: no verb given\nSee 'guestram --help'.\n");
		return TOOL_ERROR;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
		print_help();
		return TOOL_OK;
	}
	if (strcmp(argv[1], "--version") == 0) {
		(void)printf("guestram %s\n", gr_version());
		return TOOL_OK;
	}
	verb = find_verb(argv[1]);
	if (!verb) {
		(void)fprintf(stderr, "guestram: unknown %s '%s'\nSee 'guestram --help'.\n",
			      argv[1][0] == '-' ? "option" : "verb", argv[1]);
		return TOOL_ERROR;
	}
	return run_verb(verb, argc - 1, argv + 1);
}

/*
 * A standard stream that is closed would be the number of the next file that is opened, and
 * messages, ours or those of an exec: command, would go into it. Standard output is taken by
 * something that cannot be written: a result that has nowhere to go is still an error.
 */
static void occupy_standard_streams(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) {
			/* gets the lowest free number, this one; commands may inherit it */
			(void)!open("/dev/null", fd == STDERR_FILENO ? O_RDWR : O_RDONLY);
		}
	}
}

int main(int argc, char **argv)
{
	int status;

	occupy_standard_streams();
	status = dispatch(argc, argv);

	/* A full disk behind stdout is found out here at the latest. */
	if (fflush(stdout) != 0 || ferror(stdout)) {
		return tool_error("cannot write to standard output: %s", strerror(errno));
	}
	return status;
}

/* SPDX-License-Identifier: MIT */
/*
 * What the verbs of the tool share.
 *
 * A verb lives in cmd_<verb>.c, defines `const struct verb verb_<verb>` and has a line in
 * main.c's table. It gets its own arguments (argv[0] is "guestram VERB", for getopt_long)
 * and returns one of the exit codes below. `--help` never reaches it.
 *
 * The result goes to stdout, everything else to stderr: tool_error(), progress lines. What
 * is asked for with --json is one object (json.h), names and units as in the library.
 */
#ifndef TOOL_TOOL_H
#define TOOL_TOOL_H

#include <guestram/channel.h>
#include <guestram/error.h>
#include <guestram/multifd.h>
#include <stdbool.h>
#include <stdint.h>

/* exit codes */
enum {
	TOOL_OK = 0,	/* done */
	TOOL_NO = 1,	/* done, and the answer is "no", "different" or "failed check" */
	TOOL_ERROR = 2, /* could not be done, or not asked for correctly */
};

struct verb {
	const char *name;
	const char *help;  /* one line */
	const char *usage; /* the whole text of `guestram VERB --help` */
	int (*fn)(int argc, char **argv);
};

/* All of them, sorted. */
extern const struct verb verb_demo;
extern const struct verb verb_extract;
extern const struct verb verb_features;
extern const struct verb verb_info;
extern const struct verb verb_migrate;
extern const struct verb verb_receive;
extern const struct verb verb_relay;
extern const struct verb verb_run;
extern const struct verb verb_send;
extern const struct verb verb_snapshot;

/**
 * Say what went wrong, on stderr, in one line that begins with the tool's name.
 * @param fmt printf format.
 * @return TOOL_ERROR, so that a verb can write `return tool_error(...)`.
 */
int tool_error(const char *fmt, ...) GR_PRINTF(1, 2);

/**
 * Say that the verb was not called correctly, and where its help is.
 * @param verb The verb.
 * @param fmt  printf format, or NULL if getopt_long() has said it already.
 * @return TOOL_ERROR.
 */
int tool_usage_error(const struct verb *verb, const char *fmt, ...) GR_PRINTF(2, 3);

/**
 * Listen where a source is to come, and say so on stderr.
 * @param uri          Where.
 * @param ret_listener Set on success only; for tool_accept().
 * @param err          May be NULL.
 * @return 0 or a negative errno.
 */
int tool_listen(const char *uri, struct gr_channel_listener **ret_listener, struct gr_error *err);

/**
 * Wait for the source.
 * @param listener    Closed, whatever is returned: nobody else is to come.
 * @param ret_channel Set on success only.
 * @param err         May be NULL.
 * @return 0 or a negative errno.
 */
int tool_accept(struct gr_channel_listener *listener, struct gr_channel **ret_channel,
		struct gr_error *err);

/* An image on the command line: a path, or as QEMU writes it, file:PATH[,offset=N]. */
struct tool_image_name {
	char path[4096];
	uint64_t offset;
};

/**
 * Take it apart.
 * @param text The argument.
 * @param ret  Filled on success.
 * @param err  May be NULL.
 * @return 0 or -EINVAL.
 */
int tool_image_name(const char *text, struct tool_image_name *ret, struct gr_error *err);

struct gr_image;
/** The same, and open it: gr_image_open_at(). */
int tool_image_open(const char *text, struct gr_image **ret_image, struct gr_error *err);

/* What --multifd and --multifd-compression ask for; zeroed: nothing. */
struct tool_multifd {
	struct gr_multifd params; /* count is 0 without --multifd */
	struct gr_channel *main;
	struct gr_channel *further[GR_MULTIFD_CHANNELS_MAX];
	bool compressed; /* --multifd-compression was given */
};

/**
 * Take an option: 'm' for --multifd, 'c' for --multifd-compression; says what is wrong with it.
 * @param m    The options.
 * @param verb Whose.
 * @param c    What getopt_long() returned.
 * @param text What was typed.
 * @return Whether it was one of them, and right.
 */
bool tool_multifd_option(struct tool_multifd *m, const struct verb *verb, int c, const char *text);

/** Whether what was asked for fits together. @param m The options. @param err Says what not. @return 0 or an errno. */
int tool_multifd_check(const struct tool_multifd *m, struct gr_error *err);

/**
 * Connect to uri: main, and the further ones that were asked for.
 * @param m   The options.
 * @param uri Where to.
 * @param err May be NULL.
 * @return 0 or a negative errno.
 */
int tool_multifd_connect(struct tool_multifd *m, const char *uri, struct gr_error *err);

/**
 * Wait for the source, with all its channels.
 * @param m        The options.
 * @param listener Closed, whatever is returned.
 * @param err      May be NULL.
 * @return 0 or a negative errno.
 */
int tool_multifd_accept(struct tool_multifd *m, struct gr_channel_listener *listener,
			struct gr_error *err);

/** Close all. @param m The options. @param err What the main one said. @return 0 or a negative errno. */
int tool_multifd_close(struct tool_multifd *m, struct gr_error *err);

/** What to hand to the library. @param m The options. @return NULL without --multifd. */
const struct gr_multifd *tool_multifd_params(const struct tool_multifd *m);

/**
 * Read a size as QEMU does: a number and one of K, M, G, T (powers of 1024) or nothing.
 * @param text      What was typed.
 * @param ret_bytes Set on success only.
 * @return 0, or -EINVAL: no size, or too large for 64 bits.
 */
int tool_parse_size(const char *text, uint64_t *ret_bytes);

/**
 * Read a UUID: 32 hexadecimal digits, grouped 8-4-4-4-12 by dashes.
 * @param text     What was typed.
 * @param ret_uuid 16 bytes, set on success only.
 * @return 0, or -EINVAL.
 */
int tool_parse_uuid(const char *text, uint8_t *ret_uuid);

/**
 * Write a size for people: "4 KiB", "63.9 MiB".
 * @param bytes How many.
 * @param buf   Where to.
 * @param n     Its length; 16 is enough.
 * @return buf.
 */
const char *tool_format_size(uint64_t bytes, char *buf, size_t n);

#endif

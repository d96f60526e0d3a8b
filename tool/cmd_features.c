/* SPDX-License-Identifier: MIT */
/* guestram features: what this machine offers, or why not. */
#include "json.h"
#include "tool.h"
#include <getopt.h>
#include <guestram/track.h>
#include <stdio.h>
#include <string.h>

static void print_text(const struct gr_feature *features, unsigned int n)
{
	int width = 0;

	for (unsigned int i = 0; i < n; i++) {
		int len = (int)strlen(features[i].name);

		width = len > width ? len : width;
	}
	for (unsigned int i = 0; i < n; i++) {
		(void)printf("%-*s  %-3s  %s\n", width, features[i].name,
			     features[i].available ? "yes" : "no", features[i].detail);
	}
}

static void print_json(const struct gr_feature *features, unsigned int n)
{
	struct json j;

	json_begin(&j, stdout);
	json_put_array(&j, "features");
	for (unsigned int i = 0; i < n; i++) {
		json_put_object(&j, NULL);
		json_put_string(&j, "name", features[i].name);
		json_put_bool(&j, "available", features[i].available);
		json_put_string(&j, "detail", features[i].detail);
		json_end(&j);
	}
	json_end(&j);
	json_end(&j);
}

/* Whether each name is offered: the answer is in the exit status too. */
static int ask(const struct gr_feature *features, unsigned int n, int names, char **name,
	       struct gr_feature *asked, unsigned int *ret_asked)
{
	int status = TOOL_OK;

	*ret_asked = 0;
	for (int k = 0; k < names; k++) {
		unsigned int i = 0;

		while (i < n && strcmp(features[i].name, name[k]) != 0) {
			i++;
		}
		if (i == n) {
			return tool_error("unknown feature '%s'; see 'guestram features'", name[k]);
		}
		if (*ret_asked == GR_FEATURES_MAX) {
			return tool_error("more than %d features asked for", GR_FEATURES_MAX);
		}
		asked[(*ret_asked)++] = features[i];
		if (!features[i].available) {
			status = TOOL_NO;
		}
	}
	return status;
}

static int features_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ NULL, 0, NULL, 0 },
	};
	struct gr_feature all[GR_FEATURES_MAX], asked[GR_FEATURES_MAX];
	const struct gr_feature *shown = all;
	unsigned int n, n_asked;
	bool json = false;
	int opt, status = TOOL_OK;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt != 'j') {
			return tool_usage_error(&verb_features, NULL);
		}
		json = true;
	}
	n = gr_features_probe(all, GR_FEATURES_MAX);
	if (optind < argc) {
		status = ask(all, n, argc - optind, argv + optind, asked, &n_asked);
		if (status == TOOL_ERROR) {
			return status;
		}
		shown = asked;
		n = n_asked;
	}
	if (json) {
		print_json(shown, n);
	} else {
		print_text(shown, n);
	}
	return status;
}

const struct verb verb_features = {
	.name = "features",
	.help = "say what this machine offers, and why not where it does not",
	.usage =
		"Usage: guestram features [--json] [NAME...]\n"
		"\n"
		"Tries what guestram can make use of on this machine: barriers, userfaultfd, KVM,\n"
		"huge pages. Nothing is concluded from versions, and nothing is changed.\n"
		"\n"
		"  NAME     only these features; exit status 1 if one of them is missing\n"
		"  --json   one object: features[] of name, available, detail\n",
	.fn = features_main,
};

/* SPDX-License-Identifier: MIT */
/* --multifd and --multifd-compression, as send and receive have them. */
#include "tool.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool take_count(struct tool_multifd *m, const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (end == text || *end != '\0' || n == 0 || n > GR_MULTIFD_CHANNELS_MAX) {
		return false;
	}
	m->params.count = (unsigned int)n;
	m->params.channels = m->further;
	return true;
}

static bool take_compression(struct tool_multifd *m, const char *text)
{
	static const enum gr_multifd_compression all[] = { GR_MULTIFD_NONE, GR_MULTIFD_ZLIB,
							   GR_MULTIFD_ZSTD };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (strcmp(text, gr_multifd_compression_name(all[i])) == 0) {
			m->params.compression = all[i];
			m->compressed = true;
			return true;
		}
	}
	return false;
}

bool tool_multifd_option(struct tool_multifd *m, const struct verb *verb, int c, const char *text)
{
	if (c == 'm') {
		if (!take_count(m, text)) {
			(void)tool_usage_error(verb, "--multifd %s: 1 to %d", text,
					       GR_MULTIFD_CHANNELS_MAX);
			return false;
		}
		return true;
	}
	if (c == 'c') {
		if (!take_compression(m, text)) {
			(void)tool_usage_error(verb, "--multifd-compression %s: none, zlib or zstd",
					       text);
			return false;
		}
		return true;
	}
	(void)tool_usage_error(verb, NULL);
	return false;
}

int tool_multifd_check(const struct tool_multifd *m, struct gr_error *err)
{
	if (m->compressed && m->params.count == 0) {
		return gr_error_set(err, -EINVAL, "--multifd-compression needs --multifd N");
	}
	return gr_multifd_supports(m->params.compression, err);
}

int tool_multifd_connect(struct tool_multifd *m, const char *uri, struct gr_error *err)
{
	if (m->params.count == 0) {
		return gr_channel_connect(uri, &m->main, err);
	}
	return gr_multifd_connect(uri, m->params.count, &m->main, m->further, err);
}

int tool_multifd_accept(struct tool_multifd *m, struct gr_channel_listener *listener,
			struct gr_error *err)
{
	int rc;

	if (m->params.count == 0) {
		return tool_accept(listener, &m->main, err);
	}
	rc = gr_multifd_accept(listener, m->params.count, &m->main, m->further, err);
	gr_channel_listener_close(listener);
	return rc;
}

int tool_multifd_close(struct tool_multifd *m, struct gr_error *err)
{
	int rc = gr_channel_close(m->main, err);

	for (unsigned int i = 0; i < m->params.count; i++) {
		(void)gr_channel_close(m->further[i], NULL);
	}
	return rc;
}

const struct gr_multifd *tool_multifd_params(const struct tool_multifd *m)
{
	return m->params.count == 0 ? NULL : &m->params;
}
